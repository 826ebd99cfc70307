//! What the log's thread does about faults: it looks, it probes, and it tells each change once.
//!
//! States: sound, or failing for a reason. A batch, a read, a chore or a look that fails for all channels makes it
//! failing, as does a disk with less room than it has to have; a commit makes it sound, that of a batch or of the probe that the thread makes twice a second meanwhile.
//! While it is failing no append waits for another program's lock. Twice a second the files are looked at as well, so
//! that a file that was taken away is noticed by a server without traffic. Beside that stand channels that fail alone.

use crate::log::worker::LogWorker;
use realtime_hub::{Event, LogFailure};
use realtime_log::Error;
use std::collections::HashSet;
use std::mem;

/// Between two looks at the files, and between two probes of a log that fails.
const LOOK_MS: u64 = 500;
/// What a probe stores and deletes again: as much as the batch that failed, within these bounds.
const PROBE_BYTES_MIN: usize = 4 << 10;
const PROBE_BYTES_MAX: usize = 1 << 20;
/// Names of channels that fail alone: with more the list begins anew, and they are told again.
const CHANNELS_MAX: usize = 1_000;

/// The faults that are known.
#[derive(Debug, Default)]
pub(crate) struct LogFaults {
    failing: Option<Failing>,
    look_ms: u64,
    /// Channels whose events could not be stored.
    unwritable: HashSet<Box<str>>,
    /// Channels of which something could not be read or deleted.
    unreadable: HashSet<Box<str>>,
    lines: Vec<Event>,
}

#[derive(Debug)]
struct Failing {
    reason: String,
    since_ms: u64,
    /// Publishes that were refused meanwhile.
    refused: u64,
    probe_bytes: usize,
}

impl LogFaults {
    /// When the next look or probe is due, in monotonic milliseconds.
    pub(crate) fn look_ms(&self, is_on_disk: bool) -> u64 {
        if is_on_disk || self.failing.is_some() { self.look_ms } else { u64::MAX }
    }

    /// Moves what is to be told to the end of `events`.
    pub(crate) fn take_lines(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.lines);
    }

    fn tell(&mut self, line: String) {
        self.lines.push(Event::Warned { message: line.into() });
    }
}

impl LogWorker {
    /// A batch of so many events and bytes was not stored.
    pub(crate) fn batch_failed(&mut self, error: &Error, count: usize, bytes: usize, mono_ms: u64) -> LogFailure {
        self.health.count_failure();
        self.begin_failing(error, mono_ms);
        if let Some(failing) = &mut self.faults.failing {
            failing.refused += count as u64;
            failing.probe_bytes = bytes.clamp(PROBE_BYTES_MIN, PROBE_BYTES_MAX);
        }
        LogFailure(error.to_string().into())
    }

    /// The events of one channel could not be stored, while the log can store others' as far as is known.
    pub(crate) fn channel_failed(&mut self, channel: &str, error: &Error) -> LogFailure {
        self.health.count_failure();
        if insert(&mut self.faults.unwritable, channel) {
            self.faults.tell(format!("channel {channel} cannot be stored, other channels are: {error}"));
        }
        LogFailure(error.to_string().into())
    }

    /// A read or a chore failed; over one channel where it has a name.
    pub(crate) fn work_failed(&mut self, channel: Option<&str>, error: &Error, mono_ms: u64) -> LogFailure {
        self.health.count_failure();
        match channel {
            Some(channel) if error.may_be_one_channels() && !error.is_of_the_disk() => {
                if insert(&mut self.faults.unreadable, channel) {
                    self.faults.tell(format!("channel {channel} cannot be read from the log: {error}"));
                }
            }
            _ => self.begin_failing(error, mono_ms),
        }
        LogFailure(error.to_string().into())
    }

    /// A commit succeeded that holds events of these channels.
    pub(crate) fn committed<'c>(&mut self, channels: impl Iterator<Item = &'c str>, mono_ms: u64) {
        self.end_failing(mono_ms);
        if self.faults.unwritable.is_empty() {
            return;
        }
        for channel in channels {
            if self.faults.unwritable.remove(channel) {
                self.faults.tell(format!("channel {channel} is stored again"));
            }
        }
    }

    /// Looks at the files, or probes a log that fails, where that is due.
    pub(crate) fn look(&mut self, mono_ms: u64) {
        if self.faults.look_ms(self.log.is_on_disk()) > mono_ms {
            return;
        }
        self.faults.look_ms = mono_ms + LOOK_MS;
        let probe_bytes = self.faults.failing.as_ref().map(|failing| failing.probe_bytes);
        let looked = match (self.room.lack(probe_bytes.unwrap_or(0) as u64, self.log.owed_bytes()), probe_bytes) {
            (Some(error), _) => Err(error),
            (None, None) => self.log.look(),
            (None, Some(bytes)) => self.log.probe(bytes),
        };
        match looked {
            Ok(()) => self.end_failing(mono_ms),
            Err(error) => self.begin_failing(&error, mono_ms),
        }
    }

    fn begin_failing(&mut self, error: &Error, mono_ms: u64) {
        let reason = error.reason();
        if self.faults.failing.as_ref().is_some_and(|failing| failing.reason == reason) {
            return;
        }
        self.faults.tell(format!("the log fails, publishes to durable channels are refused: {error}"));
        self.health.set_failing(Some(reason.clone()));
        let before = self.faults.failing.take();
        let (since_ms, refused, probe_bytes) = before
            .map_or((mono_ms, 0, PROBE_BYTES_MIN), |failing| (failing.since_ms, failing.refused, failing.probe_bytes));
        self.faults.failing = Some(Failing { reason, since_ms, refused, probe_bytes });
        self.faults.look_ms = mono_ms + LOOK_MS;
        self.set_patient(false);
    }

    fn end_failing(&mut self, mono_ms: u64) {
        let Some(failing) = self.faults.failing.take() else { return };
        self.health.set_failing(None);
        let seconds = mono_ms.saturating_sub(failing.since_ms) as f64 / 1_000.0;
        self.faults.tell(format!(
            "the log writes again after {seconds:.1} s; {} publishes were refused meanwhile",
            failing.refused
        ));
        self.set_patient(true);
    }

    fn set_patient(&mut self, is_patient: bool) {
        // SQLite only notes a number: a failure would be one of memory, and the log's next answer tells that.
        let _ = self.log.set_patient(is_patient);
    }
}

/// Whether the channel is new to the list.
fn insert(channels: &mut HashSet<Box<str>>, channel: &str) -> bool {
    if channels.contains(channel) {
        return false;
    }
    if channels.len() >= CHANNELS_MAX {
        drop(mem::take(channels));
    }
    channels.insert(channel.into())
}
