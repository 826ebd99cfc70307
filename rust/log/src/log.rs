//! The log itself: append batches, read heads and pages.
//!
//! Every call is one statement or one transaction and returns when the disk has answered; at worst it waits
//! `busy_timeout_ms` for another program. Called by one thread, the reactor's log thread.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::append::{Batch, find_channel};
use crate::erasure::{Erasures, payload};
use crate::error::{Error, Gone};
use crate::event::{Append, Appended, Page, Stored};
use crate::files::Files;
use crate::heads::{Channel, Heads};
use crate::lock::DirLock;
use crate::terms::{self, Term, TermStarts};

pub(crate) const PAGE: &str = concat!(
    "SELECT offset, event, ",
    payload!(),
    ", user, request, time_ms FROM events WHERE channel_id = ?1 AND offset > ?2 AND offset <= ?4 \
     ORDER BY offset LIMIT ?3"
);

/// What an event carries beside names and payload when it is sent, about: its channel's name, its time, its place.
pub(crate) const EVENT_BYTES: usize = 128;

const PROBE: &str = "INSERT OR REPLACE INTO meta (key, value) VALUES ('probe', hex(zeroblob(?1 / 2 + 1)))";
const UNPROBE: &str = "DELETE FROM meta WHERE key = 'probe'";

/// The durable channels of one data directory.
///
/// It holds the directory's lock as long as it lives. Dropping it moves the write-ahead log into the database and
/// gives the lock back; not dropping it (a crash) loses nothing.
#[derive(Debug)]
pub struct Log {
    // The order of the fields is the order of dropping: the lock goes last.
    pub(crate) conn: Connection,
    pub(crate) heads: Heads,
    /// The chain; the last one is this start's.
    pub(crate) terms: Vec<Term>,
    pub(crate) is_term_written: bool,
    pub(crate) path: PathBuf,
    pub(crate) busy_timeout_ms: u64,
    pub(crate) is_patient: bool,
    pub(crate) dedupe_ms: u64,
    pub(crate) erasures: Erasures,
    /// The file that was not there any more when the files were looked at last, and what became of it.
    pub(crate) gone: Option<(PathBuf, Gone)>,
    /// The end leaves the write-ahead log as it is.
    pub(crate) keeps_wal: bool,
    pub(crate) files: Option<Files>,
    pub(crate) _lock: Option<DirLock>,
}

impl Log {
    /// The chain of terms, oldest first; the last one began when the log was opened.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The epoch of the term that began when the log was opened.
    #[must_use]
    pub fn epoch(&self) -> &str {
        self.terms.last().map_or("", |term| &term.epoch)
    }

