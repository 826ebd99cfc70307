//! The memory of all slow readers together: who holds most pays, and nobody else.

mod world;

use realtime_hub::Command;
use serde_json::json;
use std::sync::atomic::Ordering;
use world::{Got, Store, World};

const MOST: usize = 40_000;

fn world(shards: usize) -> World {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 20_000, "outbox_hard_bytes": 30_000,
        "outboxes_bytes_max": MOST});
    World::with(&options, shards, Store::default())
}

fn reader(world: &mut World, shard: usize, channel: &str, room: Option<usize>) -> usize {
    let client = world.connect(shard, &format!("u{}", world.clients.len()));
    world.ask(client, &json!({"type": "subscribe", "data": {"channel": channel}}).to_string());
    world.limit(client, room);
    client
}

fn publish(world: &mut World, channel: &str, n: u64, bytes: usize) {
    world.publish(channel, "e", &json!({"n": n, "x": "y".repeat(bytes)}));
    world.run();
    let held = world.hub.counters().outbox_bytes.load(Ordering::Relaxed) as usize;
    assert!(held <= MOST, "{held} bytes are held");
}

fn open_up(world: &mut World, client: usize) -> Vec<Got> {
    world.open_up(client);
    world.take(client)
}

fn numbers(got: &[Got]) -> Vec<u64> {
    let number = |got: &Got| if let Got::Json(frame) = got { frame["data"]["n"].as_u64() } else { None };
    got.iter().filter_map(number).collect()
}

fn skipped(got: &[Got]) -> u64 {
    let lag = |got: &Got| match got {
        Got::Json(frame) if frame["type"] == "lag" => frame["data"]["skipped"].as_u64(),
        _ => None,
    };
    got.iter().filter_map(lag).sum()
}

fn is_closed_as_slow(got: &[Got]) -> bool {
    matches!(got.last(), Some(Got::Close(Some(4000), _)))
}

#[test]
fn who_holds_most_is_closed_and_the_others_get_everything() {
    let mut world = world(1);
    let small = reader(&mut world, 0, "conversation:small", Some(50));
    let large = [0, 1].map(|n| reader(&mut world, 0, &format!("conversation:large{n}"), Some(50)));
    let quick = reader(&mut world, 0, "conversation:small", None);
    for n in 0..20 {
        publish(&mut world, "conversation:small", n, 100);
        publish(&mut world, "conversation:large0", n, 1_040);
        publish(&mut world, "conversation:large1", n, 1_040);
    }
    let ends = large.map(|client| is_closed_as_slow(&open_up(&mut world, client)));
    assert_eq!(ends.iter().filter(|closed| **closed).count(), 1, "one of the two was enough");
    for client in [small, quick] {
        assert_eq!(numbers(&open_up(&mut world, client)), (0..20).collect::<Vec<u64>>());
    }
    assert_eq!(world.hub.counters().outbox_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn who_holds_most_loses_volatile_events_and_is_told_and_the_others_lose_none() {
    let mut world = world(1);
    let small = reader(&mut world, 0, "news:small", Some(50));
    let large = [0, 1].map(|n| reader(&mut world, 0, &format!("news:large{n}"), Some(50)));
    for n in 0..20 {
        publish(&mut world, "news:small", n, 100);
        publish(&mut world, "news:large0", n, 1_200);
        publish(&mut world, "news:large1", n, 1_200);
    }
    let mut lost = 0;
    for client in large {
        let got = open_up(&mut world, client);
        lost += skipped(&got);
        assert_eq!(numbers(&got).len() as u64 + skipped(&got), 20);
        assert!(!is_closed_as_slow(&got));
    }
    assert_eq!(lost, world.hub.counters().dropped_budget.load(Ordering::Relaxed));
    assert!(lost > 0);
    assert_eq!(numbers(&open_up(&mut world, small)), (0..20).collect::<Vec<u64>>());
}

#[test]
fn who_is_closed_with_a_part_of_a_frame_unread_holds_the_rest_no_longer_than_there_is_room() {
    let mut world = world(1);
    let slow: Vec<usize> = (0..20).map(|n| reader(&mut world, 0, &format!("conversation:{n}"), Some(50))).collect();
    for n in 0..20 {
        world.publish(&format!("conversation:{n}"), "e", &json!({"n": n, "x": "y".repeat(9_000)}));
        world.run();
        let held = world.hub.counters().outbox_bytes.load(Ordering::Relaxed) as usize;
        assert!(held <= MOST + MOST / 4, "{held} bytes are held");
    }
    let ends: Vec<Vec<Got>> = slow.iter().map(|client| open_up(&mut world, *client)).collect();
    let whole = ends.iter().filter(|got| numbers(got).len() == 1).count();
    assert!((3..=5).contains(&whole), "as many as fit: {whole}");
    assert_eq!(world.hub.counters().outbox_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_frame_that_many_hold_is_counted_once() {
    let mut world = world(1);
    let slow: Vec<usize> = (0..20).map(|_| reader(&mut world, 0, "conversation:1", Some(50))).collect();
    for n in 0..12 {
        publish(&mut world, "conversation:1", n, 500);
    }
    for client in slow {
        assert_eq!(numbers(&open_up(&mut world, client)), (0..12).collect::<Vec<u64>>());
    }
}

#[test]
fn the_places_of_small_frames_are_counted() {
    let mut world = world(1);
    let slow: Vec<usize> = (0..40).map(|_| reader(&mut world, 0, "news:1", Some(50))).collect();
    for n in 0..60 {
        publish(&mut world, "news:1", n, 1);
    }
    for client in slow {
        let got = open_up(&mut world, client);
        assert_eq!(numbers(&got).len() as u64 + skipped(&got), 60);
    }
}

#[test]
fn who_holds_most_pays_on_another_shard_too() {
    let mut world = world(2);
    let large = reader(&mut world, 1, "conversation:large", Some(50));
    let small: Vec<usize> =
        (0..30).map(|n| reader(&mut world, 0, &format!("conversation:small{n}"), Some(50))).collect();
    for n in 0..20 {
        publish(&mut world, "conversation:large", n, 1_000);
    }
    for client in 0..30 {
        for n in 0..3 {
            world.publish(&format!("conversation:small{client}"), "e", &json!({"n": n, "x": "y".repeat(50)}));
            world.run();
        }
    }
    assert!(is_closed_as_slow(&open_up(&mut world, large)));
    for client in small {
        assert_eq!(numbers(&open_up(&mut world, client)), [0, 1, 2]);
    }
}

#[test]
fn nobody_pays_for_what_the_closed_still_hold() {
    let mut world = world(1);
    let large = reader(&mut world, 0, "conversation:large", Some(50));
    let small = reader(&mut world, 0, "conversation:small", Some(50));
    // The frame at its front is partly sent and stays until its end.
    world.publish("conversation:large", "e", &json!({"n": 0, "x": "y".repeat(39_000)}));
    world.run();
    for n in 0..9 {
        world.publish("conversation:small", "e", &json!({"n": n, "x": "y".repeat(300)}));
        world.run();
    }
    let all = json!({"type": "all", "x": "y".repeat(3_000)}).to_string();
    world.submit(Command::SendAll { payload: all.into_bytes().into(), key: None });
    world.run();
    let got = open_up(&mut world, large);
    assert!(is_closed_as_slow(&got));
    assert_eq!(numbers(&got), [0], "never half a frame");
    assert_eq!(numbers(&open_up(&mut world, small)), (0..9).collect::<Vec<u64>>());
}
