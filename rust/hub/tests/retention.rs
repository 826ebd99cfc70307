//! What channels keep no longer: positions, pages and replays stay honest, and channels in memory come to an end.

mod world;

use realtime_hub::Options;
use serde_json::{Value, json};
use world::{Store, World};

fn keeping(policies: &Value) -> Value {
    let mut options = world::options();
    options["policies"] = policies.clone();
    options
}

/// The log lets go of what stands up to `tail`.
fn sweep(world: &mut World, channel: &str, tail: u64) {
    world.store.sweep(channel, tail);
    world.hub.swept(channel, tail);
}

fn subscribe(world: &mut World, client: usize, data: &Value) -> Vec<Value> {
    world.ask(client, &json!({"type": "subscribe", "data": data}).to_string())
}

fn offsets(frames: &[Value]) -> Vec<u64> {
    frames.iter().filter_map(|frame| frame["offset"].as_u64()).collect()
}

#[test]
fn a_position_that_the_log_keeps_no_longer_is_not_recovered() {
    for (swept_before, is_known) in [(true, false), (false, true), (false, false)] {
        let mut world = World::new(1);
        for n in 0..20 {
            world.publish("conversation:1", "e", &json!(n));
        }
        world.run();
        if swept_before {
            sweep(&mut world, "conversation:1", 15);
        }
        if is_known {
            let ann = world.connect(0, "ann");
            subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
        }
        sweep(&mut world, "conversation:1", 15);
        for (offset, recovered, replayed) in [(14, false, 0), (15, true, 5), (19, true, 1)] {
            let bob = world.connect(0, "bob");
            let position = json!({"offset": offset, "epoch": "log-epoch"});
            let answers = subscribe(&mut world, bob, &json!({"channel": "conversation:1", "position": position}));
            let confirmed = &answers[0]["data"];
            assert_eq!((&confirmed["recovered"], &confirmed["replayed"]), (&json!(recovered), &json!(replayed)));
            assert_eq!(offsets(&answers).len(), replayed);
        }
        let carl = world.connect(0, "carl");
        let answers = subscribe(&mut world, carl, &json!({"channel": "conversation:1", "last": 100}));
        assert_eq!(offsets(&answers), [16, 17, 18, 19, 20]);
        let data = json!({"channel": "conversation:1", "position": {"offset": 3, "epoch": "log-epoch"}});
        let answers = world.ask(carl, &json!({"type": "history", "data": data}).to_string());
        assert_eq!(answers[0]["data"]["events"][0]["offset"], 16, "a page begins at what is kept");
    }
}

#[test]
fn a_member_that_is_overtaken_while_it_replays_is_told_so() {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 400, "outbox_hard_bytes": 4_000});
    let mut world = World::with(&options, 1, Store::default());
    for n in 0..50 {
        world.publish("conversation:1", "e", &json!(n));
    }
    world.run();
    let ann = world.connect(0, "ann");
    world.limit(ann, Some(600));
    let position = json!({"offset": 0, "epoch": "log-epoch"});
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "position": position}}));
    world.run();
    sweep(&mut world, "conversation:1", 40);
    world.limit(ann, None);
    let conn = world.clients[ann].conn;
    world.shards[0].writable(conn);
    world.run();
    let got = world.take_json(ann);
    let replayed = offsets(&got);
    assert_eq!(replayed, (1..=replayed.len() as u64).collect::<Vec<_>>(), "no hole");
    assert!(replayed.len() < 40);
    let last = got.last().unwrap();
    assert_eq!((&last["type"], &last["data"]["code"]), (&json!("unsubscribed"), &json!("not_recoverable")));
    assert_eq!(last["data"]["retryable"], true);
    let answers = subscribe(&mut world, ann, &json!({"channel": "conversation:1", "last": 2}));
    assert_eq!(offsets(&answers), [49, 50]);
}