    /// Stores a batch in one transaction and returns one answer for each event, in the order of the batch.
    ///
    /// When it returns, everything new is on the disk. Numbers are consecutive per channel. A duplicate (same
    /// channel, user and `dedupe`, stored before or earlier in this batch) does not fail the batch; it takes no
    /// number and is answered with the first result. Nor does one that amends an event which is not there: it is
    /// `missing`, and the others are stored.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Busy`], [`Error::Gone`], or what SQLite reports. Nothing of the batch is to be
    /// acknowledged; the log stays usable, and the same batch may be tried again. If the failure was the disk's own (`Sqlite`) and a
    /// crash follows at once, events of the batch may be found stored after the restart: their `dedupe` answers that.
    pub fn append(&mut self, batch: &[Append<'_>]) -> Result<Vec<Appended>, Error> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.look_before()?;
        self.write_term()?;
        let term = self.term();
        match commit(&self.conn, &mut self.heads, term, self.dedupe_ms, batch) {
            Ok((appended, moved)) => {
                self.look_behind_commit()?;
                for (name, channel) in moved {
                    self.heads.put(name, channel);
                }
                self.erasures.note(&appended);
                Ok(appended)
            }
            Err(source) => {
                // Whatever went wrong, the store alone knows now.
                self.heads.clear();
                Err(self.explain(source))
            }
        }
    }

    /// The highest offset of a channel, 0 when nothing was ever appended to it.
    ///
    /// # Errors
    /// What SQLite reports while reading.
    pub fn head(&mut self, channel: &str) -> Result<u64, Error> {
        let known = self.channel(channel).map_err(|source| self.explain(source))?;
        Ok(known.map_or(0, |channel| channel.head))
    }

    /// The highest offset of a channel that is kept no longer, 0 while all are.
    ///
    /// # Errors
    /// What SQLite reports while reading.
    pub fn tail(&mut self, channel: &str) -> Result<u64, Error> {
        let known = self.channel(channel).map_err(|source| self.explain(source))?;
        Ok(known.map_or(0, |channel| channel.tail))
    }

    /// The terms in which something was appended to a channel.
    ///
    /// # Errors
    /// What SQLite reports while reading.
    pub fn term_starts(&mut self, channel: &str) -> Result<TermStarts, Error> {
        let known = self.channel(channel).map_err(|source| self.error(source))?;
        let Some(known) = known else { return Ok(TermStarts::default()) };
        terms::starts(&self.conn, known.id).map_err(|source| self.error(source))
    }

    /// Events of a channel with an offset above `after`, oldest first, from the oldest that is kept.
    ///
    /// At most `limit` of them, and no more than fit `bytes_max` (names and payloads counted, and 128 for
    /// what else an event carries), but the first one whatever its size, so that a reader always gets on. Costs one descent and a walk over what is returned.
    ///
    /// # Errors
    /// What SQLite reports while reading; [`Error::Corrupt`] when a page of the file is damaged.
    pub fn page(&mut self, channel: &str, after: u64, limit: usize, bytes_max: usize) -> Result<Page, Error> {
        let known = self.channel(channel).map_err(|source| self.explain(source))?;
        let Some(known) = known else {
            return Ok(Page { events: Vec::new(), head: 0 });
        };
        if after >= known.head || limit == 0 {
            return Ok(Page { events: Vec::new(), head: known.head });
        }
        let events = read_page(&self.conn, known.id, (after, known.head), limit, bytes_max);
        let events = events.map_err(|source| self.explain(source))?;
        Ok(Page { events, head: known.head })
    }

    /// Has this start's term on the disk, before anything that is stored in it.
    fn write_term(&mut self) -> Result<(), Error> {
        if !self.is_term_written
            && let Some(term) = self.terms.last()
        {
            terms::write(&self.conn, term).map_err(|source| self.error(source))?;
            self.is_term_written = true;
        }
        Ok(())
    }

    /// The number of this start's term.
    pub(crate) fn term(&self) -> u64 {
        self.terms.last().map_or(0, |term| term.number)
    }

    /// Frames (pages of 4 KiB) that the write-ahead log holds, as of the last commit; 0 in memory.
    #[must_use]
    pub fn wal_frames(&self) -> u64 {
        self.files.as_ref().map_or(0, Files::wal_frames)
    }

    /// Bytes of the write-ahead log's file, as of the last commit or look; 0 in memory.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.files.as_ref().map_or(0, Files::wal_bytes)
    }

    /// Bytes that the database grows by when the write-ahead log is copied into it, as of the last commit or look; 0 in
    /// memory.
    #[must_use]
    pub fn owed_bytes(&self) -> u64 {
        self.files.as_ref().map_or(0, Files::owed_bytes)
    }

