//! What a channel holds, read beside a server and without one.

mod kit;

use std::fs;

use kit::{Dir, event, fill};
use realtime_log::{DATABASE_NAME, Error, stored};

#[test]
fn a_channel_is_read_beside_a_server_and_behind_it() {
    let dir = Dir::new();
    assert!(stored(dir.path(), "a", 0).unwrap().is_none(), "there is no log");
    let mut log = dir.open();
    fill(&mut log, "a", 3);
    fill(&mut log, "b", 1);
    let beside = stored(dir.path(), "a", 0).unwrap().unwrap();
    assert_eq!(beside.len(), 3);
    assert!(stored(dir.path(), "c", 0).unwrap().unwrap().is_empty());
    fill(&mut log, "a", 1);
    drop(log);
    let behind = stored(dir.path(), "a", 0).unwrap().unwrap();
    assert_eq!((behind.len(), &behind[..3]), (4, &beside[..]), "oldest first");
    let mut log = dir.open();
    fill(&mut log, "a", 1);
}

#[test]
fn a_page_has_a_mib_at_most_and_one_event_at_least() {
    let dir = Dir::new();
    let mut log = dir.open();
    for bytes in [1 << 19, 1 << 19, 1, 2 << 20, 1] {
        let data = "x".repeat(bytes);
        log.append(&[event("a", &data)]).unwrap();
    }
    let page = |after| {
        let found = stored(dir.path(), "a", after).unwrap().unwrap();
        found.into_iter().map(|(offset, data)| (offset, data.len())).collect::<Vec<_>>()
    };
    assert_eq!(page(0), [(1, 1 << 19), (2, 1 << 19)], "a MiB, and no byte more");
    assert_eq!(page(2), [(3, 1)]);
    assert_eq!(page(3), [(4, 2 << 20)], "one event whatever its size");
    assert_eq!(page(4), [(5, 1)]);
    assert_eq!((page(5), page(u64::MAX)), (vec![], vec![]));
}

#[test]
fn what_is_no_log_is_told() {
    let dir = Dir::new();
    fs::write(dir.path().join(DATABASE_NAME), "not a database, but long enough for the header of one".repeat(9))
        .unwrap();
    let error = stored(dir.path(), "a", 0).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
