//! What the log promises when nothing goes wrong.

mod kit;

use std::os::unix::fs::PermissionsExt as _;

use kit::{Dir, all, event, fill, offsets};
use realtime_log::{Append, Appended, Error, Log, Options, Stored, TermStarts};

#[test]
fn offsets_count_from_1_in_each_channel_by_itself() {
    let mut log = Log::open_in_memory().unwrap();
    let batch = [event("a", "{}"), event("b", "{}"), event("a", "{}"), event("a", "{}")];
    let first: Vec<u64> = log.append(&batch).unwrap().iter().map(|appended| appended.offset).collect();
    let second: Vec<u64> = log.append(&batch).unwrap().iter().map(|appended| appended.offset).collect();
    assert_eq!((first, second), (vec![1, 1, 2, 3], vec![4, 2, 5, 6]));
    assert_eq!((log.head("a").unwrap(), log.head("b").unwrap(), log.head("c").unwrap()), (6, 2, 0));
}

#[test]
fn an_event_comes_back_as_it_was_handed_over() {
    let dir = Dir::new();
    let mut log = dir.open();
    let append = Append {
        channel: "conversation:1",
        event: "conversation_updated",
        data: "{\"content\":\"h\u{e9}llo \u{1f600} \\u0000\"}".as_bytes(),
        number_field: false,
        user: Some("\u{e9}ve\0"),
        dedupe: Some("key"),
        request: Some("7d8e"),
        amends: None,
        time_ms: 1_700_000_000_123,
    };
    let server = Append { user: None, data: b"", ..append };
    let appended = log.append(&[append, server]).unwrap();
    assert_eq!(*appended[0].data, *append.data);
    drop(log);
    let stored = |offset, user: Option<&str>, data: &[u8]| Stored {
        offset,
        event: "conversation_updated".into(),
        data: data.into(),
        user: user.map(Into::into),
        request: Some("7d8e".into()),
        time_ms: 1_700_000_000_123,
    };
    let expected = vec![stored(1, append.user, append.data), stored(2, None, b"")];
    assert_eq!(all(&mut dir.open(), "conversation:1"), expected);
}

