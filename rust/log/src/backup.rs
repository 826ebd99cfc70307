//! Copies of a log: taken while a server runs, put back while none does.
//!
//! A backup is one read transaction, so it is the log of one moment; appends go on beside it. It is compact: nothing that
//! was erased or let go is in it. A file has its name only once it is whole, verified and on the disk, and no file is
//! ever replaced: what a restored log takes the place of is kept beside it.
//!
//! [`restore`] survives a crash at any moment. Up to the rename to [`RESTORED_NAME`] nothing has changed; from then on
//! the next start, or the next restore, finishes it. In between there is no moment in which a start would meet a database
//! beside another one's write-ahead log, or none at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::erasure;
use crate::error::Error;
use crate::lock::DirLock;
use crate::open::{DATABASE_NAME, FILE_MODE, beside, find_schema, first_finding, make_dir};
use crate::schema;

/// A restored log that is whole and has still to take its place.
const RESTORED_NAME: &str = "realtime.sqlite3.restored";
/// A restored log that is not whole yet.
const PART_NAME: &str = "realtime.sqlite3.restoring";
/// How long another program that has a file locked is waited for.
pub(crate) const BUSY_MS: u64 = 5_000;
/// What stands beside a database and belongs to it.
const SIDES: [&str; 3] = ["-wal", "-journal", "-shm"];

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Channels that ever had an event.
    pub channels: u64,
    /// Events that are kept.
    pub events: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// Copies the log of a data directory into a new file, readable by its owner alone. A server may run on it.
///
/// # Errors
/// [`Error::NoLog`], [`Error::Exists`], [`Error::NoRoom`], or why the log cannot be read or the file be written. There
/// is no file then.
pub fn backup(data_dir: &Path, target: &Path) -> Result<Copied, Error> {
    let source = data_dir.join(DATABASE_NAME);
    if !source.is_file() {
        return Err(Error::NoLog { dir: data_dir.to_path_buf() });
    }
    let target = std::path::absolute(target).map_err(|source| unwritable(target, source))?;
    if target.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: target });
    }
    let (dir, name) = (target.parent().unwrap_or(&target), target.file_name().unwrap_or_default());
    let part = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let conn = open(&source, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let made = copy(&conn, &source, &part, &target).and_then(|copied| {
        give_name(&part, &target).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists { path: target.clone() },
            _ => unwritable(&target, source),
        })?;
        Ok(copied)
    });
    let _ = fs::remove_file(&part);
    let copied = made?;
    sync(dir).map_err(|source| unwritable(&target, source))?;
    Ok(copied)
}

/// Puts a backup in the place of a data directory's log, and returns what it holds and where the log of before is kept.
/// No server may run on the directory. The next start begins a term of its own, as every start does.
///
/// # Errors
/// [`Error::Locked`], [`Error::NotABackup`], [`Error::Newer`], [`Error::NoRoom`], [`Error::Unwritable`]. The log of
/// before is still in its place then.
pub fn restore(source: &Path, data_dir: &Path) -> Result<(Copied, Option<PathBuf>), Error> {
    let failed = |source| Error::Unwritable { dir: data_dir.to_path_buf(), source };
    make_dir(data_dir).map_err(failed)?;
    let _lock = DirLock::take(data_dir)?;
    finish_restore(data_dir).map_err(failed)?;
    let (part, database) = (data_dir.join(PART_NAME), data_dir.join(DATABASE_NAME));
    let copied = copy_backup(source, &part);
    let copied = copied.inspect_err(|_| drop(fs::remove_file(&part)))?;
    let kept = keep_beside(&database).map_err(failed)?;
    fs::rename(&part, data_dir.join(RESTORED_NAME)).map_err(failed)?;
    sync(data_dir).map_err(failed)?;
    finish_restore(data_dir).map_err(failed)?;
    Ok((copied, kept))
}

/// Gives a restored log its place, where a crash has left that to do. The directory's lock is held.
pub(crate) fn finish_restore(data_dir: &Path) -> io::Result<()> {
    let (restored, database) = (data_dir.join(RESTORED_NAME), data_dir.join(DATABASE_NAME));
    if !restored.exists() {
        return Ok(());
    }
    // They are kept under another name.
    for path in SIDES.map(|suffix| beside(&database, suffix)) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(restored, database)?;
    sync(data_dir)
}

