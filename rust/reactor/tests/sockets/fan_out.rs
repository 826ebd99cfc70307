//! Every delivery is counted: none lost, doubled or out of order, however many shards.

use crate::client::Client;
use crate::server::Server;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

const CHANNELS: usize = 3;
const SUBSCRIBERS: usize = 8;
const PUBLISHERS: usize = 4;
const EVENTS: usize = 150;

/// What a subscriber saw, by channel: (publisher, number) in order of arrival.
type Seen = HashMap<String, Vec<(u64, u64)>>;

fn names(kind: &str) -> Vec<String> {
    (0..CHANNELS).map(|n| format!("{kind}:{n}")).collect()
}

fn publish_all(port: u16, channels: &[String], publisher: usize) {
    let mut client = Client::connect(port, "/ws");
    for number in 0..EVENTS {
        for channel in channels {
            let data = json!({"publisher": publisher, "number": number});
            client.command("publish", &json!({"channel": channel, "event": "tick", "data": data}));
        }
    }
    client.close(realtime_protocol::close::CloseCode::NORMAL);
    client.closed();
}

fn watch(mut client: Client) -> Seen {
    let mut seen = Seen::new();
    for _ in 0..CHANNELS * PUBLISHERS * EVENTS {
        let message = client.expect("tick");
        let from = |name: &str| message["data"][name].as_u64().unwrap();
        let channel = message["channel"].as_str().unwrap().to_owned();
        seen.entry(channel).or_default().push((from("publisher"), from("number")));
    }
    seen
}

fn everybody_sees_the_same(kind: &str, shards: usize) {
    let server = Arc::new(Server::start(shards, &json!({})));
    let _answering = server.answering();
    let (port, channels) = (server.port(), names(kind));
    let clients: Vec<Client> = (0..SUBSCRIBERS).map(|_| Client::subscribed(port, &channels)).collect();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let watching: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| watch(client))).collect();
        for publisher in 0..PUBLISHERS {
            let channels = &channels;
            scope.spawn(move || publish_all(port, channels, publisher));
        }
        watching.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for other in &seen[1..] {
        assert_eq!(&seen[0], other, "one order for all subscribers of a channel");
    }
    for events in seen[0].values() {
        for publisher in 0..PUBLISHERS as u64 {
            let own = events.iter().filter(|(from, _)| *from == publisher).map(|(_, number)| *number);
            assert!(own.eq(0..EVENTS as u64), "a publisher's own order, none lost or doubled");
        }
    }
}

#[test]
fn volatile_events_arrive_once_and_in_one_order_with_one_shard() {
    everybody_sees_the_same("room", 1);
}

#[test]
fn volatile_events_arrive_once_and_in_one_order_with_two_shards() {
    everybody_sees_the_same("room", 2);
}

#[test]
fn volatile_events_arrive_once_and_in_one_order_with_four_shards() {
    everybody_sees_the_same("room", 4);
}

#[test]
fn durable_events_arrive_once_and_in_one_order_with_one_shard() {
    everybody_sees_the_same("log", 1);
}

#[test]
fn durable_events_arrive_once_and_in_one_order_with_two_shards() {
    everybody_sees_the_same("log", 2);
}
