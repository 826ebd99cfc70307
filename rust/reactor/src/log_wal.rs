//! The write-ahead log of the log: when it is copied into the database, and when its file is emptied.
//!
//! SQLite writes a page first to the write-ahead log and copies it later. The writer would do that as part of a commit,
//! and everybody would wait for up to 64 MiB and two syncs. So the reading thread copies most of it, beside commits, and
//! the writer the little that came meanwhile, in a moment in which nobody reads: then the file is used from its
//! beginning again, or emptied where something in it was erased. A log in memory has none, and one without a reading
//! thread leaves it to the writer.

use crate::log_worker::LogWorker;

/// Frames (4 KiB) after which it is copied: 40 MiB. SQLite itself would do so at 62 MiB, in a commit.
const FRAMES_MAX: u64 = 10_000;
/// Frames that the writer copies itself, and how often the thread goes on while more came meanwhile.
const REST_FRAMES: u64 = 512;
const ROUNDS_MAX: u32 = 4;
/// Between two looks whether the thread is done.
const LOOK_MS: u64 = 5;
/// Between two times that it is emptied.
const FORGET_MS: u64 = 1_000;
/// How long that waits for an idle moment.
const FORGET_LATE_MS: u64 = 10_000;
/// After a time that failed.
const RETRY_MS: u64 = 10_000;

/// What is to be done about the write-ahead log, and when, in monotonic milliseconds.
#[derive(Debug)]
pub(crate) struct Wal {
    /// When it is to be emptied; None while nothing in it is to be forgotten.
    forget_ms: Option<u64>,
    forgot_ms: u64,
    copying: Option<Copying>,
    /// Frames that were copied.
    copied_frames: u64,
}

/// A copy that the reading thread makes.
#[derive(Debug)]
struct Copying {
    empties: bool,
    /// Frames when it began.
    frames: u64,
    rounds: u32,
    look_ms: u64,
}

impl Default for Wal {
    fn default() -> Self {
        // A process that was killed may have left an erasure half done: there is always one emptying at the start.
        Self { forget_ms: Some(0), forgot_ms: 0, copying: None, copied_frames: 0 }
    }
}

impl Wal {
    /// Something was erased: the write-ahead log holds it still.
    pub(crate) fn must_forget(&mut self, mono_ms: u64) {
        self.forget_ms.get_or_insert_with(|| mono_ms.max(self.forgot_ms + FORGET_MS));
    }

    /// When there is something to do; what grows is looked at behind each commit anyway.
    pub(crate) fn due_ms(&self) -> u64 {
        let copying_ms = self.copying.as_ref().map(|copying| copying.look_ms);
        copying_ms.or(self.forget_ms).unwrap_or(u64::MAX)
    }
}

impl LogWorker {
    /// Does what is due about the write-ahead log. `is_idle` says that nobody waits for the log.
    pub(crate) fn tend_wal(&mut self, mono_ms: u64, is_idle: bool) {
        if let Some(copying) = &mut self.wal.copying {
            if !self.reads.is_settled() {
                copying.look_ms = mono_ms + LOOK_MS;
                return;
            }
            let frames = self.log.wal_frames();
            if frames.saturating_sub(copying.frames) > REST_FRAMES && copying.rounds < ROUNDS_MAX {
                (copying.frames, copying.rounds, copying.look_ms) = (frames, copying.rounds + 1, mono_ms + LOOK_MS);
                self.reads.settle();
                return;
            }
            let empties = copying.empties;
            self.wal.copying = None;
            self.wal.copied_frames = frames;
            return if empties { self.forget(mono_ms) } else { self.begin_anew(mono_ms) };
        }
        let late_ms = if is_idle { 0 } else { FORGET_LATE_MS };
        let forgets = self.wal.forget_ms.is_some_and(|due_ms| due_ms + late_ms <= mono_ms);
        if forgets && !self.reads.serves() {
            return self.forget(mono_ms);
        }
        let frames = self.log.wal_frames();
        // Fewer than before: it was begun anew.
        self.wal.copied_frames = if frames < self.wal.copied_frames { 0 } else { self.wal.copied_frames };
        let is_long = frames - self.wal.copied_frames >= FRAMES_MAX && self.reads.serves();
        if forgets || is_long {
            self.wal.copying = Some(Copying { empties: forgets, frames, rounds: 1, look_ms: mono_ms + LOOK_MS });
            self.reads.settle();
        }
    }

    fn forget(&mut self, mono_ms: u64) {
        self.wal.forgot_ms = mono_ms;
        let log = &mut self.log;
        let reads = &self.reads;
        let forgotten = if reads.serves() { reads.stand(|| log.forget()) } else { Some(log.forget()) };
        self.wal.forget_ms = match forgotten {
            Some(Ok(true)) => None,
            // A page that takes long.
            None => Some(mono_ms + FORGET_MS),
            // Another program reads the file, a backup for example: it must end some time.
            Some(Ok(false)) => Some(mono_ms + RETRY_MS),
            Some(Err(error)) => {
                self.work_failed(None, &error, mono_ms);
                Some(mono_ms + RETRY_MS)
            }
        };
    }

    fn begin_anew(&mut self, mono_ms: u64) {
        let log = &mut self.log;
        // Where a page takes long, the next commits find the rest.
        if let Some(Err(error)) = self.reads.stand(|| log.settle()) {
            self.work_failed(None, &error, mono_ms);
        }
    }
}
