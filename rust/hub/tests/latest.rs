//! What late subscribers get: the newest event of each key, where the policy retains it.

mod world;

use realtime_hub::{Command, Hub, Options, Publish};
use serde_json::{Value, json};
use world::{Nowhere, Store, World};

fn retaining(changes: &Value) -> World {
    let mut options = world::options();
    options["policies"] = json!([
        {"pattern": "conversation:*", "durable": true, "history": 8, "retain_latest": 10},
        {"pattern": "news:*", "retain_latest": 2, "retain_latest_s": 60},
    ]);
    for (name, value) in changes.as_object().unwrap() {
        options[name] = value.clone();
    }
    World::with(&options, 2, Store::default())
}

fn state(world: &mut World, channel: &str, key: &str, data: &Value) {
    let event = world.event(channel, "state", data);
    world.submit(Command::Publish(Publish { key: Some(key.into()), ..event }));
}

fn subscribe(world: &mut World, client: usize, data: &Value) -> Vec<Value> {
    world.ask(client, &json!({"type": "subscribe", "data": data}).to_string())
}

/// What a member that comes now gets behind its confirmation.
fn late(world: &mut World, channel: &str) -> Vec<Value> {
    let client = world.connect(1, "late");
    let answers = subscribe(world, client, &json!({"channel": channel}));
    assert_eq!(answers[0]["type"], "subscription_confirmed");
    world.cut(client);
    answers[1..].iter().map(|event| event["data"].clone()).collect()
}

#[test]
fn who_comes_late_gets_the_newest_of_each_key_behind_the_confirmation() {
    let mut world = retaining(&json!({}));
    for (key, data) in [("a", 1), ("b", 2), ("a", 3)] {
        state(&mut world, "news:1", key, &json!(data));
    }
    world.publish("news:1", "state", &json!("without a key"));
    assert_eq!(late(&mut world, "news:1"), [json!(2), json!(3)]);
    state(&mut world, "news:1", "c", &json!(4));
    assert_eq!(late(&mut world, "news:1"), [json!(3), json!(4)], "two keys are retained");
}

#[test]
fn a_member_gets_each_state_once() {
    let mut world = retaining(&json!({}));
    state(&mut world, "news:1", "a", &json!(1));
    let ann = world.connect(0, "ann");
    assert_eq!(subscribe(&mut world, ann, &json!({"channel": "news:1"})).len(), 2);
    assert_eq!(subscribe(&mut world, ann, &json!({"channel": "news:1"})).len(), 1, "it is a member already");
    state(&mut world, "news:1", "a", &json!(2));
    world.run();
    let got: Vec<Value> = world.take_json(ann).iter().map(|event| event["data"].clone()).collect();
    assert_eq!(got, [json!(2)]);
}

#[test]
fn null_says_that_a_state_is_over_and_time_does() {
    let mut world = retaining(&json!({}));
    state(&mut world, "news:1", "a", &json!(1));
    state(&mut world, "news:1", "b", &json!(2));
    state(&mut world, "news:1", "a", &Value::Null);
    state(&mut world, "news:2", "a", &Value::Null);
    assert_eq!(world.hub.channels(), 1, "an end makes no channel");
    assert_eq!(late(&mut world, "news:1"), [json!(2)]);
    world.advance(59_000);
    assert_eq!(late(&mut world, "news:1"), [json!(2)]);
    world.advance(1_000);
    assert_eq!(late(&mut world, "news:1"), [] as [Value; 0]);
    assert_eq!(world.hub.channels(), 0);
}

#[test]
fn a_channel_that_nobody_asks_for_is_gone_with_its_states() {
    let mut world = retaining(&json!({}));
    for n in 0..100 {
        state(&mut world, &format!("news:{n}"), "a", &json!(n));
    }
    let age = |world: &mut World| (0..16).for_each(|_| world.hub.age(world.now));
    age(&mut world);
    assert_eq!(world.hub.channels(), 100);
    world.advance(60_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 0);
}

#[test]
fn a_relay_is_a_state_while_it_lasts() {
    let mut world = retaining(&json!({}));
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    let typing = |kind: &str| json!({"type": kind, "data": {"conversationId": "1"}}).to_string();
    world.ask(ann, &typing("typing_start"));
    assert_eq!(late(&mut world, "conversation:1"), [json!({"userId": "ann", "isTyping": true})]);
    world.ask(ann, &typing("typing_stop"));
    assert_eq!(late(&mut world, "conversation:1"), [] as [Value; 0]);
    world.ask(ann, &typing("typing_start"));
    world.cut(ann);
    assert_eq!(late(&mut world, "conversation:1"), [] as [Value; 0]);
}

#[test]
fn a_relay_into_a_channel_without_members_is_retained() {
    let mut world = retaining(&json!({"relays": [
        {"type": "here", "channel": "news:{data.n}", "event": "was_here", "data": {"at": "{data.n}"},
         "latest_by": "{session.user}"},
    ]}));
    let ann = world.connect(0, "ann");
    world.ask(ann, &json!({"type": "here", "data": {"n": 7}}).to_string());
    assert_eq!(late(&mut world, "news:7"), [json!({"at": 7})]);
}

