//! Threads start with the engine and end with it: a test of its own, because it looks at all threads of its process.
#![cfg(target_os = "linux")]

use realtime_reactor::Engine;
use std::fs;
use std::time::{Duration, Instant};

fn own_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let mut own: Vec<String> =
        names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("realtime-")).collect();
    own.sort();
    own
}

/// Threads name themselves when they first run, and leave the table a moment after they were joined.
fn assert_threads(expected: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while own_threads() != expected {
        assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", own_threads());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_process_may_fork_before_the_start_and_has_no_thread_left_after_the_end() {
    let engine = Engine::new(br#"{"shards": 2}"#).unwrap();
    assert_eq!(own_threads(), [""; 0]);
    engine.start().unwrap();
    assert_threads(&["realtime-0", "realtime-1", "realtime-accept", "realtime-log"]);
    engine.stop_accepting();
    assert_threads(&["realtime-0", "realtime-1", "realtime-log"]);
    engine.stop(Duration::from_secs(5));
    assert_threads(&[]);
}
