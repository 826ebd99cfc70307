//! What waits for the log, the channels in memory and the states they keep are bounded in bytes, and charged to whoever
//! causes them: one user who takes all that there is holds nobody else up.

mod world;

use realtime_hub::{Command, Event, Hub, Options, Publish};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Nowhere, Store, World};

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = json!({
        "publication_bytes_max": 10_000, "log_queue_bytes_max": 100_000,
        "commands_per_s": 100_000, "commands_burst": 100_000, "user_commands_per_s": 0, "user_relays_per_s": 0,
        "relays_per_s": 100_000, "relays_burst": 100_000,
    });
    for (name, value) in limits.as_object().unwrap() {
        options["limits"][name] = value.clone();
    }
    options["policies"] = json!([
        {"pattern": "conversation:*", "durable": true, "history": 8},
        {"pattern": "ring:*", "history": 4},
        {"pattern": "news:*", "retain_latest": 100},
    ]);
    World::with(&options, 2, Store::default())
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn queued(world: &World) -> u64 {
    read(&world.hub.counters().log_queue_bytes)
}

/// Python publishes an event of a user's with so many bytes; whether it was taken.
fn store(world: &mut World, user: Option<&str>, bytes: usize) -> bool {
    let event = world.event("conversation:1", "e", &json!("x".repeat(bytes)));
    world.submit(Command::Publish(Publish { user: user.map(Into::into), notify: true, ..event }));
    let refused = |event: &Event| matches!(event, Event::Published { outcome: Err("overloaded"), .. });
    !world.take_events().iter().any(refused)
}

fn publish(channel: &str, id: usize, bytes: usize) -> Value {
    json!({"type": "publish", "id": id, "data": {"channel": channel, "event": "e", "data": "x".repeat(bytes)}})
}

fn subscribe(world: &mut World, client: usize, channel: &str) -> Value {
    world.ask(client, &json!({"type": "subscribe", "data": {"channel": channel}}).to_string()).remove(0)
}

#[test]
fn a_user_has_half_of_what_waits_for_the_log_and_others_find_room() {
    let mut world = limited(&json!({}));
    world.log_stands = true;
    let mut taken = 0;
    while store(&mut world, Some("greedy"), 1_000) {
        taken += 1;
    }
    assert!((45_000..=50_000).contains(&queued(&world)), "{taken} events are {} bytes", queued(&world));
    assert!(!store(&mut world, Some("greedy"), 1_000));
    assert_eq!(read(&world.hub.counters().log_queue_refused), 2);
    assert!(store(&mut world, Some("ann"), 1_000), "another user");
    assert!(store(&mut world, None, 1_000), "the app itself");
    world.log_stands = false;
    world.run();
    assert_eq!((queued(&world), world.store.head("conversation:1")), (0, taken + 2));
    world.log_stands = true;
    world.take_events();
    assert!(store(&mut world, Some("greedy"), 1_000), "what is stored is free again");
}

#[test]
fn however_many_users_fill_the_queue_it_keeps_its_limit_and_a_newcomer_finds_room() {
    let mut world = limited(&json!({}));
    world.log_stands = true;
    for round in 0..20 {
        for user in 0..30 {
            store(&mut world, Some(&format!("greedy-{user}")), 500 + round * 100);
        }
        assert!(queued(&world) <= 100_000);
    }
    assert!(store(&mut world, Some("new"), 300), "{} bytes are taken", queued(&world));
}

#[test]
fn what_is_over_the_limit_of_the_queue_is_refused_also_without_shares() {
    let mut world = limited(&json!({"enabled": false}));
    world.log_stands = true;
    let mut taken = 0;
    while store(&mut world, Some("load-test"), 1_000) {
        taken += 1;
    }
    assert!((95_000..=100_000).contains(&queued(&world)), "{taken} events are {} bytes", queued(&world));
}

#[test]
fn who_has_much_with_the_log_is_not_read_on_and_loses_nothing() {
    let mut world = limited(&json!({}));
    let ann = world.connect(0, "ann");
    let bob = world.connect(0, "bob");
    world.log_stands = true;
    for id in 0..40 {
        world.send(ann, &publish("conversation:1", id, 3_000));
    }
    world.run();
    let held = queued(&world);
    assert!((10_000..20_000).contains(&held), "an eighth of the queue, and the event that passed it: {held} bytes");
    world.send(bob, &publish("conversation:2", 0, 3_000));
    world.run();
    assert!(queued(&world) > held, "others are read");
    world.log_stands = false;
    world.run();
    let acks: Vec<Value> = world.take_json(ann);
    let ids: Vec<u64> = acks.iter().filter_map(|ack| ack["id"].as_u64()).collect();
    assert_eq!(ids, (0..40).collect::<Vec<u64>>(), "all is stored, in order");
    assert!(acks.iter().all(|ack| ack["type"] == "ack"));
    assert_eq!((queued(&world), read(&world.hub.counters().log_queue_refused)), (0, 0));
}

