//! The engine over virtual links: what tests of apps stand on.

use realtime_hub::{Command, Event, Publish};
use realtime_reactor::{Received, VirtualEngine};
use serde_json::{Value, json};

const START_MS: u64 = 1_700_000_000_000;

fn world() -> VirtualEngine {
    let rights = ["subscribe", "publish", "presence", "history"];
    let options = json!({
        "endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}, {"path": "/raw", "mode": "raw", "auth": "none"}],
        "policies": [{"pattern": "log:*", "durable": true}],
        "open_grants": [{"pattern": "room:*", "rights": rights}, {"pattern": "log:*", "rights": rights}],
    });
    VirtualEngine::new(options.to_string().as_bytes(), START_MS).unwrap()
}

fn settle(world: &mut VirtualEngine) {
    let mut steps = 0;
    while world.step() {
        steps += 1;
        assert!(steps < 10_000, "it does not come to rest");
    }
}

fn member(world: &mut VirtualEngine, channel: &str) -> usize {
    let link = world.connect_as(0, "ada", None, false).unwrap();
    world.client_send(link, true, json!({"type": "subscribe", "data": {"channel": channel}}).to_string().as_bytes());
    settle(world);
    assert_eq!(types(&world.client_receive(link)), ["connection_established", "subscription_confirmed"]);
    link
}

fn publish(world: &mut VirtualEngine, channel: &str, count: usize) {
    let publish = |n: usize| Publish {
        ticket: n as u64,
        channel: channel.into(),
        event: "tick".into(),
        data: json!({"n": n, "filler": "x".repeat(500)}).to_string().into_bytes().into(),
        user: None,
        key: None,
        dedupe: None,
        number: false,
        request: None,
        amends: None,
        notify: false,
        reply: None,
    };
    world.handle().submit((0..count).map(|n| Command::Publish(publish(n))).collect());
    settle(world);
}

fn types(received: &[Received]) -> Vec<String> {
    let text = |received: &Received| match received {
        Received::Text(text) => serde_json::from_str::<Value>(text).unwrap()["type"].as_str().unwrap().to_owned(),
        other => format!("{other:?}"),
    };
    received.iter().map(text).collect()
}

fn closes(world: &VirtualEngine) -> Vec<u16> {
    let code = |event: Event| match event {
        Event::Close { code, .. } => Some(code),
        _ => None,
    };
    world.handle().drain(usize::MAX).into_iter().filter_map(code).collect()
}

#[test]
fn an_upgrade_goes_the_way_of_a_socket() {
    let mut world = world();
    let (good, bad) = (world.connect("/ws", &[]), world.connect("/elsewhere?a=b", &[]));
    assert_eq!(world.conn_of_link(good), None);
    settle(&mut world);
    assert_eq!(types(&world.client_receive(good)), ["connection_established"]);
    assert!(world.conn_of_link(good).is_some());
    let refused = Received::Http(404, "WebSocket endpoint not found".into());
    assert_eq!(world.client_receive(bad), [refused, Received::End]);
    assert_eq!(world.conn_of_link(bad), None);
}

#[test]
fn messages_and_closes_arrive_in_order() {
    for channel in ["room:1", "log:1"] {
        let mut world = world();
        let link = member(&mut world, channel);
        publish(&mut world, channel, 3);
        world.client_close(link, 1000, "done");
        settle(&mut world);
        let mut expected = vec!["tick".to_owned(); 3];
        expected.extend(["Close(1000, \"done\")".to_owned(), "End".to_owned()]);
        assert_eq!(types(&world.client_receive(link)), expected);
        assert_eq!(closes(&world), [1000]);
        assert_eq!(world.conn_of_link(link), None);
    }
}

#[test]
fn a_cut_link_is_told_as_1006() {
    let mut world = world();
    let link = member(&mut world, "room:1");
    world.client_drop(link);
    world.client_drop(link);
    settle(&mut world);
    assert_eq!(closes(&world), [1006]);
    publish(&mut world, "room:1", 1);
    assert_eq!(world.client_receive(link), []);
}

#[test]
fn a_client_that_answers_pings_stays_and_one_that_hears_nothing_goes() {
    let mut world = world();
    let (alive, dead) = (member(&mut world, "room:1"), member(&mut world, "room:1"));
    world.client_reads(dead, Some(0));
    world.advance(300_000);
    assert_eq!(world.now_ms(), START_MS + 300_000);
    assert!(world.conn_of_link(alive).is_some());
    assert_eq!(world.conn_of_link(dead), None);
    assert_eq!(closes(&world), [4001]);
}

#[test]
fn a_slow_client_gets_at_its_rate_what_it_was_sent() {
    let mut world = world();
    let link = member(&mut world, "room:1");
    let conn = world.conn_of_link(link).unwrap();
    world.client_reads(link, Some(1_000));
    publish(&mut world, "room:1", 100);
    assert!(world.handle().backlog(conn) > 0);
    assert_eq!(world.client_receive(link), []);
    world.advance(10_000);
    let early = types(&world.client_receive(link)).len();
    assert!((10..20).contains(&early), "{early} messages of some 600 bytes in 10 s");
    world.client_reads(link, None);
    settle(&mut world);
    assert_eq!(types(&world.client_receive(link)).len(), 100 - early);
    assert_eq!(world.handle().backlog(conn), 0);
    let drained = world.handle().drain(usize::MAX);
    assert!(drained.contains(&Event::Drained { conn }), "{drained:?}");
}

#[test]
fn links_that_do_not_exist_are_passed_over() {
    let mut world = world();
    world.client_send(7, true, b"x");
    world.client_close(7, 1000, "");
    world.client_drop(7);
    world.client_reads(7, None);
    assert_eq!((world.client_receive(7), world.conn_of_link(7)), (vec![], None));
    assert!(world.connect_as(9, "ada", None, false).is_err());
    assert!(world.connect_as(0, "ada", Some(b"{"), false).is_err());
    settle(&mut world);
}

#[test]
fn the_same_script_runs_the_same() {
    let run = || {
        let mut world = world();
        let links = [member(&mut world, "room:1"), member(&mut world, "log:1")];
        publish(&mut world, "room:1", 5);
        publish(&mut world, "log:1", 5);
        world.advance(60_000);
        links.map(|link| world.client_receive(link))
    };
    assert_eq!(run(), run());
}
