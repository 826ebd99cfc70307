//! Serves what the hub asks of the log: appends in one commit, then each published and acknowledged in log order.
//!
//! Requests are served in the order they were asked, consecutive appends together. Nothing is published that is not
//! committed, and a commit that fails refuses its own events only: the next goes on. It has no thread and no queue;
//! [`LogThread`](crate::log_thread) and the virtual engine call it.

use crate::log_chores::Chores;
use crate::log_health::LogHealth;
use realtime_hub::{
    AppendError, AppendedEvent, Bounds, Event, Hub, LogFailure, LogPage, LogRequest, Now, Publish, StoredEvent,
    TermStarts,
};
use realtime_log::{Amends, Append, Appended, Log, Page, Stored};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Events of one commit: enough to share the disk's answer, few enough that the first does not wait for the last.
const APPENDS_MAX: usize = 512;
/// Bytes of one commit, so that large events do not hold up small ones for long.
const APPEND_BYTES_MAX: usize = 8 << 20;

/// The log and whom its answers go to.
pub(crate) struct LogWorker {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    health: Arc<LogHealth>,
    pub(crate) chores: Chores,
}

impl LogWorker {
    pub(crate) fn new(log: Log, hub: Arc<Hub>, health: Arc<LogHealth>) -> Self {
        Self { log, hub, health, chores: Chores::default() }
    }

    /// Serves one read, or as many appends as stand together at the front; returns how many requests that was.
    ///
    /// `now` is read when the log has answered.
    pub(crate) fn serve_next(
        &mut self,
        waiting: &mut VecDeque<LogRequest>,
        now: impl FnOnce() -> Now,
        events: &mut Vec<Event>,
    ) -> usize {
        match waiting.pop_front() {
            None => 0,
            Some(LogRequest::Append { publish, received_wall_ms }) => {
                let mut group = vec![(publish, received_wall_ms)];
                take_appends(waiting, &mut group);
                let count = group.len();
                self.append(group, now, events);
                count
            }
            Some(LogRequest::Head { channel }) => {
                let outcome = self.bounds(channel.name()).map_err(|error| self.failure(&error));
                self.hub.head_read(&channel, outcome, now(), events);
                1
            }
            Some(LogRequest::Page { channel, after, limit, bytes_max, purpose }) => {
                let outcome = self.log.page(channel.name(), after, limit, bytes_max);
                let outcome = outcome.map(hub_page).map_err(|error| self.failure(&error));
                self.hub.page_read(&channel, purpose, outcome, now(), events);
                1
            }
        }
    }

    fn bounds(&mut self, channel: &str) -> Result<Bounds, realtime_log::Error> {
        let realtime_log::TermStarts { firsts, oldest } = self.log.term_starts(channel)?;
        let starts = TermStarts { firsts, oldest };
        Ok(Bounds { head: self.log.head(channel)?, tail: self.log.tail(channel)?, starts })
    }

    fn append(&mut self, group: Vec<(Publish, u64)>, now: impl FnOnce() -> Now, events: &mut Vec<Event>) {
        let batch: Vec<Append<'_>> = group.iter().map(|(publish, time_ms)| log_append(publish, *time_ms)).collect();
        let started = Instant::now();
        match self.log.append(&batch) {
            Ok(appended) => {
                drop(batch);
                let counters = self.hub.counters();
                counters.log_commits.fetch_add(1, Ordering::Relaxed);
                counters.log_commit_s.observe(started.elapsed().as_micros() as u64, 1);
                counters.log_batch.observe(group.len() as u64, 1);
                let now = now();
                if appended.iter().any(|one| !one.amended.is_empty()) {
                    self.chores.must_forget(now.mono_ms);
                }
                for ((publish, time_ms), appended) in group.into_iter().zip(appended) {
                    let outcome = hub_appended(&publish, time_ms, appended);
                    self.hub.appended(publish, outcome, now, events);
                }
            }
            Err(error) => {
                drop(batch);
                let failure = self.failure(&error);
                let now = now();
                for (publish, _) in group {
                    self.hub.appended(publish, Err(AppendError::Log(failure.clone())), now, events);
                }
            }
        }
    }

    pub(crate) fn failure(&self, error: &realtime_log::Error) -> LogFailure {
        self.health.failed(error.to_string());
        LogFailure(error.to_string().into())
    }
}

fn take_appends(waiting: &mut VecDeque<LogRequest>, group: &mut Vec<(Publish, u64)>) {
    let mut bytes = group[0].0.bytes();
    while group.len() < APPENDS_MAX {
        match waiting.pop_front() {
            Some(LogRequest::Append { publish, received_wall_ms }) if bytes + publish.bytes() <= APPEND_BYTES_MAX => {
                bytes += publish.bytes();
                group.push((publish, received_wall_ms));
            }
            Some(other) => {
                waiting.push_front(other);
                return;
            }
            None => return,
        }
    }
}

fn log_append(publish: &Publish, time_ms: u64) -> Append<'_> {
    Append {
        channel: &publish.channel,
        event: &publish.event,
        data: &publish.data,
        number_field: publish.number,
        user: publish.user.as_deref(),
        dedupe: publish.dedupe.as_deref(),
        request: publish.request.as_deref(),
        amends: publish.amends.as_ref().map(|amends| Amends {
            offset: amends.offset,
            replacement: amends.replacement.as_deref(),
            erases: amends.erases,
        }),
        time_ms,
    }
}

fn hub_appended(publish: &Publish, time_ms: u64, appended: Appended) -> Result<AppendedEvent, AppendError> {
    if appended.missing {
        return Err(AppendError::NotFound);
    }
    let duplicate = appended.duplicate;
    let stored = match appended.stored {
        Some(first) => hub_stored(first),
        None => StoredEvent {
            offset: appended.offset,
            event: (*publish.event).into(),
            data: appended.data,
            user: publish.user.as_deref().map(Into::into),
            request: publish.request.clone(),
            time_ms,
        },
    };
    let amended = appended.amended.into_iter().map(hub_stored).collect();
    Ok(AppendedEvent { duplicate, stored, amended })
}

fn hub_page(page: Page) -> LogPage {
    LogPage { events: page.events.into_iter().map(hub_stored).collect(), head: page.head }
}

fn hub_stored(stored: Stored) -> StoredEvent {
    StoredEvent {
        offset: stored.offset,
        event: stored.event,
        data: stored.data,
        user: stored.user,
        request: stored.request,
        time_ms: stored.time_ms,
    }
}
