//! Rates that outlive a connection, and everything that they are taken for.

mod world;

use realtime_hub::{Command, Event};
use realtime_protocol::deflate::Deflater;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::doors::status;
use world::{Got, Store, World};

const OFFER: &str = "permessage-deflate; client_max_window_bits";

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    World::with(&options, 2, Store::default())
}

fn refused(frames: &[Value]) -> usize {
    frames.iter().filter(|frame| frame["data"]["code"] == "rate_limited").count()
}

fn counted(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

fn frame(opcode: Opcode, fin: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_masked_frame(opcode, fin, payload, [1, 2, 3, 4], &mut bytes);
    bytes
}

/// A client of the raw endpoint, which lets everybody in without a name.
fn nameless(world: &mut World, shard: usize) -> usize {
    let client = world.socket_from(shard, [9, 9, 9, 9].into());
    let conn = world.clients[client].conn;
    world.shards[shard].admit_as(conn, 1, "", None, false, world.now).unwrap();
    world.run();
    client
}

/// Messages of raw endpoints that Python got, each answered at once.
fn raw_messages(world: &mut World) -> usize {
    let conns: Vec<_> = world
        .take_events()
        .into_iter()
        .filter_map(|event| if let Event::Raw { conn, .. } = event { Some(conn) } else { None })
        .collect();
    for conn in &conns {
        world.submit(Command::Done { conn: *conn, count: 1 });
    }
    world.run();
    conns.len()
}

/// Publishes of a user on a durable channel that were stored, and the first refusal's `retryAfterMs`.
fn stored(world: &mut World, client: usize, count: usize, bytes: usize) -> (usize, Option<u64>) {
    let data = "x".repeat(bytes - 2);
    for id in 0..count {
        let data = json!({"channel": "conversation:1", "event": "e", "data": data});
        world.send(client, &json!({"type": "publish", "id": id, "data": data}));
    }
    world.run();
    let frames = world.take_json(client);
    let wait = frames.iter().find(|frame| frame["data"]["code"] == "rate_limited");
    let wait = wait.map(|frame| frame["data"]["retryAfterMs"].as_u64().unwrap());
    (frames.iter().filter(|frame| frame["type"] == "ack").count(), wait)
}

#[test]
fn a_user_has_so_many_bytes_stored_over_all_sessions_and_reconnecting_gives_none_back() {
    let mut world = limited(&json!({"user_stored_bytes_per_s": 10 << 10, "user_stored_bytes_burst": 40 << 10}));
    let [first, second, other] = [(0, "ann"), (1, "ann"), (1, "bob")].map(|(shard, user)| world.connect(shard, user));
    assert_eq!(stored(&mut world, first, 3, 10 << 10), (3, None));
    assert_eq!(stored(&mut world, second, 1, 10 << 10), (1, None), "as much as the burst");
    assert_eq!(stored(&mut world, second, 1, 1 << 10), (0, Some(100)), "1 KiB comes back in a tenth of a second");
    assert_eq!(stored(&mut world, other, 1, 10 << 10), (1, None));
    world.cut(first);
    world.cut(second);
    world.run();
    let back = world.connect(0, "ann");
    assert_eq!(stored(&mut world, back, 1, 10 << 10).0, 0, "they outlive the connections");
    assert_eq!(counted(&world, "stored_refused"), 2);
    world.now.mono_ms += 1_000;
    world.now.mono_us += 1_000_000;
    assert_eq!(stored(&mut world, back, 1, 10 << 10), (1, None));
    world.log_fails = true;
    world.now.mono_ms += 1_000;
    world.now.mono_us += 1_000_000;
    assert_eq!(stored(&mut world, back, 1, 10 << 10), (0, None), "the log fails");
    world.log_fails = false;
    assert_eq!(stored(&mut world, back, 1, 10 << 10), (1, None), "what was not stored is not counted");
}

#[test]
fn who_reconnects_again_and_again_has_no_more_than_the_users_rate() {
    let mut world = limited(&json!({"commands_per_s": 100, "commands_burst": 100, "user_commands_per_s": 50,
        "user_commands_burst": 150, "refusals_max": 0, "user_handshakes_per_s": 0}));
    let began_ms = world.now.mono_ms;
    let mut done = 0;
    for n in 0..40 {
        let client = world.connect(n % 2, "ann");
        for id in 0..100 {
            world.send(client, &json!({"type": "ping", "id": id}));
        }
        world.run();
        let frames = world.take_json(client);
        done += frames.len() - refused(&frames);
        world.cut(client);
        world.advance(250);
    }
    let most = 150 + 50 * (world.now.mono_ms - began_ms) as usize / 1_000;
    assert!((most - 60..=most).contains(&done), "{done} of {most}");
    assert!(counted(&world, "refused_by_user") > 0 && counted(&world, "refused_by_address") == 0);
}

#[test]
fn what_a_connection_has_spent_is_gone_for_the_next_of_its_user_and_nobody_else() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 10}));
    let first = world.connect(0, "ann");
    for id in 0..8 {
        world.send(first, &json!({"type": "ping", "id": id}));
    }
    world.run();
    world.cut(first);
    for (user, is_over) in [("ann", true), ("bob", false)] {
        let client = world.connect(1, user);
        for id in 0..5 {
            world.send(client, &json!({"type": "ping", "id": id}));
        }
        world.run();
        assert_eq!(refused(&world.take_json(client)), if is_over { 3 } else { 0 }, "{user}");
    }
    assert_eq!(counted(&world, "refused_by_connection"), 3);
}

