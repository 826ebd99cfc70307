//! The end of the process: told to each client with its own delay, and closed at that moment where it is spread.

mod world;

use serde_json::{Value, json};
use world::{Got, World};

fn reconnect_in_ms(frame: &Value) -> u64 {
    assert_eq!(frame["type"], "draining", "{frame}");
    frame["data"]["reconnectInMs"].as_u64().unwrap()
}

#[test]
fn every_client_is_told_its_own_delay_within_the_spread() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..100).map(|n| world.connect(n % 2, "ann")).collect();
    world.hub.announce_drain(5_000);
    world.run();
    let delays: Vec<u64> = clients
        .iter()
        .map(|client| {
            let frames = world.take_json(*client);
            assert_eq!(frames.len(), 1);
            reconnect_in_ms(&frames[0])
        })
        .collect();
    assert!(delays.iter().all(|delay| *delay <= 5_000));
    let mean = delays.iter().sum::<u64>() / 100;
    assert!((1_800..3_200).contains(&mean), "spread evenly: {delays:?}");
    assert_eq!(world.ask(clients[0], r#"{"type":"ping","id":1}"#)[0]["type"], "pong", "all are served on");
}

#[test]
fn who_opens_after_the_announcement_is_told_too_and_raw_links_are_not() {
    let mut world = World::new(1);
    let raw = world.socket(0);
    let conn = world.clients[raw].conn;
    world.shards[0].admit_as(conn, 1, "", None, false, world.now).unwrap();
    world.hub.announce_drain(0);
    world.run();
    assert_eq!(world.take(raw), []);
    let late = world.socket(0);
    let conn = world.clients[late].conn;
    world.shards[0].admit_as(conn, 0, "ann", None, false, world.now).unwrap();
    world.run();
    let frames = world.take_json(late);
    assert_eq!(frames[0]["type"], "connection_established");
    assert_eq!(reconnect_in_ms(&frames[1]), 0);
}

#[test]
fn a_spread_end_closes_each_when_its_client_was_told_to_come_back() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..40).map(|n| world.connect(n % 2, "ann")).collect();
    world.hub.announce_drain(4_000);
    world.run();
    let delays: Vec<u64> = clients.iter().map(|client| reconnect_in_ms(&world.take_json(*client)[0])).collect();
    world.hub.close_all(1012, "restart", 4_000);
    world.run();
    let mut passed = 0;
    while passed <= 4_250 {
        for (client, delay) in clients.iter().zip(&delays) {
            for got in world.take(*client) {
                assert_eq!(got, Got::Close(Some(1012), "restart".into()));
                assert!((*delay..=delay + 250).contains(&passed), "told {delay}, closed after {passed}");
            }
        }
        world.advance(250);
        passed += 250;
    }
    let ends = world.take_events();
    assert_eq!(ends.iter().filter(|event| matches!(event, realtime_hub::Event::Close { code: 1012, .. })).count(), 0);
    world.advance(6_000);
    let ends = world.take_events();
    let closed = ends.iter().filter(|event| matches!(event, realtime_hub::Event::Close { code: 1012, .. })).count();
    assert_eq!(closed, 40, "whoever does not answer the close is cut in the end");
}

#[test]
fn an_end_without_a_spread_goes_behind_what_is_queued() {
    let mut world = World::new(1);
    let client = world.connect(0, "ann");
    world.send(client, &json!({"type": "ping", "id": 1}));
    world.hub.close_all(1012, "restart", 0);
    world.run();
    let got = world.take(client);
    assert!(matches!(&got[0], Got::Json(pong) if pong["type"] == "pong"), "{got:?}");
    assert_eq!(got[1], Got::Close(Some(1012), "restart".into()));
}
