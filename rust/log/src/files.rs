//! Whether the log's files are still those that were opened.
//!
//! SQLite goes on writing to a file that was removed or replaced, and every commit succeeds: nothing of it is there
//! after a restart. So the files are looked at: the database and the write-ahead log behind each commit, all three in
//! every pause. They are never opened here a second time while SQLite has them, but for the one descriptor that is kept:
//! closing any descriptor of a file takes the process's locks on it away.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::Gone;

/// Bytes before the first frame of a write-ahead log, and before the page in each (SQLite's file format, 4.1).
const WAL_HEADER_BYTES: u64 = 32;
const WAL_FRAME_HEADER_BYTES: u64 = 24;

/// The three files of a database on disk.
#[derive(Debug)]
pub(crate) struct Files {
    database: Watched,
    wal: Watched,
    shared: Watched,
    index: Arc<Index>,
    wal_frames: u64,
    wal_bytes: u64,
    /// What the database will have once the write-ahead log is copied into it.
    copied_bytes: u64,
    /// The database never becomes shorter: it is never vacuumed.
    database_bytes: u64,
    /// It did; its bytes do not come back.
    is_cut: bool,
}

/// The write-ahead log's index, which SQLite maps: of the file `shared`, open as long as the database is, by whichever
/// connection.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    file: Option<File>,
    /// SQLite never makes it shorter.
    bytes: AtomicU64,
    is_cut: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// Device and inode, once it was there.
    identity: Option<(u64, u64)>,
}

impl Files {
    /// Takes note of the files of a database that SQLite has open.
    pub(crate) fn new(database: &Path) -> Self {
        let beside = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            Watched { path: path.into(), identity: None }
        };
        let shared = beside("-shm");
        let file = File::options().read(true).write(true).open(&shared.path).ok();
        let path = shared.path.clone();
        let index = Arc::new(Index { path, file, bytes: AtomicU64::new(0), is_cut: AtomicBool::new(false) });
        let database = Watched { path: database.to_path_buf(), identity: None };
        let wal = beside("-wal");
        Self {
            database,
            wal,
            shared,
            index,
            wal_frames: 0,
            wal_bytes: 0,
            copied_bytes: 0,
            database_bytes: 0,
            is_cut: false,
        }
    }

    /// For a connection beside the log's own.
    pub(crate) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    /// Frames of the write-ahead log, as of the last look.
    pub(crate) const fn wal_frames(&self) -> u64 {
        self.wal_frames
    }

    /// Bytes of the write-ahead log's file, as of the last look.
    pub(crate) const fn wal_bytes(&self) -> u64 {
        self.wal_bytes
    }

    /// By how much the database grows when the write-ahead log is copied into it, as of the last look.
    pub(crate) const fn owed_bytes(&self) -> u64 {
        self.copied_bytes.saturating_sub(self.database_bytes)
    }

    /// See [`Index::check`].
    pub(crate) fn check_mapped(&self) -> Result<(), (PathBuf, Gone)> {
        self.index.check()
    }

    /// Looks at what a commit was written to.
    pub(crate) fn check_written(&mut self) -> Result<(), (PathBuf, Gone)> {
        self.check_mapped()?;
        if let Some(bytes) = self.database.check()? {
            self.is_cut |= bytes < self.database_bytes;
            self.database_bytes = self.database_bytes.max(bytes);
        }
        if self.is_cut {
            return Err((self.database.path.clone(), Gone::Shortened));
        }
        let needed = self.wal_bytes_needed();
        let wal_bytes = self.wal.check()?;
        self.wal_bytes = wal_bytes.unwrap_or(0);
        match wal_bytes {
            Some(bytes) if bytes < needed => Err((self.wal.path.clone(), Gone::Shortened)),
            _ => Ok(()),
        }
    }

    /// Looks at all of them.
    pub(crate) fn check(&mut self) -> Result<(), (PathBuf, Gone)> {
        self.check_written()?;
        self.shared.check().map(|_| ())
    }

    /// Bytes of the frames that the write-ahead log's index says are there: page size and number of the last one
    /// (SQLite's "WAL-mode File Format", 2.1). Behind these stand the pages that the database then has.
    fn wal_bytes_needed(&mut self) -> u64 {
        let mut header = [0; 24];
        let Some(index) = &self.index.file else { return 0 };
        if index.read_exact_at(&mut header, 0).is_err() {
            return 0;
        }
        let page_bytes = match u16::from_ne_bytes([header[14], header[15]]) {
            1 => 65_536,
            bytes => u64::from(bytes),
        };
        let frames = u64::from(u32::from_ne_bytes([header[16], header[17], header[18], header[19]]));
        self.wal_frames = frames;
        let pages = u64::from(u32::from_ne_bytes([header[20], header[21], header[22], header[23]]));
        self.copied_bytes = if frames == 0 { 0 } else { pages * page_bytes };
        if frames == 0 { 0 } else { WAL_HEADER_BYTES + frames * (WAL_FRAME_HEADER_BYTES + page_bytes) }
    }
}

impl Index {
    /// Looks at what SQLite reads and writes as memory; to be called before it does. A page that the file has no longer
    /// would end the process by a signal, so a file that was cut gets its length back: SQLite takes zeros for an index
    /// that is to be made anew, from the write-ahead log.
    pub(crate) fn check(&self) -> Result<(), (PathBuf, Gone)> {
        if let Some(file) = &self.file
            && let Ok(metadata) = file.metadata()
        {
            let bytes = metadata.len();
            let known = self.bytes.fetch_max(bytes, Ordering::Relaxed);
            if bytes < known {
                self.is_cut.store(true, Ordering::Relaxed);
                // Where there is no room for it nothing can be done.
                let _ = file.set_len(known);
            }
        }
        if self.is_cut.load(Ordering::Relaxed) { Err((self.path.clone(), Gone::Shortened)) } else { Ok(()) }
    }
}

impl Watched {
    /// The file's size. `None` where that cannot be told now, or where there was none yet.
    fn check(&mut self) -> Result<Option<u64>, (PathBuf, Gone)> {
        match fs::metadata(&self.path) {
            Ok(metadata) => {
                let found = (metadata.dev(), metadata.ino());
                if *self.identity.get_or_insert(found) != found {
                    return Err((self.path.clone(), Gone::Replaced));
                }
                Ok(Some(metadata.len()))
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                if self.identity.is_some() {
                    return Err((self.path.clone(), Gone::Removed));
                }
                Ok(None)
            }
            // A folder that may not be entered any more, for example: nothing is lost by that.
            Err(_) => Ok(None),
        }
    }
}
