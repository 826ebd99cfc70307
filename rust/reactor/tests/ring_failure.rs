//! A ring that fails under load: a test of its own, because it takes a descriptor away from its own process.
#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the test over sockets uses all of it")]
#[path = "sockets/client.rs"]
mod client;

use client::{Arrived, Client};
use realtime_hub::{Command, Event};
use realtime_reactor::Engine;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;

fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} within 20 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn rings() -> Vec<RawFd> {
    let is_ring = |fd: &RawFd| {
        fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|name| name.to_string_lossy().contains("io_uring"))
    };
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).filter(is_ring).collect()
}

/// Puts something in the place of a ring that takes no submission.
fn break_ring(ring: RawFd) {
    let nothing = fs::File::open("/dev/null").unwrap();
    // SAFETY: both descriptors are open; whoever owns the ring's closes what is there now.
    assert_eq!(unsafe { libc::dup2(nothing.as_raw_fd(), ring) }, ring);
}

fn greeted(engine: &Engine) -> Client {
    let mut client = Client::connect(engine.port(), "/ws");
    client.expect("connection_established");
    client
}

fn send_all(engine: &Engine, text: &str) {
    engine.handle().submit(vec![Command::SendAll { payload: text.as_bytes().into(), key: None }]);
}

fn stats(engine: &Engine) -> Value {
    serde_json::from_str(&engine.handle().stats_json()).unwrap()
}

#[test]
fn a_shard_whose_ring_fails_closes_that_batch_says_so_and_goes_on_by_the_loop() {
    let options = json!({"shards": 2, "endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}],
        "limits": {"enabled": false}});
    let engine = Engine::new(options.to_string().as_bytes()).unwrap();
    engine.start().unwrap();
    if engine.flush() != "uring" {
        // The kernel allows no ring here, so there is none to fail.
        return;
    }
    let clients: Vec<Client> = (0..CLIENTS).map(|_| greeted(&engine)).collect();
    assert_eq!(stats(&engine)["flush_ring_failures"], 0);
    let rings = eventually("ring of each shard", || Some(rings()).filter(|rings| rings.len() == 2));
    break_ring(rings[0]);
    send_all(&engine, "first");
    let (mut served, mut ended) = (Vec::new(), 0);
    for mut client in clients {
        match client.next() {
            Arrived::Text(text) => {
                assert_eq!(text, "first");
                served.push(client);
            }
            Arrived::End => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((served.len(), ended), (CLIENTS / 2, CLIENTS / 2), "those of one shard were in the batch that failed");
    let told = eventually("word of it", || {
        engine.handle().drain(usize::MAX).into_iter().find_map(|event| match event {
            Event::Warned { message } => Some(message),
            _ => None,
        })
    });
    let stats = stats(&engine);
    assert_eq!((&stats["flush_ring_failures"], &stats["flush"]), (&json!(1), &json!("mixed")));
    let shards: Vec<_> = (0..2).map(|shard| stats["shards"][shard]["flush"].as_str().unwrap()).collect();
    let failed = shards.iter().position(|flush| *flush == "send").unwrap();
    assert_eq!(shards[1 - failed], "uring");
    let start = format!("io_uring of shard {failed} failed: ");
    assert!(told.starts_with(&start) && told.ends_with("; its sends go one by one now"), "{told}");
    // The acceptor fills up the shard that has lost its own, and all are served.
    eventually("end of them", || (self::stats(&engine)["connections"] == CLIENTS / 2).then_some(()));
    served.extend((0..CLIENTS / 2).map(|_| greeted(&engine)));
    send_all(&engine, "second");
    for client in &mut served {
        assert_eq!(client.next(), Arrived::Text("second".into()));
    }
    assert_eq!(self::stats(&engine)["flush_ring_failures"], 1);
}
