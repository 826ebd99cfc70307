//! One batch on its way into the store: numbers, duplicates, one transaction.
//!
//! Everything that the batch changes in memory stands in [`Batch`] until the commit has succeeded, so that a batch
//! that fails at any step (no room, a locked file, a failing disk) leaves nothing behind. Called by
//! [`Log::append`](crate::Log::append) alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use crate::dedupe::find_moved;
use crate::erasure::{Erased, erase, payload, replace};
use crate::event::{Amends, Append, Appended, Stored, with_number};
use crate::heads::{Channel, Heads};
use crate::terms;

const FIND_CHANNEL: &str = "SELECT id, head, tail, \
                            (SELECT coalesce(max(term), 0) FROM term_starts WHERE channel_id = channels.id) \
                            FROM channels WHERE name = ?1";
const MAKE_CHANNEL: &str = "INSERT INTO channels (name, head) VALUES (?1, 0)";
const MOVE_HEAD: &str = "UPDATE channels SET head = ?2 WHERE id = ?1";
/// Inserts nothing where the user has used the key in this channel before: one descent of the index looks for it and
/// keeps it.
const INSERT_EVENT: &str = "INSERT INTO events (channel_id, offset, event, data, user, dedupe, time_ms, request, refers) \
                            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
                            ON CONFLICT (channel_id, user, dedupe) WHERE dedupe IS NOT NULL DO NOTHING";
const FIND_EVENT: &str =
    "SELECT offset, event, x'', user, request, time_ms FROM events WHERE channel_id = ?1 AND offset = ?2";
/// `IS`, so that the server's own events (no user) have their keys as well. The unique index serves it.
pub(crate) const FIND_DUPLICATE: &str = concat!(
    "SELECT offset, event, ",
    payload!(),
    ", user, request, time_ms FROM events WHERE channel_id = ?1 AND user IS ?2 AND dedupe = ?3"
);

/// A batch inside its open transaction. Rows of this batch are seen by its own lookups, so a duplicate within the
/// batch needs no rule of its own.
pub(crate) struct Batch<'c, 'b> {
    conn: &'c Connection,
    heads: &'c mut Heads,
    term: u64,
    dedupe_ms: u64,
    insert_event: CachedStatement<'c>,
    find_duplicate: CachedStatement<'c>,
    channels: HashMap<&'b str, Touched>,
}

#[derive(Clone, Copy)]
struct Touched {
    channel: Channel,
    is_moved: bool,
}

impl<'c, 'b> Batch<'c, 'b> {
    /// A batch of the term with this number; keys of events that are gone are known for `dedupe_ms`.
    pub(crate) fn new(conn: &'c Connection, heads: &'c mut Heads, term: u64, dedupe_ms: u64) -> rusqlite::Result<Self> {
        Ok(Self {
            conn,
            heads,
            term,
            dedupe_ms,
            insert_event: conn.prepare_cached(INSERT_EVENT)?,
            find_duplicate: conn.prepare_cached(FIND_DUPLICATE)?,
            channels: HashMap::new(),
        })
    }

