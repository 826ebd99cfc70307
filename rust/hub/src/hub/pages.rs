//! Pages of the log: asked under a channel's lock, read beside appends, handed over under the lock again.
//!
//! A page may be read in the moment before an event of it is erased and handed over after it. So whoever reads takes the
//! channel's number of changes first ([`Hub::changes`]); where it is another one at the hand-over, or the log has let go
//! of a part of the page, it is read again. A channel stays in the directory while somebody reads of it, so that every
//! change is seen there.

use super::history::Answer;
use super::publishing::publication_for_one;
use super::{BUSY_READING, Hub, UNREADABLE};
use crate::Now;
use crate::channel::{Channel, HistoryFor, State};
use crate::counters::{add, sub};
use crate::event::Event;
use crate::inbox::ShardMsg;
use crate::log_queue::{LogFailure, PagePurpose, PageRequest, StoredEvent};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How a page was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// In the order of appends: everything that was committed is published.
    InOrder,
    /// Beside appends, when this was the channel's number of changes.
    Beside {
        /// See [`Hub::changes`].
        changes: u64,
    },
}

impl Hub {
    /// Asks for a page; where nobody will read it, the caller answers.
    pub(super) fn read_locked(&self, state: &mut State, page: PageRequest) -> Result<(), PageRequest> {
        let is_full = self.counters.reads_waiting.load(Ordering::Relaxed) >= self.rules.limits.reads_waiting_max as u64;
        let read = if is_full { Err(page) } else { self.log.read(page) };
        read.inspect_err(|_| add(&self.counters.reads_refused, 1))?;
        state.reading += 1;
        add(&self.counters.reads_waiting, 1);
        Ok(())
    }

    /// The channel's number of changes: taken before a page of it is read beside appends.
    #[must_use]
    pub fn changes(&self, channel: &Channel) -> u64 {
        channel.lock().changes
    }

    /// A page of a channel's log was read. Returns it where it has to be read once more, since something in it was
    /// erased, changed or let go of meanwhile. `emit` takes what Python hears; it is called under the channel's lock.
    #[must_use]
    pub fn page_read(
        &self,
        page: PageRequest,
        read: Read,
        outcome: Result<Vec<StoredEvent>, LogFailure>,
        now: Now,
        mut emit: impl FnMut(Event),
    ) -> Option<PageRequest> {
        let channel = Arc::clone(&page.channel);
        let first = outcome.as_ref().ok().and_then(|events| Some(events.first()?.offset));
        let may_be_stale = outcome.is_ok();
        let bytes = outcome.as_ref().map_or(0, |events| events.iter().map(|event| event.data.len()).sum());
        // Made before the lock is taken: it is as long as a page.
        let answer = self.page_answer(&page, outcome, now);
        let mut state = channel.lock();
        if let Read::Beside { changes } = read
            && may_be_stale
            && (changes != state.changes || first.is_some_and(|first| first <= state.tail))
        {
            return Some(page);
        }
        state.reading -= 1;
        sub(&self.counters.reads_waiting, 1);
        add(&self.counters.reads, 1);
        add(&self.counters.read_bytes, bytes as u64);
        match answer {
            PageAnswer::Replay(message) => self.to_replaying(&page, message),
            PageAnswer::History(answer) => self.give_history(answer.with_credit_of(page.purpose), &mut emit),
        }
        drop(state);
        self.remove_idle(&channel);
        None
    }

    /// Refuses a `history` for whose page there is no room.
    pub(super) fn refuse_read(&self, page: PageRequest, now: Now, events: &mut Vec<Event>) {
        let channel = Arc::clone(&page.channel);
        if let Some(who) = history_for(page.purpose) {
            self.fail_history(channel.name(), who, BUSY_READING, now, events);
        }
    }

    fn page_answer(&self, page: &PageRequest, outcome: Result<Vec<StoredEvent>, LogFailure>, now: Now) -> PageAnswer {
        let channel = &page.channel;
        let who = match &page.purpose {
            PagePurpose::Replay { conn, next } => {
                let events = outcome.ok();
                let events = events.map(|all| all.iter().map(|stored| publication_for_one(channel, stored)).collect());
                let (conn, channel, next) = (*conn, Arc::clone(channel), *next);
                return PageAnswer::Replay(ShardMsg::Page { conn, channel, next, events });
            }
            // The credit stays with the page, which may have to be read once more.
            PagePurpose::History { conn, id, reserved, .. } => {
                HistoryFor::Client { conn: *conn, id: id.clone(), credit: None, reserved: *reserved }
            }
            PagePurpose::Python { ticket } => HistoryFor::Python { ticket: *ticket },
        };
        PageAnswer::History(match outcome {
            Ok(events) => {
                let found: Vec<_> = events.iter().map(|stored| publication_for_one(channel, stored)).collect();
                self.history_answer(channel, (page.head, self.terms.epoch()), who, &found, now)
            }
            Err(_) => self.history_failure(channel.name(), who, UNREADABLE, now),
        })
    }

    fn to_replaying(&self, page: &PageRequest, message: ShardMsg) {
        if let PagePurpose::Replay { conn, .. } = page.purpose {
            self.to(conn, message);
        }
    }
}

enum PageAnswer {
    Replay(ShardMsg),
    History(Answer),
}

fn history_for(purpose: PagePurpose) -> Option<HistoryFor> {
    match purpose {
        PagePurpose::Replay { .. } => None,
        PagePurpose::History { conn, id, credit, reserved } => Some(HistoryFor::Client { conn, id, credit, reserved }),
        PagePurpose::Python { ticket } => Some(HistoryFor::Python { ticket }),
    }
}
