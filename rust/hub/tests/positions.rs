//! Positions: which offset a confirmation names, and what follows it.

mod world;

use serde_json::{Value, json};
use world::{Store, World};

const CHANNELS: [&str; 2] = ["conversation:1", "ring:1"];

fn subscribe(world: &mut World, client: usize, data: &Value) -> Vec<Value> {
    world.ask(client, &json!({"type": "subscribe", "data": data, "id": 7}).to_string())
}

fn offsets(frames: &[Value]) -> Vec<u64> {
    frames.iter().filter_map(|frame| frame["offset"].as_u64()).collect()
}

fn publish(world: &mut World, channel: &str, count: u64) {
    for n in 0..count {
        world.publish(channel, "e", &json!({"n": n, "text": "x".repeat(100)}));
    }
    world.run();
}

/// `position.offset`, `head`, `recovered` and `replayed` of a confirmation.
fn told(confirmed: &Value) -> (u64, u64, Option<bool>, u64) {
    let data = &confirmed["data"];
    assert_eq!(confirmed["type"], "subscription_confirmed");
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{confirmed}"));
    let before = number(&data["position"]["offset"]);
    (before, number(&data["head"]), data["recovered"].as_bool(), number(&data["replayed"]))
}

fn epoch_of(world: &mut World, channel: &str) -> Value {
    let reader = world.connect(0, "reader");
    subscribe(world, reader, &json!({"channel": channel}))[0]["data"]["position"]["epoch"].clone()
}

/// A world where outboxes have room for a few events.
fn narrow() -> World {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 600, "outbox_hard_bytes": 100_000});
    World::with(&options, 1, Store::default())
}

#[test]
fn the_position_of_a_confirmation_is_the_offset_before_the_first_event_that_follows() {
    for channel in CHANNELS {
        let mut world = World::new(1);
        publish(&mut world, channel, 10);
        let epoch = epoch_of(&mut world, channel);
        let position = |offset: u64, epoch: &Value| json!({"offset": offset, "epoch": epoch});
        for (with, expected) in [
            (json!({}), (10, 10, None, 0)),
            (json!({"last": 0}), (10, 10, None, 0)),
            (json!({"last": 3}), (7, 10, None, 3)),
            (json!({"position": position(8, &epoch)}), (8, 10, Some(true), 2)),
            (json!({"position": position(10, &epoch)}), (10, 10, Some(true), 0)),
            (json!({"position": position(11, &epoch)}), (10, 10, Some(false), 0)),
            (json!({"position": position(8, &json!("another"))}), (10, 10, Some(false), 0)),
        ] {
            let ann = world.connect(0, "ann");
            let mut data = with.clone();
            data["channel"] = json!(channel);
            let answers = subscribe(&mut world, ann, &data);
            assert_eq!(told(&answers[0]), expected, "{channel} {with}");
            assert_eq!(offsets(&answers[1..]), (expected.0 + 1..=10).collect::<Vec<u64>>(), "{channel} {with}");
        }
    }
}

#[test]
fn a_second_subscribe_with_a_position_replays_from_there_and_the_membership_stays() {
    for channel in CHANNELS {
        let mut world = World::new(1);
        publish(&mut world, channel, 6);
        let epoch = epoch_of(&mut world, channel);
        let members = world.hub.members(channel);
        let ann = world.connect(0, "ann");
        assert_eq!(told(&subscribe(&mut world, ann, &json!({"channel": channel}))[0]), (6, 6, None, 0));
        publish(&mut world, channel, 2);
        assert_eq!(offsets(&world.take_json(ann)), [7, 8]);
        let data = json!({"channel": channel, "position": {"offset": 6, "epoch": epoch}});
        world.send(ann, &json!({"type": "subscribe", "data": data, "id": 7}));
        publish(&mut world, channel, 2);
        let answers = world.take_json(ann);
        let (before, _, recovered, _) = told(&answers[0]);
        assert_eq!((before, recovered, &answers[0]["id"]), (6, Some(true), &json!(7)), "{channel}");
        assert_eq!(offsets(&answers[1..]), [7, 8, 9, 10], "{channel}: none skipped, none doubled");
        assert_eq!(world.hub.members(channel), members + 1);
        let gone = world.ask(ann, &json!({"type": "unsubscribe", "data": {"channel": channel}}).to_string());
        assert_eq!(gone[0]["type"], "unsubscription_confirmed");
        assert_eq!(world.hub.members(channel), members);
    }
}

