//! Erasure: what amended an erased event loses its payload, however much that is, and nobody waits for it.
//!
//! The payload that was erased is overwritten in the file, which costs as much as writing it. A little of it goes at
//! once, in the transaction of the event that erases. Of more that transaction leaves a row in `erasures`, and from its
//! commit on every read takes the payload of the erasing event instead ([`payload!`]): nothing that was erased is read,
//! also after a crash. [`Log::erase`] then overwrites slice by slice and takes the row away with the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use crate::error::Error;
use crate::event::{Appended, Stored};
use crate::log::Log;

/// Events that lose their payload at once, and bytes. To find one by its number SQLite may read several others whole.
const AT_ONCE_MAX: usize = 8;
const AT_ONCE_BYTES_MAX: usize = 256 << 10;
/// Events that one slice overwrites, and how long it may have taken before another one.
const SLICE_EVENTS_MAX: usize = 256;
const SLICE_TIME_MAX: Duration = Duration::from_millis(8);

/// The column `data` of `events` as it is to be read: of an event that is erased and not overwritten yet, the payload of
/// the one that erases it.
macro_rules! payload {
    () => {
        "coalesce((SELECT erasing.data FROM erasures JOIN events erasing \
           ON erasing.channel_id = erasures.channel_id AND erasing.offset = erasures.before \
           WHERE erasures.channel_id = events.channel_id AND erasures.refers = events.refers \
           AND erasures.before > events.offset), data)"
    };
}
pub(crate) use payload;

const REPLACE: &str = "UPDATE events SET data = ?3 WHERE channel_id = ?1 AND offset = ?2";
/// What had amended an event before. The primary key of a table without rowids ends each of its indexes, so they come
/// in order.
pub(crate) const AMENDING: &str = "SELECT offset FROM events INDEXED BY events_by_refers \
     WHERE channel_id = ?1 AND refers = ?2 AND offset > ?3 AND offset < ?4 ORDER BY offset LIMIT ?5";
const NEWEST_AMENDING: &str = "SELECT max(offset) FROM events INDEXED BY events_by_refers \
     WHERE channel_id = ?1 AND refers = ?2 AND offset < ?3";
const FIND: &str =
    "SELECT offset, event, x'', user, request, time_ms FROM events WHERE channel_id = ?1 AND offset = ?2";
const BEGIN: &str = "INSERT OR REPLACE INTO erasures (channel_id, refers, before, done) VALUES (?1, ?2, ?3, 0)";
const NEXT: &str = "SELECT channel_id, refers, before, done FROM erasures \
                    WHERE (channel_id, refers) > (?1, ?2) ORDER BY channel_id, refers LIMIT 1";
const BYTES: &str = "SELECT length(data) FROM events WHERE channel_id = ?1 AND offset = ?2";
const DATA: &str = "SELECT data FROM events WHERE channel_id = ?1 AND offset = ?2";
const MOVE: &str = "UPDATE erasures SET done = ?3 WHERE channel_id = ?1 AND refers = ?2";
const END: &str = "DELETE FROM erasures WHERE channel_id = ?1 AND refers = ?2";
/// All that is under way, in one go.
const ALL: &str = concat!(
    "UPDATE events SET data = ",
    payload!(),
    " WHERE EXISTS (SELECT 1 FROM erasures WHERE erasures.channel_id = events.channel_id \
       AND erasures.refers = events.refers AND erasures.before > events.offset)"
);

/// What an event has erased.
#[derive(Default)]
pub(crate) struct Erased {
    /// The events whose payload is another one now.
    pub(crate) changed: Vec<Stored>,
    /// See [`Appended::erased_up_to`].
    pub(crate) up_to: u64,
}

/// What a log knows of the erasures that are under way.
#[derive(Debug, Default)]
pub(crate) struct Erasures {
    /// Whether there may be one.
    any: bool,
    /// The one that the last slice was of, by channel and amended event.
    last: (i64, i64),
}

/// What one slice did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Events that lost their payload.
    pub events: usize,
    /// Whether there is more to do.
    pub has_more: bool,
}

struct Erasure {
    channel_id: i64,
    refers: i64,
    before: i64,
    done: i64,
}

impl Erasures {
    /// What a process that ended before has left to do.
    pub(crate) fn find(conn: &Connection) -> rusqlite::Result<Self> {
        Ok(Self { any: find_next(conn, (0, 0))?.is_some(), last: (0, 0) })
    }

    /// Takes note of a batch that is committed.
    pub(crate) fn note<'a>(&mut self, appended: impl IntoIterator<Item = &'a Appended>) {
        self.any |= appended.into_iter().any(|one| one.erased_up_to > 0);
    }
}

impl Log {
    /// Whether an erasure is under way.
    #[must_use]
    pub const fn is_erasing(&self) -> bool {
        self.erasures.any
    }

    /// Overwrites a slice of what was erased: some milliseconds, in one transaction. Erasures take turns.
    ///
    /// # Errors
    /// As of [`Log::append`]. Nothing of the slice is overwritten then; the next call goes on with another erasure.
    pub fn erase(&mut self) -> Result<Slice, Error> {
        self.look_before()?;
        match erase_slice(&self.conn, &mut self.erasures) {
            Ok(slice) => {
                self.look_behind_commit()?;
                Ok(slice)
            }
            Err(source) => Err(self.error(source)),
        }
    }
}

