//! Time since the generator started. One clock serves the schedule and every receiver, so a latency is one subtraction.

use std::time::{Duration, Instant};

/// A monotonic clock that starts at zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock {
    /// Nanoseconds since the start; 64 bits last 584 years.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

/// Nanoseconds of a duration, for arithmetic with [`Clock::now_ns`].
#[must_use]
pub const fn ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
