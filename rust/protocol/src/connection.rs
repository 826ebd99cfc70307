//! The receiving half of one connection (RFC 6455 §5, §6.2): bytes in, messages and control frames out.
//!
//! The usual message is one frame that lies whole in what was read: it is unmasked where it lies and handed out as a
//! slice of it. All else (half a header, half a payload, fragments) is copied into one buffer that grows with the
//! bytes received: neither an announced length nor a million empty fragments allocate anything. An idle connection
//! is 16 bytes. A compressed message (RFC 7692) is inflated when it is whole, into memory that all connections share, so
//! text in it is judged at its end. Invariants: items and violations do not depend on how the bytes were cut; every call on a non-empty
//! input consumes some of it; faults of a header are told from the first byte that shows them, text that is not
//! UTF-8 from the first piece that cannot be repaired, a message over the limit from the header alone.
//! Called by the reactor for each read, and by tests on both ends of a virtual link.

use crate::close::{self, CloseCode};
use crate::deflate::Inflater;
use crate::error::Violation;
use crate::frame::{CONTROL_BYTES_MAX, Opcode};
use crate::mask;
use crate::utf8;

/// Longest header: two bytes, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;

/// First allocation for an unfinished message; a smaller one would only be made again.
const BUFFER_BYTES_MIN: usize = 64;

/// Bytes of a fragment from which it pays for itself: what it costs to take is in proportion to it.
const FRAGMENT_BYTES_MIN: usize = 1_024;

/// Which end this is: clients mask what they send, servers do not (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This end is the server: received frames must be masked.
    Server,
    /// This end is the client: received frames must not be masked.
    Client,
}

