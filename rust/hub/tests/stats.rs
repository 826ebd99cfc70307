//! What is counted, by shard and by label.

mod world;

use serde_json::{Value, json};
use world::World;

fn stats(world: &World) -> Value {
    serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap()
}

fn subscribe(world: &mut World, client: usize, channel: &str) {
    let answers = world.ask(client, &json!({"type": "subscribe", "data": {"channel": channel}}).to_string());
    assert_eq!(answers[0]["type"], "subscription_confirmed");
}

#[test]
fn a_delivery_is_measured_from_the_read_to_the_flush_once_a_shard() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..6).map(|n| world.connect(n % 2, "ann")).collect();
    for client in &clients {
        subscribe(&mut world, *client, "news:1");
    }
    for n in 0..3 {
        world.send(clients[0], &json!({"type": "publish", "data": {"channel": "news:1", "event": "e", "data": n}}));
    }
    world.now.mono_us += 2_000;
    world.run();
    let read = stats(&world);
    let delivery = &read["histograms"]["delivery_s"];
    assert_eq!((&read["publications"], &read["deliveries"]), (&json!(3), &json!(18)));
    assert_eq!(delivery["counts"][4], 6, "three events on two shards after 2 ms: {delivery}");
    assert_eq!(delivery["sum"], 0.012);
}

#[test]
fn a_stored_event_is_measured_with_its_commit() {
    let mut world = World::new(1);
    let client = world.connect(0, "ann");
    subscribe(&mut world, client, "conversation:1");
    world.log_stands = true;
    world.publish("conversation:1", "e", &json!({}));
    world.now.wall_ms += 40;
    world.now.mono_us += 40_000;
    world.log_stands = false;
    world.run();
    assert_eq!(stats(&world)["histograms"]["delivery_s"]["sum"], 0.04);
}

#[test]
fn ends_errors_and_refusals_are_told_by_their_labels() {
    let mut world = World::new(2);
    let clients: Vec<usize> = (0..4).map(|n| world.connect(n % 2, "ann")).collect();
    assert_eq!(world.hub.tallies().iter().map(realtime_hub::Tally::connections).collect::<Vec<_>>(), [2, 2]);
    world.ask(clients[0], r#"{"type":"nonsense"}"#);
    world.ask(clients[0], "[]");
    let stranger = world.socket(1);
    world.raw_bytes(stranger, b"GET /nowhere HTTP/1.1\r\nHost: edge\r\n\r\n");
    world.advance(2_000);
    world.cut(clients[1]);
    world.hub.close_all(1012, "restart", 0);
    world.advance(6_000);
    let read = stats(&world);
    assert_eq!(read["closed_by_code"], json!({"1006": 1, "1012": 3}));
    assert_eq!(read["errors_by_code"], json!({"unknown_type": 1, "invalid_message": 1}));
    assert_eq!(read["refused_by_status"], json!({"404": 1}));
    assert_eq!(
        read["histograms"]["connection_s"]["counts"].as_array().unwrap().iter().filter_map(Value::as_u64).sum::<u64>(),
        4
    );
    assert_eq!(world.hub.tallies().iter().map(realtime_hub::Tally::connections).sum::<u64>(), 0);
}