#[test]
fn a_second_subscribe_without_a_whole_position_replays_nothing_and_events_go_on() {
    for channel in CHANNELS {
        let mut world = World::new(1);
        publish(&mut world, channel, 6);
        let ann = world.connect(0, "ann");
        subscribe(&mut world, ann, &json!({"channel": channel}));
        for (with, recovered) in [
            (json!({"channel": channel}), None),
            (json!({"channel": channel, "last": 4}), None),
            (json!({"channel": channel, "position": {"offset": 2, "epoch": "another"}}), Some(false)),
        ] {
            let answers = subscribe(&mut world, ann, &with);
            assert_eq!((answers.len(), told(&answers[0])), (1, (6, 6, recovered, 0)), "{with}");
        }
        publish(&mut world, channel, 1);
        assert_eq!(offsets(&world.take_json(ann)), [7]);
    }
}

#[test]
fn a_second_subscribe_in_mid_replay_tells_how_far_the_replay_has_come() {
    let mut world = narrow();
    publish(&mut world, "conversation:1", 40);
    let ann = world.connect(0, "ann");
    world.limit(ann, Some(700));
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "last": 40}}));
    world.run();
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}, "id": 8}));
    world.run();
    world.open_up(ann);
    let got = world.take_json(ann);
    let second = got.iter().position(|frame| frame["id"] == 8).expect("it is confirmed");
    let (before, head, recovered, replayed) = told(&got[second]);
    assert!(before < 40, "the replay has not ended: {before}");
    assert_eq!((head, recovered, replayed), (40, None, 40 - before));
    assert_eq!(offsets(&got[..second]).last(), Some(&before), "what came before it ends there");
    assert_eq!(offsets(&got), (1..=40).collect::<Vec<u64>>(), "nothing is skipped, nothing doubled");
}

#[test]
fn a_second_subscribe_with_a_position_takes_the_place_of_the_replay_under_way() {
    for (position, recovered) in [((2, "log-epoch"), true), ((2, "another"), false)] {
        for steps_before in 0..4 {
            let mut world = narrow();
            publish(&mut world, "conversation:1", 40);
            let ann = world.connect(0, "ann");
            world.limit(ann, Some(700));
            world.log_stands = true;
            world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "last": 40}}));
            world.run();
            for _ in 0..steps_before {
                // A page of the first replay may be on its way, or not.
                world.step_log();
            }
            let asked = json!({"offset": position.0, "epoch": position.1});
            let data = json!({"channel": "conversation:1", "position": asked});
            world.send(ann, &json!({"type": "subscribe", "data": data, "id": 8}));
            world.run();
            world.log_stands = false;
            world.publish("conversation:1", "e", &json!(41));
            world.open_up(ann);
            let got = world.take_json(ann);
            let second = got.iter().position(|frame| frame["id"] == 8).expect("it is confirmed");
            let (before, _, said, _) = told(&got[second]);
            assert_eq!((before, said), (if recovered { 2 } else { 40 }, Some(recovered)));
            assert_eq!(offsets(&got[second..]), (before + 1..=41).collect::<Vec<u64>>());
            let first = offsets(&got[..second]);
            assert_eq!(first, (1..=first.len() as u64).collect::<Vec<u64>>());
        }
    }
}