/// One thing that was received. Slices are valid until the next call of [`Inbound::receive`].
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole text message. The bytes are valid UTF-8; they are mutable because the hub rewrites escapes in place.
    Text(&'a mut [u8]),
    /// A whole binary message.
    Binary(&'a mut [u8]),
    /// A ping, to be answered by a pong with the same payload (§5.5.3).
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The peer closes: its code, if it gave one, and its reason. Nothing may be received after it.
    Close(Option<CloseCode>, &'a str),
}

/// What is received on one connection; 16 bytes while no message is unfinished.
#[derive(Debug)]
pub struct Inbound {
    partial: Option<Box<Partial>>,
    role: Role,
}

impl Inbound {
    /// A connection on which nothing was received yet. Nothing is allocated.
    pub const fn new(role: Role) -> Self {
        Self { partial: None, role }
    }

    /// Consumes a prefix of `input` (unmasking it in place) and yields at most one item: call in a loop until the
    /// input is used up. Returns the number of bytes consumed, at least 1 unless `input` is empty.
    ///
    /// `message_bytes_max` is the limit for the payload of one message, all its fragments together, and for what it
    /// inflates to; control frames have their own of 125. `inflater` is given for every call or for none: given where
    /// permessage-deflate was agreed on (RFC 7692), it may be any one, since messages keep nothing in it. After an error or [`Item::Close`] the caller must not call again.
    ///
    /// # Errors
    /// 1002 for whatever breaks RFC 6455 §5 (reserved bits and opcodes, a mask that is missing or should be,
    /// control frames that are long or fragmented, a continuation of nothing, a new message inside an open one, a
    /// length with its top bit set, a wrong close code), 1007 for text that is not UTF-8, 1009 for a message over
    /// the limit, from the header that announces it. For a compressed message also what [`Inflater::inflate`] gives.
    ///
    /// Cost: O(bytes consumed and inflated); a copy only of messages that are not one frame whole in `input`.
    pub fn receive<'a>(
        &'a mut self,
        input: &'a mut [u8],
        message_bytes_max: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<(usize, Option<Item<'a>>), Violation> {
        self.release_finished();
        if input.is_empty() {
            return Ok((0, None));
        }
        let open = self.partial.as_deref();
        if open.is_none_or(Partial::is_between_frames) {
            let room = Room::new(open, message_bytes_max, inflater.is_some());
            let Some(header) = Header::parse(input, self.role, room)? else {
                return self.receive_partial(input, message_bytes_max, inflater);
            };
            if header.is_whole_item() && input.len() - header.len() >= header.payload_len {
                return whole_item(&header, input, message_bytes_max, inflater);
            }
        }
        self.receive_partial(input, message_bytes_max, inflater)
    }

    /// Bytes allocated for a message or frame that is not finished, payload or not yet; 0 when idle.
    ///
    /// A message that was buffered and handed out counts until the next [`Self::receive`] or
    /// [`Self::release_finished`].
    pub fn bytes_held(&self) -> usize {
        self.partial.as_deref().map_or(0, |partial| size_of::<Partial>() + partial.buffer.capacity())
    }

    /// Notes when the message or frame began that is not finished, in the caller's unit; false where that is noted
    /// already, or nothing is unfinished. The note goes with the message.
    pub fn note_begun(&mut self, at: u32) -> bool {
        match self.partial.as_deref_mut() {
            Some(partial) if partial.begun.is_none() && !partial.is_finished() => {
                partial.begun = Some(at);
                true
            }
            _ => false,
        }
    }

    /// When the unfinished message or frame began, as far as that was noted.
    pub fn begun(&self) -> Option<u32> {
        self.partial.as_deref().filter(|partial| !partial.is_finished())?.begun
    }

    /// Replaces the note of [`Self::note_begun`], where there is one.
    pub fn set_begun(&mut self, at: u32) {
        if let Some(partial) = self.partial.as_deref_mut() {
            partial.begun = partial.begun.map(|_| at);
        }
    }

    /// Whether a frame or a fragmented message has begun and not ended, even if no byte of payload came yet: what a
    /// deadline for unfinished messages goes by.
    pub fn is_unfinished(&self) -> bool {
        self.partial.as_deref().is_some_and(|partial| !partial.is_finished())
    }

    /// Fragments of less than 1 KiB that came and did not end their message, since this was asked for the last time. A
    /// message that is no item yet costs as much as one: a million empty ones fit the limit of a message.
    pub fn take_small_fragments(&mut self) -> u32 {
        self.partial.as_deref_mut().map_or(0, |partial| std::mem::take(&mut partial.small_fragments))
    }

    /// Frees the buffer of a message that was handed out; [`Self::receive`] does it too. Call it when the input is
    /// used up, so that a connection that goes idle after a long message does not keep it.
    pub fn release_finished(&mut self) {
        if self.partial.as_deref().is_some_and(Partial::is_finished) {
            self.partial = None;
        }
    }

    fn receive_partial<'a>(
        &'a mut self,
        input: &[u8],
        message_bytes_max: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<(usize, Option<Item<'a>>), Violation> {
        let partial = self.partial.get_or_insert_default();
        let mut consumed = 0;
        if partial.frame.is_none() {
            let room = Room::new(Some(partial), message_bytes_max, inflater.is_some());
            consumed = partial.take_header(input, self.role, room)?;
        }
        let Some(frame) = partial.frame else {
            return Ok((consumed, None));
        };
        consumed += partial.take_payload(frame, &input[consumed..], message_bytes_max)?;
        Ok((consumed, partial.end_frame(message_bytes_max, inflater)?))
    }
}

/// A parsed frame header.
#[derive(Clone, Copy, Debug)]
struct Header {
    opcode: Opcode,
    fin: bool,
    /// RSV1: the first frame of a compressed message (RFC 7692 §6).
    compressed: bool,
    /// Zeroes when the frame is not masked, which masks nothing.
    mask: [u8; 4],
    masked: bool,
    /// Bytes of the length field: 0, 2 or 8.
    length_bytes: u8,
    payload_len: usize,
}

/// What a data frame may still be: whether it must continue a message, how long it may be, and whether a message may
/// be compressed.
#[derive(Clone, Copy)]
struct Room {
    message_open: bool,
    bytes: usize,
    deflate: bool,
}

impl Room {
    fn new(partial: Option<&Partial>, message_bytes_max: usize, deflate: bool) -> Self {
        let used = partial.map_or(0, |partial| partial.buffer.len());
        Self {
            message_open: partial.is_some_and(|partial| partial.message.is_some()),
            bytes: message_bytes_max.saturating_sub(used),
            deflate,
        }
    }
}

impl Header {
    /// Reads a header from the front of `bytes`; `None` when it is not whole and not wrong so far.
    ///
    /// Checks go in the order of the bytes, so that a header cut anywhere is refused for the same reason.
    fn parse(bytes: &[u8], role: Role, room: Room) -> Result<Option<Self>, Violation> {
        let Some((&first, bytes)) = bytes.split_first() else {
            return Ok(None);
        };
        let (opcode, fin, compressed) = Self::parse_first(first, room)?;
        let Some((&second, bytes)) = bytes.split_first() else {
            return Ok(None);
        };
        let masked = second & 0x80 != 0;
        match role {
            Role::Server if !masked => {
                return Err(Violation::protocol("frame of a client is not masked"));
            }
            Role::Client if masked => {
                return Err(Violation::protocol("frame of a server is masked"));
            }
            _ => {}
        }
        let short_len = second & 0x7F;
        if opcode.is_control() && usize::from(short_len) > CONTROL_BYTES_MAX {
            return Err(Violation::protocol("control frame longer than 125 bytes"));
        }
        // A longer form of a short length is let pass: senders must not use it (§5.2), receivers never minded.
        let length_bytes = match short_len {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((length, bytes)) = bytes.split_at_checked(usize::from(length_bytes)) else {
            return Ok(None);
        };
        let payload_len = match length_bytes {
            0 => u64::from(short_len),
            _ => length.iter().fold(0, |len, &byte| len << 8 | u64::from(byte)),
        };
        if payload_len >> 63 != 0 {
            return Err(Violation::protocol("frame length with its top bit set"));
        }
        // In u64, before any addition or allocation: what passes fits a usize.
        if !opcode.is_control() && payload_len > room.bytes as u64 {
            return Err(Violation::too_big());
        }
        let mask = match (masked, bytes.first_chunk::<4>()) {
            (false, _) => [0; 4],
            (true, Some(mask)) => *mask,
            (true, None) => return Ok(None),
        };
        Ok(Some(Self { opcode, fin, compressed, mask, masked, length_bytes, payload_len: payload_len as usize }))
    }

    fn parse_first(first: u8, room: Room) -> Result<(Opcode, bool, bool), Violation> {
        let compressed = first & 0x40 != 0;
        if first & 0x30 != 0 || (compressed && !room.deflate) {
            return Err(Violation::protocol("reserved bit set"));
        }
        let Some(opcode) = Opcode::from_nibble(first & 0x0F) else {
            return Err(Violation::protocol("reserved opcode"));
        };
        let fin = first & 0x80 != 0;
        match opcode {
            // Only a message is marked, by its first frame (RFC 7692 §6).
            Opcode::Text | Opcode::Binary if !room.message_open => Ok((opcode, fin, compressed)),
            _ if compressed => Err(Violation::protocol("compression bit on a frame that begins no message")),
            _ if opcode.is_control() && !fin => Err(Violation::protocol("fragmented control frame")),
            Opcode::Continuation if !room.message_open => Err(Violation::protocol("continuation without a message")),
            Opcode::Text | Opcode::Binary => Err(Violation::protocol("new message before the end of the last")),
            _ => Ok((opcode, fin, false)),
        }
    }

    /// Bytes of the header.
    fn len(&self) -> usize {
        2 + usize::from(self.length_bytes) + if self.masked { 4 } else { 0 }
    }

    /// Whether the frame needs nothing but itself to be an item.
    fn is_whole_item(&self) -> bool {
        self.opcode.is_control() || (self.fin && self.opcode != Opcode::Continuation)
    }
}

/// The item of a frame that lies whole at the front of `input`: no copy.
fn whole_item<'a>(
    header: &Header,
    input: &'a mut [u8],
    message_bytes_max: usize,
    inflater: Option<&'a mut Inflater>,
) -> Result<(usize, Option<Item<'a>>), Violation> {
    let end = header.len() + header.payload_len;
    let payload = &mut input[header.len()..end];
    if header.masked {
        mask::apply(header.mask, 0, payload);
    }
    let item = match header.opcode {
        opcode if opcode.is_control() => control_item(opcode, payload)?,
        // A continuation is never whole by itself and does not come here.
        opcode if header.compressed => inflated_item(opcode, payload, message_bytes_max, inflater)?,
        opcode => message_item(opcode, payload)?,
    };
    Ok((end, Some(item)))
}

/// The item of a whole message that is not compressed, or not any more.
fn message_item(opcode: Opcode, payload: &mut [u8]) -> Result<Item<'_>, Violation> {
    match opcode {
        Opcode::Text if !utf8::is_valid(payload) => Err(Violation::not_utf8()),
        Opcode::Text => Ok(Item::Text(payload)),
        _ => Ok(Item::Binary(payload)),
    }
}

fn inflated_item<'a>(
    opcode: Opcode,
    payload: &[u8],
    message_bytes_max: usize,
    inflater: Option<&'a mut Inflater>,
) -> Result<Item<'a>, Violation> {
    // It was there for the message's first frame; a caller that changes its mind is told as if it had not been.
    let inflater = inflater.ok_or(Violation::protocol("reserved bit set"))?;
    message_item(opcode, inflater.inflate(payload, message_bytes_max)?)
}

