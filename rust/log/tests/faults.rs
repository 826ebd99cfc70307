//! What the log says, and keeps, when something outside of it is wrong.

mod kit;

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kit::{Dir, all, child_dir, event, fill, offsets};
use realtime_log::{Append, Error, Log, Options};
use rusqlite::Connection;

/// A log with some hundred pages, closed: everything is in the database file.
fn filled() -> Dir {
    let dir = Dir::new();
    let data = "x".repeat(1_000);
    dir.open().append(&vec![event("a", &data); 500]).unwrap();
    dir
}

/// The log must refuse `dir` as corrupt, name the file, and leave it byte for byte as it is.
fn refuse_as_corrupt(dir: &Dir) -> String {
    let before = fs::read(dir.database()).unwrap();
    let error = dir.try_open().expect_err("a damaged file is not opened");
    assert!(matches!(&error, Error::Corrupt { path, .. } if *path == dir.database()), "{error:?}");
    assert_eq!(fs::read(dir.database()).unwrap(), before);
    one_line(&error, &dir.database())
}

/// Each error is one clear line, lower case, that names the place and says what to do.
fn one_line(error: &Error, place: &Path) -> String {
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(&place.display().to_string()) && line.contains(';'), "{line}");
    assert!(line.starts_with(char::is_lowercase) && !line.ends_with('.'), "{line}");
    line
}

#[test]
fn a_file_that_is_not_a_database_is_corrupt() {
    for garbage in [&b"hello"[..], &[0xff; 100], &[0; 4096], &[b'x'; 50_000]] {
        let dir = Dir::new();
        fs::write(dir.database(), garbage).unwrap();
        refuse_as_corrupt(&dir);
    }
}

#[test]
fn a_garbled_header_is_corrupt() {
    let dir = filled();
    let mut file = File::options().write(true).open(dir.database()).unwrap();
    file.write_all(b"garbage garbage!").unwrap();
    refuse_as_corrupt(&dir);
}

#[test]
fn a_truncated_file_is_corrupt() {
    let dir = filled();
    let bytes = dir.database().metadata().unwrap().len();
    for length in [bytes - 1, bytes - 4096, bytes / 2, 4096, 1000, 100, 2] {
        File::options().write(true).open(dir.database()).unwrap().set_len(length).unwrap();
        refuse_as_corrupt(&dir);
    }
}

#[test]
fn a_damaged_page_is_found_at_start() {
    let dir = filled();
    let mut file = File::options().write(true).open(dir.database()).unwrap();
    file.seek(SeekFrom::Start(20 * 4096)).unwrap();
    file.write_all(&[0xa5; 4096]).unwrap();
    refuse_as_corrupt(&dir);
}

#[test]
fn a_corrupt_database_keeps_its_write_ahead_log() {
    let (live, copy) = (filled(), Dir::new());
    let wal_of = |dir: &Dir| dir.path().join("realtime.sqlite3-wal");
    let mut log = live.open();
    fill(&mut log, "a", 5);
    fs::copy(wal_of(&live), wal_of(&copy)).unwrap();
    let mut database = fs::read(live.database()).unwrap();
    database[20 * 4096..21 * 4096].fill(0xa5);
    fs::write(copy.database(), database).unwrap();
    refuse_as_corrupt(&copy);
    assert_eq!(fs::read(wal_of(&copy)).unwrap(), fs::read(wal_of(&live)).unwrap());
}

#[test]
fn an_emptied_database_with_its_write_ahead_log_left_is_corrupt() {
    let dir = Dir::new();
    File::create(dir.database()).unwrap();
    let wal = dir.path().join("realtime.sqlite3-wal");
    fs::write(&wal, [1; 5000]).unwrap();
    assert!(refuse_as_corrupt(&dir).contains("5000 bytes"));
    assert_eq!(fs::read(wal).unwrap(), [1; 5000]);
}

#[test]
fn the_database_of_another_program_is_left_alone() {
    let dir = Dir::new();
    Connection::open(dir.database()).unwrap().execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
    assert!(refuse_as_corrupt(&dir).contains("another program"));
}

#[test]
fn an_empty_file_is_a_new_log() {
    let dir = Dir::new();
    File::create(dir.database()).unwrap();
    assert_eq!(fill(&mut dir.open(), "a", 1)[0].offset, 1);
}

#[test]
fn a_log_of_a_newer_version_is_refused() {
    let dir = filled();
    Connection::open(dir.database()).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = dir.try_open().unwrap_err();
    let Error::Newer { found: 99, known } = error else { panic!("{error}") };
    let told = format!("log has schema 99, this version knows schemas up to {known}; ");
    assert!(error.to_string().starts_with(&told), "{error}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = Dir::new();
    let file = dir.path().join("file");
    File::create(&file).unwrap();
    // Tests may run as root, who may write everywhere: places that are no directory for anybody.
    for data_dir in [file.clone(), file.join("below"), "/dev/null/data".into()] {
        let error = Log::open(&Options::new(&data_dir)).unwrap_err();
        assert!(matches!(&error, Error::Unwritable { dir, .. } if *dir == data_dir), "{error:?}");
        one_line(&error, &data_dir);
    }
}

#[test]
fn a_directory_in_place_of_the_database_is_unwritable() {
    let dir = Dir::new();
    fs::create_dir(dir.database()).unwrap();
    let error = dir.try_open().unwrap_err();
    assert!(matches!(&error, Error::Unwritable { dir: named, .. } if named == dir.path()), "{error:?}");
}

#[test]
fn a_database_locked_by_another_program_is_busy_after_the_timeout_and_then_works() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 2);
    let other = Connection::open(dir.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    let error = log.append(&[event("a", "{}"), event("new", "{}")]).unwrap_err();
    assert!(matches!(&error, Error::Busy { path, waited_ms: 100 } if *path == dir.database()), "{error:?}");
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
    one_line(&error, &dir.database());
    // Reading goes on, and shows nothing of the batch.
    assert_eq!((log.head("a").unwrap(), log.head("new").unwrap()), (2, 0));
    assert_eq!(offsets(&all(&mut log, "a")), [1, 2]);

    other.execute_batch("ROLLBACK").unwrap();
    let appended = log.append(&[event("a", "{}"), event("new", "{}")]).unwrap();
    assert_eq!((appended[0].offset, appended[1].offset), (3, 1));
}

