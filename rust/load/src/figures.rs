//! What every workload with messages counts, apart from its own audit.

use crate::histogram::Histogram;
use crate::refusals::Refusals;

/// The counts of the time that is measured, and what should not have come in the whole run.
#[derive(Clone, Default)]
pub struct Figures {
    /// Messages sent.
    pub messages: u64,
    /// Deliveries, or answers.
    pub deliveries: u64,
    /// Payload bytes of the deliveries.
    pub bytes: u64,
    /// From the schedule to each receiver.
    pub latency: Histogram,
    /// What should not have come; never forgotten.
    pub refusals: Refusals,
}

impl Figures {
    /// The warm-up is over.
    pub fn measure_from_here(&mut self) {
        (self.messages, self.deliveries, self.bytes) = (0, 0, 0);
        self.latency.clear();
    }

    /// Count one delivery of `bytes` bytes.
    pub const fn deliver(&mut self, bytes: usize) {
        self.deliveries += 1;
        self.bytes += bytes as u64;
    }
}
