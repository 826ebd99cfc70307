//! Retention: events that are kept no longer go, oldest first, in slices that hold nobody up.
//!
//! A slice is one transaction with a bound on channels, rows and bytes, so that an append behind it waits some
//! milliseconds. What goes is always the oldest stretch of a channel: its `tail` moves up with it, in the same
//! transaction, and whoever asks for less is told that it is gone. Beside it stands what makes the file forget:
//! `secure_delete` overwrites what is deleted or replaced, and [`Log::forget`] empties the write-ahead log of it.

use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::apart::apart;
use crate::dedupe::move_keys;
use crate::error::Error;
use crate::event::{Keep, Swept};
use crate::heads::Channel;
use crate::log::Log;

/// Channels that one slice looks at.
const CHANNELS_MAX: i64 = 256;
/// Events that one slice deletes.
const EVENTS_MAX: usize = 256;
/// Bytes of payload that one slice deletes; each is written again, as zero.
const BYTES_MAX: usize = 1 << 20;

const CHANNELS: &str = "SELECT id, name, head, tail FROM channels WHERE id > ?1 AND head > tail ORDER BY id LIMIT ?2";
pub(crate) const OLDEST: &str = "SELECT offset, time_ms, length(data) FROM events \
                                 WHERE channel_id = ?1 AND offset > ?2 ORDER BY offset LIMIT ?3";
const DELETE: &str = "DELETE FROM events WHERE channel_id = ?1 AND offset <= ?2";
const MOVE_TAIL: &str = "UPDATE channels SET tail = ?2 WHERE id = ?1";

impl Log {
    /// Deletes a slice of what `keep` lets go, in channels behind the row `after` (0 begins anew). `keep` is asked with
    /// a channel's name; `None` keeps all of it.
    ///
    /// By age the oldest events go up to the first that is young enough, whatever the times behind it. Keys of events
    /// that are younger at `now_ms` than [`Log::set_dedupe_s`] says stay known.
    ///
    /// A channel that is damaged is passed over.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Busy`], [`Error::Gone`], or what SQLite reports. Nothing of the slice is gone then.
    pub fn sweep(&mut self, after: i64, now_ms: u64, keep: impl Fn(&str) -> Option<Keep>) -> Result<Swept, Error> {
        self.look_before()?;
        match self.sweep_slice(after, now_ms, keep) {
            Ok((swept, moved)) => {
                for (name, channel) in moved {
                    if let Some(known) = self.heads.find(&name) {
                        self.heads.put(&name, Channel { tail: channel.tail, ..known });
                    }
                }
                Ok(swept)
            }
            Err(error) => {
                self.heads.clear();
                Err(error)
            }
        }
    }

    /// Moves the write-ahead log into the database and empties its file, so that what was erased before is nowhere
    /// any more. Costs the pages that wait there; without any, next to nothing.
    ///
    /// Returns whether it is done: another program that reads the database keeps it from being emptied, and is not
    /// waited for.
    ///
    /// # Errors
    /// What SQLite reports, such as [`Error::Full`]. Nothing is lost then.
    pub fn forget(&mut self) -> Result<bool, Error> {
        self.look_before()?;
        let done = self.conn.busy_timeout(Duration::ZERO).and_then(|()| {
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0).map(|busy| busy == 0))
        });
        let done = self.conn.busy_timeout(self.patience()).and(done).map_err(|source| self.error(source));
        self.look_behind_commit()?;
        done
    }
}

type Moved = Vec<(Box<str>, Channel)>;

/// What one slice may still take.
struct Budget {
    events: usize,
    bytes: usize,
}

