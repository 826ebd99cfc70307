//! One batch on its way into the store: numbers, duplicates, one transaction.
//!
//! Everything that the batch changes in memory stands in [`Batch`] until the commit has succeeded, so that a batch
//! that fails at any step (no room, a locked file, a failing disk) leaves nothing behind. Called by
//! [`Log::append`](crate::Log::append) alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use crate::event::{Append, Appended, Stored, with_number};
use crate::heads::{Channel, Heads};

const FIND_CHANNEL: &str = "SELECT id, head FROM channels WHERE name = ?1";
const MAKE_CHANNEL: &str = "INSERT INTO channels (name, head) VALUES (?1, 0)";
const MOVE_HEAD: &str = "UPDATE channels SET head = ?2 WHERE id = ?1";
const INSERT_EVENT: &str = "INSERT INTO events (channel_id, offset, event, data, user, dedupe, time_ms) \
                            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
/// `IS`, so that the server's own events (no user) have their keys as well. The unique index serves it.
pub(crate) const FIND_DUPLICATE: &str =
    "SELECT offset, event, data, user, time_ms FROM events WHERE channel_id = ?1 AND user IS ?2 AND dedupe = ?3";

/// A batch inside its open transaction. Rows of this batch are seen by its own lookups, so a duplicate within the
/// batch needs no rule of its own.
pub(crate) struct Batch<'c, 'b> {
    conn: &'c Connection,
    heads: &'c mut Heads,
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
    pub(crate) fn new(conn: &'c Connection, heads: &'c mut Heads) -> rusqlite::Result<Self> {
        Ok(Self {
            conn,
            heads,
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
                    None => find_or_make_channel(self.conn, append.channel)?,
                };
                entry.insert(Touched { channel, is_moved: false })
            }
        };
        let channel_id = touched.channel.id;
        if let Some(dedupe) = append.dedupe {
            let key = params![channel_id, append.user, dedupe];
            if let Some(first) = self.find_duplicate.query_row(key, Stored::from_row).optional()? {
                let offset = first.offset;
                return Ok(Appended { offset, duplicate: true, stored: Some(first), data: Box::default() });
            }
        }
        let offset = touched.channel.head + 1;
        let data = if append.number_field { with_number(append.data, offset) } else { append.data.into() };
        self.insert_event.execute(params![
            channel_id,
            offset.cast_signed(),
            append.event,
            &*data,
            append.user,
            append.dedupe,
            // A clock set absurdly far ahead must not fail everybody's batch.
            i64::try_from(append.time_ms).unwrap_or(i64::MAX),
        ])?;
        *touched = Touched { channel: Channel { id: channel_id, head: offset }, is_moved: true };
        Ok(Appended { offset, duplicate: false, stored: None, data })
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
        .query_row([name], |row| Ok(Channel { id: row.get(0)?, head: row.get::<_, i64>(1)?.cast_unsigned() }))
        .optional()
}

fn find_or_make_channel(conn: &Connection, name: &str) -> rusqlite::Result<Channel> {
    if let Some(channel) = find_channel(conn, name)? {
        return Ok(channel);
    }
    let id = conn.prepare_cached(MAKE_CHANNEL)?.insert([name])?;
    Ok(Channel { id, head: 0 })
}
