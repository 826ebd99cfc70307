//! From bytes to an open connection: every refusal, in the protocol's order, at every cut of the bytes.

mod world;

use jsonwebtoken::{EncodingKey, Header, encode};
use realtime_hub::{Admitted, Command, Event, Rejection};
use serde_json::json;
use world::{Got, SECRET, World, admitted};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn token(user: &str) -> String {
    let claims = json!({"sub": user, "exp": 4_000_000_000_u64});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn upgrade(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: edge\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

/// What a fresh client gets for these bytes, sent in pieces of `step`.
fn answer(world: &mut World, bytes: &[u8], step: usize) -> Vec<Got> {
    let client = world.socket(0);
    for piece in bytes.chunks(step) {
        world.raw_bytes(client, piece);
    }
    world.run();
    world.take(client)
}

#[test]
fn the_first_failing_check_answers() {
    let mut world = World::new(1);
    let token = token("ann");
    let good = format!("/ws?token={token}");
    let plain = format!("GET {good} HTTP/1.1\r\nHost: edge\r\n\r\n");
    let version = upgrade(&good, "").replace("Version: 13", "Version: 8");
    let body = upgrade(&good, "Content-Length: 5\r\n");
    let differing = upgrade(&good, "Authorization: Bearer other\r\n");
    for (request, status, text) in [
        ("\u{16}\u{3}\u{1}\u{2}".to_owned(), "400", "Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "400", "Bad Request"),
        (upgrade("/other", ""), "404", "WebSocket endpoint not found"),
        ("GET /other HTTP/1.1\r\nHost: edge\r\n\r\n".to_owned(), "404", "WebSocket endpoint not found"),
        (upgrade("/ws", ""), "401", "Unauthorized"),
        (upgrade("/ws?token=wrong", ""), "401", "Unauthorized"),
        (differing, "401", "Unauthorized"),
        ("GET /ws HTTP/1.1\r\nHost: edge\r\n\r\n".to_owned(), "401", "Unauthorized"),
        (plain, "400", "Upgrade failed"),
        (body, "400", "Upgrade failed"),
        (version, "426", "Upgrade Required"),
    ] {
        for step in [1, 7, 10_000] {
            let got = answer(&mut world, request.as_bytes(), step);
            let Some(Got::Http(head)) = got.first() else { panic!("{request}: {got:?}") };
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
            assert!(head.ends_with(text), "{request}: {head}");
            assert_eq!(got.last(), Some(&Got::End));
        }
    }
    assert_eq!(world.hub.connections(), 0);
}

#[test]
fn a_token_may_stand_in_three_places_and_the_first_frame_follows_the_101() {
    let mut world = World::new(1);
    let token = token("ann");
    for request in [
        upgrade(&format!("/ws?x=1&token={token}"), ""),
        upgrade("/ws", &format!("Authorization: Bearer {token}\r\n")),
        upgrade("/ws", &format!("Sec-WebSocket-Protocol: realtime.v1, bearer.{token}\r\n")),
        upgrade(&format!("/ws?token={token}"), &format!("Authorization: Bearer {token}\r\n")),
    ] {
        for step in [1, 10_000] {
            let got = answer(&mut world, request.as_bytes(), step);
            let [Got::Json(hello)] = &got[..] else { panic!("{got:?}") };
            assert_eq!((&hello["type"], &hello["data"]["userId"]), (&json!("connection_established"), &json!("ann")));
            assert_eq!(hello["data"]["protocol"], 1);
        }
    }
    let sessions: Vec<Event> = world.take_events();
    assert_eq!(sessions.iter().filter(|event| matches!(event, Event::Open { first_version: false, .. })).count(), 2);
    assert_eq!(sessions.len(), 8);
}

#[test]
fn refusals_come_as_close_codes_where_a_browser_could_not_see_the_status() {
    let mut world = World::new(1);
    let got = answer(&mut world, upgrade("/ws", "Sec-WebSocket-Protocol: realtime.v1\r\n").as_bytes(), 10_000);
    assert_eq!(got[0], Got::Close(Some(4501), "Unauthorized".into()));
    let mut options = world::options();
    options["origins"] = json!(["https://good.example"]);
    let mut world = World::with(&options, 1, world::Store::default());
    let target = format!("/ws?token={}", token("ann"));
    let foreign = "Sec-WebSocket-Protocol: realtime.v1\r\nOrigin: https://bad.example\r\n";
    assert_eq!(
        answer(&mut world, upgrade(&target, foreign).as_bytes(), 10_000)[0],
        Got::Close(Some(4502), "Forbidden".into())
    );
    for (origin, is_let_in) in [("https://good.example", true), ("https://bad.example", false), ("null", false)] {
        let got = answer(&mut world, upgrade(&target, &format!("Origin: {origin}\r\n")).as_bytes(), 10_000);
        assert_eq!(matches!(got[0], Got::Json(_)), is_let_in, "{origin}: {got:?}");
    }
}

#[test]
fn frames_that_come_with_the_head_wait_for_the_101() {
    let mut world = World::new(1);
    let mut bytes = upgrade(&format!("/ws?token={}", token("ann")), "").into_bytes();
    let ping = br#"{"type":"ping","id":1}"#;
    realtime_protocol::frame::encode_masked_frame(
        realtime_protocol::frame::Opcode::Text,
        true,
        ping,
        [9; 4],
        &mut bytes,
    );
    for step in [1, 13, 10_000] {
        let got = answer(&mut world, &bytes, step);
        let kinds: Vec<String> = got
            .iter()
            .map(|got| if let Got::Json(json) = got { json["type"].to_string() } else { format!("{got:?}") })
            .collect();
        assert_eq!(kinds, ["\"connection_established\"", "\"pong\""]);
    }
}

#[test]
fn half_an_upgrade_ends_with_its_deadline() {
    let mut world = World::new(1);
    let client = world.socket(0);
    world.raw_bytes(client, b"GET /ws HTTP/1.1\r\nHost: e");
    world.advance(9_000);
    assert_eq!(world.take(client), []);
    world.raw_bytes(client, b"d");
    world.advance(1_500);
    let got = world.take(client);
    assert!(matches!(&got[0], Got::Http(head) if head.starts_with("HTTP/1.1 408 ")), "{got:?}");
    world.advance(6_000);
    assert_eq!(world.shards[0].len(), 0);
}

#[test]
fn python_decides_where_the_endpoint_says_so() {
    let mut world = World::new(1);
    let request = upgrade("/hook?key=7", "Cookie: a=b\r\n");
    let client = world.socket(0);
    world.raw_bytes(client, request.as_bytes());
    world.run();
    let [Event::Upgrade { conn, endpoint: 2, path, query, headers, .. }] = &world.take_events()[..] else {
        panic!("not asked")
    };
    assert_eq!((&**path, &**query), ("/hook", "key=7"));
    assert!(headers.iter().any(|(name, value)| (&**name, &**value) == ("cookie", "a=b")));
    assert_eq!(world.take(client), []);
    let grants = Some(br#"{"secret:*":["subscribe"]}"#.to_vec().into());
    world.submit(Command::Accept { conn: *conn, who: Admitted { grants, ..admitted("kim") } });
    world.run();
    assert_eq!(world.take_json(client)[0]["data"]["userId"], "kim");
    let answers = world.ask(client, r#"{"type":"subscribe","data":{"channel":"secret:1"}}"#);
    assert_eq!(answers[0]["type"], "subscription_confirmed");

    let other = world.socket(0);
    world.raw_bytes(other, request.as_bytes());
    world.run();
    let conn = world.clients[other].conn;
    world.submit(Command::Reject {
        conn,
        how: Rejection { status: 401, body: "Unauthorized".into(), close: None, wait_ms: None },
    });
    world.run();
    assert!(matches!(&world.take(other)[0], Got::Http(head) if head.starts_with("HTTP/1.1 401 ")));
}

#[test]
fn a_token_alone_as_subprotocol_is_refused_so_that_a_browser_sees_it() {
    let mut options = world::options();
    let spoken = json!({"path": "/mqtt", "mode": "raw", "auth": "token", "subprotocols": ["mqtt"]});
    options["endpoints"].as_array_mut().unwrap().push(spoken);
    let mut world = World::with(&options, 1, world::Store::default());
    for (path, reason) in [
        ("/ws", "offer the subprotocol realtime.v1 beside bearer.<token>"),
        ("/hook", "offer the subprotocol realtime.v1 beside bearer.<token>"),
        ("/echo", "no subprotocol is spoken here; send the token as ?token="),
        ("/mqtt", "offer a subprotocol of this endpoint beside bearer.<token>"),
    ] {
        let offer = format!("bearer.{}", token("ann"));
        let request = upgrade(path, &format!("Sec-WebSocket-Protocol: {offer}\r\n"));
        let client = world.socket(0);
        world.raw_bytes(client, request.as_bytes());
        world.run();
        assert_eq!(
            world.clients[client].subprotocol().as_deref(),
            Some(&*offer),
            "a browser fails a 101 without one it offered"
        );
        assert_eq!(world.take(client)[0], Got::Close(Some(4501), reason.into()), "{path}");
    }
    let wrong = upgrade("/ws", "Sec-WebSocket-Protocol: bearer.wrong\r\n");
    assert_eq!(answer(&mut world, wrong.as_bytes(), 10_000)[0], Got::Close(Some(4501), "Unauthorized".into()));
    assert_eq!(world.hub.connections(), 0);
    let is_told = |event: &Event| matches!(event, Event::Refused { .. });
    assert!(world.take_events().iter().all(is_told), "nobody was let in, and Python was not asked");
}

#[test]
fn a_raw_endpoint_agrees_to_the_first_of_its_subprotocols_that_is_offered() {
    let mut options = world::options();
    let spoken = json!({"path": "/mqtt", "mode": "raw", "auth": "token", "subprotocols": ["mqtt.v5", "mqtt"]});
    options["endpoints"].as_array_mut().unwrap().push(spoken);
    let mut world = World::with(&options, 1, world::Store::default());
    let bearer = format!("bearer.{}", token("ann"));
    for (offer, agreed) in [
        (format!("mqtt, {bearer}"), Some("mqtt")),
        (format!("{bearer}, mqtt, mqtt.v5"), Some("mqtt.v5")),
        (format!("MQTT, {bearer}"), None),
        (format!("realtime.v1, {bearer}"), None),
    ] {
        let client = world.socket(0);
        world.raw_bytes(client, upgrade("/mqtt", &format!("Sec-WebSocket-Protocol: {offer}\r\n")).as_bytes());
        world.run();
        assert_eq!(world.clients[client].subprotocol().as_deref(), agreed, "{offer}");
        let events = world.take_events();
        let [Event::Open { subprotocol, .. }] = &events[..] else { panic!("{offer}: {events:?}") };
        assert_eq!(subprotocol.as_deref(), agreed, "{offer}");
    }
    let refused = answer(&mut world, upgrade("/mqtt", "Sec-WebSocket-Protocol: mqtt\r\n").as_bytes(), 10_000);
    assert_eq!(refused[0], Got::Close(Some(4501), "Unauthorized".into()), "a refusal is seen where one is agreed to");
}

#[test]
fn a_head_may_be_as_long_as_the_key_says() {
    let mut options = world::options();
    options["limits"]["head_bytes_max"] = json!(40_000);
    let mut world = World::with(&options, 1, world::Store::default());
    let target = format!("/ws?token={}", token("ann"));
    let padded = |bytes: usize| {
        let bare = upgrade(&target, "Cookie: \r\n").len();
        upgrade(&target, &format!("Cookie: {}\r\n", "x".repeat(bytes - bare)))
    };
    for step in [1_000, 100_000] {
        let got = answer(&mut world, padded(40_000).as_bytes(), step);
        assert!(matches!(got[0], Got::Json(_)), "{got:?}");
        let got = answer(&mut world, padded(40_001).as_bytes(), step);
        assert!(matches!(&got[0], Got::Http(head) if head.starts_with("HTTP/1.1 431 ")), "{got:?}");
    }
}

#[test]
fn a_page_is_looked_at_whatever_bytes_its_headers_hold() {
    let mut world = World::new(1);
    for (headers, asks) in [
        (&b"Origin: https://bad.example\r\nCookie: session=1\r\n"[..], false),
        (b"Origin: https://bad.example\r\nCookie: x=\xff; session=1\r\n", false),
        (b"Origin: https://bad\xff.example\r\nCookie: session=1\r\n", false),
        (b"Origin: http://edge\r\nOrigin: https://bad.example\r\nCookie: session=1\r\n", false),
        (b"Origin: http://edge:80\r\nCookie: session=1\r\n", true),
        (b"Origin: https://bad.example\r\n", true),
    ] {
        let whole = upgrade("/hook", "\0").into_bytes();
        let at = whole.iter().position(|&byte| byte == 0).unwrap();
        let client = world.socket(0);
        world.raw_bytes(client, &[&whole[..at], headers, &whole[at + 1..]].concat());
        world.run();
        let asked = world.take_events().iter().any(|event| matches!(event, Event::Upgrade { .. }));
        assert_eq!(asked, asks, "{}", String::from_utf8_lossy(headers));
    }
}

#[test]
fn a_refused_page_is_told_of_with_its_origin_and_the_key_once_a_second() {
    let mut options = world::options();
    options["origins"] = json!(["https://good.example/"]);
    let mut world = World::with(&options, 1, world::Store::default());
    let request = upgrade(&format!("/ws?token={}", token("ann")), "Origin: https://bad.example\r\n");
    let mut lines = Vec::new();
    for _ in 0..3 {
        for _ in 0..10 {
            answer(&mut world, request.as_bytes(), 10_000);
        }
        lines.extend(world.take_events().into_iter().filter_map(|event| match event {
            Event::Warned { message } => Some(message),
            _ => None,
        }));
        world.advance(1_000);
    }
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].contains("origin \"https://bad.example\" to host \"edge\""), "{}", lines[0]);
    assert!(lines[0].contains("auth.origins"), "{}", lines[0]);
    assert!(lines[1].ends_with("; 9 more since the last such line"), "{}", lines[1]);
}