#[test]
fn who_was_closed_for_refusals_is_closed_by_the_next_one_until_ten_seconds_are_over() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 1, "refusals_max": 3}));
    for (expected, wait_ms) in [(4, 0), (1, 10_000), (4, 0)] {
        let client = world.connect(0, "ann");
        for id in 0..20 {
            world.send(client, &json!({"type": "ping", "id": id}));
        }
        world.run();
        let got = world.take(client);
        let json: Vec<Value> =
            got.iter().filter_map(|got| if let Got::Json(json) = got { Some(json.clone()) } else { None }).collect();
        assert_eq!(refused(&json), expected, "{got:?}");
        assert!(got.contains(&Got::Close(Some(4003), "too many commands for too long".into())));
        world.cut(client);
        world.advance(wait_ms);
    }
}

#[test]
fn who_has_no_name_is_known_by_the_address() {
    let mut world = limited(&json!({"commands_per_s": 10, "commands_burst": 20}));
    let mut taken = 0;
    for _ in 0..8 {
        let client = nameless(&mut world, 0);
        world.raw_bytes(client, &frame(Opcode::Text, true, b"x").repeat(50));
        world.run();
        taken += raw_messages(&mut world);
        world.cut(client);
        world.advance(250);
    }
    // One more than there are tokens for with each hold.
    assert!((20..=20 + 20 + 8).contains(&taken), "{taken}");
}

#[test]
fn a_raw_endpoint_over_its_rate_is_read_more_slowly_and_loses_nothing() {
    let mut world = limited(&json!({"commands_per_s": 20, "commands_burst": 10, "commands_waiting_max": 1_000}));
    let client = nameless(&mut world, 1);
    world.raw_bytes(client, &frame(Opcode::Text, true, b"x").repeat(40));
    world.run();
    assert_eq!(raw_messages(&mut world), 11, "a burst, and the one that is owed for");
    let conn = world.clients[client].conn;
    assert!(!world.shards[1].pause_unless_readable(conn));
    world.advance(500);
    let after = raw_messages(&mut world);
    assert!((8..=12).contains(&after), "{after}");
    world.advance(2_000);
    assert_eq!(11 + after + raw_messages(&mut world), 40);
    assert!(world.shards[1].pause_unless_readable(conn));
    assert_eq!(world.take(client), []);
}