#[test]
fn a_refused_publish_says_when_to_come_back() {
    let mut world = limited(&json!({}));
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    while store(&mut world, Some("ann"), 1_000) {}
    world.send(ann, &publish("conversation:1", 7, 1_000));
    world.run();
    let error = world.take_json(ann).remove(0);
    assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!(7)));
    let data = &error["data"];
    assert_eq!((&data["code"], &data["retryable"]), (&json!("overloaded"), &json!(true)));
    assert_eq!((&data["retryAfterMs"], &data["channel"]), (&json!(1_000), &json!("conversation:1")));
    world.log_stands = false;
    world.run();
    assert_eq!(world.ask(ann, &publish("conversation:1", 8, 1_000).to_string())[0]["type"], "ack", "it is read on");
}

#[test]
fn what_waits_for_a_channels_head_is_charged_and_given_back() {
    for fails in [false, true] {
        let mut world = limited(&json!({}));
        let ann = world.connect(0, "ann");
        // A connection has one page made at a time.
        let askers: Vec<usize> = (0..30).map(|id| world.connect(0, &format!("bob{id}"))).collect();
        world.log_stands = true;
        let mut world = world;
        world.log_fails = fails;
        for (id, asker) in askers.iter().enumerate() {
            let position = json!({"offset": 3, "epoch": "e".repeat(40_000)});
            let data = json!({"channel": format!("conversation:{id}"), "position": position});
            world.send(ann, &json!({"type": "subscribe", "id": id, "data": data}));
            world.send(
                *asker,
                &json!({"type": "history", "id": 100 + id, "data": {"channel": format!("conversation:{id}")}}),
            );
        }
        world.run();
        let held = queued(&world);
        assert!((30 * 2 * 256..100_000).contains(&held), "an epoch of 40,000 bytes is none of ours: {held} bytes");
        world.log_stands = false;
        world.run();
        assert_eq!(queued(&world), 0);
        let answers: Vec<_> = [ann].iter().chain(&askers).flat_map(|client| world.take_json(*client)).collect();
        assert_eq!(answers.len(), 60);
        if !fails {
            assert!(answers.iter().any(|answer| answer["data"]["recovered"] == false));
        }
    }
}

#[test]
fn too_many_commands_that_wait_for_a_head_are_answered() {
    let mut world = limited(&json!({"publication_bytes_max": 100, "log_queue_bytes_max": 8_000}));
    let ann = world.connect(0, "ann");
    world.log_stands = true;
    for id in 0..40 {
        world.send(ann, &json!({"type": "subscribe", "id": id, "data": {"channel": format!("conversation:{id}")}}));
    }
    world.run();
    let refused = world.take_json(ann);
    assert!(refused.len() > 10, "{} are refused", refused.len());
    assert!(refused.iter().all(|answer| answer["data"]["code"] == "overloaded"));
    assert!(queued(&world) <= 4_000);
    world.log_stands = false;
    world.run();
    assert_eq!(world.take_json(ann).len(), 40 - refused.len());
    assert_eq!(subscribe(&mut world, ann, "conversation:39")["type"], "subscription_confirmed");
}

#[test]
fn channels_have_a_limit_in_bytes_and_come_to_an_end() {
    let mut world = limited(&json!({"enabled": false, "channels_bytes_max": 20_000}));
    let ann = world.connect(0, "ann");
    let held = |world: &World| read(&world.hub.counters().channels_bytes);
    let mut count = 0;
    let refused = loop {
        let answer = subscribe(&mut world, ann, &format!("news:{count}"));
        if answer["type"] != "subscription_confirmed" {
            break answer;
        }
        count += 1;
    };
    assert_eq!(refused["data"]["code"], "overloaded");
    assert_eq!(refused["data"]["retryAfterMs"], 1_000);
    let one = held(&world) / count;
    assert!(held(&world) <= 20_000 && held(&world) + one > 20_000, "{count} channels are {} bytes", held(&world));
    assert_eq!(read(&world.hub.counters().channels_refused), 1);
    let history = world.ask(ann, &json!({"type": "history", "data": {"channel": "conversation:1"}}).to_string());
    assert_eq!(history[0]["data"]["code"], "overloaded");
    let kept = world.ask(ann, &publish("ring:1", 1, 10).to_string());
    assert_eq!(kept[0]["data"]["code"], "overloaded", "it would be a channel that keeps its past");
    let stored = world.ask(ann, &publish("conversation:1", 1, 10).to_string());
    assert_eq!(stored[0]["type"], "ack", "what is stored needs no channel in memory");
    world.ask(ann, &json!({"type": "unsubscribe", "data": {"channel": "news:0"}}).to_string());
    assert_eq!(subscribe(&mut world, ann, "news:again")["type"], "subscription_confirmed");
    world.cut(ann);
    world.run();
    assert_eq!((held(&world), world.hub.channels()), (0, 0));
}

