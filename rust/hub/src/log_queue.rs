//! The hub's side of the log: one queue of requests that are answered in the order they were asked, and pages beside it.
//!
//! Because heads stand in the same queue as appends, a channel's position is what was published and never what was merely
//! stored. A page is read at any time after it was asked, beside appends: it is cut at the head that was published then,
//! and handed over under the channel's lock, where nothing in it has been erased or let go since it was read. The
//! queue's owner answers through [`crate::Hub`]: [`appended`](crate::Hub::appended),
//! [`head_read`](crate::Hub::head_read), [`page_read`](crate::Hub::page_read).

use crate::command::Publish;
use crate::credit::Credit;
use crate::{ConnId, channel::Channel};
use std::sync::Arc;

/// Where the hub leaves what the log has to do. Never blocks.
pub trait LogQueue: Send + Sync {
    /// Puts one request at the end of the queue.
    fn push(&self, request: LogRequest);

    /// Takes a page to be read, in the queue or beside it. Where too many wait it is given back.
    ///
    /// # Errors
    /// The page that nobody will read.
    fn read(&self, page: PageRequest) -> Result<(), PageRequest> {
        self.push(LogRequest::Page(page));
        Ok(())
    }
}

/// One thing for the log.
#[allow(missing_docs, reason = "the variant and the field's name say it")]
#[derive(Debug)]
pub enum LogRequest {
    /// Store an event; `received_wall_ms` becomes its time.
    Append { publish: Publish, received_wall_ms: u64 },
    /// What is the channel's newest offset?
    Head { channel: Arc<Channel> },
    /// Read events of a channel.
    Page(PageRequest),
}

/// A part of a channel's log that somebody wants.
#[derive(Debug)]
pub struct PageRequest {
    /// Which channel.
    pub channel: Arc<Channel>,
    /// Events with an offset above this one.
    pub after: u64,
    /// The newest offset that was published when it was asked; none above it are read.
    pub head: u64,
    /// At most so many.
    pub limit: usize,
    /// At most so many bytes, but the first event whatever its size.
    pub bytes_max: usize,
    /// Who takes turns with whom.
    pub reader: Reader,
    /// Who waits for it.
    pub purpose: PagePurpose,
}

/// Who reads: readers take turns, each page of one is followed by those of the others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reader {
    /// All sessions and requests of a user.
    User(Arc<str>),
    /// A connection of nobody.
    Conn(ConnId),
    /// The process itself.
    Server,
}

/// Who waits for a page.
#[allow(missing_docs, reason = "the variant and the field's name say it")]
#[derive(Debug)]
pub enum PagePurpose {
    /// A member that replays, from `next` on.
    Replay { conn: ConnId, next: u64 },
    /// A client's `history` command, for which `reserved` thousandths of a token were taken.
    History { conn: ConnId, id: Option<Box<[u8]>>, credit: Option<Credit>, reserved: u32 },
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
    /// Where those that had amended the same one before are too many to be named: the newest of them. Read from the log
    /// they have this event's data. Else 0.
    pub erased_up_to: u64,
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

/// Why the log could not do it; the code of the `error` that the client gets is `unavailable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFailure(pub Box<str>);
