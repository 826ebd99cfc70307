//! From a directory to a log that may be trusted: lock, look, configure, check, migrate.
//!
//! The lock is taken before anything is read, so two servers never work on one directory. Whatever is found wrong
//! is told and left as it was: nothing is repaired, truncated or removed here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::backup::finish_restore;
use crate::erasure::Erasures;
use crate::error::Error;
use crate::files::Files;
use crate::heads::Heads;
use crate::lock::DirLock;
use crate::log::Log;
use crate::schema;
use crate::terms;

/// The database of a data directory; what stands beside it begins with this name.
pub const DATABASE_NAME: &str = "realtime.sqlite3";
/// How every SQLite database begins (its file format, 1.3), and how much of it is read here.
const MAGIC: &[u8] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
/// Events are private, and whoever can open the lock's file could hold the lock.
pub(crate) const FILE_MODE: u32 = 0o600;
/// How long the check at start may take. A database of some hundred megabytes is checked whole in that time; of a
/// larger one as much as that, so that a start never takes minutes. The header, the size and the roots are always
/// checked, and a damaged page beyond is told by the read that meets it.
const CHECK_TIME_MAX: Duration = Duration::from_millis(250);
/// Steps of the check (about a page each) between two looks at the clock.
const CHECK_STEPS: i32 = 500;
/// The write-ahead log is copied into the database each time it has grown by so many pages of 4 KiB (64 MiB). Pages
/// that many commits change are copied once; four times the interval measured 15 % more rows a second.
const CHECKPOINT_PAGES: i64 = 16_000;
/// What remains of the write-ahead log's file after a burst, in bytes.
const WAL_BYTES_MAX: i64 = 64 << 20;
/// The most that SQLite's page cache may take, in KiB.
const CACHE_KIB: i64 = 32 << 10;
const STATEMENTS_MAX: usize = 32;
/// How long keys of events that are kept no longer are known, unless [`Log::set_dedupe_s`] says otherwise.
const DEDUPE_MS: u64 = 86_400_000;

/// Where the log is and how patient it is.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory; it is made, readable by its owner alone, when it is missing.
    pub data_dir: PathBuf,
    /// How long an append waits while another program has the database locked, in milliseconds.
    pub busy_timeout_ms: u64,
}

impl Options {
    /// The log of `data_dir` with a `busy_timeout_ms` of 5,000.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), busy_timeout_ms: 5_000 }
    }
}

impl Log {
    /// Opens the log `realtime.sqlite3` of a data directory, or makes it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has the directory, [`Error::Unwritable`], [`Error::Corrupt`] (also
    /// for a file that is not a log), [`Error::Newer`], [`Error::Full`], [`Error::Busy`]. Each is one line for
    /// whoever runs the server.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let dir = &options.data_dir;
        let unwritable = |source| Error::Unwritable { dir: dir.clone(), source };
        make_dir(dir).map_err(unwritable)?;
        let lock = DirLock::take(dir)?;
        finish_restore(dir).map_err(unwritable)?;
        let path = dir.join(DATABASE_NAME);
        let mut database = open_private(OpenOptions::new().read(true).write(true), &path).map_err(unwritable)?;
        for suffix in ["-wal", "-shm", "-journal"] {
            make_private(&beside(&path, suffix)).map_err(unwritable)?;
        }
        let cut = find_cut(&path, &mut database).map_err(unwritable)?;
        // Before SQLite has the file: closing any descriptor of it takes the process's locks on it away.
        drop(database);
        if let Some(detail) = cut {
            return Err(Error::Corrupt { path, detail });
        }
        // Not SQLite's default: that would read a path such as `file:…` as a URI.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&path, flags);
        let conn = conn.map_err(|source| Error::from_sqlite(source, &path, options.busy_timeout_ms))?;
        let log = prepare(Some(lock), conn, path, options.busy_timeout_ms)?;
        // The names of the files are on the disk too, before anything is acknowledged.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(unwritable)?;
        Ok(log)
    }

    /// A log that is gone when it is dropped: the same rules, no disk and no lock.
    ///
    /// # Errors
    /// What SQLite reports, such as a lack of memory.
    pub fn open_in_memory() -> Result<Self, Error> {
        let conn = Connection::open_in_memory().map_err(Error::Sqlite)?;
        prepare(None, conn, PathBuf::from(":memory:"), 0)
    }
}

