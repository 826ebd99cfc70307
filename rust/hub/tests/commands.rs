//! The protocol's tables of inputs and answers, letter by letter, without a socket.

mod world;

use realtime_hub::{Command, Event};
use serde_json::{Value, json};
use world::{Got, Store, World};

fn error_of(answers: &[Value]) -> (&str, &str) {
    let [answer] = answers else { panic!("not one answer: {answers:?}") };
    assert_eq!(answer["type"], "error");
    (answer["data"]["message"].as_str().unwrap(), answer["data"]["code"].as_str().unwrap())
}

#[test]
fn what_is_no_message_is_answered_so() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let deep = format!("{{\"type\":\"ping\",\"data\":{}{}}}", "[".repeat(64), "]".repeat(64));
    let many_keys: Vec<String> = (0..1_025).map(|n| format!("\"k{n}\":1")).collect();
    let many_keys = format!("{{\"type\":\"ping\",\"data\":{{{}}}}}", many_keys.join(","));
    for text in [
        "",
        "nonsense",
        "null",
        "[]",
        "\"ping\"",
        "42",
        "{",
        "{\"type\":\"ping\"} x",
        "{\"type\":\"ping\",}",
        "{\"type\":\"ping\",\"type\":\"ping\"}",
        "{\"type\":\"ping\",\"data\":{\"a\":1,\"\\u0061\":2}}",
        "{\"type\":\"ping\",\"data\":NaN}",
        "{\"type\":\"ping\",\"data\":1e400}",
        "{\"type\":\"ping\",\"data\":01}",
        "{\"type\":\"ping\",\"data\":9007199254740993}",
        "{\"type\":\"ping\",\"data\":\"\u{1}\"}",
        &deep,
        &many_keys,
    ] {
        let answers = world.ask(ann, text);
        assert_eq!(error_of(&answers), ("Invalid message format", "invalid_message"), "{text:.40}");
    }
    let refused =
        format!("{{\"type\":\"ping\",\"id\":\"c1\",\"data\":{{\"a\":{}}}}}", "[".repeat(70) + &"]".repeat(70));
    let answers = world.ask(ann, &refused);
    assert_eq!((&answers[0]["id"], error_of(&answers).1), (&json!("c1"), "invalid_message"));
    for (text, path) in [
        ("{\"type\":\"ping\",\"data\":{\"a\":9007199254740993}}", "data.a"),
        ("{\"type\":7}", "type"),
        ("{\"type\":\"ping\",\"id\":1.5}", "id"),
        ("{\"type\":\"ping\",\"id\":true}", "id"),
        ("{\"type\":\"subscribe\",\"data\":{\"channel\":\"a b\"}}", "data.channel"),
        ("{\"type\":\"subscribe\",\"data\":{\"channel\":7}}", "data.channel"),
        ("{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\",\"last\":1001}}", "data.last"),
        (
            "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\",\"position\":{\"offset\":1}}}",
            "data.position.epoch",
        ),
        ("{\"type\":\"typing_start\",\"data\":{}}", "data.conversationId"),
        ("{\"type\":\"typing_start\",\"data\":{\"conversationId\":\"a b\"}}", "data.conversationId"),
    ] {
        let answers = world.ask(ann, text);
        assert_eq!(error_of(&answers).1, "invalid_message", "{text}");
        assert_eq!(answers[0]["data"]["path"], path, "{text}");
    }
}

#[test]
fn a_command_with_too_many_values_is_refused_with_its_id_and_the_member() {
    let mut options = world::options();
    options["limits"]["message_values_max"] = json!(100);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    // The command, its type, its id, its data and the list are five.
    let ping = |count: usize| {
        let lists = vec!["[]"; count].join(",");
        format!("{{\"type\":\"ping\",\"id\":\"c1\",\"data\":{{\"a\":[{lists}]}}}}")
    };
    assert_eq!(world.ask(ann, &ping(95))[0]["type"], "pong");
    let answers = world.ask(ann, &ping(96));
    assert_eq!(error_of(&answers), ("Invalid message format", "invalid_message"));
    assert_eq!((&answers[0]["id"], &answers[0]["data"]["path"]), (&json!("c1"), &json!("data.a")));
}