/// Has the events of a channel that amended `refers` before the event `before` lose their payload for that event's, `data`:
/// within the open transaction where they are few, else slice by slice behind it. `changed` are those changed before.
pub(crate) fn erase(
    conn: &Connection,
    channel_id: i64,
    refers: u64,
    before: u64,
    data: &Arc<[u8]>,
    mut changed: Vec<Stored>,
) -> rusqlite::Result<Erased> {
    let [refers, before] = [refers, before].map(u64::cast_signed);
    let earlier = find_amending(conn, channel_id, (refers, 0, before), AT_ONCE_MAX + 1)?;
    if earlier.len() > AT_ONCE_MAX || bytes_of(conn, channel_id, &earlier)? > AT_ONCE_BYTES_MAX {
        let newest = conn
            .prepare_cached(NEWEST_AMENDING)?
            .query_row(params![channel_id, refers, before], |row| row.get::<_, i64>(0))?;
        conn.prepare_cached(BEGIN)?.execute(params![channel_id, refers, before])?;
        return Ok(Erased { changed, up_to: newest.cast_unsigned() });
    }
    let mut find = conn.prepare_cached(FIND)?;
    for offset in earlier {
        let one = find.query_row(params![channel_id, offset], Stored::from_row)?;
        replace(conn, channel_id, one.offset, data)?;
        changed.push(Stored { data: Arc::clone(data), ..one });
    }
    Ok(Erased { changed, up_to: 0 })
}

/// Gives an event another payload.
pub(crate) fn replace(conn: &Connection, channel_id: i64, offset: u64, data: &[u8]) -> rusqlite::Result<()> {
    conn.prepare_cached(REPLACE)?.execute(params![channel_id, offset.cast_signed(), data]).map(drop)
}

/// Ends all erasures of a copy that nobody reads yet, and overwrites what they leave. Returns whether there were any.
pub(crate) fn finish(conn: &Connection) -> rusqlite::Result<bool> {
    if find_next(conn, (0, 0))?.is_none() {
        return Ok(false);
    }
    conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    transaction.execute(ALL, [])?;
    transaction.execute("DELETE FROM erasures", [])?;
    transaction.commit()?;
    conn.execute("VACUUM", [])?;
    Ok(true)
}

fn erase_slice(conn: &Connection, erasures: &mut Erasures) -> rusqlite::Result<Slice> {
    let found = match find_next(conn, erasures.last)? {
        None => find_next(conn, (0, 0))?,
        found => found,
    };
    let Some(Erasure { channel_id, refers, before, done }) = found else {
        erasures.any = false;
        return Ok(Slice { events: 0, has_more: false });
    };
    // Also where it fails: the others are not held up by it.
    erasures.last = (channel_id, refers);
    let started = Instant::now();
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let rest = find_amending(conn, channel_id, (refers, done, before), SLICE_EVENTS_MAX)?;
    let mut is_last = rest.len() < SLICE_EVENTS_MAX;
    let (mut events, mut done) = (0, done);
    let data = conn
        .prepare_cached(DATA)?
        .query_row(params![channel_id, before], |row| row.get::<_, Vec<u8>>(0))
        .optional()?
        // Kept no longer, and so is everything before it.
        .unwrap_or_default();
    for offset in rest {
        if events > 0 && started.elapsed() >= SLICE_TIME_MAX {
            is_last = false;
            break;
        }
        replace(conn, channel_id, offset.cast_unsigned(), &data)?;
        (events, done) = (events + 1, offset);
    }
    if is_last {
        conn.prepare_cached(END)?.execute(params![channel_id, refers])?;
    } else {
        conn.prepare_cached(MOVE)?.execute(params![channel_id, refers, done])?;
    }
    transaction.commit()?;
    erasures.any = !is_last || find_next(conn, (0, 0))?.is_some();
    Ok(Slice { events, has_more: erasures.any })
}

fn find_next(conn: &Connection, (channel_id, refers): (i64, i64)) -> rusqlite::Result<Option<Erasure>> {
    let mut find = conn.prepare_cached(NEXT)?;
    let found = find.query_row(params![channel_id, refers], |row| {
        Ok(Erasure { channel_id: row.get(0)?, refers: row.get(1)?, before: row.get(2)?, done: row.get(3)? })
    });
    found.optional()
}

/// The events that amend one, between two offsets, oldest first. The index alone is read for it.
fn find_amending(
    conn: &Connection,
    channel_id: i64,
    (refers, after, before): (i64, i64, i64),
    most: usize,
) -> rusqlite::Result<Vec<i64>> {
    let mut find = conn.prepare_cached(AMENDING)?;
    let rows = find.query_map(params![channel_id, refers, after, before, most as i64], |row| row.get(0))?;
    rows.collect()
}

/// Bytes of the payloads of some events.
fn bytes_of(conn: &Connection, channel_id: i64, offsets: &[i64]) -> rusqlite::Result<usize> {
    let mut find = conn.prepare_cached(BYTES)?;
    let sizes = offsets.iter().map(|offset| find.query_row(params![channel_id, offset], |row| row.get::<_, i64>(0)));
    sizes.map(|size| size.map(|size| usize::try_from(size).unwrap_or(0))).sum()
}