/// Makes the directory, its owner's alone since messages are private, and has its name on the disk.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Opens a file, or makes it, and lets its owner alone read and write it, whatever the umask, the directory and its mode
/// of before. SQLite gives the files that it makes beside a database the mode of the database.
pub(crate) fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.create(true).truncate(false).mode(FILE_MODE).open(path)?;
    tighten(path, file.metadata()?.permissions().mode(), |mode| file.set_permissions(mode))?;
    Ok(file)
}

/// As [`open_private`] for a file that may be there and is not opened here.
fn make_private(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) => tighten(path, metadata.permissions().mode(), |mode| fs::set_permissions(path, mode)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn tighten(path: &Path, mode: u32, set: impl FnOnce(fs::Permissions) -> io::Result<()>) -> io::Result<()> {
    if mode & 0o777 == FILE_MODE {
        return Ok(());
    }
    set(fs::Permissions::from_mode(FILE_MODE)).map_err(|error| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let told =
            format!("mode {:03o} of {name} cannot be changed to 600: {error}; make it this user's", mode & 0o777);
        io::Error::new(error.kind(), told)
    })
}

/// The file that SQLite keeps beside a database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Two damages that SQLite would pass over.
///
/// It removes a write-ahead log that stands beside an empty database. That cannot come from a crash (the first page
/// is written and synced before there is such a log), so somebody lost a file: say so, and keep the other. And it
/// reads the missing end of a last page as zeros; a crash can leave that only together with a log that repairs it.
fn find_cut(path: &Path, database: &mut File) -> io::Result<Option<String>> {
    let bytes_of = |suffix: &str| fs::metadata(beside(path, suffix)).map_or(0, |metadata| metadata.len());
    let (bytes, wal_bytes) = (database.metadata()?.len(), bytes_of("-wal"));
    if bytes == 0 && wal_bytes > 0 {
        return Ok(Some(format!("it is empty, but its write-ahead log has {wal_bytes} bytes")));
    }
    if wal_bytes > 0 || bytes_of("-journal") > 0 || bytes < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    database.read_exact(&mut header)?;
    let page_bytes = page_bytes(&header);
    let is_cut = header.starts_with(MAGIC) && !bytes.is_multiple_of(page_bytes);
    Ok(is_cut.then(|| format!("it ends after {bytes} bytes, within a page of {page_bytes}")))
}

/// The page size in the database's header (SQLite's file format, 1.3.2): 16 bits, where 1 stands for 65,536.
fn page_bytes(header: &[u8; HEADER_BYTES]) -> u64 {
    match u16::from_be_bytes([header[16], header[17]]) {
        0 | 1 => 65_536,
        bytes => u64::from(bytes),
    }
}

/// From an open connection to a log. The lock comes first, so that on an error it is given back last.
fn prepare(lock: Option<DirLock>, mut conn: Connection, path: PathBuf, busy_timeout_ms: u64) -> Result<Log, Error> {
    let on_disk = lock.is_some();
    let sqlite = |source| Error::from_sqlite(source, &path, busy_timeout_ms);
    conn.busy_timeout(Duration::from_millis(busy_timeout_ms)).map_err(sqlite)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Until the log has proved sound, closing it must not move a write-ahead log into the database.
    let keep_wal = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    conn.set_db_config(keep_wal, true).map_err(sqlite)?;
    let found = find_schema(&conn, &path, busy_timeout_ms)?;
    configure(&conn, on_disk).map_err(sqlite)?;
    if on_disk {
        check(&mut conn, &path, busy_timeout_ms, CHECK_TIME_MAX)?;
    }
    schema::migrate(&conn, found).map_err(sqlite)?;
    let (terms, is_term_written) = match terms::begin(&conn).map_err(sqlite) {
        Ok(terms) => (terms, true),
        // Whoever wants to read what is stored needs no room.
        Err(Error::Full { .. }) => (terms::imagine(&conn).map_err(sqlite)?, false),
        Err(error) => return Err(error),
    };
    let erasures = Erasures::find(&conn).map_err(sqlite)?;
    conn.set_db_config(keep_wal, false).map_err(sqlite)?;
    let files = on_disk.then(|| Files::new(&path));
    let mut log = Log {
        conn,
        heads: Heads::default(),
        terms,
        is_term_written,
        path,
        busy_timeout_ms,
        is_patient: true,
        dedupe_ms: DEDUPE_MS,
        erasures,
        gone: None,
        keeps_wal: false,
        files,
        _lock: lock,
    };
    log.look()?;
    Ok(log)
}

