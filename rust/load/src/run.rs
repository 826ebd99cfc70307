//! One run from its options to its report.
//!
//! What the server does wrong is in the report, whenever it does it; a [`Failure`] is what the caller has to mend, or that it was abandoned.

use crate::clock::Clock;
use crate::descriptors;
use crate::drive::{Pace, Plan, Run, Workload, drive};
use crate::failure::Failure;
use crate::fanout::FanOut;
use crate::idle::{self, Opening};
use crate::options::{Kind, Options};
use crate::pings::Pings;
use crate::process;
use crate::recovery::recover;
use crate::refusals::Refusals;
use crate::report::Report;
use crate::stored::Stored;
use crate::subscription::{Channel, subscribe_all};
use crate::swarm::{Swarm, Target};
use crate::watch::Watch;
use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A run that came to its end, well or not.
pub struct Outcome {
    /// What it found.
    pub report: Report,
    /// Every connection ended before it was over.
    pub server_gone: bool,
}

impl Outcome {
    /// The exit code of the program, as [`crate::options::USAGE`] lists them.
    #[must_use]
    pub fn code(&self) -> u8 {
        if self.server_gone { 3 } else { u8::from(!self.report.ok()) }
    }
}

/// Run what `options` ask for; `watch` is told how it goes.
///
/// # Errors
/// [`Failure::Call`] where there is nothing to run against or with, [`Failure::Stopped`] where `watch` wanted no report.
pub fn run(options: &Options, watch: Watch) -> Result<Outcome, Failure> {
    descriptors::make_room(options.sockets())?;
    let mut swarm = Swarm::new(Clock::default(), watch)?;
    let mut report = Report::default();
    report.figure("workload", options.workload.as_str());
    report.figure("connections", options.connections);
    report.figure("channels", options.channels);
    let server_gone = match steps(&mut swarm, options, &mut report) {
        Ok(server_gone) => server_gone,
        Err(Failure::Server(sentence)) => {
            report.wrong(sentence);
            false
        }
        Err(failure) => return Err(failure),
    };
    report.figure("stopped", swarm.stopped());
    Ok(Outcome { report, server_gone })
}

/// Open, subscribe, run the workload, close; returns whether the server went away.
fn steps(swarm: &mut Swarm, options: &Options, report: &mut Report) -> Result<bool, Failure> {
    let opening = Opening {
        target: Target {
            address: options.address,
            host: options.host.clone(),
            path: options.path.clone(),
            tokens: options.tokens.clone(),
            compress: options.compress,
            dialect: options.dialect,
        },
        connections: options.sockets(),
        window: options.window,
        timeout: options.timeout,
        pids: options.pids.clone(),
    };
    if options.kind == Kind::Churn {
        let (cycles, unclean) = idle::churn(swarm, &opening, options.cycles)?;
        report.figure("cycles", cycles);
        report.fault("connections_not_closed_cleanly", unclean as u64);
        return Ok(false);
    }
    let opened = idle::open(swarm, &opening)?;
    report.figure("connect", opened.json(options.sockets()));
    report.latency("connect_us", swarm.connect_times());
    let channels = Channel::all(&options.prefix, options.channels, options.connections);
    if options.kind == Kind::Recover {
        recovered(swarm, &opening.target, channels, options, report)?;
        end(swarm, false, report)?;
        return Ok(false);
    }
    let offsets = subscribe_all(swarm, &channels, options.timeout)?;
    swarm.settle(Duration::from_millis(200), Duration::from_secs(20))?;
    let server_gone = match options.kind {
        Kind::FanOut => {
            let count = channels.len();
            let mut workload = FanOut::new(channels, options);
            measure(swarm, &mut workload, count, options, report)?
        }
        Kind::Pings => {
            let mut workload = Pings::new(options.connections);
            measure(swarm, &mut workload, options.connections, options, report)?
        }
        Kind::Send => send(swarm, channels, &offsets, options, report)?,
        Kind::Idle | Kind::Churn | Kind::Recover => hold(swarm, options, report)?,
    };
    end(swarm, server_gone, report)?;
    Ok(server_gone)
}

/// Drive a workload and report what all of them have in common.
fn measure<W: Workload>(
    swarm: &mut Swarm,
    workload: &mut W,
    channels: usize,
    options: &Options,
    report: &mut Report,
) -> Result<bool, Failure> {
    let run = drive(swarm, workload, channels, &plan(options))?;
    costs(report, options, &run, workload);
    let faults = workload.faults();
    report.fault("lost", faults.lost);
    report.fault("doubled", faults.doubled);
    report.fault("out_of_order", faults.reordered);
    refused(report, workload);
    Ok(run.server_gone)
}

fn plan(options: &Options) -> Plan {
    Plan {
        pace: options.pace,
        warmup: options.warmup,
        measured: options.measured,
        patience: options.timeout.min(Duration::from_secs(10)),
        pids: options.pids.clone(),
    }
}