/// A client of `/ws` that offers no subprotocol; its hello is taken.
fn legacy(world: &mut World, shard: usize, user: &str) -> usize {
    let client = world.socket(shard);
    let conn = world.clients[client].conn;
    world.shards[shard].admit_as(conn, 0, user, None, true, world.now).unwrap();
    world.run();
    assert_eq!(world.take_json(client)[0]["type"], "connection_established");
    client
}

fn confirmed(frames: &[Value]) -> Vec<&str> {
    let confirmed = frames.iter().filter(|frame| frame["type"] == "subscription_confirmed");
    confirmed.map(|frame| frame["data"]["channel"].as_str().unwrap()).collect()
}

#[test]
fn a_legacy_client_owes_for_a_subscribe_over_its_rate_and_is_not_read_until_it_is_paid() {
    let subscribes = |world: &mut World, client| {
        for n in 0..4 {
            world.send(client, &json!({"type": "subscribe", "data": {"channel": format!("ring:{n}")}}));
        }
        world.run();
        world.take_json(client)
    };
    for limits in [
        json!({"commands_per_s": 1, "commands_burst": 2}),
        json!({"user_commands_per_s": 1, "user_commands_burst": 2}),
        json!({"bytes_per_s": 64}),
    ] {
        let mut world = limited(&limits);
        let client = legacy(&mut world, 0, "ann");
        let frames = subscribes(&mut world, client);
        let at_once = confirmed(&frames).len();
        assert!((1..=3).contains(&at_once), "what it has, and the one that it owes for: {frames:?}");
        assert_eq!(refused(&frames), 0);
        let conn = world.clients[client].conn;
        assert!(!world.shards[0].pause_unless_readable(conn));
        world.advance(4_000);
        assert_eq!(at_once + confirmed(&world.take_json(client)).len(), 4, "{limits}");
        assert!(world.shards[0].pause_unless_readable(conn));
    }
}

#[test]
fn a_legacy_client_that_was_closed_over_its_rate_is_subscribed_when_it_comes_back() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 2, "refusals_max": 3}));
    let first = legacy(&mut world, 0, "ann");
    for _ in 0..20 {
        world.send(first, &json!({"type": "ping"}));
    }
    world.run();
    assert!(world.take(first).contains(&Got::Close(Some(4003), "too many commands for too long".into())));
    world.cut(first);
    let next = legacy(&mut world, 1, "ann");
    world.send(next, &json!({"type": "subscribe", "data": {"channel": "ring:1"}}));
    world.run();
    let frames = world.take_json(next);
    assert_eq!((confirmed(&frames), refused(&frames)), (vec!["ring:1"], 0));
}

#[test]
fn a_client_that_can_ask_again_is_refused_a_subscribe_over_its_rate() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 2}));
    let (v1, with_id) = (world.connect(0, "ann"), legacy(&mut world, 0, "bob"));
    for (client, id) in [(v1, None), (with_id, Some(1))] {
        for n in 0..4 {
            let mut command = json!({"type": "subscribe", "data": {"channel": format!("ring:{n}")}});
            if let Some(id) = id {
                command["id"] = json!(id);
            }
            world.send(client, &command);
        }
        world.run();
        let frames = world.take_json(client);
        assert_eq!((confirmed(&frames).len(), refused(&frames)), (2, 2));
    }
}

