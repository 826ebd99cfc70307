//! Events that amend earlier ones, events that go with their time, and what of both is left in the files.

mod kit;

use kit::{Dir, all, event, fill, offsets};
use realtime_log::{Amends, Append, Keep, Log, Stored};
use rusqlite::Connection;

/// The time of every event of the kit.
const NOW_MS: u64 = 1_700_000_000_000;

fn amending<'a>(offset: u64, data: &'a str, replacement: Option<&'a str>, erases: bool) -> Append<'a> {
    let replacement = replacement.map(str::as_bytes);
    Append { event: "message_updated", amends: Some(Amends { offset, replacement, erases }), ..event("a", data) }
}

fn payloads(events: &[Stored]) -> Vec<(u64, &str)> {
    events.iter().map(|stored| (stored.offset, std::str::from_utf8(&stored.data).unwrap())).collect()
}

fn sweep_all(log: &mut Log, keep: Keep) -> Vec<(Box<str>, u64)> {
    let (mut tails, mut after) = (Vec::new(), Some(0));
    while let Some(from) = after {
        let swept = log.sweep(from, NOW_MS, |name| (name != "kept").then_some(keep)).unwrap();
        tails.extend(swept.tails);
        after = swept.next;
    }
    tails
}

/// The bytes of every file of the log.
fn files(dir: &Dir) -> Vec<u8> {
    let files = std::fs::read_dir(dir.path()).unwrap();
    files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn holds(dir: &Dir, word: &str) -> bool {
    files(dir).windows(word.len()).any(|window| window == word.as_bytes())
}

#[test]
fn an_amended_event_keeps_its_place_and_everything_but_its_payload() {
    let dir = Dir::new();
    let mut log = dir.open();
    let first = Append { request: Some("r1"), dedupe: Some("k"), ..event("a", "1") };
    log.append(&[first, event("a", "2")]).unwrap();
    let before = all(&mut log, "a");
    let appended = log.append(&[Append { user: Some("bob"), ..amending(1, "edit", Some("new"), false) }]).unwrap();
    let now = Stored { data: b"new"[..].into(), ..before[0].clone() };
    assert_eq!((appended[0].offset, &appended[0].amended), (3, &vec![now.clone()]));
    drop(log);
    let mut log = dir.open();
    let stored = all(&mut log, "a");
    assert_eq!((&stored[0], &stored[1]), (&now, &before[1]));
    assert_eq!(&*stored[2].data, b"edit");
    let again = log.append(&[first]).unwrap();
    assert_eq!(again[0].stored, Some(now), "a repeated command is answered with what is there now");
}

#[test]
fn erasing_takes_the_payload_of_all_that_amended_the_event_before() {
    let mut log = Log::open_in_memory().unwrap();
    let batch = [
        event("a", "secret"),
        amending(1, "secret edit", Some("secret, edited"), false),
        event("a", "other"),
        amending(3, "edit of the other", None, false),
        amending(1, "remark", None, false),
    ];
    assert_eq!(log.append(&batch).unwrap()[4].amended, []);
    let appended = log.append(&[amending(1, "deleted", Some("gone"), true)]).unwrap();
    assert_eq!(payloads(&appended[0].amended), [(1, "gone"), (2, "deleted"), (5, "deleted")]);
    let stored = all(&mut log, "a");
    let expected =
        [(1, "gone"), (2, "deleted"), (3, "other"), (4, "edit of the other"), (5, "deleted"), (6, "deleted")];
    assert_eq!(payloads(&stored), expected);
}

#[test]
fn what_amends_nothing_is_missing_and_fails_no_other_of_its_batch() {
    let mut log = Log::open_in_memory().unwrap();
    let nowhere = Append { channel: "b", ..amending(1, "x", None, false) };
    let batch = [
        event("a", "1"),
        amending(2, "x", Some("y"), false),
        amending(0, "x", None, false),
        amending(u64::MAX, "x", None, false),
        nowhere,
        amending(1, "2", None, false),
    ];
    let appended = log.append(&batch).unwrap();
    let outcomes: Vec<(u64, bool)> = appended.iter().map(|one| (one.offset, one.missing)).collect();
    assert_eq!(outcomes, [(1, false), (0, true), (0, true), (0, true), (0, true), (2, false)]);
    assert_eq!((log.head("a").unwrap(), log.head("b").unwrap()), (2, 0));
}

#[test]
fn a_repeated_amendment_changes_nothing_again() {
    let mut log = Log::open_in_memory().unwrap();
    let edit = Append { dedupe: Some("k"), ..amending(1, "edit", Some("v2"), false) };
    log.append(&[event("a", "v1"), edit, amending(1, "edit", Some("v3"), false)]).unwrap();
    let appended = log.append(&[edit]).unwrap();
    assert_eq!((appended[0].offset, appended[0].duplicate, appended[0].amended.len()), (2, true, 0));
    assert_eq!(&*all(&mut log, "a")[0].data, b"v3");
}

/// Fills `channels` with events of many sizes in turn, then erases each.
fn fill_and_erase(dir: &Dir, channels: &[&str]) {
    let mut log = dir.open();
    let secrets: Vec<String> = (0..700).map(|n| format!("\"{}secret\"", "p".repeat(n * 37 % 6_000))).collect();
    for (n, secret) in secrets.iter().enumerate() {
        log.append(&[event(channels[n % channels.len()], secret)]).unwrap();
    }
    assert!(holds(dir, "secret"));
    for channel in channels {
        let erase = |offset| Append { channel, ..amending(offset, "\"erased\"", Some("null"), true) };
        let batch: Vec<Append<'_>> = (1..=log.head(channel).unwrap()).map(erase).collect();
        log.append(&batch).unwrap();
    }
    assert!(log.forget().unwrap());
    assert!(holds(dir, "erased"));
}

#[test]
fn what_is_erased_is_in_no_file_once_the_log_has_forgotten() {
    let dir = Dir::new();
    fill_and_erase(&dir, &["a"]);
    assert!(!holds(&dir, "secret"));
}

/// Where events of several channels push each other about, SQLite leaves copies in the slack of pages that it has
/// split (docs/decisions/0009); nothing reads those, and `VACUUM` writes the file without them.
#[test]
fn slack_of_split_pages_is_gone_after_a_vacuum() {
    let dir = Dir::new();
    fill_and_erase(&dir, &["a", "b", "c", "d", "e", "f", "g"]);
    let conn = Connection::open(dir.database()).unwrap();
    conn.execute_batch("PRAGMA secure_delete = ON; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert!(!holds(&dir, "secret"));
}

#[test]
fn forgetting_does_not_wait_for_another_program_that_reads() {
    let dir = Dir::new();
    let mut log = dir.open();
    fill(&mut log, "a", 1);
    let other = Connection::open(dir.database()).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
    fill(&mut log, "a", 1);
    assert!(!log.forget().unwrap());
    other.execute_batch("COMMIT").unwrap();
    assert!(log.forget().unwrap());
}

#[test]
fn the_oldest_go_by_count_and_numbers_go_on() {
    let dir = Dir::new();
    let mut log = dir.open();
    for channel in ["a", "b", "kept"] {
        fill(&mut log, channel, 2_000);
    }
    fill(&mut log, "short", 3);
    let keep = Keep { events: Some(5), since_ms: None };
    let mut tails = sweep_all(&mut log, keep);
    tails.dedup_by(|later, earlier| {
        later.0 == earlier.0 && {
            *earlier = later.clone();
            true
        }
    });
    assert_eq!(tails, [("a".into(), 1_995), ("b".into(), 1_995)]);
    assert_eq!(sweep_all(&mut log, keep), []);
    for reopened in [false, true] {
        if reopened {
            drop(log);
            log = dir.open();
        }
        assert_eq!((log.tail("a").unwrap(), log.head("a").unwrap(), log.tail("none").unwrap()), (1_995, 2_000, 0));
        let page = log.page("a", 0, 100, usize::MAX).unwrap();
        assert_eq!(offsets(&page.events), [1_996, 1_997, 1_998, 1_999, 2_000], "a page begins at what is kept");
        assert_eq!(all(&mut log, "kept").len(), 2_000);
        assert_eq!(all(&mut log, "short").len(), 3);
    }
    let swept = [amending(1_995, "x", None, false), event("a", "next")];
    let appended = log.append(&swept).unwrap();
    assert_eq!((appended[0].missing, appended[1].offset), (true, 2_001));
}

#[test]
fn the_oldest_go_by_age_up_to_the_first_that_is_young() {
    let dir = Dir::new();
    let mut log = dir.open();
    let batch: Vec<Append<'_>> =
        [10, 20, 50, 30, 60].map(|time_ms| Append { time_ms, ..event("a", "\"secret\"") }).into();
    log.append(&batch).unwrap();
    let since = |since_ms| Keep { since_ms: Some(since_ms), events: None };
    assert_eq!(sweep_all(&mut log, since(10)), []);
    assert_eq!(sweep_all(&mut log, since(40)), [("a".into(), 2)]);
    assert_eq!(
        sweep_all(&mut log, Keep { since_ms: Some(40), events: Some(2) }),
        [("a".into(), 4)],
        "the third by count, the fourth by age"
    );
    assert_eq!(sweep_all(&mut log, since(1_000)), [("a".into(), 5)]);
    assert_eq!((all(&mut log, "a"), log.head("a").unwrap()), (vec![], 5));
    log.forget().unwrap();
    assert!(!holds(&dir, "secret"));
    assert_eq!(fill(&mut log, "a", 1)[0].offset, 6);
}

#[test]
fn a_log_of_the_first_schema_goes_on() {
    let dir = Dir::new();
    Connection::open(dir.database())
        .unwrap()
        .execute_batch(
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
             CREATE TABLE channels (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, head INTEGER NOT NULL) STRICT;
             CREATE TABLE events (channel_id INTEGER NOT NULL, offset INTEGER NOT NULL, event TEXT NOT NULL,
                data BLOB NOT NULL, user TEXT, dedupe TEXT, time_ms INTEGER NOT NULL,
                PRIMARY KEY (channel_id, offset)) STRICT, WITHOUT ROWID;
             CREATE UNIQUE INDEX events_by_dedupe ON events (channel_id, user, dedupe) WHERE dedupe IS NOT NULL;
             INSERT INTO meta VALUES ('epoch', 'old');
             INSERT INTO channels VALUES (1, 'a', 2);
             INSERT INTO events VALUES (1, 1, 'e', x'31', 'alice', 'k', 5), (1, 2, 'e', x'32', NULL, NULL, 6);
             PRAGMA application_id = 0x72746c67; PRAGMA user_version = 1",
        )
        .unwrap();
    let mut log = dir.open();
    // Its epoch is the first term, and this start the second.
    let epochs: Vec<&str> = log.terms().iter().map(|term| &*term.epoch).collect();
    assert_eq!((epochs[0], epochs.len()), ("old", 2));
    assert_eq!(log.term_starts("a").unwrap().firsts, [], "nothing is rewritten");
    log.append(&[Append { event: "e", ..amending(1, "3", Some("one"), true) }]).unwrap();
    assert_eq!(payloads(&all(&mut log, "a")), [(1, "one"), (2, "2"), (3, "3")]);
    assert_eq!((log.tail("a").unwrap(), log.head("a").unwrap()), (0, 3));
    assert_eq!(log.term_starts("a").unwrap().firsts, [(2, 3)]);
}
