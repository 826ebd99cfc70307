//! What waits for a shard is bounded in bytes: publishers are held above 4 MiB, and refused above 8 MiB.

mod world;

use realtime_hub::{Command, Event, Publish};
use serde_json::{Value, json};
use world::{Got, Store, World};

const SOFT_BYTES: usize = 4 << 20;
const HARD_BYTES: usize = 8 << 20;
/// Bytes of the data of one event here, and what it takes in an inbox at most.
const DATA_BYTES: usize = 50_000;
const EVENT_BYTES: usize = DATA_BYTES + 1_000;

/// Shard 1 has the subscriber and takes nothing until it is run.
fn with_member(channel: &str) -> (World, usize) {
    let mut options = world::options();
    options["limits"] = json!({"enabled": false, "publication_bytes_max": 100_000});
    let mut world = World::with(&options, 2, Store::default());
    let member = world.connect(1, "bob");
    world.send(member, &json!({"type": "subscribe", "data": {"channel": channel}}));
    world.run();
    world.take(member);
    (world, member)
}

fn stat(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

fn reads(world: &mut World, client: usize) -> bool {
    let (shard, conn) = (world.clients[client].shard, world.clients[client].conn);
    world.shards[shard].pause_unless_readable(conn)
}

/// A client publishes an event of some 50,000 bytes that says a number; only shard 0 runs.
fn publish(world: &mut World, client: usize, channel: &str, number: usize) {
    let data = json!({"n": number, "text": "x".repeat(DATA_BYTES)});
    world.send(
        client,
        &json!({"id": number, "type": "publish",
        "data": {"channel": channel, "event": "told", "data": data}}),
    );
    world.turn(0);
}

fn numbers(got: &[Got]) -> Vec<u64> {
    let told = |got: &Got| match got {
        Got::Json(json) if json["type"] == "told" => json["data"]["n"].as_u64(),
        _ => None,
    };
    got.iter().filter_map(told).collect()
}

fn errors(got: &[Got]) -> Vec<&Value> {
    got.iter()
        .filter_map(|got| if let Got::Json(json) = got { Some(json) } else { None })
        .filter(|json| json["type"] == "error")
        .collect()
}

/// Publishes until the connection is not read any more; how many events that took.
fn fill(world: &mut World, client: usize, channel: &str) -> usize {
    let mut count = 0;
    while reads(world, client) {
        assert!(world.hub.inboxes_bytes() < HARD_BYTES, "{count} events are not too many");
        publish(world, client, channel, count);
        count += 1;
    }
    count
}

#[test]
fn who_publishes_faster_than_a_shard_takes_is_not_read_until_the_shard_has_taken_it() {
    let (mut world, member) = with_member("news:1");
    let (ann, other) = (world.connect(0, "ann"), world.connect(0, "eve"));
    let count = fill(&mut world, ann, "news:1");
    let bytes = world.hub.inboxes_bytes();
    assert!((SOFT_BYTES..SOFT_BYTES + 2 * EVENT_BYTES).contains(&bytes), "{bytes}");
    assert!(world.hub.has_full_inbox() && !reads(&mut world, ann));
    assert!(reads(&mut world, other), "it has published nothing");
    assert_eq!((stat(&world, "inboxes_pauses"), stat(&world, "inboxes_refused")), (1, 0));
    world.run();
    assert!(!world.hub.has_full_inbox() && reads(&mut world, ann));
    assert_eq!(numbers(&world.take(member)), (0..count as u64).collect::<Vec<_>>());
    assert_eq!(world.hub.inboxes_bytes(), 0);
}

#[test]
fn what_came_in_one_read_with_the_event_that_was_too_much_waits() {
    let (mut world, _) = with_member("news:1");
    let ann = world.connect(0, "ann");
    for number in 0..200 {
        publish(&mut world, ann, "news:1", number);
    }
    assert!(world.hub.inboxes_bytes() < SOFT_BYTES + 2 * EVENT_BYTES, "{}", world.hub.inboxes_bytes());
    world.run();
    assert_eq!(stat(&world, "publications"), 200, "none is lost");
}

#[test]
fn of_many_publishers_those_above_the_bound_are_refused_and_may_try_again() {
    let (mut world, member) = with_member("news:1");
    let ann = world.connect(0, "ann");
    let clients: Vec<usize> = (0..120).map(|n| world.connect(0, &format!("u{n}"))).collect();
    let count = fill(&mut world, ann, "news:1");
    for (number, client) in clients.iter().enumerate() {
        publish(&mut world, *client, "news:1", count + number);
    }
    let bytes = world.hub.inboxes_bytes();
    assert!((HARD_BYTES..HARD_BYTES + 2 * EVENT_BYTES).contains(&bytes), "{bytes}");
    world.run();
    let told = numbers(&world.take(member)).len();
    let refused: Vec<Got> = clients.iter().flat_map(|client| world.take(*client)).collect();
    let refused = errors(&refused);
    assert_eq!(told + refused.len(), count + clients.len());
    assert!(refused.len() > 10 && refused.len() as u64 == stat(&world, "inboxes_refused"));
    for error in refused {
        assert_eq!((&error["data"]["code"], &error["data"]["retryable"]), (&json!("overloaded"), &json!(true)));
    }
    assert!(clients.iter().all(|client| reads(&mut world, *client)));
    publish(&mut world, clients[0], "news:1", 999);
    world.run();
    assert_eq!(numbers(&world.take(member)), [999]);
}

#[test]
fn a_relay_is_held_and_refused_as_an_event_is() {
    let (mut world, _) = with_member("conversation:1");
    let (ann, eve) = (world.connect(0, "ann"), world.connect(0, "eve"));
    for _ in 0..150 {
        let data = json!({"n": 1, "text": "x".repeat(DATA_BYTES)});
        let event = world.event("conversation:1", "told", &data);
        world.submit(Command::Publish(Publish { notify: true, ..event }));
        while world.step_log() {}
    }
    assert!(world.hub.inboxes_bytes() > SOFT_BYTES);
    world.send(ann, &json!({"id": 1, "type": "typing_start", "data": {"conversationId": "1"}}));
    assert!(!reads(&mut world, ann), "it is held");
    for _ in 0..150 {
        let data = json!({"n": 1, "text": "x".repeat(DATA_BYTES)});
        let event = world.event("conversation:1", "told", &data);
        world.submit(Command::Publish(Publish { notify: true, ..event }));
        while world.step_log() {}
    }
    world.send(eve, &json!({"id": 1, "type": "typing_start", "data": {"conversationId": "1"}}));
    world.turn(0);
    world.receive(eve);
    let got = world.take(eve);
    assert_eq!(errors(&got)[0]["data"]["code"], "overloaded");
    world.run();
    assert!(reads(&mut world, ann));
}

#[test]
fn the_app_is_told_to_wait_and_above_the_bound_its_events_are_dropped_and_their_readers_told() {
    let (mut world, member) = with_member("news:1");
    let data = json!({"n": 1, "text": "x".repeat(DATA_BYTES)});
    let mut count = 0;
    while !world.hub.has_full_inbox() {
        assert!(count < 200, "{} bytes are not too many", world.hub.inboxes_bytes());
        world.publish("news:1", "told", &data);
        count += 1;
    }
    assert_eq!(stat(&world, "inboxes_refused"), 0);
    for _ in 0..200 {
        world.publish("news:1", "told", &data);
    }
    assert!(world.hub.inboxes_bytes() < HARD_BYTES + 2 * EVENT_BYTES);
    let event = world.event("news:1", "told", &data);
    world.submit(Command::Publish(Publish { notify: true, ..event }));
    let refused = |event: &Event| matches!(event, Event::Published { outcome: Err("overloaded"), .. });
    assert!(world.events.iter().any(refused), "who waits for the outcome has it");
    world.run();
    let got = world.take(member);
    let told = numbers(&got).len();
    assert!(told > count && told < count + 200);
    let Some(Got::Json(lag)) = got.last() else { panic!("no lag") };
    assert_eq!((&lag["type"], &lag["data"]["skipped"]), (&json!("lag"), &json!(count + 200 - told)));
    assert_eq!(stat(&world, "inboxes_refused"), (count + 201 - told) as u64);
}

#[test]
fn what_is_committed_goes_in_and_its_publisher_is_held() {
    let (mut world, member) = with_member("conversation:1");
    world.log_stands = true;
    let clients: Vec<usize> = (0..300).map(|n| world.connect(0, &format!("u{n}"))).collect();
    for (number, client) in clients.iter().enumerate() {
        publish(&mut world, *client, "conversation:1", number);
    }
    while world.step_log() {}
    assert!(world.hub.inboxes_bytes() > HARD_BYTES, "all 300 are committed");
    world.turn(0);
    let held = clients.iter().filter(|client| !reads(&mut world, **client)).count();
    assert_eq!(held, 0, "none is full by one event");
    let pauses = stat(&world, "inboxes_pauses");
    assert!(pauses > 100, "credits of {pauses} go through the shard");
    publish(&mut world, clients[0], "conversation:1", 999);
    world.receive(clients[0]);
    let got = world.take(clients[0]);
    assert_eq!(errors(&got)[0]["data"]["code"], "overloaded", "a new one is refused");
    world.log_stands = false;
    world.run();
    assert_eq!(numbers(&world.take(member)), (0..300).collect::<Vec<_>>(), "in order, and none is lost");
}

#[test]
fn however_publishers_and_subscribers_come_and_go_all_that_was_taken_comes_back() {
    for seed in 1..3_u64 {
        let (mut world, member) = with_member("news:1");
        let mut random = seed;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        let mut open = Vec::new();
        for number in 0..1_500 {
            match next(60) {
                0 => {
                    let client = world.connect(next(2), &format!("u{number}"));
                    world.send(client, &json!({"type": "subscribe", "data": {"channel": "news:1"}}));
                    open.push(client);
                }
                1 if open.len() > 3 => world.cut(open.swap_remove(next(open.len()))),
                2 => drop(world.turn(next(2))),
                3 => world.send(member, &json!({"type": "send_message", "data": {}})),
                _ if !open.is_empty() => {
                    let client = open[next(open.len())];
                    if reads(&mut world, client) {
                        publish(&mut world, client, "news:1", number);
                    }
                }
                _ => {}
            }
            assert!(world.hub.inboxes_bytes() < 2 * (HARD_BYTES + 2 * EVENT_BYTES));
        }
        assert!(stat(&world, "inboxes_pauses") > 0);
        world.run();
        assert_eq!((world.hub.inboxes_bytes(), stat(&world, "log_queue_bytes")), (0, 0));
        assert!(open.iter().all(|client| reads(&mut world, *client)), "seed {seed}");
        open.into_iter().for_each(|client| world.cut(client));
        let conn = world.clients[member].conn;
        world.cut(member);
        (0..100).for_each(|_| world.submit(Command::Done { conn, count: 1 }));
        world.run();
        assert_eq!([stat(&world, "events_bytes"), stat(&world, "members_bytes"), stat(&world, "connections")], [0; 3]);
    }
}