    pub(crate) fn append(&mut self, append: &Append<'b>) -> rusqlite::Result<Appended> {
        let touched = match self.channels.entry(append.channel) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let channel = match self.heads.find(append.channel) {
                    Some(channel) => channel,
                    None => match find_channel(self.conn, append.channel)? {
                        Some(channel) => channel,
                        None if append.amends.is_some() => {
                            return Ok(Appended { missing: true, ..Appended::default() });
                        }
                        None => make_channel(self.conn, append.channel)?,
                    },
                };
                entry.insert(Touched { channel, is_moved: false })
            }
        };
        let channel_id = touched.channel.id;
        // Where events are kept no longer, their keys may be known still.
        if touched.channel.tail > 0
            && let Some(duplicate) = find_moved(self.conn, channel_id, append, self.dedupe_ms)?
        {
            return Ok(duplicate);
        }
        // To the index two events without a user differ, and what is amended has to be there only for the first.
        if (append.user.is_none() || append.amends.is_some())
            && let Some(duplicate) = find_duplicate(&mut self.find_duplicate, channel_id, append)?
        {
            return Ok(duplicate);
        }
        let amended = match append.amends {
            None => None,
            Some(amends) => match find_event(self.conn, channel_id, amends.offset)? {
                None => return Ok(Appended { missing: true, ..Appended::default() }),
                Some(amended) => Some((amends, amended)),
            },
        };
        let offset = touched.channel.head + 1;
        let data = if append.number_field { with_number(append.data, offset) } else { append.data.into() };
        let inserted = self.insert_event.execute(params![
            channel_id,
            offset.cast_signed(),
            append.event,
            &*data,
            append.user,
            append.dedupe,
            // A clock set absurdly far ahead must not fail everybody's batch.
            i64::try_from(append.time_ms).unwrap_or(i64::MAX),
            append.request,
            append.amends.map(|amends| amends.offset.cast_signed()),
        ])?;
        if inserted == 0
            && let Some(duplicate) = find_duplicate(&mut self.find_duplicate, channel_id, append)?
        {
            return Ok(duplicate);
        }
        if touched.channel.term != self.term {
            terms::start(self.conn, channel_id, self.term, offset)?;
            touched.channel.term = self.term;
        }
        touched.channel.head = offset;
        touched.is_moved = true;
        let Erased { changed, up_to } = match amended {
            None => Erased::default(),
            Some((amends, amended)) => amend(self.conn, channel_id, &amends, amended, offset, &data)?,
        };
        Ok(Appended { offset, data, amended: changed, erased_up_to: up_to, ..Appended::default() })
    }

    /// Writes the heads that the batch moved: one row a channel, however many events it got.
    pub(crate) fn move_heads(&mut self) -> rusqlite::Result<()> {
        let mut move_head = self.conn.prepare_cached(MOVE_HEAD)?;
        for Touched { channel, .. } in self.channels.values().filter(|touched| touched.is_moved) {
            move_head.execute(params![channel.id, channel.head.cast_signed()])?;
        }
        Ok(())
    }

    /// The heads as the batch leaves them, to be remembered once it is committed.
    pub(crate) fn into_heads(self) -> impl Iterator<Item = (&'b str, Channel)> {
        self.channels.into_iter().map(|(name, touched)| (name, touched.channel))
    }
}

/// The channel as it is committed; `None` when nothing was ever appended to it.
pub(crate) fn find_channel(conn: &Connection, name: &str) -> rusqlite::Result<Option<Channel>> {
    conn.prepare_cached(FIND_CHANNEL)?
        .query_row([name], |row| {
            let [head, tail, term] = [row.get::<_, i64>(1)?, row.get(2)?, row.get(3)?].map(i64::cast_unsigned);
            Ok(Channel { id: row.get(0)?, head, tail, term })
        })
        .optional()
}

/// The first event with this one's key, where there is one.
fn find_duplicate(
    find: &mut CachedStatement<'_>,
    channel_id: i64,
    append: &Append<'_>,
) -> rusqlite::Result<Option<Appended>> {
    let Some(dedupe) = append.dedupe else { return Ok(None) };
    let first = find.query_row(params![channel_id, append.user, dedupe], Stored::from_row).optional()?;
    Ok(first.map(|first| Appended {
        offset: first.offset,
        duplicate: true,
        stored: Some(first),
        ..Appended::default()
    }))
}

/// The event without its payload.
fn find_event(conn: &Connection, channel_id: i64, offset: u64) -> rusqlite::Result<Option<Stored>> {
    // Beyond what SQLite counts there is no event.
    let Ok(offset) = i64::try_from(offset) else { return Ok(None) };
    conn.prepare_cached(FIND_EVENT)?.query_row(params![channel_id, offset], Stored::from_row).optional()
}

/// Gives `amended` its new payload, and with `erases` has those that had amended it before lose theirs.
fn amend(
    conn: &Connection,
    channel_id: i64,
    amends: &Amends<'_>,
    amended: Stored,
    offset: u64,
    data: &Arc<[u8]>,
) -> rusqlite::Result<Erased> {
    let mut changed = Vec::new();
    if let Some(replacement) = amends.replacement {
        replace(conn, channel_id, amends.offset, replacement)?;
        changed.push(Stored { data: replacement.into(), ..amended });
    }
    if !amends.erases {
        return Ok(Erased { changed, up_to: 0 });
    }
    erase(conn, channel_id, amends.offset, offset, data, changed)
}

fn make_channel(conn: &Connection, name: &str) -> rusqlite::Result<Channel> {
    let id = conn.prepare_cached(MAKE_CHANNEL)?.insert([name])?;
    Ok(Channel { id, head: 0, tail: 0, term: 0 })
}