fn control_item(opcode: Opcode, payload: &[u8]) -> Result<Item<'_>, Violation> {
    Ok(match opcode {
        Opcode::Ping => Item::Ping(payload),
        Opcode::Pong => Item::Pong(payload),
        _ => {
            let (code, reason) = close::parse_close(payload)?;
            Item::Close(code, reason)
        }
    })
}

/// A frame whose header is known and whose payload is on its way.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: Header,
    /// Bytes of the payload that came: where the mask stands.
    received: usize,
}

/// What is kept between calls for a frame or a message that is not whole.
#[derive(Debug)]
struct Partial {
    /// Payload of the open message so far, unmasked.
    buffer: Vec<u8>,
    /// State of the text in `buffer`.
    text: utf8::Validator,
    /// Text or Binary while a message is open, from its first header to its last byte.
    message: Option<Opcode>,
    /// Whether that message is compressed: `buffer` is then no text.
    compressed: bool,
    frame: Option<Frame>,
    header: [u8; HEADER_BYTES_MAX],
    header_len: u8,
    control: [u8; CONTROL_BYTES_MAX],
    control_len: u8,
    small_fragments: u32,
    /// When it began, as the caller told.
    begun: Option<u32>,
}

impl Default for Partial {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            text: utf8::Validator::default(),
            message: None,
            compressed: false,
            frame: None,
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            control: [0; CONTROL_BYTES_MAX],
            control_len: 0,
            small_fragments: 0,
            begun: None,
        }
    }
}