    /// Has the end leave the write-ahead log as it is, for a disk without room for its copy. The next start reads it.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn keep_wal(&mut self) -> Result<(), Error> {
        self.keeps_wal = true;
        let kept = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        kept.map(|_| ()).map_err(|source| self.error(source))
    }

    /// Copies the rest of the write-ahead log into the database, so that its file is used from its beginning again. To
    /// be called when [`Reader::settle`](crate::Reader::settle) has copied most of it and while nobody reads.
    ///
    /// # Errors
    /// As of [`Log::forget`].
    pub fn settle(&mut self) -> Result<(), Error> {
        self.look_before()?;
        let settled = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        settled.map_err(|source| self.error(source))
    }

    /// Whether there are files to look at.
    #[must_use]
    pub const fn is_on_disk(&self) -> bool {
        self.files.is_some()
    }

    /// Looks whether the log's files are still those that were opened. While they are not, nothing is stored; once they
    /// are back as they were, it goes on.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn look(&mut self) -> Result<(), Error> {
        let found = self.files.as_mut().map_or(Ok(()), Files::check);
        self.note(found)
    }

    /// Commits something that is deleted again, of `bytes`, without waiting for another program: whether the log can
    /// store.
    ///
    /// # Errors
    /// As of [`Log::append`].
    pub fn probe(&mut self, bytes: usize) -> Result<(), Error> {
        self.look()?;
        let probed = self.conn.busy_timeout(Duration::ZERO).and_then(|()| {
            self.conn.execute(PROBE, [bytes.cast_signed() as i64])?;
            self.conn.execute(UNPROBE, []).map(|_| ())
        });
        self.conn.busy_timeout(self.patience()).and(probed).map_err(|source| self.error(source))?;
        self.look_behind_commit()
    }

    /// Says whether an append waits for a program that has the database locked. While the log is known to fail it
    /// should not: those behind it would wait as long again.
    ///
    /// # Errors
    /// What SQLite reports.
    pub fn set_patient(&mut self, is_patient: bool) -> Result<(), Error> {
        self.is_patient = is_patient;
        self.conn.busy_timeout(self.patience()).map_err(|source| self.error(source))
    }

    /// How long an append waits for another program.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(if self.is_patient { self.busy_timeout_ms } else { 0 })
    }

    /// A commit is worth nothing in a file that nobody finds again.
    pub(crate) fn look_behind_commit(&mut self) -> Result<(), Error> {
        let found = self.files.as_mut().map_or(Ok(()), Files::check_written);
        self.note(found)
    }

    /// Looks at what no write and no read may meet; tells what is known.
    pub(crate) fn look_before(&mut self) -> Result<(), Error> {
        if let Some(Err(gone)) = self.files.as_ref().map(Files::check_mapped) {
            return self.note(Err(gone));
        }
        self.check_known()
    }

    pub(crate) fn check_known(&self) -> Result<(), Error> {
        match &self.gone {
            Some((path, how)) => Err(Error::Gone { path: path.clone(), how: *how }),
            None => Ok(()),
        }
    }

    fn note(&mut self, found: Result<(), (PathBuf, Gone)>) -> Result<(), Error> {
        let gone = found.err();
        if gone.is_some() != self.gone.is_some() {
            self.heads.clear();
            // SQLite's close would move the write-ahead log into a file that is gone, and remove by its name what may
            // be another database's.
            let keeps_wal = self.keeps_wal || gone.is_some();
            let keep = self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keeps_wal);
            keep.map_err(|source| self.error(source))?;
        }
        self.gone = gone;
        self.check_known()
    }

    fn channel(&mut self, name: &str) -> rusqlite::Result<Option<Channel>> {
        // What was stored can be read, whatever is known of the files.
        let _ = self.look_before();
        if let Some(channel) = self.heads.find(name) {
            return Ok(Some(channel));
        }
        let channel = find_channel(&self.conn, name)?;
        if let Some(channel) = channel {
            self.heads.put(name, channel);
        }
        Ok(channel)
    }

    /// The error behind what SQLite reports: of a file that was cut it says no more than that it is malformed.
    fn explain(&mut self, source: rusqlite::Error) -> Error {
        let error = self.error(source);
        self.look().err().unwrap_or(error)
    }

    pub(crate) fn error(&self, source: rusqlite::Error) -> Error {
        Error::from_sqlite(source, &self.path, self.busy_timeout_ms)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The end must not touch files that have taken the place of ours a moment ago.
        let _ = self.look();
    }
}

type Committed<'b> = (Vec<Appended>, Vec<(&'b str, Channel)>);

/// One transaction; a drop before the commit, or a commit that fails, rolls it back.
fn commit<'b>(
    conn: &Connection,
    heads: &mut Heads,
    term: u64,
    dedupe_ms: u64,
    batch: &[Append<'b>],
) -> rusqlite::Result<Committed<'b>> {
    // Immediate: the wait for a lock is at the beginning, where the busy handler works.
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let mut work = Batch::new(conn, heads, term, dedupe_ms)?;
    let appended = batch.iter().map(|append| work.append(append)).collect::<rusqlite::Result<Vec<_>>>()?;
    work.move_heads()?;
    let moved = work.into_heads().collect();
    transaction.commit()?;
    Ok((appended, moved))
}

