//! A disk without room: a test of its own, because it limits the files of its process.
#![cfg(target_os = "linux")]

use realtime_hub::{Command, Event, Publish};
use realtime_reactor::Engine;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Lets files grow to so many bytes; a write beyond fails as one to a full disk does.
fn limit_files(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid `rlimit`, only read; ignoring the signal leaves the error alone.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
}

fn publish(engine: &Engine, ticket: u64) -> Result<u64, &'static str> {
    engine.handle().submit(vec![Command::Publish(Publish {
        ticket,
        channel: "log:1".into(),
        event: "new_message".into(),
        data: format!("{{\"text\":\"{}\"}}", "x".repeat(20_000)).into_bytes().into(),
        user: None,
        key: None,
        dedupe: None,
        number: true,
        request: None,
        amends: None,
        notify: true,
        reply: None,
    })]);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        for event in engine.handle().drain(usize::MAX) {
            if let Event::Published { ticket: told, outcome } = event {
                assert_eq!(told, ticket);
                return outcome.map(|published| published.offset);
            }
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn stats(engine: &Engine) -> Value {
    serde_json::from_str(&engine.handle().stats_json()).unwrap()
}

#[test]
fn a_commit_that_fails_refuses_its_events_and_the_next_one_goes_on() {
    let dir = std::env::temp_dir().join(format!("realtime-reactor-full-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let options = json!({"data_dir": dir, "policies": [{"pattern": "log:*", "durable": true}]});
    let engine = Engine::new(options.to_string().as_bytes()).unwrap();
    engine.start().unwrap();
    assert_eq!(publish(&engine, 0), Ok(1));
    assert_eq!(stats(&engine)["log_error"], Value::Null);
    limit_files(32_768);
    for ticket in 1..5 {
        assert_eq!(publish(&engine, ticket), Err("unavailable"));
    }
    // Emptying the write-ahead log, which the log's thread does once at its start, fails as well where it comes so late.
    let failures = stats(&engine)["log_failures"].as_u64();
    assert!(matches!(failures, Some(4 | 5)), "{failures:?}");
    assert_eq!(stats(&engine)["log_failing"], 1);
    assert!(stats(&engine)["log_error"].as_str().is_some_and(|reason| reason.contains("disk")));
    limit_files(libc::RLIM_INFINITY);
    // Nothing is published: a commit of the engine's own finds out.
    let deadline = Instant::now() + Duration::from_secs(20);
    while stats(&engine)["log_failing"] != 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(stats(&engine)["log_error"], Value::Null);
    assert_eq!(publish(&engine, 5), Ok(2), "nothing refused took a number");
    assert!(engine.flush_log(Duration::from_secs(5)));
    drop(engine);
    std::fs::remove_dir_all(dir).unwrap();
}
