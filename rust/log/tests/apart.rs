//! Damages of single channels: they fail alone.

mod kit;

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use kit::{Dir, all, event, fill, offsets};
use realtime_log::{Append, Appended, Error, Keep, Log};
use rusqlite::Connection;

/// An event with a number that the channel has yet to give.
fn stray(dir: &Dir, channel: &str) {
    let other = Connection::open(dir.database()).unwrap();
    let sql = "INSERT INTO events (channel_id, offset, event, data, time_ms)
               SELECT id, head + 1, 'stray', x'', 0 FROM channels WHERE name = ?1";
    assert_eq!(other.execute(sql, [channel]).unwrap(), 1);
}

fn outcomes(answers: &[Result<Appended, Arc<Error>>]) -> Vec<Option<u64>> {
    answers.iter().map(|answer| answer.as_ref().ok().map(|appended| appended.offset)).collect()
}

#[test]
fn a_damaged_channel_fails_its_own_part_of_a_batch() {
    let dir = Dir::new();
    let mut log = dir.open();
    for channel in ["a", "b", "c"] {
        fill(&mut log, channel, 1);
    }
    stray(&dir, "b");
    let keyed = Append { dedupe: Some("k"), ..event("c", "{}") };
    let batch =
        [event("b", "{}"), event("a", "{}"), event("b", "{}"), event("new", "{}"), keyed, event("a", "{}"), keyed];
    let error = log.append(&batch).unwrap_err();
    assert!(error.may_be_one_channels(), "{error:?}");
    let answers = log.append_apart(&batch);
    assert_eq!(outcomes(&answers), [None, Some(2), None, Some(1), Some(2), Some(3), Some(2)]);
    assert!(answers[6].as_ref().unwrap().duplicate);
    // Again and again: the others go on, the channel does not.
    for n in 0..3 {
        assert_eq!(outcomes(&log.append_apart(&[event("b", "{}"), event("a", "{}")])), [None, Some(4 + n)]);
    }
    drop(log);
    let mut log = dir.open();
    assert_eq!(offsets(&all(&mut log, "a")), [1, 2, 3, 4, 5, 6]);
    assert_eq!((log.head("b").unwrap(), offsets(&all(&mut log, "new"))), (1, vec![1]));
}

#[test]
fn what_fails_the_whole_log_fails_each_part() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 1);
    let other = Connection::open(dir.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answers = log.append_apart(&[event("a", "{}"), event("b", "{}")]);
    assert!(answers.iter().all(|answer| matches!(answer, Err(error) if matches!(**error, Error::Busy { .. }))));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 2);
}

/// A log whose channel "a" has a damaged page in the middle of its events, and a channel "b" behind it.
fn with_a_damaged_page() -> (Dir, Log) {
    let dir = Dir::new();
    // Short enough for a leaf: of an overflow page little is ever read.
    let data = "x".repeat(500);
    {
        let mut log = dir.open();
        log.append(&vec![event("a", &data); 400]).unwrap();
        log.append(&vec![event("b", &data); 400]).unwrap();
    }
    let log = dir.open();
    let mut file = File::options().write(true).open(dir.database()).unwrap();
    file.seek(SeekFrom::Start(20 * 4096)).unwrap();
    file.write_all(&[0xa5; 4096]).unwrap();
    // The pages that the check at the start has read are in memory, until another program writes.
    Connection::open(dir.database()).unwrap().execute("INSERT INTO meta VALUES ('other', 'x')", []).unwrap();
    (dir, log)
}

#[test]
fn retention_passes_a_damaged_channel_over() {
    let (_dir, mut log) = with_a_damaged_page();
    let keep = Keep { since_ms: None, events: Some(10) };
    let (mut after, mut tails, mut failed) = (Some(0), Vec::new(), Vec::new());
    while let Some(from) = after {
        let swept = log.sweep(from, 0, |_| Some(keep)).unwrap();
        tails.extend(swept.tails);
        failed.extend(swept.failed);
        after = swept.next;
    }
    assert!(failed.iter().any(|(name, error)| **name == *"a" && matches!(error, Error::Corrupt { .. })), "{failed:?}");
    assert_eq!(log.tail("b").unwrap(), 390, "{tails:?}");
}
