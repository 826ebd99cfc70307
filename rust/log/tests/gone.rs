//! What the log says and does when its files are taken away while it is open.

mod kit;

use std::fs::{self, File};
use std::path::Path;

use kit::{Dir, all, event, fill, offsets};
use realtime_log::{Error, Gone, Log};

fn file(dir: &Dir, suffix: &str) -> std::path::PathBuf {
    dir.path().join(format!("realtime.sqlite3{suffix}"))
}

/// Whether the log refuses to store and says that this file is gone in this way.
#[track_caller]
fn refuses(log: &mut Log, gone: &Path, expected: Gone) {
    for _ in 0..2 {
        let error = log.append(&[event("a", "{}")]).unwrap_err();
        assert!(matches!(&error, Error::Gone { path, how } if path == gone && *how == expected), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(&gone.display().to_string()) && line.contains("restart"), "{line}");
        assert!(!error.reason().contains('/'), "{}", error.reason());
    }
    assert!(matches!(log.probe(4096), Err(Error::Gone { .. })));
}

#[test]
fn a_commit_to_a_removed_file_is_not_acknowledged() {
    for suffix in ["", "-wal"] {
        let dir = Dir::new();
        let mut log = dir.open();
        fill(&mut log, "a", 3);
        fs::remove_file(file(&dir, suffix)).unwrap();
        refuses(&mut log, &file(&dir, suffix), Gone::Removed);
    }
}

#[test]
fn a_look_sees_each_of_the_three_files() {
    for suffix in ["", "-wal", "-shm"] {
        let dir = Dir::new();
        let mut log = dir.open();
        log.look().unwrap();
        fs::remove_file(file(&dir, suffix)).unwrap();
        assert!(matches!(log.look(), Err(Error::Gone { how: Gone::Removed, .. })), "{suffix}");
        refuses(&mut log, &file(&dir, suffix), Gone::Removed);
    }
}

#[test]
fn another_file_in_the_place_of_the_database_is_not_written() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 3);
    fs::copy(dir.database(), dir.path().join("copy")).unwrap();
    fs::rename(dir.path().join("copy"), dir.database()).unwrap();
    refuses(&mut log, &dir.database(), Gone::Replaced);
}

#[test]
fn a_file_that_was_cut_is_refused_also_once_it_is_longer_again() {
    let dir = Dir::new();
    fill(&mut dir.open(), "a", 100);
    let mut log = dir.open();
    let bytes = dir.database().metadata().unwrap().len();
    let database = File::options().write(true).open(dir.database()).unwrap();
    database.set_len(bytes / 2).unwrap();
    refuses(&mut log, &dir.database(), Gone::Shortened);
    database.set_len(bytes).unwrap();
    refuses(&mut log, &dir.database(), Gone::Shortened);
}

#[test]
fn a_write_ahead_log_that_was_cut_is_seen_by_the_next_look() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 100);
    File::options().write(true).open(file(&dir, "-wal")).unwrap().set_len(0).unwrap();
    assert!(matches!(log.look(), Err(Error::Gone { how: Gone::Shortened, .. })));
}

/// It is mapped: SQLite would die of a page that is no longer there.
#[test]
fn a_cut_index_of_the_write_ahead_log_refuses_what_comes_and_ends_nobody() {
    for bytes in [0, 100] {
        let dir = Dir::new();
        let mut log = dir.open();
        fill(&mut log, "a", 3);
        fill(&mut log, "b", 3);
        File::options().write(true).open(file(&dir, "-shm")).unwrap().set_len(bytes).unwrap();
        assert_eq!(all(&mut log, "a").len(), 3, "what is stored can be read");
        refuses(&mut log, &file(&dir, "-shm"), Gone::Shortened);
        assert!(matches!(log.forget(), Err(Error::Gone { .. })));
        assert!(matches!(log.look(), Err(Error::Gone { how: Gone::Shortened, .. })));
        assert_eq!(all(&mut log, "b").len(), 3);
        drop(log);
        let mut log = dir.open();
        assert_eq!(fill(&mut log, "a", 1)[0].offset, 4, "nothing is lost");
    }
}

#[test]
fn an_emptied_write_ahead_log_of_our_own_is_no_damage() {
    let dir = Dir::new();
    let mut log = dir.open();
    for _ in 0..3 {
        fill(&mut log, "a", 50);
        assert!(log.forget().unwrap());
        log.look().unwrap();
        log.probe(50_000).unwrap();
    }
    assert_eq!(all(&mut log, "a").len(), 150);
}

#[test]
fn a_folder_that_comes_back_is_written_again_where_it_was_left() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 3);
    let elsewhere = dir.path().with_extension("elsewhere");
    fs::rename(dir.path(), &elsewhere).unwrap();
    refuses(&mut log, &dir.database(), Gone::Removed);
    fs::rename(&elsewhere, dir.path()).unwrap();
    log.look().unwrap();
    log.probe(4096).unwrap();
    // What was refused may stand in the file: it was committed, and nobody was told so.
    let head = fill(&mut log, "a", 1)[0].offset;
    assert_eq!(offsets(&all(&mut log, "a")), (1..=head).collect::<Vec<_>>());
}

#[test]
fn closing_leaves_alone_what_took_the_place_of_its_files() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 3);
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(file(&dir, suffix)).unwrap();
        fs::write(file(&dir, suffix), "of another log").unwrap();
    }
    drop(log);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(fs::read(file(&dir, suffix)).unwrap(), b"of another log");
    }
}

#[test]
fn a_directory_is_held_also_where_it_was_removed_and_made_again() {
    let dir = Dir::new();
    let log = dir.open();
    fs::remove_dir_all(dir.path()).unwrap();
    fs::create_dir(dir.path()).unwrap();
    if cfg!(target_os = "linux") {
        assert!(matches!(dir.try_open(), Err(Error::Locked { dir: held }) if held == dir.path()));
    }
    drop(log);
    dir.try_open().unwrap();
}

#[test]
fn a_probe_leaves_nothing_and_does_not_wait_for_another_program() {
    let dir = Dir::new();
    let mut log = Log::open(&realtime_log::Options { data_dir: dir.path().into(), busy_timeout_ms: 20_000 }).unwrap();
    let other = rusqlite::Connection::open(dir.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = std::time::Instant::now();
    assert!(matches!(log.probe(4096), Err(Error::Busy { .. })));
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
    other.execute_batch("ROLLBACK").unwrap();
    log.probe(100_000).unwrap();
    let left: i64 = other.query_row("SELECT count(*) FROM meta WHERE key = 'probe'", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

/// A closed descriptor of the database would take SQLite's own lock on it away, and the last to close removes the
/// write-ahead log.
#[test]
fn another_program_that_opens_and_closes_the_database_takes_nothing_away() {
    let dir = Dir::new();
    fill(&mut dir.open(), "a", 3);
    let mut log = dir.open();
    let other = rusqlite::Connection::open(dir.database()).unwrap();
    other.execute_batch("INSERT INTO meta VALUES ('other', 'x'); DELETE FROM meta WHERE key = 'other'").unwrap();
    drop(other);
    log.look().unwrap();
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 4);
}
