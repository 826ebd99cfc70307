//! Connections that are slow, silent, closing or broken.

mod world;

use realtime_hub::{Admitted, Command, Event};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::{Got, Store, World, admitted};

fn subscribe(world: &mut World, client: usize, channel: &str) {
    let answers = world.ask(client, &json!({"type": "subscribe", "data": {"channel": channel}}).to_string());
    assert_eq!(answers[0]["type"], "subscription_confirmed");
}

fn small_outboxes() -> Value {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 1_000, "outbox_hard_bytes": 4_000});
    options
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_masked_frame(opcode, true, payload, [5, 6, 7, 8], &mut bytes);
    bytes
}

#[test]
fn a_slow_reader_loses_the_oldest_volatile_events_and_is_told_before_the_next() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    let (slow, quick) = (world.connect(0, "slow"), world.connect(0, "quick"));
    subscribe(&mut world, slow, "news:1");
    subscribe(&mut world, quick, "news:1");
    world.limit(slow, Some(50));
    for n in 0..200 {
        world.publish("news:1", "e", &json!({"n": n}));
        world.run();
    }
    assert_eq!(world.take_json(quick).len(), 200);
    let conn = world.clients[slow].conn;
    assert!(world.hub.backlog(conn) <= 4_300);
    world.limit(slow, None);
    world.shards[0].writable(conn);
    world.run();
    let got = world.take_json(slow);
    let mut next = 0;
    for event in &got {
        match event["type"].as_str().unwrap() {
            "lag" => {
                assert_eq!((&event["data"]["channel"], &event["channel"]), (&json!("news:1"), &json!("news:1")));
                next += event["data"]["skipped"].as_u64().unwrap();
            }
            _ => {
                assert_eq!(event["data"]["n"], next, "each missing stretch is told before the next event");
                next += 1;
            }
        }
    }
    assert_eq!(next, 200);
    assert_eq!(world.hub.backlog(conn), 0);
}

#[test]
fn a_slow_reader_of_a_durable_channel_is_closed_and_resumes_without_a_hole() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    let slow = world.connect(0, "slow");
    subscribe(&mut world, slow, "conversation:1");
    world.limit(slow, Some(60));
    for n in 0..200 {
        world.publish("conversation:1", "e", &json!({"n": n}));
        world.run();
    }
    let conn = world.clients[slow].conn;
    world.limit(slow, None);
    world.shards[0].writable(conn);
    world.run();
    let mut got = world.take(slow);
    let close = got.iter().position(|got| matches!(got, Got::Close(Some(4000), _))).expect("closed as slow");
    got.truncate(close);
    let last = got
        .iter()
        .filter_map(|got| if let Got::Json(json) = got { json["offset"].as_u64() } else { None })
        .max()
        .unwrap_or(0);
    assert!(last < 200);
    let again = world.connect(0, "slow");
    let position = json!({"offset": last, "epoch": "log-epoch"});
    let answers = world.ask(
        again,
        &json!({"type": "subscribe", "data": {"channel": "conversation:1", "position": position}}).to_string(),
    );
    assert_eq!((&answers[0]["data"]["recovered"], &answers[0]["data"]["replayed"]), (&json!(true), &json!(200 - last)));
    let offsets: Vec<u64> = answers[1..].iter().map(|event| event["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, (last + 1..=200).collect::<Vec<u64>>());
}

#[test]
fn a_reader_that_cannot_resume_drops_the_oldest_durable_events_with_lag() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    let slow = world.socket(0);
    let conn = world.clients[slow].conn;
    world.shards[0].admit_as(conn, 0, "old", None, true, world.now).unwrap();
    world.run();
    world.take(slow);
    subscribe(&mut world, slow, "conversation:1");
    world.limit(slow, Some(60));
    for n in 0..100 {
        world.publish("conversation:1", "e", &json!({"n": n}));
        world.run();
    }
    world.limit(slow, None);
    world.shards[0].writable(conn);
    world.run();
    let got = world.take_json(slow);
    let skipped: u64 = got.iter().filter(|e| e["type"] == "lag").map(|e| e["data"]["skipped"].as_u64().unwrap()).sum();
    assert_eq!(skipped + got.iter().filter(|e| e["type"] == "e").count() as u64, 100);
    assert_eq!(got.last().unwrap()["offset"], 100);
}

#[test]
fn a_channel_may_close_its_slow_readers() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    let slow = world.connect(0, "slow");
    subscribe(&mut world, slow, "strict:1");
    world.limit(slow, Some(50));
    for n in 0..200 {
        world.publish("strict:1", "e", &json!({"n": n}));
        world.run();
    }
    world.limit(slow, None);
    let conn = world.clients[slow].conn;
    world.shards[0].writable(conn);
    world.run();
    assert!(world.take(slow).iter().any(|got| matches!(got, Got::Close(Some(4000), _))));
}