/// The schema's number, 0 for a new database. This is the first read, so garbage and a file that is shorter than
/// its header says are found here, before anything is written.
pub(crate) fn find_schema(conn: &Connection, path: &Path, busy_timeout_ms: u64) -> Result<u32, Error> {
    let pragma = |name: &str| -> Result<i64, Error> {
        let value = conn.pragma_query_value(None, name, |row| row.get(0));
        value.map_err(|source| Error::from_sqlite(source, path, busy_timeout_ms))
    };
    let tables = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let tables = tables.map_err(|source| Error::from_sqlite(source, path, busy_timeout_ms))?;
    let found = u32::try_from(pragma("user_version")?).unwrap_or(u32::MAX);
    let is_new = tables == 0 && found == 0;
    if !is_new && pragma("application_id")? != schema::APPLICATION_ID {
        let detail = "it is the database of another program".to_owned();
        return Err(Error::Corrupt { path: path.to_path_buf(), detail });
    }
    if found > schema::KNOWN {
        return Err(Error::Newer { found, known: schema::KNOWN });
    }
    Ok(found)
}

fn configure(conn: &Connection, on_disk: bool) -> rusqlite::Result<()> {
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // No mapped reads: a failing disk is then an error, not a signal that ends the process.
    conn.pragma_update(None, "mmap_size", 0)?;
    // What is erased or no longer kept is overwritten with zeros, in pages that are used again and in free ones.
    conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    if !on_disk {
        return Ok(());
    }
    let mode: String = conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        // Some network file systems have no shared memory, and then no locks to trust either.
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some("its file system has no write-ahead log; use a local disk".to_owned()),
        ));
    }
    conn.pragma_update(None, "synchronous", "FULL")?;
    // On macOS a plain fsync leaves data in the drive's cache; elsewhere these two change nothing.
    conn.pragma_update(None, "fullfsync", true)?;
    conn.pragma_update(None, "checkpoint_fullfsync", true)?;
    conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    conn.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)
}

/// Looks through the database for about `time_max` and passes what was not reached.
fn check(conn: &mut Connection, path: &Path, busy_timeout_ms: u64, time_max: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let is_over = move || start.elapsed() >= time_max;
    let sqlite = |source| Error::from_sqlite(source, path, busy_timeout_ms);
    conn.progress_handler(CHECK_STEPS, Some(is_over)).map_err(sqlite)?;
    let verdict = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    conn.progress_handler(0, None::<fn() -> bool>).map_err(sqlite)?;
    match verdict {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(report) => Err(Error::Corrupt { path: path.to_path_buf(), detail: first_finding(&report) }),
        Err(source) if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(()),
        Err(source) => Err(sqlite(source)),
    }
}

/// The report opens with a line that names the database; an error is one line.
pub(crate) fn first_finding(report: &str) -> String {
    let finding = report.lines().find(|line| !line.is_empty() && !line.starts_with("***"));
    finding.unwrap_or("the check at start failed").to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek as _, SeekFrom, Write as _};

    use super::*;
    use crate::Append;

    const EVENT: Append<'_> = Append {
        channel: "a",
        event: "new_message",
        data: &[b'x'; 1_000],
        number_field: false,
        user: None,
        dedupe: None,
        request: None,
        amends: None,
        time_ms: 0,
    };

    #[test]
    fn the_check_at_start_ends_with_its_time_and_passes_what_it_has_not_reached() {
        let dir = std::env::temp_dir().join(format!("realtime-log-check-{}", std::process::id()));
        let mut log = Log::open(&Options::new(&dir)).expect("the log opens");
        log.append(&[EVENT; 20_000]).expect("the batch is stored");
        drop(log);
        let path = dir.join(DATABASE_NAME);
        let mut file = File::options().write(true).open(&path).expect("the file is there");
        // The check goes through a tree from its last page to its first.
        file.seek(SeekFrom::Start(100 * 4096)).expect("the file is longer");
        file.write_all(&[0xa5; 4096]).expect("the page is overwritten");

        let mut conn = Connection::open(&path).expect("the roots are whole");
        let hurried = check(&mut conn, &path, 0, Duration::ZERO);
        let thorough = check(&mut conn, &path, 0, Duration::MAX);
        drop(conn);
        std::fs::remove_dir_all(dir).expect("the directory goes away");
        assert!(hurried.is_ok(), "{hurried:?}");
        assert!(matches!(thorough, Err(Error::Corrupt { .. })), "{thorough:?}");
    }
}
