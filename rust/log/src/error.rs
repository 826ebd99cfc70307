//! What can go wrong with the log, told so that whoever runs the server knows what to do.
//!
//! Each error is one line and carries its facts as fields. [`Error::Full`], [`Error::LowDisk`] and [`Error::Busy`] pass by themselves
//! once their cause is gone: the caller refuses the publications of that batch and goes on. The others, when they
//! come from opening, end the start. [`Error::reason`] says the same without a path, for those who are no operators.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use rusqlite::ffi;

/// Why the log could not be opened, written or read.
#[derive(Debug)]
pub enum Error {
    /// Another process, or another [`Log`](crate::Log) of this one, holds the data directory.
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// The data directory cannot be made, or its files cannot be written.
    Unwritable {
        /// The data directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a log, or is damaged. It is left as it was found.
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What was found wrong.
        detail: String,
    },
    /// The log was written by a newer version of this program.
    Newer {
        /// Number of the schema in the file.
        found: u32,
        /// The highest number that this version knows.
        known: u32,
    },
    /// The disk, or the quota, has no room. Nothing of the batch was stored; reading goes on.
    Full {
        /// The database file.
        path: PathBuf,
    },
    /// Less is free on the disk than the operator wants. Nothing of the batch was stored; reading goes on.
    LowDisk {
        /// The data directory.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes of these that copying the write-ahead log into the database will take.
        owed: u64,
        /// Bytes that have to be (`log.free_bytes_min`).
        min: u64,
    },
    /// Another program kept the database locked. Nothing of the batch was stored.
    Busy {
        /// The database file.
        path: PathBuf,
        /// How long was waited, in milliseconds (`busy_timeout_ms`).
        waited_ms: u64,
    },
    /// There is no log in a data directory that one is to be copied from.
    NoLog {
        /// The data directory.
        dir: PathBuf,
    },
    /// A backup would take the place of a file.
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The disk has no room for a copy.
    NoRoom {
        /// The copy.
        path: PathBuf,
    },
    /// A copy cannot be written.
    CannotWrite {
        /// The copy.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no backup that could be restored.
    NotABackup {
        /// The file.
        path: PathBuf,
        /// What was found wrong.
        detail: String,
    },
    /// A file of the log is not at its path any more, or has lost its end. Nothing is stored until it is back.
    Gone {
        /// The file.
        path: PathBuf,
        /// What became of it.
        how: Gone,
    },
    /// Anything else that SQLite reports, such as a disk that fails to read or write.
    Sqlite(rusqlite::Error),
}

/// What became of a file of the log under the running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// There is none at its path.
    Removed,
    /// Another file is at its path.
    Replaced,
    /// It ends before its last page. This does not pass.
    Shortened,
}

impl Gone {
    const fn text(self) -> &'static str {
        match self {
            Self::Removed => "was removed while the server ran",
            Self::Replaced => "was replaced while the server ran",
            Self::Shortened => "became shorter while the server ran",
        }
    }
}