#[test]
fn a_long_message_is_done_and_its_sender_not_read_until_its_length_is_paid() {
    const UNIT: usize = 64 << 10;
    let limits = json!({"commands_per_s": 10, "commands_burst": 10, "commands_waiting_max": 1_000});
    for (units, holds) in [(9, false), (10, true)] {
        let mut world = limited(&limits);
        let client = nameless(&mut world, 0);
        world.raw_bytes(client, &frame(Opcode::Binary, true, &vec![b' '; units * UNIT]));
        world.run();
        assert_eq!(raw_messages(&mut world), 1);
        let conn = world.clients[client].conn;
        assert_eq!(!world.shards[0].pause_unless_readable(conn), holds, "{units}");
        world.advance(100);
        assert!(world.shards[0].pause_unless_readable(conn));
    }
    // A user's next connection owes what the last one has left.
    let mut world = limited(&limits);
    let client = world.connect(0, "mallory");
    let long = format!(r#"{{"type":"ping","data":"{}"}}"#, "x".repeat(18 * UNIT));
    world.raw_bytes(client, &frame(Opcode::Text, true, long.as_bytes()));
    world.run();
    assert_eq!(world.take_json(client)[0]["type"], "pong");
    world.cut(client);
    let next = world.connect(0, "mallory");
    world.send(next, &json!({"type": "ping"}));
    world.run();
    assert!(world.take_json(next).is_empty());
    world.advance(1_000);
    assert_eq!(world.take_json(next).len(), 1);
}

#[test]
fn a_long_message_that_never_becomes_one_is_owed_for_by_the_users_next_connection() {
    const UNIT: usize = 64 << 10;
    let limits =
        json!({"commands_per_s": 10, "commands_burst": 10, "user_commands_per_s": 10, "user_commands_burst": 10});
    let mut long = frame(Opcode::Text, true, &[b"x".repeat(30 * UNIT), vec![0xff]].concat());
    for (ends, code) in [(false, None), (true, Some(1007))] {
        let mut world = limited(&limits);
        let client = world.connect(0, "mallory");
        let most = if ends { long.len() } else { long.len() - 1 };
        for piece in long[..most].chunks_mut(4 * UNIT) {
            world.raw_bytes(client, piece);
        }
        world.run();
        let got = world.take(client);
        assert_eq!(got.iter().find_map(|got| if let Got::Close(code, _) = got { *code } else { None }), code);
        world.cut(client);
        let next = world.connect(0, "mallory");
        world.send(next, &json!({"type": "ping", "id": 1}));
        world.run();
        assert!(world.take_json(next).iter().all(|frame| frame["type"] != "pong"), "{ends}");
        world.advance(3_000);
        world.send(next, &json!({"type": "ping", "id": 2}));
        world.run();
        assert!(world.take_json(next).iter().any(|frame| frame["type"] == "pong"), "{ends}");
    }
}

#[test]
fn what_is_thrown_away_behind_a_close_is_owed_for_and_bounded() {
    const UNIT: usize = 64 << 10;
    let limits = json!({"message_bytes_max": 20 * UNIT, "commands_per_s": 10, "commands_burst": 10});
    let mut world = limited(&limits);
    let client = world.connect(0, "mallory");
    let conn = world.clients[client].conn;
    world.raw_bytes(client, &frame(Opcode::Binary, true, &[]));
    world.raw_bytes(client, &[0xff; 2]);
    world.run();
    for _ in 0..21 {
        assert!(world.shards[0].pause_unless_readable(conn));
        world.raw_bytes(client, &vec![b'x'; UNIT]);
    }
    world.raw_bytes(client, &vec![b'x'; UNIT]);
    world.run();
    assert!(!world.shards[0].pause_unless_readable(conn), "a message and 64 KiB");
    let next = world.connect(0, "mallory");
    world.send(next, &json!({"type": "ping", "id": 1}));
    world.run();
    assert!(world.take_json(next).iter().all(|frame| frame["type"] != "pong"));
    // Without a session a request is all that may be under way.
    let stranger = world.socket(0);
    let conn = world.clients[stranger].conn;
    world.raw_bytes(stranger, b"GET /ws HTTP/1.1\r\nHost: edge\r\n\r\n");
    world.run();
    world.raw_bytes(stranger, &vec![b'x'; UNIT]);
    world.raw_bytes(stranger, b"x");
    world.run();
    assert!(!world.shards[0].pause_unless_readable(conn));
}

#[test]
fn a_command_for_python_is_charged_for_its_values() {
    let mut world = limited(&json!({}));
    let client = world.connect(0, "ann");
    let data: Vec<Value> = (0..5_000).map(|_| json!([])).collect();
    world.send(client, &json!({"type": "send_message", "data": {"conversationId": "1", "metadata": data}}));
    world.run();
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    let held = stats["events_bytes"].as_u64().unwrap();
    assert!((480_000..520_000).contains(&held), "{held}");
}

#[test]
fn what_a_driver_had_to_read_of_who_owes_waits_in_order_and_charged() {
    const UNIT: usize = 64 << 10;
    let limits = json!({"commands_per_s": 10, "commands_burst": 10, "message_bytes_max": 20 * UNIT});
    let mut world = limited(&limits);
    let client = nameless(&mut world, 0);
    let unfinished = |world: &World| world.hub.counters().unfinished_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let long = frame(Opcode::Binary, true, &vec![b' '; 12 * UNIT]);
    assert!(world.pushed_bytes(client, &long, UNIT));
    assert!(world.pushed_bytes(client, &frame(Opcode::Binary, true, b"next"), UNIT));
    assert!(world.pushed_bytes(client, &long, UNIT), "a message and the slack may wait");
    assert!(!world.pushed_bytes(client, &long, UNIT), "no more");
    world.run();
    let lengths = |world: &mut World| -> Vec<usize> {
        let raw = world.take_events().into_iter();
        raw.filter_map(|event| if let Event::Raw { payload, .. } = event { Some(payload.len()) } else { None })
            .collect()
    };
    assert_eq!(lengths(&mut world), [12 * UNIT]);
    assert!(unfinished(&world) as usize >= long.len());
    world.advance(1_000);
    world.run();
    assert_eq!(lengths(&mut world), [4, 12 * UNIT]);
    assert_eq!(unfinished(&world), 0);
}

#[test]
fn who_owes_for_a_long_message_has_the_next_one_refused_unread_on_every_connection() {
    const UNIT: usize = 64 << 10;
    let mut world = limited(&json!({"user_commands_per_s": 10, "user_commands_burst": 10}));
    let [first, second, other] = [(0, "ann"), (1, "ann"), (1, "bob")].map(|(shard, user)| world.connect(shard, user));
    let typing = |size: usize| {
        let data = json!({"conversationId": "1", "x": "x".repeat(size)});
        json!({"type": "typing_start", "id": "c1", "data": data})
    };
    let long = format!(r#"{{"type":"ping","data":"{}"}}"#, "x".repeat(18 * UNIT));
    world.raw_bytes(first, &frame(Opcode::Text, true, long.as_bytes()));
    world.run();
    world.take(first);
    for (client, size, code) in
        [(second, UNIT, json!("rate_limited")), (second, 100, json!(null)), (other, UNIT, json!(null))]
    {
        world.send(client, &typing(size));
        world.run();
        let frames = world.take_json(client);
        let answer = frames.iter().find(|frame| frame["id"] == "c1");
        assert_eq!(answer.map_or(json!(null), |frame| frame["data"]["code"].clone()), code, "{size} {frames:?}");
    }
    world.advance(1_000);
    world.send(second, &typing(UNIT));
    world.run();
    assert!(world.take_json(second).iter().all(|frame| frame["type"] != "error"));
}

#[test]
fn pongs_and_small_fragments_cost_a_command_each_and_large_ones_pay_for_themselves() {
    let limits = json!({"commands_per_s": 1, "commands_burst": 20, "refusals_max": 10});
    let begin = frame(Opcode::Text, false, b"");
    for flood in [frame(Opcode::Pong, true, b""), frame(Opcode::Continuation, false, b"")] {
        let mut world = limited(&limits);
        let client = world.connect(0, "ann");
        world.raw_bytes(client, &begin);
        world.raw_bytes(client, &flood.repeat(29));
        world.run();
        assert_eq!(world.take(client), [], "at the limit");
        world.raw_bytes(client, &flood.repeat(2));
        world.run();
        assert_eq!(world.take(client)[0], Got::Close(Some(4003), "too many commands for too long".into()));
    }
    let mut world = limited(&limits);
    let client = world.connect(0, "ann");
    world.raw_bytes(client, &begin);
    world.raw_bytes(client, &frame(Opcode::Continuation, false, &[b' '; 1_024]).repeat(100));
    world.raw_bytes(client, &frame(Opcode::Continuation, true, br#"{"type":"ping","id":1}"#));
    world.run();
    assert_eq!(world.take_json(client)[0]["type"], "pong");
}

#[test]
fn binary_frames_that_are_no_text_cost_a_command() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 3}));
    let client = world.connect(0, "ann");
    world.raw_bytes(client, &frame(Opcode::Binary, true, b"\xff\xfe").repeat(5));
    world.run();
    let codes: Vec<Value> = world.take_json(client).iter().map(|frame| frame["data"]["code"].clone()).collect();
    assert_eq!(codes[2..4], [json!("invalid_message"), json!("rate_limited")]);
}

