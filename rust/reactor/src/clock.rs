//! Time, read in one place and handed down as an argument.
//!
//! The hub has no clock: every call into it carries a [`Now`]. A real clock starts at 0 with the engine, so that the
//! monotonic part is small and never goes back; a manual one is moved by tests. Read once per turn of a shard, once
//! per batch of the log and once per batch of commands.
//!
//! The monotonic part counts the time in which the machine is suspended, as the wall clock does: to the hub a suspend is
//! a tick that comes late, no other than a process that was stopped.

use realtime_hub::Now;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where [`Now`] comes from.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The machine's clocks.
    System {
        /// What the monotonic part counts from, as [`since_boot`] tells it.
        start: Duration,
    },
    /// Moved by [`Clock::advance`] alone.
    Manual {
        /// Monotonic milliseconds.
        mono_ms: AtomicU64,
        /// Unix milliseconds.
        wall_ms: AtomicU64,
    },
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self::System { start: since_boot() }
    }

    pub(crate) const fn manual(wall_ms: u64) -> Self {
        Self::Manual { mono_ms: AtomicU64::new(0), wall_ms: AtomicU64::new(wall_ms) }
    }

    pub(crate) fn now(&self) -> Now {
        match self {
            Self::System { start } => {
                let elapsed = since_boot().saturating_sub(*start);
                Now {
                    mono_ms: millis(elapsed),
                    mono_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
                    // A clock set before 1970 is as good as none.
                    wall_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
                }
            }
            Self::Manual { mono_ms, wall_ms } => {
                let mono_ms = mono_ms.load(Ordering::Relaxed);
                Now { mono_ms, mono_us: mono_ms * 1_000, wall_ms: wall_ms.load(Ordering::Relaxed) }
            }
        }
    }

    /// Moves a manual clock; the machine's moves by itself.
    pub(crate) fn advance(&self, ms: u64) {
        if let Self::Manual { mono_ms, wall_ms } = self {
            mono_ms.fetch_add(ms, Ordering::Relaxed);
            wall_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }
}

/// Time since some moment before the process began, suspends included; it never goes back.
fn since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    // Where it is not Linux it is macOS, whose monotonic clock goes on during sleep.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable, and both kernels know the clock; else it stays zero.
    unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_of_a_manual_clock_move_together() {
        let clock = Clock::manual(1_700_000_000_000);
        clock.advance(250);
        let now = clock.now();
        assert_eq!((now.mono_ms, now.wall_ms), (250, 1_700_000_000_250));
    }

    #[test]
    fn the_machines_clock_starts_at_nothing_and_knows_the_date() {
        let now = Clock::system().now();
        assert!(now.mono_ms < 1_000);
        assert!(now.wall_ms > 1_700_000_000_000);
    }
}