#[test]
fn a_command_that_is_too_long_for_python_is_refused_and_the_connection_stays() {
    let mut options = world::options();
    options["limits"]["command_bytes_max"] = json!(1_000);
    options["routes"] = json!(["plain", {
        "type": "send_message", "right": "publish", "channel": "conversation:{data.conversationId}", "failure": "No"
    }]);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    let of_size = |kind: &str, size: usize| {
        let command = format!("{{\"type\":\"{kind}\",\"id\":1,\"data\":{{\"conversationId\":\"1\",\"x\":\"\"}}}}");
        command.replace("\"x\":\"", &format!("\"x\":\"{}", "x".repeat(size - command.len())))
    };
    world.take_events();
    assert!(world.ask(ann, &of_size("plain", 1_000)).is_empty());
    assert_eq!(world.take_events().len(), 1);
    let plain = "command of 1001 bytes exceeds limits.command_bytes_max=1000; send less at once";
    for (kind, message) in [("plain", plain), ("subscribe", plain), ("send_message", "No")] {
        let answers = world.ask(ann, &of_size(kind, 1_001));
        assert_eq!((error_of(&answers), &answers[0]["id"]), ((message, "too_large"), &json!(1)), "{kind}");
    }
    assert!(world.take_events().is_empty());
    for kind in ["ping", "typing_start"] {
        assert_ne!(world.ask(ann, &of_size(kind, 1_001))[0]["type"], "error", "{kind}");
    }
}

/// Every member of every command of the engine's own: null is answered as if it were missing.
#[test]
fn a_member_that_is_null_is_answered_as_a_missing_one() {
    let channel = json!({"channel": "ring:1"});
    for (kind, data, members) in [
        ("subscribe", &channel, &["channel", "position", "last"][..]),
        ("unsubscribe", &channel, &["channel"]),
        ("publish", &json!({"channel": "ring:1", "event": "e", "data": 1}), &["channel", "event", "data", "key"]),
        ("history", &channel, &["channel", "position", "last", "limit"]),
        ("refresh", &json!({"token": "x"}), &["token"]),
        ("typing_start", &json!({"conversationId": "1"}), &["conversationId"]),
        ("typing_stop", &json!({"conversationId": "1"}), &["conversationId"]),
        ("ping", &json!({}), &["x"]),
    ] {
        for member in members {
            let ask = |is_null: bool| {
                let mut data = data.clone();
                data.as_object_mut().unwrap().remove(*member);
                if is_null {
                    data[*member] = Value::Null;
                }
                let mut world = World::new(1);
                let ann = world.connect(0, "ann");
                world.ask(ann, &json!({"type": kind, "id": 1, "data": data}).to_string())
            };
            assert_eq!(ask(true), ask(false), "{kind} {member}");
        }
    }
    for member in ["type", "id", "data"] {
        let ask = |is_null: bool| {
            let mut command = json!({"type": "unsubscribe", "id": 1, "data": {}});
            command.as_object_mut().unwrap().remove(member);
            if is_null {
                command[member] = Value::Null;
            }
            let mut world = World::new(1);
            let ann = world.connect(0, "ann");
            world.ask(ann, &command.to_string())
        };
        assert_eq!(ask(true), ask(false), "{member}");
    }
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let position = |epoch: &str| {
        format!("{{\"type\":\"subscribe\",\"data\":{{\"channel\":\"ring:1\",\"position\":{{\"offset\":1{epoch}}}}}}}")
    };
    assert_eq!(world.ask(ann, &position(",\"epoch\":null")), world.ask(ann, &position("")));
}

#[test]
fn unknown_types_are_named_and_cut() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let long = "x".repeat(100);
    for (text, message) in [
        ("{}".to_owned(), "Unknown message type: undefined".to_owned()),
        ("{\"type\":\"dance\"}".to_owned(), "Unknown message type: dance".to_owned()),
        (format!("{{\"type\":\"{long}\"}}"), format!("Unknown message type: {}", &long[..64])),
        ("{\"type\":\"a\\n\\u0000b\"}".to_owned(), "Unknown message type: ab".to_owned()),
    ] {
        let answers = world.ask(ann, &text);
        assert_eq!(error_of(&answers), (&*message, "unknown_type"));
    }
}

