//! The hub's side of the log: one queue of requests, answered in the order they were asked.
//!
//! Because heads and pages stand in the same queue as appends, a channel's position is what was published and
//! never what was merely stored. The queue's owner answers each request through [`crate::Hub`]:
//! [`appended`](crate::Hub::appended), [`head_read`](crate::Hub::head_read), [`page_read`](crate::Hub::page_read).

use crate::command::Publish;
use crate::{ConnId, channel::Channel};
use std::sync::Arc;

/// Where the hub leaves what the log has to do. Never blocks.
pub trait LogQueue: Send + Sync {
    /// Puts one request at the end of the queue.
    fn push(&self, request: LogRequest);
}

/// One thing for the log.
#[allow(missing_docs, reason = "the variant and the field's name say it")]
#[derive(Debug)]
pub enum LogRequest {
    /// Store an event; `received_wall_ms` becomes its time.
    Append { publish: Publish, received_wall_ms: u64 },
    /// What is the channel's newest offset?
    Head { channel: Arc<Channel> },
    /// Read events with an offset above `after`.
    Page { channel: Arc<Channel>, after: u64, limit: usize, bytes_max: usize, purpose: PagePurpose },
}

/// Who waits for a page.
#[allow(missing_docs, reason = "the variant and the field's name say it")]
#[derive(Debug)]
pub enum PagePurpose {
    /// A member that replays, from `next` on.
    Replay { conn: ConnId, next: u64 },
    /// A client's `history` command, for which `reserved` thousandths of a token were taken.
    History { conn: ConnId, id: Option<Box<[u8]>>, credits: u16, reserved: u32 },
    /// Python's.
    Python { ticket: u64 },
}

/// An event as the log keeps it.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Its place in the channel's log.
    pub offset: u64,
    /// Its `type`.
    pub event: Box<str>,
    /// JSON of its data, with its number where it has one.
    pub data: Arc<[u8]>,
    /// Its `userId`.
    pub user: Option<Box<str>>,
    /// Its `requestId`.
    pub request: Option<Box<str>>,
    /// When it was received, Unix ms.
    pub time_ms: u64,
}

/// What became of an append.
#[derive(Debug, Clone)]
pub struct AppendedEvent {
    /// Whether an earlier event had the same dedupe key; `stored` is then that one.
    pub duplicate: bool,
    /// The event as stored.
    pub stored: StoredEvent,
    /// Earlier events of the channel whose data it has changed, as they are stored now.
    pub amended: Vec<StoredEvent>,
}

/// Why an append was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendError {
    /// It amends an event that was never there, or is kept no longer; the code is `not_found`.
    NotFound,
    /// The log could not do it.
    Log(LogFailure),
}

/// The terms in which something was appended to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TermStarts {
    /// Number of the term and the channel's first offset in it, both rising.
    pub firsts: Vec<(u64, u64)>,
    /// Positions of terms before this one cannot be judged any more; 0 while all can.
    pub oldest: u64,
}

/// What of a channel's log is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// The newest offset.
    pub head: u64,
    /// The newest offset that is kept no longer, 0 while all are.
    pub tail: u64,
    /// Its terms.
    pub starts: TermStarts,
}

/// A part of a channel's log.
#[derive(Debug, Clone)]
pub struct LogPage {
    /// Oldest first, offsets rising by one.
    pub events: Vec<StoredEvent>,
    /// The newest offset of the channel.
    pub head: u64,
}

/// Why the log could not do it; the code of the `error` that the client gets is `unavailable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFailure(pub Box<str>);
