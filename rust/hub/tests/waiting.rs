//! What Python has of clients' commands is bounded in bytes: by user, and in all.

mod world;

use realtime_hub::{Command, ConnId, Event, Rejection};
use serde_json::{Value, json};
use world::doors::request;
use world::{Got, Store, World};

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    World::with(&options, 2, Store::default())
}

fn stat(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

/// The client sends a command for Python of some 6,000 bytes; returns whose it is.
fn send(world: &mut World, client: usize) -> ConnId {
    world.send(client, &json!({"type": "send_message", "data": {"content": "x".repeat(6_000)}}));
    world.run();
    world.clients[client].conn
}

fn reads(world: &mut World, client: usize) -> bool {
    let (shard, conn) = (world.clients[client].shard, world.clients[client].conn);
    world.shards[shard].pause_unless_readable(conn)
}

fn done(world: &mut World, conn: ConnId) {
    world.submit(Command::Done { conn, count: 1 });
    world.run();
}

#[test]
fn a_user_with_much_in_python_is_not_read_on_any_connection_and_others_are() {
    let mut world = limited(&json!({"user_waiting_bytes_max": 12_000}));
    let (one, other, bob) = (world.connect(0, "ann"), world.connect(1, "ann"), world.connect(0, "bob"));
    let first = send(&mut world, one);
    assert!(reads(&mut world, one) && reads(&mut world, other), "6,000 are allowed");
    let second = send(&mut world, other);
    assert_eq!([one, other, bob].map(|client| reads(&mut world, client)), [false, false, true]);
    assert_eq!(stat(&world, "user_pauses"), 2);
    done(&mut world, first);
    assert_eq!([one, other].map(|client| reads(&mut world, client)), [false, false], "half is not done");
    done(&mut world, second);
    assert_eq!([one, other].map(|client| reads(&mut world, client)), [true, true]);
    assert_eq!(stat(&world, "events_bytes"), 0);
}

#[test]
fn a_connection_that_was_not_read_for_its_user_is_told_of_when_it_is() {
    let mut world = limited(&json!({"user_waiting_bytes_max": 6_000}));
    let (one, other) = (world.connect(0, "ann"), world.connect(1, "ann"));
    let first = send(&mut world, one);
    assert!(!reads(&mut world, other));
    world.submit(Command::Done { conn: first, count: 1 });
    let mut unpaused = Vec::new();
    for shard in [0, 1] {
        world.shards[shard].run_inbox(world.now);
        world.shards[shard].take_unpaused(&mut unpaused);
    }
    assert_eq!(unpaused, [world.clients[other].conn]);
}

#[test]
fn above_the_limit_of_all_no_open_connection_is_read_until_half_is_done() {
    let limits = json!({"events_waiting_bytes_max": 20_000, "user_waiting_bytes_max": 1_000_000});
    let mut world = limited(&limits);
    let clients: Vec<usize> = (0..4).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    let eve = world.connect(0, "eve");
    let conns: Vec<ConnId> = clients[..3].iter().map(|&client| send(&mut world, client)).collect();
    assert!(reads(&mut world, eve), "three are below");
    let last = send(&mut world, clients[3]);
    assert!(!reads(&mut world, eve) && !reads(&mut world, clients[0]));
    assert_eq!(stat(&world, "events_pauses"), 1);
    // Handshakes go on, but none that would need Python.
    let asking = world.socket(0);
    world.raw_bytes(asking, &request("/hook", ""));
    let served = world.socket(0);
    world.raw_bytes(served, &request("/echo", ""));
    world.run();
    assert!(matches!(&world.take(asking)[0], Got::Http(head) if head.starts_with("HTTP/1.1 503 ")));
    assert!(world.take_events().iter().any(|event| matches!(event, Event::Open { endpoint: 1, .. })));
    done(&mut world, conns[0]);
    done(&mut world, conns[1]);
    assert!(!reads(&mut world, eve), "12,500 are more than half");
    done(&mut world, conns[2]);
    assert!(reads(&mut world, eve));
    done(&mut world, last);
    assert_eq!(stat(&world, "events_bytes"), 0);
}

#[test]
fn commands_of_connections_that_are_gone_stay_charged_to_their_user() {
    let mut world = limited(&json!({"user_waiting_bytes_max": 12_000}));
    let gone: Vec<ConnId> = (0..2)
        .map(|n| {
            let client = world.connect(n, "ann");
            let conn = send(&mut world, client);
            world.cut(client);
            world.run();
            conn
        })
        .collect();
    let again = world.connect(0, "ann");
    assert!(!reads(&mut world, again));
    assert!(stat(&world, "events_bytes") > 12_000);
    done(&mut world, gone[0]);
    world.submit(Command::Resume { conn: gone[1], raw: Box::from(*b"{}") });
    world.run();
    assert!(reads(&mut world, again));
    assert_eq!(stat(&world, "events_bytes"), 0);
}

#[test]
fn an_unsubscribe_of_a_connection_that_is_gone_gives_its_charge_back() {
    let mut world = limited(&json!({}));
    let client = world.connect(0, "ann");
    world.send(client, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
    let conn = send(&mut world, client);
    let unsubscribe = json!({"type": "unsubscribe", "data": {"channel": "conversation:1"}});
    world.send(client, &unsubscribe);
    world.run();
    world.submit(Command::Resume { conn, raw: unsubscribe.to_string().into_bytes().into() });
    // It is on its way over the channel's lock.
    world.shards[0].run_inbox(world.now);
    world.shards[0].closed(conn, world.now);
    world.run();
    done(&mut world, conn);
    assert_eq!(stat(&world, "events_bytes"), 0);
}

#[test]
fn an_upgrade_is_charged_until_python_has_decided() {
    let mut world = limited(&json!({}));
    let client = world.socket(0);
    world.raw_bytes(client, &request("/hook", &format!("Cookie: {}\r\n", "x".repeat(5_000))));
    world.run();
    assert!((5_000..7_000).contains(&stat(&world, "events_bytes")));
    let conn = world.clients[client].conn;
    world.cut(client);
    world.run();
    assert!(stat(&world, "events_bytes") > 5_000, "Python has it still");
    let how = Rejection { status: 401, body: "Unauthorized".into(), close: None, wait_ms: None };
    world.submit(Command::Reject { conn, how });
    world.run();
    assert_eq!(stat(&world, "events_bytes"), 0);
}

/// The client sends a command of so many bytes of text, many times over.
fn flood(world: &mut World, client: usize, bytes: usize, times: usize) {
    for _ in 0..times {
        if reads(world, client) {
            world.send(client, &json!({"type": "send_message", "data": {"content": "x".repeat(bytes)}}));
            world.run();
        }
    }
}

/// Of a client's commands, which arrived in Python, and what the others were answered.
fn reaches(world: &mut World, client: usize, bytes: usize) -> bool {
    let conn = world.clients[client].conn;
    assert!(reads(world, client), "{} bytes are taken", stat(world, "events_bytes"));
    world.take_events();
    world.send(client, &json!({"id": 1, "type": "send_message", "data": {"content": "x".repeat(bytes)}}));
    world.run();
    world.take_events().iter().any(|event| matches!(event, Event::Message { conn: of, .. } if *of == conn))
}

#[test]
fn however_many_users_fill_what_all_may_have_a_further_ones_command_reaches_its_handler() {
    for (users, bytes) in [(12, 6_000), (12, 100_000), (50, 6_000), (50, 100_000), (200, 2_000)] {
        let mut world = limited(&json!({"events_waiting_bytes_max": 4 << 20, "user_waiting_bytes_max": 1 << 20}));
        let clients: Vec<usize> = (0..users * 2).map(|n| world.connect(n % 2, &format!("u{}", n / 2))).collect();
        for _ in 0..20 {
            clients.iter().for_each(|client| flood(&mut world, *client, bytes, 3));
        }
        assert!(stat(&world, "events_bytes") > 2 << 20, "{users} users hold {}", stat(&world, "events_bytes"));
        assert_eq!(stat(&world, "events_pauses"), 0);
        let new = world.connect(0, "new");
        assert!(reaches(&mut world, new, 3_000), "beside {users} users with commands of {bytes} bytes");
    }
}

#[test]
fn a_large_command_that_would_take_what_is_left_is_answered_overloaded_until_half_is_free() {
    let mut world = limited(&json!({"events_waiting_bytes_max": 1 << 20, "user_waiting_bytes_max": 1 << 20}));
    let clients: Vec<usize> = (0..6).map(|n| world.connect(n % 2, &format!("u{n}"))).collect();
    let one = clients[0];
    assert!(reaches(&mut world, one, 300_000), "the largest is let in while half is free");
    assert!(reaches(&mut world, clients[1], 300_000));
    assert!(!reaches(&mut world, clients[2], 100_000), "an eighth of what is free is less");
    let got = world.take(clients[2]);
    let Got::Json(answer) = &got[0] else { panic!("{got:?}") };
    assert_eq!(
        (&answer["id"], &answer["data"]["code"], &answer["data"]["retryable"]),
        (&json!(1), &json!("overloaded"), &json!(true))
    );
    assert_eq!(stat(&world, "events_refused"), 1);
    assert!(reaches(&mut world, clients[2], 30_000), "what is small goes in");
    let conn = world.clients[one].conn;
    done(&mut world, conn);
    assert!(reaches(&mut world, clients[3], 100_000));
}

#[test]
fn a_user_above_its_share_is_not_read_beyond_the_command_that_passed_it() {
    let mut world = limited(&json!({"events_waiting_bytes_max": 1 << 20, "user_waiting_bytes_max": 12_000}));
    let client = world.connect(0, "ann");
    // They come in one read.
    for _ in 0..20 {
        world.send(client, &json!({"type": "send_message", "data": {"content": "x".repeat(6_000)}}));
    }
    world.run();
    assert!(stat(&world, "events_bytes") < 2 * 6_500, "{}", stat(&world, "events_bytes"));
    let conn = world.clients[client].conn;
    for _ in 0..20 {
        done(&mut world, conn);
    }
    assert_eq!(stat(&world, "events_bytes"), 0);
    assert_eq!(stat(&world, "messages_in"), 20, "each was handed up");
}
