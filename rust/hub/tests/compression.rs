//! permessage-deflate: who is agreed with, what is deflated, and that it is so once.

mod world;

use realtime_hub::Command;
use realtime_protocol::deflate::Deflater;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::{Got, Store, World};

const OFFER: &str = "permessage-deflate; client_max_window_bits";
const LONG: &str = "again and again ";

fn with(compression: &Value) -> World {
    let mut options = world::options();
    options["compression"] = compression.clone();
    World::with(&options, 2, Store::default())
}

fn open(world: &mut World, shard: usize, offer: &str) -> usize {
    let client = world.offer(shard, "ann", offer);
    world.run();
    let Some(Got::Json(hello)) = world.clients[client].got.pop_front() else { panic!("no hello") };
    assert_eq!(hello["type"], "connection_established");
    client
}

fn counted(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

#[test]
fn an_event_to_members_of_two_shards_is_deflated_once_and_a_short_one_not_at_all() {
    let mut world = with(&json!({"threshold_bytes": 300}));
    let clients: Vec<usize> = (0..20).map(|n| open(&mut world, n % 2, if n % 5 == 4 { "x" } else { OFFER })).collect();
    for &client in &clients {
        world.ask(client, r#"{"type":"subscribe","data":{"channel":"ring:a"}}"#);
    }
    assert_eq!(counted(&world, "compressions"), 0, "nobody shares the cost of short answers");
    for n in 1..=3 {
        world.publish("ring:a", "e", &json!({"text": LONG.repeat(40), "n": n}));
    }
    world.publish("ring:a", "e", &json!({"text": "short"}));
    world.run();
    for (place, &client) in clients.iter().enumerate() {
        let got = world.take_json(client);
        assert_eq!(
            got.iter().map(|frame| frame["data"]["n"].as_u64()).collect::<Vec<_>>(),
            [Some(1), Some(2), Some(3), None]
        );
        assert_eq!(world.clients[client].inflated, if place % 5 == 4 { 0 } else { 3 });
    }
    assert_eq!(counted(&world, "compressions"), 3);
    // Who comes back gets what was made before.
    let late = open(&mut world, 1, OFFER);
    world.ask(late, r#"{"type":"subscribe","data":{"channel":"ring:a","last":4}}"#);
    assert_eq!((world.clients[late].inflated, counted(&world, "compressions")), (3, 3));
}

#[test]
fn what_does_not_get_smaller_stays_plain_and_is_not_tried_again() {
    let mut world = with(&json!({"threshold_bytes": 300}));
    let clients = [open(&mut world, 0, OFFER), open(&mut world, 1, OFFER)];
    for client in clients {
        world.ask(client, r#"{"type":"subscribe","data":{"channel":"ring:a"}}"#);
    }
    // Letters without a pattern: a linear congruence's upper bits.
    let mut state = 1_u64;
    let noise: String = (0..3_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'#' + (state >> 33) as u8 % 90)
        })
        .filter(|letter| *letter != '\\')
        .collect();
    world.publish("ring:a", "e", &json!({"text": noise}));
    world.run();
    for client in clients {
        assert_eq!(world.take_json(client)[0]["data"]["text"], noise);
        assert_eq!(world.clients[client].inflated, 0);
    }
    assert_eq!(counted(&world, "compressions"), 1);
}

#[test]
fn a_past_that_is_read_for_one_member_is_deflated_where_it_is_long() {
    let mut world = with(&json!({"threshold_bytes": 300}));
    for times in [30, 30, 90, 90] {
        for _ in 0..5 {
            world.publish("conversation:a", "e", &json!({"text": LONG.repeat(times)}));
        }
    }
    world.run();
    // The last eight are in memory, the rest comes from the log.
    let client = open(&mut world, 0, OFFER);
    world.ask(client, r#"{"type":"subscribe","data":{"channel":"conversation:a","last":20}}"#);
    assert_eq!(world.clients[client].inflated, 10);
}

#[test]
fn it_is_agreed_to_only_where_it_is_wanted() {
    for (options, agrees) in [(json!({}), true), (json!({"enabled": false}), false)] {
        let mut world = with(&options);
        let client = open(&mut world, 0, OFFER);
        assert_eq!(world.clients[client].agrees(), agrees);
    }
    let mut options = world::options();
    options["endpoints"][0]["compression"] = json!(false);
    let mut world = World::with(&options, 1, Store::default());
    let client = open(&mut world, 0, OFFER);
    assert!(!world.clients[client].agrees());
}

/// One message of a client, deflated.
fn deflated(payload: &[u8]) -> Vec<u8> {
    let (mut packed, mut frame) = (Vec::new(), Vec::new());
    Deflater::new(1).deflate(payload, &mut packed);
    encode_masked_frame(Opcode::Binary, true, &packed, [1, 2, 3, 4], &mut frame);
    frame[0] |= 0x40;
    frame
}

#[test]
fn what_inflates_costs_tokens_on_every_endpoint_and_behind_our_close_too() {
    const MIB: usize = 1 << 20;
    let mut options = world::options();
    // Nothing of it is held back for what Python has.
    let (events_waiting_bytes_max, user_waiting_bytes_max) = (1 << 30, 100 * MIB);
    options["limits"] = json!({"commands_per_s": 100, "commands_burst": 200,
        "events_waiting_bytes_max": events_waiting_bytes_max, "user_waiting_bytes_max": user_waiting_bytes_max});
    let long = deflated(&vec![b' '; 8 * MIB]);
    for path in ["/echo", "/ws"] {
        let mut world = World::with(&options, 1, Store::default());
        let client = world.offer_at(path, 0, "mallory", OFFER);
        world.run();
        world.take(client);
        for _ in 0..3 {
            world.raw_bytes(client, &long);
        }
        world.run();
        let got = world.take(client);
        assert!(got.contains(&Got::Close(Some(4003), "too many compressed bytes".into())), "{path}: {got:?}");
        assert_eq!(counted(&world, "inflated_bytes"), 16 * MIB as u64, "{path}");
        // What comes behind is not looked at any more.
        world.raw_bytes(client, &long);
        assert_eq!(counted(&world, "inflations"), 2);
    }
    // A connection that we close says what it likes until its own Close comes, but not at any price.
    let mut world = World::with(&options, 1, Store::default());
    let client = open(&mut world, 0, OFFER);
    let conn = world.clients[client].conn;
    world.submit(Command::Close { conn, code: 4503, reason: "enough".into() });
    world.run();
    for _ in 0..10 {
        world.raw_bytes(client, &long);
    }
    assert_eq!(counted(&world, "inflations"), 2);
}
