//! Serves what the hub asks of the log: appends in one commit, then each published and acknowledged in log order.
//!
//! Requests are served in the order they were asked, consecutive appends together. Nothing is published that is not
//! committed, and a commit that fails refuses its own events only: the next goes on. Where one channel may be the cause
//! each channel's events are tried by themselves. Pages come here that nobody reads beside ([`crate::log::reads`]). It has no thread and no queue;
//! [`LogThread`](crate::log::thread) and the virtual engine call it.

use crate::log::chores::Chores;
use crate::log::disk_room::DiskRoom;
use crate::log::faults::LogFaults;
use crate::log::health::LogHealth;
use crate::log::reads::LogReads;
use crate::log::wal::Wal;
use realtime_hub::{
    AppendError, AppendedEvent, Bounds, Event, Hub, LogFailure, LogRequest, Now, Publish, Read, StoredEvent, TermStarts,
};
use realtime_log::{Amends, Append, Appended, Error, Log, Stored};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Events of one commit: enough to share the disk's answer, few enough that the first does not wait for the last.
const APPENDS_MAX: usize = 512;
/// Bytes of one commit, so that large events do not hold up small ones for long.
const APPEND_BYTES_MAX: usize = 8 << 20;
/// What an event takes on the disk beside its payload, about.
const EVENT_BYTES: usize = 256;
/// What a commit writes for each of its channels beside that: pages of the events, of the indexes and of the heads.
const CHANNEL_BYTES: usize = 5 * 4_096;

/// The log and whom its answers go to.
pub(crate) struct LogWorker {
    pub(crate) log: Log,
    pub(crate) hub: Arc<Hub>,
    pub(crate) health: Arc<LogHealth>,
    pub(crate) faults: LogFaults,
    pub(crate) chores: Chores,
    pub(crate) wal: Wal,
    pub(crate) room: DiskRoom,
    pub(crate) reads: Arc<LogReads>,
}

impl LogWorker {
    pub(crate) fn new(log: Log, hub: Arc<Hub>, health: Arc<LogHealth>, reads: Arc<LogReads>, room: DiskRoom) -> Self {
        let (faults, chores, wal) = (LogFaults::default(), Chores::default(), Wal::default());
        Self { log, hub, health, faults, chores, wal, room, reads }
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
                let outcome = self.bounds(channel.name());
                let now = now();
                let outcome = outcome.map_err(|error| self.work_failed(Some(channel.name()), &error, now.mono_ms));
                self.hub.head_read(&channel, outcome, now, events);
                self.faults.take_lines(events);
                1
            }
            Some(LogRequest::Page(page)) => {
                let channel = Arc::clone(&page.channel);
                let outcome = self.log.page(channel.name(), page.after, page.limit, page.bytes_max);
                let now = now();
                let is_asked = |stored: &StoredEvent| stored.offset <= page.head;
                let outcome = outcome
                    .map(|found| found.events.into_iter().map(hub_stored).take_while(is_asked).collect())
                    .map_err(|error| self.work_failed(Some(channel.name()), &error, now.mono_ms));
                let again = self.hub.page_read(page, Read::InOrder, outcome, now, |event| events.push(event));
                debug_assert!(again.is_none(), "nothing comes between");
                self.faults.take_lines(events);
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
        let bytes: usize = group.iter().map(|(publish, _)| publish.bytes() + EVENT_BYTES).sum();
        let channels: HashSet<&str> = group.iter().map(|(publish, _)| &*publish.channel).collect();
        let bytes = bytes + channels.len() * CHANNEL_BYTES;
        let stored = match self.lack(bytes as u64) {
            None => self.log.append(&batch),
            Some(error) => Err(error),
        };
        match stored {
            Ok(appended) => {
                drop(batch);
                let counters = self.hub.counters();
                counters.log_commits.fetch_add(1, Ordering::Relaxed);
                counters.log_commit_s.observe(started.elapsed().as_micros() as u64, 1);
                counters.log_batch.observe(group.len() as u64, 1);
                let now = now();
                self.committed(group.iter().map(|(publish, _)| &*publish.channel), now.mono_ms);
                if appended.iter().any(|one| !one.amended.is_empty()) {
                    self.wal.must_forget(now.mono_ms);
                }
                for ((publish, time_ms), appended) in group.into_iter().zip(appended) {
                    let outcome = hub_appended(&publish, time_ms, appended);
                    self.hub.appended(publish, outcome, now, events);
                }
            }
            Err(error) if error.may_be_one_channels() => {
                let answers = self.log.append_apart(&batch);
                drop(batch);
                self.answer_apart(group, answers, now(), events);
            }
            Err(error) => {
                drop(batch);
                let now = now();
                let bytes = group.iter().map(|(publish, _)| publish.bytes()).sum();
                let failure = self.batch_failed(&error, group.len(), bytes, now.mono_ms);
                for (publish, _) in group {
                    self.hub.appended(publish, Err(AppendError::Log(failure.clone())), now, events);
                }
            }
        }
        self.faults.take_lines(events);
    }

    /// Publishes what was stored of a batch that failed as a whole, and refuses the rest, in the order of the batch.
    fn answer_apart(
        &mut self,
        group: Vec<(Publish, u64)>,
        answers: Vec<Result<Appended, Arc<Error>>>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        let stored: HashSet<Arc<str>> = group
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| answer.is_ok())
            .map(|((publish, _), _)| Arc::clone(&publish.channel))
            .collect();
        if !stored.is_empty() {
            self.hub.counters().log_commits.fetch_add(1, Ordering::Relaxed);
            self.committed(stored.iter().map(|channel| &**channel), now.mono_ms);
        }
        let mut failures: HashMap<Arc<str>, LogFailure> = HashMap::new();
        for ((publish, time_ms), answer) in group.into_iter().zip(answers) {
            let outcome = match answer {
                Ok(appended) => hub_appended(&publish, time_ms, appended),
                Err(error) => {
                    let is_alone = error.may_be_one_channels() && (!stored.is_empty() || !error.is_of_the_disk());
                    let failure = failures.entry(Arc::clone(&publish.channel)).or_insert_with(|| {
                        if is_alone {
                            self.channel_failed(&publish.channel, &error)
                        } else {
                            self.batch_failed(&error, 1, publish.bytes(), now.mono_ms)
                        }
                    });
                    Err(AppendError::Log(failure.clone()))
                }
            };
            if outcome.as_ref().is_ok_and(|appended| !appended.amended.is_empty()) {
                self.wal.must_forget(now.mono_ms);
            }
            self.hub.appended(publish, outcome, now, events);
        }
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
    Ok(AppendedEvent { duplicate, stored, amended, erased_up_to: appended.erased_up_to })
}

pub(crate) fn hub_stored(stored: Stored) -> StoredEvent {
    StoredEvent {
        offset: stored.offset,
        event: stored.event,
        data: stored.data,
        user: stored.user,
        request: stored.request,
        time_ms: stored.time_ms,
    }
}