#[test]
fn a_user_who_makes_channels_leaves_room_for_others() {
    let mut world = limited(&json!({"channels_bytes_max": 200_000}));
    let ann = world.connect(0, "ann");
    let taken = (0..200).filter(|n| subscribe(&mut world, ann, &format!("news:{n}"))["data"]["code"].is_null()).count();
    assert!((10..40).contains(&taken), "a ninth of the whole: {taken} channels");
    let bob = world.connect(1, "bob");
    for n in 0..10 {
        assert_eq!(subscribe(&mut world, bob, &format!("news:of-bob-{n}"))["type"], "subscription_confirmed");
    }
    assert_eq!(subscribe(&mut world, bob, "news:0")["type"], "subscription_confirmed", "of a channel that is there");
}

#[test]
fn a_channel_in_memory_that_nobody_uses_is_forgotten_and_a_position_of_it_says_so() {
    let mut options = world::options();
    options["idle_s"] = json!(12);
    let mut world = World::with(&options, 1, Store::default());
    let age = |world: &mut World| (0..16).for_each(|_| world.hub.age(world.now));
    let ann = world.connect(0, "ann");
    let epoch = subscribe(&mut world, ann, "ring:1")["data"]["position"]["epoch"].clone();
    world.publish("ring:1", "e", &json!(1));
    world.publish("ring:2", "e", &json!(1));
    world.advance(10_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 2);
    world.publish("ring:2", "e", &json!(2));
    world.advance(11_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 2, "one has a member, the other one an event");
    world.cut(ann);
    world.advance(1_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 1, "so long after its last event");
    world.advance(10_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 1, "not so long after a member was seen");
    world.advance(2_000);
    age(&mut world);
    assert_eq!(world.hub.channels(), 0);
    assert_eq!(read(&world.hub.counters().rings_bytes) + read(&world.hub.counters().channels_bytes), 0);
    let bob = world.connect(0, "bob");
    let position = json!({"offset": 1, "epoch": epoch});
    let data = json!({"channel": "ring:1", "position": position});
    let confirmed = world.ask(bob, &json!({"type": "subscribe", "data": data}).to_string()).remove(0);
    assert_eq!(confirmed["data"]["recovered"], false);
    assert_ne!(confirmed["data"]["position"]["epoch"], epoch, "it is another history");
}

#[test]
fn a_relay_that_lasts_is_charged_to_its_user_until_it_ends() {
    let mut world = limited(&json!({"retained_bytes_max": 10_000}));
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    let typing = |n: usize, kind: &str| json!({"type": kind, "data": {"conversationId": n.to_string()}}).to_string();
    for n in 0..12 {
        subscribe(&mut world, bob, &format!("conversation:{n}"));
    }
    world.take_json(bob);
    let refused: Vec<Value> = (0..12).flat_map(|n| world.ask(ann, &typing(n, "typing_start"))).collect();
    assert!((5..10).contains(&refused.len()), "a fifth of the whole: {} are refused", refused.len());
    assert!(refused.iter().all(|error| error["data"]["code"] == "overloaded"));
    assert_eq!(world.take_json(bob).len(), 12 - refused.len(), "nobody is told of what will not end");
    world.ask(ann, &typing(0, "typing_start"));
    assert_eq!(world.take_json(bob).len(), 1, "one that lasts already goes on");
    world.ask(ann, &typing(0, "typing_stop"));
    assert!(world.ask(ann, &typing(11, "typing_start")).is_empty(), "an end makes room");
    world.cut(ann);
    world.run();
    assert_eq!(read(&world.hub.counters().retained_bytes), 0);
}

#[test]
fn a_queue_that_holds_less_than_four_events_is_refused_at_the_start() {
    let mut options = world::options();
    options["limits"] = json!({"publication_bytes_max": 1_000, "log_queue_bytes_max": 4_000});
    let hub = |options: &Value| {
        let options = Options::from_json(options.to_string().as_bytes()).unwrap();
        Hub::new(&options, 1, Box::new(Nowhere), "e".into(), [0; 32])
    };
    assert!(hub(&options).is_ok());
    options["limits"]["log_queue_bytes_max"] = json!(3_999);
    assert!(hub(&options).unwrap_err().contains("log_queue_bytes_max=3999 holds less than 4 events"));
}

#[test]
fn what_lasts_in_a_channel_whose_head_cannot_be_read_is_given_back() {
    let mut world = limited(&json!({}));
    let ann = world.connect(0, "ann");
    let retained = |world: &World| read(&world.hub.counters().retained_bytes);
    (world.log_stands, world.log_fails) = (true, true);
    world.send(ann, &json!({"type": "subscribe", "data": {"channel": "conversation:1"}}));
    world.send(ann, &json!({"type": "typing_start", "data": {"conversationId": "1"}}));
    world.run();
    assert!(retained(&world) > 0);
    world.log_stands = false;
    world.run();
    assert_eq!(retained(&world), 0);
    world.send(ann, &json!({"type": "typing_stop", "data": {"conversationId": "1"}}));
    world.cut(ann);
    world.run();
    assert_eq!(retained(&world), 0);
}