fn copy_backup(source: &Path, part: &Path) -> Result<Copied, Error> {
    let told = |detail: String| Error::NotABackup { path: source.to_path_buf(), detail };
    if !source.is_file() {
        return Err(told("there is no such file".to_owned()));
    }
    let of_backup = |error| match error {
        Error::Corrupt { detail, .. } => told(detail),
        Error::Unwritable { source, .. } => told(source.to_string()),
        other => other,
    };
    let conn = open(source, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(of_backup)?;
    verify(&conn, source).map_err(of_backup)?;
    copy(&conn, source, part, part).map_err(of_backup)
}

/// Gives a file its name. A link, unlike a rename, never takes the place of a file; where there are no links, a name that
/// was free is taken first.
fn give_name(part: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(part, target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(target)?;
            fs::rename(part, target)
        }
        linked => linked,
    }
}

/// Gives the log of before a second name, with its write-ahead log, and returns it; None where there is no log.
fn keep_beside(database: &Path) -> io::Result<Option<PathBuf>> {
    if !database.exists() {
        return Ok(None);
    }
    let since_1970_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for number in since_1970_s.. {
        let kept = beside(database, &format!(".replaced-{number}"));
        match fs::hard_link(database, &kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            linked => linked?,
        }
        for suffix in &SIDES[..2] {
            match fs::hard_link(beside(database, suffix), beside(&kept, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        return Ok(Some(kept));
    }
    Ok(None)
}

/// Opens a database that is there and leaves it as it is. Only SQLite opens it: closing a file of a process's own
/// database would give up the locks that the process has on it.
pub(crate) fn open(path: &Path, access: OpenFlags) -> Result<Connection, Error> {
    let sqlite = |source| Error::from_sqlite(source, path, BUSY_MS);
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(sqlite)?;
    conn.busy_timeout(Duration::from_millis(BUSY_MS)).map_err(sqlite)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite)?;
    if find_schema(&conn, path, BUSY_MS)? == 0 {
        return Err(Error::Corrupt { path: path.to_path_buf(), detail: "it is empty".to_owned() });
    }
    Ok(conn)
}

/// Copies a database into the new file `part`, verifies it and has it on the disk. `target` is told in errors.
fn copy(conn: &Connection, source: &Path, part: &Path, target: &Path) -> Result<Copied, Error> {
    let failed = |source| unwritable(target, source);
    // Left by a process that was killed.
    let _ = fs::remove_file(part);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(part);
    let file = file.map_err(failed)?;
    let name = part.to_str().ok_or_else(|| failed(io::Error::other("its path is not UTF-8")))?;
    conn.execute("VACUUM INTO ?1", [name]).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::NoRoom { path: target.to_path_buf() },
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => failed(io::Error::other(error)),
        _ => Error::from_sqlite(error, source, BUSY_MS),
    })?;
    let writable = open(part, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let schema = writable.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0));
    let finished = schema.and_then(|schema| Ok(schema >= schema::ERASURES && erasure::finish(&writable)?));
    finished.map_err(|source| Error::from_sqlite(source, part, BUSY_MS))?;
    drop(writable);
    file.sync_all().map_err(failed)?;
    let copied = open(part, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    verify(&copied, part)?;
    let count = |table: &str| {
        let count = copied.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0));
        count.map(i64::cast_unsigned).map_err(|source| Error::from_sqlite(source, part, BUSY_MS))
    };
    let bytes = file.metadata().map_err(failed)?.len();
    Ok(Copied { channels: count("channels")?, events: count("events")?, bytes })
}

/// Looks through a whole database, its indexes too.
fn verify(conn: &Connection, path: &Path) -> Result<(), Error> {
    let verdict = conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
    let verdict = verdict.map_err(|source| Error::from_sqlite(source, path, BUSY_MS))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(Error::Corrupt { path: path.to_path_buf(), detail: first_finding(&verdict) })
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn unwritable(path: &Path, source: io::Error) -> Error {
    Error::CannotWrite { path: path.to_path_buf(), source }
}
