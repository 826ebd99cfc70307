//! What a channel holds, read beside a server and without one.

mod kit;

use std::fs;

use kit::{Dir, fill};
use realtime_log::{DATABASE_NAME, Error, stored};

#[test]
fn a_channel_is_read_beside_a_server_and_behind_it() {
    let dir = Dir::new();
    assert!(stored(dir.path(), "a").unwrap().is_none(), "there is no log");
    let mut log = dir.open();
    fill(&mut log, "a", 3);
    fill(&mut log, "b", 1);
    let beside = stored(dir.path(), "a").unwrap().unwrap();
    assert_eq!(beside.len(), 3);
    assert!(stored(dir.path(), "c").unwrap().unwrap().is_empty());
    fill(&mut log, "a", 1);
    drop(log);
    let behind = stored(dir.path(), "a").unwrap().unwrap();
    assert_eq!((behind.len(), &behind[..3]), (4, &beside[..]), "oldest first");
    let mut log = dir.open();
    fill(&mut log, "a", 1);
}

#[test]
fn what_is_no_log_is_told() {
    let dir = Dir::new();
    fs::write(dir.path().join(DATABASE_NAME), "not a database, but long enough for the header of one".repeat(9))
        .unwrap();
    let error = stored(dir.path(), "a").unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
