//! Durable channels: a log on SQLite.
//!
//! Duty: number the publications of a channel 1, 2, 3, …, store them so that what was answered survives a power
//! cut, answer a repeated command with its first result, and read heads and pages back. Storage only: synchronous,
//! no threads, no sockets, nothing about sessions. The reactor's log thread owns the one [`Log`] of a process and
//! is its only caller; another one owns the [`Reader`] beside it.
//!
//! Invariants:
//! - an event that [`Log::append`] returned is on the disk (write-ahead log, `synchronous=FULL`);
//! - offsets of a channel are consecutive and never used twice in this file; what a copy of it numbers goes by another
//!   term, since every start begins one;
//! - an event changes in one way alone, its payload by an event that amends it, and goes in one way alone, by age or
//!   count from the oldest on; what it was is then overwritten in the file too;
//! - a batch is stored whole or not at all, and a failed one leaves the log usable; what each channel's part of it can
//!   alone is asked by [`Log::append_apart`];
//! - what is answered was committed to the files that a restart will find;
//! - what is remembered in memory is never ahead of what is stored.

mod apart;
mod append;
mod backup;
mod dedupe;
mod erasure;
mod error;
mod event;
mod files;
mod heads;
mod lock;
mod log;
mod open;
mod reader;
mod schema;
mod stored;
mod sweep;
mod terms;

pub use backup::{Copied, backup, restore};
pub use erasure::Slice;
pub use error::{Error, Gone};
pub use event::{Amends, Append, Appended, Keep, Page, Stored, Swept};
pub use lock::{LOCK_NAME, LOCK_SOCKET};
pub use log::Log;
pub use open::{DATABASE_NAME, Options};
pub use reader::Reader;
pub use stored::{StoredPage, stored};
pub use terms::{Term, TermStarts};
