//! The payloads of permessage-deflate (RFC 7692 §7.2), each message a DEFLATE stream of its own.
//!
//! [`Deflater`] makes what every receiver can read: a sync flush, its last four bytes cut off, no final block.
//! [`Inflater`] reads what any sender makes, final blocks and fragments too, and stops at the limit of the OUTPUT: a
//! few bytes can announce a thousand times as many. Both keep their memory and nothing of the message before, so one
//! of each serves all connections of a shard; who agreed on the extension is the caller's to know
//! ([`crate::extensions`]). The codec is zlib-rs; docs/decisions/0019 says why.

use zlib_rs::{DeflateConfig, DeflateFlush, InflateFlush, Status};

use crate::error::Violation;

/// What a sync flush ends with: the lengths of an empty stored block, left out on the wire (RFC 7692 §7.2.1).
const FLUSH_END: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// [`FLUSH_END`], and a final block without data. A message that was cut off does not end with the stream.
const MESSAGE_END: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];

/// Window of what [`Deflater`] makes, as bits: a small state is reset sooner, and most messages are shorter than 8 KiB
/// (docs/decisions/0019).
pub const WINDOW_BITS: u8 = 13;
/// Its memory, from 1 to 9, for the same reason.
const MEM_LEVEL: i32 = 6;

/// Bytes that a sender's stream may refer back by.
const WINDOW_BYTES: usize = 32 * 1024;

/// Final blocks in one message, each of which costs a copy of the window; senders that use them make one a flush.
const FINAL_BLOCKS_MAX: usize = 64;

/// First size of the buffer for inflated messages, which doubles up to the limit.
const INFLATED_BYTES_MIN: usize = 16 * 1024;

/// A larger buffer is given back after the message that needed it.
const INFLATED_BYTES_KEPT: usize = 64 * 1024;

/// Whether a message of so many bytes may be sent deflated to who reads with a window of so many bits (8 to 15).
///
/// No distance in a DEFLATE stream is longer than what was compressed before it, so a message that fits the window needs
/// no smaller one, nor does any where the window is that of [`Deflater`]: what was compressed once serves all.
pub const fn serves_window(bits: u8, payload_len: usize) -> bool {
    bits >= WINDOW_BITS || payload_len <= 1 << bits
}

/// Whether the deflated form is worth sending: it has to save a tenth, since inflating it costs the receiver as well.
pub const fn is_worth_sending(deflated_len: usize, payload_len: usize) -> bool {
    deflated_len * 10 < payload_len * 9
}

/// Compresses messages; some 200 KiB, made once and used for all.
pub struct Deflater {
    stream: zlib_rs::Deflate,
}

impl Deflater {
    /// A compressor of `level` 1 (fast) to 9 (small); other values are taken for the nearest of these.
    pub fn new(level: u8) -> Self {
        let level = i32::from(level.clamp(1, 9));
        // Negative bits make a stream without the header and checksum of zlib (RFC 1951).
        let window_bits = -i32::from(WINDOW_BITS);
        let config = DeflateConfig { level, window_bits, mem_level: MEM_LEVEL, ..DeflateConfig::default() };
        Self { stream: zlib_rs::Deflate::new_with_config(config) }
    }

    /// Appends the payload of the compressed message to `out`. It may be longer than `payload`: see
    /// [`is_worth_sending`].
    ///
    /// Cost: some 8 µs for a message of 250 bytes at level 6 (docs/decisions/0019).
    pub fn deflate(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.stream.reset();
        let start = out.len();
        // Codes of 9 bits for bytes that do not compress, the heads of blocks, and the flush.
        out.resize(start + payload.len() + payload.len() / 8 + 64, 0);
        loop {
            let taken = self.stream.total_in() as usize;
            let end = start + self.stream.total_out() as usize;
            let status = self.stream.compress(&payload[taken..], &mut out[end..], DeflateFlush::SyncFlush);
            status.expect("a stream that is not finished takes any bytes");
            let taken = self.stream.total_in() as usize;
            let end = start + self.stream.total_out() as usize;
            // A flush is whole when it leaves some room.
            if taken == payload.len() && end < out.len() {
                out.truncate(end);
                break;
            }
            out.resize(2 * out.len(), 0);
        }
        debug_assert!(out.ends_with(&FLUSH_END));
        out.truncate(out.len() - FLUSH_END.len());
    }
}

/// Decompresses messages of any number of connections; some 60 KiB, and as much as the message needs while it is read.
pub struct Inflater {
    stream: zlib_rs::Inflate,
    /// The message is its first `len` bytes.
    buffer: Vec<u8>,
    len: usize,
    /// What [`Self::take_inflated`] gives.
    inflated: Option<usize>,
}

/// Why [`Inflater::run`] stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The input is used up and all that it gives was written.
    InputEnd,
    /// A final block ended after this many bytes of the input.
    FinalBlock(usize),
}

