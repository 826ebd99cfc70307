//! What one connection, one user and one address may ask for, and what becomes of who goes on.

mod world;

use jsonwebtoken::{EncodingKey, Header, encode};
use realtime_hub::Event;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::{Got, SECRET, Store, World};

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    options["proxies"] = json!(["10.0.0.0/8"]);
    World::with(&options, 2, Store::default())
}

fn request(user: &str, more: &str) -> Vec<u8> {
    let claims = json!({"sub": user, "exp": 4_000_000_000_u64});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: edge\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
    .into_bytes()
}

/// Upgrades a client of `shard` that comes from `peer`.
fn upgrade(world: &mut World, shard: usize, peer: [u8; 4], user: &str, more: &str) -> usize {
    let client = world.socket_from(shard, peer.into());
    world.raw_bytes(client, &request(user, more));
    world.run();
    client
}

fn status(world: &mut World, client: usize) -> String {
    match &world.take(client)[0] {
        Got::Json(hello) => hello["type"].as_str().unwrap().to_owned(),
        Got::Http(head) => head[9..12].to_owned(),
        Got::Close(code, _) => code.unwrap().to_string(),
        other => panic!("{other:?}"),
    }
}

const V1: &str = "Sec-WebSocket-Protocol: realtime.v1\r\n";

fn refused(frames: &[Value]) -> usize {
    frames.iter().filter(|frame| frame["data"]["code"] == "rate_limited").count()
}

#[test]
fn all_connections_of_a_user_share_its_commands_on_all_shards() {
    let mut world = limited(&json!({"commands_burst": 100, "user_commands_per_s": 10, "user_commands_burst": 5}));
    let (one, other, bob) = (world.connect(0, "ann"), world.connect(1, "ann"), world.connect(1, "bob"));
    for n in 0..4 {
        world.send(one, &json!({"type": "ping", "id": n}));
        world.send(other, &json!({"type": "ping", "id": n}));
    }
    world.run();
    let frames = [world.take_json(one), world.take_json(other)].concat();
    assert_eq!(refused(&frames), 3, "{frames:?}");
    let error = frames.iter().find(|frame| frame["type"] == "error").unwrap();
    assert_eq!((&error["data"]["retryAfterMs"], &error["data"]["retryable"]), (&json!(100), &json!(true)));
    assert_eq!(refused(&world.ask(bob, r#"{"type":"ping","id":1}"#)), 0);
    world.advance(250);
    assert_eq!(refused(&world.ask(one, r#"{"type":"ping","id":9}"#)), 0);
}

#[test]
fn all_connections_of_an_address_share_its_commands_and_relays() {
    let limits = json!({"address_commands_per_s": 1, "address_commands_burst": 2, "address_relays_per_s": 1,
        "address_relays_burst": 1});
    let mut world = limited(&limits);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    for client in [ann, bob, bob] {
        world.send(client, &json!({"type": "ping", "id": 1}));
        world.send(client, &json!({"type": "typing_start", "data": {"conversationId": "1"}, "id": 2}));
    }
    world.run();
    let frames = [world.take_json(ann), world.take_json(bob)].concat();
    assert_eq!(refused(&frames), 3, "one ping and two relays: {frames:?}");
}

#[test]
fn what_nobody_can_read_costs_as_much_as_a_command() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 3}));
    let client = world.connect(0, "ann");
    for text in
        ["nonsense", "[]", r#"{"type":"what"}"#, "nonsense", r#"{"type":"what","id":1}"#, r#"{"type":7,"id":[]}"#]
    {
        world.send_text(client, text);
    }
    world.run();
    let frames = world.take_json(client);
    assert_eq!(frames.len(), 6);
    assert_eq!(refused(&frames[3..]), 3, "{frames:?}");
    assert_eq!(frames[4]["id"], 1);
}

#[test]
fn who_goes_on_is_closed_4003_after_every_refusal_was_answered() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 1, "refusals_max": 3}));
    for user in ["ann", "bob"] {
        let client = world.connect(0, user);
        for n in 0..20 {
            world.send(client, &json!({"type": "ping", "id": n}));
        }
        world.run();
        let got = world.take(client);
        assert_eq!(got.iter().filter(|got| matches!(got, Got::Json(_))).count(), 5, "{got:?}");
        assert_eq!(got[5], Got::Close(Some(4003), "too many commands for too long".into()));
        assert_eq!(got[6], Got::End);
        world.cut(client);
        world.run();
        assert!(world.take_events().iter().any(|event| matches!(event, Event::Close { code: 4003, .. })));
    }
}

#[test]
fn pings_of_the_protocol_count_and_over_the_rate_have_no_answer() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 3, "refusals_max": 10}));
    let client = world.connect(0, "ann");
    let mut ping = Vec::new();
    encode_masked_frame(Opcode::Ping, true, b"x", [1, 2, 3, 4], &mut ping);
    world.raw_bytes(client, &ping.repeat(10));
    world.run();
    assert_eq!(world.take(client), vec![Got::Pong(b"x".to_vec()); 3]);
    world.raw_bytes(client, &ping.repeat(10));
    world.run();
    assert_eq!(world.take(client)[0], Got::Close(Some(4003), "too many commands for too long".into()));
}

#[test]
fn refusals_that_are_far_apart_close_nobody() {
    let mut world = limited(&json!({"commands_per_s": 1, "commands_burst": 1, "refusals_max": 2, "heartbeats": false}));
    let client = world.connect(0, "ann");
    for _ in 0..5 {
        for n in 0..3 {
            world.send(client, &json!({"type": "ping", "id": n}));
        }
        world.run();
        assert_eq!(refused(&world.take_json(client)), 2);
        world.advance(10_000);
    }
}

