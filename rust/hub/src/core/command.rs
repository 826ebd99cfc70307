//! One command of a client while it is handled, and where it is then.

use crate::credit::Credit;
use crate::json::{Envelope, Kind, Scanner, Value, id_of};
use crate::rules::BYTES_UNIT;

pub(super) const ID_CHARS_MAX: usize = 64;
/// Characters of an unknown type that an error repeats.
const TYPE_CHARS_MAX: usize = 64;
/// What Python makes of one value: 75 bytes were measured of an empty list, 90 of a member of an object.
const VALUE_BYTES: usize = 96;
/// Values that what every event takes has room for.
const VALUES_FREE: usize = 16;

/// Where a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client, just now.
    Client,
    /// Python, in the session's order; it may still ask Python for a right.
    Resumed,
    /// Python, with the right that it had asked for: what is still missing is not asked for again.
    Granted,
}

/// Where a command is once it was dispatched.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dispatched {
    /// It is answered; the credit that it brought is free.
    Answered,
    /// Python has it, for the first time or again, and its credit.
    WentUp,
    /// A channel or the log has it, and its credit, which comes back by the inbox.
    OnItsWay,
}

/// One command while it is handled.
pub(super) struct Command<'a> {
    pub(super) slot: usize,
    pub(super) bytes: &'a [u8],
    pub(super) envelope: Envelope,
    pub(super) scanner: &'a Scanner,
    pub(super) source: Source,
}

impl<'a> Command<'a> {
    pub(super) fn id(&self) -> Option<&'a [u8]> {
        self.envelope.id.map(|id| id.span.of(self.bytes))
    }

    /// What it takes in Python: its text, and what its values are decoded into.
    pub(super) fn held_bytes(&self) -> usize {
        let values = (self.envelope.values as usize).saturating_sub(VALUES_FREE);
        self.bytes.len() + values * VALUE_BYTES
    }

    pub(super) fn boxed_id(&self) -> Option<Box<[u8]>> {
        self.id().map(Into::into)
    }

    pub(super) fn member(&self, key: &str) -> Option<Value> {
        self.scanner.member(self.bytes, key)
    }

    /// Whether its data is neither an object nor absent.
    pub(super) fn has_other_data(&self) -> bool {
        self.envelope.data.is_some_and(|data| data.kind != Kind::Object)
    }

    /// Whether it came back from Python in its order, with a credit to give back.
    pub(super) const fn is_handed_back(&self) -> bool {
        !matches!(self.source, Source::Client)
    }

    /// The credit that it brought.
    pub(super) const fn credit(&self) -> Option<Credit> {
        Credit::of_python(self.is_handed_back() as u16)
    }
}

/// What a command takes of the bytes that its connection may send.
pub(super) const fn bytes_units(command: &Command<'_>) -> u32 {
    (command.bytes.len() as u32).div_ceil(BYTES_UNIT)
}

/// The `id` of a message that is refused unread.
pub(super) fn readable_id(bytes: &[u8]) -> Option<Box<[u8]>> {
    id_of(bytes).filter(|(id, value)| is_id(value, id)).map(|(id, _)| id)
}

pub(super) fn is_id(id: &Value, bytes: &[u8]) -> bool {
    match id.kind {
        Kind::Integer => true,
        Kind::String { .. } => id.text(bytes).is_some_and(|text| text.chars().count() <= ID_CHARS_MAX),
        _ => false,
    }
}

/// At most 64 printable characters of what a client sent.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TYPE_CHARS_MAX).collect()
}
