//! permessage-deflate (RFC 7692) on the way out: a message is deflated once, and everyone who agreed to it gets that.
//!
//! What makes one frame serve all: the answer to an offer always takes `server_no_context_takeover`, so a frame refers
//! to nothing before it; and where a client's window is smaller than ours, messages that are longer than it stay plain.
//! Each shard has one compressor. None is used under a lock of a channel.

use crate::Hub;
use crate::counters::add_own;
use crate::options::CompressionOptions;
use realtime_protocol::deflate::{Deflater, is_worth_sending, serves_window};
use realtime_protocol::extensions::Deflate;
use realtime_protocol::frame::{Opcode, encode_deflated_frame};
use std::sync::Arc;

/// The longest message that is deflated. A shard does nothing else meanwhile: with [`QUICK`] about a millisecond.
pub(crate) const DEFLATED_BYTES_MAX: usize = 256 << 10;
/// Above this a message is deflated with [`QUICK`], whatever the configured level: level 9 would take 50 ms for one.
const LEVEL_BYTES_MAX: usize = 16 << 10;
const QUICK: u8 = 1;

/// How far back the frames to a connection may refer; 0 bits where it did not agree to be sent deflated ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Window(u8);

impl Window {
    /// How many there are, for tables by [`Self::place`].
    pub(crate) const COUNT: usize = 9;

    /// What was agreed.
    pub(crate) fn of(agreed: Option<&Deflate>) -> Self {
        Self(agreed.map_or(0, Deflate::server_window_bits))
    }

    /// From [`Self::place`].
    pub(crate) const fn at(place: u8) -> Self {
        Self(if place == 0 { 0 } else { place + 7 })
    }

    /// 0 for none, 1 to 8 for windows of 8 to 15 bits.
    pub(crate) const fn place(self) -> u8 {
        self.0.saturating_sub(7)
    }

    /// Whether permessage-deflate was agreed at all.
    pub(crate) const fn is_agreed(self) -> bool {
        self.0 > 0
    }

    /// Whether a message of so many bytes may be deflated for it.
    pub(crate) const fn holds(self, len: usize) -> bool {
        self.0 > 0 && len <= DEFLATED_BYTES_MAX && serves_window(self.0, len)
    }
}

/// A shard's compressor; its memory is taken when the first message needs it.
pub(crate) struct Compressor {
    hub: Arc<Hub>,
    shard: usize,
    deflater: Option<Deflater>,
    /// For long messages, where the configured level is not [`QUICK`] itself.
    quick: Option<Deflater>,
    out: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new(hub: Arc<Hub>, shard: usize) -> Self {
        Self { hub, shard, deflater: None, quick: None, out: Vec::new() }
    }

    pub(crate) fn options(&self) -> &CompressionOptions {
        &self.hub.rules.compression
    }

    /// The frame with its payload deflated; None where that is not worth it.
    pub(crate) fn deflate(&mut self, opcode: Opcode, payload: &[u8]) -> Option<Vec<u8>> {
        let level = self.options().level;
        let deflater = if level == QUICK || payload.len() <= LEVEL_BYTES_MAX {
            self.deflater.get_or_insert_with(|| Deflater::new(level))
        } else {
            self.quick.get_or_insert_with(|| Deflater::new(QUICK))
        };
        self.out.clear();
        deflater.deflate(payload, &mut self.out);
        let tally = &self.hub.tallies()[self.shard];
        add_own(&tally.compressions, 1);
        add_own(&tally.compressed_bytes_in, payload.len() as u64);
        add_own(&tally.compressed_bytes_out, self.out.len() as u64);
        is_worth_sending(self.out.len(), payload.len()).then(|| encode_deflated_frame(opcode, &self.out))
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}
