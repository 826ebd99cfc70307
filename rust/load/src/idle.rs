//! W4 `idle` and `churn`: what does a connection cost that does nothing, and does the server give it all back?
//! Unit: µs of the server's CPU per connect (handshake, token, first frame); bytes of the server's memory per connection.
//!
//! `idle` opens N connections, waits until the server is quiet, reads its memory, and holds them while answering pings, reading the memory
//! from time to time; a connection that ends meanwhile is a fault. The kernel's memory is that of the machine (slabs and socket buffers):
//! it says something on a quiet one, and counts both ends where both are on it. `churn` opens and closes N connections in cycles and reads the memory after each half, so growth from
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
    /// What the kernel's own memory grew by meanwhile, whoever made it grow.
    pub kernel_grown_bytes: i64,
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
            "kernel_bytes_per_connection": each(self.kernel_grown_bytes as f64).round(),
        })
    }
}

/// Open all connections and wait until the server is quiet.
///
/// # Errors
/// As [`Swarm::open`].
pub fn open(swarm: &mut Swarm, opening: &Opening) -> Result<Opened, Failure> {
    let clock = swarm.clock();
    let (before, kernel_before) = (process::memory(&opening.pids), process::kernel_bytes());
    let (cpu_before, start_ns) = (process::cpu_ns(&opening.pids), clock.now_ns());
    swarm.open(&opening.target, opening.connections, opening.window, opening.timeout)?;
    let elapsed_ns = clock.now_ns() - start_ns;
    swarm.settle(QUIET, QUIET_LONGEST)?;
    Ok(Opened {
        elapsed_ns,
        server_cpu_ns: process::cpu_ns(&opening.pids).saturating_sub(cpu_before),
        before,
        after: process::memory(&opening.pids),
        kernel_grown_bytes: process::kernel_bytes() as i64 - kernel_before as i64,
    })
}

/// What holding the connections cost.
#[derive(Debug, Default)]
pub struct Held {
    /// For how long they were held.
    pub elapsed: Duration,
    /// CPU of the server in that time.
    pub server_cpu_ns: u64,
    /// Pings of the server that were answered in that time.
    pub pings: u64,
    /// The server's memory from time to time, and at the end, with what the kernel keeps for all sockets of this machine.
    pub samples: Vec<Value>,
}

/// Hold the open connections for `time`, and look at the server's memory `samples` times in equal steps, the end included.
///
/// # Errors
/// When the poller fails, or whoever watches abandons the run.
pub fn hold(swarm: &mut Swarm, time: Duration, samples: u32, pids: &[u32]) -> Result<Held, Failure> {
    let clock = swarm.clock();
    let (cpu_before, pings_before) = (process::cpu_ns(pids), swarm.traffic().pings);
    let start_ns = clock.now_ns();
    let end_ns = start_ns + ns(time);
    let mut held = Held::default();
    loop {
        let now_ns = clock.now_ns();
        let over = now_ns >= end_ns || swarm.alive() == 0;
        held.elapsed = Duration::from_nanos(now_ns - start_ns);
        let due_ns = ns(time) / u64::from(samples.max(1)) * (held.samples.len() as u64 + 1);
        if over || ns(held.elapsed) >= due_ns {
            held.samples.push(sample(held.elapsed, swarm.alive(), pids));
        }
        if over {
            break;
        }
        let (elapsed, faults) = (held.elapsed, swarm.ends().len() as u64);
        match swarm.look(|_| Progress { phase: "holding", elapsed, faults, ..Progress::default() }) {
            Wish::GoOn => {}
            Wish::Finish => break,
            Wish::Abandon => return Err(Failure::Stopped),
        }
        let left = Duration::from_nanos(end_ns.min(start_ns + due_ns).saturating_sub(now_ns));
        swarm.turn(Some(left.min(Duration::from_millis(100))), |_, _, _| {})?;
    }
    held.server_cpu_ns = process::cpu_ns(pids).saturating_sub(cpu_before);
    held.pings = swarm.traffic().pings - pings_before;
    Ok(held)
}

fn sample(elapsed: Duration, connections: usize, pids: &[u32]) -> Value {
    let memory = process::memory(pids);
    json!({
        "at_s": elapsed.as_secs_f64(),
        "connections": connections,
        "rss_bytes": memory.rss_bytes,
        "pss_bytes": memory.pss_bytes,
        "kernel_bytes": process::kernel_bytes(),
    })
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
