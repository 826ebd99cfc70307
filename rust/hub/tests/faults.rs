//! Faults of timing and of size: what happens between two steps of the log, behind our Close, and under floods.

mod world;

use realtime_hub::Command;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use world::{Got, Store, World, admitted};

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

// ---- the log between two steps

#[test]
fn a_subscribe_behind_one_whose_head_could_not_be_read_is_a_new_one() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    world.send(ann, &subscribe("conversation:1", 1));
    world.log_fails = true;
    world.step_log();
    world.log_fails = false;
    world.send(ann, &subscribe("conversation:1", 2));
    world.log_stands = false;
    world.run();
    let frames = world.take_json(ann);
    assert_eq!(told(&frames), ["error 1 unavailable", "subscription_confirmed 2 null"]);
    assert_eq!(world.hub.members("conversation:1"), 1);
    world.publish("conversation:1", "e", &json!({}));
    world.run();
    assert_eq!(offsets(&world.take_json(ann)), [1]);
}

#[test]
fn subscribe_again_behind_a_failure_and_an_unsubscribe_is_answered() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    world.send(ann, &subscribe("conversation:1", 1));
    world.log_fails = true;
    world.step_log();
    world.log_fails = false;
    world.send(ann, &unsubscribe("conversation:1", 2));
    world.send(ann, &subscribe("conversation:1", 3));
    world.log_stands = false;
    world.run();
    let frames = world.take_json(ann);
    assert_eq!(
        told(&frames),
        ["error 1 unavailable", "unsubscription_confirmed 2 null", "subscription_confirmed 3 null"]
    );
    assert_eq!(world.hub.members("conversation:1"), 1);
}

#[test]
fn a_page_for_an_earlier_membership_is_not_taken_for_the_new_one() {
    let mut world = World::new(1);
    for n in 0..600 {
        world.publish("conversation:1", "e", &json!({"n": n}));
    }
    world.run();
    let ann = world.connect(0, "ann");
    world.send(ann, &subscribe("conversation:1", 0));
    world.send(ann, &unsubscribe("conversation:1", 0));
    world.run();
    world.take(ann);
    world.log_stands = true;
    let from = |offset: u64| {
        let position = json!({"offset": offset, "epoch": "log-epoch"});
        json!({"type": "subscribe", "data": {"channel": "conversation:1", "position": position}})
    };
    world.send(ann, &from(300));
    world.run();
    while world.step_log() {
        world.run();
        if !world.take_json(ann).is_empty() {
            break;
        }
    }
    world.send(ann, &unsubscribe("conversation:1", 0));
    world.send(ann, &from(300));
    world.send(ann, &unsubscribe("conversation:1", 0));
    world.send(ann, &from(0));
    world.log_stands = false;
    world.run();
    let frames = world.take_json(ann);
    let last = frames.iter().rposition(|frame| frame["type"] == "subscription_confirmed").unwrap();
    assert_eq!(offsets(&frames[last..]), (1..=600).collect::<Vec<u64>>());
}

#[test]
fn history_of_many_durable_channels_leaves_none_in_memory() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    for n in 0..50 {
        let answers =
            world.ask(ann, &json!({"type": "history", "data": {"channel": format!("conversation:{n}")}}).to_string());
        assert_eq!(answers[0]["type"], "history");
    }
    assert_eq!(world.hub.channels(), 0);
}

#[test]
fn an_unsubscribe_that_waits_for_the_log_is_answered_before_the_peers_close() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    world.send(ann, &subscribe("conversation:1", 1));
    world.send(ann, &unsubscribe("conversation:1", 2));
    let mut close = Vec::new();
    encode_masked_frame(Opcode::Close, true, b"\x03\xe8", [1, 2, 3, 4], &mut close);
    world.raw_bytes(ann, &close);
    world.log_stands = false;
    world.run();
    let got = world.take(ann);
    assert!(
        matches!(&got[..], [Got::Json(one), Got::Json(two), Got::Close(Some(1000), _), Got::End] if one["id"] == 1 && two["id"] == 2),
        "{got:?}"
    );
}

