//! Connections without a session: unfinished handshakes and upgrades that wait for Python make room by address.

mod world;

use realtime_hub::{Command, ConnId, Event, Rejection};
use serde_json::{Value, json};
use std::net::IpAddr;
use world::doors::request;
use world::{Got, Store, World, admitted};

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    World::with(&options, 2, Store::default())
}

fn from(host: u8) -> IpAddr {
    [10, 0, 0, host].into()
}

/// Silent connections of an address, spread over both shards.
fn silent(world: &mut World, host: u8, count: usize) -> Vec<usize> {
    let clients = (0..count).map(|n| world.socket_from(n % 2, from(host))).collect();
    world.run();
    clients
}

fn has_ended(world: &mut World, client: usize) -> bool {
    world.take(client).contains(&Got::End)
}

fn stat(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

#[test]
fn above_the_limit_the_oldest_unfinished_handshake_of_the_address_with_the_most_ends() {
    let mut world = limited(&json!({"handshakes_pending_max": 10}));
    let few = silent(&mut world, 1, 2);
    let many = silent(&mut world, 2, 8);
    assert!(few.iter().chain(&many).all(|&client| !has_ended(&mut world, client)), "ten are allowed");
    let more = silent(&mut world, 2, 3);
    let ended: Vec<bool> = many.iter().map(|&client| has_ended(&mut world, client)).collect();
    assert_eq!(ended, [true, true, true, false, false, false, false, false]);
    assert!(few.iter().chain(&more).all(|&client| !has_ended(&mut world, client)));
    assert_eq!((stat(&world, "evicted_number"), stat(&world, "handshakes_pending")), (3, 10));
}

#[test]
fn a_complete_request_is_served_whatever_number_of_handshakes_is_unfinished() {
    let mut world = limited(&json!({"handshakes_pending_max": 10, "address_handshakes_per_s": 0}));
    for n in 0..200 {
        silent(&mut world, (n % 50) as u8, 5);
        let client = world.socket_from(n % 2, from(77));
        world.raw_bytes(client, &request("/echo", ""));
        world.run();
        let is_open = world.take_events().iter().any(|event| matches!(event, Event::Open { .. }));
        assert!(is_open, "{n}: {:?}", world.take(client));
        world.cut(client);
    }
    assert_eq!(stat(&world, "refused"), 0);
}

#[test]
fn addresses_of_one_ipv6_network_are_one() {
    let mut world = limited(&json!({"handshakes_pending_max": 4}));
    let other: Vec<usize> = (0..2).map(|_| world.socket_from(0, "2001:db8:0:9::1".parse().unwrap())).collect();
    let network = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, n]);
    let many: Vec<usize> = (0..4).map(|n| world.socket_from(0, network(n))).collect();
    world.run();
    let ended: Vec<bool> = other.iter().chain(&many).map(|&client| has_ended(&mut world, client)).collect();
    assert_eq!(ended, [false, false, true, true, false, false]);
}

#[test]
fn heads_that_are_not_whole_have_a_limit_in_bytes_and_the_address_that_holds_most_pays() {
    let mut world = limited(&json!({"heads_bytes_max": 100_000, "handshake_timeout_s": 10}));
    let half = |bytes: usize| format!("GET /ws HTTP/1.1\r\nCookie: {}", "x".repeat(bytes)).into_bytes();
    let small: Vec<usize> = (0..20).map(|_| world.socket_from(0, from(1))).collect();
    for &client in &small {
        world.raw_bytes(client, &half(1_000));
    }
    let large: Vec<usize> = (0..3).map(|_| world.socket_from(1, from(2))).collect();
    for &client in &large[..1] {
        world.raw_bytes(client, &half(40_000));
    }
    world.run();
    assert!(small.iter().chain(&large).all(|&client| !has_ended(&mut world, client)), "all fit");
    world.raw_bytes(large[1], &half(40_000));
    world.run();
    assert_eq!([large[0], large[1]].map(|client| has_ended(&mut world, client)), [true, false], "the oldest ends");
    assert!(small.iter().all(|&client| !has_ended(&mut world, client)));
    assert!((60_000..=100_000).contains(&stat(&world, "heads_bytes")));
    assert_eq!(stat(&world, "evicted_bytes"), 1);
    // The rest ends by its deadline, or by its answer, and gives all of it back.
    world.raw_bytes(large[1], b"\r\nHost: edge\r\n\r\n");
    world.advance(20_000);
    assert_eq!((world.shards[0].len(), world.shards[1].len()), (0, 0));
    assert_eq!((stat(&world, "heads_bytes"), stat(&world, "unfinished_bytes")), (0, 0));
}

fn asked(world: &mut World) -> Vec<ConnId> {
    let conn = |event| if let Event::Upgrade { conn, .. } = event { Some(conn) } else { None };
    world.take_events().into_iter().filter_map(conn).collect()
}

fn ask(world: &mut World, host: u8) -> usize {
    let client = world.socket_from(0, from(host));
    world.raw_bytes(client, &request("/hook", ""));
    world.run();
    client
}

#[test]
fn upgrades_that_wait_for_python_have_a_limit_and_each_address_a_share_of_it() {
    let mut world = limited(&json!({"authenticating_max": 8, "address_handshakes_per_s": 0}));
    let slow: Vec<usize> = (0..5).map(|_| ask(&mut world, 1)).collect();
    let waiting = asked(&mut world);
    assert_eq!(waiting.len(), 4, "one address has half");
    let got = world.take(slow[4]);
    assert!(
        matches!(&got[0], Got::Http(head) if head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: ")),
        "{got:?}"
    );
    ask(&mut world, 2);
    assert_eq!((asked(&mut world).len(), stat(&world, "authenticating")), (1, 5), "another one is asked about");
    assert_eq!(stat(&world, "authenticating_refused"), 1);
    // A client that goes leaves its work to Python, and so its place.
    world.cut(slow[0]);
    world.cut(slow[1]);
    ask(&mut world, 1);
    assert_eq!(asked(&mut world).len(), 0);
    let how = Rejection { status: 401, body: "Unauthorized".into(), close: None, wait_ms: None };
    world.submit(Command::Reject { conn: waiting[0], how });
    world.submit(Command::Accept { conn: waiting[2], who: admitted("ann") });
    world.run();
    assert_eq!(world.take_json(slow[2])[0]["type"], "connection_established");
    assert_eq!(stat(&world, "authenticating"), 3);
    ask(&mut world, 1);
    assert_eq!(asked(&mut world).len(), 1);
}

#[test]
fn for_another_socket_an_unfinished_handshake_ends_before_a_refusal_that_lingers() {
    let mut world = limited(&json!({}));
    let refused = world.socket_from(0, from(1));
    world.raw_bytes(refused, &request("/elsewhere", ""));
    let served = world.socket_from(0, from(1));
    world.raw_bytes(served, &request("/echo", ""));
    let half = world.socket_from(1, from(2));
    world.run();
    world.take(refused);
    world.take(served);
    assert!(world.hub.evict_one());
    assert_eq!(world.hub.making_room(), 1);
    world.run();
    assert_eq!(world.hub.making_room(), 0);
    let len = |world: &World| [world.shards[0].len(), world.shards[1].len()];
    assert_eq!((has_ended(&mut world, half), len(&world)), (true, [2, 0]));
    assert!(world.hub.evict_one());
    world.run();
    assert_eq!(len(&world), [1, 0]);
    assert!(!world.hub.evict_one(), "what is open stays");
    assert_eq!(stat(&world, "evicted_sockets"), 2);
}
