//! A second connection to the log, for pages: who reads delays no commit.
//!
//! In the write-ahead log's mode readers and the writer do not wait for each other. Each page is one statement and so one
//! read transaction: whoever empties the write-ahead log waits for one page at most. The connection never writes, but
//! [`Reader::settle`] copies what the write-ahead log holds into the database, beside commits. Used by one thread,
//! which must drop it before the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::append::find_channel;
use crate::error::Error;
use crate::event::Stored;
use crate::files::Index;
use crate::log::{Log, read_page};

/// The most that the page cache may take, in KiB: pages are seldom read twice.
const CACHE_KIB: i64 = 8 << 10;
const STATEMENTS_MAX: usize = 8;

/// Reads pages beside a [`Log`].
#[derive(Debug)]
pub struct Reader {
    // Dropped before the index's descriptor.
    conn: Connection,
    path: PathBuf,
    index: Arc<Index>,
}

impl Log {
    /// A connection that reads pages beside this one; None for a log in memory, which has but one.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn reader(&self) -> Result<Option<Reader>, Error> {
        let Some(files) = &self.files else { return Ok(None) };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || {
            let conn = Connection::open_with_flags(&self.path, flags)?;
            conn.busy_timeout(Duration::ZERO)?;
            conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
            // The log's own end does that, once nobody reads.
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
            conn.pragma_update(None, "mmap_size", 0)?;
            conn.pragma_update(None, "query_only", true)?;
            conn.pragma_update(None, "checkpoint_fullfsync", true)?;
            Ok(conn)
        };
        let conn = open().map_err(|source| self.error(source))?;
        Ok(Some(Reader { conn, path: self.path.clone(), index: files.index() }))
    }
}

impl Reader {
    /// As [`Log::page`], of offsets up to `head` alone.
    ///
    /// # Errors
    /// What SQLite reports while reading. What the log says of the same page is the cause in words.
    pub fn page(
        &mut self,
        channel: &str,
        after: u64,
        head: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Stored>, Error> {
        // What was stored can be read, whatever became of the index.
        let _ = self.index.check();
        let read = || {
            let Some(known) = find_channel(&self.conn, channel)? else { return Ok(Vec::new()) };
            read_page(&self.conn, known.id, (after, head), limit, bytes_max)
        };
        read().map_err(|source| Error::from_sqlite(source, &self.path, 0))
    }

    /// Copies what the write-ahead log holds into the database, as far as nobody else does or reads: what is left for
    /// the log itself is little.
    ///
    /// # Errors
    /// What SQLite reports. Nothing is lost then.
    pub fn settle(&mut self) -> Result<(), Error> {
        let _ = self.index.check();
        let settled = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        settled.map_err(|source| Error::from_sqlite(source, &self.path, 0))
    }
}
