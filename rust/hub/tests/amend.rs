//! Events that amend earlier ones, and events that Python hears.

mod world;

use realtime_hub::{Command, Event, Publish};
use serde_json::{Value, json};
use world::{Store, World};

fn subscribe(world: &mut World, client: usize, data: &Value) -> Vec<Value> {
    world.ask(client, &json!({"type": "subscribe", "data": data}).to_string())
}

fn events(frames: &[Value]) -> Vec<(u64, String, Value)> {
    let is_event = |frame: &&Value| frame["offset"].is_u64();
    let event = |frame: &Value| {
        (frame["offset"].as_u64().unwrap(), frame["type"].as_str().unwrap().to_owned(), frame["data"].clone())
    };
    frames.iter().filter(is_event).map(event).collect()
}

fn outcomes(world: &mut World) -> Vec<Result<u64, &'static str>> {
    let outcome = |event| match event {
        Event::Published { outcome, .. } => Some(outcome.map(|published| published.offset)),
        _ => None,
    };
    world.take_events().into_iter().filter_map(outcome).collect()
}

fn listening(patterns: &[&str]) -> World {
    let mut options = world::options();
    options["listen"] = json!(patterns);
    World::with(&options, 2, Store::default())
}

#[test]
fn an_amendment_is_an_event_of_its_own_and_who_comes_later_gets_the_new_data() {
    let mut world = World::new(2);
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    for n in 1..=3 {
        world.publish("conversation:1", "e", &json!(n));
    }
    world.amend("conversation:1", &json!("edit"), 2, Some(&json!("two")), false);
    world.run();
    let live = [(1, "e"), (2, "e"), (3, "e"), (4, "amended")];
    let live: Vec<_> = live.into_iter().zip([json!(1), json!(2), json!(3), json!("edit")]).collect();
    let expected: Vec<_> =
        live.iter().map(|((offset, kind), data)| (*offset, (*kind).to_owned(), data.clone())).collect();
    assert_eq!(events(&world.take_json(ann)), expected);
    let now = [(1, json!(1)), (2, json!("two")), (3, json!(3)), (4, json!("edit"))];
    let bob = world.connect(1, "bob");
    let from_ring = subscribe(&mut world, bob, &json!({"channel": "conversation:1", "last": 4}));
    // Another start has nothing in memory: the same comes from the log.
    let mut again = World::with(&world::options(), 1, world.store.clone());
    let carl = again.connect(0, "carl");
    let from_log = subscribe(&mut again, carl, &json!({"channel": "conversation:1", "last": 4}));
    for frames in [from_ring, from_log] {
        let got: Vec<_> = events(&frames).into_iter().map(|(offset, _, data)| (offset, data)).collect();
        assert_eq!(got, now);
    }
}

#[test]
fn erased_data_is_nowhere_any_more() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    subscribe(&mut world, ann, &json!({"channel": "conversation:1"}));
    world.publish("conversation:1", "e", &json!("secret"));
    world.amend("conversation:1", &json!("secret edit"), 1, Some(&json!("secret, edited")), false);
    world.amend("conversation:1", &json!("deleted"), 1, Some(&json!(null)), true);
    world.run();
    assert_eq!(outcomes(&mut world), [Ok(2), Ok(3)]);
    world.take(ann);
    for answers in [world.ask(ann, r#"{"type":"history","data":{"channel":"conversation:1"}}"#), {
        let bob = world.connect(0, "bob");
        subscribe(&mut world, bob, &json!({"channel": "conversation:1", "last": 9}))
    }] {
        let told = serde_json::to_string(&answers).unwrap();
        assert!(!told.contains("secret") && told.contains("deleted"), "{told}");
    }
}

