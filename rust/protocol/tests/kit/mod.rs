//! Kit of the protocol's tests: owned items, messages cut into frames, and a receiver fed in pieces.
//!
//! Every test file takes what it needs; nothing here decides what is right.
#![allow(dead_code)] // each test file is a crate of its own and uses a part of the kit

use proptest::prelude::*;
use realtime_protocol::close::{CloseCode, encode_close_payload};
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::deflate::{Deflater, Inflater};
use realtime_protocol::error::Violation;
use realtime_protocol::frame::{Opcode, encode_frame, encode_header, encode_masked_frame};

pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
pub(crate) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// An [`Item`] that outlives the buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl Owned {
    pub(crate) fn from_item(item: Item<'_>) -> Self {
        match item {
            Item::Text(bytes) => Self::Text(String::from_utf8(bytes.to_vec()).expect("text items are UTF-8")),
            Item::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Item::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Item::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Item::Close(code, reason) => Self::Close(code.map(|code| code.0), reason.to_owned()),
        }
    }

    pub(crate) fn opcode(&self) -> Opcode {
        match self {
            Self::Text(_) => Opcode::Text,
            Self::Binary(_) => Opcode::Binary,
            Self::Ping(_) => Opcode::Ping,
            Self::Pong(_) => Opcode::Pong,
            Self::Close(..) => Opcode::Close,
        }
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Binary(bytes) | Self::Ping(bytes) | Self::Pong(bytes) => bytes.clone(),
            Self::Close(None, _) => Vec::new(),
            Self::Close(Some(code), reason) => encode_close_payload(CloseCode(*code), reason),
        }
    }
}

/// Writes a frame as the peer of `receiver` would.
pub(crate) fn push_frame(receiver: Role, opcode: Opcode, fin: bool, payload: &[u8], out: &mut Vec<u8>) {
    match receiver {
        Role::Server => encode_masked_frame(opcode, fin, payload, MASK, out),
        Role::Client if fin => out.extend(encode_frame(opcode, payload)),
        Role::Client => {
            let mut header = [0; 10];
            let len = encode_header(opcode, fin, false, payload.len() as u64, &mut header);
            out.extend_from_slice(&header[..len]);
            out.extend_from_slice(payload);
        }
    }
}

/// One receiver and what came out of it so far.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) inbound: Inbound,
    pub(crate) items: Vec<Owned>,
    pub(crate) violation: Option<Violation>,
    /// Where permessage-deflate was agreed on.
    pub(crate) inflater: Option<Inflater>,
    message_bytes_max: usize,
}

impl Receiver {
    pub(crate) fn new(role: Role, message_bytes_max: usize) -> Self {
        Self { inbound: Inbound::new(role), items: Vec::new(), violation: None, inflater: None, message_bytes_max }
    }

    /// Feeds one read; stops at a violation or a Close, as callers must.
    pub(crate) fn feed(&mut self, read: &[u8]) {
        let mut read = read.to_vec();
        let mut at = 0;
        while at < read.len() && !self.is_over() {
            match self.inbound.receive(&mut read[at..], self.message_bytes_max, self.inflater.as_mut()) {
                Ok((consumed, item)) => {
                    assert!(consumed > 0, "a call on bytes consumes some");
                    at += consumed;
                    self.items.extend(item.map(Owned::from_item));
                }
                Err(violation) => self.violation = Some(violation),
            }
        }
        assert!(at <= read.len());
    }

    fn is_over(&self) -> bool {
        self.violation.is_some() || matches!(self.items.last(), Some(Owned::Close(..)))
    }

    pub(crate) fn outcome(&self) -> (Vec<Owned>, Option<Violation>) {
        (self.items.clone(), self.violation)
    }
}

/// Items and violation of `bytes`, read in pieces of `sizes` (repeated; all at once if empty).
pub(crate) fn receive_cut(
    role: Role,
    bytes: &[u8],
    sizes: &[usize],
    message_bytes_max: usize,
) -> (Vec<Owned>, Option<Violation>) {
    feed_cut(Receiver::new(role, message_bytes_max), bytes, sizes)
}

/// As [`receive_cut`], where permessage-deflate was agreed on.
pub(crate) fn receive_deflated(
    role: Role,
    bytes: &[u8],
    sizes: &[usize],
    message_bytes_max: usize,
) -> (Vec<Owned>, Option<Violation>) {
    let mut receiver = Receiver::new(role, message_bytes_max);
    receiver.inflater = Some(Inflater::new());
    feed_cut(receiver, bytes, sizes)
}

fn feed_cut(mut receiver: Receiver, bytes: &[u8], sizes: &[usize]) -> (Vec<Owned>, Option<Violation>) {
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(rest.len()).max(1);
        let (read, after) = rest.split_at(size.min(rest.len()));
        receiver.feed(read);
        rest = after;
    }
    receiver.outcome()
}