impl Partial {
    /// Between two frames of an open message: the next byte begins a header.
    fn is_between_frames(&self) -> bool {
        self.frame.is_none() && self.header_len == 0
    }

    /// Nothing is awaited; what is left is the payload of an item that was handed out.
    fn is_finished(&self) -> bool {
        self.is_between_frames() && self.message.is_none()
    }

    /// Completes the header from the front of `input`, or keeps what there is; returns the bytes taken.
    fn take_header(&mut self, input: &[u8], role: Role, room: Room) -> Result<usize, Violation> {
        let kept = usize::from(self.header_len);
        let copied = input.len().min(HEADER_BYTES_MAX - kept);
        self.header[kept..kept + copied].copy_from_slice(&input[..copied]);
        let Some(header) = Header::parse(&self.header[..kept + copied], role, room)? else {
            // Fourteen bytes are always enough, so all of the input was copied.
            self.header_len = (kept + copied) as u8;
            return Ok(copied);
        };
        self.header_len = 0;
        self.control_len = 0;
        if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
            self.message = Some(header.opcode);
            self.compressed = header.compressed;
        }
        self.frame = Some(Frame { header, received: 0 });
        Ok(header.len() - kept)
    }

    /// Takes what is there of the frame's payload; returns the bytes taken.
    fn take_payload(&mut self, mut frame: Frame, input: &[u8], bytes_max: usize) -> Result<usize, Violation> {
        let header = frame.header;
        let piece_len = input.len().min(header.payload_len - frame.received);
        let piece = &input[..piece_len];
        if header.opcode.is_control() {
            let kept = usize::from(self.control_len);
            let room = &mut self.control[kept..kept + piece_len];
            room.copy_from_slice(piece);
            mask::apply(header.mask, frame.received, room);
            self.control_len += piece_len as u8;
        } else {
            self.reserve(&frame, piece_len, bytes_max);
            let kept = self.buffer.len();
            self.buffer.extend_from_slice(piece);
            let added = &mut self.buffer[kept..];
            if header.masked {
                mask::apply(header.mask, frame.received, added);
            }
            if self.message == Some(Opcode::Text) && !self.compressed {
                self.text.push(added).map_err(|_| Violation::not_utf8())?;
            }
        }
        frame.received += piece_len;
        self.frame = Some(frame);
        Ok(piece_len)
    }

    /// Makes place for `more` bytes: doubling, so that many small pieces cost O(bytes), but not past the longest
    /// message, nor past the end of this one where its last frame tells where that is.
    fn reserve(&mut self, frame: &Frame, more: usize, bytes_max: usize) {
        let needed = self.buffer.len() + more;
        if needed <= self.buffer.capacity() {
            return;
        }
        let doubled = needed.max(2 * self.buffer.capacity()).max(BUFFER_BYTES_MIN);
        // A header over the limit was refused, so that what is needed is within it.
        let mut target = doubled.min(bytes_max.max(needed));
        if frame.header.fin {
            let message_len = self.buffer.len() + frame.header.payload_len - frame.received;
            target = target.min(message_len);
        }
        self.buffer.reserve_exact(target - self.buffer.len());
    }

    /// Ends the frame if its payload is whole, and the message if it was the last; gives the item, if that is one.
    fn end_frame<'a>(
        &'a mut self,
        message_bytes_max: usize,
        inflater: Option<&'a mut Inflater>,
    ) -> Result<Option<Item<'a>>, Violation> {
        let Some(Frame { header, received }) = self.frame else {
            return Ok(None);
        };
        if received < header.payload_len {
            return Ok(None);
        }
        self.frame = None;
        if header.opcode.is_control() {
            let payload = &self.control[..usize::from(self.control_len)];
            return control_item(header.opcode, payload).map(Some);
        }
        if !header.fin {
            self.small_fragments += u32::from(received < FRAGMENT_BYTES_MIN);
            return Ok(None);
        }
        let opcode = self.message.take().unwrap_or(Opcode::Binary);
        if self.compressed {
            return inflated_item(opcode, &self.buffer, message_bytes_max, inflater).map(Some);
        }
        if opcode == Opcode::Text {
            self.text.finish().map_err(|_| Violation::not_utf8())?;
            return Ok(Some(Item::Text(&mut self.buffer)));
        }
        Ok(Some(Item::Binary(&mut self.buffer)))
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_BYTES_MIN, Inbound, Role};
    use crate::frame::{Opcode, encode_masked_frame};

    /// Feeds `bytes` in reads of `read_len` and returns each capacity that the buffer had, with what it held then.
    fn growth(bytes: &mut [u8], read_len: usize) -> Vec<(usize, usize)> {
        let mut inbound = Inbound::new(Role::Server);
        let mut growth: Vec<(usize, usize)> = Vec::new();
        for read in bytes.chunks_mut(read_len) {
            let mut at = 0;
            while at < read.len() {
                let (consumed, _) = inbound.receive(&mut read[at..], 1 << 24, None).expect("valid frames");
                at += consumed;
                let Some(partial) = &inbound.partial else {
                    continue;
                };
                let capacity = partial.buffer.capacity();
                if growth.last().is_none_or(|last| last.0 != capacity) {
                    growth.push((capacity, partial.buffer.len()));
                }
            }
        }
        growth
    }

    fn assert_grows_with_what_came(growth: &[(usize, usize)]) {
        assert!(growth.len() < 20, "few copies: {growth:?}");
        for (capacity, len) in growth {
            assert!(*capacity <= (2 * len).max(BUFFER_BYTES_MIN), "{growth:?}");
        }
    }

    #[test]
    fn the_buffer_grows_with_what_came_and_ends_at_what_was_announced() {
        let mut bytes = Vec::new();
        let payload = [7; 100_000];
        encode_masked_frame(Opcode::Binary, true, &payload, [1, 2, 3, 4], &mut bytes);
        for read_len in [1, 13, 1460, 65_536] {
            let growth = growth(&mut bytes.clone(), read_len);
            assert_grows_with_what_came(&growth);
            assert_eq!(growth.last().map(|last| last.0), Some(payload.len()));
        }
    }

    #[test]
    fn the_buffer_of_small_fragments_doubles() {
        let mut bytes = Vec::new();
        encode_masked_frame(Opcode::Binary, false, b"", [1, 2, 3, 4], &mut bytes);
        for _ in 0..50_000 {
            encode_masked_frame(Opcode::Continuation, false, b"x", [1, 2, 3, 4], &mut bytes);
        }
        assert_grows_with_what_came(&growth(&mut bytes, 1000));
    }
}