#[test]
fn a_channel_in_memory_lets_go_by_age_and_by_count() {
    let options = keeping(&json!([{"pattern": "ring:*", "history": 8, "keep_s": 10, "keep_events": 3}]));
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    let confirmed = subscribe(&mut world, ann, &json!({"channel": "ring:1"}));
    let epoch = confirmed[0]["data"]["position"]["epoch"].clone();
    for n in 0..4 {
        world.publish("ring:1", "e", &json!(n));
        world.advance(3_000);
    }
    let expect = |world: &mut World, offset: u64, recovered: bool, last: &[u64]| {
        let bob = world.connect(0, "bob");
        let position = json!({"offset": offset, "epoch": epoch});
        let answers = subscribe(world, bob, &json!({"channel": "ring:1", "position": position}));
        assert_eq!(answers[0]["data"]["recovered"], recovered);
        let carl = world.connect(0, "carl");
        assert_eq!(offsets(&subscribe(world, carl, &json!({"channel": "ring:1", "last": 9}))), last);
    };
    expect(&mut world, 0, false, &[2, 3, 4]);
    world.advance(2_000);
    expect(&mut world, 1, false, &[3, 4]);
    expect(&mut world, 2, true, &[3, 4]);
    world.advance(10_000);
    expect(&mut world, 3, false, &[]);
    expect(&mut world, 4, true, &[]);
}

#[test]
fn a_channel_in_memory_without_events_and_members_is_gone() {
    let options = keeping(&json!([{"pattern": "ring:*", "history": 8, "keep_s": 10}]));
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    let answers = subscribe(&mut world, ann, &json!({"channel": "ring:0"}));
    let position = answers[0]["data"]["position"].clone();
    for n in 0..100 {
        world.publish(&format!("ring:{n}"), "e", &json!(n));
    }
    let age = |world: &mut World| (0..16).for_each(|_| world.hub.age(world.now));
    age(&mut world);
    assert_eq!(world.hub.channels(), 100);
    world.advance(10_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 1, "ann is in one");
    world.cut(ann);
    assert_eq!(world.hub.channels(), 0);
    world.publish("ring:0", "e", &json!("anew"));
    let bob = world.connect(0, "bob");
    let answers = subscribe(&mut world, bob, &json!({"channel": "ring:0", "position": position}));
    assert_eq!(answers[0]["data"]["recovered"], false, "it is another history");
}

#[test]
fn the_operator_has_the_last_word() {
    let mut options = keeping(&json!([
        {"pattern": "conversation:*", "durable": true, "keep_s": 60},
        {"pattern": "ring:*", "history": 8},
    ]));
    options["retention"] = json!([
        {"pattern": "conversation:a", "keep_events": 5},
        {"pattern": "conversation:b"},
        {"pattern": "ring:*", "keep_events": 2},
    ]);
    let mut world = World::with(&options, 1, Store::default());
    let keep = |channel: &str| world.hub.keep_of(channel).map(|keep| (keep.s, keep.events));
    assert_eq!(keep("conversation:a"), Some((None, Some(5))));
    assert_eq!(keep("conversation:b"), None);
    assert_eq!(keep("conversation:c"), Some((Some(60), None)));
    assert_eq!(keep("ring:1"), None, "not the log's");
    for n in 0..5 {
        world.publish("ring:1", "e", &json!(n));
    }
    let ann = world.connect(0, "ann");
    assert_eq!(offsets(&subscribe(&mut world, ann, &json!({"channel": "ring:1", "last": 9}))), [4, 5]);
}

#[test]
fn a_bound_of_nothing_is_refused() {
    for wrong in [json!({"keep_s": 0}), json!({"keep_events": 0}), json!({"keep_s": u64::MAX})] {
        let mut policy = wrong;
        policy["pattern"] = json!("ring:*");
        let options = Options::from_json(keeping(&json!([policy])).to_string().as_bytes()).unwrap();
        let check = realtime_hub::Hub::new(&options, 1, Box::new(world::Nowhere), "e".into(), [0; 32]);
        assert!(check.unwrap_err().contains("ring:*"));
    }
}
