//! The write-ahead log of the log: when it is copied into the database, and when its file is emptied.
//!
//! SQLite writes a page first to the write-ahead log and copies it later. The writer would do that as part of a commit,
//! and everybody would wait for up to 64 MiB and two syncs. So the reading thread copies most of it, beside commits, and
//! the writer the little that came meanwhile, in a moment in which nobody reads: then the file is used from its
//! beginning again, or emptied where something in it was erased, or where the disk has little room ([`crate::log::disk_room`]).
//! Nothing is copied that the disk has no room for. A log in memory has none, and one without a reading
//! thread leaves it to the writer.

use crate::log::worker::LogWorker;
use realtime_log::Error;

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
/// From this size on its file is emptied early where the disk is short of room.
const SHORT_BYTES: u64 = 1 << 20;
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
        let (wal_bytes, owed_bytes) = (self.log.wal_bytes(), self.log.owed_bytes());
        if !self.room.fits(owed_bytes) {
            self.wal.forget_ms = self.wal.forget_ms.map(|due_ms| due_ms.max(mono_ms + FORGET_MS));
            return;
        }
        let is_short = wal_bytes >= SHORT_BYTES && self.room.is_short(wal_bytes, owed_bytes);
        if is_short {
            self.wal.must_forget(mono_ms);
        }
        let late_ms = if is_idle || is_short { 0 } else { FORGET_LATE_MS };
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

    /// Why `bytes` more may not be stored, although the write-ahead log was emptied for them. A burst comes faster than
    /// what is done between requests.
    pub(crate) fn lack(&mut self, bytes: u64) -> Option<Error> {
        let lack = self.room.lack(bytes, self.log.owed_bytes())?;
        if self.log.wal_bytes() < SHORT_BYTES || !self.room.fits(self.log.owed_bytes()) {
            return Some(lack);
        }
        let log = &mut self.log;
        // What fails here the next time meets as well, and tells.
        let _ = if self.reads.serves() { self.reads.stand(|| log.forget()) } else { Some(log.forget()) };
        self.room.look_again();
        self.room.lack(bytes, self.log.owed_bytes())
    }

    /// To be called before the end, which copies what it finds.
    pub(crate) fn end_wal(&mut self) {
        // What SQLite says of it the end would meet by itself.
        let _ = self.log.look();
        if !self.room.fits(self.log.owed_bytes()) {
            let _ = self.log.keep_wal();
        }
    }

    fn forget(&mut self, mono_ms: u64) {
        self.wal.forgot_ms = mono_ms;
        let log = &mut self.log;
        let reads = &self.reads;
        let forgotten = if reads.serves() { reads.stand(|| log.forget()) } else { Some(log.forget()) };
        self.room.look_again();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::handle::Handle;
    use crate::log::disk_room::DiskRoom;
    use crate::wiring::{Wired, check_options, wire};
    use realtime_hub::{Event, LogRequest, Publish};
    use serde_json::json;
    use std::collections::VecDeque;
    use std::fs;
    use std::path::{Path, PathBuf};

    const MIB: u64 = 1 << 20;
    const DISK: u64 = 40 * MIB;
    const MIN: u64 = 16 * MIB;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("realtime-reactor-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a disk of `DISK` bytes would have free with the files of `dir` alone.
    fn free(dir: &Path) -> u64 {
        let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().map_or(0, |found| found.len()));
        DISK.saturating_sub(files.sum())
    }

    /// A log in `dir`, on a disk that nothing else uses.
    fn worker(dir: &Path) -> LogWorker {
        let options = json!({"data_dir": dir, "policies": [{"pattern": "log:*", "durable": true}]});
        let options = check_options(options.to_string().as_bytes()).unwrap();
        let handle = Handle::new(&options.limits, Clock::manual(0)).unwrap();
        let Wired { mut log, .. } = wire(&options, 1, &handle).unwrap();
        log.room = DiskRoom::on(dir, MIN, Box::new(|dir| Some(free(dir))));
        log
    }

    /// Publishes 60 kB each so many milliseconds until one is refused; returns how many bytes were stored.
    fn store_until_refused(log: &mut LogWorker, clock: &Clock, each_ms: u64) -> u64 {
        for stored in 0..2_000 {
            let mut events = Vec::new();
            let publish = Publish {
                ticket: 0,
                channel: "log:1".into(),
                event: "new_message".into(),
                data: format!("\"{}\"", "x".repeat(60_000)).into_bytes().into(),
                user: None,
                key: None,
                dedupe: None,
                number: false,
                request: None,
                amends: None,
                notify: true,
                reply: None,
            };
            let mut waiting = VecDeque::from([LogRequest::Append { publish, received_wall_ms: 0 }]);
            log.serve_next(&mut waiting, || clock.now(), &mut events);
            clock.advance(each_ms);
            log.do_chore(|| clock.now(), false, &mut events);
            if events.iter().any(|event| matches!(event, Event::Published { outcome: Err(_), .. })) {
                return stored * 60_000;
            }
        }
        panic!("the disk never became short");
    }

    #[test]
    fn a_short_disk_holds_what_was_stored_once_and_keeps_its_bound_through_the_copy() {
        // Slowly, and as a burst.
        for each_ms in [100, 0] {
            let (dir, clock) = (Dir::new("short"), Clock::manual(0));
            let mut log = worker(&dir.0);
            let stored = store_until_refused(&mut log, &clock, each_ms);
            assert!(stored > 20 * MIB, "{stored} bytes: the write-ahead log was not emptied for them");
            let left = free(&dir.0) - log.log.owed_bytes();
            assert!(left >= MIN, "{left} bytes are left once all is copied");
            log.end_wal();
            drop(log);
            assert!(free(&dir.0) >= MIN, "the end took {} bytes too many", MIN.saturating_sub(free(&dir.0)));
        }
    }

    #[test]
    fn nothing_is_copied_into_what_is_not_there_until_there_is_room() {
        let (dir, clock) = (Dir::new("none"), Clock::manual(0));
        let mut log = worker(&dir.0);
        log.room = DiskRoom::on(&dir.0, MIN, Box::new(|_| Some(u64::MAX)));
        for _ in 0..100 {
            let data = vec![b'x'; 60_000];
            let event = realtime_log::Append {
                channel: "log:1",
                event: "new_message",
                data: &data,
                number_field: false,
                user: None,
                dedupe: None,
                request: None,
                amends: None,
                time_ms: 0,
            };
            log.log.append(&[event]).unwrap();
        }
        let owed = log.log.owed_bytes();
        assert!(owed >= 6_000_000, "{owed}");
        let database = dir.0.join("realtime.sqlite3");
        let bytes = || fs::metadata(&database).unwrap().len();
        let before = bytes();
        log.room = DiskRoom::on(&dir.0, MIN, Box::new(move |_| Some(owed)));
        log.wal.must_forget(0);
        for _ in 0..30 {
            clock.advance(1_000);
            log.do_chore(|| clock.now(), true, &mut Vec::new());
        }
        assert_eq!(bytes(), before, "half a copy would take the rest of the disk");
        assert!(log.wal.due_ms() > clock.now().mono_ms, "the thread sleeps meanwhile");
        log.end_wal();
        drop(log);
        assert_eq!(bytes(), before, "nor does the end copy it");

        let mut log = worker(&dir.0);
        assert!(log.log.owed_bytes() >= owed, "a start finds what waits");
        log.do_chore(|| clock.now(), true, &mut Vec::new());
        assert_eq!((log.log.owed_bytes(), log.log.wal_bytes()), (0, 0), "there is room");
        assert!(bytes() >= before + owed);
        assert_eq!(log.log.head("log:1").unwrap(), 100);
    }
}
