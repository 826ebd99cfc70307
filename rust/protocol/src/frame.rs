//! Frames as bytes (RFC 6455 §5.2): what this end writes.
//!
//! A server's frame is a header of 2, 4 or 10 bytes and the payload as it is, so one encoded frame serves every
//! receiver. A client's frame is masked and made one by one; it is here for tests, virtual links and the load
//! generator. Reading is [`crate::connection`]'s. Lengths always take the shortest of the three forms, as §5.2 wants.

use crate::mask;

/// What a frame is (RFC 6455 §5.2, §11.8); the discriminant is the nibble on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message that is open.
    Continuation = 0x0,
    /// A text message or its first fragment.
    Text = 0x1,
    /// A binary message or its first fragment.
    Binary = 0x2,
    /// The close handshake (§5.5.1).
    Close = 0x8,
    /// A ping (§5.5.2).
    Ping = 0x9,
    /// A pong (§5.5.3).
    Pong = 0xA,
}

impl Opcode {
    /// The opcode of a nibble; `None` for the ten reserved ones (0x3–0x7, 0xB–0xF).
    pub const fn from_nibble(nibble: u8) -> Option<Self> {
        Some(match nibble {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    /// Close, ping and pong: at most 125 bytes, never fragmented, allowed between fragments (§5.5).
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Most bytes in the payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Bytes that a server's frame header takes: 2, 4 or 10 (RFC 6455 §5.2; servers never mask).
pub const fn header_len(payload_len: u64) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Writes the header of a server's frame to the front of `out` and returns its length, [`header_len`] bytes.
///
/// `rsv1` marks a compressed message (RFC 7692 §6) and is only for connections that negotiated it.
pub fn encode_header(opcode: Opcode, fin: bool, rsv1: bool, payload_len: u64, out: &mut [u8; 10]) -> usize {
    out[0] = opcode as u8 | if fin { 0x80 } else { 0 } | if rsv1 { 0x40 } else { 0 };
    let len = header_len(payload_len);
    match len {
        2 => out[1] = payload_len as u8,
        4 => {
            out[1] = 126;
            out[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out[1] = 127;
            out[2..10].copy_from_slice(&payload_len.to_be_bytes());
        }
    }
    len
}

/// A server's frame, whole (FIN) and unmasked.
pub fn encode_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    encode_whole(opcode, false, payload)
}

/// A server's frame, whole and unmasked, of a message that [`Deflater`](crate::deflate::Deflater) made `payload` of.
pub fn encode_deflated_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    encode_whole(opcode, true, payload)
}

fn encode_whole(opcode: Opcode, rsv1: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 10];
    let header_len = encode_header(opcode, true, rsv1, payload.len() as u64, &mut header);
    let mut frame = Vec::with_capacity(header_len + payload.len());
    frame.extend_from_slice(&header[..header_len]);
    frame.extend_from_slice(payload);
    frame
}

/// Appends a client's frame, masked with `mask`, to `out`.
pub fn encode_masked_frame(opcode: Opcode, fin: bool, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let mut header = [0; 10];
    let header_len = encode_header(opcode, fin, false, payload.len() as u64, &mut header);
    header[1] |= 0x80;
    out.reserve(header_len + mask.len() + payload.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(&mask);
    let payload_at = out.len();
    out.extend_from_slice(payload);
    mask::apply(mask, 0, &mut out[payload_at..]);
}