#[test]
fn who_lags_behind_a_ring_while_it_is_replayed_is_told_and_the_log_is_not_asked() {
    let mut world = with_limits(&json!({"enabled": false, "outbox_soft_bytes": 300, "outbox_hard_bytes": 100_000}));
    for n in 0..4 {
        world.publish("ring:1", "e", &json!({"n": n, "x": "y".repeat(200)}));
    }
    let ann = world.connect(0, "ann");
    world.limit(ann, Some(20));
    world.log_stands = true;
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "ring:1", "last": 4}}));
    world.run();
    for n in 4..12 {
        world.publish("ring:1", "e", &json!({"n": n}));
    }
    world.open_up(ann);
    assert!(!world.step_log(), "a channel in memory has no log");
    let frames = world.take_json(ann);
    let seen = offsets(&frames);
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<u64>>());
    let last = frames.last().unwrap();
    assert_eq!((&last["type"], &last["data"]["code"]), (&json!("unsubscribed"), &json!("not_recoverable")));
}

#[test]
fn a_subscribe_that_python_takes_away_before_it_is_done_is_answered_first() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.send(ann, &subscribe("news:1", 1));
    let conn = world.clients[ann].conn;
    let (channel, code) = ("news:1".into(), "forbidden".into());
    world.submit(Command::Unsubscribe { conn, channel, code, retryable: false });
    world.send(ann, &unsubscribe("news:1", 2));
    world.send(ann, &subscribe("news:1", 3));
    world.run();
    let wanted = [
        "subscription_confirmed 1 null",
        "unsubscription_confirmed 2 null",
        "subscription_confirmed 3 null",
        "unsubscribed null forbidden",
    ];
    assert_eq!(told(&world.take_json(ann)), wanted);
    assert_eq!((world.hub.members("news:1"), world.hub.channels()), (0, 0));
}

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
        world.open_up(client);
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
        world.submit(Command::SendAll { payload: b"{\"type\":\"all\"}"[..].into(), key: None });
        world.run();
        world.submit(Command::PublishUnion {
            channels: vec!["conversation:1".into()],
            payload: b"{}"[..].into(),
            key: None,
        });
        world.run();
        world.open_up(ann);
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
    world.hub.close_all(1012, "restart", 0);
    world.run();
    world.open_up(ann);
    let got = world.take(ann);
    assert!(matches!(got.last(), Some(Got::Close(Some(1012), _))), "{:?}", got.last());
    let json = |got: &Got| if let Got::Json(frame) = got { frame["offset"].as_u64() } else { None };
    let seen: Vec<u64> = got.iter().filter_map(json).collect();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<u64>>());
}

#[test]
fn a_replay_of_events_larger_than_the_hard_limit_closes_nobody() {
    let mut world = with_limits(&json!({"enabled": false, "outbox_soft_bytes": 500, "outbox_hard_bytes": 2_000}));
    for n in 0..30 {
        let x = "y".repeat(if n % 3 == 1 { 3_000 } else { 30 });
        world.publish("conversation:1", "e", &json!({"n": n, "x": x}));
    }
    world.run();
    let ann = world.connect(0, "ann");
    world.limit(ann, Some(100));
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "last": 30}}));
    world.run();
    let mut seen = Vec::new();
    while world.receive(ann) {
        world.run();
        seen.extend(offsets(&world.take_json(ann)));
    }
    assert_eq!(seen, (1..=30).collect::<Vec<u64>>());
}

// ---- floods

