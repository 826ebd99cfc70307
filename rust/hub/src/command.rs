//! What comes down from Python: batches of [`Command`], applied in order.

use crate::ConnId;
use crate::credit::Credit;
use realtime_protocol::handshake::HttpError;
use std::sync::Arc;

/// One decision of Python's. The stub `_engine.pyi` tells each in full.
#[allow(missing_docs, reason = "each field is told in full by python/realtime/_engine.pyi")]
#[derive(Debug)]
pub enum Command {
    /// Let an upgrade in as this user.
    Accept { conn: ConnId, who: Admitted },
    /// Refuse an upgrade.
    Reject { conn: ConnId, how: Rejection },
    /// Answer a [`crate::Event::Refresh`]: the session goes on as this.
    Renew { conn: ConnId, id: Option<Box<[u8]>>, who: Admitted },
    /// Do not let in any more, and with `close` end, who came by a token: those of a user that were issued before a
    /// time (None: all), and the one with this id.
    Revoke { user: Option<Arc<str>>, token_id: Option<Arc<str>>, before_s: Option<u64>, close: bool },
    /// One message to one connection; `done` credits come back with it.
    Send { conn: ConnId, text: bool, payload: Box<[u8]>, done: u16 },
    /// One text message to many connections; with a [`crate::latest_key`] of class `latest`.
    SendMany { conns: Vec<ConnId>, payload: Box<[u8]>, key: Option<Arc<str>> },
    /// One text message to every open connection of the `json` endpoints.
    SendAll { payload: Box<[u8]>, key: Option<Arc<str>> },
    /// Who is told of whom: None, those who share a channel; else everybody of everybody, and these are online. All
    /// clients that know `presence_mode` are told now, and each that comes later behind its first frame.
    PresenceMode { users: Option<Vec<Arc<str>>> },
    /// A user came or went, of which everybody is told next.
    PresenceChange { user: Arc<str>, is_online: bool },
    /// End a connection.
    Close { conn: ConnId, code: u16, reason: Box<str> },
    /// Rights on one channel, then the command that had asked for them.
    Grant { conn: ConnId, channel: Arc<str>, rights: Vec<Box<str>>, raw: Box<[u8]> },
    /// A deferred command, handed back when its turn came.
    Resume { conn: ConnId, raw: Box<[u8]> },
    /// Make a connection a member.
    Subscribe { conn: ConnId, channel: Arc<str> },
    /// Take a subscription away.
    Unsubscribe { conn: ConnId, channel: Arc<str>, code: Box<str>, retryable: bool },
    /// An event of a channel.
    Publish(Publish),
    /// One text message to the members of several channels, each connection once.
    PublishUnion { channels: Vec<Arc<str>>, payload: Box<[u8]>, key: Option<Arc<str>> },
    /// Ask for events after an offset, or for the last ones; with `epoch` the offset is a position.
    History {
        ticket: u64,
        channel: Arc<str>,
        after: Option<u64>,
        epoch: Option<Box<str>>,
        limit: usize,
        /// Whose turn it takes; None: the process's own.
        user: Option<Arc<str>>,
    },
    /// Ask who is subscribed to a channel.
    Members { ticket: u64, channel: Arc<str> },
    /// Credits come back.
    Done { conn: ConnId, count: u16 },
}

/// How an upgrade is refused.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Box<str>,
    /// The close code where `realtime.v1` was offered; None is the one that stands for the status.
    pub close: Option<u16>,
    /// Milliseconds after which the client may come back: the reason of a close with 4005.
    pub wait_ms: Option<u64>,
}

impl Rejection {
    /// The refusal of whoever has not said who it is.
    pub(crate) fn unauthorized() -> Self {
        Self::of(HttpError::UNAUTHORIZED)
    }

    pub(crate) fn of(error: HttpError) -> Self {
        Self { status: error.status, body: error.body.into(), close: None, wait_ms: None }
    }
}

/// Whom Python has found somebody to be.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The user's id.
    pub user: Arc<str>,
    /// JSON of rights by pattern; None leaves what is open.
    pub grants: Option<Box<[u8]>>,
    /// When the session ends, Unix ms.
    pub expires_at_ms: Option<u64>,
    /// When the token was issued, Unix s.
    pub issued_at_s: Option<u64>,
    /// The token's `jti`.
    pub token_id: Option<Box<str>>,
}

/// An event of a channel on its way to the log or to the members.
#[derive(Debug)]
pub struct Publish {
    /// Names the outcome where `notify` is set.
    pub ticket: u64,
    /// Where to.
    pub channel: Arc<str>,
    /// The event's `type`.
    pub event: Arc<str>,
    /// JSON of its data.
    pub data: Box<[u8]>,
    /// Its `userId`.
    pub user: Option<Arc<str>>,
    /// Class `latest` under this key.
    pub key: Option<Arc<str>>,
    /// Durable: stored once per (channel, user, dedupe).
    pub dedupe: Option<Box<str>>,
    /// Durable: the offset becomes the member `number` of the data.
    pub number: bool,
    /// Its `requestId`.
    pub request: Option<Box<str>>,
    /// Durable: it is about an earlier event.
    pub amends: Option<Amendment>,
    /// Durable: [`crate::Event::Published`] follows.
    pub notify: bool,
    /// Answer this command with `ack` or `error` from the outcome.
    pub reply: Option<Reply>,
}

/// What a durable event does to an earlier one of its channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amendment {
    /// The earlier one's place.
    pub offset: u64,
    /// JSON that the data of the earlier one becomes; None leaves it.
    pub replacement: Option<Box<[u8]>>,
    /// Whether the data of all that amended it before becomes this event's.
    pub erases: bool,
}

/// What a publish on its way to the log is taken to cost beside its texts: itself, its place in the queue, and what an
/// allocator adds to ten texts.
const PUBLISH_BYTES: usize = 512;

impl Publish {
    /// What it holds while it waits for the log.
    pub(crate) fn cost(&self) -> usize {
        let len = |text: Option<usize>| text.unwrap_or(0);
        let reply = self.reply.as_ref();
        PUBLISH_BYTES
            + self.bytes()
            + self.channel.len()
            + self.event.len()
            + len(self.user.as_ref().map(|user| 2 * user.len()))
            + len(self.key.as_ref().map(|key| key.len()))
            + len(self.dedupe.as_ref().map(|key| key.len()))
            + len(self.request.as_ref().map(|request| request.len()))
            + len(reply.and_then(|reply| reply.id.as_ref()).map(|id| id.len()))
            + len(reply.and_then(|reply| reply.failure.as_ref()).map(|failure| failure.len()))
    }

    /// Bytes of JSON that it brings.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let replacement = self.amends.as_ref().and_then(|amends| amends.replacement.as_deref());
        self.data.len() + replacement.map_or(0, <[u8]>::len)
    }
}

/// Where the answer to a command goes; it carries one credit back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Whose command it was.
    pub conn: ConnId,
    /// The raw JSON of its id; without one nothing is sent on success.
    pub id: Option<Box<[u8]>>,
    /// The message of an `error`, where the command has one of its own (`Failed to send message`).
    pub failure: Option<Box<str>>,
    /// Credits that come back.
    pub credit: Option<Credit>,
}
