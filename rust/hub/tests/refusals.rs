//! What is told of tokens that are refused: to the client, to Python and to the counters.

mod world;

use realtime_hub::{Command, Rejection};
use serde_json::{Value, json};
use world::doors::{now_s, refusals, sign, status, token, upgrade};
use world::{Got, World};

const VERSION_1: &str = "Sec-WebSocket-Protocol: realtime.v1\r\n";

#[test]
fn a_client_is_told_whether_a_new_token_helps() {
    let mut world = World::new(1);
    let now_s = now_s(&world);
    let body = |claims: Value| sign(&claims);
    for (token, code, reason) in [
        (body(json!({"sub": "ann", "exp": now_s - 1})), 4002, "expired"),
        (body(json!({"sub": "ann", "exp": now_s + 9, "nbf": now_s + 5})), 4501, "not_yet_valid"),
        (body(json!({"sub": "ann", "exp": now_s + 9, "iat": now_s + 6})), 4501, "not_yet_valid"),
        (body(json!({"sub": "ann"})), 4501, "malformed"),
        (format!("{}AAAA", body(json!({"sub": "ann", "exp": now_s + 9}))), 4501, "signature"),
        (format!("{}=", body(json!({"sub": "ann", "exp": now_s + 9}))), 4501, "malformed"),
        ("nonsense".into(), 4501, "malformed"),
    ] {
        let target = format!("/ws?token={token}");
        let client = upgrade(&mut world, 0, &target, VERSION_1);
        let got = world.take(client);
        let [Got::Close(Some(told), text), Got::End] = &got[..] else { panic!("{got:?}") };
        assert_eq!(*told, code, "{reason}: {text}");
        assert_eq!(text.contains("fetch a new one"), code == 4002, "{text}");
        assert_eq!(refusals(&mut world), [reason]);
        // Without the subprotocol it is the 401 of always.
        let client = upgrade(&mut world, 0, &target, "");
        assert_eq!(status(&mut world, client), "Unauthorized");
        world.take_events();
    }
    let counted: Value = serde_json::from_str(&world.hub.counters().to_json(&[])).unwrap();
    assert_eq!(counted["tokens_refused"], json!({"malformed": 6, "signature": 2, "not_yet_valid": 4, "expired": 2}));
}

#[test]
fn what_python_refuses_may_say_when_to_come_back() {
    let mut world = World::new(1);
    for (close, wait_ms, told) in [
        (None, None, (4501, "Unauthorized")),
        (Some(4005), Some(7_654), (4005, "7654")),
        (Some(4002), None, (4002, "token expired; fetch a new one and come back")),
    ] {
        let client = upgrade(&mut world, 0, "/ws?ticket=abc", VERSION_1);
        let conn = world.clients[client].conn;
        let how = Rejection { status: 401, body: "Unauthorized".into(), close, wait_ms };
        world.submit(Command::Reject { conn, how });
        world.run();
        assert_eq!(world.take(client), [Got::Close(Some(told.0), told.1.into()), Got::End]);
    }
}

#[test]
fn two_authorizations_are_refused_whatever_they_hold() {
    let mut world = World::new(1);
    let good = token(&world, "ann", &json!({}));
    let bearer = format!("Authorization: Bearer {good}\r\n");
    for (path, first, second) in [
        ("/ws", &*bearer, "Authorization: Bearer other\r\n"),
        ("/ws", "Authorization: Bearer other\r\n", &*bearer),
        ("/ws", &*bearer, "authorization: Basic dXNlcjpw\r\n"),
        ("/ws", &*bearer, &*bearer),
        ("/hook", &*bearer, "Authorization: Bearer other\r\n"),
    ] {
        let client = upgrade(&mut world, 0, path, &format!("{first}{second}"));
        assert_eq!(status(&mut world, client), "Unauthorized", "{path} {second}");
        assert_eq!(refusals(&mut world), ["ambiguous"]);
    }
    let client = upgrade(&mut world, 0, "/ws", &bearer);
    assert_eq!(status(&mut world, client), "let in");
}

#[test]
fn python_is_told_of_some_refusals_of_many_and_all_are_counted() {
    let mut world = World::new(1);
    for _ in 0..100 {
        upgrade(&mut world, 0, "/ws?token=nonsense", "");
    }
    assert_eq!(refusals(&mut world).len(), 20);
    world.advance(1_000);
    upgrade(&mut world, 0, "/ws", "");
    assert_eq!(refusals(&mut world), ["missing"]);
    let counted: Value = serde_json::from_str(&world.hub.counters().to_json(&[])).unwrap();
    assert_eq!(counted["tokens_refused"], json!({"missing": 1, "malformed": 100}));
}
