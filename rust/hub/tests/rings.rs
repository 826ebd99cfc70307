//! What channels keep of their past in memory is bounded in bytes: one channel's, and all together.

mod world;

use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use world::{Store, World};

/// What one event of [`publish`] is charged: its frame of about 1,100 bytes and its places.
const EVENT_BYTES: std::ops::Range<u64> = 1_300..1_500;

fn keeping(ring_bytes_max: u64, rings_bytes_max: u64) -> World {
    let mut options = world::options();
    options["policies"] = json!([
        {"pattern": "conversation:*", "durable": true, "history": 100},
        {"pattern": "ring:*", "history": 100},
    ]);
    options["compression"] = json!({"enabled": false});
    options["limits"] = json!({"enabled": false, "ring_bytes_max": ring_bytes_max, "rings_bytes_max": rings_bytes_max});
    World::with(&options, 2, Store::default())
}

/// Publishes an event of about 1,100 bytes.
fn publish(world: &mut World, channel: &str, times: usize) {
    for _ in 0..times {
        world.publish(channel, "e", &json!("x".repeat(1_000)));
    }
    world.run();
}

fn held(world: &World) -> u64 {
    world.hub.counters().rings_bytes.load(Ordering::Relaxed)
}

fn evicted(world: &World) -> u64 {
    world.hub.counters().ring_events_evicted.load(Ordering::Relaxed)
}

fn subscribe(world: &mut World, client: usize, data: &Value) -> Vec<Value> {
    world.ask(client, &json!({"type": "subscribe", "data": data}).to_string())
}

/// What a client that was there at `offset` gets when it comes back: whether it is whole, and the offsets.
fn come_back(world: &mut World, channel: &str, epoch: &Value, offset: u64) -> (bool, Vec<u64>) {
    let client = world.connect(1, "back");
    let position = json!({"offset": offset, "epoch": epoch});
    let answers = subscribe(world, client, &json!({"channel": channel, "position": position}));
    let offsets = answers.iter().filter_map(|frame| frame["offset"].as_u64()).collect();
    world.cut(client);
    world.run();
    (answers[0]["data"]["recovered"].as_bool().unwrap(), offsets)
}

#[test]
fn at_its_limit_a_ring_keeps_everything_and_above_it_the_oldest_goes() {
    let mut world = keeping(10 * EVENT_BYTES.end, 1 << 30);
    let ann = world.connect(0, "ann");
    let epoch = subscribe(&mut world, ann, &json!({"channel": "ring:1"}))[0]["data"]["position"]["epoch"].clone();
    publish(&mut world, "ring:1", 10);
    assert!((10 * EVENT_BYTES.start..10 * EVENT_BYTES.end).contains(&held(&world)), "{} bytes", held(&world));
    assert_eq!(evicted(&world), 0);
    assert_eq!(come_back(&mut world, "ring:1", &epoch, 0), (true, (1..=10).collect()));
    publish(&mut world, "ring:1", 10);
    assert!(held(&world) <= 10 * EVENT_BYTES.end);
    assert!((9..=10).contains(&evicted(&world)), "{} went", evicted(&world));
    assert_eq!(come_back(&mut world, "ring:1", &epoch, 0), (false, vec![]), "memory has no more than its ring");
    assert_eq!(come_back(&mut world, "ring:1", &epoch, 10), (true, (11..=20).collect()));
}

#[test]
fn a_durable_channel_loses_nothing_by_what_its_ring_lets_go() {
    let mut world = keeping(4 * EVENT_BYTES.end, 1 << 30);
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    publish(&mut world, "conversation:1", 20);
    assert!(held(&world) <= 4 * EVENT_BYTES.end);
    let (recovered, offsets) = come_back(&mut world, "conversation:1", &json!("log-epoch"), 0);
    assert_eq!((recovered, offsets), (true, (1..=20).collect()));
    world.cut(ann);
    world.run();
    assert_eq!(held(&world), 0, "nobody is there: the log has it");
}

#[test]
fn an_event_that_is_larger_than_a_ring_is_delivered_and_not_kept() {
    let mut world = keeping(EVENT_BYTES.start - 1, 1 << 30);
    let ann = world.connect(0, "ann");
    let epoch = subscribe(&mut world, ann, &json!({"channel": "ring:1"}))[0]["data"]["position"]["epoch"].clone();
    world.publish("ring:1", "e", &json!("small"));
    publish(&mut world, "ring:1", 1);
    assert_eq!(world.take_json(ann).len(), 2);
    assert_eq!(held(&world), 0);
    assert_eq!(come_back(&mut world, "ring:1", &epoch, 1), (false, vec![]));
    assert_eq!(come_back(&mut world, "ring:1", &epoch, 2), (true, vec![]), "who missed nothing is whole");
}

#[test]
fn the_largest_rings_pay_when_all_together_hold_too_much() {
    let most = 64 * EVENT_BYTES.end;
    let mut world = keeping(1 << 30, most);
    let ann = world.connect(0, "ann");
    let mut epochs = Vec::new();
    for n in 0..4 {
        let answers = subscribe(&mut world, ann, &json!({"channel": format!("ring:{n}")}));
        epochs.push(answers[0]["data"]["position"]["epoch"].clone());
    }
    for small in 1..4 {
        publish(&mut world, &format!("ring:{small}"), 4);
    }
    publish(&mut world, "ring:0", 50);
    assert_eq!(evicted(&world), 0, "all of it fits");
    publish(&mut world, "ring:0", 50);
    assert!(held(&world) <= most);
    for (small, epoch) in (0..4).zip(&epochs).skip(1) {
        let (recovered, offsets) = come_back(&mut world, &format!("ring:{small}"), epoch, 0);
        assert_eq!((recovered, offsets), (true, (1..=4).collect()), "who keeps little keeps all of it");
    }
    assert!(!come_back(&mut world, "ring:0", &epochs[0], 0).0);
    assert!(come_back(&mut world, "ring:0", &epochs[0], 90).0, "the newest stay");
}

#[test]
fn rings_of_one_size_share_what_there_is() {
    let most = 100 * EVENT_BYTES.end;
    let mut world = keeping(1 << 30, most);
    let ann = world.connect(0, "ann");
    for n in 0..10 {
        subscribe(&mut world, ann, &json!({"channel": format!("conversation:{n}")}));
    }
    for _ in 0..40 {
        for n in 0..10 {
            publish(&mut world, &format!("conversation:{n}"), 1);
        }
        assert!(held(&world) <= most);
    }
    assert!(held(&world) > most / 2, "{} of {most} are used", held(&world));
    for n in 0..10 {
        let (recovered, offsets) = come_back(&mut world, &format!("conversation:{n}"), &json!("log-epoch"), 0);
        assert_eq!((recovered, offsets.len()), (true, 40), "the log has what the ring let go");
    }
}