fn send(
    swarm: &mut Swarm,
    channels: Vec<Channel>,
    offsets: &[u64],
    options: &Options,
    report: &mut Report,
) -> Result<bool, Failure> {
    let record = match &options.record {
        None => None,
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            Some(file.map_err(|error| Failure::Call(format!("--record {path}: {error}")))?)
        }
    };
    let count = channels.len();
    // Unique among runs against the same log: the messages of an earlier run are answered as duplicates.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run_id = format!("l{:x}", since_1970.as_micros());
    let mut workload = Stored::new(channels, options.payload, run_id, offsets, record);
    workload.repeat_every = options.repeat_every;
    let server_gone = measure(swarm, &mut workload, count, options, report)?;
    report.latency("ack_latency_us", &workload.ack_latency);
    report.figure("acks", workload.acks);
    let log = workload.log_faults();
    report.fault("unacknowledged", log.unacked);
    report.fault("stray_acks", log.stray_acks);
    report.fault("numbers_that_disagree", log.disagreements);
    report.fault("stored_twice", log.stored_twice);
    Ok(server_gone)
}

fn recovered(
    swarm: &mut Swarm,
    target: &Target,
    channels: Vec<Channel>,
    options: &Options,
    report: &mut Report,
) -> Result<(), Failure> {
    let cpu_before = process::cpu_ns(&options.pids);
    let found = recover(swarm, target, channels, options)?;
    let used_ns = process::cpu_ns(&options.pids).saturating_sub(cpu_before);
    report.latency("reconnect_us", swarm.connect_times());
    report.latency("back_us", &found.back);
    report.figure("messages", found.messages);
    report.figure("deliveries", found.deliveries);
    report.figure("replayed", found.replayed);
    report.figure("server_cpu_ms", used_ns as f64 / 1e6);
    report.fault("not_recovered", found.refused);
    report.fault("lost", found.faults.lost);
    report.fault("doubled", found.faults.doubled);
    report.fault("out_of_order", found.faults.reordered);
    report.fault("unacknowledged", found.unacknowledged);
    refusals(report, &found.refusals);
    Ok(())
}

fn hold(swarm: &mut Swarm, options: &Options, report: &mut Report) -> Result<bool, Failure> {
    let held = idle::hold(swarm, options.measured, options.samples, &options.pids)?;
    let seconds = held.elapsed.as_secs_f64();
    report.figure("held_seconds", seconds);
    report.figure("server_cpu_ms_per_second", held.server_cpu_ns as f64 / 1e6 / seconds.max(1e-9));
    report.figure("pings_answered", held.pings);
    report.figure("memory", held.samples);
    let memory = process::memory(&options.pids);
    report.figure("rss_end_bytes", memory.rss_bytes);
    report.figure("pss_end_bytes", memory.pss_bytes);
    Ok(swarm.alive() == 0)
}

fn costs<W: Workload>(report: &mut Report, options: &Options, run: &Run, workload: &mut W) {
    let figures = workload.figures();
    let (messages, deliveries) = (figures.messages, figures.deliveries);
    let seconds = run.elapsed_ns as f64 / 1e9;
    let each = |ns: u64, count: u64| ns as f64 / 1e3 / count.max(1) as f64;
    // A run that ended in its warm-up has no time to share.
    let share = |ns: u64| if run.elapsed_ns == 0 { 0.0 } else { ns as f64 / run.elapsed_ns as f64 };
    match options.pace {
        Pace::Closed(in_flight) => report.figure("in_flight_per_channel", in_flight),
        Pace::Open(rate) => {
            report.figure("offered_per_s", rate);
            report.latency("generator_late_us", &run.late);
        }
    }
    report.figure("seconds", seconds);
    report.figure("messages", messages);
    report.figure("deliveries", deliveries);
    report.figure("messages_per_s", messages as f64 / seconds.max(1e-9));
    report.figure("deliveries_per_s", deliveries as f64 / seconds.max(1e-9));
    report.figure("server_cpu_us_per_delivery", each(run.server_cpu_ns, deliveries));
    report.figure("server_cpu_us_per_message", each(run.server_cpu_ns, messages));
    report.figure("server_cpu_share", share(run.server_cpu_ns));
    report.figure("generator_cpu_us_per_delivery", each(run.own_cpu_ns, deliveries));
    report.figure("generator_cpu_share", share(run.own_cpu_ns));
    report.figure("received_bytes", run.traffic.received_bytes);
    report.figure("sent_bytes", run.traffic.sent_bytes);
    if options.compress {
        report.figure("compressed_messages", run.traffic.compressed);
    }
    report.figure("event_bytes", figures.bytes as f64 / deliveries.max(1) as f64);
    report.latency("latency_us", &figures.latency);
    if messages == 0 && !options.measured.is_zero() {
        report.wrong("nothing was measured: the run ended in its warm-up".to_owned());
    }
}

fn refused<W: Workload>(report: &mut Report, workload: &mut W) {
    refusals(report, &workload.figures().refusals);
}

fn refusals(report: &mut Report, refusals: &Refusals) {
    report.figure("events_ignored", refusals.ignored);
    report.fault("refused_or_misrouted", refusals.count);
    if let Some(first) = &refusals.first {
        report.wrong(format!("first refusal: {first}"));
    }
}

/// Connections that ended during the run are faults; then close the rest, which is not judged here (churn does).
fn end(swarm: &mut Swarm, server_gone: bool, report: &mut Report) -> Result<(), Failure> {
    report.fault("connections_ended_early", swarm.ends().len() as u64);
    if let Some((index, end)) = swarm.ends().first() {
        report.wrong(format!("connection {index}: {end}"));
    }
    if !server_gone {
        swarm.close_all(Duration::from_secs(10))?;
    }
    Ok(())
}