#[test]
fn what_amends_nothing_is_refused_and_the_rest_goes_on() {
    let mut world = World::new(1);
    world.amend("conversation:1", &json!("x"), 1, None, false);
    world.publish("conversation:1", "e", &json!(1));
    world.amend("conversation:1", &json!("x"), 1, Some(&json!("one")), false);
    world.amend("news:1", &json!("x"), 1, None, false);
    world.amend("ring:1", &json!("x"), 1, None, false);
    world.amend("conversation:1", &json!("x"), 1, Some(&json!("x".repeat(2 << 20))), false);
    world.run();
    let mut all = outcomes(&mut world);
    all.sort_unstable();
    assert_eq!(all, [Ok(2), Err("not_found"), Err("not_found"), Err("not_found"), Err("too_large")]);
}

#[test]
fn the_request_goes_along_with_the_event_live_and_replayed() {
    for channel in ["conversation:1", "ring:1"] {
        let mut world = World::new(1);
        let ann = world.connect(0, "ann");
        subscribe(&mut world, ann, &json!({"channel": channel}));
        let event = Publish { request: Some("r\"1".into()), ..world.event(channel, "e", &json!(1)) };
        world.submit(Command::Publish(event));
        world.run();
        let bob = world.connect(0, "bob");
        let replayed = subscribe(&mut world, bob, &json!({"channel": channel, "last": 1}));
        for frames in [world.take_json(ann), replayed] {
            assert_eq!(frames.last().unwrap()["requestId"], "r\"1");
        }
    }
}

#[test]
fn python_hears_every_event_of_a_channel_once_and_in_its_order() {
    let mut world = listening(&["conversation:*", "news:*", "ring:*"]);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    for client in [ann, bob] {
        subscribe(&mut world, client, &json!({"channel": "conversation:a"}));
    }
    for channel in ["conversation:a", "news:a", "ring:a"] {
        for n in 0..3 {
            world.publish(channel, "e", &json!(n));
            world.send(ann, &json!({"type": "publish", "data": {"channel": channel, "event": "c", "data": n}}));
        }
    }
    world.send(ann, &json!({"type": "typing_start", "data": {"conversationId": "a"}}));
    world.run();
    world.advance(31_000);
    let frames = world.take_json(bob);
    let told: Vec<Value> = frames.into_iter().filter(|frame| frame["type"] != "subscription_confirmed").collect();
    let heard = world.take_heard();
    let of = |channel: &str| -> Vec<Value> {
        heard.iter().filter(|(name, _)| name == channel).map(|(_, frame)| frame.clone()).collect()
    };
    assert_eq!(of("conversation:a"), told, "as a subscriber gets it, the end of the typing too");
    assert_eq!(told.len(), 8);
    assert_eq!((of("news:a").len(), of("ring:a").len()), (6, 6), "without a subscriber too");
    assert_eq!(heard.len(), 20);
}

#[test]
fn channels_that_nobody_is_in_are_heard_and_not_kept() {
    let mut world = listening(&["conversation:*", "news:*"]);
    for n in 0..5 {
        world.publish(&format!("news:{n}"), "e", &json!(n));
        world.publish(&format!("conversation:{n}"), "e", &json!(n));
    }
    world.run();
    assert_eq!((world.take_heard().len(), world.hub.channels()), (10, 0));
    world.publish("strict:1", "e", &json!(1));
    assert_eq!(world.take_heard(), []);
}

#[test]
fn what_waits_for_a_head_is_bounded_in_bytes() {
    let mut options = world::options();
    options["listen"] = json!(["conversation:a"]);
    options["relays"] =
        json!([{"type": "draw", "channel": "conversation:a", "event": "drawn", "data": {"d": "{data.d}"}}]);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:a"}}));
    let drawing = "x".repeat(400 << 10);
    for _ in 0..5 {
        world.send(ann, &json!({"type": "draw", "data": {"d": drawing}}));
    }
    world.log_stands = false;
    world.run();
    assert_eq!(world.take_heard().len(), 5);
    let drawn = world.take_json(ann).iter().filter(|frame| frame["type"] == "drawn").count();
    assert_eq!(drawn, 2, "what is more than 1 MiB is dropped, as for any reader that is too slow");
}