#[test]
fn one_large_event_closes_nobody() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, "conversation:1");
    world.limit(ann, Some(100));
    world.publish("conversation:1", "e", &json!({"x": "y".repeat(100_000)}));
    world.run();
    while world.receive(ann) {
        world.run();
    }
    assert_eq!(world.take_json(ann)[0]["data"]["x"].as_str().unwrap().len(), 100_000);
}

#[test]
fn a_long_replay_neither_overflows_nor_gaps_nor_doubles_while_live_events_come() {
    let mut world = World::with(&small_outboxes(), 1, Store::default());
    for n in 0..3_000 {
        world.publish("conversation:1", "e", &json!({"n": n}));
    }
    world.run();
    let ann = world.connect(0, "ann");
    world.limit(ann, Some(700));
    let position = json!({"offset": 0, "epoch": "log-epoch"});
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "position": position}}));
    let mut offsets = Vec::new();
    for n in 3_000..3_500 {
        world.publish("conversation:1", "e", &json!({"n": n}));
        world.run();
        world.receive(ann);
        offsets.extend(world.take_json(ann).iter().filter_map(|event| event["offset"].as_u64()));
    }
    world.limit(ann, None);
    let conn = world.clients[ann].conn;
    world.shards[0].writable(conn);
    world.run();
    offsets.extend(world.take_json(ann).iter().filter_map(|event| event["offset"].as_u64()));
    assert_eq!(offsets, (1..=3_500).collect::<Vec<u64>>());
    world.publish("conversation:1", "e", &json!({"n": "live"}));
    world.run();
    assert_eq!(world.take_json(ann)[0]["offset"], 3_501);
}

#[test]
fn silence_is_pinged_twice_and_then_closed() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.advance(25_000);
    assert_eq!(world.take(ann), [Got::Ping]);
    world.raw_bytes(ann, &frame(Opcode::Pong, b""));
    world.advance(24_000);
    assert_eq!(world.take(ann), []);
    world.advance(50_000);
    assert_eq!(world.take(ann), [Got::Ping, Got::Ping]);
    world.advance(1_500);
    assert!(matches!(world.take(ann)[0], Got::Close(Some(4001), _)));
    world.advance(6_000);
    assert!(matches!(world.take_events().last(), Some(Event::Close { code: 4001, .. })));
    assert_eq!(world.shards[0].len(), 0);
}

#[test]
fn with_heartbeats_off_any_frame_resets_the_idle_time() {
    let mut options = world::options();
    options["limits"] = json!({"heartbeats": false, "idle_timeout_s": 300});
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    world.advance(299_000);
    world.raw_bytes(ann, &frame(Opcode::Pong, b""));
    world.advance(299_000);
    assert_eq!(world.take(ann), []);
    world.advance(2_000);
    assert!(matches!(world.take(ann)[0], Got::Close(Some(4001), _)));
}

