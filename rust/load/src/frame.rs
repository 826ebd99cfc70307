//! Frames as a client sees them (RFC 6455 §5.2): parse what a server sent, write what a client sends.
//!
//! Written apart from the server's own protocol crate on purpose: a mistake shared by both ends would go unseen.
//! A server must not mask, must not set reserved bits that nobody agreed on and, in this protocol, sends every event as one frame; anything
//! else is a [`FrameFault`]. Parsing borrows the input and allocates nothing. Called by `swarm` for every read.

/// What a frame carries, by its opcode (RFC 6455 §11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// 1: UTF-8 text; each holds one JSON object.
    Text,
    /// 2: not used by this protocol.
    Binary,
    /// 8: the peer is closing.
    Close,
    /// 9: must be answered by a pong with the same payload.
    Ping,
    /// 10: the answer to a ping.
    Pong,
}

/// One whole frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it carries.
    pub opcode: Opcode,
    /// Its payload, unmasked.
    pub payload: &'a [u8],
    /// Bytes that the frame takes with its header.
    pub bytes: usize,
    /// RSV1: the payload is compressed (RFC 7692 §6).
    pub compressed: bool,
}

/// Bytes that no server may send to this client; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// A mask bit from a server (§5.1).
    Masked,
    /// A reserved bit with no extension negotiated (§5.2).
    Reserved,
    /// FIN clear, or a continuation: legal in RFC 6455, unknown to this protocol.
    Fragmented,
    /// An opcode without a meaning.
    Opcode(u8),
}

impl std::fmt::Display for FrameFault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Masked => write!(out, "masked frame from a server"),
            Self::Reserved => write!(out, "reserved bit without an extension"),
            Self::Fragmented => write!(out, "fragmented message; events come as one frame each"),
            Self::Opcode(opcode) => write!(out, "unknown opcode {opcode}"),
        }
    }
}

/// The first frame of `input`, or `None` while it is not whole; `deflate` says whether data frames may be compressed.
///
/// # Errors
/// [`FrameFault`] as soon as the header shows it.
pub fn parse(input: &[u8], deflate: bool) -> Result<Option<Frame<'_>>, FrameFault> {
    let [first, second, ..] = *input else {
        return Ok(None);
    };
    let compressed = first & 0x40 != 0;
    // RSV1 belongs to the first frame of a data message alone.
    if first & 0x30 != 0 || (compressed && !(deflate && matches!(first & 0x0f, 1 | 2))) {
        return Err(FrameFault::Reserved);
    }
    if second & 0x80 != 0 {
        return Err(FrameFault::Masked);
    }
    let opcode = match first & 0x0f {
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        0 => return Err(FrameFault::Fragmented),
        other => return Err(FrameFault::Opcode(other)),
    };
    if first & 0x80 == 0 {
        return Err(FrameFault::Fragmented);
    }
    let (header, len) = match second {
        126 => {
            let Some(len) = input.get(2..4) else {
                return Ok(None);
            };
            (4, usize::from(u16::from_be_bytes([len[0], len[1]])))
        }
        127 => {
            let Some(len) = input.get(2..10) else {
                return Ok(None);
            };
            let len = len.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
            (10, usize::try_from(len).unwrap_or(usize::MAX - 10))
        }
        short => (2, usize::from(short)),
    };
    let bytes = header + len;
    Ok(input.get(header..bytes).map(|payload| Frame { opcode, payload, bytes, compressed }))
}

/// Append a client's frame, masked with `mask` (RFC 6455 §5.3).
pub fn write_masked(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    out.push(
        0x80 | match opcode {
            Opcode::Text => 1,
            Opcode::Binary => 2,
            Opcode::Close => 8,
            Opcode::Ping => 9,
            Opcode::Pong => 10,
        },
    );
    // The casts cannot cut: each arm's pattern bounds the length.
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    for chunk in out[start..].chunks_mut(4) {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_of_each_length_form_is_read_whole_and_waited_for_when_cut() {
        for (len, header) in [
            (0_usize, vec![0x81, 0x00]),
            (125, vec![0x81, 0x7d]),
            (126, vec![0x81, 0x7e, 0x00, 0x7e]),
            (65_536, vec![0x81, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = vec![b'x'; len];
            let whole = [header.as_slice(), &payload, b"\x81"].concat();
            let bytes = header.len() + len;
            assert_eq!(
                parse(&whole, false),
                Ok(Some(Frame { opcode: Opcode::Text, payload: &payload, bytes, compressed: false }))
            );
            assert_eq!(parse(&whole[..bytes - 1], false), Ok(None));
        }
    }

    #[test]
    fn bytes_that_no_server_may_send_are_faults() {
        for (bytes, fault) in [
            ([0x81, 0x80], FrameFault::Masked),
            ([0xc1, 0x00], FrameFault::Reserved),
            ([0x01, 0x00], FrameFault::Fragmented),
            ([0x80, 0x00], FrameFault::Fragmented),
            ([0x83, 0x00], FrameFault::Opcode(3)),
        ] {
            assert_eq!(parse(&bytes, false), Err(fault));
        }
    }

    #[test]
    fn rsv1_is_for_data_frames_of_a_connection_that_agreed_on_it() {
        let frame = parse(&[0xc1, 0x01, b'x'], true).expect("allowed").expect("whole");
        assert!(frame.compressed);
        for bytes in [[0xc9, 0x00], [0xc8, 0x00], [0xe1, 0x00], [0x91, 0x00]] {
            assert_eq!(parse(&bytes, true), Err(FrameFault::Reserved));
        }
    }

    #[test]
    fn masked_hello_is_the_example_of_rfc_6455_5_7() {
        let mut out = Vec::new();
        write_masked(Opcode::Text, b"Hello", [0x37, 0xfa, 0x21, 0x3d], &mut out);
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn long_masked_frames_announce_their_length_in_two_and_in_eight_bytes() {
        for (len, header) in
            [(126_usize, &[0x82, 0xfe, 0x00, 0x7e][..]), (65_536, &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0])]
        {
            let mut out = Vec::new();
            write_masked(Opcode::Binary, &vec![0; len], [1, 2, 3, 4], &mut out);
            assert_eq!(&out[..header.len()], header);
            assert_eq!(out.len(), header.len() + 4 + len);
        }
    }
}
