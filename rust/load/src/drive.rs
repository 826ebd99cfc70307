//! One run: warm up, measure, let everything arrive, look for what comes twice.
//!
//! Closed loop: every channel keeps K messages under way and sends the next when one has reached all its receivers. It asks what a
//! message costs. Open loop: messages leave by a schedule whatever the server does, and a latency starts at the scheduled time, so a
//! server that stalls is charged for all that should have been sent meanwhile. It asks how long people wait. In the open loop the
//! generator spins for the last millisecond before a message is due, since the poller's clock is no finer.

use crate::audit::Faults;
use crate::clock::ns;
use crate::connection::Traffic;
use crate::failure::Failure;
use crate::figures::Figures;
use crate::flights::Flights;
use crate::histogram::Histogram;
use crate::process;
use crate::swarm::Swarm;
use crate::watch::{Progress, Wish};
use std::io;
use std::time::Duration;

/// What sets the time of the next message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// This many messages of every channel under way, always.
    Closed(u32),
    /// This many messages a second, round-robin over the channels.
    Open(f64),
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Closed or open loop.
    pub pace: Pace,
    /// Time before the figures start; its deliveries are audited all the same.
    pub warmup: Duration,
    /// Time of the figures.
    pub measured: Duration,
    /// Without any delivery for this long, what is still under way is lost.
    pub patience: Duration,
    /// Processes whose CPU counts as the server's.
    pub pids: Vec<u32>,
}