#[test]
fn the_peers_close_is_answered_with_its_code_after_what_it_had_asked() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    world.send(ann, &json!({"type": "send_message", "data": {}, "id": 1}));
    world.raw_bytes(ann, &frame(Opcode::Close, b"\x03\xe8bye"));
    world.run();
    assert_eq!(world.take(ann), []);
    let conn = world.clients[ann].conn;
    world.submit(Command::Send { conn, text: true, payload: br#"{"type":"ack","id":1}"#[..].into(), done: 1 });
    world.run();
    let got = world.take(ann);
    assert_eq!(got, [Got::Json(json!({"type": "ack", "id": 1})), Got::Close(Some(1000), "bye".into()), Got::End]);
    assert!(matches!(world.take_events().last(), Some(Event::Close { code: 1000, .. })));
}

#[test]
fn broken_frames_close_with_their_code_and_nobody_else_notices() {
    let mut world = World::new(1);
    let bob = world.connect(0, "bob");
    subscribe(&mut world, bob, "news:1");
    for (bytes, code) in [
        (vec![0x81, 0x01, b'x'], 1002),
        (vec![0xC1, 0x80, 0, 0, 0, 0], 1002),
        (frame(Opcode::Text, b"\xff"), 1007),
        (vec![0x82, 0xFF, 0, 0, 0, 0, 0x10, 0, 0, 0, 1, 2, 3, 4], 1009),
        (frame(Opcode::Close, b"\x03\xed"), 1002),
    ] {
        let eve = world.connect(0, "eve");
        world.raw_bytes(eve, &bytes);
        world.run();
        let got = world.take(eve);
        assert!(matches!(got[0], Got::Close(Some(found), _) if found == code), "{got:?}");
        assert_eq!(got.last(), Some(&Got::End));
        world.publish("news:1", "e", &json!(code));
        world.run();
        assert_eq!(world.take_json(bob)[0]["data"], code);
    }
}

#[test]
fn clients_of_the_first_version_are_told_not_to_come_back_by_1000() {
    let mut world = World::new(1);
    let old = world.socket(0);
    let conn = world.clients[old].conn;
    world.shards[0].admit_as(conn, 0, "old", None, true, world.now).unwrap();
    world.run();
    world.take(old);
    world.submit(Command::Close { conn, code: 4503, reason: "removed".into() });
    world.run();
    assert_eq!(world.take(old)[0], Got::Close(Some(1000), "removed".into()));
    let new = world.connect(0, "new");
    let conn = world.clients[new].conn;
    world.submit(Command::Close { conn, code: 4503, reason: "removed".into() });
    world.run();
    assert_eq!(world.take(new)[0], Got::Close(Some(4503), "removed".into()));
}

#[test]
fn a_token_that_ends_is_told_of_and_closes() {
    let mut world = World::new(1);
    let client = world.socket(0);
    let hook = "GET /hook HTTP/1.1\r\nHost: e\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: realtime.v1\r\n\r\n";
    world.raw_bytes(client, hook.as_bytes());
    world.run();
    let conn = world.clients[client].conn;
    let ends = world.now.wall_ms + 60_000;
    world.submit(Command::Accept { conn, who: Admitted { expires_at_ms: Some(ends), ..admitted("ann") } });
    world.run();
    assert!(world.take_json(client)[0]["data"]["expiresAt"].is_string());
    world.advance(30_250);
    let told: Vec<Value> = world.take_json(client);
    assert_eq!(told.last().unwrap()["type"], "token_expiring");
    world.advance(30_000);
    assert!(world.take(client).iter().any(|got| matches!(got, Got::Close(Some(4002), _))));
}

#[test]
fn commands_for_connections_that_are_gone_reach_nobody() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let gone = world.clients[ann].conn;
    world.cut(ann);
    world.run();
    let bob = world.connect(0, "bob");
    assert_eq!(world.clients[bob].conn.slot(), gone.slot(), "the slot is used again");
    world.submit(Command::Send { conn: gone, text: true, payload: b"{}"[..].into(), done: 0 });
    world.submit(Command::Close { conn: gone, code: 4503, reason: "".into() });
    world.submit(Command::Subscribe { conn: gone, channel: "news:1".into() });
    world.run();
    assert_eq!((world.take(bob), world.hub.members("news:1")), (vec![], 0));
    let session = world.hub.session_id(world.clients[bob].conn);
    assert_eq!(world.hub.conn_of(&session), Some(world.clients[bob].conn));
    assert_eq!(world.hub.conn_of("nonsense"), None);
}

#[test]
fn raw_endpoints_pass_text_and_binary_as_they_come() {
    let mut world = World::new(1);
    let client = world.socket(0);
    let conn = world.clients[client].conn;
    world.shards[0].admit_as(conn, 1, "", None, true, world.now).unwrap();
    world.run();
    assert_eq!(world.take(client), []);
    world.take_events();
    world.raw_bytes(client, &frame(Opcode::Text, "h\u{e9}".as_bytes()));
    world.raw_bytes(client, &frame(Opcode::Binary, b"\x00\xff"));
    world.raw_bytes(client, &frame(Opcode::Ping, b"p"));
    world.run();
    let events = world.take_events();
    assert!(matches!(&events[..], [Event::Raw { text: true, .. }, Event::Raw { text: false, .. }]), "{events:?}");
    world.submit(Command::Send { conn, text: false, payload: b"\x00\xff"[..].into(), done: 2 });
    world.run();
    assert_eq!(world.take(client), [Got::Pong(b"p".to_vec()), Got::Binary(b"\x00\xff".to_vec())]);
}

#[test]
fn to_many_to_all_and_to_the_members_of_several_channels_each_once() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..4).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    subscribe(&mut world, clients[0], "news:1");
    subscribe(&mut world, clients[0], "news:2");
    subscribe(&mut world, clients[1], "news:2");
    let counts = |world: &mut World| clients.iter().map(|client| world.take_json(*client).len()).collect::<Vec<_>>();
    let payload: Box<[u8]> = b"{\"type\":\"x\"}"[..].into();
    world.submit(Command::PublishUnion {
        channels: vec!["news:1".into(), "news:2".into(), "none".into()],
        payload: payload.clone(),
        key: None,
    });
    world.run();
    assert_eq!(counts(&mut world), [1, 1, 0, 0]);
    world.submit(Command::SendAll { payload: payload.clone(), key: None });
    world.run();
    assert_eq!(counts(&mut world), [1, 1, 1, 1]);
    let conns = vec![world.clients[clients[2]].conn, world.clients[clients[3]].conn];
    world.submit(Command::SendMany { conns, payload, key: None });
    world.run();
    assert_eq!(counts(&mut world), [0, 0, 1, 1]);
}