#[test]
fn ids_come_back_as_they_were() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    for id in [json!("a"), json!(7), json!(-3), json!("\u{fc}"), json!(9_007_199_254_740_992_u64)] {
        let answers = world.ask(ann, &json!({"type": "ping", "id": id}).to_string());
        assert_eq!((&answers[0]["type"], &answers[0]["id"]), (&json!("pong"), &id));
        assert!(answers[0]["data"]["timestamp"].as_str().unwrap().ends_with('Z'));
    }
    let answers = world.ask(ann, "{\"type\":\"ping\"}");
    assert_eq!(answers[0].get("id"), None);
}

#[test]
fn lone_surrogates_become_the_replacement_character() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\"}}");
    let sent = "{\"type\":\"publish\",\"data\":{\"channel\":\"news:1\",\"event\":\"e\",\"data\":\"\\ud83d \\ud83d\\ude00 \\udc00\"}}";
    let answers = world.ask(ann, sent);
    assert_eq!(answers[0]["data"], "\u{fffd} \u{1f600} \u{fffd}");
}

#[test]
fn subscribe_confirms_and_a_second_one_replays_nothing() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let none = world.ask(ann, "{\"type\":\"subscribe\"}");
    assert_eq!(error_of(&none), ("Channel is required for subscription", "invalid_message"));
    world.publish("conversation:42", "new_message", &json!({"n": 1}));
    let first =
        world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"conversation:42\",\"last\":5},\"id\":1}");
    let kinds: Vec<&str> = first.iter().map(|answer| answer["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["subscription_confirmed", "new_message"]);
    assert_eq!(first[0]["data"]["position"], json!({"offset": 0, "epoch": "log-epoch"}));
    assert_eq!((&first[0]["data"]["head"], &first[0]["data"]["replayed"]), (&json!(1), &json!(1)));
    let second =
        world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"conversation:42\",\"last\":5},\"id\":2}");
    assert_eq!((second.len(), &second[0]["id"], &second[0]["data"]["replayed"]), (1, &json!(2), &json!(0)));
}

#[test]
fn unsubscribe_is_confirmed_even_without_a_subscription() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    for data in [json!({"channel": "news:1"}), json!({}), Value::Null] {
        let answers = world.ask(ann, &json!({"type": "unsubscribe", "data": data}).to_string());
        assert_eq!(answers[0]["type"], "unsubscription_confirmed");
    }
    world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\"}}");
    assert_eq!(world.hub.members("news:1"), 1);
    let answers = world.ask(ann, "{\"type\":\"unsubscribe\",\"data\":{\"channel\":\"news:1\"},\"id\":\"u\"}");
    assert_eq!((&answers[0]["data"]["channel"], &answers[0]["id"]), (&json!("news:1"), &json!("u")));
    assert_eq!((world.hub.members("news:1"), world.hub.channels()), (0, 0));
}

#[test]
fn rights_are_those_of_the_open_rules_and_of_hooks() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let subscribe = |channel: &str| json!({"type": "subscribe", "data": {"channel": channel}, "id": 1}).to_string();
    assert_eq!(world.ask(ann, &subscribe("user:ann"))[0]["type"], "subscription_confirmed");
    assert_eq!(error_of(&world.ask(ann, &subscribe("user:bob"))).1, "forbidden");
    assert_eq!(error_of(&world.ask(ann, &subscribe("secret:1"))).1, "forbidden");
    world.take_events();
    assert_eq!(world.ask(ann, &subscribe("poll:7")), Vec::<Value>::new());
    let [Event::Authorize { conn, rule: 0, channel, right: "subscribe", raw, .. }] = &world.take_events()[..] else {
        panic!("Python was not asked")
    };
    world.submit(Command::Grant {
        conn: *conn,
        channel: channel.clone(),
        rights: vec!["subscribe".into()],
        raw: raw.clone(),
    });
    world.run();
    assert_eq!(world.take_json(ann)[0]["type"], "subscription_confirmed");
}

