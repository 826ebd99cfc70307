//! What the log's thread does between requests: retention, erasure, making the files forget, and looking after them.
//!
//! One slice at a time, and at most a fifth of the thread's time (of erasure half of it while nobody waits): an append
//! waits for one slice, some milliseconds, and never for a pass. A pass over all channels begins with the start and again a minute after the last has ended. What
//! was erased or let go stays in the write-ahead log until that is emptied ([`crate::log::wal`]): in the first idle moment,
//! not more often than once a second, and after ten seconds also when the log is never idle.

use crate::log::worker::LogWorker;
use realtime_hub::{Event, Now};
use realtime_log::Keep;
use std::time::Duration;

/// From the end of one pass to the beginning of the next.
const PASS_MS: u64 = 60_000;
/// After a chore that failed.
const RETRY_MS: u64 = 10_000;
/// Pause after a slice, in times of what it took, and the least.
const PAUSE: u64 = 4;
const PAUSE_MS: u64 = 5;
/// Pause after a slice of an erasure while nobody waits for the log.
const IDLE_PAUSE: u64 = 1;
/// Between two parts of the channels in memory.
const AGE_MS: u64 = 1_000;
/// How long a log without chores sleeps.
const IDLE_MS: u64 = 3_600_000;

/// When which chore is due, in monotonic milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    /// Where the pass goes on.
    after: i64,
    sweep_ms: u64,
    erase_ms: u64,
    age_ms: u64,
    /// The two clocks as they were at the first chore.
    start: Option<Now>,
}

impl Chores {
    /// The wall clock for the age of events. A jump of the clock while we run lets nothing go too early: forward, it is
    /// not believed; back, it is what new events are stamped with.
    fn age_clock_ms(&mut self, now: Now) -> u64 {
        let start = *self.start.get_or_insert(now);
        now.wall_ms.min(start.wall_ms + now.mono_ms.saturating_sub(start.mono_ms))
    }
}

impl LogWorker {
    /// How long until a chore is due.
    pub(crate) fn chore_in(&self, now: Now) -> Duration {
        let Chores { sweep_ms, erase_ms, age_ms, .. } = self.chores;
        let erase_ms = if self.log.is_erasing() { erase_ms } else { u64::MAX };
        let sweep_ms = if self.hub.has_retention() { sweep_ms } else { u64::MAX };
        let age_ms = if self.hub.ages() { age_ms } else { u64::MAX };
        let look_ms = self.faults.look_ms(self.log.is_on_disk());
        let due_ms = sweep_ms.min(erase_ms).min(age_ms).min(look_ms).min(self.wal.due_ms());
        Duration::from_millis(due_ms.saturating_sub(now.mono_ms).min(IDLE_MS))
    }

    /// Does a slice of what is due; true if events are gone by it. `is_idle` says that nobody waits for the log.
    pub(crate) fn do_chore(&mut self, now: impl Fn() -> Now, is_idle: bool, events: &mut Vec<Event>) -> bool {
        let has_swept = self.do_due(now, is_idle);
        self.faults.take_lines(events);
        has_swept
    }

    fn do_due(&mut self, now: impl Fn() -> Now, is_idle: bool) -> bool {
        let started = now();
        self.look(started.mono_ms);
        self.tend_wal(started.mono_ms, is_idle);
        if self.hub.ages() && self.chores.age_ms <= started.mono_ms {
            self.chores.age_ms = started.mono_ms + AGE_MS;
            self.hub.age(started);
        }
        // What they write goes to the write-ahead log first.
        if !self.room.fits(self.log.owed_bytes()) {
            let Chores { sweep_ms, erase_ms, .. } = &mut self.chores;
            *sweep_ms = (*sweep_ms).max(started.mono_ms + RETRY_MS);
            *erase_ms = (*erase_ms).max(started.mono_ms + RETRY_MS);
            return false;
        }
        if self.log.is_erasing() && self.chores.erase_ms <= started.mono_ms {
            self.erase(started.mono_ms);
            let ended_ms = now().mono_ms;
            let pause = if is_idle { IDLE_PAUSE } else { PAUSE };
            let pause_ms = (pause * (ended_ms - started.mono_ms)).max(PAUSE_MS);
            self.chores.erase_ms = self.chores.erase_ms.max(ended_ms + pause_ms);
            return false;
        }
        if !self.hub.has_retention() || self.chores.sweep_ms > started.mono_ms {
            return false;
        }
        let has_swept = self.sweep(started);
        let ended_ms = now().mono_ms;
        let pause_ms = (PAUSE * (ended_ms - started.mono_ms)).max(PAUSE_MS);
        self.chores.sweep_ms = self.chores.sweep_ms.max(ended_ms + pause_ms);
        has_swept
    }

    fn erase(&mut self, mono_ms: u64) {
        match self.log.erase() {
            Ok(slice) if slice.events > 0 => self.wal.must_forget(mono_ms),
            Ok(_) => {}
            Err(error) => {
                self.work_failed(None, &error, mono_ms);
                self.chores.erase_ms = mono_ms + RETRY_MS;
            }
        }
    }

    fn sweep(&mut self, now: Now) -> bool {
        let wall_ms = self.chores.age_clock_ms(now);
        let hub = &self.hub;
        let keep = |channel: &str| {
            let keep = hub.keep_of(channel)?;
            Some(Keep { since_ms: keep.s.map(|s| wall_ms.saturating_sub(s * 1_000)), events: keep.events })
        };
        let swept = self.log.sweep(self.chores.after, wall_ms, keep);
        let swept = swept.and_then(|swept| Ok((swept, self.log.expire_keys(wall_ms)?)));
        match swept {
            Ok((swept, has_more)) => {
                self.chores.after = swept.next.unwrap_or(0);
                for (channel, error) in &swept.failed {
                    self.work_failed(Some(channel), error, now.mono_ms);
                }
                if swept.next.is_none() && !has_more {
                    self.chores.sweep_ms = now.mono_ms + PASS_MS;
                }
                for (channel, tail) in &swept.tails {
                    self.hub.swept(channel, *tail);
                }
                if !swept.tails.is_empty() {
                    self.wal.must_forget(now.mono_ms);
                }
                !swept.tails.is_empty()
            }
            Err(error) => {
                self.work_failed(None, &error, now.mono_ms);
                self.chores.sweep_ms = now.mono_ms + RETRY_MS;
                false
            }
        }
    }
}