/// Events above an offset and up to another one.
pub(crate) fn read_page(
    conn: &Connection,
    channel_id: i64,
    (after, head): (u64, u64),
    limit: usize,
    bytes_max: usize,
) -> rusqlite::Result<Vec<Stored>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = conn.prepare_cached(PAGE)?;
    // Beyond what SQLite counts there is no event.
    let [after, head] = [after, head].map(|offset| i64::try_from(offset).unwrap_or(i64::MAX));
    let mut rows = select.query(params![channel_id, after, limit, head])?;
    let mut events = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let event = Stored::from_row(row)?;
        let names = event.event.len() + event.user.as_ref().map_or(0, |user| user.len());
        bytes += event.data.len() + names + EVENT_BYTES;
        if bytes > bytes_max && !events.is_empty() {
            break;
        }
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::Log;
    use crate::{Append, Error, Options};

    const EVENT: Append<'_> = Append {
        channel: "a",
        event: "new_message",
        data: &[b'x'; 3_000],
        number_field: false,
        user: None,
        dedupe: None,
        request: None,
        amends: None,
        time_ms: 0,
    };

    fn pragma<T: rusqlite::types::FromSql>(log: &Log, name: &str) -> T {
        log.conn.pragma_query_value(None, name, |row| row.get(0)).expect("the pragma has a value")
    }

    #[test]
    fn a_store_without_room_refuses_batches_until_there_is_some() {
        let mut log = Log::open_in_memory().expect("a log in memory opens");
        log.append(&[EVENT]).expect("there is room");
        let pages_max: i64 = pragma::<i64>(&log, "page_count") + 20;
        log.conn.pragma_update(None, "max_page_count", pages_max).expect("a limit may be set");
        let mut head = 1;
        let batch = [EVENT, EVENT, Append { channel: "new", ..EVENT }];
        for appended in (0..1_000).map_while(|_| log.append(&batch).ok()) {
            head = appended[1].offset;
        }
        let refused = [Append { channel: "newer", ..EVENT }, EVENT, EVENT];
        for _ in 0..3 {
            assert!(matches!(log.append(&refused), Err(Error::Full { .. })));
            assert_eq!((log.head("a").unwrap(), log.head("newer").unwrap()), (head, 0));
            assert_eq!(log.page("a", head - 1, 10, usize::MAX).unwrap().events.len(), 1);
        }
        log.conn.pragma_update(None, "max_page_count", 1_000_000).expect("the limit may be lifted");
        let appended = log.append(&refused).expect("there is room again");
        assert_eq!([1, head + 1, head + 2], [appended[0].offset, appended[1].offset, appended[2].offset]);
    }

    #[test]
    fn a_commit_is_on_the_disk_before_it_is_answered() {
        let dir = std::env::temp_dir().join(format!("realtime-log-unit-{}", std::process::id()));
        let log = Log::open(&Options::new(&dir)).expect("the log opens");
        let settings = (pragma::<String>(&log, "journal_mode"), pragma::<i64>(&log, "synchronous"));
        drop(log);
        std::fs::remove_dir_all(dir).expect("the directory goes away");
        // 2 is FULL: the write-ahead log is synced by every commit.
        assert_eq!(settings, ("wal".to_owned(), 2));
    }

    #[test]
    fn duplicates_and_pages_are_found_by_an_index() {
        let log = Log::open_in_memory().expect("a log in memory opens");
        let plan = |sql: &str| -> String {
            let sql = format!("EXPLAIN QUERY PLAN {sql}");
            let mut explain = log.conn.prepare(&sql).expect("the statement is right");
            let parameters = rusqlite::params_from_iter(1..=explain.parameter_count() as i64);
            let steps = explain.query_map(parameters, |row| row.get::<_, String>(3)).expect("it has a plan");
            steps.map(|step| step.expect("a step is text")).collect::<Vec<_>>().join("; ")
        };
        let payload = "; CORRELATED SCALAR SUBQUERY 1; \
                       SEARCH erasures USING PRIMARY KEY (channel_id=? AND refers=?); \
                       SEARCH erasing USING PRIMARY KEY (channel_id=? AND offset=?)";
        assert_eq!(
            plan(crate::append::FIND_DUPLICATE),
            format!("SEARCH events USING INDEX events_by_dedupe (channel_id=? AND user=? AND dedupe=?){payload}")
        );
        assert_eq!(
            plan(crate::erasure::AMENDING),
            "SEARCH events USING COVERING INDEX events_by_refers (channel_id=? AND refers=? AND offset>? AND offset<?)"
        );
        assert_eq!(plan(crate::terms::STARTS), "SEARCH term_starts USING PRIMARY KEY (channel_id=?)");
        let page = "SEARCH events USING PRIMARY KEY (channel_id=? AND offset>? AND offset<?)";
        assert_eq!(plan(super::PAGE), format!("{page}{payload}"));
    }
}