#[test]
fn what_hooks_grant_is_charged_with_the_identities_and_above_their_bound_the_command_is_overloaded() {
    let mut options = world::options();
    options["limits"]["identities_bytes_max"] = json!(2_000);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    let held = |world: &World| world.hub.counters().identities_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let before = held(&world);
    let channels: Vec<String> = (0..20).map(|n| format!("poll:{n:0>120}")).collect();
    let mut answers = Vec::new();
    for channel in &channels {
        world.take_events();
        world.ask(ann, &json!({"type": "subscribe", "id": 1, "data": {"channel": channel}}).to_string());
        let [Event::Authorize { conn, channel, raw, .. }] = &world.take_events()[..] else { panic!("not asked") };
        let (conn, channel, raw) = (*conn, channel.clone(), raw.clone());
        world.submit(Command::Grant { conn, channel, rights: vec!["subscribe".into()], raw });
        world.run();
        answers.extend(world.take_json(ann));
    }
    let given = answers.iter().filter(|answer| answer["type"] == "subscription_confirmed").count();
    let refused = answers.iter().filter(|answer| answer["data"]["code"] == "overloaded" && answer["id"] == 1).count();
    assert!(given > 5 && refused > 5 && given + refused == 20, "{given} and {refused}");
    assert_eq!(held(&world), before + given as u64 * (48 + 125));
    assert!(held(&world) <= 2_000);
    world.cut(ann);
    world.run();
    assert_eq!(held(&world), 0);
}

#[test]
fn publish_needs_the_right_and_a_name_that_is_not_reserved() {
    let mut world = World::new(1);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(0, "bob"));
    world.ask(bob, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\"}}");
    let answers = world.ask(
        ann,
        "{\"type\":\"publish\",\"data\":{\"channel\":\"news:1\",\"event\":\"e\",\"data\":{\"x\":1}},\"id\":1}",
    );
    assert_eq!((answers.len(), &answers[0]["type"]), (1, &json!("ack")));
    let heard = world.take_json(bob);
    assert_eq!(
        (&heard[0]["type"], &heard[0]["data"], &heard[0]["userId"]),
        (&json!("e"), &json!({"x": 1}), &json!("ann"))
    );
    for (channel, event) in [("news:1", "new_message"), ("user:bob", "e")] {
        let answers =
            world.ask(ann, &json!({"type": "publish", "data": {"channel": channel, "event": event}}).to_string());
        assert_eq!(error_of(&answers).1, "forbidden");
    }
}

#[test]
fn every_typing_is_relayed_and_ends_by_time_by_unsubscribe_and_by_close() {
    let mut world = World::new(2);
    let (ann, bob) = (world.connect(0, "ann"), world.connect(1, "bob"));
    let subscribe = "{\"type\":\"subscribe\",\"data\":{\"channel\":\"conversation:1\"}}";
    world.ask(ann, subscribe);
    world.ask(bob, subscribe);
    let start = "{\"type\":\"typing_start\",\"data\":{\"conversationId\":1,\"userId\":\"eve\"}}";
    let told = |world: &mut World, of: usize| -> Vec<bool> {
        let all = world.take_json(of);
        assert!(
            all.iter().all(|e| e["type"] == "typing_indicator" && e["userId"] == "ann" && e["data"]["userId"] == "ann")
        );
        assert!(all.iter().all(|e| e["conversationId"] == "1" && e["channel"] == "conversation:1"));
        all.iter().map(|e| e["data"]["isTyping"].as_bool().unwrap()).collect()
    };
    world.send_text(ann, start);
    world.send_text(ann, start);
    world.run();
    assert_eq!((told(&mut world, ann), told(&mut world, bob)), (vec![true, true], vec![true, true]));
    world.advance(29_000);
    world.take(ann);
    assert_eq!(told(&mut world, bob), Vec::<bool>::new());
    world.advance(1_500);
    assert_eq!(told(&mut world, bob), [false]);
    world.send_text(ann, start);
    world.ask(ann, "{\"type\":\"unsubscribe\",\"data\":{\"channel\":\"conversation:1\"}}");
    assert_eq!(told(&mut world, bob), [true, false]);
    world.send_text(ann, start);
    world.run();
    world.cut(ann);
    world.run();
    assert_eq!(told(&mut world, bob), [true, false]);
}

