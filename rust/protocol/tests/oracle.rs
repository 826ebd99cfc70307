//! The receiver against a slow decoder that was written from the RFC alone.
//!
//! The oracle sees all bytes at once, copies everything and goes through a frame field by field; it shares no code
//! with the crate. Both are given messages with some bytes changed, and frames put together at random.

mod kit;

use kit::{Owned, Sent, push_frame, receive_cut, receive_deflated};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use proptest::prelude::*;
use realtime_protocol::connection::Role;
use realtime_protocol::frame::Opcode;

/// Why the oracle stops.
enum Stop {
    /// The bytes end inside a frame.
    Short,
    /// The code that the peer is told.
    Fault(u16),
}

struct Oracle<'a> {
    bytes: &'a [u8],
    at: usize,
    is_server: bool,
    message_bytes_max: u64,
    /// Whether permessage-deflate was agreed on.
    is_deflate: bool,
    /// Opcode and payload of the open message.
    open: Option<(u8, Vec<u8>)>,
    is_compressed: bool,
    items: Vec<Owned>,
}

impl Oracle<'_> {
    fn byte(&mut self) -> Result<u8, Stop> {
        let byte = *self.bytes.get(self.at).ok_or(Stop::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn frame(&mut self) -> Result<(), Stop> {
        let first = self.byte()?;
        let (fin, reserved, opcode) = (first >= 128, first / 16 % 8, first % 16);
        let is_known = [0, 1, 2, 8, 9, 10].contains(&opcode);
        let is_in_place = match opcode {
            0 => self.open.is_some(),
            1 | 2 => self.open.is_none(),
            _ => fin,
        };
        let is_marked = reserved == 4 && self.is_deflate && [1, 2].contains(&opcode);
        if (reserved != 0 && !is_marked) || !is_known || !is_in_place {
            return Err(Stop::Fault(1002));
        }
        if [1, 2].contains(&opcode) {
            self.is_compressed = is_marked;
        }
        let second = self.byte()?;
        if (second >= 128) != self.is_server {
            return Err(Stop::Fault(1002));
        }
        let len = self.length(opcode, second % 128)?;
        let mut mask = [0; 4];
        if self.is_server {
            for byte in &mut mask {
                *byte = self.byte()?;
            }
        }
        match opcode {
            0..=2 => self.payload_of_message(opcode, fin, len, mask),
            _ => self.payload_of_control(opcode, len, mask),
        }
    }

    fn length(&mut self, opcode: u8, short: u8) -> Result<u64, Stop> {
        if opcode >= 8 && short > 125 {
            return Err(Stop::Fault(1002));
        }
        let mut len = u64::from(short);
        let further = [(126, 2), (127, 8)].iter().find(|form| form.0 == short);
        if let Some((_, count)) = further {
            len = 0;
            for _ in 0..*count {
                len = len * 256 + u64::from(self.byte()?);
            }
        }
        if len > i64::MAX as u64 {
            return Err(Stop::Fault(1002));
        }
        let so_far = self.open.as_ref().map_or(0, |open| open.1.len() as u64);
        if opcode < 8 && so_far + len > self.message_bytes_max {
            return Err(Stop::Fault(1009));
        }
        Ok(len)
    }

    fn payload_of_message(&mut self, opcode: u8, fin: bool, len: u64, mask: [u8; 4]) -> Result<(), Stop> {
        if opcode != 0 {
            self.open = Some((opcode, Vec::new()));
        }
        let mut end = Ok(());
        let mut payload = Vec::new();
        for i in 0..len as usize {
            match self.byte() {
                Ok(byte) => payload.push(byte ^ mask[i % 4]),
                Err(stop) => {
                    end = Err(stop);
                    break;
                }
            }
        }
        let (opcode, mut message) = self.open.take().expect("opened above or before");
        message.extend(payload);
        let is_whole = fin && end.is_ok();
        if self.is_compressed {
            if !is_whole {
                self.open = Some((opcode, message));
                return end;
            }
            message = inflate(&message, self.message_bytes_max as usize)?;
        }
        if opcode == 1
            && let Err(error) = std::str::from_utf8(&message)
            && (is_whole || error.error_len().is_some())
        {
            return Err(Stop::Fault(1007));
        }
        match (is_whole, opcode) {
            (false, _) => self.open = Some((opcode, message)),
            (true, 1) => {
                let text = String::from_utf8(message).expect("checked above");
                self.items.push(Owned::Text(text));
            }
            (true, _) => self.items.push(Owned::Binary(message)),
        }
        end
    }

    fn payload_of_control(&mut self, opcode: u8, len: u64, mask: [u8; 4]) -> Result<(), Stop> {
        let mut payload = Vec::new();
        for i in 0..len as usize {
            payload.push(self.byte()? ^ mask[i % 4]);
        }
        match opcode {
            9 => self.items.push(Owned::Ping(payload)),
            10 => self.items.push(Owned::Pong(payload)),
            _ if payload.is_empty() => self.items.push(Owned::Close(None, String::new())),
            _ if payload.len() == 1 => return Err(Stop::Fault(1002)),
            _ => {
                let code = u16::from(payload[0]) * 256 + u16::from(payload[1]);
                let is_unsendable =
                    code < 1000 || [1004, 1005, 1006].contains(&code) || (1015..3000).contains(&code) || code >= 5000;
                if is_unsendable {
                    return Err(Stop::Fault(1002));
                }
                let reason = String::from_utf8(payload[2..].to_vec());
                let reason = reason.map_err(|_| Stop::Fault(1007))?;
                self.items.push(Owned::Close(Some(code), reason));
            }
        }
        Ok(())
    }
}

/// A compressed message as RFC 7692 §7.2.2 has it, with an inflate that shares no code with the crate's.
fn inflate(payload: &[u8], message_bytes_max: usize) -> Result<Vec<u8>, Stop> {
    let mut stream = DecompressorOxide::new();
    let mut message = vec![0; message_bytes_max + 1];
    let mut len = 0;
    let mut step = |input: &[u8]| {
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_HAS_MORE_INPUT;
        let (status, used, made) = decompress(&mut stream, input, &mut message, len, flags);
        len += made;
        if status == TINFLStatus::Done {
            stream.init();
        }
        match status {
            _ if len > message_bytes_max => Err(Stop::Fault(1009)),
            TINFLStatus::Done => Ok((true, used, made)),
            TINFLStatus::NeedsMoreInput => Ok((false, used, made)),
            _ => Err(Stop::Fault(1007)),
        }
    };
    let mut rest = payload;
    let mut ends = 0;
    while !rest.is_empty() {
        let (is_final, used, _) = step(rest)?;
        rest = &rest[used..];
        ends += usize::from(is_final);
        if is_final && rest.is_empty() {
            message.truncate(len);
            return Ok(message);
        }
        if ends > 64 {
            return Err(Stop::Fault(1007));
        }
    }
    if !payload.is_empty() && step(&[0, 0, 255, 255, 1, 0, 0, 255, 255])? != (true, 9, 0) {
        return Err(Stop::Fault(1007));
    }
    message.truncate(len);
    Ok(message)
}

/// Items and code that the oracle gives.
fn decode(role: Role, bytes: &[u8], message_bytes_max: usize, is_deflate: bool) -> (Vec<Owned>, Option<u16>) {
    let mut oracle = Oracle {
        bytes,
        at: 0,
        is_server: role == Role::Server,
        message_bytes_max: message_bytes_max as u64,
        is_deflate,
        open: None,
        is_compressed: false,
        items: Vec::new(),
    };
    while !matches!(oracle.items.last(), Some(Owned::Close(..))) {
        match oracle.frame() {
            Ok(()) => {}
            Err(Stop::Short) => return (oracle.items, None),
            Err(Stop::Fault(code)) => return (oracle.items, Some(code)),
        }
    }
    (oracle.items, None)
}

fn received(
    role: Role,
    bytes: &[u8],
    sizes: &[usize],
    message_bytes_max: usize,
    is_deflate: bool,
) -> (Vec<Owned>, Option<u16>) {
    let receive = if is_deflate { receive_deflated } else { receive_cut };
    let (items, violation) = receive(role, bytes, sizes, message_bytes_max);
    (items, violation.map(|violation| violation.code.0))
}

fn limit() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..200, Just(1 << 20)]
}