impl Log {
    fn sweep_slice(
        &self,
        after: i64,
        now_ms: u64,
        keep: impl Fn(&str) -> Option<Keep>,
    ) -> Result<(Swept, Moved), Error> {
        let sqlite = |source| self.error(source);
        let mut swept = Swept::default();
        let mut moved = Vec::new();
        let found = find_channels(&self.conn, after).map_err(sqlite)?;
        if found.len() as i64 == CHANNELS_MAX {
            swept.next = found.last().map(|(_, channel)| channel.id);
        }
        let mut budget = Budget { events: EVENTS_MAX, bytes: BYTES_MAX };
        let mut transaction = None;
        for (name, mut channel) in found {
            let Some(keep) = keep(&name) else { continue };
            match self.sweep_channel(channel, keep, now_ms, &mut budget, &mut transaction) {
                Ok(None) => {}
                Ok(Some(tail)) => {
                    channel.tail = tail;
                    swept.tails.push((name.clone(), tail));
                    moved.push((name, channel));
                }
                Err(error) if error.may_be_one_channels() => {
                    swept.failed.push((name, error));
                    if transaction.is_some() && self.conn.is_autocommit() {
                        // The disk failed and took the slice along: the next one begins behind this channel.
                        swept.tails.clear();
                        swept.next = Some(channel.id);
                        return Ok((swept, Vec::new()));
                    }
                }
                Err(error) => return Err(error),
            }
            if budget.events == 0 || budget.bytes == 0 {
                // The same channel again: there may be more of it.
                swept.next = Some(channel.id - 1);
                break;
            }
        }
        if let Some(transaction) = transaction {
            transaction.commit().map_err(sqlite)?;
        }
        Ok((swept, moved))
    }

    /// Deletes what of a channel goes, and returns its new tail. The first that loses something begins the transaction.
    fn sweep_channel<'c>(
        &'c self,
        channel: Channel,
        keep: Keep,
        now_ms: u64,
        budget: &mut Budget,
        transaction: &mut Option<Transaction<'c>>,
    ) -> Result<Option<u64>, Error> {
        let sqlite = |source| self.error(source);
        let Some(tail) = find_gone(&self.conn, channel, keep, budget).map_err(sqlite)? else { return Ok(None) };
        if transaction.is_none() {
            let begun = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate);
            *transaction = Some(begun.map_err(sqlite)?);
        }
        let since_ms = now_ms.saturating_sub(self.dedupe_ms);
        let done = apart(&self.conn, || {
            if self.dedupe_ms > 0 {
                move_keys(&self.conn, channel.id, channel.tail, tail, since_ms)?;
            }
            self.conn.prepare_cached(DELETE)?.execute(params![channel.id, tail.cast_signed()])?;
            self.conn.prepare_cached(MOVE_TAIL)?.execute(params![channel.id, tail.cast_signed()])
        });
        done.map_err(sqlite)?;
        Ok(Some(tail))
    }
}

fn find_channels(conn: &Connection, after: i64) -> rusqlite::Result<Moved> {
    let mut select = conn.prepare_cached(CHANNELS)?;
    let channels = select.query_map(params![after, CHANNELS_MAX], |row| {
        let [head, tail] = [row.get::<_, i64>(2)?, row.get(3)?].map(i64::cast_unsigned);
        Ok((row.get(1)?, Channel { id: row.get(0)?, head, tail, term: 0 }))
    })?;
    channels.collect()
}

/// The new tail, where something goes; takes what that costs from the slice's budget.
fn find_gone(conn: &Connection, channel: Channel, keep: Keep, budget: &mut Budget) -> rusqlite::Result<Option<u64>> {
    let by_count = keep.events.map_or(0, |events| channel.head.saturating_sub(events));
    if by_count <= channel.tail && keep.since_ms.is_none() {
        return Ok(None);
    }
    let mut select = conn.prepare_cached(OLDEST)?;
    let mut rows = select.query(params![channel.id, channel.tail.cast_signed(), budget.events as i64])?;
    let mut gone = None;
    while let (Some(row), true) = (rows.next()?, budget.events > 0 && budget.bytes > 0) {
        let offset = row.get::<_, i64>(0)?.cast_unsigned();
        let time_ms = row.get::<_, i64>(1)?.cast_unsigned();
        if offset > by_count && keep.since_ms.is_none_or(|since_ms| time_ms >= since_ms) {
            break;
        }
        gone = Some(offset);
        budget.events -= 1;
        budget.bytes = budget.bytes.saturating_sub(row.get::<_, i64>(2)? as usize);
    }
    Ok(gone)
}
