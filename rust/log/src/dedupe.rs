//! Keys of events that are kept no longer: a command that is repeated late is still known.
//!
//! While an event lives its key stands with it, in the unique index of `events`. When it goes, by age or count, and is
//! younger than `dedupe_s`, its key moves to a table of its own with number and id. Only a channel that has lost events
//! has keys there, so no other pays for a look.

use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::Error;
use crate::event::{Append, Appended, Stored};
use crate::log::Log;

/// Keys that one slice deletes.
const EXPIRED_MAX: usize = 512;

/// The id is kept as JSON, where it is one of a usual length. `who` tells the server's own key from that of a user
/// without a name.
const MOVE: &str = "INSERT OR REPLACE INTO dedupe_keys (channel_id, who, dedupe, offset, id, time_ms) \
     SELECT channel_id, CASE WHEN user IS NULL THEN '' ELSE 'u' || user END, dedupe, offset, \
            CASE WHEN json_valid(CAST(data AS TEXT)) AND length(CAST(data AS TEXT) -> '$.id') <= 256 \
                 THEN CAST(data AS TEXT) -> '$.id' END, time_ms \
     FROM events WHERE channel_id = ?1 AND offset > ?2 AND offset <= ?3 AND dedupe IS NOT NULL AND time_ms > ?4";
pub(crate) const FIND: &str = "SELECT offset, id, time_ms FROM dedupe_keys \
     WHERE channel_id = ?1 AND who = ?2 AND dedupe = ?3 AND time_ms > ?4";
const EXPIRE: &str = "DELETE FROM dedupe_keys WHERE (channel_id, who, dedupe) IN \
     (SELECT channel_id, who, dedupe FROM dedupe_keys INDEXED BY dedupe_keys_by_time WHERE time_ms <= ?1 LIMIT ?2)";

impl Log {
    /// Says how long keys of events that are kept no longer are known, from the time of the event on; 0: not at all.
    pub fn set_dedupe_s(&mut self, dedupe_s: u64) {
        self.dedupe_ms = dedupe_s.saturating_mul(1_000);
    }

    /// Deletes a slice of the keys whose time is over; true where there may be more.
    ///
    /// # Errors
    /// As of [`Log::sweep`].
    pub fn expire_keys(&mut self, now_ms: u64) -> Result<bool, Error> {
        let since_ms = now_ms.saturating_sub(self.dedupe_ms);
        let expired = self
            .conn
            .prepare_cached(EXPIRE)
            .and_then(|mut expire| expire.execute(params![as_time(since_ms), EXPIRED_MAX as i64]));
        Ok(expired.map_err(|source| self.error(source))? == EXPIRED_MAX)
    }
}

/// Moves the young keys of a channel's events above `after` up to `tail`, which go now.
pub(crate) fn move_keys(
    conn: &Connection,
    channel_id: i64,
    after: u64,
    tail: u64,
    since_ms: u64,
) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(MOVE)?;
    insert.execute(params![channel_id, after.cast_signed(), tail.cast_signed(), as_time(since_ms)])?;
    Ok(())
}

/// The answer to an event whose key belongs to one that is kept no longer: its number and its id.
pub(crate) fn find_moved(
    conn: &Connection,
    channel_id: i64,
    append: &Append<'_>,
    dedupe_ms: u64,
) -> rusqlite::Result<Option<Appended>> {
    let Some(dedupe) = append.dedupe.filter(|_| dedupe_ms > 0) else { return Ok(None) };
    let who = append.user.map_or_else(String::new, |user| format!("u{user}"));
    let since_ms = as_time(append.time_ms.saturating_sub(dedupe_ms));
    let mut find = conn.prepare_cached(FIND)?;
    let found = find
        .query_row(params![channel_id, who, dedupe, since_ms], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, Option<String>>(1)?, row.get::<_, i64>(2)?))
        })
        .optional()?;
    Ok(found.map(|(offset, id, time_ms)| {
        let id = id.map_or_else(String::new, |id| format!(r#","id":{id}"#));
        let stored = Stored {
            offset,
            event: append.event.into(),
            data: format!(r#"{{"number":{offset}{id}}}"#).into_bytes().into(),
            user: append.user.map(Into::into),
            request: None,
            time_ms: time_ms.cast_unsigned(),
        };
        Appended { offset, duplicate: true, stored: Some(stored), ..Appended::default() }
    }))
}

/// Before 1970 there is nothing: a time of 0 is as good as none.
fn as_time(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