#[test]
fn typing_right_behind_the_first_subscribe_of_a_channel_is_heard_by_its_sender() {
    let mut world = World::new(2);
    let ann = world.connect(1, "ann");
    for kind in ["subscribe", "typing_start", "typing_stop"] {
        world.send_text(
            ann,
            &json!({"type": kind, "data": {"channel": "conversation:1", "conversationId": "1"}}).to_string(),
        );
    }
    world.run();
    let heard = world.take_json(ann);
    let kinds: Vec<&str> = heard.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["subscription_confirmed", "typing_indicator", "typing_indicator"]);
    assert_eq!((&heard[1]["data"]["isTyping"], &heard[2]["data"]["isTyping"]), (&json!(true), &json!(false)));
}

#[test]
fn a_guard_reads_a_number_as_the_handler_does_and_lets_no_other_type_through() {
    let mut options = world::options();
    options["open_grants"] = json!([{"pattern": "conversation:42", "rights": ["publish"]}]);
    options["routes"] = json!([
        {"type": "send_message", "right": "publish", "channel": "conversation:{data.conversationId}", "failure": "No"}
    ]);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    world.take_events();
    let send = |id: &str| format!("{{\"type\":\"send_message\",\"data\":{{\"conversationId\":{id}}}}}");
    for id in ["43", "43.0", "4.3e1", "\"43\"", "42.5"] {
        assert_eq!(error_of(&world.ask(ann, &send(id))), ("No", "forbidden"), "{id}");
    }
    for id in ["true", "[42]", "{}", "1e21", "null", "\"\""] {
        let answers = world.ask(ann, &send(id));
        assert_eq!(error_of(&answers), ("Invalid message format", "invalid_message"), "{id}");
        assert_eq!(answers[0]["data"]["path"], "data.conversationId");
    }
    assert!(world.take_events().is_empty(), "nothing of it is let further than that");
    for id in ["42", "42.0", "\"42\""] {
        assert!(world.ask(ann, &send(id)).is_empty());
        assert!(matches!(&world.take_events()[..], [Event::Message { route: 0, .. }]), "{id}");
    }
}

#[test]
fn typing_of_two_sessions_ends_with_the_last() {
    let mut world = World::new(2);
    let (one, two, bob) = (world.connect(0, "ann"), world.connect(1, "ann"), world.connect(0, "bob"));
    world.ask(bob, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"conversation:1\"}}");
    let typing = |kind: &str| json!({"type": kind, "data": {"conversationId": "1"}}).to_string();
    for (client, kind, is_typing) in [
        (one, "typing_start", true),
        (two, "typing_start", true),
        (one, "typing_stop", true),
        (two, "typing_stop", false),
        (two, "typing_stop", false),
    ] {
        world.send_text(client, &typing(kind));
        world.run();
        let heard = world.take_json(bob);
        assert_eq!((heard.len(), &heard[0]["data"]["isTyping"]), (1, &json!(is_typing)), "{kind}");
    }
    world.send_text(one, &typing("typing_start"));
    world.send_text(two, &typing("typing_start"));
    world.run();
    world.take(bob);
    world.cut(one);
    world.run();
    assert_eq!(world.take(bob), Vec::<Got>::new());
    world.cut(two);
    world.run();
    assert_eq!(world.take_json(bob)[0]["data"]["isTyping"], false);
}

#[test]
fn commands_behind_others_in_python_go_up_and_come_back_in_order() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    let answers = world.ask(ann, "{\"type\":\"send_message\",\"data\":{\"content\":\"x\"},\"id\":1}");
    assert!(answers.is_empty());
    assert!(matches!(&world.take_events()[..], [Event::Message { route: 0, .. }]));
    let answers = world.ask(ann, "{\"type\":\"subscribe\",\"data\":{\"channel\":\"news:1\"},\"id\":2}");
    assert!(answers.is_empty(), "a subscribe does not overtake: {answers:?}");
    assert_eq!(world.ask(ann, "{\"type\":\"ping\",\"id\":3}").len(), 1, "a ping may overtake");
    let [Event::Deferred { conn, raw }] = &world.take_events()[..] else { panic!("it did not go up") };
    let conn = *conn;
    world.submit(Command::Done { conn, count: 1 });
    world.submit(Command::Resume { conn, raw: raw.clone() });
    world.run();
    assert_eq!(world.take_json(ann)[0]["id"], 2);
    assert_eq!(world.take_events(), [Event::Carried { conn, goes_on: false }], "Python's next command may follow it");
    assert_eq!(world.ask(ann, "{\"type\":\"unsubscribe\",\"data\":{\"channel\":\"news:1\"}}").len(), 1);
}