#[test]
fn states_come_before_the_past_and_are_renewed_while_that_is_replayed() {
    // Nothing of the past is queued while so much waits.
    let mut world = retaining(&json!({"limits": {"enabled": false, "outbox_soft_bytes": 100}}));
    for n in 0..50 {
        world.publish("conversation:1", "e", &json!(n));
    }
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    let start = json!({"type": "typing_start", "data": {"conversationId": "1"}}).to_string();
    world.ask(ann, &start);
    let bob = world.connect(1, "bob");
    world.limit(bob, Some(0));
    world.send(bob, &json!({"type": "subscribe", "data": {"channel": "conversation:1", "last": 50}}));
    world.run();
    world.ask(ann, &json!({"type": "typing_stop", "data": {"conversationId": "1"}}).to_string());
    world.open_up(bob);
    let got = world.take_json(bob);
    let typing: Vec<&Value> =
        got.iter().filter(|e| e["type"] == "typing_indicator").map(|e| &e["data"]["isTyping"]).collect();
    assert_eq!(typing, [&json!(false)], "the newer one took its place");
    assert_eq!(got[1]["type"], "typing_indicator", "right behind the confirmation");
    let offsets: Vec<u64> = got.iter().filter_map(|event| event["offset"].as_u64()).collect();
    assert_eq!(offsets, (1..=50).collect::<Vec<u64>>());
}

#[test]
fn a_state_that_waits_for_the_head_is_had_once() {
    let mut world = retaining(&json!({}));
    world.publish("conversation:1", "e", &json!(0));
    world.run();
    let ann = world.connect(0, "ann");
    let subscribe = json!({"type": "subscribe", "data": {"channel": "conversation:1"}});
    let start = json!({"type": "typing_start", "data": {"conversationId": "1"}});
    world.send(ann, &subscribe);
    for _ in 0..3 {
        world.send(ann, &start);
    }
    world.run();
    let kinds: Vec<Value> = world.take_json(ann).iter().map(|frame| frame["type"].clone()).collect();
    assert_eq!(kinds, ["subscription_confirmed", "typing_indicator", "typing_indicator", "typing_indicator"]);
    assert_eq!(late(&mut world, "conversation:1").len(), 1);
}

#[test]
fn all_channels_together_retain_so_many_bytes() {
    let mut world = retaining(&json!({"limits": {"enabled": false, "retained_bytes_max": 1_000}}));
    for n in 0..20 {
        state(&mut world, &format!("news:{n}"), "a", &json!(n));
    }
    let held = (0..20).filter(|n| !late(&mut world, &format!("news:{n}")).is_empty()).count();
    assert!((2..8).contains(&held), "{held}");
    assert_eq!(world.hub.channels(), held, "what is not retained makes no channel");
    let counted: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    assert_eq!((&counted["retained"], &counted["retained_refused"]), (&json!(held), &json!(20 - held)));
}

#[test]
fn what_cannot_be_retained_is_refused_at_the_start() {
    for (wrong, told) in [
        (json!({"retain_latest": 1_001}), "retain_latest=1001 is not from 0 to 1000"),
        (json!({"retain_latest": 1, "retain_latest_s": 0}), "retain_latest_s=0 is not from 1"),
        (json!({"retain_latest": 1, "history": 5}), "history=5 numbers every event"),
    ] {
        let mut options = world::options();
        options["policies"] = json!([{"pattern": "a:*"}]);
        options["policies"][0].as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let options = Options::from_json(options.to_string().as_bytes()).unwrap();
        let hub = Hub::new(&options, 1, Box::new(Nowhere), "e".into(), [0; 32]);
        assert!(hub.unwrap_err().contains(told), "{told}");
    }
}

#[test]
fn a_member_that_leaves_and_comes_back_gets_what_is_new_behind_its_confirmation() {
    for renews_in_the_same_turn in [true, false] {
        let mut world = retaining(&json!({"limits": {"enabled": false, "outbox_soft_bytes": 1}}));
        let ann = world.connect(0, "ann");
        subscribe(&mut world, ann, &json!({"channel": "news:1"}));
        // Its socket takes no more, as is found out by the turn in which it left and came back.
        world.limit(ann, Some(0));
        let event = world.event("news:1", "state", &json!(1));
        world.submit(Command::Publish(Publish { key: Some("a".into()), ..event }));
        for kind in ["unsubscribe", "subscribe"] {
            world.send(ann, &json!({"type": kind, "data": {"channel": "news:1"}}));
        }
        if !renews_in_the_same_turn {
            world.run();
        }
        let event = world.event("news:1", "state", &json!(2));
        world.submit(Command::Publish(Publish { key: Some("a".into()), ..event }));
        world.run();
        world.open_up(ann);
        world.run();
        let frames = world.take_json(ann);
        let confirmed = frames.iter().position(|frame| frame["type"] == "subscription_confirmed").unwrap();
        let newest = frames.iter().rposition(|frame| frame["data"] == 2).unwrap();
        assert!(newest > confirmed, "{frames:?}");
    }
}
