//! Backups: taken beside a running server, whole or not there, and restored without a loss at any moment.

mod kit;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kit::{Dir, all, event, fill, offsets};
use realtime_log::{Error, Log, backup, restore};
use rusqlite::Connection;

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A directory as a killed process leaves it: with a write-ahead log that holds what was appended.
fn killed(log: &Log, from: &Dir) -> Dir {
    let copy = Dir::new();
    for suffix in ["", "-wal"] {
        let name = format!("realtime.sqlite3{suffix}");
        fs::copy(from.path().join(&name), copy.path().join(&name)).unwrap();
    }
    assert!(!log.epoch().is_empty());
    copy
}

#[test]
fn a_backup_is_the_log_of_one_moment_while_appends_go_on() {
    let (dir, place, other) = (Dir::new(), Dir::new(), Dir::new());
    let file = place.path().join("copy");
    let mut log = dir.open();
    fill(&mut log, "a", 700);
    fill(&mut log, "b", 3);
    let copied = backup(dir.path(), &file).unwrap();
    assert_eq!((copied.channels, copied.events, copied.bytes), (2, 703, fs::metadata(&file).unwrap().len()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(place.path()), ["copy"], "nothing else is left");
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 701, "the log goes on");
    let chain = log.terms().to_vec();

    let (restored, kept) = restore(&file, other.path()).unwrap();
    assert_eq!((restored.events, kept), (703, None));
    let mut again = other.open();
    assert_eq!(offsets(&all(&mut again, "a")), (1..=700).collect::<Vec<u64>>());
    assert_eq!(fill(&mut again, "a", 1)[0].offset, 701);
    // Both number 701; they do so in different terms.
    assert_eq!(again.terms()[..chain.len()], chain);
    assert_ne!(again.epoch(), log.epoch());
    assert_eq!(again.term_starts("a").unwrap().firsts.len(), 2);
}

#[test]
fn a_backup_replaces_no_file_and_leaves_none_where_it_fails() {
    let (dir, place) = (Dir::new(), Dir::new());
    let file = place.path().join("copy");
    assert!(matches!(backup(dir.path(), &file), Err(Error::NoLog { .. })));
    fill(&mut dir.open(), "a", 1);
    fs::write(&file, "mine").unwrap();
    let error = backup(dir.path(), &file).unwrap_err();
    assert!(error.to_string().ends_with("exists and is not replaced; choose another name or remove it"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let error = backup(dir.path(), &place.path().join("no/such/copy")).unwrap_err();
    assert!(matches!(error, Error::CannotWrite { .. }), "{error}");
    fs::write(dir.database(), "SQLite format 3\0 and then nothing that a database has").unwrap();
    assert!(backup(dir.path(), &place.path().join("other")).is_err());
    assert_eq!(names(place.path()), ["copy"]);
}

#[test]
fn a_restore_is_refused_while_a_log_is_open_and_for_what_is_no_backup() {
    let (dir, place) = (Dir::new(), Dir::new());
    let file = place.path().join("copy");
    let mut log = dir.open();
    fill(&mut log, "a", 5);
    backup(dir.path(), &file).unwrap();
    assert!(matches!(restore(&file, dir.path()), Err(Error::Locked { .. })));
    drop(log);
    let before = names(dir.path());

    let garbage = place.path().join("garbage");
    fs::write(&garbage, vec![7; 10_000]).unwrap();
    let foreign = place.path().join("foreign");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE mine (id INTEGER)").unwrap();
    let newer = place.path().join("newer");
    fs::copy(&file, &newer).unwrap();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let cut = place.path().join("cut");
    let bytes = fs::read(&file).unwrap();
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let empty = place.path().join("empty");
    fs::write(&empty, "").unwrap();
    for bad in [garbage, foreign, newer, cut, empty, place.path().join("none"), place.path().to_path_buf()] {
        let error = restore(&bad, dir.path()).unwrap_err();
        assert!(matches!(error, Error::NotABackup { .. } | Error::Newer { .. }), "{bad:?}: {error}");
        assert_eq!(names(dir.path()), before, "{bad:?}");
    }
    assert_eq!(offsets(&all(&mut dir.open(), "a")), [1, 2, 3, 4, 5]);
}

#[test]
fn the_log_of_before_is_kept_with_its_write_ahead_log() {
    let (dir, place) = (Dir::new(), Dir::new());
    let file = place.path().join("copy");
    let mut log = dir.open();
    fill(&mut log, "a", 2);
    backup(dir.path(), &file).unwrap();
    fill(&mut log, "a", 3);
    let copy = killed(&log, &dir);
    let (_, kept) = restore(&file, copy.path()).unwrap();
    let kept = kept.unwrap();
    let count: i64 =
        Connection::open(&kept).unwrap().query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 5, "what was in the write-ahead log too");
    assert_eq!(offsets(&all(&mut copy.open(), "a")), [1, 2]);
    assert_eq!(fs::metadata(copy.database()).unwrap().permissions().mode() & 0o777, 0o600);
    let (_, again) = restore(&file, copy.path()).unwrap();
    assert_ne!(again.unwrap(), kept, "none is replaced");
}

#[test]
fn a_restore_that_was_cut_short_is_finished_by_the_next_start() {
    let (dir, place) = (Dir::new(), Dir::new());
    let file = place.path().join("copy");
    let mut log = dir.open();
    fill(&mut log, "a", 2);
    backup(dir.path(), &file).unwrap();
    fill(&mut log, "a", 3);
    // The last moment before the database of before goes, and each after a step more.
    for steps in 0..3 {
        let copy = killed(&log, &dir);
        fs::copy(&file, copy.path().join("realtime.sqlite3.restored")).unwrap();
        if steps > 0 {
            fs::remove_file(copy.path().join("realtime.sqlite3-wal")).unwrap();
        }
        if steps > 1 {
            fs::rename(copy.path().join("realtime.sqlite3.restored"), copy.database()).unwrap();
        }
        assert_eq!(offsets(&all(&mut copy.open(), "a")), [1, 2], "{steps}");
        assert!(!copy.path().join("realtime.sqlite3.restored").exists());
    }
    // One that had not come so far changed nothing.
    let copy = killed(&log, &dir);
    fs::write(copy.path().join("realtime.sqlite3.restoring"), "half").unwrap();
    assert_eq!(all(&mut copy.open(), "a").len(), 5);
}

#[test]
fn a_backup_holds_nothing_of_what_was_erased() {
    let (dir, place) = (Dir::new(), Dir::new());
    let file = place.path().join("copy");
    let mut log = dir.open();
    let secret = r#"{"content":"the-secret-word"}"#;
    log.append(&[event("a", secret)]).unwrap();
    let amends = realtime_log::Amends { offset: 1, replacement: Some(b"{}"), erases: true };
    log.append(&[realtime_log::Append { amends: Some(amends), ..event("a", "{}") }]).unwrap();
    backup(dir.path(), &file).unwrap();
    let bytes = fs::read(&file).unwrap();
    assert!(!bytes.windows(15).any(|window| window == b"the-secret-word"));
}
