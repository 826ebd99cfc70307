//! Messages that are not complete: what all of them may hold, who pays for it, and how long one may take.

mod world;

use realtime_hub::Command;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use world::{Got, Store, World};

fn limited(limits: &Value) -> World {
    let mut options = world::options();
    options["limits"] = limits.clone();
    World::with(&options, 2, Store::default())
}

fn stat(world: &World, name: &str) -> u64 {
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    stats[name].as_u64().unwrap()
}

/// A ping as a message of so many bytes.
fn message(bytes: usize) -> Vec<u8> {
    let text = json!({"type": "ping", "data": "x".repeat(bytes - 26), "id": 1}).to_string();
    let mut frame = Vec::new();
    encode_masked_frame(Opcode::Text, true, text.as_bytes(), [1, 2, 3, 4], &mut frame);
    frame
}

fn closed(world: &mut World, client: usize) -> Option<u16> {
    world.take(client).into_iter().find_map(|got| if let Got::Close(code, _) = got { code } else { None })
}

#[test]
fn the_user_that_holds_the_most_is_closed_and_not_the_one_that_crosses_the_limit() {
    let mut world = limited(&json!({"message_bytes_max": 8_000, "unfinished_bytes_max": 20_000}));
    let greedy: Vec<usize> = (0..4).map(|n| world.connect(n % 2, "ann")).collect();
    let (bob, carl) = (world.connect(0, "bob"), world.connect(1, "carl"));
    for (n, &client) in greedy.iter().enumerate() {
        world.raw_bytes(client, &message(6_000)[..3_000 + 100 * n]);
    }
    // Bob's one message is larger than any of ann's.
    let large = message(5_000);
    world.raw_bytes(bob, &large[..4_000]);
    world.run();
    assert!(greedy.iter().chain([&bob]).all(|&client| closed(&mut world, client).is_none()));
    assert!(stat(&world, "unfinished_bytes") <= 20_000);
    let whole = message(4_000);
    world.raw_bytes(carl, &whole[..3_500]);
    world.run();
    let codes: Vec<Option<u16>> = greedy.iter().map(|&client| closed(&mut world, client)).collect();
    assert_eq!(codes, [None, None, None, Some(1009)], "the largest of ann's");
    assert!(stat(&world, "unfinished_bytes") <= 20_000);
    world.raw_bytes(carl, &whole[3_500..]);
    world.raw_bytes(bob, &large[4_000..]);
    world.run();
    assert_eq!([carl, bob].map(|client| world.take_json(client)[0]["type"].clone()), ["pong", "pong"]);
    for client in greedy {
        world.cut(client);
    }
    world.run();
    assert_eq!((stat(&world, "unfinished_bytes"), stat(&world, "unfinished_refused")), (0, 1));
}

#[test]
fn without_a_name_the_connections_of_an_address_add_up() {
    let mut world = limited(&json!({"message_bytes_max": 8_000, "unfinished_bytes_max": 15_000}));
    let open = |world: &mut World, host: u8| {
        let client = world.socket_from(0, [10, 0, 0, host].into());
        world.raw_bytes(client, &world::doors::request("/echo", ""));
        world.run();
        client
    };
    let greedy: Vec<usize> = (0..4).map(|_| open(&mut world, 1)).collect();
    for &client in &greedy {
        world.raw_bytes(client, &message(6_000)[..3_000]);
    }
    let other = open(&mut world, 2);
    world.raw_bytes(other, &message(7_000)[..4_500]);
    world.run();
    assert_eq!(closed(&mut world, other), None);
    assert_eq!(greedy.iter().filter(|&&client| closed(&mut world, client) == Some(1009)).count(), 1);
}

#[test]
fn memory_is_charged_as_it_is_allocated_and_a_large_message_leaves_nothing() {
    let mut world = limited(&json!({}));
    let ann = world.connect(0, "ann");
    let before = stat(&world, "unfinished_bytes");
    assert_eq!(before, 0);
    let large = message(1 << 20);
    // A header that announces much reserves nothing.
    world.raw_bytes(ann, &large[..14]);
    world.run();
    assert!((1..1_000).contains(&stat(&world, "unfinished_bytes")));
    let mut at = 14;
    while at < large.len() {
        let end = large.len().min(at + 10_000);
        world.raw_bytes(ann, &large[at..end]);
        at = end;
        let held = stat(&world, "unfinished_bytes") as usize;
        assert!(at == large.len() || (at - 14..=2 * at + 1_000).contains(&held), "{held} for {at}");
    }
    world.run();
    assert_eq!((stat(&world, "unfinished_bytes"), world.take_json(ann).len()), (0, 1));
}

#[test]
fn a_message_has_so_long_from_its_first_byte_whatever_comes_meanwhile() {
    let mut world = limited(&json!({"message_timeout_s": 2}));
    let (slow, dribbling, pinging) = (world.connect(0, "ann"), world.connect(0, "bob"), world.connect(1, "eve"));
    let whole = message(200);
    world.raw_bytes(slow, &whole[..1]);
    world.raw_bytes(pinging, &[1, 0x80, 0, 0, 0, 0]);
    for n in 0..7 {
        world.raw_bytes(dribbling, &whole[n..=n]);
        world.raw_bytes(pinging, &[0x89, 0x80, 0, 0, 0, 0]);
        world.advance(250);
    }
    // The one that ends in time is answered, and its next message has its own time.
    world.raw_bytes(slow, &whole[1..]);
    world.raw_bytes(slow, &whole[..10]);
    world.run();
    assert_eq!(world.take_json(slow).len(), 1);
    assert_eq!([dribbling, pinging].map(|client| closed(&mut world, client)), [None, None]);
    world.advance(500);
    assert_eq!([slow, dribbling, pinging].map(|client| closed(&mut world, client)), [None, Some(1008), Some(1008)]);
    world.advance(2_000);
    assert_eq!(closed(&mut world, slow), Some(1008));
    assert_eq!((stat(&world, "messages_late"), stat(&world, "unfinished_bytes")), (3, 0));
}

#[test]
fn time_in_which_the_server_does_not_read_is_not_the_clients() {
    let mut world = limited(&json!({"message_timeout_s": 2, "heartbeats": false}));
    let ann = world.connect(0, "ann");
    let whole = message(200);
    world.raw_bytes(ann, &whole[..20]);
    world.hub.set_pressure(true);
    world.advance(20_000);
    assert_eq!(closed(&mut world, ann), None);
    world.hub.set_pressure(false);
    world.advance(1_000);
    world.raw_bytes(ann, &whole[20..30]);
    world.run();
    assert_eq!(closed(&mut world, ann), None);
    world.advance(10_000);
    assert_eq!(closed(&mut world, ann), Some(1008), "it is read again, and has had time");
}

#[test]
fn answers_that_were_promised_come_before_the_close_of_a_late_message() {
    let mut world = limited(&json!({"message_timeout_s": 2}));
    let ann = world.connect(0, "ann");
    world.send(ann, &json!({"type": "send_message", "data": {}, "id": 7}));
    let whole = message(200);
    world.raw_bytes(ann, &whole[..20]);
    world.advance(2_500);
    assert_eq!(world.take(ann), [], "Python has not answered");
    let conn = world.clients[ann].conn;
    world.submit(Command::Send { conn, text: true, payload: Box::from(*br#"{"type":"ack","id":7}"#), done: 1 });
    world.run();
    let got = world.take(ann);
    assert!(matches!(&got[..], [Got::Json(ack), Got::Close(Some(1008), _), ..] if ack["id"] == 7), "{got:?}");
}
