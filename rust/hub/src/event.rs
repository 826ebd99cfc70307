//! What goes up to Python: batches of [`Event`], in the order they happened on a shard.

use crate::{Confidential, ConnId};
use std::sync::Arc;

/// One thing that Python has to know or decide. The stub `_engine.pyi` tells each in full.
#[allow(missing_docs, reason = "each field is told in full by python/realtime/_engine.pyi")]
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A connection was accepted and its first frame is queued.
    Open {
        conn: ConnId,
        user: Arc<str>,
        endpoint: u16,
        first_version: bool,
        peer: Box<str>,
        token: Option<Confidential>,
        expires_at_ms: Option<u64>,
        token_id: Option<Box<str>>,
        issued_at_s: Option<u64>,
        subprotocol: Option<Box<str>>,
    },
    /// A connection that was open is gone.
    Close { conn: ConnId, code: u16, channels: Vec<Arc<str>>, open_ms: u64 },
    /// A command for a handler; costs a credit.
    Message { conn: ConnId, route: u16, id: Option<Box<[u8]>>, data: Option<Box<[u8]>>, received_ms: u64 },
    /// A message on a raw endpoint; costs a credit. `text` payloads are UTF-8.
    Raw { conn: ConnId, text: bool, payload: Box<[u8]> },
    /// Who is this? Answered by [`crate::Command::Accept`] or [`crate::Command::Reject`].
    Upgrade {
        conn: ConnId,
        endpoint: u16,
        path: Box<str>,
        query: Box<str>,
        headers: Vec<(Box<str>, Box<str>)>,
        peer: Box<str>,
    },
    /// A command needs a right that no grant gives; costs a credit.
    Authorize { conn: ConnId, rule: u16, channel: Arc<str>, right: &'static str, id: Option<Box<[u8]>>, raw: Box<[u8]> },
    /// A command of the hub's own that came after others still under way in Python; costs a credit.
    Deferred { conn: ConnId, raw: Box<[u8]> },
    /// A command that Python handed back has run; `goes_on` where it has come up again instead, as the event of this
    /// connection just before. Python's later commands of the session wait for it.
    Carried { conn: ConnId, goes_on: bool },
    /// A token that Python has to check, for a session that is to go on with it; costs a credit. Answered by
    /// [`crate::Command::Renew`].
    Refresh { conn: ConnId, id: Option<Box<[u8]>>, token: Confidential },
    /// A token was refused here: why, for the log. At most 20 in a second of a shard.
    Refused { conn: ConnId, endpoint: u16, peer: Box<str>, reason: &'static str },
    /// A session goes on with another token.
    Renewed {
        conn: ConnId,
        expires_at_ms: Option<u64>,
        token: Option<Confidential>,
        token_id: Option<Box<str>>,
        issued_at_s: Option<u64>,
    },
    /// The outbox of a connection that had fallen behind is empty again.
    Drained { conn: ConnId },
    /// The outcome of a durable publish that asked for it.
    Published { ticket: u64, outcome: Result<Published, &'static str> },
    /// The answer to [`crate::Command::History`].
    History { ticket: u64, outcome: Result<HistoryPage, &'static str> },
    /// An event of a channel that a pattern of the option `listen` covers, as its subscribers get it.
    Heard { channel: Arc<str>, frame: Box<[u8]> },
    /// A part of the answer to [`crate::Command::Members`]: one of `parts`, which come in any order. `total` members are
    /// on the shard; `conns` has fewer where that is too many.
    Members { ticket: u64, conns: Vec<ConnId>, total: usize, parts: usize },
    /// The engine goes on, but not as it was told to.
    Warned { message: Box<str> },
    /// The engine cannot go on.
    Fatal { message: Box<str> },
}

impl Event {
    /// Whether it waits for Python's credit.
    #[must_use]
    pub const fn costs_credit(&self) -> bool {
        matches!(
            self,
            Self::Message { .. }
                | Self::Raw { .. }
                | Self::Authorize { .. }
                | Self::Deferred { .. }
                | Self::Refresh { .. }
        )
    }

    /// Whether it counts at the high-water mark: what comes of clients' messages, and is less when they are not read.
    #[must_use]
    pub const fn counts(&self) -> bool {
        self.costs_credit() || matches!(self, Self::Heard { .. })
    }
}

/// A durable event that is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its place in the channel's log, from 1.
    pub offset: u64,
    /// Whether an earlier publish had the same dedupe key; the rest is then that one's.
    pub duplicate: bool,
    /// Its data as stored.
    pub data: Arc<[u8]>,
}

/// Events of a channel, oldest first, as whole frames in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPage {
    /// JSON of each event as its subscribers got it.
    pub events: Vec<Box<[u8]>>,
    /// The channel's newest offset.
    pub offset: u64,
    /// The channel's epoch.
    pub epoch: Arc<str>,
}