#[test]
fn a_bomb_over_the_limit_is_owed_for_by_the_users_next_connection() {
    const MIB: usize = 1 << 20;
    let mut options = world::options();
    options["limits"] = json!({"message_bytes_max": 8 * MIB, "commands_per_s": 100, "commands_burst": 100});
    let mut world = World::with(&options, 1, Store::default());
    let (mut packed, mut bomb) = (Vec::new(), Vec::new());
    Deflater::new(1).deflate(&vec![b' '; 64 * MIB], &mut packed);
    encode_masked_frame(Opcode::Text, true, &packed, [1, 2, 3, 4], &mut bomb);
    bomb[0] |= 0x40;
    let first = world.offer(0, "mallory", OFFER);
    world.run();
    world.take(first);
    world.raw_bytes(first, &bomb);
    world.run();
    assert!(matches!(world.take(first)[0], Got::Close(Some(1009), _)));
    assert!(counted(&world, "inflated_bytes") > 8 * MIB as u64);
    world.cut(first);
    let second = world.offer(0, "mallory", OFFER);
    world.run();
    world.take(second);
    world.raw_bytes(second, &bomb);
    world.run();
    assert_eq!((world.take(second), counted(&world, "inflations")), (vec![], 1), "128 of 100 tokens are gone");
    world.advance(500);
    assert!(matches!(world.take(second)[0], Got::Close(Some(1009), _)));
}