#[test]
fn reading_stops_at_64_commands_under_way_and_goes_on_at_32() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    for n in 0..100 {
        world.send(ann, &json!({"type": "send_message", "data": {}, "id": n}));
    }
    world.run();
    let conn = world.clients[ann].conn;
    assert_eq!(world.take_events().len(), 64);
    assert!(!world.shards[0].pause_unless_readable(conn));
    world.submit(Command::Done { conn, count: 31 });
    world.run();
    assert_eq!(world.take_events().len(), 0);
    world.submit(Command::Done { conn, count: 1 });
    world.run();
    let ids: Vec<Vec<u8>> = world
        .take_events()
        .into_iter()
        .map(|event| if let Event::Message { id, .. } = event { id.unwrap().to_vec() } else { panic!("{event:?}") })
        .collect();
    assert_eq!((ids.len(), &ids[0][..]), (32, &b"64"[..]));
}

#[test]
fn rates_answer_with_when_to_try_again() {
    let mut options = world::options();
    options["limits"] = json!({"commands_per_s": 10, "commands_burst": 3});
    let mut world = World::with(&options, 1, world::Store::default());
    let ann = world.connect(0, "ann");
    for _ in 0..3 {
        assert_eq!(world.ask(ann, "{\"type\":\"ping\"}")[0]["type"], "pong");
    }
    let answers = world.ask(ann, "{\"type\":\"ping\",\"id\":9}");
    assert_eq!(error_of(&answers).1, "rate_limited");
    assert_eq!((&answers[0]["data"]["retryAfterMs"], &answers[0]["id"]), (&json!(100), &json!(9)));
    world.advance(250);
    assert_eq!(world.ask(ann, "{\"type\":\"ping\"}")[0]["type"], "pong");
}

#[test]
fn a_position_recovers_whole_or_not_at_all() {
    for (channel, stored, table) in [
        ("conversation:1", 20, [(0, true), (5, true), (20, true), (21, false), (1 << 53, false)]),
        // The ring of four holds 17 to 20.
        ("ring:1", 20, [(15, false), (16, true), (20, true), (21, false), (0, false)]),
    ] {
        let mut world = World::new(1);
        for n in 0..stored {
            world.publish(channel, "e", &json!(n));
        }
        world.run();
        let reader = world.connect(0, "reader");
        let subscribe = json!({"type": "subscribe", "data": {"channel": channel}}).to_string();
        let epoch = world.ask(reader, &subscribe)[0]["data"]["position"]["epoch"].as_str().unwrap().to_owned();
        for (offset, recovered) in table {
            let ann = world.connect(0, "ann");
            let ask = |offset: u64, epoch: &str| {
                let data = json!({"channel": channel, "position": {"offset": offset, "epoch": epoch}});
                json!({"type": "subscribe", "data": data}).to_string()
            };
            let answers = world.ask(ann, &ask(offset, &epoch));
            let confirmed = &answers[0]["data"];
            assert_eq!(confirmed["recovered"], recovered, "{channel} {offset}");
            assert_eq!(confirmed["position"]["offset"], if recovered { offset } else { stored });
            assert_eq!(confirmed["head"], stored);
            let replayed = if recovered { stored - offset } else { 0 };
            assert_eq!(confirmed["replayed"], replayed);
            let offsets: Vec<u64> = answers[1..].iter().map(|event| event["offset"].as_u64().unwrap()).collect();
            assert_eq!(offsets, (stored - replayed + 1..=stored).collect::<Vec<u64>>());
            let bob = world.connect(0, "bob");
            assert_eq!(world.ask(bob, &ask(offset, "another"))[0]["data"]["recovered"], false);
        }
    }
}

