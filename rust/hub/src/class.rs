//! What may happen to an event whose reader is too slow.

use crate::options::Overflow;
use std::sync::Arc;

/// What may happen to an event whose reader is too slow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// An answer to a command, or a message on a raw endpoint: never dropped.
    Reply,
    /// The answer with which a membership begins: a reply, and nothing newer takes a place before it.
    Confirmation,
    /// Has an offset: never dropped where the reader can resume.
    Durable,
    /// A newer one of the same channel and key may take its place; the key is of [`latest_key`].
    Latest(Arc<str>),
    /// How everything is now: `presence_mode`. It keeps its place, and nothing newer takes a place before it.
    Snapshot,
    /// Dropped under the channel's policy.
    Volatile(Overflow),
}

/// The key of an event of class `latest`: that of whoever sent it, within its type. Relays of one channel may go by the
/// same user and say different things.
#[must_use]
pub fn latest_key(event: &str, key: &str) -> Arc<str> {
    [event, "\n", key].concat().into()
}
