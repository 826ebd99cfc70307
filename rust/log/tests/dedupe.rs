//! Keys of events that are kept no longer.

mod kit;

use kit::{Dir, event, fill, offsets};
use realtime_log::{Append, Keep, Log};
use rusqlite::Connection;

const DAY_S: u64 = 86_400;
const NOW_MS: u64 = 1_700_000_000_000;

fn keyed<'a>(key: &'a str, data: &'a str) -> Append<'a> {
    Append { dedupe: Some(key), number_field: true, ..event("a", data) }
}

/// Lets go of all events but the newest.
fn sweep(log: &mut Log, now_ms: u64) {
    let mut after = Some(0);
    while let Some(from) = after {
        after = log.sweep(from, now_ms, |_| Some(Keep { since_ms: None, events: Some(1) })).unwrap().next;
    }
}

/// Offset, whether it is a repeat, and the answer's payload.
fn told(log: &mut Log, append: Append<'_>) -> (u64, bool, String) {
    let appended = log.append(&[append]).unwrap().remove(0);
    let data = appended.stored.map_or(appended.data, |stored| stored.data);
    (appended.offset, appended.duplicate, String::from_utf8(data.to_vec()).unwrap())
}

#[test]
fn a_repeat_of_an_event_that_is_gone_is_answered_by_number_and_id() {
    let dir = Dir::new();
    let mut log = dir.open();
    let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(300));
    let batch = [
        keyed("k1", r#"{"id":"m-1","content":"hello"}"#),
        keyed("k2", r#"{"content":"no id","deep":{"id":2}}"#),
        keyed("k3", r#"{"id":3}"#),
        Append { user: None, ..keyed("k1", r#"{"id":"m-4"}"#) },
        Append { user: Some(""), ..keyed("k1", r#"{"id":"m-5"}"#) },
        keyed("k6", "not json"),
        keyed("k7", &long),
        event("a", r#"{"id":"without a key"}"#),
        event("a", "{}"),
    ];
    log.append(&batch).unwrap();
    sweep(&mut log, NOW_MS);
    drop(log);
    let mut log = dir.open();
    assert_eq!(offsets(&kit::all(&mut log, "a")), [9]);
    let expected = [
        (1, r#"{"number":1,"id":"m-1"}"#),
        (2, r#"{"number":2}"#),
        (3, r#"{"number":3,"id":3}"#),
        (4, r#"{"number":4,"id":"m-4"}"#),
        (5, r#"{"number":5,"id":"m-5"}"#),
        (6, r#"{"number":6}"#),
        (7, r#"{"number":7}"#),
    ];
    for (append, (offset, data)) in batch.iter().zip(expected) {
        let again = Append { data: b"{\"id\":\"another\"}", ..*append };
        assert_eq!(told(&mut log, again), (offset, true, data.to_owned()));
    }
    // Another user's, or another channel's, is another key.
    assert_eq!(told(&mut log, Append { user: Some("bob"), ..keyed("k1", "{}") }).0, 10);
    assert_eq!(told(&mut log, Append { channel: "b", ..keyed("k1", "{}") }).0, 1);
}

#[test]
fn a_key_is_known_until_its_time_and_then_may_be_used_again() {
    let mut log = Log::open_in_memory().unwrap();
    log.append(&[keyed("k", r#"{"id":"first"}"#), event("a", "{}")]).unwrap();
    sweep(&mut log, NOW_MS);
    let at = |time_ms| Append { time_ms, ..keyed("k", r#"{"id":"second"}"#) };
    assert_eq!(told(&mut log, at(NOW_MS + DAY_S * 1_000 - 1)).0, 1);
    assert_eq!(told(&mut log, at(NOW_MS + DAY_S * 1_000)), (3, false, r#"{"number":3,"id":"second"}"#.to_owned()));
    // The newer event's key takes the place of the old one once it goes too.
    log.append(&[event("a", "{}")]).unwrap();
    sweep(&mut log, NOW_MS + DAY_S * 1_000);
    assert_eq!(told(&mut log, at(NOW_MS + DAY_S * 1_500)).0, 3);
}

#[test]
fn an_old_event_leaves_no_key_and_a_living_one_keeps_it_whatever_its_age() {
    let mut log = Log::open_in_memory().unwrap();
    log.append(&[keyed("k1", "{}"), keyed("k2", "{}")]).unwrap();
    sweep(&mut log, NOW_MS + DAY_S * 1_000);
    let late = |key| Append { time_ms: NOW_MS + 9 * DAY_S * 1_000, ..keyed(key, "{}") };
    assert_eq!(told(&mut log, late("k2")).0, 2, "it lives");
    assert_eq!(told(&mut log, late("k1")).0, 3);
}

#[test]
fn without_a_time_no_key_outlives_its_event() {
    let mut log = Log::open_in_memory().unwrap();
    log.set_dedupe_s(0);
    log.append(&[keyed("k", "{}"), event("a", "{}")]).unwrap();
    sweep(&mut log, NOW_MS);
    assert_eq!(told(&mut log, keyed("k", "{}")).0, 3);
}

#[test]
fn keys_are_deleted_in_slices_once_their_time_is_over() {
    let dir = Dir::new();
    let mut log = dir.open();
    let keys: Vec<String> = (0..1_200).map(|n| n.to_string()).collect();
    log.append(&keys.iter().map(|key| keyed(key, "{}")).collect::<Vec<_>>()).unwrap();
    fill(&mut log, "a", 1);
    sweep(&mut log, NOW_MS);
    let other = Connection::open(dir.database()).unwrap();
    let left = || other.query_row("SELECT count(*) FROM dedupe_keys", [], |row| row.get::<_, i64>(0)).unwrap();
    assert!(!log.expire_keys(NOW_MS + DAY_S * 1_000 - 1).unwrap());
    assert_eq!(left(), 1_200);
    let mut slices = 1;
    while log.expire_keys(NOW_MS + DAY_S * 1_000).unwrap() {
        slices += 1;
    }
    assert_eq!((left(), slices), (0, 3));
}
