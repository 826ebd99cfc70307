//! Nothing is lost in silence: what a replaying member misses, a log that numbers otherwise, and lists that are cut.

mod world;

use realtime_hub::{Command, Event};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use world::World;

fn subscribe(channel: &str) -> Value {
    json!({"type": "subscribe", "id": 1, "data": {"channel": channel, "position": {"offset": 0, "epoch": "log-epoch"}}})
}

fn typing(world: &mut World, client: usize, conversation: &str) {
    world.send(client, &json!({"type": "typing_start", "data": {"conversationId": conversation}}));
}

/// Types in order; an event with an offset by that.
fn told(frames: &[Value]) -> Vec<String> {
    let word = |frame: &Value| match frame["offset"].as_u64() {
        Some(offset) => offset.to_string(),
        None => frame["type"].as_str().unwrap_or_default().to_owned(),
    };
    frames.iter().map(word).collect()
}

fn count(world: &World, counter: fn(&realtime_hub::Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
    counter(world.hub.counters()).load(Ordering::Relaxed)
}

fn warnings(world: &World) -> Vec<&str> {
    let lines = world.events.iter().filter_map(|event| match event {
        Event::Warned { message } => Some(&**message),
        _ => None,
    });
    lines.collect()
}

/// A world whose hub knows of a gap in `conversation:1`, and a member there whose shard has not heard of it.
fn before_a_gap() -> (World, usize) {
    let mut world = World::new(1);
    world.publish("conversation:1", "e", &json!(1));
    world.run();
    let ann = world.connect(0, "ann");
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
    world.run();
    world.take_json(ann);
    world.store.set_head("conversation:1", 7);
    world.publish("conversation:1", "e", &json!(2));
    world.step_log();
    (world, ann)
}

/// A conversation of 40 events on two shards: ann subscribes to it and waits for a page of the log, bob is there.
fn amid_a_replay() -> (World, usize, usize) {
    let mut world = World::new(2);
    for n in 0..40 {
        world.publish("conversation:1", "e", &json!(n));
    }
    world.run();
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    world.log_stands = true;
    world.send(ann, &subscribe("conversation:1"));
    world.run();
    world.step_log();
    world.run();
    (world, ann, bob)
}

#[test]
fn volatile_events_that_a_replaying_member_misses_are_told_by_lag_before_the_first_live_event() {
    let (mut world, ann, bob) = amid_a_replay();
    for _ in 0..3 {
        typing(&mut world, bob, "1");
        world.run();
    }
    world.log_stands = false;
    world.run();
    let frames = world.take_json(ann);
    let mut expected = vec!["subscription_confirmed".to_owned()];
    expected.extend((1..=40).map(|offset| offset.to_string()));
    expected.push("lag".into());
    assert_eq!(told(&frames), expected);
    let lag = frames.last().unwrap();
    assert_eq!(
        (&lag["data"], &lag["channel"]),
        (&json!({"channel": "conversation:1", "skipped": 3}), &json!("conversation:1"))
    );
    assert_eq!(count(&world, |counters| &counters.dropped_replaying), 3);
    // It was told once, and she is live.
    typing(&mut world, bob, "1");
    world.publish("conversation:1", "e", &json!(40));
    world.run();
    assert_eq!(told(&world.take_json(ann)), ["typing_indicator", "41"]);
}

#[test]
fn volatile_events_beyond_what_waits_for_the_log_are_told_by_lag() {
    let mut world = World::new(2);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    world.log_stands = true;
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
    world.run();
    for _ in 0..1_100 {
        typing(&mut world, bob, "1");
    }
    world.run();
    world.log_stands = false;
    world.run();
    let frames = world.take_json(ann);
    let heard = frames.iter().filter(|frame| frame["type"] == "typing_indicator").count();
    let lags: Vec<&Value> = frames.iter().filter(|frame| frame["type"] == "lag").collect();
    assert_eq!(lags.len(), 1);
    assert_eq!(heard as u64 + lags[0]["data"]["skipped"].as_u64().unwrap(), 1_100);
    assert_eq!(frames.last().unwrap()["type"], "lag", "it stands where they were dropped");
}

#[test]
fn an_event_behind_a_gap_reaches_nobody_as_if_nothing_were_missing() {
    for (moved_to, number) in [(5, 6), (0, 1)] {
        let mut world = World::new(2);
        world.publish("conversation:1", "e", &json!(1));
        world.publish("conversation:1", "e", &json!(2));
        world.run();
        let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
        for client in [ann, bob] {
            world.send(client, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
        }
        world.run();
        world.take_json(ann);
        world.take_json(bob);
        world.store.set_head("conversation:1", moved_to);
        // Two in one burst: the second follows the first, and both lie behind the gap.
        world.publish("conversation:1", "e", &json!(3));
        world.publish("conversation:1", "e", &json!(4));
        world.run();
        for client in [ann, bob] {
            let frames = world.take_json(client);
            assert_eq!(told(&frames), ["unsubscribed"]);
            let data = json!({"channel": "conversation:1", "code": "not_recoverable", "retryable": true});
            assert_eq!(frames[0]["data"], data);
        }
        assert_eq!(world.hub.members("conversation:1"), 0);
        assert_eq!(count(&world, |counters| &counters.log_gaps), 1);
        let lines = warnings(&world);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("conversation:1") && lines[0].contains(&format!("number {number} ")), "{lines:?}");
        // Who comes back goes on from where the log is.
        world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
        world.run();
        world.publish("conversation:1", "e", &json!(5));
        world.run();
        let expected = [String::from("subscription_confirmed"), (number + 2).to_string()];
        assert_eq!(told(&world.take_json(ann)), expected);
    }
}

#[test]
fn a_subscribe_that_is_under_way_at_a_gap_is_answered_once_and_lasts() {
    let (mut world, ann) = before_a_gap();
    // Both commands come before the shard hears of the gap.
    world.send(ann, &json!({"type": "unsubscribe", "id": 1, "data": {"channel": "conversation:1"}}));
    world.send(ann, &json!({"type": "subscribe", "id": 2, "data": {"channel": "conversation:1"}}));
    world.run();
    let frames = world.take_json(ann);
    assert_eq!(told(&frames), ["unsubscription_confirmed", "subscription_confirmed"]);
    world.publish("conversation:1", "e", &json!(3));
    world.run();
    assert_eq!(told(&world.take_json(ann)), ["9"]);
    assert_eq!(world.hub.members("conversation:1"), 1);
}

#[test]
fn a_list_of_members_says_how_many_there_are_where_it_is_cut() {
    let mut world = World::new(1);
    let clients: Vec<usize> = (0..10_001)
        .map(|n| {
            let client = world.socket(0);
            let conn = world.clients[client].conn;
            world.shards[0].admit_as(conn, 0, &format!("u{n}"), None, false, world.now).unwrap();
            client
        })
        .collect();
    for client in clients {
        world.send(client, &json!({"type": "subscribe", "data": {"channel": "news:1"}}));
    }
    world.run();
    world.submit(Command::Members { ticket: 7, channel: "news:1".into() });
    world.run();
    let lists = world.events.iter().filter_map(|event| match event {
        Event::Members { ticket: 7, conns, total, parts: 1 } => Some((conns.len(), *total)),
        _ => None,
    });
    assert_eq!(lists.collect::<Vec<_>>(), [(10_000, 10_001)]);
}

#[test]
fn a_second_subscribe_that_meets_a_gap_is_answered_and_may_be_tried_again() {
    let (mut world, ann) = before_a_gap();
    world.send(ann, &json!({"type": "subscribe", "id": 1, "data": {"channel": "conversation:1"}}));
    world.run();
    let frames = world.take_json(ann);
    assert_eq!(told(&frames), ["unsubscribed", "error"]);
    assert_eq!((&frames[1]["id"], &frames[1]["data"]["retryable"]), (&json!(1), &json!(true)));
    world.send(ann, &json!({"type": "subscribe", "id": 2, "data": {"channel": "conversation:1"}}));
    world.publish("conversation:1", "e", &json!(3));
    world.run();
    assert_eq!(told(&world.take_json(ann)), ["subscription_confirmed", "9"]);
}

#[test]
fn a_replay_that_a_second_subscribe_ends_tells_what_was_missed() {
    let (mut world, ann, bob) = amid_a_replay();
    typing(&mut world, bob, "1");
    world.run();
    let position = json!({"offset": 40, "epoch": "log-epoch"});
    world
        .send(ann, &json!({"type": "subscribe", "id": 2, "data": {"channel": "conversation:1", "position": position}}));
    world.log_stands = false;
    world.run();
    let frames = told(&world.take_json(ann));
    assert_eq!(frames, ["subscription_confirmed", "subscription_confirmed", "lag"]);
}