#[test]
fn a_lock_that_ends_within_the_timeout_is_waited_for() {
    let dir = Dir::new();
    let mut log = Log::open(&Options::new(dir.path())).unwrap();
    let other = Connection::open(dir.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(150));
        other.execute_batch("ROLLBACK").unwrap();
    });
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 1);
    release.join().unwrap();
}

/// Offsets are right even if somebody else has changed the store behind the log's back.
#[test]
fn a_head_that_proved_wrong_is_read_again() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 2);
    let other = Connection::open(dir.database()).unwrap();
    other
        .execute_batch(
            "INSERT INTO events (channel_id, offset, event, data, time_ms)
               SELECT channel_id, 3, event, data, time_ms FROM events WHERE offset = 2;
             UPDATE channels SET head = 3",
        )
        .unwrap();
    assert!(matches!(log.append(&[event("a", "{}")]), Err(Error::Sqlite(_))));
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 4);
}

/// On a real file system of 4 MiB, in a mount name space of its own. Where the kernel does not give one, the same
/// promise is kept by the unit test that limits the pages of the database.
#[test]
fn a_full_disk_refuses_batches_until_there_is_room() {
    if let Some(dir) = child_dir() {
        return fill_the_disk(&dir);
    }
    let dir = Dir::new();
    let small_disk = r#"mount -t tmpfs -o size=4m small-disk "$0" && exec "$@""#;
    let in_small_disk = |command: &[&str]| {
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", small_disk])
            .arg(dir.path())
            .args(command)
            .env(kit::CHILD_DIR, dir.path())
            .status();
        status.is_ok_and(|status| status.success())
    };
    if in_small_disk(&["true"]) {
        let binary = std::env::current_exe().unwrap();
        let test = "a_full_disk_refuses_batches_until_there_is_room";
        assert!(in_small_disk(&[binary.to_str().unwrap(), test, "--exact", "--nocapture"]));
    }
}

/// A start on a disk that is full to the last byte serves what is stored, and its term is written with what comes first.
fn start_without_room(dir: &Path, mut log: Log, head: u64) {
    log.keep_wal().unwrap();
    drop(log);
    let rest = dir.join("rest");
    let mut file = File::create(&rest).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut log = Log::open(&Options::new(dir)).unwrap();
    assert_eq!(offsets(&all(&mut log, "a")), (1..=head).collect::<Vec<_>>());
    assert!(matches!(log.append(&[event("a", "{}")]), Err(Error::Full { .. })));
    let term = log.terms().last().unwrap().clone();
    let ballast = dir.join("ballast");
    fs::remove_file(&ballast).unwrap();
    let appended = log.append(&[event("b", "{}")]).unwrap();
    assert_eq!(appended[0].offset, 1);
    assert_eq!(log.term_starts("b").unwrap().firsts, [(term.number, 1)]);
    drop(log);
    let log = Log::open(&Options::new(dir)).unwrap();
    assert!(log.terms().contains(&term), "a later start knows it");
    fs::remove_file(&rest).unwrap();
    fs::write(&ballast, []).unwrap();
}

fn fill_the_disk(dir: &Path) {
    let open = || Log::open(&Options::new(dir)).unwrap();
    let mut log = open();
    fill(&mut log, "a", 10);
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let data = "x".repeat(10_000);
    let batch = [Append { dedupe: Some("k"), ..event("new", &data) }, event("a", &data)];
    let mut head = 10;
    let error = loop {
        match log.append(&batch) {
            Ok(appended) => head = appended[1].offset,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Full { path } if *path == dir.join("realtime.sqlite3")), "{error:?}");
    one_line(&error, dir);
    for _ in 0..3 {
        assert!(matches!(log.append(&batch), Err(Error::Full { .. })));
        assert_eq!(log.head("a").unwrap(), head);
        assert_eq!(offsets(&all(&mut log, "a")), (1..=head).collect::<Vec<_>>());
    }

    start_without_room(dir, log, head);
    let mut log = open();
    fs::remove_file(ballast).unwrap();
    let appended = log.append(&batch).unwrap();
    assert_eq!((appended[0].offset, appended[0].duplicate, appended[1].offset), (1, true, head + 1));
    drop(log);
    assert_eq!(offsets(&all(&mut open(), "a")), (1..=head + 1).collect::<Vec<_>>());
}