#[test]
fn the_number_in_the_payload_is_the_offset_in_answer_and_store() {
    let mut log = Log::open_in_memory().unwrap();
    let numbered = |data| Append { number_field: true, ..event("a", data) };
    let appended = log.append(&[numbered(r#"{"content":"x"}"#), numbered("{}")]).unwrap();
    let expected: [&[u8]; 2] = [br#"{"number":1,"content":"x"}"#, br#"{"number":2}"#];
    for (index, stored) in all(&mut log, "a").iter().enumerate() {
        assert_eq!(*appended[index].data, *expected[index]);
        assert_eq!(*stored.data, *expected[index]);
    }
}

#[test]
fn a_duplicate_is_answered_with_the_first_result_and_takes_no_number() {
    let dir = Dir::new();
    let keyed = |data| Append { dedupe: Some("k"), number_field: true, ..event("a", data) };
    let first = dir.open().append(&[event("a", "{}"), keyed(r#"{"content":"first"}"#)]).unwrap();
    let mut log = dir.open();
    let batch = [event("a", "{}"), Append { time_ms: 9, ..keyed(r#"{"content":"second"}"#) }, event("a", "{}")];
    let second = log.append(&batch).unwrap();
    assert_eq!((second[0].offset, second[2].offset), (3, 4));
    let stored = Stored {
        offset: 2,
        event: "new_message".into(),
        data: first[1].data.clone(),
        user: Some("alice".into()),
        request: None,
        time_ms: 1_700_000_000_000,
    };
    let answer = Appended { offset: 2, duplicate: true, stored: Some(stored), ..Appended::default() };
    assert_eq!(second[1], answer);
    assert_eq!(log.head("a").unwrap(), 4);
}

#[test]
fn a_duplicate_within_one_batch_is_found_too() {
    let mut log = Log::open_in_memory().unwrap();
    let keyed = |data| Append { dedupe: Some("k"), ..event("a", data) };
    let appended = log.append(&[keyed("1"), keyed("2"), event("a", "3")]).unwrap();
    assert_eq!(appended[1].stored.as_ref().map(|stored| &*stored.data), Some(&b"1"[..]));
    assert_eq!(
        appended.iter().map(|one| (one.offset, one.duplicate)).collect::<Vec<_>>(),
        [(1, false), (1, true), (2, false)]
    );
}

#[test]
fn the_same_key_of_another_channel_or_user_is_not_a_duplicate() {
    let mut log = Log::open_in_memory().unwrap();
    let keyed = Append { dedupe: Some("k"), ..event("a", "{}") };
    let batch = [
        keyed,
        Append { channel: "b", ..keyed },
        Append { user: Some("bob"), ..keyed },
        Append { user: Some(""), ..keyed },
        Append { user: None, ..keyed },
        Append { dedupe: Some("K"), ..keyed },
        Append { dedupe: Some(""), ..keyed },
    ];
    assert!(log.append(&batch).unwrap().iter().all(|appended| !appended.duplicate));
    assert!(log.append(&batch).unwrap().iter().all(|appended| appended.duplicate));
}

#[test]
fn an_event_without_a_key_is_never_a_duplicate() {
    let mut log = Log::open_in_memory().unwrap();
    assert!(log.append(&[event("a", "{}"); 3]).unwrap().iter().all(|appended| !appended.duplicate));
}

#[test]
fn an_empty_batch_does_nothing() {
    assert_eq!(Log::open_in_memory().unwrap().append(&[]).unwrap(), []);
}

#[test]
fn a_page_starts_behind_after_and_stops_at_limit() {
    let mut log = Log::open_in_memory().unwrap();
    fill(&mut log, "a", 10);
    fill(&mut log, "b", 3);
    for (after, limit, expected) in [
        (0, 3, vec![1, 2, 3]),
        (3, 3, vec![4, 5, 6]),
        (8, 3, vec![9, 10]),
        (10, 3, vec![]),
        (11, 3, vec![]),
        (u64::MAX, usize::MAX, vec![]),
        (7, usize::MAX, vec![8, 9, 10]),
        (0, 0, vec![]),
    ] {
        let page = log.page("a", after, limit, usize::MAX).unwrap();
        assert_eq!((offsets(&page.events), page.head), (expected, 10), "after {after}, limit {limit}");
    }
    let nothing = log.page("c", 0, 10, usize::MAX).unwrap();
    assert_eq!((nothing.events, nothing.head), (vec![], 0));
}

#[test]
fn a_page_stops_at_bytes_max_but_holds_at_least_one_event() {
    let mut log = Log::open_in_memory().unwrap();
    let data = "x".repeat(1_000);
    log.append(&[event("a", &data); 5]).unwrap();
    let event_bytes = 1_000 + "new_message".len() + "alice".len() + 128;
    for (bytes_max, events) in
        [(0, 1), (1, 1), (event_bytes, 1), (2 * event_bytes - 1, 1), (2 * event_bytes, 2), (usize::MAX, 5)]
    {
        assert_eq!(log.page("a", 0, 10, bytes_max).unwrap().events.len(), events, "bytes_max {bytes_max}");
    }
}

#[test]
fn every_start_begins_a_term_and_the_chain_keeps_those_before_in_order() {
    let dir = Dir::new();
    let first = dir.open().terms().to_vec();
    assert_eq!(first.last().unwrap().epoch.len(), 16);
    let second = dir.open().terms().to_vec();
    assert_eq!((&second[..first.len()], second.len()), (&first[..], first.len() + 1));
    assert_eq!(dir.open().terms()[..second.len()], second);
    let epoch = second.last().unwrap().epoch.clone();
    std::fs::remove_file(dir.database()).unwrap();
    assert!(dir.open().terms().iter().all(|term| term.epoch != epoch && term.epoch != first[0].epoch));
    assert_ne!(Log::open_in_memory().unwrap().epoch(), Log::open_in_memory().unwrap().epoch());
}

#[test]
fn the_first_append_of_a_channel_in_a_term_leaves_one_row() {
    let dir = Dir::new();
    let mut log = dir.open();
    let first = log.terms().last().unwrap().number;
    fill(&mut log, "a", 3);
    fill(&mut log, "a", 1);
    assert_eq!(log.term_starts("a").unwrap().firsts, [(first, 1)]);
    drop(log);
    drop(dir.open());
    let mut log = dir.open();
    let third = log.terms().last().unwrap().number;
    assert_eq!(third, first + 2);
    fill(&mut log, "b", 1);
    fill(&mut log, "a", 2);
    assert_eq!(log.term_starts("a").unwrap().firsts, [(first, 1), (third, 5)], "none for a term without an append");
    assert_eq!(log.term_starts("b").unwrap().firsts, [(third, 1)]);
    let keyed = Append { dedupe: Some("k"), ..event("b", "{}") };
    log.append(&[keyed]).unwrap();
    drop(log);
    let mut log = dir.open();
    assert!(log.append(&[keyed]).unwrap()[0].duplicate);
    assert_eq!(log.term_starts("b").unwrap().firsts, [(third, 1)], "a repeat is no append");
    assert_eq!(log.term_starts("never").unwrap(), TermStarts::default());
}

#[test]
fn heads_and_numbers_go_on_after_reopening() {
    let dir = Dir::new();
    fill(&mut dir.open(), "a", 7);
    let mut log = dir.open();
    assert_eq!(log.head("a").unwrap(), 7);
    drop(log);
    assert_eq!(fill(&mut dir.open(), "a", 1)[0].offset, 8);
}

#[test]
fn more_channels_than_are_remembered_keep_their_numbers() {
    let mut log = Log::open_in_memory().unwrap();
    let names: Vec<String> = (0..120_000).map(|index| format!("conversation:{index}")).collect();
    for round in 1..=2 {
        for some in names.chunks(10_000) {
            let batch: Vec<Append<'_>> = some.iter().map(|name| event(name, "{}")).collect();
            assert!(log.append(&batch).unwrap().iter().all(|appended| appended.offset == round));
        }
    }
}

#[test]
fn a_large_event_is_stored_whole() {
    let dir = Dir::new();
    let data = "x".repeat(1 << 20);
    dir.open().append(&[event("a", &data), event("a", "small")]).unwrap();
    let stored = all(&mut dir.open(), "a");
    assert_eq!((stored[0].data.len(), &*stored[1].data), (1 << 20, &b"small"[..]));
}

#[test]
fn a_time_beyond_what_is_stored_does_not_fail_the_batch() {
    let mut log = Log::open_in_memory().unwrap();
    log.append(&[Append { time_ms: u64::MAX, ..event("a", "{}") }]).unwrap();
    assert_eq!(all(&mut log, "a")[0].time_ms, i64::MAX as u64);
}

#[test]
fn a_missing_data_directory_is_made_for_its_owner_alone() {
    let dir = Dir::new();
    let data_dir = dir.path().join("deep/er");
    drop(Log::open(&Options::new(&data_dir)).unwrap());
    assert_eq!(data_dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_files_are_their_owners_alone_whatever_the_directory_and_their_modes_of_before() {
    let files = ["lock", "realtime.sqlite3", "realtime.sqlite3-wal", "realtime.sqlite3-shm"];
    let set_mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let modes = |dir: &Dir| files.map(|file| dir.path().join(file).metadata().unwrap().permissions().mode() & 0o777);
    let dir = Dir::new();
    set_mode(dir.path(), 0o777);
    let mut log = dir.open();
    fill(&mut log, "a", 1);
    assert_eq!(modes(&dir), [0o600; 4], "made anew");
    // What a crash leaves, in the modes that an umask of 0 gives.
    let copy = Dir::new();
    for file in files {
        std::fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        set_mode(&copy.path().join(file), 0o666);
    }
    let mut log = copy.open();
    fill(&mut log, "a", 1);
    assert_eq!(modes(&copy), [0o600; 4], "there before");
}

#[test]
fn a_directory_is_one_logs_at_a_time() {
    let dir = Dir::new();
    let log = dir.open();
    assert!(matches!(dir.try_open(), Err(Error::Locked { dir: named }) if named == dir.path()));
    drop(log);
    dir.open();
}

#[test]
fn a_log_may_be_handed_to_another_thread() {
    let mut log = Log::open_in_memory().unwrap();
    let head = std::thread::spawn(move || fill(&mut log, "a", 2)[1].offset).join().unwrap();
    assert_eq!(head, 2);
}