impl Inflater {
    /// A decompressor for windows of any size.
    pub fn new() -> Self {
        Self { stream: zlib_rs::Inflate::new(false, 15), buffer: Vec::new(), len: 0, inflated: None }
    }

    /// Inflates the whole payload of one message, the fragments put together.
    ///
    /// # Errors
    /// 1009 when the message is longer than `message_bytes_max`, found without inflating the rest; 1007 for what is no
    /// DEFLATE stream, is cut off, refers to bytes before the message, or has more than 64 final blocks.
    ///
    /// Memory: at most `message_bytes_max` + 1 bytes, or 16 KiB. Cost: O(payload + message).
    pub fn inflate(&mut self, payload: &[u8], message_bytes_max: usize) -> Result<&mut [u8], Violation> {
        self.release();
        self.len = 0;
        self.stream.reset(false);
        let outcome = self.inflate_all(payload, message_bytes_max);
        self.inflated = Some(self.len);
        outcome?;
        Ok(&mut self.buffer[..self.len])
    }

    /// Bytes of the message that was inflated since this was asked for the last time, as far as it was where that ended
    /// with a violation; `None` if there was none.
    pub fn take_inflated(&mut self) -> Option<usize> {
        self.inflated.take()
    }

    /// Gives back what a long message took; the next [`Self::inflate`] does it too.
    pub fn release(&mut self) {
        if self.buffer.len() > INFLATED_BYTES_KEPT {
            self.buffer = Vec::new();
        }
    }

    /// Bytes of memory that messages take at the moment.
    pub fn bytes_held(&self) -> usize {
        self.buffer.capacity()
    }

    fn inflate_all(&mut self, payload: &[u8], message_bytes_max: usize) -> Result<(), Violation> {
        let mut rest = payload;
        let mut final_blocks = 0;
        while !rest.is_empty() {
            let Stop::FinalBlock(used) = self.run(rest, message_bytes_max)? else {
                break;
            };
            rest = &rest[used..];
            final_blocks += 1;
            if rest.is_empty() {
                return Ok(());
            }
            if final_blocks > FINAL_BLOCKS_MAX {
                return Err(Violation::not_deflate());
            }
            // The message goes on behind a final block (RFC 7692 §7.2.3.4), and may refer to what is before it.
            self.stream.reset(false);
            let window = &self.buffer[self.len.saturating_sub(WINDOW_BYTES)..self.len];
            self.stream.set_dictionary(window).map_err(|_| Violation::not_deflate())?;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let len = self.len;
        match self.run(&MESSAGE_END, message_bytes_max)? {
            Stop::FinalBlock(used) if used == MESSAGE_END.len() && self.len == len => Ok(()),
            _ => Err(Violation::not_deflate()),
        }
    }

    /// Feeds `input` to the stream and its output to the buffer, until either ends or the limit is passed.
    fn run(&mut self, input: &[u8], message_bytes_max: usize) -> Result<Stop, Violation> {
        let mut used = 0;
        loop {
            // One byte more than the limit, which only a message over it writes.
            let room_end = self.buffer.len().min(message_bytes_max.saturating_add(1));
            if self.len == room_end {
                self.grow(message_bytes_max)?;
                continue;
            }
            let (taken_before, made_before) = (self.stream.total_in(), self.stream.total_out());
            let room = &mut self.buffer[self.len..room_end];
            let status = self.stream.decompress(&input[used..], room, InflateFlush::NoFlush);
            used += (self.stream.total_in() - taken_before) as usize;
            self.len += (self.stream.total_out() - made_before) as usize;
            match status {
                Ok(Status::StreamEnd) => return self.check_len(message_bytes_max).map(|()| Stop::FinalBlock(used)),
                Ok(Status::Ok | Status::BufError) if self.len == room_end => {}
                Ok(Status::Ok | Status::BufError) if used == input.len() => return Ok(Stop::InputEnd),
                // Room and input are left: the stream cannot go on.
                Ok(Status::Ok | Status::BufError) | Err(_) => return Err(Violation::not_deflate()),
            }
        }
    }

    fn check_len(&self, message_bytes_max: usize) -> Result<(), Violation> {
        if self.len > message_bytes_max { Err(Violation::too_big()) } else { Ok(()) }
    }

    /// Makes room behind a buffer that is full, up to the limit and one byte.
    fn grow(&mut self, message_bytes_max: usize) -> Result<(), Violation> {
        self.check_len(message_bytes_max)?;
        let doubled = (2 * self.buffer.len()).max(INFLATED_BYTES_MIN);
        let target = doubled.min(message_bytes_max.saturating_add(1)).max(INFLATED_BYTES_MIN);
        self.buffer.reserve_exact(target - self.buffer.len());
        self.buffer.resize(target, 0);
        Ok(())
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("bytes_held", &self.bytes_held()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater").finish_non_exhaustive()
    }
}
