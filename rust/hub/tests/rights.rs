//! Which channel a command touches and who may: guards, templates, hooks, and users whose ids are no names.

mod world;

use realtime_hub::{Command, Event};
use serde_json::{Value, json};
use world::{Store, World};

fn ask(world: &mut World, who: usize, kind: &str, data: &Value) -> Value {
    let answers = world.ask(who, &json!({"type": kind, "data": data, "id": 1}).to_string());
    answers.into_iter().find(|answer| answer["id"] == 1).unwrap_or(Value::Null)
}

fn guarded(routes: &Value) -> World {
    let mut options = world::options();
    options["routes"] = routes.clone();
    options["open_grants"] = json!([{"pattern": "board:*", "rights": ["publish"]}]);
    options["authorize"] = json!(["board:**", "sheet:*"]);
    World::with(&options, 1, Store::default())
}

#[test]
fn a_guard_without_its_member_answers_with_the_path_and_python_hears_nothing() {
    let mut world = guarded(&json!([
        {"type": "draw", "right": "publish", "channel": "board:{data.board}", "failure": "No"},
        {"type": "say", "right": "publish", "channel": "board:{data.board}", "missing": "Board is required"},
    ]));
    let ann = world.connect(0, "ann");
    world.take_events();
    for (data, is_missing) in [
        (json!({}), true),
        (Value::Null, true),
        (json!({"board": null}), true),
        (json!({"board": ""}), true),
        (json!({"board": {"id": 1}}), false),
        (json!({"board": [1]}), false),
        (json!({"board": true}), false),
        (json!({"board": 1e21}), false),
        (json!({"board": "a b"}), false),
        (json!({"board": "x\n"}), false),
        (json!({"board": "x".repeat(123)}), false),
    ] {
        for (kind, missing) in [("draw", "Invalid message format"), ("say", "Board is required")] {
            let answer = ask(&mut world, ann, kind, &data);
            let message = if is_missing { missing } else { "Invalid message format" };
            assert_eq!(answer["data"]["code"], "invalid_message", "{data}");
            assert_eq!((&answer["data"]["message"], &answer["data"]["path"]), (&json!(message), &json!("data.board")));
        }
        assert_eq!(world.take_events(), [], "{data}");
    }
    for data in [json!("hello"), json!(7), json!([]), json!(false)] {
        let answer = ask(&mut world, ann, "say", &data);
        let found = (&answer["data"]["message"], &answer["data"]["path"]);
        assert_eq!(found, (&json!("Invalid message format"), &json!("data")), "{data}");
    }
    ask(&mut world, ann, "draw", &json!({"board": 43.0}));
    assert!(matches!(&world.take_events()[..], [Event::Message { route: 0, .. }]));
}

#[test]
fn a_hook_is_asked_for_the_right_of_the_guard() {
    let mut world = guarded(&json!([
        {"type": "read", "right": "history", "channel": "sheet:{data.sheet}"},
        {"type": "look", "right": "presence", "channel": "sheet:{data.sheet}"},
        {"type": "join", "right": "subscribe", "channel": "sheet:{data.sheet}"},
        {"type": "edit", "right": "publish", "channel": "sheet:{data.sheet}"},
    ]));
    let ann = world.connect(0, "ann");
    world.take_events();
    for (kind, wanted) in [("read", "history"), ("look", "presence"), ("join", "subscribe"), ("edit", "publish")] {
        ask(&mut world, ann, kind, &json!({"sheet": "7"}));
        let events = world.take_events();
        let [Event::Authorize { conn, channel, right, raw, .. }] = &events[..] else { panic!("{kind}: {events:?}") };
        assert_eq!((&**channel, *right), ("sheet:7", wanted));
        world.submit(Command::Grant { conn: *conn, channel: channel.clone(), rights: vec![], raw: raw.clone() });
        world.run();
        assert_eq!(world.take_json(ann)[0]["data"]["code"], "forbidden", "{kind}");
        world.take_events();
    }
}