/// Payloads of RFC 7692 §7.2.3, whole and in halves, and blocks that end or contradict themselves.
const DEFLATED: [&[u8]; 9] = [
    b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\xf2\x48\xcd",
    b"\xc9\xc9\x07\x00",
    b"\xf2\x00\x11\x00\x00",
    b"\xf3\x48\xcd\xc9\xc9\x07\x00",
    b"\x00\x05\x00\xfa\xffHello",
    b"\x00\x00\x00\xff\xff",
    b"\x03\x00",
    b"\x00",
];

/// A frame with any first byte that is not hopeless, in any of the three forms of its length.
fn loose_frame() -> impl Strategy<Value = (u8, u8, Vec<u8>)> {
    let first = prop_oneof![
        6 => prop::sample::select(vec![0x01, 0x02, 0x00, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0xC2, 0x41]),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        3 => kit::text().prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..12),
        2 => prop::sample::select(DEFLATED.map(<[u8]>::to_vec).to_vec()),
        1 => prop::sample::select(vec![b"\x03\xe8bye".to_vec(), b"\xf0\x9f".to_vec(), b"\x98\x80".to_vec()]),
    ];
    (first, 0u8..8, payload)
}

fn push_loose(role: Role, (first, form, payload): &(u8, u8, Vec<u8>), out: &mut Vec<u8>) {
    let mut frame = Vec::new();
    push_frame(role, Opcode::Text, true, payload, &mut frame);
    frame[0] = *first;
    // A longer form than needed is let pass by both.
    if frame[1] & 0x7F < 126 && *form < 2 {
        let len = frame[1] & 0x7F;
        let (short, zeroes) = if *form == 0 { (126, 1) } else { (127, 7) };
        frame[1] = frame[1] & 0x80 | short;
        frame.splice(2..2, [vec![0; zeroes], vec![len]].concat());
    }
    out.extend(frame);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn messages_with_changed_bytes_are_read_as_the_oracle_reads_them(
        role in kit::role(),
        sequence in prop::collection::vec((kit::sent(), prop::option::of(1u8..=9)), 1..5),
        close in prop::option::of(kit::close()),
        faults in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        message_bytes_max in limit(),
        is_deflate in any::<bool>(),
        sizes in kit::read_sizes(),
    ) {
        let mut bytes = Vec::new();
        let close = close.map(|item| Sent { item, fragments: vec![], between: vec![] });
        for (sent, level) in &sequence {
            match level {
                Some(level) if is_deflate => sent.push_deflated(role, *level, &mut bytes),
                _ => sent.push(role, &mut bytes),
            }
        }
        close.iter().for_each(|sent| sent.push(role, &mut bytes));
        for (place, fault) in faults {
            let place = place.index(bytes.len());
            bytes[place] ^= fault;
        }
        let expected = decode(role, &bytes, message_bytes_max, is_deflate);
        prop_assert_eq!(received(role, &bytes, &sizes, message_bytes_max, is_deflate), expected);
    }

    #[test]
    fn frames_put_together_at_random_are_read_as_the_oracle_reads_them(
        role in kit::role(),
        frames in prop::collection::vec(loose_frame(), 0..8),
        kept in any::<prop::sample::Index>(),
        message_bytes_max in limit(),
        is_deflate in any::<bool>(),
        sizes in kit::read_sizes(),
    ) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| push_loose(role, frame, &mut bytes));
        bytes.truncate(bytes.len() - kept.index(bytes.len() + 1) / 2);
        let expected = decode(role, &bytes, message_bytes_max, is_deflate);
        prop_assert_eq!(received(role, &bytes, &sizes, message_bytes_max, is_deflate), expected);
    }
}
