//! What a channel holds, read without a server's log: the command line asks what was revoked, also while a server runs.

use std::path::Path;

use rusqlite::OpenFlags;

use crate::backup::{BUSY_MS, open};
use crate::erasure::payload;
use crate::error::Error;
use crate::open::DATABASE_NAME;
use crate::schema;

const DATA: &str = concat!(
    "SELECT ",
    payload!(),
    " FROM events JOIN channels ON channels.id = events.channel_id WHERE channels.name = ? ORDER BY offset"
);
/// Of a log that no server of this version has opened yet: nothing is half erased in it.
const OLDER: &str =
    "SELECT data FROM events JOIN channels ON channels.id = events.channel_id WHERE channels.name = ? ORDER BY offset";

/// The data of every event of a channel that is kept, oldest first; `None` where the data directory holds no log.
/// The database is not written to.
///
/// # Errors
/// Why the log cannot be read.
pub fn stored(data_dir: &Path, channel: &str) -> Result<Option<Vec<Box<[u8]>>>, Error> {
    let path = data_dir.join(DATABASE_NAME);
    if !path.is_file() {
        return Ok(None);
    }
    let conn = open(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let read = || {
        let is_older = conn.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))? < schema::ERASURES;
        let mut statement = conn.prepare(if is_older { OLDER } else { DATA })?;
        let rows = statement.query_map([channel], |row| row.get::<_, Vec<u8>>(0).map(Vec::into_boxed_slice))?;
        rows.collect::<Result<Vec<_>, _>>()
    };
    read().map(Some).map_err(|source| Error::from_sqlite(source, &path, BUSY_MS))
}
