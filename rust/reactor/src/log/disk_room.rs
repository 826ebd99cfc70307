//! Room on the log's disk: durable events are refused before it is full, so that what must be written still can be.
//!
//! What waits in the write-ahead log is on the disk twice for a while: copying it makes the database grow before the
//! file can be emptied. So of what is free the bytes that are owed to that copy are as good as taken.
//!
//! The system is asked at most every 100 ms, and before as much was stored as was free above the bound when it was
//! asked last. Where it cannot be asked there is room: a full disk is told by the write that meets it.

use realtime_log::Error;
use std::ffi::CString;
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(100);
/// What a copy leaves free: the file system needs some for itself.
const MARGIN: u64 = 1 << 20;

/// Asks the system for the free bytes of a file's disk.
pub(crate) type Ask = Box<dyn Fn(&Path) -> Option<u64> + Send>;

/// What is free on the disk of the log, and what has to be.
pub(crate) struct DiskRoom {
    path: PathBuf,
    min: u64,
    ask: Ask,
    looked: Option<Instant>,
    free: u64,
}

impl DiskRoom {
    /// The disk of the directory `dir`, of which `min` bytes have to be free; 0, or no directory, asks for nothing.
    pub(crate) fn new(dir: Option<&Path>, min: u64) -> Self {
        let path = dir.map(Path::to_path_buf).unwrap_or_default();
        Self { path, min: if dir.is_some() { min } else { 0 }, ask: Box::new(free_bytes), looked: None, free: 0 }
    }

    /// A disk that is made up.
    #[cfg(test)]
    pub(crate) fn on(dir: &Path, min: u64, ask: Ask) -> Self {
        Self { ask, ..Self::new(Some(dir), min) }
    }

    /// Why `bytes` more may not be stored while `owed` are to be copied; None where they may. They are stored twice:
    /// in the write-ahead log, and then in the database.
    pub(crate) fn lack(&mut self, bytes: u64, owed: u64) -> Option<Error> {
        if self.min == 0 {
            return None;
        }
        let wanted = self.min.saturating_add(owed).saturating_add(bytes.saturating_mul(2));
        if !self.has(wanted) {
            return Some(Error::LowDisk { dir: self.path.clone(), free: self.free, owed, min: self.min });
        }
        self.free -= bytes;
        None
    }

    /// Whether `owed` bytes can be copied without filling the disk. Half a copy would take the rest and give nothing back.
    pub(crate) fn fits(&mut self, owed: u64) -> bool {
        self.min == 0 || owed == 0 || self.has(owed.saturating_add(MARGIN))
    }

    /// Whether a write-ahead log of `wal` bytes takes what will be needed soon, so that it is emptied early.
    pub(crate) fn is_short(&mut self, wal: u64, owed: u64) -> bool {
        self.min != 0 && !self.has(self.min.saturating_add(owed).saturating_add(wal))
    }

    /// The next question goes to the system: room was made.
    pub(crate) fn look_again(&mut self) {
        self.looked = None;
    }

    fn has(&mut self, wanted: u64) -> bool {
        let is_fresh = self.looked.is_some_and(|looked| looked.elapsed() < LOOK);
        if !is_fresh || self.free < wanted {
            self.looked = Some(Instant::now());
            self.free = (self.ask)(&self.path).unwrap_or(u64::MAX);
        }
        self.free >= wanted
    }
}

fn free_bytes(dir: &Path) -> Option<u64> {
    let name = CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a valid `statvfs`.
    let mut found: libc::statvfs = unsafe { mem::zeroed() };
    // SAFETY: a string that ends with zero, and room for the answer.
    let told = unsafe { libc::statvfs(name.as_ptr(), &raw mut found) };
    // What only the superuser may use is free to nobody here.
    #[allow(clippy::useless_conversion, reason = "their width differs by system")]
    (told == 0).then(|| u64::from(found.f_bavail).saturating_mul(u64::from(found.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A room over a made-up disk.
    fn room(min: u64) -> (DiskRoom, Arc<AtomicU64>) {
        let free = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&free);
        let ask: Ask = Box::new(move |_| Some(told.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX));
        (DiskRoom::on(Path::new("/data"), min, ask), free)
    }

    #[test]
    fn as_much_as_leaves_the_bound_free_is_stored_and_one_byte_more_is_not() {
        let (mut room, free) = room(100);
        free.store(120, Ordering::Relaxed);
        assert!(room.lack(10, 0).is_none());
        free.store(100, Ordering::Relaxed);
        room.look_again();
        assert!(room.lack(0, 0).is_none());
        let error = room.lack(1, 0).expect("it would leave 99 bytes");
        assert!(matches!(error, Error::LowDisk { free: 100, min: 100, .. }), "{error}");
    }

    #[test]
    fn what_the_copy_of_the_write_ahead_log_takes_is_not_free() {
        let (mut room, free) = room(100);
        free.store(150, Ordering::Relaxed);
        assert!(room.lack(0, 50).is_none());
        let error = room.lack(0, 51).expect("99 bytes would be left");
        assert!(matches!(error, Error::LowDisk { free: 150, owed: 51, min: 100, .. }), "{error}");
        assert!(!room.is_short(50, 0) && room.is_short(50, 1), "emptying a file of 50 bytes helps");
    }

    #[test]
    fn nothing_is_copied_that_would_fill_the_disk() {
        let (mut room, free) = room(100);
        free.store(MARGIN + 10, Ordering::Relaxed);
        assert!(room.fits(10) && !room.fits(11));
        free.store(0, Ordering::Relaxed);
        room.look_again();
        assert!(room.fits(0), "what does not grow needs no room");
        assert!(DiskRoom::new(Some(Path::new("/")), 0).fits(u64::MAX), "nobody asked for room");
    }

    #[test]
    fn it_is_stored_again_as_soon_as_there_is_room() {
        let (mut room, free) = room(100);
        assert!(room.lack(1, 0).is_some());
        free.store(1_000, Ordering::Relaxed);
        assert!(room.lack(1, 0).is_none(), "a lack is never remembered");
    }

    #[test]
    fn the_system_is_asked_again_before_more_is_stored_than_was_free() {
        let (mut room, free) = room(100);
        free.store(200, Ordering::Relaxed);
        assert!(room.lack(50, 0).is_none());
        free.store(150, Ordering::Relaxed);
        assert!(room.lack(26, 0).is_some(), "however soon it comes");
    }

    #[test]
    fn a_disk_that_cannot_be_asked_and_a_log_in_memory_have_room() {
        let (mut room, free) = room(100);
        free.store(u64::MAX, Ordering::Relaxed);
        assert!(room.lack(1 << 40, 0).is_none());
        assert!(DiskRoom::new(None, 1 << 40).lack(1 << 40, 0).is_none());
        assert!(DiskRoom::new(Some(Path::new("/")), 0).lack(u64::MAX, 0).is_none());
        assert!(free_bytes(Path::new("/")).is_some_and(|bytes| bytes > 0) && free_bytes(Path::new("/none")).is_none());
    }
}
