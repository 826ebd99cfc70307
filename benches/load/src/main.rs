//! `realtime-load`: run one workload against one server; JSON on stdout, lines for people on stderr.
//!
//! Exit codes are in [`options::USAGE`]. The program never judges a time; `benches/run.py` puts two servers' figures side by side.

use realtime_load::clock::Clock;
use realtime_load::drive::{Pace, Plan, Run, drive};
use realtime_load::fanout::FanOut;
use realtime_load::idle::{self, Opening};
use realtime_load::options::{self, Kind, Options};
use realtime_load::refusals::Refusals;
use realtime_load::report::Report;
use realtime_load::stored::Stored;
use realtime_load::subscription::{Channel, subscribe_all};
use realtime_load::swarm::{Swarm, Target};
use std::fs::File;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A run that came to its end, well or not.
struct Outcome {
    report: Report,
    server_gone: bool,
}

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => return say(&format!("{error}\n{}", options::USAGE), 2),
    };
    match run(&options) {
        Ok(Outcome { report, server_gone }) => {
            // A reader that went away is no reason for another exit code than the run's.
            let _ = writeln!(stdout(), "{}", report.json());
            let code = if server_gone { 3 } else { u8::from(!report.ok()) };
            say(&(report.lines().join("\n") + "\n"), code)
        }
        Err(error) => say(&format!("{error}\n"), 2),
    }
}

fn say(text: &str, code: u8) -> ExitCode {
    let _ = stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn run(options: &Options) -> Result<Outcome, String> {
    let mut swarm = Swarm::new(Clock::default()).map_err(|error| format!("poller: {error}"))?;
    let opening = Opening {
        target: Target {
            address: options.address,
            host: options.host.clone(),
            path: options.path.clone(),
            tokens: options.tokens.clone(),
        },
        connections: options.connections,
        window: options.window,
        timeout: options.timeout,
        pids: options.pids.clone(),
    };
    let mut report = Report::default();
    report.figure("workload", options.workload.as_str());
    report.figure("connections", options.connections);
    report.figure("channels", options.channels);
    if options.kind == Kind::Churn {
        let (cycles, unclean) = idle::churn(&mut swarm, &opening, options.cycles)?;
        report.figure("cycles", cycles);
        report.fault("connections_not_closed_cleanly", unclean as u64);
        return Ok(Outcome { report, server_gone: false });
    }
    let opened = idle::open(&mut swarm, &opening)?;
    report.figure("connect", opened.json(options.connections));
    let channels = Channel::all(&options.prefix, options.channels, options.connections);
    let offsets = subscribe_all(&mut swarm, &channels, options.timeout)?;
    swarm.settle(Duration::from_millis(200), Duration::from_secs(20)).map_err(|error| format!("poll: {error}"))?;
    let server_gone = match options.kind {
        Kind::FanOut => fan_out(&mut swarm, channels, options, &mut report)?,
        Kind::Send => send(&mut swarm, channels, &offsets, options, &mut report)?,
        Kind::Idle | Kind::Churn => hold(&mut swarm, options, &mut report)?,
    };
    end(&mut swarm, server_gone, &mut report)?;
    Ok(Outcome { report, server_gone })
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

fn fan_out(swarm: &mut Swarm, channels: Vec<Channel>, options: &Options, report: &mut Report) -> Result<bool, String> {
    let count = channels.len();
    let mut workload = FanOut::new(channels, options.connections, options.payload);
    let run = drive(swarm, &mut workload, count, &plan(options)).map_err(|error| format!("poll: {error}"))?;
    costs(report, options, &run, workload.messages, workload.deliveries);
    report.figure("event_bytes", workload.bytes as f64 / workload.deliveries.max(1) as f64);
    report.latency("latency_us", &workload.latency);
    let faults = workload.faults();
    report.fault("lost", faults.lost);
    report.fault("doubled", faults.doubled);
    report.fault("out_of_order", faults.reordered);
    refused(report, &workload.refusals);
    Ok(run.server_gone)
}

fn send(
    swarm: &mut Swarm,
    channels: Vec<Channel>,
    offsets: &[u64],
    options: &Options,
    report: &mut Report,
) -> Result<bool, String> {
    let record = match &options.record {
        None => None,
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            Some(file.map_err(|error| format!("--record {path}: {error}"))?)
        }
    };
    let count = channels.len();
    // Unique among runs against the same log: the messages of an earlier run are answered as duplicates.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let run_id = format!("l{:x}", since_1970.as_micros());
    let mut workload = Stored::new(channels, options.payload, run_id, offsets, record);
    workload.repeat_every = options.repeat_every;
    let run =
        drive(swarm, &mut workload, count, &plan(options)).map_err(|error| format!("poll or --record: {error}"))?;
    costs(report, options, &run, workload.messages, workload.deliveries);
    report.latency("latency_us", &workload.latency);
    report.latency("ack_latency_us", &workload.ack_latency);
    report.figure("acks", workload.acks);
    let (faults, log) = (workload.faults(), workload.log_faults());
    report.fault("lost", faults.lost);
    report.fault("doubled", faults.doubled);
    report.fault("out_of_order", faults.reordered);
    report.fault("unacknowledged", log.unacked);
    report.fault("stray_acks", log.stray_acks);
    report.fault("numbers_that_disagree", log.disagreements);
    report.fault("stored_twice", log.stored_twice);
    refused(report, &workload.refusals);
    Ok(run.server_gone)
}

fn hold(swarm: &mut Swarm, options: &Options, report: &mut Report) -> Result<bool, String> {
    let cpu_ns = idle::hold(swarm, options.measured, &options.pids).map_err(|error| format!("poll: {error}"))?;
    report.figure("held_seconds", options.measured.as_secs_f64());
    report.figure("server_cpu_ms_per_second", cpu_ns as f64 / 1e6 / options.measured.as_secs_f64().max(1e-9));
    let memory = realtime_load::process::memory(&options.pids);
    report.figure("rss_end_bytes", memory.rss_bytes);
    report.figure("pss_end_bytes", memory.pss_bytes);
    Ok(swarm.alive() == 0)
}

fn costs(report: &mut Report, options: &Options, run: &Run, messages: u64, deliveries: u64) {
    let seconds = run.elapsed_ns as f64 / 1e9;
    let each = |ns: u64, count: u64| ns as f64 / 1e3 / count.max(1) as f64;
    let share = |ns: u64| ns as f64 / run.elapsed_ns.max(1) as f64;
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
    if messages == 0 {
        report.wrong("nothing was measured: the run ended in its warm-up".to_owned());
    }
}

fn refused(report: &mut Report, refusals: &Refusals) {
    report.figure("events_ignored", refusals.ignored);
    report.fault("refused_or_misrouted", refusals.count);
    if let Some(first) = &refusals.first {
        report.wrong(format!("first refusal: {first}"));
    }
}

/// Connections that ended during the run are faults; then close the rest, which is not judged here (churn does).
fn end(swarm: &mut Swarm, server_gone: bool, report: &mut Report) -> Result<(), String> {
    report.fault("connections_ended_early", swarm.ends().len() as u64);
    if let Some((index, end)) = swarm.ends().first() {
        report.wrong(format!("connection {index}: {end}"));
    }
    if !server_gone {
        swarm.close_all(Duration::from_secs(10)).map_err(|error| format!("poll: {error}"))?;
    }
    Ok(())
}
