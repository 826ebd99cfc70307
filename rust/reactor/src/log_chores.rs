//! What the log's thread does between requests: retention, making the files forget, and looking after them.
//!
//! One slice at a time, and at most a fifth of the thread's time: an append waits for one slice, some milliseconds, and
//! never for a pass. A pass over all channels begins with the start and again a minute after the last has ended. What
//! was erased or let go stays in the write-ahead log until that is emptied: in the first idle moment, not more often
//! than once a second, and after ten seconds also when the log is never idle.

use crate::log_worker::LogWorker;
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
/// Between two parts of the channels in memory.
const AGE_MS: u64 = 1_000;
/// Between two times that the write-ahead log is emptied.
const FORGET_MS: u64 = 1_000;
/// How long that waits for an idle moment.
const FORGET_LATE_MS: u64 = 10_000;
/// How long a log without chores sleeps.
const IDLE_MS: u64 = 3_600_000;

/// When which chore is due, in monotonic milliseconds.
#[derive(Debug)]
pub(crate) struct Chores {
    /// Where the pass goes on.
    after: i64,
    sweep_ms: u64,
    age_ms: u64,
    /// None while nothing is to be forgotten.
    forget_ms: Option<u64>,
    forgot_ms: u64,
    /// The two clocks as they were at the first chore.
    start: Option<Now>,
}

impl Default for Chores {
    fn default() -> Self {
        // A process that was killed may have left an erasure half done: there is always one emptying at the start.
        Self { after: 0, sweep_ms: 0, age_ms: 0, forget_ms: Some(0), forgot_ms: 0, start: None }
    }
}

impl Chores {
    /// Something was erased: the write-ahead log holds it still.
    pub(crate) fn must_forget(&mut self, mono_ms: u64) {
        self.forget_ms.get_or_insert_with(|| mono_ms.max(self.forgot_ms + FORGET_MS));
    }

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
        let Chores { sweep_ms, age_ms, forget_ms, .. } = self.chores;
        let sweep_ms = if self.hub.forgets() { sweep_ms } else { u64::MAX };
        let age_ms = if self.hub.ages() { age_ms } else { u64::MAX };
        let look_ms = self.faults.look_ms(self.log.is_on_disk());
        let due_ms = sweep_ms.min(age_ms).min(look_ms).min(forget_ms.unwrap_or(u64::MAX));
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
        let late_ms = if is_idle { 0 } else { FORGET_LATE_MS };
        if self.chores.forget_ms.is_some_and(|due_ms| due_ms + late_ms <= started.mono_ms) {
            self.forget(started.mono_ms);
        }
        if self.hub.ages() && self.chores.age_ms <= started.mono_ms {
            self.chores.age_ms = started.mono_ms + AGE_MS;
            self.hub.age(started);
        }
        if !self.hub.forgets() || self.chores.sweep_ms > started.mono_ms {
            return false;
        }
        let has_swept = self.sweep(started);
        let ended_ms = now().mono_ms;
        let pause_ms = (PAUSE * (ended_ms - started.mono_ms)).max(PAUSE_MS);
        self.chores.sweep_ms = self.chores.sweep_ms.max(ended_ms + pause_ms);
        has_swept
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
                    self.chores.must_forget(now.mono_ms);
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

    fn forget(&mut self, mono_ms: u64) {
        self.chores.forgot_ms = mono_ms;
        self.chores.forget_ms = match self.log.forget() {
            Ok(true) => None,
            // Somebody reads the file, a backup for example: it must end some time.
            Ok(false) => Some(mono_ms + RETRY_MS),
            Err(error) => {
                self.work_failed(None, &error, mono_ms);
                Some(mono_ms + RETRY_MS)
            }
        };
    }
}