/// A kind of message: how to send one and how to understand what comes back.
pub trait Workload {
    /// A text frame arrived.
    fn text(&mut self, connection: usize, payload: &[u8], now_ns: u64);
    /// Queue the next message of `channel`, due at `due_ns`.
    fn send_next(&mut self, swarm: &mut Swarm, channel: usize, due_ns: u64);
    /// The messages under way.
    fn flights(&mut self) -> &mut Flights;
    /// What it counts.
    fn figures(&mut self) -> &mut Figures;
    /// Faults of all receivers, against what was sent.
    fn faults(&self) -> Faults;
    /// How many faults there are already, as long as nothing more comes.
    fn faults_so_far(&self) -> u64;
    /// The warm-up is over: forget its figures, keep its audit.
    fn measure_from_here(&mut self) {
        self.figures().measure_from_here();
    }
    /// A turn is over: write what must not wait.
    ///
    /// # Errors
    /// When that cannot be written.
    fn after_turn(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was measured from outside of the workload.
#[derive(Clone, Default)]
pub struct Run {
    /// From the end of the warm-up to the last delivery.
    pub elapsed_ns: u64,
    /// CPU of the server in that time.
    pub server_cpu_ns: u64,
    /// CPU of the generator in that time.
    pub own_cpu_ns: u64,
    /// Open loop: how long after its schedule a message left the generator.
    pub late: Histogram,
    /// What went over the connections in that time.
    pub traffic: Traffic,
    /// Every connection ended before the run was over.
    pub server_gone: bool,
}

/// The open loop's next departure.
pub(crate) struct Schedule {
    interval_ns: f64,
    start_ns: u64,
    sent: u64,
}

impl Schedule {
    /// `rate` messages a second from `start_ns` on.
    pub(crate) fn new(rate: f64, start_ns: u64) -> Self {
        Self { interval_ns: 1e9 / rate, start_ns, sent: 0 }
    }

    /// When the next one is due.
    pub(crate) fn due_ns(&self) -> u64 {
        self.start_ns + (self.interval_ns * self.sent as f64) as u64
    }

    /// How many have left.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }

    /// The next one leaves.
    pub(crate) const fn leave(&mut self) {
        self.sent += 1;
    }

    /// How long the poller may sleep: not at all when less than its resolution of 1 ms is left.
    fn wait(&self, now_ns: u64) -> Duration {
        let left_ms = self.due_ns().saturating_sub(now_ns) / 1_000_000;
        Duration::from_millis(left_ms.saturating_sub(1).min(20))
    }
}

/// What has been used when the measured time begins.
struct Baseline {
    from_ns: u64,
    server_cpu_ns: u64,
    own_cpu_ns: u64,
    traffic: Traffic,
}

impl Baseline {
    fn now(swarm: &Swarm, plan: &Plan) -> Self {
        Self {
            from_ns: swarm.clock().now_ns(),
            server_cpu_ns: process::cpu_ns(&plan.pids),
            own_cpu_ns: process::own_cpu_ns(),
            traffic: swarm.traffic(),
        }
    }

    fn close(&self, swarm: &Swarm, plan: &Plan, last_ns: u64, run: &mut Run) {
        run.elapsed_ns = last_ns.saturating_sub(self.from_ns);
        run.server_cpu_ns = process::cpu_ns(&plan.pids).saturating_sub(self.server_cpu_ns);
        run.own_cpu_ns = process::own_cpu_ns().saturating_sub(self.own_cpu_ns);
        run.traffic = swarm.traffic().since(self.traffic);
    }
}

/// Run `workload` over the open, subscribed connections of `swarm`, whose channels are `0..channels`.
///
/// # Errors
/// When the poller or the workload's own output fails, or whoever watches abandons the run.
pub fn drive<W: Workload>(swarm: &mut Swarm, workload: &mut W, channels: usize, plan: &Plan) -> Result<Run, Failure> {
    let clock = swarm.clock();
    let mut run = Run::default();
    let start_ns = clock.now_ns();
    let figures_ns = start_ns + ns(plan.warmup);
    let mut end_ns = figures_ns + ns(plan.measured);
    let mut schedule = match plan.pace {
        Pace::Open(rate) => Some(Schedule::new(rate, start_ns)),
        Pace::Closed(_) => None,
    };
    let mut baseline: Option<Baseline> = None;
    let mut last_text_ns = start_ns;
    loop {
        let now_ns = clock.now_ns();
        if baseline.is_none() && now_ns >= figures_ns {
            baseline = Some(Baseline::now(swarm, plan));
            run.late.clear();
            workload.measure_from_here();
        }
        match look(swarm, workload, baseline.as_ref(), start_ns) {
            Wish::GoOn => {}
            Wish::Finish => end_ns = end_ns.min(now_ns),
            Wish::Abandon => return Err(Failure::Stopped),
        }
        let sending = now_ns < end_ns;
        let stalled = now_ns.saturating_sub(last_text_ns) > ns(plan.patience) && workload.flights().outstanding() > 0;
        run.server_gone = swarm.alive() == 0;
        if stalled || run.server_gone || (!sending && workload.flights().outstanding() == 0) {
            break;
        }
        let mut wait = Duration::from_millis(20);
        if sending {
            match (&mut schedule, plan.pace) {
                (Some(schedule), _) => {
                    send_due(swarm, workload, channels, schedule, &mut run.late);
                    wait = schedule.wait(clock.now_ns());
                }
                (None, Pace::Closed(in_flight)) => refill(swarm, workload, in_flight, now_ns),
                (None, Pace::Open(_)) => {}
            }
        }
        swarm.turn(Some(wait), |connection, payload, read_ns| {
            last_text_ns = read_ns;
            workload.text(connection, payload, read_ns);
        })?;
        workload.after_turn()?;
    }
    if let Some(baseline) = baseline {
        baseline.close(swarm, plan, last_text_ns, &mut run);
    }
    listen_for_doubles(swarm, workload)?;
    Ok(run)
}

/// Tell whoever watches how far the run has come.
fn look<W: Workload>(swarm: &mut Swarm, workload: &mut W, measured: Option<&Baseline>, start_ns: u64) -> Wish {
    swarm.look(|now_ns| {
        let faults = workload.faults_so_far() + workload.figures().refusals.count;
        let figures = workload.figures();
        Progress {
            phase: if measured.is_some() { "measuring" } else { "warming up" },
            elapsed: Duration::from_nanos(
                now_ns.saturating_sub(measured.map_or(start_ns, |baseline| baseline.from_ns)),
            ),
            messages: figures.messages,
            deliveries: figures.deliveries,
            p50_ns: figures.latency.quantile_ns(0.5),
            p99_ns: figures.latency.quantile_ns(0.99),
            faults,
            ..Progress::default()
        }
    })
}

/// All messages that are due by now leave, each with its scheduled time.
fn send_due<W: Workload>(
    swarm: &mut Swarm,
    workload: &mut W,
    channels: usize,
    schedule: &mut Schedule,
    late: &mut Histogram,
) {
    let now_ns = swarm.clock().now_ns();
    while schedule.due_ns() <= now_ns {
        let due_ns = schedule.due_ns();
        late.record(now_ns - due_ns);
        workload.send_next(swarm, (schedule.sent() % channels as u64) as usize, due_ns);
        schedule.leave();
    }
}

/// Every channel of which a message ended gets back to `in_flight` messages.
fn refill<W: Workload>(swarm: &mut Swarm, workload: &mut W, in_flight: u32, now_ns: u64) {
    for channel in workload.flights().take_ready() {
        while workload.flights().in_flight(channel) < in_flight {
            workload.send_next(swarm, channel, now_ns);
        }
    }
}

/// A doubled delivery may come after the last expected one; 200 ms of silence end the search.
fn listen_for_doubles<W: Workload>(swarm: &mut Swarm, workload: &mut W) -> io::Result<()> {
    let clock = swarm.clock();
    let mut last_ns = clock.now_ns();
    let limit_ns = last_ns + 2_000_000_000;
    while swarm.alive() > 0 && clock.now_ns() < limit_ns.min(last_ns + 200_000_000) {
        swarm.turn(Some(Duration::from_millis(20)), |connection, payload, read_ns| {
            last_ns = read_ns;
            workload.text(connection, payload, read_ns);
        })?;
    }
    workload.after_turn()
}
