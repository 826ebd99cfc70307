//! Durable events: committed, then published, then acknowledged.

use crate::client::Client;
use crate::server::Server;
use realtime_hub::{Command, Event, Publish};
use serde_json::json;
use std::time::Duration;

fn publish(ticket: u64, channel: &str, dedupe: Option<&str>) -> Command {
    Command::Publish(Publish {
        ticket,
        channel: channel.into(),
        event: "new_message".into(),
        data: format!("{{\"ticket\":{ticket}}}").into_bytes().into(),
        user: Some("ada".into()),
        key: None,
        dedupe: dedupe.map(Into::into),
        number: true,
        request: None,
        amends: None,
        notify: true,
        reply: None,
    })
}

fn outcomes(server: &Server, count: usize) -> Vec<(u64, u64, bool)> {
    (0..count)
        .map(|_| {
            server.wait_for(|event| match event {
                Event::Published { ticket, outcome: Ok(published) } => {
                    Some((*ticket, published.offset, published.duplicate))
                }
                _ => None,
            })
        })
        .collect()
}

#[test]
fn outcomes_come_in_the_order_of_the_log() {
    let server = Server::start(2, &json!({}));
    let commands = (0..2_000).map(|ticket| publish(ticket, "log:1", None)).collect();
    server.engine.handle().submit(commands);
    let expected: Vec<_> = (0..2_000).map(|ticket| (ticket, ticket + 1, false)).collect();
    assert_eq!(outcomes(&server, 2_000), expected);
    assert!(server.stat("log_commits") < 200, "{} commits", server.stat("log_commits"));
}

#[test]
fn a_repeated_event_is_stored_once_and_answered_with_the_first() {
    let server = Server::start(1, &json!({}));
    for (ticket, key) in [(0, "a"), (1, "b"), (2, "a")] {
        server.submit(publish(ticket, "log:1", Some(key)));
    }
    assert_eq!(outcomes(&server, 3), [(0, 1, false), (1, 2, false), (2, 1, true)]);
}

#[test]
fn after_a_flush_everything_handed_over_is_committed_and_told() {
    let server = Server::start(1, &json!({}));
    server.engine.handle().submit((0..1_000).map(|ticket| publish(ticket, "log:1", None)).collect());
    assert!(server.engine.flush_log(Duration::from_secs(20)));
    let told = server.engine.handle().drain(usize::MAX);
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Published { .. })).count(), 1_000);
    assert!(!server.engine.handle().overloaded());
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = std::env::temp_dir().join(format!("realtime-reactor-restart-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let overrides = json!({"data_dir": dir});
    let server = Server::start(1, &overrides);
    server.engine.handle().submit((0..10).map(|ticket| publish(ticket, "log:1", None)).collect());
    outcomes(&server, 10);
    drop(server);
    let server = Server::start(2, &overrides);
    let mut client = Client::connect(server.port(), "/ws");
    client.expect("connection_established");
    client.command("subscribe", &json!({"channel": "log:1", "last": 4}));
    let confirmed = client.expect("subscription_confirmed");
    assert_eq!((&confirmed["data"]["position"]["offset"], &confirmed["data"]["head"]), (&json!(6), &json!(10)));
    for number in 7..=10 {
        assert_eq!(client.expect("new_message")["data"]["number"], number);
    }
    server.submit(publish(10, "log:1", None));
    assert_eq!(client.expect("new_message")["offset"], 11);
    drop(server);
    std::fs::remove_dir_all(dir).unwrap();
}
