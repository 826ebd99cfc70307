//! `presence_mode`: who is online, right behind the first frame, and without a gap to what is told live.

mod world;

use proptest::prelude::{ProptestConfig, any, prop};
use proptest::proptest;
use realtime_hub::Command;
use serde_json::json;
use std::collections::BTreeSet;
use world::{Got, Store, World, options};

fn mode(world: &mut World, users: Option<&[&str]>) {
    let users = users.map(|users| users.iter().map(|user| (*user).into()).collect());
    world.submit(Command::PresenceMode { users });
}

/// What Python does of a user who came or went, while everybody is told of everybody.
fn change(world: &mut World, user: &str, is_online: bool) {
    world.submit(Command::PresenceChange { user: user.into(), is_online });
    let status = if is_online { "online" } else { "offline" };
    let frame = json!({"type": "user_presence", "data": {"userId": user, "status": status}});
    let key = Some(realtime_hub::latest_key("user_presence", user));
    world.submit(Command::SendAll { payload: frame.to_string().into_bytes().into(), key });
}

/// A client whose frames are all kept; `first_version` offers no subprotocol.
fn connect(world: &mut World, shard: usize, endpoint: u16, first_version: bool) -> usize {
    let client = world.socket(shard);
    let conn = world.clients[client].conn;
    world.shards[shard].admit_as(conn, endpoint, "ann", None, first_version, world.now).unwrap();
    client
}

#[test]
fn who_is_online_comes_right_behind_the_first_frame_of_clients_that_know_it() {
    let mut world = World::new(1);
    mode(&mut world, Some(&["cyd", "bob"]));
    world.run();
    let new = connect(&mut world, 0, 0, false);
    // A command in the segment of the upgrade is answered behind it.
    world.send_text(new, "{\"type\":\"ping\",\"id\":1}");
    let (old, raw) = (connect(&mut world, 0, 0, true), connect(&mut world, 0, 1, false));
    world.run();
    let frames = world.take_json(new);
    let kinds: Vec<&str> = frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["connection_established", "presence_mode", "pong"]);
    assert_eq!(frames[1]["data"], json!({"mode": "everyone", "users": ["bob", "cyd"]}));
    assert!(frames[1]["timestamp"].is_string());
    assert_eq!(world.take_json(old).len(), 1);
    assert_eq!(world.take(raw), []);
    mode(&mut world, None);
    world.run();
    assert_eq!(world.take_json(new)[0]["data"], json!({"mode": "shared"}));
    assert_eq!((world.take(old), world.take(raw)), (Vec::new(), Vec::new()));
}

#[test]
fn nothing_is_told_before_python_has_said_who_is_told_of_whom() {
    let mut world = World::new(1);
    change(&mut world, "bob", true);
    world.run();
    let ann = connect(&mut world, 0, 0, false);
    world.run();
    assert_eq!(world.take_json(ann).len(), 1);
}

#[test]
fn changes_are_in_what_later_clients_are_told() {
    let mut world = World::new(2);
    mode(&mut world, Some(&["bob"]));
    change(&mut world, "cyd", true);
    change(&mut world, "bob", false);
    world.run();
    for shard in 0..2 {
        let ann = connect(&mut world, shard, 0, false);
        world.run();
        assert_eq!(world.take_json(ann)[1]["data"]["users"], json!(["cyd"]));
    }
    mode(&mut world, None);
    change(&mut world, "dan", true);
    world.run();
    let ann = connect(&mut world, 0, 0, false);
    world.run();
    assert_eq!(world.take_json(ann)[1]["data"], json!({"mode": "shared"}));
}

#[test]
fn users_are_left_out_where_they_are_longer_than_an_event_may_be() {
    let mut options = options();
    options["limits"] = json!({"enabled": false, "publication_bytes_max": 1_000});
    let mut world = World::with(&options, 1, Store::default());
    let users: Vec<String> = (0..200).map(|n| format!("user-{n}")).collect();
    mode(&mut world, Some(&users.iter().map(String::as_str).collect::<Vec<_>>()));
    world.run();
    let ann = connect(&mut world, 0, 0, false);
    world.run();
    assert_eq!(world.take_json(ann)[1]["data"], json!({"mode": "everyone"}));
}

#[test]
fn users_are_left_out_where_they_are_longer_than_a_page_though_an_event_may_be() {
    let mut options = options();
    options["limits"] = json!({"enabled": false, "publication_bytes_max": 4 << 20, "log_queue_bytes_max": 16 << 20});
    let mut world = World::with(&options, 1, Store::default());
    // A user takes 203 bytes with its quotes and comma, but the first 202.
    for (count, is_told) in [(5_164, true), (5_166, false)] {
        let users: Vec<String> = (0..count).map(|n| format!("{n:0>200}")).collect();
        mode(&mut world, Some(&users.iter().map(String::as_str).collect::<Vec<_>>()));
        world.run();
        let ann = connect(&mut world, 0, 0, false);
        world.run();
        assert_eq!(world.take_json(ann)[1]["data"]["users"].is_array(), is_told, "{count} users");
    }
}

