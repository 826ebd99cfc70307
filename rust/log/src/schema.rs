//! The tables, as numbered migrations; `user_version` in the file says which were run.
//!
//! Each migration is one transaction together with its number, so a crash leaves the file at a whole number. They
//! are never edited once released: a change is a new entry at the end. The first makes an epoch (64 random bits), the
//! third makes it the first of the [terms](crate::terms).
//!
//! `events` is one B-tree in the order of (channel, offset): a page is one descent and a walk. `data` is a BLOB
//! because documents will store binary updates. `channels.head` is kept, and not derived from the highest event,
//! so that a number is not given again after its event is gone; `channels.tail` is the highest that is gone.
//! `events.refers` is the offset that an event amends. `dedupe_keys` holds the keys of events that are kept no longer.
//! `erasures` has the erasures that are under way ([`crate::erasure`]): of the events below `before` that amended
//! `refers` those up to `done` have lost their payload, and the others are read as if they had.

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// `rtlg`: marks the file as ours, so that another program's database is never migrated.
pub(crate) const APPLICATION_ID: i64 = 0x7274_6c67;

const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (
        key   TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE channels (
        id   INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        head INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE events (
        channel_id INTEGER NOT NULL,
        offset     INTEGER NOT NULL,
        event      TEXT NOT NULL,
        data       BLOB NOT NULL,
        user       TEXT,
        dedupe     TEXT,
        time_ms    INTEGER NOT NULL,
        PRIMARY KEY (channel_id, offset)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX events_by_dedupe ON events (channel_id, user, dedupe) WHERE dedupe IS NOT NULL;
    INSERT INTO meta (key, value) VALUES ('epoch', lower(hex(randomblob(8))));
",
    "
    ALTER TABLE events ADD COLUMN request TEXT;
    ALTER TABLE events ADD COLUMN refers INTEGER;
    CREATE INDEX events_by_refers ON events (channel_id, refers) WHERE refers IS NOT NULL;
    ALTER TABLE channels ADD COLUMN tail INTEGER NOT NULL DEFAULT 0;
",
    "
    CREATE TABLE terms (
        term  INTEGER PRIMARY KEY,
        epoch TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE term_starts (
        channel_id INTEGER NOT NULL REFERENCES channels (id) ON DELETE CASCADE,
        term       INTEGER NOT NULL,
        offset     INTEGER NOT NULL,
        PRIMARY KEY (channel_id, term)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO terms (epoch) SELECT value FROM meta WHERE key = 'epoch';
",
    "
    CREATE TABLE dedupe_keys (
        channel_id INTEGER NOT NULL,
        who        TEXT NOT NULL,
        dedupe     TEXT NOT NULL,
        offset     INTEGER NOT NULL,
        id         TEXT,
        time_ms    INTEGER NOT NULL,
        PRIMARY KEY (channel_id, who, dedupe)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX dedupe_keys_by_time ON dedupe_keys (time_ms);
",
    "
    CREATE TABLE erasures (
        channel_id INTEGER NOT NULL,
        refers     INTEGER NOT NULL,
        before     INTEGER NOT NULL,
        done       INTEGER NOT NULL,
        PRIMARY KEY (channel_id, refers)
    ) STRICT, WITHOUT ROWID;
",
];

/// The first schema number with the table `erasures`.
pub(crate) const ERASURES: u32 = 5;

/// The highest schema number that this version knows.
pub(crate) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// Runs the migrations after number `found`.
pub(crate) fn migrate(conn: &Connection, found: u32) -> rusqlite::Result<()> {
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", index as u32 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}