#[test]
fn a_log_that_fails_is_said_and_nothing_is_published() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, "conversation:1");
    world.log_fails = true;
    let publish = json!({"type": "publish", "data": {"channel": "conversation:1", "event": "e", "data": {}}, "id": 1});
    let answers = world.ask(ann, &publish.to_string());
    assert_eq!((answers.len(), &answers[0]["data"]["code"], &answers[0]["id"]), (1, &json!("unavailable"), &json!(1)));
    let answers =
        world.ask(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:2"}, "id": 2}).to_string());
    assert_eq!((answers.len(), &answers[0]["data"]["code"]), (1, &json!("unavailable")));
    world.log_fails = false;
    let answers = world.ask(ann, &publish.to_string());
    assert_eq!(answers.len(), 2);
    subscribe(&mut world, ann, "conversation:2");
}

#[test]
fn unfinished_messages_of_all_connections_have_one_limit() {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "unfinished_bytes_max": 10_000});
    let mut world = World::with(&options, 1, Store::default());
    let clients: Vec<usize> = (0..4).map(|n| world.connect(0, &format!("u{n}"))).collect();
    let half = &frame(Opcode::Binary, &[b'x'; 8_000])[..3_000];
    for &client in &clients[..3] {
        world.raw_bytes(client, half);
    }
    world.run();
    assert!(clients.iter().all(|&client| world.take(client).is_empty()));
    world.raw_bytes(clients[3], half);
    world.run();
    assert!(matches!(world.take(clients[3])[0], Got::Close(Some(1009), _)));
    for &client in &clients[..3] {
        world.cut(client);
    }
    world.run();
    assert_eq!(world.hub.counters().unfinished_bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn bytes_are_charged_as_well_as_commands() {
    let mut options = world::options();
    options["limits"] = json!({"commands_per_s": 1_000, "commands_burst": 1_000, "bytes_per_s": 1_024});
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    let ping = json!({"type": "ping", "data": "x".repeat(900)}).to_string();
    let kinds: Vec<Value> = (0..4).map(|_| world.ask(ann, &ping)[0]["type"].clone()).collect();
    assert_eq!(kinds, ["pong", "pong", "error", "error"]);
    world.advance(1_000);
    assert_eq!(world.ask(ann, &ping)[0]["type"], "pong");
}

#[test]
fn reading_stops_when_as_many_bytes_are_under_way_as_one_message_may_have() {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "message_bytes_max": 10_000});
    let mut world = World::with(&options, 1, Store::default());
    let client = world.socket(0);
    let conn = world.clients[client].conn;
    world.shards[0].admit_as(conn, 1, "", None, true, world.now).unwrap();
    world.run();
    world.take_events();
    for _ in 0..5 {
        world.raw_bytes(client, &frame(Opcode::Binary, &[0; 6_000]));
    }
    world.run();
    assert_eq!(world.take_events().len(), 2);
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.submit(Command::Done { conn, count: 1 });
    world.run();
    assert_eq!(world.take_events().len(), 0);
    for left in [2, 1, 0] {
        world.submit(Command::Done { conn, count: 2 });
        world.run();
        assert_eq!(world.take_events().len(), left);
    }
    assert!(world.shards[0].pause_unless_readable(conn));
}

#[test]
fn ten_thousand_ends_in_one_turn_leave_nothing_and_their_slots_serve_on() {
    let mut world = World::new(1);
    let clients: Vec<_> = (0..10_000)
        .map(|n| {
            let conn = world.shards[0].open([127, 0, 0, 1].into(), world.now);
            world.shards[0].admit_as(conn, 0, &format!("u{n}"), None, false, world.now).unwrap();
            conn
        })
        .collect();
    // Each has its first frame to send when it ends; the slots are taken again before that is looked at.
    for conn in clients {
        world.shards[0].closed(conn, world.now);
    }
    let again: Vec<usize> = (0..100).map(|n| world.connect(0, &format!("again{n}"))).collect();
    for client in again {
        assert_eq!(world.ask(client, r#"{"type":"ping","id":1}"#).len(), 1, "its own frames and each once");
    }
    assert!(!world.shards[0].more_to_flush());
    assert_eq!((world.hub.connections(), world.shards[0].len()), (100, 100));
}