#[test]
fn subscribing_again_and_again_asks_the_log_for_one_page_at_a_time() {
    let mut world = narrow();
    publish(&mut world, "conversation:1", 40);
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    world.log_stands = true;
    for _ in 0..50 {
        let data = json!({"channel": "conversation:1", "position": {"offset": 0, "epoch": "log-epoch"}});
        world.send(ann, &json!({"type": "subscribe", "data": data}));
        world.run();
    }
    assert!(world.step_log(), "a page was asked for");
    assert!(!world.step_log(), "and no more");
    world.log_stands = false;
    world.run();
    assert_eq!(offsets(&world.take_json(ann)), (1..=40).collect::<Vec<u64>>());
}

/// What a subscribe with a position is told: recovered, and the offsets that follow.
fn recover(world: &mut World, offset: u64, epoch: &Value) -> (bool, Vec<u64>) {
    let ann = world.connect(0, "ann");
    let position = json!({"offset": offset, "epoch": epoch});
    let answers = subscribe(world, ann, &json!({"channel": "conversation:1", "position": position}));
    let data = json!({"channel": "conversation:1", "position": position, "limit": 1000});
    let history = world.ask(ann, &json!({"type": "history", "data": data}).to_string()).remove(0);
    let recovered = answers[0]["data"]["recovered"].as_bool().unwrap();
    if recovered {
        assert_eq!(history["type"], "history", "{offset} {epoch}");
        assert_eq!(offsets(history["data"]["events"].as_array().unwrap()), offsets(&answers[1..]));
        assert_eq!(history["data"]["position"]["epoch"], answers[0]["data"]["position"]["epoch"]);
    } else {
        assert_eq!(history["data"]["code"], "not_recoverable", "{offset} {epoch}: one rule for both");
    }
    world.cut(ann);
    (recovered, offsets(&answers[1..]))
}

#[test]
fn a_restart_recovers_and_names_its_own_term() {
    let mut world = World::new(1);
    publish(&mut world, "conversation:1", 10);
    let mut epochs = vec![epoch_of(&mut world, "conversation:1")];
    for start in 1..4_u64 {
        world = World::with(&world::options(), 1, world.store.clone());
        epochs.push(epoch_of(&mut world, "conversation:1"));
        assert_ne!(epochs[start as usize], epochs[start as usize - 1]);
        // Nothing is appended in the second term.
        if start != 1 {
            publish(&mut world, "conversation:1", 5);
        }
    }
    for (term, (offset, recovered)) in
        [(0, (10, true)), (0, (11, false)), (1, (10, true)), (2, (15, true)), (2, (16, false)), (3, (20, true))]
    {
        let follows = if recovered { (offset + 1..=20).collect() } else { Vec::new() };
        assert_eq!(recover(&mut world, offset, &epochs[term]), (recovered, follows), "{term} {offset}");
    }
}

#[test]
fn a_restored_copy_is_noticed_also_where_it_has_passed_the_number() {
    let mut world = World::new(1);
    publish(&mut world, "conversation:1", 7);
    let first = epoch_of(&mut world, "conversation:1");
    let copy = world.store.clone();
    publish(&mut world, "conversation:1", 3);
    world = World::with(&world::options(), 1, world.store.clone());
    let second = epoch_of(&mut world, "conversation:1");
    publish(&mut world, "conversation:1", 1);
    assert_eq!(recover(&mut world, 11, &second), (true, vec![]));

    let mut world = World::with(&world::options(), 1, copy);
    assert_eq!(recover(&mut world, 5, &first), (true, vec![6, 7]), "below the copy all is as it was");
    assert_eq!(recover(&mut world, 10, &first), (false, vec![]), "above its head");
    publish(&mut world, "conversation:1", 5);
    assert_eq!(recover(&mut world, 7, &first), (true, vec![8, 9, 10, 11, 12]), "the last that both have");
    for offset in [8, 10, 12] {
        assert_eq!(recover(&mut world, offset, &first), (false, vec![]), "{offset} is another event now");
    }
    assert_eq!(recover(&mut world, 11, &second), (false, vec![]), "that term is none of the copy's");
    assert_eq!(recover(&mut world, 3, &second), (false, vec![]));
}