fn ring_of_large_events(world: &mut World, bytes: usize) {
    let reader = world.connect(0, "reader");
    world.ask(reader, r#"{"type":"subscribe","data":{"channel":"ring:1"},"id":1}"#);
    for _ in 0..4 {
        world.publish("ring:1", "said", &json!("x".repeat(bytes)));
    }
    world.run();
    world.take(reader);
}

#[test]
fn a_page_of_history_is_charged_by_its_bytes() {
    let mut world = limited(&json!({"commands_per_s": 4, "commands_burst": 16}));
    ring_of_large_events(&mut world, 200_000);
    let ann = world.connect(0, "ann");
    let ask = r#"{"type":"history","data":{"channel":"ring:1"},"id":1}"#;
    let page = &world.ask(ann, ask)[0];
    assert_eq!((&page["type"], page["data"]["events"].as_array().unwrap().len()), (&json!("history"), 4));
    // 1 and 12.5 of 16 are gone, so that the 4 of a page that nobody knows yet are not there.
    let answer = &world.ask(ann, ask)[0];
    assert_eq!(
        (&answer["data"]["code"], &answer["data"]["message"]),
        (&json!("rate_limited"), &json!("Too many bytes of history"))
    );
    let wait_ms = answer["data"]["retryAfterMs"].as_u64().unwrap();
    assert!((1..=700).contains(&wait_ms), "{wait_ms}");
    world.advance(wait_ms + 250);
    assert_eq!(world.ask(ann, ask)[0]["type"], "history");
}

#[test]
fn of_questions_that_come_together_each_is_paid_before_the_next_is_read() {
    let mut world = limited(&json!({"commands_per_s": 4, "commands_burst": 16}));
    ring_of_large_events(&mut world, 200_000);
    let ann = world.connect(0, "ann");
    let ask = r#"{"type":"history","data":{"channel":"ring:1","last":1},"id":1}"#;
    let asked: Vec<u8> = (0..64).flat_map(|_| frame(Opcode::Text, true, ask.as_bytes())).collect();
    world.raw_bytes(ann, &asked);
    world.run();
    let frames = world.take_json(ann);
    let pages = frames.iter().filter(|frame| frame["type"] == "history").count();
    // A page of 200 KB costs four tokens of sixteen; the last one may be owed for.
    assert!((3..=5).contains(&pages), "{pages} pages");
    assert_eq!(pages + refused(&frames), 64);
}

#[test]
fn pages_are_refused_while_too_much_waits_for_shards() {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "commands_waiting_bytes_max": 500_000});
    let mut world = World::with(&options, 2, Store::default());
    ring_of_large_events(&mut world, 200_000);
    let clients: Vec<usize> = (0..10).map(|n| world.connect(0, &format!("u{n}"))).collect();
    let ask = r#"{"type":"history","data":{"channel":"ring:1","last":1},"id":1}"#;
    for client in &clients {
        world.raw_bytes(*client, &frame(Opcode::Text, true, ask.as_bytes()));
    }
    world.run();
    let frames: Vec<Value> = clients.iter().flat_map(|client| world.take_json(*client)).collect();
    let overloaded = frames.iter().filter(|frame| frame["data"]["code"] == "overloaded").count();
    assert_eq!((overloaded, counted(&world, "pages_refused")), (7, 7), "three pass before 500,000 bytes wait");
    assert_eq!(world.ask(clients[9], ask)[0]["type"], "history", "they have gone out");
}

