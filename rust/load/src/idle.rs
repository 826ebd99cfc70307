//! W4 `idle` and `churn`: what does a connection cost that does nothing, and does the server give it all back?
//! Unit: µs of the server's CPU per connect (handshake, token, first frame); bytes of the server's memory per connection.
//!
//! `idle` opens N connections, waits until the server is quiet, reads its memory, and holds them while answering pings; a connection
//! that ends meanwhile is a fault. `churn` opens and closes N connections in cycles and reads the memory after each half, so growth from
//! cycle to cycle shows. Memory is compared with what the process had before the first connection.

use crate::clock::ns;
use crate::failure::Failure;
use crate::process::{self, Memory};
use crate::swarm::{Swarm, Target};
use crate::watch::{Progress, Wish};
use serde_json::{Value, json};
use std::time::Duration;

/// Quiet for this long, a server has done what a connect or a close makes it do.
const QUIET: Duration = Duration::from_millis(300);
const QUIET_LONGEST: Duration = Duration::from_secs(20);

/// How connections are opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Where.
    pub target: Target,
    /// How many.
    pub connections: usize,
    /// Handshakes under way at a time.
    pub window: usize,
    /// For all of them together.
    pub timeout: Duration,
    /// The server's processes.
    pub pids: Vec<u32>,
}

/// What opening cost.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Wall time from the first connect to the last first frame.
    pub elapsed_ns: u64,
    /// CPU of the server, until it was quiet again.
    pub server_cpu_ns: u64,
    /// Memory before.
    pub before: Memory,
    /// Memory when it was quiet.
    pub after: Memory,
}

impl Opened {
    /// As the report shows it.
    #[must_use]
    pub fn json(&self, connections: usize) -> Value {
        let each = |total: f64| total / connections.max(1) as f64;
        let grown = |after: u64, before: u64| each(after as f64 - before as f64).round();
        json!({
            "seconds": self.elapsed_ns as f64 / 1e9,
            "connections_per_s": connections as f64 / (self.elapsed_ns.max(1) as f64 / 1e9),
            "server_cpu_us_per_connection": each(self.server_cpu_ns as f64 / 1e3),
            "rss_before_bytes": self.before.rss_bytes,
            "rss_after_bytes": self.after.rss_bytes,
            "rss_bytes_per_connection": grown(self.after.rss_bytes, self.before.rss_bytes),
            "pss_bytes_per_connection": grown(self.after.pss_bytes, self.before.pss_bytes),
        })
    }
}

/// Open all connections and wait until the server is quiet.
///
/// # Errors
/// As [`Swarm::open`].
pub fn open(swarm: &mut Swarm, opening: &Opening) -> Result<Opened, Failure> {
    let clock = swarm.clock();
    let (before, cpu_before, start_ns) =
        (process::memory(&opening.pids), process::cpu_ns(&opening.pids), clock.now_ns());
    swarm.open(&opening.target, opening.connections, opening.window, opening.timeout)?;
    let elapsed_ns = clock.now_ns() - start_ns;
    swarm.settle(QUIET, QUIET_LONGEST)?;
    Ok(Opened {
        elapsed_ns,
        server_cpu_ns: process::cpu_ns(&opening.pids) - cpu_before,
        before,
        after: process::memory(&opening.pids),
    })
}

/// Hold the open connections for `time`; returns the server's CPU in that time in ns.
///
/// # Errors
/// When the poller fails, or whoever watches abandons the run.
pub fn hold(swarm: &mut Swarm, time: Duration, pids: &[u32]) -> Result<u64, Failure> {
    let clock = swarm.clock();
    let before = process::cpu_ns(pids);
    let start_ns = clock.now_ns();
    let end_ns = start_ns + ns(time);
    while clock.now_ns() < end_ns && swarm.alive() > 0 {
        let ended = swarm.ends().len() as u64;
        let elapsed = |now_ns: u64| Duration::from_nanos(now_ns.saturating_sub(start_ns));
        match swarm.look(|now_ns| Progress {
            phase: "holding",
            elapsed: elapsed(now_ns),
            faults: ended,
            ..Progress::default()
        }) {
            Wish::GoOn => {}
            Wish::Finish => break,
            Wish::Abandon => return Err(Failure::Stopped),
        }
        let left = Duration::from_nanos(end_ns.saturating_sub(clock.now_ns()));
        swarm.turn(Some(left.min(Duration::from_millis(100))), |_, _, _| {})?;
    }
    Ok(process::cpu_ns(pids).saturating_sub(before))
}

/// Open and close all connections `cycles` times; returns one entry a cycle and how many connections ended wrongly.
///
/// # Errors
/// As [`Swarm::open`].
pub fn churn(swarm: &mut Swarm, opening: &Opening, cycles: usize) -> Result<(Vec<Value>, usize), Failure> {
    let mut entries = Vec::with_capacity(cycles);
    let mut unclean = 0;
    for _ in 0..cycles {
        let opened = open(swarm, opening)?;
        unclean += swarm.ends().len();
        unclean += swarm.close_all(opening.timeout)?;
        // The server ends its side of TCP, and whatever it keeps for a closed connection, a little later.
        swarm.settle(QUIET, QUIET_LONGEST)?;
        let closed = process::memory(&opening.pids);
        let mut entry = opened.json(opening.connections);
        entry["rss_closed_bytes"] = json!(closed.rss_bytes);
        entry["pss_closed_bytes"] = json!(closed.pss_bytes);
        entries.push(entry);
    }
    Ok((entries, unclean))
}
