//! Tokens and upgrade requests of tests: who comes to the door, and how it is let in or refused.

use super::{Got, SECRET, World};
use jsonwebtoken::{EncodingKey, Header, encode};
use realtime_hub::Event;
use serde_json::{Value, json};

pub(crate) const HOUR_S: u64 = 3_600;

/// The second at which a world begins.
pub(crate) fn now_s(world: &World) -> u64 {
    world.now.wall_ms / 1_000
}

pub(crate) fn sign(claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

/// A token of `user` for the next hour, with these rights.
pub(crate) fn token(world: &World, user: &str, channels: &Value) -> String {
    let now_s = now_s(world);
    sign(&json!({"sub": user, "iat": now_s, "exp": now_s + HOUR_S, "channels": channels}))
}

pub(crate) fn request(target: &str, more: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: edge.example:3002\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
    .into_bytes()
}

pub(crate) fn upgrade(world: &mut World, shard: usize, target: &str, more: &str) -> usize {
    let client = world.socket(shard);
    world.raw_bytes(client, &request(target, more));
    world.run();
    client
}

/// A client that was let in by this token; its hello is taken.
pub(crate) fn connect(world: &mut World, shard: usize, token: &str) -> usize {
    let client = upgrade(world, shard, &format!("/ws?token={token}"), "Sec-WebSocket-Protocol: realtime.v1\r\n");
    assert_eq!(world.take_json(client)[0]["type"], "connection_established");
    client
}

pub(crate) fn status(world: &mut World, client: usize) -> String {
    match &world.take(client)[..] {
        [Got::Http(head), ..] => head["HTTP/1.1 ".len()..]["101".len()..].split("\r\n").next().unwrap().trim().into(),
        [Got::Json(_)] => "let in".into(),
        [Got::Close(_, reason), Got::End] => reason.to_string(),
        [] => "asked".into(),
        other => panic!("{other:?}"),
    }
}

/// Why tokens were refused, as Python is told; nothing else has happened.
pub(crate) fn refusals(world: &mut World) -> Vec<&'static str> {
    let reason = |event| if let Event::Refused { reason, .. } = event { reason } else { panic!("{event:?}") };
    world.take_events().into_iter().map(reason).collect()
}