#[test]
fn what_a_short_page_was_taken_for_too_much_comes_back() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 20}));
    ring_of_large_events(&mut world, 10);
    let ann = world.connect(0, "ann");
    for _ in 0..13 {
        let answer = &world.ask(ann, r#"{"type":"history","data":{"channel":"ring:1","limit":100},"id":1}"#)[0];
        assert_eq!(answer["type"], "history", "a command each, as long as 5 more are there to be taken");
    }
}

#[test]
fn a_replay_is_owed_for_by_what_is_asked_next() {
    let mut world = limited(&json!({"commands_per_s": 4, "commands_burst": 10}));
    ring_of_large_events(&mut world, 200_000);
    let ann = world.connect(0, "ann");
    let got = world.ask(ann, r#"{"type":"subscribe","data":{"channel":"ring:1","last":4},"id":1}"#);
    assert_eq!(got.len(), 5, "nothing is cut off");
    let answer = &world.ask(ann, r#"{"type":"ping","id":2}"#)[0];
    assert_eq!(answer["data"]["code"], "rate_limited");
    world.advance(1_250);
    assert_eq!(world.ask(ann, r#"{"type":"ping","id":3}"#)[0]["type"], "pong");
}

#[test]
fn a_user_has_so_many_channels_in_all_sessions_together() {
    let mut world = limited(&json!({"channels_per_session_max": 3, "channels_per_user_max": 4}));
    let clients = [world.connect(0, "ann"), world.connect(1, "ann")];
    let subscribe = |world: &mut World, client: usize, n: u32| {
        let text = format!(r#"{{"type":"subscribe","data":{{"channel":"news:{n}"}},"id":1}}"#);
        world.ask(clients[client], &text)[0]["data"]["code"].clone()
    };
    let answers = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)].map(|(client, n)| subscribe(&mut world, client, n));
    assert_eq!(answers, [Value::Null, Value::Null, Value::Null, Value::Null, json!("limit_reached")]);
    let membership = counted(&world, "members_bytes") / 4;
    world.ask(clients[0], r#"{"type":"unsubscribe","data":{"channel":"news:1"},"id":1}"#);
    assert_eq!(counted(&world, "members_bytes"), 3 * membership);
    assert_eq!(subscribe(&mut world, 1, 2), Value::Null);
    world.cut(clients[0]);
    world.run();
    assert_eq!(subscribe(&mut world, 1, 3), Value::Null);
    assert_eq!((counted(&world, "members_bytes"), counted(&world, "members_refused")), (3 * membership, 1));
    world.cut(clients[1]);
    world.run();
    assert_eq!(counted(&world, "members_bytes"), 0);
}

#[test]
fn memberships_have_a_bound_in_bytes() {
    let mut world = limited(&json!({"members_bytes_max": 1_000}));
    let client = world.connect(0, "ann");
    let mut fit = 0;
    for n in 0..20 {
        let text = format!(r#"{{"type":"subscribe","data":{{"channel":"news:{n}"}},"id":1}}"#);
        fit += usize::from(world.ask(client, &text)[0]["type"] == "subscription_confirmed");
    }
    assert!((2..20).contains(&fit) && counted(&world, "members_bytes") <= 1_000, "{fit}");
    assert_eq!(counted(&world, "members_refused") as usize, 20 - fit);
}

#[test]
fn requests_over_http_are_taken_from_the_buckets_of_the_users_sockets() {
    let mut world = limited(&json!({"user_commands_per_s": 10, "user_commands_burst": 5}));
    let now = world.now;
    assert_eq!([0; 4].map(|_| world.hub.charge("ann", None, 1, 0, now)), [Ok(()); 4]);
    let client = world.connect(0, "ann");
    let answers = [1, 2].map(|id| world.ask(client, &json!({"type": "ping", "id": id}).to_string())[0]["type"].clone());
    assert_eq!(answers, [json!("pong"), json!("error")]);
    assert_eq!(world.hub.charge("ann", None, 1, 0, now), Err(100));
    assert_eq!(world.hub.charge("bob", None, 1, 0, now), Ok(()));
    world.hub.settle("bob", None, 0, 1 << 20, now);
    assert_eq!(world.hub.charge("bob", None, 1, 0, now), Err(600), "what is owed is a burst at most");
    let elsewhere = Some([1, 1, 1, 1].into());
    assert_eq!([0; 5].map(|_| world.hub.charge("", elsewhere, 1, 0, now)), [Ok(()); 5]);
    assert_eq!(world.hub.charge("", elsewhere, 1, 0, now), Err(100), "who has no name is known by the address");
    assert_eq!(world.hub.charge("", Some([1, 1, 1, 2].into()), 1, 0, now), Ok(()));
}

#[test]
fn a_user_who_comes_and_goes_without_end_is_answered_429() {
    let mut world = limited(&json!({"user_handshakes_per_s": 2, "user_handshakes_burst": 3}));
    let come = |world: &mut World, user: &str| {
        let client = world.offer(0, user, OFFER);
        world.run();
        let answer = status(world, client);
        world.cut(client);
        answer
    };
    let ok = "let in";
    let answers = ["ann", "ann", "ann", "ann", "bob"].map(|user| come(&mut world, user));
    assert_eq!([&*answers[0], &*answers[1], &*answers[2], &*answers[4]], [ok; 4]);
    assert!((1_000..=5_000).contains(&answers[3].parse().unwrap()), "when to come back: {answers:?}");
    world.advance(500);
    assert_eq!(come(&mut world, "ann"), ok);
}