impl Error {
    /// Whether another channel's events may be stored all the same: a damaged page or row stops those who need it.
    #[must_use]
    pub const fn may_be_one_channels(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Sqlite(_))
    }

    /// Whether the disk itself failed to read or write.
    #[must_use]
    pub fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::Sqlite(source) if source.sqlite_error_code() == Some(ErrorCode::SystemIoFailure))
    }

    /// What is wrong and what helps, without a path: for readers who need not know where the log is.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Locked { .. } => "another process uses the data directory".into(),
            Self::Unwritable { .. } => "its files cannot be written; see their owner and mode".into(),
            Self::Corrupt { .. } => "its file is corrupt; restore it from a backup".into(),
            Self::Newer { .. } => "a newer version wrote it".into(),
            Self::Full { .. } | Self::NoRoom { .. } => "no room on the disk; free space".into(),
            Self::LowDisk { .. } => "less is free on its disk than log.free_bytes_min; free space".into(),
            Self::Busy { .. } => "its file is locked by another program; end what that program does with it".into(),
            Self::NoLog { .. } => "the data directory holds no log".into(),
            Self::Exists { .. } => "a file of the name exists".into(),
            Self::CannotWrite { .. } => "a copy cannot be written; see the directory's owner and mode".into(),
            Self::NotABackup { .. } => "a file is no backup that can be restored; choose another".into(),
            Self::Gone { how, .. } => format!("its file {}; restart the server", how.text()),
            Self::Sqlite(source) => match source.sqlite_error() {
                Some(failure) => format!("{failure}; see the system's log for disk errors"),
                None => "it could not be read or written; see the server's log".into(),
            },
        }
    }

    /// The name of SQLite's result in our terms. `path` and `waited_ms` are the facts that SQLite does not tell.
    pub(crate) fn from_sqlite(source: rusqlite::Error, path: &Path, waited_ms: u64) -> Self {
        let Some(failure) = source.sqlite_error().copied() else {
            return Self::Sqlite(source);
        };
        let path = path.to_path_buf();
        match (failure.code, failure.extended_code) {
            // The index of the write-ahead log is a file too; SQLite has no `full` for it.
            (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => Self::Full { path },
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Self::Busy { path, waited_ms },
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => {
                Self::Corrupt { path, detail: source.to_string() }
            }
            (ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied, _) => Self::Unwritable {
                dir: path.parent().map_or_else(|| path.clone(), Path::to_path_buf),
                source: io::Error::other(source),
            },
            _ => Self::Sqlite(source),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { dir } => write!(
                f,
                "data directory {} is in use by another process; stop that server or choose another data directory",
                dir.display()
            ),
            Self::Unwritable { dir, source } => write!(
                f,
                "data directory {} cannot be written: {source}; make it writable for this user or choose another one",
                dir.display()
            ),
            Self::Corrupt { path, detail } => write!(
                f,
                "log file {} is corrupt: {detail}; restore it from a backup, or move it away to start with an empty log",
                path.display()
            ),
            Self::Newer { found, known } => write!(
                f,
                "log has schema {found}, this version knows schemas up to {known}; \
                 run the version that wrote it, or restore the backup made before it"
            ),
            Self::Full { path } => write!(
                f,
                "no room on the disk for log file {}; free space there, the server then goes on by itself",
                path.display()
            ),
            Self::LowDisk { dir, free, owed, min } => write!(
                f,
                "only {free} bytes are free on the disk of data directory {}, the database needs {owed} of them for what \
                 waits in the write-ahead log, and log.free_bytes_min is {min}; free space there, the server then goes on \
                 by itself",
                dir.display()
            ),
            Self::Busy { path, waited_ms } => write!(
                f,
                "log file {} was locked by another program for over {waited_ms} ms; end what that program does with it",
                path.display()
            ),
            Self::NoLog { dir } => write!(
                f,
                "data directory {} holds no log; name the server's own by REALTIME_DATA_DIR or --config",
                dir.display()
            ),
            Self::Exists { path } => {
                write!(f, "{} exists and is not replaced; choose another name or remove it", path.display())
            }
            Self::NoRoom { path } => {
                write!(f, "no room on the disk for {}; free space there and try again", path.display())
            }
            Self::CannotWrite { path, source } => write!(
                f,
                "{} cannot be written: {source}; choose a directory that this user can write to",
                path.display()
            ),
            Self::NotABackup { path, detail } => write!(
                f,
                "{} cannot be restored: {detail}; choose another backup; the log is as it was",
                path.display()
            ),
            Self::Gone { path, how } => write!(
                f,
                "log file {} {}; nothing is stored until it is back as it was; else restart the server, which begins \
                 with what is there then",
                path.display(),
                how.text()
            ),
            Self::Sqlite(source) => {
                write!(f, "log could not be read or written: {source}; look for disk errors in the system's log")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unwritable { source, .. } | Self::CannotWrite { source, .. } => Some(source),
            Self::Sqlite(source) => Some(source),
            _ => None,
        }
    }
}