#[test]
fn a_session_too_many_is_refused_on_whatever_shard_until_one_ends() {
    let mut world = limited(&json!({"sessions_per_user_max": 2}));
    let clients: Vec<usize> = (0..2).map(|shard| upgrade(&mut world, shard, [1, 1, 1, 1], "ann", "")).collect();
    for shard in [0, 1] {
        let third = upgrade(&mut world, shard, [1, 1, 1, 1], "ann", "");
        let Got::Http(head) = &world.take(third)[0] else { panic!("let in") };
        assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("\r\nRetry-After: "), "{head}");
        let third = upgrade(&mut world, shard, [1, 1, 1, 1], "ann", V1);
        let Got::Close(Some(4005), wait_ms) = world.take(third).remove(0) else { panic!("let in") };
        assert!((1_000..=5_000).contains(&wait_ms.parse().unwrap()), "{wait_ms}");
    }
    let bob = upgrade(&mut world, 1, [1, 1, 1, 1], "bob", "");
    assert_eq!(status(&mut world, bob), "connection_established");
    world.cut(clients[0]);
    let again = upgrade(&mut world, 1, [1, 1, 1, 1], "ann", "");
    assert_eq!(status(&mut world, again), "connection_established");
}

#[test]
fn the_oldest_session_makes_room_where_that_is_configured() {
    let mut world = limited(&json!({"sessions_per_user_max": 2, "sessions_per_user_over": "close_oldest"}));
    let clients: Vec<usize> = (0..4).map(|n| upgrade(&mut world, n % 2, [1, 1, 1, 1], "ann", V1)).collect();
    world.run();
    for (n, client) in clients.into_iter().enumerate() {
        let closed = Got::Close(Some(4504), "a newer session took its place".into());
        assert_eq!(world.take(client).contains(&closed), n < 2, "session {n}");
    }
}

#[test]
fn an_address_has_so_many_handshakes_and_connections() {
    let mut world = limited(&json!({"address_handshakes_per_s": 1, "address_handshakes_burst": 3}));
    let answers: Vec<String> = [1, 1, 1, 1, 2]
        .map(|last| {
            let client = upgrade(&mut world, 0, [1, 1, 1, last], "ann", "");
            status(&mut world, client)
        })
        .to_vec();
    let ok = "connection_established";
    assert_eq!(answers, [ok, ok, ok, "429", ok]);
    let mut world = limited(&json!({"connections_per_address_max": 1}));
    let first = upgrade(&mut world, 0, [1, 1, 1, 1], "ann", "");
    let second = upgrade(&mut world, 1, [1, 1, 1, 1], "bob", V1);
    assert_eq!([status(&mut world, first), status(&mut world, second)], [ok, "4005"]);
    world.cut(first);
    let third = upgrade(&mut world, 1, [1, 1, 1, 1], "bob", "");
    assert_eq!(status(&mut world, third), ok);
}

#[test]
fn too_many_handshakes_are_told_before_anybody_looks_at_the_token() {
    let mut world = limited(&json!({"address_handshakes_per_s": 1, "address_handshakes_burst": 1}));
    for expected in ["401", "429"] {
        let client = world.socket(0);
        world.raw_bytes(client, b"GET /ws?token=wrong HTTP/1.1\r\nHost: edge\r\n\r\n");
        world.run();
        assert_eq!(status(&mut world, client), expected);
    }
    let elsewhere = world.socket(0);
    world.raw_bytes(elsewhere, b"GET /other HTTP/1.1\r\nHost: edge\r\n\r\n");
    world.run();
    assert_eq!(status(&mut world, elsewhere), "404");
}

#[test]
fn behind_a_proxy_of_ours_the_client_is_whom_it_names() {
    let mut world = limited(&json!({"connections_per_address_max": 1}));
    let through = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let proxy = [10, 0, 0, 7];
    let ok = "connection_established";
    for (peer, forwarded, expected) in [
        (proxy, "6.6.6.6, 203.0.113.1", ok),
        (proxy, "7.7.7.7, 203.0.113.1", "429"),
        (proxy, "203.0.113.2", ok),
        ([203, 0, 113, 3], "1.2.3.4", ok),
        ([203, 0, 113, 3], "1.2.3.5", "429"),
    ] {
        let client = upgrade(&mut world, 0, peer, "ann", &through(forwarded));
        assert_eq!(status(&mut world, client), expected, "{peer:?} {forwarded}");
    }
    let peers = world.take_events().into_iter().filter_map(|event| match event {
        Event::Open { peer, .. } => Some(peer.to_string()),
        _ => None,
    });
    assert_eq!(peers.collect::<Vec<_>>(), ["203.0.113.1", "203.0.113.2", "203.0.113.3"]);
}

#[test]
fn a_load_test_is_let_through() {
    let limits = json!({"enabled": false, "sessions_per_user_max": 1, "user_commands_per_s": 1, "user_commands_burst": 1,
        "address_handshakes_per_s": 1, "address_handshakes_burst": 1, "connections_per_address_max": 1});
    let mut world = limited(&limits);
    for n in 0..50 {
        let client = upgrade(&mut world, n % 2, [1, 1, 1, 1], "ann", "");
        assert_eq!(status(&mut world, client), "connection_established");
        assert_eq!(refused(&world.ask(client, r#"{"type":"ping","id":1}"#)), 0);
    }
}