/// Items and violation of `bytes`, cut at `cuts`, ascending.
pub(crate) fn receive_at(
    role: Role,
    bytes: &[u8],
    cuts: &[usize],
    message_bytes_max: usize,
) -> (Vec<Owned>, Option<Violation>) {
    let mut receiver = Receiver::new(role, message_bytes_max);
    let mut start = 0;
    for &end in cuts.iter().chain([&bytes.len()]) {
        receiver.feed(&bytes[start..end]);
        start = end;
    }
    receiver.outcome()
}

/// A message or control frame to send, with the places where a message is cut into fragments and the control frames
/// that go between them.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) item: Owned,
    /// Lengths of the fragments before the last one; 0 makes an empty fragment.
    pub(crate) fragments: Vec<usize>,
    pub(crate) between: Vec<Owned>,
}

impl Sent {
    pub(crate) fn push(&self, receiver: Role, out: &mut Vec<u8>) {
        self.push_payload(receiver, &self.item.payload(), out);
    }

    /// Writes a message compressed at `level`, and control frames as they are.
    pub(crate) fn push_deflated(&self, receiver: Role, level: u8, out: &mut Vec<u8>) {
        if self.item.opcode().is_control() {
            return self.push(receiver, out);
        }
        let mut payload = Vec::new();
        Deflater::new(level).deflate(&self.item.payload(), &mut payload);
        let first = out.len();
        self.push_payload(receiver, &payload, out);
        // RSV1 on the first frame alone (RFC 7692 §6).
        out[first] |= 0x40;
    }

    fn push_payload(&self, receiver: Role, payload: &[u8], out: &mut Vec<u8>) {
        let mut rest = payload;
        let mut opcode = self.item.opcode();
        if !opcode.is_control() {
            for (i, &len) in self.fragments.iter().enumerate() {
                let (fragment, after) = rest.split_at(len.min(rest.len()));
                push_frame(receiver, opcode, false, fragment, out);
                rest = after;
                opcode = Opcode::Continuation;
                if let Some(control) = self.between.get(i) {
                    push_frame(receiver, control.opcode(), true, &control.payload(), out);
                }
            }
        }
        push_frame(receiver, opcode, true, rest, out);
    }

    /// What the receiver must see, in order.
    pub(crate) fn expected(&self) -> Vec<Owned> {
        let between = match self.item.opcode().is_control() {
            true => &[][..],
            false => &self.between[..self.between.len().min(self.fragments.len())],
        };
        [between, std::slice::from_ref(&self.item)].concat()
    }
}

fn control_payload() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=125)
}

fn ping_or_pong() -> impl Strategy<Value = Owned> {
    prop_oneof![control_payload().prop_map(Owned::Ping), control_payload().prop_map(Owned::Pong),]
}

/// Text with characters of every length, so that cuts fall inside them.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![any::<char>(), prop::char::range('a', 'z')], 0..150)
        .prop_map(|chars| chars.into_iter().collect())
}

/// Any message or control frame but Close.
pub(crate) fn item() -> impl Strategy<Value = Owned> {
    prop_oneof![
        4 => text().prop_map(Owned::Text),
        3 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Owned::Binary),
        1 => prop::collection::vec(any::<u8>(), 65_530..65_545).prop_map(Owned::Binary),
        2 => ping_or_pong(),
    ]
}

/// Any message, cut into frames in any way.
pub(crate) fn sent() -> impl Strategy<Value = Sent> {
    let fragments = prop_oneof![
        2 => Just(Vec::new()),
        3 => prop::collection::vec(0usize..60, 1..6),
    ];
    let between = prop::collection::vec(ping_or_pong(), 0..4);
    (item(), fragments, between).prop_map(|(item, fragments, between)| Sent { item, fragments, between })
}

/// A Close with any code that may be sent, or none.
pub(crate) fn close() -> impl Strategy<Value = Owned> {
    let reason = text().prop_map(|mut reason| {
        let mut len = reason.len().min(123);
        while !reason.is_char_boundary(len) {
            len -= 1;
        }
        reason.truncate(len);
        reason
    });
    prop_oneof![
        Just(Owned::Close(None, String::new())),
        (prop_oneof![1000u16..=1003, 1007u16..=1014, 3000u16..=4999], reason)
            .prop_map(|(code, reason)| Owned::Close(Some(code), reason)),
    ]
}

pub(crate) fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

/// Sizes of reads: mostly tiny, sometimes whole buffers.
pub(crate) fn read_sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => prop::collection::vec(1usize..8, 1..12),
        3 => prop::collection::vec(1usize..400, 1..12),
        1 => Just(Vec::new()),
        1 => Just(vec![65_536]),
    ]
}

pub(crate) fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).expect("hex is ASCII");
            u8::from_str_radix(pair, 16).expect("two digits of hex")
        })
        .collect()
}