#[test]
fn a_hook_is_asked_for_the_history_by_the_name_of_the_right() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    assert_eq!(ask(&mut world, ann, "history", &json!({"channel": "poll:7"})), Value::Null);
    let events = world.take_events();
    let [Event::Authorize { conn, channel, right: "history", raw, .. }] = &events[..] else { panic!("{events:?}") };
    let rights = vec!["history".into()];
    world.submit(Command::Grant { conn: *conn, channel: channel.clone(), rights, raw: raw.clone() });
    world.run();
    assert_eq!(world.take_json(ann)[0]["type"], "history");
    let answer = ask(&mut world, ann, "history", &json!({"channel": "secret:1"}));
    assert_eq!(answer["data"]["message"], "Not allowed to read the history on this channel");
}

#[test]
fn the_session_stands_in_a_guards_channel() {
    let mut world = guarded(&json!([{"type": "echo", "right": "publish", "channel": "board:{session.id}"}]));
    let ann = world.connect(0, "ann");
    world.take_events();
    ask(&mut world, ann, "echo", &json!({}));
    assert!(matches!(&world.take_events()[..], [Event::Message { .. }]), "an empty id would be no open board");
}

#[test]
fn a_template_with_a_member_that_is_not_there_relays_nothing() {
    let mut options = world::options();
    options["relays"] = json!([
        {"type": "cursor_move", "channel": "news:{data.board}", "event": "cursor_moved",
         "data": {"x": "{data.x}"}, "latest_by": "{data.pen}"},
    ]);
    let mut world = World::with(&options, 1, Store::default());
    let ann = world.connect(0, "ann");
    world.ask(ann, r#"{"type":"subscribe","data":{"channel":"news:1"}}"#);
    let good = json!({"board": "1", "x": 1, "pen": "red"});
    assert_eq!(ask(&mut world, ann, "cursor_move", &good)["type"], "ack");
    for (member, value) in [
        ("board", Value::Null),
        ("board", json!("")),
        ("board", json!({})),
        ("board", json!("a b")),
        ("pen", Value::Null),
        ("pen", json!("")),
        ("pen", json!([])),
        ("pen", json!("p".repeat(257))),
    ] {
        let mut data = good.clone();
        data[member] = value.clone();
        let answer = ask(&mut world, ann, "cursor_move", &data);
        assert_eq!(answer["data"]["code"], "invalid_message", "{member} {value}");
        assert_eq!(answer["data"]["path"], format!("data.{member}"), "{value}");
        data.as_object_mut().unwrap().remove(member);
        assert_eq!(ask(&mut world, ann, "cursor_move", &data)["data"]["path"], format!("data.{member}"));
    }
    assert_eq!(world.take_json(ann).len(), 0, "nothing was relayed");
}

#[test]
fn own_channels_of_any_user_id_are_named_in_three_ways_and_answered_in_one() {
    let mut options = world::options();
    options["open_grants"] = json!([
        {"pattern": "user:{session.user}", "rights": ["subscribe", "publish", "history"]},
        {"pattern": "box:{session.user}:*", "rights": ["subscribe"]},
    ]);
    options["authorize"] = json!([]);
    let ids = [
        ("ann", "ann"),
        ("me", "me"),
        ("user@example.com", "user@example.com"),
        ("auth0|5f7c", ".YXV0aDB8NWY3Yw"),
        ("ann+test@example.com", ".YW5uK3Rlc3RAZXhhbXBsZS5jb20"),
        ("Zo\u{eb}", ".Wm_Dqw"),
        ("org/user", ".b3JnL3VzZXI"),
        (".Wm_Dqw", ".LldtX0Rxdw"),
        ("arn:aws:iam::1:user/ann", ".YXJuOmF3czppYW06OjE6dXNlci9hbm4"),
        ("*", ".Kg"),
    ];
    for (user, segment) in ids {
        let mut world = World::with(&options, 2, Store::default());
        let own = world.connect(0, user);
        let eve = world.connect(1, "eve");
        let channel = format!("user:{segment}");
        for said in ["user:me".to_owned(), format!("user:{user}"), channel.clone()] {
            let data = json!({"channel": said});
            let answer = ask(&mut world, own, "subscribe", &data);
            assert_eq!(
                (&answer["type"], &answer["data"]["channel"]),
                (&json!("subscription_confirmed"), &json!(channel))
            );
            assert_eq!(answer["channel"], channel, "{said}");
            assert_eq!(world.hub.members(&channel), 1, "{said}");
            let sent = json!({"channel": said, "event": "e", "data": 1});
            let got = world.ask(own, &json!({"type": "publish", "data": sent}).to_string());
            assert_eq!((&got[0]["type"], &got[0]["channel"]), (&json!("e"), &json!(channel)), "{said}");
            let answer = ask(&mut world, own, "history", &data);
            assert_eq!((&answer["type"], &answer["data"]["channel"]), (&json!("history"), &json!(channel)), "{said}");
            let answer = ask(&mut world, own, "unsubscribe", &data);
            assert_eq!(answer["type"], "unsubscription_confirmed");
            assert_eq!((&answer["data"]["channel"], &answer["channel"]), (&json!(channel), &json!(channel)), "{said}");
            assert_eq!(world.hub.members(&channel), 0, "{said}");
            if said != "user:me" {
                let answer = ask(&mut world, eve, "subscribe", &data);
                assert_eq!(answer["type"], "error", "{said} is not eve's");
                assert_eq!(world.hub.members(&channel), 0);
            }
        }
        let boxed = json!({"channel": format!("box:{segment}:in")});
        assert_eq!(ask(&mut world, own, "subscribe", &boxed)["type"], "subscription_confirmed", "{user}");
        assert_eq!(ask(&mut world, eve, "subscribe", &boxed)["data"]["code"], "forbidden", "{user}");
    }
}

#[test]
fn a_template_names_any_users_channel_by_the_raw_id_and_nobody_by_me() {
    let mut options = world::options();
    options["relays"] = json!([
        {"type": "poke", "channel": "user:{data.to}", "event": "poked", "data": {"by": "{session.user}"}},
        {"type": "note", "channel": "user:{session.user}", "event": "noted", "data": {"by": "{session.user}"}},
    ]);
    options["open_grants"] = json!([
        {"pattern": "user:**", "rights": ["publish"]},
        {"pattern": "user:{session.user}", "rights": ["subscribe"]},
    ]);
    let mut world = World::with(&options, 1, Store::default());
    let (zoe, me) = (world.connect(0, "Zo\u{eb}"), world.connect(0, "me"));
    for member in [zoe, me] {
        assert_eq!(
            ask(&mut world, member, "subscribe", &json!({"channel": "user:me"}))["type"],
            "subscription_confirmed"
        );
    }
    assert_eq!(ask(&mut world, me, "poke", &json!({"to": "Zo\u{eb}"}))["type"], "ack");
    assert_eq!(world.take_json(zoe)[0]["data"], json!({"by": "me"}));
    assert_eq!(ask(&mut world, zoe, "poke", &json!({"to": "me"}))["type"], "ack");
    assert_eq!(world.take_json(me)[0]["data"], json!({"by": "Zo\u{eb}"}), "the user of that name, not the sender");
    world.ask(zoe, r#"{"type":"note","data":{}}"#).into_iter().find(|frame| frame["type"] == "noted").unwrap();
}

#[test]
fn the_events_of_publish_follow_the_grammar_of_names() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    let publish = |event: Value| json!({"channel": "news:1", "event": event, "data": 1});
    for good in ["e", "_a", "a.b:c@d-e", &"x".repeat(128)] {
        assert_eq!(ask(&mut world, ann, "publish", &publish(json!(good)))["type"], "ack", "{good}");
    }
    let long = "x".repeat(129);
    for bad in [json!(""), json!("a b"), json!("-a"), json!("\u{e9}"), json!("a\n"), json!(long), json!(7), Value::Null]
    {
        let answer = ask(&mut world, ann, "publish", &publish(bad.clone()));
        assert_eq!(
            (&answer["data"]["code"], &answer["data"]["path"]),
            (&json!("invalid_message"), &json!("data.event")),
            "{bad}"
        );
    }
}
