//! How a shard hands its sends to the kernel: in one submission where the kernel allows it, else one by one.
//!
//! The choice is made once, when the engine starts ([`FlushKind::choose`]), so that it can be told; each shard then
//! makes its ring on its own thread. A ring that fails later, or cannot be made, leaves its shard with the loop; that
//! is counted, and [`Flushes`] says what is in use.

use crate::error::StartError;
use crate::tcp::send_loop::SendLoop;
#[cfg(target_os = "linux")]
use crate::tcp::send_ring::{RingSends, SendRing};
use crate::tcp::sockets::Sockets;
use realtime_hub::{ConnId, FlushOption, Now, ShardCore};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the sends of a flush go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlushKind {
    /// io_uring: one system call for a batch.
    Ring,
    /// `send()`: one system call for a connection.
    Loop,
}

impl FlushKind {
    /// Decides by what is asked for and what the kernel allows.
    ///
    /// # Errors
    /// Code `options`, where a ring is asked for and cannot be had.
    pub(crate) fn choose(asked: FlushOption) -> Result<Self, StartError> {
        match asked {
            FlushOption::Send => Ok(Self::Loop),
            FlushOption::Auto => Ok(probe().map_or(Self::Loop, |()| Self::Ring)),
            FlushOption::Uring => probe().map(|()| Self::Ring).map_err(|error| {
                StartError::options(format!(
                    "engine.flush=uring, and io_uring cannot be used here: {error}; set it to auto"
                ))
            }),
        }
    }

    /// As statistics name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ring => "uring",
            Self::Loop => "send",
        }
    }
}

/// What each shard sends through now.
#[derive(Debug)]
pub(crate) struct Flushes {
    /// Whether the shard has its ring.
    rings: Box<[AtomicBool]>,
}

impl Flushes {
    pub(crate) fn new(chosen: FlushKind, shards: usize) -> Self {
        Self { rings: (0..shards).map(|_| AtomicBool::new(chosen == FlushKind::Ring)).collect() }
    }

    pub(crate) fn of(&self, shard: usize) -> FlushKind {
        if self.rings[shard].load(Ordering::Relaxed) { FlushKind::Ring } else { FlushKind::Loop }
    }

    /// A shard goes on without its ring.
    pub(crate) fn lost_ring(&self, shard: usize) {
        self.rings[shard].store(false, Ordering::Relaxed);
    }

    /// As statistics name all of them together.
    pub(crate) fn name(&self) -> &'static str {
        let first = self.of(0);
        if (1..self.rings.len()).all(|shard| self.of(shard) == first) { first.name() } else { "mixed" }
    }
}

/// Tries a ring on a thread of its own: when one is taken down, the kernel interrupts what the thread that made it waits
/// for, and the caller's thread is not ours.
#[cfg(target_os = "linux")]
fn probe() -> io::Result<()> {
    let tried = std::thread::Builder::new().name("realtime-probe".into()).spawn(|| SendRing::open().map(drop))?;
    tried.join().unwrap_or_else(|_| Err(io::Error::other("the attempt failed")))
}

#[cfg(not(target_os = "linux"))]
fn probe() -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no io_uring"))
}

/// What an engine with the option `flush` would send through on this machine: `uring` or `send`.
///
/// # Errors
/// Code `options`, where there is no such value, or a ring is asked for and cannot be had.
pub fn flush_of(asked: &str) -> Result<&'static str, StartError> {
    let asked = match asked {
        "auto" => FlushOption::Auto,
        "uring" => FlushOption::Uring,
        "send" => FlushOption::Send,
        _ => return Err(StartError::options(format!("engine.flush={asked:?} is not known; use auto, uring or send"))),
    };
    FlushKind::choose(asked).map(FlushKind::name)
}

/// A shard's way to the kernel.
#[derive(Default)]
pub(crate) struct Flusher {
    #[cfg(target_os = "linux")]
    ring: Option<SendRing>,
}

impl Flusher {
    /// Makes the ring where there is to be one.
    ///
    /// # Errors
    /// Why there is none; a flusher without one sends by the loop.
    pub(crate) fn open(kind: FlushKind) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if kind == FlushKind::Ring {
            return Ok(Self { ring: Some(SendRing::open()?) });
        }
        let _ = kind;
        Ok(Self::default())
    }

    /// Sends what the turn queued; `gone` gets the connections whose peer is gone.
    ///
    /// # Errors
    /// The ring's, once: from then on the loop serves.
    pub(crate) fn flush(
        &mut self,
        core: &mut ShardCore,
        sockets: &mut Sockets,
        gone: &mut Vec<ConnId>,
        now: Now,
    ) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(ring) = self.ring.as_mut() {
            let mut failure = None;
            core.flush(&mut RingSends { ring, sockets, gone, failure: &mut failure }, now);
            let Some(error) = failure else { return Ok(()) };
            self.ring = None;
            return Err(error);
        }
        core.flush(&mut SendLoop { sockets, gone }, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_told_of_all_shards_together() {
        let flushes = Flushes::new(FlushKind::Ring, 2);
        assert_eq!(flushes.name(), "uring");
        flushes.lost_ring(1);
        assert_eq!((flushes.name(), flushes.of(0), flushes.of(1)), ("mixed", FlushKind::Ring, FlushKind::Loop));
        flushes.lost_ring(0);
        assert_eq!(flushes.name(), "send");
        assert_eq!(Flushes::new(FlushKind::Loop, 1).name(), "send");
    }

    #[test]
    fn what_is_asked_for_is_taken_or_refused_and_never_passed_over() {
        assert_eq!(flush_of("send").unwrap(), "send");
        assert_eq!(flush_of("auto").unwrap(), if probe().is_ok() { "uring" } else { "send" });
        match flush_of("uring") {
            Ok(name) => assert_eq!(name, "uring"),
            Err(error) => assert!(probe().is_err() && error.message.ends_with("set it to auto"), "{error}"),
        }
        assert!(flush_of("ring").unwrap_err().message.contains("\"ring\""));
    }
}
