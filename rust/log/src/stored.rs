//! What a channel holds, read without a server's log: the command line asks what was revoked, also while a server runs.

use std::path::Path;

use rusqlite::{OpenFlags, params};

use crate::backup::{BUSY_MS, open};
use crate::erasure::payload;
use crate::error::Error;
use crate::open::DATABASE_NAME;
use crate::schema;

const DATA: &str = concat!(
    "SELECT ",
    payload!(),
    ", offset FROM events JOIN channels ON channels.id = events.channel_id \
     WHERE channels.name = ? AND offset > ? ORDER BY offset"
);
/// Of a log that no server of this version has opened yet: nothing is half erased in it.
const OLDER: &str = "SELECT data, offset FROM events JOIN channels ON channels.id = events.channel_id \
     WHERE channels.name = ? AND offset > ? ORDER BY offset";
/// Bytes of one page; as of the hub's pages.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// Offsets and data of events.
pub type StoredPage = Vec<(u64, Box<[u8]>)>;

/// Offset and data of events of a channel that are kept, oldest first, above the offset `after`: a page of at most 1 MiB,
/// but one event at least; empty at the end. `None` where the data directory holds no log. The database is not written to.
///
/// # Errors
/// Why the log cannot be read.
pub fn stored(data_dir: &Path, channel: &str, after: u64) -> Result<Option<StoredPage>, Error> {
    let path = data_dir.join(DATABASE_NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let conn = open(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let read = || {
        let is_older = conn.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))? < schema::ERASURES;
        let mut statement = conn.prepare(if is_older { OLDER } else { DATA })?;
        // Beyond what SQLite counts there is no event.
        let mut rows = statement.query(params![channel, i64::try_from(after).unwrap_or(i64::MAX)])?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let data = row.get::<_, Vec<u8>>(0)?.into_boxed_slice();
            bytes += data.len();
            if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                break;
            }
            page.push((row.get::<_, i64>(1)?.cast_unsigned(), data));
        }
        Ok(page)
    };
    read().map(Some).map_err(|source| Error::from_sqlite(source, &path, BUSY_MS))
}
