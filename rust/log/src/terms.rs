//! Terms: which starts of the log a position may come from.
//!
//! Every start of the log begins a term with a random epoch, kept in order, and a channel's first append in a term leaves
//! one row: the term and the offset. A position `(offset, epoch)` is one of this history where the epoch names a term of
//! the chain and the offset is below the channel's first of every later term: what a client saw in a term that was cut
//! short by a restored copy lies above. Offsets of a channel rise with its terms, so the next later row decides.
//!
//! Where the disk has no room at a start, what is stored can be read all the same: the term begins in memory, and is
//! written before the first thing that is stored in it. A term that was never written leaves a position that no later start
//! knows, which is what a client is told then.
//!
//! Both are bounded: the chain by [`CHAIN_MAX`], a channel's rows by [`CHANNEL_TERMS_MAX`]. What is older is not whole.

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

/// Terms of the chain: eleven years of a start a day.
const CHAIN_MAX: i64 = 4_096;
/// Terms of a channel, counted are those in which something was appended to it.
const CHANNEL_TERMS_MAX: usize = 256;

const BEGIN: &str = "INSERT INTO terms (epoch) VALUES (lower(hex(randomblob(8))))";
const IMAGINE: &str = "SELECT coalesce(max(term), 0) + 1, lower(hex(randomblob(8))) FROM terms";
const WRITE: &str = "INSERT INTO terms (term, epoch) VALUES (?1, ?2)";
const SHORTEN: &str = "DELETE FROM terms WHERE term <= (SELECT max(term) FROM terms) - ?1";
const CHAIN: &str = "SELECT term, epoch FROM terms ORDER BY term";
const START: &str = "INSERT INTO term_starts (channel_id, term, offset) VALUES (?1, ?2, ?3)";
const FORGET: &str = "DELETE FROM term_starts WHERE channel_id = ?1 AND term <= \
                      (SELECT term FROM term_starts WHERE channel_id = ?1 ORDER BY term DESC LIMIT 1 OFFSET ?2)";
pub(crate) const STARTS: &str = "SELECT term, offset FROM term_starts WHERE channel_id = ?1 ORDER BY term";

/// One start of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// Its place: later terms have higher numbers.
    pub number: u64,
    /// Its random name, 16 hexadecimal digits.
    pub epoch: Box<str>,
}

/// The terms in which something was appended to a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TermStarts {
    /// Number of the term and the channel's first offset in it, both rising.
    pub firsts: Vec<(u64, u64)>,
    /// Rows before this term may be gone: positions of older terms cannot be judged. 0 while all are there.
    pub oldest: u64,
}

/// Begins a term and returns the chain, its own last. It is on the disk when this returns.
pub(crate) fn begin(conn: &Connection) -> rusqlite::Result<Vec<Term>> {
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    transaction.execute(BEGIN, [])?;
    transaction.execute(SHORTEN, [CHAIN_MAX])?;
    let chain = read_chain(&transaction)?;
    transaction.commit()?;
    Ok(chain)
}

/// The chain with a term at its end that [`write`] has on the disk later.
pub(crate) fn imagine(conn: &Connection) -> rusqlite::Result<Vec<Term>> {
    let mut chain = read_chain(conn)?;
    chain.push(conn.query_row(IMAGINE, [], term)?);
    Ok(chain)
}

/// Writes a term that was imagined.
pub(crate) fn write(conn: &Connection, term: &Term) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    transaction.execute(WRITE, params![term.number.cast_signed(), term.epoch])?;
    transaction.execute(SHORTEN, [CHAIN_MAX])?;
    transaction.commit()
}

fn read_chain(conn: &Connection) -> rusqlite::Result<Vec<Term>> {
    let mut select = conn.prepare(CHAIN)?;
    let chain = select.query_map([], term)?;
    chain.collect()
}

fn term(row: &Row<'_>) -> rusqlite::Result<Term> {
    Ok(Term { number: row.get::<_, i64>(0)?.cast_unsigned(), epoch: row.get(1)? })
}

/// Notes a channel's first append in a term, within the transaction of the append.
pub(crate) fn start(conn: &Connection, channel_id: i64, term: u64, offset: u64) -> rusqlite::Result<()> {
    conn.prepare_cached(START)?.execute(params![channel_id, term.cast_signed(), offset.cast_signed()])?;
    conn.prepare_cached(FORGET)?.execute(params![channel_id, CHANNEL_TERMS_MAX as i64])?;
    Ok(())
}

/// The terms of a channel.
pub(crate) fn starts(conn: &Connection, channel_id: i64) -> rusqlite::Result<TermStarts> {
    let mut select = conn.prepare_cached(STARTS)?;
    let rows = select.query_map([channel_id], |row| {
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    let firsts = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let oldest = if firsts.len() < CHANNEL_TERMS_MAX { 0 } else { firsts[0].0 };
    Ok(TermStarts { firsts, oldest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Append, Log};

    const EVENT: Append<'_> = Append {
        channel: "a",
        event: "e",
        data: b"{}",
        number_field: false,
        user: None,
        dedupe: None,
        request: None,
        amends: None,
        time_ms: 0,
    };

    /// Another start on the same database.
    fn start_again(log: &mut Log) {
        log.terms = begin(&log.conn).expect("a term begins");
        log.heads.clear();
    }

    #[test]
    fn the_chain_and_the_rows_of_a_channel_are_bounded() {
        let mut log = Log::open_in_memory().expect("a log in memory opens");
        for _ in 0..CHANNEL_TERMS_MAX - 1 {
            log.append(&[EVENT]).expect("it is stored");
            start_again(&mut log);
        }
        assert_eq!(log.term_starts("a").unwrap().oldest, 0, "all rows are there");
        for _ in 0..10 {
            log.append(&[EVENT]).expect("it is stored");
            start_again(&mut log);
        }
        let TermStarts { firsts, oldest } = log.term_starts("a").unwrap();
        assert_eq!((firsts.len(), oldest), (CHANNEL_TERMS_MAX, firsts[0].0));
        assert_eq!(firsts.last().unwrap().1, CHANNEL_TERMS_MAX as u64 + 9);
        let starts = format!(
            "WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many LIMIT {CHAIN_MAX}) \
             INSERT INTO terms (epoch) SELECT lower(hex(randomblob(8))) FROM many"
        );
        log.conn.execute(&starts, []).expect("terms may be made");
        start_again(&mut log);
        let numbers: Vec<u64> = log.terms().iter().map(|term| term.number).collect();
        let last = *numbers.last().unwrap();
        assert!(numbers.iter().copied().eq(last + 1 - CHAIN_MAX as u64..=last), "the newest, without a hole");
    }

    #[test]
    fn rows_of_a_channel_go_with_it() {
        let mut log = Log::open_in_memory().expect("a log in memory opens");
        log.append(&[EVENT]).expect("it is stored");
        log.conn.execute("DELETE FROM channels", []).expect("channels may be deleted");
        let rows: i64 = log.conn.query_row("SELECT count(*) FROM term_starts", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 0);
    }
}
