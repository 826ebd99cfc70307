//! How long events take to their readers: from the read of the message to the end of the flush that sent the last.
//!
//! No clock is read for it but twice a turn, by the driver. Events carry the moment at which they came to the hub,
//! which is the start of a turn and so the same for many; here they stand by that moment with their number until
//! everything queued is with the kernel, or with the backlog of a reader that is behind. With several shards an event
//! is counted once on each that has members.

use super::ShardCore;
use crate::Now;

/// Moments, in monotonic µs, and how many events came then.
#[derive(Debug, Default)]
pub(super) struct FanOuts(Vec<(u64, u64)>);

impl FanOuts {
    /// Notes an event that was handed to members.
    pub(super) fn begin(&mut self, read_us: u64) {
        match self.0.last_mut() {
            Some((at_us, count)) if *at_us == read_us => *count += 1,
            _ => self.0.push((read_us, 1)),
        }
    }
}

impl ShardCore {
    /// Whether the last flush ended fan-outs: then [`Self::fanned_out`] wants the time.
    #[must_use]
    pub fn has_fanned_out(&self) -> bool {
        !self.outgoing.fan_outs.0.is_empty() && !self.more_to_flush()
    }

    /// Notes how long the fan-outs took that the flush before has ended.
    pub fn fanned_out(&mut self, now: Now) {
        for (read_us, count) in self.outgoing.fan_outs.0.drain(..) {
            self.hub.counters.delivery_s.observe(now.mono_us.saturating_sub(read_us), count);
        }
    }
}