#[test]
fn the_same_dedupe_key_is_stored_once_and_acknowledged_again_with_the_first() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.ask(ann, r#"{"type":"subscribe","data":{"channel":"conversation:1"}}"#);
    let conn = world.clients[ann].conn;
    let publish = |dedupe: &str, id: &str, user: &str| {
        Command::Publish(realtime_hub::Publish {
            ticket: 1,
            channel: "conversation:1".into(),
            event: "new_message".into(),
            data: format!("{{\"id\":{id}}}").into_bytes().into(),
            user: Some(user.into()),
            key: None,
            dedupe: Some(dedupe.into()),
            number: true,
            request: None,
            amends: None,
            notify: false,
            reply: Some(realtime_hub::Reply { conn, id: Some(id.as_bytes().into()), failure: None, credit: None }),
        })
    };
    let mut numbers = Vec::new();
    for (dedupe, id, user) in [("a", "1", "ann"), ("b", "2", "ann"), ("a", "3", "ann"), ("a", "4", "bob")] {
        world.submit(publish(dedupe, id, user));
        world.run();
        let got = world.take_json(ann);
        let ack = got.iter().find(|frame| frame["type"] == "ack").unwrap();
        assert_eq!(ack["id"].to_string(), id);
        numbers.push((ack["data"]["number"].as_u64().unwrap(), ack["data"]["id"].as_u64().unwrap(), got.len()));
    }
    assert_eq!(numbers, [(1, 1, 2), (2, 2, 2), (1, 1, 1), (3, 4, 2)]);
    let answers = world.ask(ann, r#"{"type":"history","data":{"channel":"conversation:1","limit":2},"id":9}"#);
    assert_eq!(answers[0]["data"]["position"]["offset"], 3);
    let offsets: Vec<&Value> = answers[0]["data"]["events"].as_array().unwrap().iter().map(|e| &e["offset"]).collect();
    assert_eq!((offsets, &answers[0]["data"]["next"]), (vec![&json!(2), &json!(3)], &Value::Null));
}

#[test]
fn history_is_read_in_parts_from_a_position() {
    let mut world = World::new(1);
    for n in 0..50 {
        world.publish("conversation:1", "e", &json!(n));
    }
    world.run();
    let ann = world.connect(0, "ann");
    let mut position = json!({"offset": 0, "epoch": "log-epoch"});
    let mut offsets = Vec::new();
    while position != Value::Null {
        let data = json!({"channel": "conversation:1", "position": position, "limit": 20});
        let answers = world.ask(ann, &json!({"type": "history", "data": data, "id": 1}).to_string());
        assert_eq!(answers[0]["type"], "history");
        offsets.extend(answers[0]["data"]["events"].as_array().unwrap().iter().map(|e| e["offset"].as_u64().unwrap()));
        position = answers[0]["data"]["next"].clone();
    }
    assert_eq!(offsets, (1..=50).collect::<Vec<u64>>());
    let data = json!({"channel": "conversation:1", "position": {"offset": 0, "epoch": "another"}});
    let answers = world.ask(ann, &json!({"type": "history", "data": data}).to_string());
    assert_eq!(error_of(&answers).1, "not_recoverable");
    let answers = world.ask(ann, r#"{"type":"history","data":{"channel":"news:1"}}"#);
    assert_eq!((&answers[0]["data"]["events"], &answers[0]["data"]["position"]), (&json!([]), &Value::Null));
}

#[test]
fn commands_of_the_hubs_own_follow_one_another_without_asking_python() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.ask(ann, r#"{"type":"subscribe","data":{"channel":"news:1"}}"#);
    world.take_events();
    for channel in ["news:1", "conversation:1"] {
        for n in 0..5 {
            let data = json!({"channel": channel, "event": "e", "data": n});
            world.send(ann, &json!({"type": "publish", "data": data, "id": n}));
        }
        world.send(ann, &json!({"type": "subscribe", "data": {"channel": channel, "last": 9}, "id": "s"}));
        world.send(ann, &json!({"type": "history", "data": {"channel": channel}, "id": "h"}));
        world.run();
        assert_eq!(world.take_events(), [], "{channel}");
        let got = world.take_json(ann);
        let acks: Vec<&Value> = got.iter().filter(|frame| frame["type"] == "ack").map(|ack| &ack["id"]).collect();
        assert_eq!(acks, [0, 1, 2, 3, 4]);
        let heard: Vec<&Value> = got.iter().filter(|frame| frame["type"] == "e").map(|event| &event["data"]).collect();
        assert_eq!(heard, [0, 1, 2, 3, 4]);
        assert_eq!(got.iter().filter(|frame| frame["id"] == "s" || frame["id"] == "h").count(), 2);
    }
}
