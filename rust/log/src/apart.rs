//! A batch that failed, once more: each channel's part by itself, so that a damaged one fails alone.
//!
//! Nothing of it runs while batches succeed. The parts share one transaction and one sync; each has a savepoint of its
//! own. A failing disk takes the whole transaction with it: then the others begin again without the part that failed.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::append::Batch;
use crate::error::Error;
use crate::event::{Append, Appended};
use crate::heads::{Channel, Heads};
use crate::log::Log;

/// How often the others begin again. A disk that fails for each of many parts is not asked for all.
const RESTARTS_MAX: usize = 8;

/// The events of one channel, by their places in the batch.
struct Part {
    places: Vec<usize>,
    error: Option<Arc<Error>>,
}

/// Answers by place, and the heads that go with them.
type Stored<'b> = (Vec<(usize, Appended)>, Vec<(&'b str, Channel)>);

/// How an attempt at all parts ended.
enum Attempt<'b> {
    Committed(Stored<'b>),
    /// A part that failed took the transaction with it.
    Lost,
    Failed(rusqlite::Error),
}

impl Log {
    /// Stores a batch that [`Log::append`] could not store, each channel's events by themselves: those of a channel are
    /// stored all or not at all. Returns one answer for each event, in the order of the batch.
    ///
    /// Worth trying where the error [may be one channel's](Error::may_be_one_channels).
    pub fn append_apart(&mut self, batch: &[Append<'_>]) -> Vec<Result<Appended, Arc<Error>>> {
        let mut parts = split(batch);
        let mut rest = None;
        let mut stored = Vec::new();
        for _ in 0..RESTARTS_MAX {
            rest = None;
            match self.attempt(batch, &mut parts) {
                Attempt::Lost => {
                    let last = parts.iter().filter_map(|part| part.error.clone()).next_back();
                    rest = last;
                    continue;
                }
                Attempt::Failed(source) => rest = Some(Arc::new(self.error(source))),
                Attempt::Committed((appended, moved)) => match self.look_behind_commit() {
                    Ok(()) => {
                        moved.into_iter().for_each(|(name, channel)| self.heads.put(name, channel));
                        self.erasures.note(appended.iter().map(|(_, appended)| appended));
                        stored = appended;
                    }
                    Err(error) => rest = Some(Arc::new(error)),
                },
            }
            break;
        }
        let mut answers: Vec<Option<Result<Appended, Arc<Error>>>> = batch.iter().map(|_| None).collect();
        for (place, appended) in stored {
            answers[place] = Some(Ok(appended));
        }
        for Part { places, error, .. } in parts {
            let Some(error) = error.or_else(|| rest.clone()) else { continue };
            places.into_iter().for_each(|place| answers[place] = Some(Err(Arc::clone(&error))));
        }
        let answers = answers.into_iter().map(|answer| answer.expect("each part is stored or has an error"));
        answers.collect()
    }

    fn attempt<'b>(&mut self, batch: &[Append<'b>], parts: &mut [Part]) -> Attempt<'b> {
        let (mut appended, mut moved) = (Vec::new(), Vec::new());
        let term = self.term();
        let transaction = match Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate) {
            Ok(transaction) => transaction,
            Err(source) => return Attempt::Failed(source),
        };
        for part in parts.iter_mut().filter(|part| part.error.is_none()) {
            match store(&self.conn, &mut self.heads, (term, self.dedupe_ms), batch, part) {
                Ok((mut answers, mut heads)) => {
                    appended.append(&mut answers);
                    moved.append(&mut heads);
                }
                Err(source) => {
                    let is_lost = self.conn.is_autocommit();
                    part.error = Some(Arc::new(Error::from_sqlite(source, &self.path, self.busy_timeout_ms)));
                    if is_lost {
                        return Attempt::Lost;
                    }
                }
            }
        }
        match transaction.commit() {
            Ok(()) => Attempt::Committed((appended, moved)),
            Err(source) => Attempt::Failed(source),
        }
    }
}

/// One part inside the open transaction.
fn store<'b>(
    conn: &Connection,
    heads: &mut Heads,
    (term, dedupe_ms): (u64, u64),
    batch: &[Append<'b>],
    part: &Part,
) -> rusqlite::Result<Stored<'b>> {
    apart(conn, || {
        let mut work = Batch::new(conn, heads, term, dedupe_ms)?;
        let answers = part.places.iter().map(|&place| Ok((place, work.append(&batch[place])?)));
        let answers = answers.collect::<rusqlite::Result<_>>()?;
        work.move_heads()?;
        Ok((answers, work.into_heads().collect()))
    })
}

/// Does a part of the open transaction: where it fails nothing of it is left, and the other parts stay. A failing disk
/// may end the transaction; the connection says so by `is_autocommit`.
pub(crate) fn apart<R>(conn: &Connection, work: impl FnOnce() -> rusqlite::Result<R>) -> rusqlite::Result<R> {
    conn.execute_batch("SAVEPOINT part")?;
    let done = work();
    // Where the transaction is gone there is nothing to go back to.
    if !conn.is_autocommit() {
        conn.execute_batch(if done.is_ok() { "RELEASE part" } else { "ROLLBACK TO part; RELEASE part" })?;
    }
    done
}

fn split(batch: &[Append<'_>]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut places = HashMap::new();
    for (place, append) in batch.iter().enumerate() {
        let part = *places.entry(append.channel).or_insert_with(|| {
            parts.push(Part { places: Vec::new(), error: None });
            parts.len() - 1
        });
        parts[part].places.push(place);
    }
    parts
}