#[test]
fn bytes_for_connections_of_no_shard_are_not_counted_as_waiting() {
    let mut world = World::new(1);
    let conn = realtime_hub::ConnId::from_u64(u64::MAX);
    world.submit(Command::Send { conn, text: true, payload: b"{}"[..].into(), done: 0 });
    world.run();
    assert_eq!(world.hub.counters().commands_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn half_messages_behind_our_close_do_not_upset_the_count_of_unfinished_bytes() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let conn = world.clients[ann].conn;
    world.submit(Command::Close { conn, code: 4503, reason: "removed".into() });
    world.run();
    let mut half = Vec::new();
    encode_masked_frame(Opcode::Binary, true, &[b'x'; 8_000], [1, 2, 3, 4], &mut half);
    world.raw_bytes(ann, &half[..3_000]);
    world.run();
    world.cut(ann);
    assert_eq!(world.hub.counters().unfinished_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn bytes_behind_a_pause_count_as_unfinished() {
    let mut world = with_limits(&json!({"enabled": false, "commands_waiting_max": 2, "unfinished_bytes_max": 10_000}));
    let clients = ["ann", "bob", "eve"].map(|user| world.connect(0, user));
    let mut frames = Vec::new();
    for _ in 0..100 {
        let message = json!({"type": "send_message", "data": {"x": "y".repeat(20)}}).to_string();
        encode_masked_frame(Opcode::Text, true, message.as_bytes(), [1, 2, 3, 4], &mut frames);
    }
    for client in clients {
        world.raw_bytes(client, &frames[..5_000]);
    }
    // Nobody answers what the third had asked before.
    world.advance(5_250);
    let closed = clients.map(|client| world.take(client).iter().any(|got| matches!(got, Got::Close(Some(1009), _))));
    assert_eq!(closed, [false, false, true]);
    for client in clients {
        world.cut(client);
    }
    assert_eq!(world.hub.counters().unfinished_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_relay_has_the_limit_of_a_publication() {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "publication_bytes_max": 1_000});
    options["relays"] = json!([{"type": "cursor_move", "channel": "news:{data.c}", "event": "cursor_moved", "data": {"x": "{data.x}"}}]);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    world.ask(ann, &subscribe("news:1", 1).to_string());
    let relay =
        |len: usize| json!({"type": "cursor_move", "data": {"c": "1", "x": "y".repeat(len)}, "id": 1}).to_string();
    assert_eq!(told(&world.ask(ann, &relay(2_000))), ["error 1 too_large"]);
    assert_eq!(world.ask(ann, &relay(500)).len(), 2);
}

#[test]
fn rights_that_hooks_gave_are_forgotten_from_the_oldest_on() {
    let mut world = with_limits(&json!({"enabled": false, "channels_per_session_max": 3}));
    let ann = world.connect(0, "ann");
    let conn = world.clients[ann].conn;
    let mut join = |n: u64, asked: bool| {
        let channel = format!("poll:{n}");
        let raw = subscribe(&channel, n).to_string().into_bytes();
        world.take_events();
        world.send_text(ann, std::str::from_utf8(&raw).unwrap());
        world.run();
        let asks = world.take_events().iter().any(|e| matches!(e, realtime_hub::Event::Authorize { .. }));
        assert_eq!(asks, asked, "{channel}");
        if asks {
            let rights = vec!["subscribe".into()];
            world.submit(Command::Grant { conn, channel: channel.as_str().into(), rights, raw: raw.into() });
            world.run();
        }
        assert_eq!(told(&world.take_json(ann)), [format!("subscription_confirmed {n} null")]);
        world.send(ann, &unsubscribe(&channel, 0));
        world.run();
        world.take(ann);
    };
    for n in 1..=4 {
        join(n, true);
    }
    join(4, false);
    join(1, true);
}

#[test]
fn reading_goes_on_when_python_has_let_a_connection_in() {
    let mut world = World::new(1);
    let client = world.socket(0);
    let hook = "GET /hook HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    world.raw_bytes(client, hook.as_bytes());
    world.run();
    let conn = world.clients[client].conn;
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.submit(Command::Accept { conn, who: admitted("ann") });
    world.shards[0].run_inbox(world.now);
    let mut unpaused = Vec::new();
    world.shards[0].take_unpaused(&mut unpaused);
    assert_eq!(unpaused, [conn]);
}
