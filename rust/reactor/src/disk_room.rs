//! Room on the log's disk: durable events are refused before it is full, so that what must be written still can be.
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

/// Asks the system for the free bytes of a file's disk.
type Ask = Box<dyn Fn(&Path) -> Option<u64> + Send>;

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

    /// Why `bytes` more may not be stored; None where they may.
    pub(crate) fn lack(&mut self, bytes: u64) -> Option<Error> {
        if self.min == 0 {
            return None;
        }
        let wanted = self.min.saturating_add(bytes);
        let is_fresh = self.looked.is_some_and(|looked| looked.elapsed() < LOOK);
        if !is_fresh || self.free < wanted {
            self.looked = Some(Instant::now());
            self.free = (self.ask)(&self.path).unwrap_or(u64::MAX);
        }
        if self.free < wanted {
            return Some(Error::LowDisk { dir: self.path.clone(), free: self.free, min: self.min });
        }
        self.free -= bytes;
        None
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

    fn room(min: u64) -> (DiskRoom, Arc<AtomicU64>) {
        let free = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&free);
        let ask: Ask = Box::new(move |_| Some(told.load(Ordering::Relaxed)).filter(|bytes| *bytes != u64::MAX));
        (DiskRoom { ask, ..DiskRoom::new(Some(Path::new("/data")), min) }, free)
    }

    #[test]
    fn as_much_as_leaves_the_bound_free_is_stored_and_one_byte_more_is_not() {
        let (mut room, free) = room(100);
        free.store(110, Ordering::Relaxed);
        assert!(room.lack(10).is_none());
        free.store(100, Ordering::Relaxed);
        assert!(room.lack(0).is_none());
        let error = room.lack(1).expect("it would leave 99 bytes");
        assert!(matches!(error, Error::LowDisk { free: 100, min: 100, .. }), "{error}");
    }

    #[test]
    fn it_is_stored_again_as_soon_as_there_is_room() {
        let (mut room, free) = room(100);
        assert!(room.lack(1).is_some());
        free.store(1_000, Ordering::Relaxed);
        assert!(room.lack(1).is_none(), "a lack is never remembered");
    }

    #[test]
    fn the_system_is_asked_again_before_more_is_stored_than_was_free() {
        let (mut room, free) = room(100);
        free.store(200, Ordering::Relaxed);
        assert!(room.lack(60).is_none());
        free.store(140, Ordering::Relaxed);
        assert!(room.lack(41).is_some(), "however soon it comes");
    }

    #[test]
    fn a_disk_that_cannot_be_asked_and_a_log_in_memory_have_room() {
        let (mut room, free) = room(100);
        free.store(u64::MAX, Ordering::Relaxed);
        assert!(room.lack(1 << 40).is_none());
        assert!(DiskRoom::new(None, 1 << 40).lack(1 << 40).is_none());
        assert!(DiskRoom::new(Some(Path::new("/")), 0).lack(u64::MAX).is_none());
        assert!(free_bytes(Path::new("/")).is_some_and(|bytes| bytes > 0) && free_bytes(Path::new("/none")).is_none());
    }
}