#[test]
fn a_client_that_closes_is_told_no_more() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let conn = world.clients[ann].conn;
    world.submit(Command::Close { conn, code: 1001, reason: "".into() });
    world.run();
    mode(&mut world, None);
    world.run();
    assert!(world.take(ann).iter().all(|got| !matches!(got, Got::Json(_))));
}

/// A world in which whatever waits may be replaced.
fn behind() -> World {
    let mut options = options();
    options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 1});
    World::with(&options, 2, Store::default())
}

/// What a client was told of `bob`, and of who is told of whom, in order.
fn told(world: &mut World, client: usize) -> Vec<String> {
    let frames = world.take_json(client).into_iter();
    frames
        .map(|frame| frame["data"]["status"].as_str().or_else(|| frame["data"]["mode"].as_str()).unwrap().into())
        .collect()
}

#[test]
fn a_reader_that_is_behind_gets_no_change_before_the_mode_that_it_came_after() {
    let mut world = behind();
    mode(&mut world, Some(&[]));
    world.run();
    let ann = connect(&mut world, 0, 0, false);
    world.run();
    world.take(ann);
    world.limit(ann, Some(1));
    for step in 0..6 {
        match step {
            0 | 3 => change(&mut world, "bob", true),
            1 | 4 => change(&mut world, "bob", false),
            2 => mode(&mut world, Some(&[])),
            _ => mode(&mut world, None),
        }
        world.run();
    }
    change(&mut world, "bob", true);
    change(&mut world, "bob", false);
    world.open_up(ann);
    world.run();
    // The first is partly sent. Each change stands between the modes between which it came.
    assert_eq!(told(&mut world, ann), ["online", "offline", "everyone", "offline", "shared", "offline"]);
}

#[test]
fn a_reader_that_is_behind_is_told_last_how_it_is_whichever_channels_it_was_told_in() {
    let mut world = behind();
    let ann = world.connect(0, "ann");
    for channel in ["news:a", "news:b"] {
        world.send(ann, &json!({"type": "subscribe", "data": {"channel": channel}}));
    }
    world.run();
    world.take(ann);
    world.limit(ann, Some(1));
    for (status, channels) in
        [("x", &["news:a"][..]), ("online", &["news:a"]), ("offline", &["news:a", "news:b"]), ("online", &["news:a"])]
    {
        let channels = channels.iter().map(|channel| (*channel).into()).collect();
        let payload = json!({"type": "user_presence", "data": {"userId": "bob", "status": status}}).to_string();
        let key = Some(realtime_hub::latest_key("user_presence", "bob"));
        world.submit(Command::PublishUnion { channels, payload: payload.into_bytes().into(), key });
        world.run();
    }
    world.open_up(ann);
    world.run();
    assert_eq!(told(&mut world, ann), ["x", "online"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whenever a client comes, what it is told at first and then live leads it to who is online.
    #[test]
    fn a_client_that_comes_at_any_time_knows_who_is_online(
        steps in prop::collection::vec((0_u8..8, 0_usize..5, any::<bool>()), 1..80),
    ) {
        let users = ["a", "b", "c", "d", "e"];
        let mut world = behind();
        mode(&mut world, Some(&[]));
        let mut online = BTreeSet::new();
        let mut came = Vec::new();
        for (step, user, is_online) in steps {
            match step {
                0 | 1 => {
                    change(&mut world, users[user], is_online);
                    if is_online { online.insert(users[user]) } else { online.remove(users[user]) };
                }
                2 => came.push(connect(&mut world, user % 2, 0, false)),
                3 if user == 0 => mode(&mut world, Some(&online.iter().copied().collect::<Vec<_>>())),
                4 | 5 => came.iter().for_each(|client| world.limit(*client, if is_online { None } else { Some(user) })),
                _ => drop(world.turn(user % 2)),
            }
        }
        came.iter().for_each(|client| world.open_up(*client));
        world.run();
        for client in came {
            let frames = world.take_json(client);
            assert_eq!(frames[1]["type"], "presence_mode", "{frames:?}");
            let mut known = BTreeSet::new();
            for frame in &frames[1..] {
                let data = &frame["data"];
                let user = data["userId"].as_str().unwrap_or_default().to_owned();
                match (frame["type"].as_str().unwrap(), data["status"].as_str()) {
                    ("presence_mode", _) => {
                        let users = data["users"].as_array().unwrap().iter();
                        known = users.map(|user| user.as_str().unwrap().to_owned()).collect();
                    }
                    (_, Some("online")) => drop(known.insert(user)),
                    _ => drop(known.remove(&user)),
                }
            }
            assert!(known.iter().map(String::as_str).eq(online.iter().copied()), "{known:?} is not {online:?}: {frames:?}");
        }
    }
}
