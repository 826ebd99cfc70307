//! Faults of timing and of size: what happens between two steps of the log, behind our Close, and under floods.

mod world;

use realtime_hub::Command;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use world::{Got, Store, World};

fn with_limits(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    World::with(&options, 1, Store::default())
}

fn subscribe(channel: &str, id: u64) -> Value {
    json!({"type": "subscribe", "data": {"channel": channel}, "id": id})
}

fn unsubscribe(channel: &str, id: u64) -> Value {
    json!({"type": "unsubscribe", "data": {"channel": channel}, "id": id})
}

/// Type, id and code of each frame.
fn told(frames: &[Value]) -> Vec<String> {
    frames.iter().map(|f| format!("{} {} {}", f["type"], f["id"], f["data"]["code"]).replace('"', "")).collect()
}

fn offsets(frames: &[Value]) -> Vec<u64> {
    frames.iter().filter_map(|frame| frame["offset"].as_u64()).collect()
}

fn open_up(world: &mut World, client: usize) {
    world.limit(client, None);
    let (conn, shard) = (world.clients[client].conn, world.clients[client].shard);
    world.shards[shard].writable(conn);
    world.run();
}

// ---- the log between two steps

// ---- what waits for slow readers

#[test]
fn a_close_is_said_when_the_outboxes_of_all_are_full() {
    let limits = json!({"enabled": false, "outbox_hard_bytes": 100_000, "outboxes_bytes_max": 3_000});
    let mut world = with_limits(&limits);
    let clients = ["ann", "bob"].map(|user| world.connect(0, user));
    for client in clients {
        world.ask(client, &subscribe("conversation:1", 1).to_string());
        world.limit(client, Some(30));
    }
    for n in 0..3 {
        world.publish("conversation:1", "e", &json!({"n": n, "x": "y".repeat(2_000)}));
        world.run();
    }
    for client in clients {
        open_up(&mut world, client);
        assert!(matches!(world.take(client).last(), Some(Got::Close(Some(4000), _))));
    }
}

#[test]
fn nothing_follows_our_close_and_what_comes_before_it_has_no_hole() {
    for room in [10, 3_000, 9_000] {
        let mut world = with_limits(&json!({"enabled": false, "outbox_soft_bytes": 500, "outbox_hard_bytes": 2_000}));
        let ann = world.connect(0, "ann");
        world.ask(ann, &subscribe("conversation:1", 1).to_string());
        world.limit(ann, Some(room));
        for n in 0..60 {
            let x = "y".repeat(if n % 7 == 3 { 1_500 } else { 30 });
            world.publish("conversation:1", "e", &json!({"n": n, "x": x}));
        }
        world.submit(Command::SendAll { payload: b"{\"type\":\"all\"}"[..].into() });
        world.run();
        world.submit(Command::PublishUnion { channels: vec!["conversation:1".into()], payload: b"{}"[..].into() });
        world.run();
        open_up(&mut world, ann);
        let got = world.take(ann);
        assert!(matches!(got.last(), Some(Got::Close(Some(4000), _))), "{:?}", got.last());
        let json = |got: &Got| if let Got::Json(frame) = got { frame["offset"].as_u64() } else { None };
        let seen: Vec<u64> = got.iter().filter_map(json).collect();
        assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<u64>>(), "room {room}");
    }
}

#[test]
fn a_close_in_order_cuts_a_full_outbox_without_a_hole() {
    let mut world = with_limits(&json!({"enabled": false, "outbox_soft_bytes": 500, "outbox_hard_bytes": 2_000}));
    let ann = world.connect(0, "ann");
    world.ask(ann, &subscribe("conversation:1", 1).to_string());
    world.limit(ann, Some(100));
    for n in 0..9 {
        let x = "y".repeat(if n == 3 { 1_900 } else { 100 });
        world.publish("conversation:1", "e", &json!({"n": n, "x": x}));
    }
    world.log_stands = true;
    while world.step_log() {}
    world.hub.close_all(1012, "restart");
    world.run();
    open_up(&mut world, ann);
    let got = world.take(ann);
    assert!(matches!(got.last(), Some(Got::Close(Some(1012), _))), "{:?}", got.last());
    let json = |got: &Got| if let Got::Json(frame) = got { frame["offset"].as_u64() } else { None };
    let seen: Vec<u64> = got.iter().filter_map(json).collect();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<u64>>());
}

// ---- floods
