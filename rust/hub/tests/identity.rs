//! A session's identity through its life: tickets and unknown keys, another token for a live session, revocation.

mod world;

use proptest::prelude::{Just, Strategy, prop_oneof, proptest};
use proptest::test_runner::Config;
use realtime_hub::{Admitted, Command, ConnId, Event, Hub, Now};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};
use world::doors::{HOUR_S, connect, now_s, refusals, request, sign, status, token, upgrade};
use world::{Got, SECRET, Store, World, admitted, options};

fn refresh(world: &mut World, client: usize, token: &str) -> Vec<Value> {
    world.ask(client, &json!({"type": "refresh", "id": 7, "data": {"token": token}}).to_string())
}

fn subscribe(world: &mut World, client: usize, channel: &str) -> Value {
    let answers = world.ask(client, &json!({"type": "subscribe", "data": {"channel": channel}}).to_string());
    answers[0].clone()
}

fn revoke(world: &mut World, user: Option<&str>, token_id: Option<&str>, before_s: Option<u64>) {
    let (user, token_id) = (user.map(Into::into), token_id.map(Into::into));
    world.submit(Command::Revoke { user, token_id, before_s, close: true });
    world.run();
}

fn is_closed_by(world: &mut World, client: usize, code: u16) -> bool {
    world.take(client).iter().any(|got| matches!(got, Got::Close(Some(told), _) if *told == code))
}

#[test]
fn a_ticket_is_pythons_to_read_and_nothing_may_come_beside_it() {
    let mut world = World::new(1);
    let good = token(&world, "ann", &json!({}));
    for (target, more, outcome) in [
        ("/ws?ticket=abc".to_owned(), "", "asked"),
        ("/ws?ticket=abc&ticket=abc".to_owned(), "", "asked"),
        ("/ws?ticket=".to_owned(), "", "asked"),
        ("/ws?ticket=abc&ticket=abd".to_owned(), "", "Unauthorized"),
        ("/ws?ticket=%FF".to_owned(), "", "Unauthorized"),
        (format!("/ws?ticket=abc&token={good}"), "", "Unauthorized"),
        ("/ws?ticket=abc".to_owned(), "Authorization: Bearer x\r\n", "Unauthorized"),
        ("/ws?ticket=abc".to_owned(), "Sec-WebSocket-Protocol: bearer.x\r\n", "Unauthorized"),
        ("/ws?Ticket=abc".to_owned(), "", "Unauthorized"),
        (format!("/ws?token={good}"), "", "let in"),
    ] {
        let client = upgrade(&mut world, 0, &target, more);
        assert_eq!(status(&mut world, client), outcome, "{target} {more}");
        let asked = world.take_events().iter().any(|event| matches!(event, Event::Upgrade { endpoint: 0, .. }));
        assert_eq!(asked, outcome == "asked", "{target}");
    }
}

#[test]
fn whom_python_lets_in_by_a_ticket_has_the_facts_that_it_tells() {
    let mut world = World::new(1);
    let client = upgrade(&mut world, 0, "/ws?ticket=abc", "");
    let conn = world.clients[client].conn;
    let ends_ms = world.now.wall_ms + 1_000;
    let who =
        Admitted { expires_at_ms: Some(ends_ms), issued_at_s: Some(5), token_id: Some("t1".into()), ..admitted("ann") };
    world.take_events();
    world.submit(Command::Accept { conn, who });
    world.run();
    let [Event::Open { token: None, expires_at_ms, token_id, issued_at_s, .. }] = &world.take_events()[..] else {
        panic!("not open")
    };
    assert_eq!((*expires_at_ms, token_id.as_deref(), *issued_at_s), (Some(ends_ms), Some("t1"), Some(5)));
    assert_eq!(world.take_json(client)[0]["data"]["userId"], "ann");
    revoke(&mut world, None, Some("t1"), None);
    assert!(is_closed_by(&mut world, client, 1000), "the first version's client stops at 1000 alone");
}

#[test]
fn python_hears_of_the_token_only_where_it_wants_to() {
    for tells in [false, true] {
        let mut options = options();
        options["tell_tokens"] = tells.into();
        let mut world = World::with(&options, 1, Store::default());
        let (first, second) = (token(&world, "ann", &json!({})), token(&world, "ann", &json!({"a:*": []})));
        let client = connect(&mut world, 0, &first);
        refresh(&mut world, client, &second);
        let events = world.take_events();
        let [Event::Open { token: opened, .. }, Event::Renewed { token: renewed, .. }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((opened.as_deref(), renewed.as_deref()), (tells.then_some(&*first), tells.then_some(&*second)));
        assert!(!format!("{events:?}").contains(&first), "no Debug shows a token");
    }
}

#[test]
fn the_rules_may_change_while_sessions_stay() {
    let mut world = World::new(1);
    let first = token(&world, "ann", &json!({}));
    let client = connect(&mut world, 0, &first);
    let key =
        |key: &str| json!({"token": {"keys": [{"algorithm": "HS256", "key": key}]}, "origins": ["https://a.example"]});
    world.hub.set_identity(key("another-secret-0123456789abcdef0").to_string().as_bytes()).unwrap();
    let target = format!("/ws?token={}", token(&world, "ann", &json!({})));
    let refused = upgrade(&mut world, 0, &target, "");
    assert_eq!(status(&mut world, refused), "Unauthorized");
    let old = token(&world, "ann", &json!({}));
    assert_eq!(refresh(&mut world, client, &old)[0]["data"]["code"], "unauthorized");
    for bad in ["", "[]", "{\"tokens\": null}", &key("short").to_string(), "{\"token\": {\"keys\": []}}"] {
        let error = world.hub.set_identity(bad.as_bytes()).unwrap_err();
        assert!(!error.contains("short"), "{error}");
    }
    world.hub.set_identity(key(SECRET).to_string().as_bytes()).unwrap();
    for (origin, outcome) in [("https://a.example", "let in"), ("https://b.example", "Forbidden")] {
        let client = upgrade(&mut world, 0, &target, &format!("Origin: {origin}\r\n"));
        assert_eq!(status(&mut world, client), outcome, "{origin}");
    }
    world.hub.set_identity(b"{\"token\": null, \"origins\": null}").unwrap();
    let refused = upgrade(&mut world, 0, &target, "");
    assert_eq!(status(&mut world, refused), "Unauthorized");
}

#[test]
fn a_page_that_brings_a_cookie_is_ours_before_python_is_asked() {
    let mut world = World::new(1);
    for (target, more, outcome) in [
        ("/hook", "Cookie: s=1\r\nOrigin: https://evil.example\r\n", "Forbidden"),
        ("/hook", "Cookie: s=1\r\nOrigin: null\r\n", "Forbidden"),
        ("/hook", "Cookie: s=1\r\nOrigin: https://edge.example:3002\r\n", "asked"),
        ("/hook", "Cookie: s=1\r\n", "asked"),
        ("/hook", "Origin: https://evil.example\r\n", "asked"),
        ("/ws?ticket=abc", "Cookie: s=1\r\nOrigin: https://evil.example\r\n", "asked"),
    ] {
        let client = upgrade(&mut world, 0, target, more);
        assert_eq!(status(&mut world, client), outcome, "{target} {more}");
        let asked = world.take_events().iter().filter(|event| matches!(event, Event::Upgrade { .. })).count();
        assert_eq!(asked, usize::from(outcome == "asked"), "{target} {more}");
    }
}

#[test]
fn a_refresh_moves_the_end_and_is_told_when_it_is() {
    let mut world = World::new(1);
    let now_s = now_s(&world);
    let until = |exp: u64| sign(&json!({"sub": "ann", "exp": exp}));
    let client = connect(&mut world, 0, &until(now_s + 60));
    world.advance(31_000);
    assert_eq!(world.take_json(client).last().unwrap()["type"], "token_expiring");
    let answers = refresh(&mut world, client, &until(now_s + 120));
    assert_eq!((&answers[0]["type"], &answers[0]["id"]), (&json!("ack"), &json!(7)));
    assert_eq!(answers[0]["data"], json!({"expiresAt": "2026-11-23T06:32:00.000Z"}));
    world.advance(58_000);
    assert_eq!(world.take_json(client), [] as [Value; 0], "the end of the first token means nothing any more");
    world.advance(2_000);
    assert_eq!(world.take_json(client).last().unwrap()["type"], "token_expiring", "told of each end once");
    world.send(client, &json!({"type": "refresh", "data": {"token": until(now_s + 150)}}));
    world.run();
    assert_eq!(world.take_json(client), [] as [Value; 0], "without an id there is no answer to what went well");
    world.advance(60_000);
    assert!(is_closed_by(&mut world, client, 4002));
}

#[test]
fn a_refresh_that_fails_leaves_the_session_as_it_was() {
    let mut world = World::new(1);
    let good = token(&world, "ann", &json!({"secret:1": ["subscribe"]}));
    let client = connect(&mut world, 0, &good);
    subscribe(&mut world, client, "secret:1");
    world.take_events();
    let expired = sign(&json!({"sub": "ann", "exp": 1}));
    let other = token(&world, "bob", &json!({}));
    for (data, code, path) in [
        (json!({"token": other}), "forbidden", None),
        (json!({"token": expired}), "unauthorized", None),
        (json!({"token": "nonsense"}), "unauthorized", None),
        (json!({"token": "x".repeat(1 << 20)}), "unauthorized", None),
        (json!({"token": ""}), "invalid_message", Some("data.token")),
        (json!({"token": 7}), "invalid_message", Some("data.token")),
        (json!({}), "invalid_message", Some("data.token")),
    ] {
        let answers = world.ask(client, &json!({"type": "refresh", "id": "r", "data": data}).to_string());
        let [error] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(
            (&error["type"], &error["id"], &error["data"]["code"]),
            (&json!("error"), &json!("r"), &json!(code))
        );
        assert_eq!(error["data"]["path"].as_str(), path, "{error}");
        assert!(!error.to_string().contains("nonsense"), "no error repeats a token");
    }
    assert_eq!(world.hub.members("secret:1"), 1);
    assert_eq!(refusals(&mut world), ["expired", "malformed", "malformed"]);
}

#[test]
fn channels_that_only_the_old_token_covered_are_left() {
    let mut world = World::new(2);
    let first = token(&world, "ann", &json!({"secret:*": ["subscribe"], "kept:1": ["subscribe", "publish"]}));
    let client = connect(&mut world, 1, &first);
    let conn = world.clients[client].conn;
    for channel in ["secret:1", "kept:1", "news:1"] {
        assert_eq!(subscribe(&mut world, client, channel)["type"], "subscription_confirmed", "{channel}");
    }
    world.take_events();
    world.send(client, &json!({"type": "subscribe", "data": {"channel": "poll:1"}}));
    world.run();
    let [Event::Authorize { raw, .. }] = &world.take_events()[..] else { panic!("not asked") };
    let rights = vec!["subscribe".into(), "publish".into()];
    world.submit(Command::Grant { conn, channel: "poll:1".into(), rights, raw: raw.clone() });
    world.submit(Command::Subscribe { conn, channel: "made:1".into() });
    world.run();
    assert_eq!(world.take_json(client).len(), 2);

    let second = token(&world, "ann", &json!({"kept:1": ["subscribe"]}));
    let answers = refresh(&mut world, client, &second);
    let [ack, left] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((&ack["type"], &left["type"]), (&json!("ack"), &json!("unsubscribed")));
    assert_eq!(left["data"], json!({"channel": "secret:1", "code": "forbidden", "retryable": false}));
    let members = ["secret:1", "kept:1", "news:1", "poll:1", "made:1"].map(|channel| world.hub.members(channel));
    assert_eq!(members, [0, 1, 1, 1, 1]);
    let code = |world: &mut World, kind: &str, channel: &str| {
        let data = json!({"channel": channel, "event": "e", "data": {}});
        world.ask(client, &json!({"type": kind, "id": 1, "data": data}).to_string())[0]["data"]["code"].clone()
    };
    assert_eq!(code(&mut world, "publish", "kept:1"), "forbidden", "the new grants replace the old");
    assert_eq!(code(&mut world, "publish", "poll:1"), Value::Null, "what a hook granted is the session's");
    assert_eq!(code(&mut world, "subscribe", "secret:1"), "forbidden");
}

#[test]
fn a_refresh_waits_for_its_turn_behind_what_python_has() {
    let mut world = World::new(1);
    let first = token(&world, "ann", &json!({}));
    let client = connect(&mut world, 0, &first);
    let conn = world.clients[client].conn;
    world.take_events();
    world.send(client, &json!({"type": "send_message", "id": 1, "data": {}}));
    let next = token(&world, "ann", &json!({"secret:1": ["subscribe"]}));
    world.send(client, &json!({"type": "refresh", "id": 2, "data": {"token": next}}));
    world.send(client, &json!({"type": "subscribe", "id": 3, "data": {"channel": "secret:1"}}));
    world.run();
    let events = world.take_events();
    let [Event::Message { .. }, Event::Deferred { raw: refresh, .. }, Event::Deferred { raw: subscribe, .. }] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(world.take(client), []);
    world.submit(Command::Done { conn, count: 1 });
    world.submit(Command::Resume { conn, raw: refresh.clone() });
    world.submit(Command::Resume { conn, raw: subscribe.clone() });
    world.run();
    let answers = world.take_json(client);
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(2), &json!(3)]);
    assert_eq!(answers[1]["type"], "subscription_confirmed");
    let events = world.take_events();
    assert!(matches!(
        &events[..],
        [Event::Renewed { .. }, Event::Carried { goes_on: false, .. }, Event::Carried { .. }]
    ));
    assert!(world.shards[0].pause_unless_readable(conn), "all credits came back");
}

/// A client of `/hook`, whose tokens only Python can read.
fn hooked(world: &mut World) -> (usize, ConnId) {
    let client = upgrade(world, 0, "/hook", "Sec-WebSocket-Protocol: realtime.v1\r\n");
    let conn = world.clients[client].conn;
    world.submit(Command::Accept { conn, who: admitted("ann") });
    world.run();
    world.take(client);
    world.take_events();
    (client, conn)
}

#[test]
fn python_renews_what_only_python_can_read() {
    let mut world = World::new(1);
    let (client, conn) = hooked(&mut world);
    let ends_ms = world.now.wall_ms + 90_000;
    let good = Admitted { expires_at_ms: Some(ends_ms), ..admitted("ann") };
    let unreadable = Admitted { grants: Some(b"[]"[..].into()), ..admitted("ann") };
    for (who, kind, data) in [
        (good, "ack", json!("2026-11-23T06:31:30.000Z")),
        (admitted("ann"), "ack", Value::Null),
        (admitted("bob"), "error", json!("forbidden")),
        (unreadable, "error", json!("unauthorized")),
    ] {
        world.send(client, &json!({"type": "refresh", "id": "x", "data": {"token": "opaque"}}));
        world.run();
        let events = world.take_events();
        let [Event::Refresh { id, token, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!((id.as_deref(), &**token), (Some(&b"\"x\""[..]), "opaque"));
        assert!(!format!("{events:?}").contains("opaque"));
        world.submit(Command::Renew { conn, id: id.clone(), who });
        world.run();
        let answers = world.take_json(client);
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((&answer["type"], &answer["id"]), (&json!(kind), &json!("x")));
        let member = if kind == "ack" { "expiresAt" } else { "code" };
        assert_eq!(answer["data"][member], data);
        let events = world.take_events();
        let renewed = events.iter().filter(|event| matches!(event, Event::Renewed { .. })).count();
        assert_eq!(renewed, usize::from(kind == "ack"));
    }
    world.cut(client);
    world.submit(Command::Renew { conn, id: None, who: admitted("ann") });
    world.run();
    assert!(matches!(world.take_events()[..], [Event::Close { .. }]));
}

#[test]
fn a_flood_of_refreshes_is_slowed_down() {
    let mut options = options();
    options["limits"] = json!({"commands_per_s": 10, "commands_burst": 30});
    let mut world = World::with(&options, 1, Store::default());
    let good = token(&world, "ann", &json!({}));
    let client = connect(&mut world, 0, &good);
    let codes: Vec<Value> = (0..4).map(|_| refresh(&mut world, client, &good)[0]["data"]["code"].clone()).collect();
    assert_eq!(codes, [Value::Null, Value::Null, Value::Null, json!("rate_limited")]);
}

#[test]
fn a_revoked_user_is_closed_everywhere_and_comes_back_by_a_newer_token_only() {
    let mut world = World::new(2);
    let now_s = now_s(&world);
    let issued =
        |user: &str, iat: Option<u64>| sign(&json!({"sub": user, "exp": now_s + HOUR_S, "iat": iat.unwrap_or(0)}));
    let old: Vec<usize> = [0, 1].map(|shard| connect(&mut world, shard, &issued("ann", Some(now_s - 5)))).into();
    let bob = connect(&mut world, 1, &issued("bob", Some(now_s - 5)));
    let (in_flight, conn) = {
        let client = upgrade(&mut world, 0, "/hook", "");
        (client, world.clients[client].conn)
    };
    revoke(&mut world, Some("ann"), None, Some(now_s));
    for client in old {
        assert!(is_closed_by(&mut world, client, 4500));
    }
    assert_eq!(refresh(&mut world, bob, &issued("bob", None))[0]["type"], "ack");
    world.submit(Command::Accept { conn, who: Admitted { issued_at_s: Some(now_s - 1), ..admitted("ann") } });
    world.run();
    assert_eq!(status(&mut world, in_flight), "Unauthorized");
    for (iat, outcome) in [(Some(now_s - 1), "Unauthorized"), (None, "Unauthorized"), (Some(now_s), "let in")] {
        let client = upgrade(&mut world, 1, &format!("/ws?token={}", issued("ann", iat)), "");
        assert_eq!(status(&mut world, client), outcome, "{iat:?}");
    }
}

#[test]
fn a_revoked_token_renews_nobody_and_a_renewed_session_goes_by_its_new_one() {
    let mut world = World::new(1);
    let exp = now_s(&world) + HOUR_S;
    let by = |id: &str| sign(&json!({"sub": "ann", "exp": exp, "jti": id}));
    let client = connect(&mut world, 0, &by("t1"));
    assert_eq!(refresh(&mut world, client, &by("t2"))[0]["type"], "ack");
    revoke(&mut world, None, Some("t1"), None);
    assert_eq!(world.take(client), [], "it goes by t2 now");
    assert_eq!(refresh(&mut world, client, &by("t1"))[0]["data"]["code"], "unauthorized");
    world.submit(Command::Revoke { user: None, token_id: Some("t2".into()), before_s: None, close: false });
    world.run();
    assert_eq!(world.take(client), [], "told not to close");
    assert_eq!(refresh(&mut world, client, &by("t2"))[0]["data"]["code"], "unauthorized");
    revoke(&mut world, None, Some("t2"), None);
    assert!(is_closed_by(&mut world, client, 4500));
}

#[test]
fn nobody_slips_in_while_a_revocation_is_on_its_way() {
    for round in 0..400 {
        let mut world = World::new(2);
        let target = format!("/ws?token={}", token(&world, "ann", &json!({})));
        let clients: Vec<usize> = (0..2).map(|shard| world.socket(shard)).collect();
        let conns: Vec<ConnId> = clients.iter().map(|client| world.clients[*client].conn).collect();
        let (hub, now, start) = (world.hub.clone(), world.now, Barrier::new(3));
        std::thread::scope(|scope| {
            for (shard, conn) in world.shards.iter_mut().zip(conns) {
                let (start, target) = (&start, &target);
                scope.spawn(move || {
                    let mut bytes = request(target, "");
                    start.wait();
                    shard.bytes_in(conn, &mut bytes, now);
                    shard.run_inbox(now);
                });
            }
            start.wait();
            revoke_only(&hub, now);
        });
        world.run();
        for client in clients {
            let got = world.take(client);
            let is_refused = matches!(&got[0], Got::Http(head) if head.starts_with("HTTP/1.1 401 "));
            assert!(is_refused || got.iter().any(|got| matches!(got, Got::Close(..))), "round {round}: {got:?}");
        }
    }
}

#[test]
fn a_shard_that_has_heard_of_a_revocation_lets_nobody_in_by_it() {
    let mut world = World::new(1);
    let target = format!("/ws?token={}", token(&world, "ann", &json!({})));
    let client = world.socket(0);
    let (conn, now) = (world.clients[client].conn, world.now);
    let shard = Arc::new(Mutex::new(world.shards.pop().unwrap()));
    let runs = Arc::clone(&shard);
    // The shard runs at the earliest moment there is: while the submitting thread still wakes it.
    world.hub.inbox(0).set_waker(Box::new(move || {
        let mut shard = runs.lock().unwrap();
        shard.run_inbox(now);
        shard.bytes_in(conn, &mut request(&target, ""), now);
    }));
    assert!(world.hub.inbox(0).may_sleep());
    revoke_only(&world.hub, now);
    let mut events = Vec::new();
    shard.lock().unwrap().take_events(&mut events);
    assert!(matches!(events[..], [Event::Refused { reason: "revoked", .. }]), "{events:?}");
    assert_eq!(world.hub.counters().refused.load(Ordering::Relaxed), 1);
}

/// Submits the revocation of ann and lets nothing else run.
fn revoke_only(hub: &Hub, now: Now) {
    let revoke = Command::Revoke { user: Some("ann".into()), token_id: None, before_s: None, close: true };
    hub.submit(vec![revoke], now, &mut Vec::new());
}

#[test]
fn who_is_closed_in_the_turn_that_let_them_in_can_read_why() {
    let mut world = World::new(1);
    let client = upgrade(&mut world, 0, "/hook", "Sec-WebSocket-Protocol: realtime.v1\r\n");
    let conn = world.clients[client].conn;
    let accept = Command::Accept { conn, who: admitted("ann") };
    let close = Command::Close { conn, code: 4503, reason: "removed".into() };
    world.hub.submit(vec![accept, close], world.now, &mut Vec::new());
    world.run();
    let got = world.take(client);
    assert!(matches!(&got[..], [Got::Json(_), Got::Close(Some(4503), _)]), "{got:?}");
}

/// What happens to one session.
#[derive(Debug, Clone)]
enum Op {
    Refresh(BTreeSet<u8>),
    RefreshAsOther(BTreeSet<u8>),
    Subscribe(u8),
    Unsubscribe(u8),
    HookGrants(u8),
    PythonSubscribes(u8),
    RevokeOther,
}

fn ops() -> impl Strategy<Value = Vec<(Op, bool)>> {
    let channel = || 0..4u8;
    let channels = || proptest::collection::btree_set(0..4u8, 0..4);
    let op = prop_oneof![
        3 => channels().prop_map(Op::Refresh),
        1 => channels().prop_map(Op::RefreshAsOther),
        4 => channel().prop_map(Op::Subscribe),
        1 => channel().prop_map(Op::Unsubscribe),
        1 => channel().prop_map(Op::HookGrants),
        1 => channel().prop_map(Op::PythonSubscribes),
        1 => Just(Op::RevokeOther),
    ];
    proptest::collection::vec((op, proptest::bool::ANY), 1..40)
}

/// Does an op in the world and in the model: what the token, hooks and Python have given, and what is subscribed to.
#[derive(Default)]
struct Model {
    token: BTreeSet<u8>,
    hook: BTreeSet<u8>,
    members: BTreeSet<u8>,
}

impl Model {
    fn may(&self, channel: u8) -> bool {
        self.token.contains(&channel) || self.hook.contains(&channel)
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Refresh(granted) => {
                let lost: Vec<u8> =
                    self.members.iter().copied().filter(|c| self.may(*c) && !self.hook.contains(c)).collect();
                self.token = granted.clone();
                self.members.retain(|channel| !lost.contains(channel) || granted.contains(channel));
            }
            Op::Subscribe(channel) if self.may(*channel) => drop(self.members.insert(*channel)),
            Op::Unsubscribe(channel) => drop(self.members.remove(channel)),
            Op::HookGrants(channel) => {
                self.hook.insert(*channel);
                self.members.insert(*channel);
            }
            Op::PythonSubscribes(channel) => drop(self.members.insert(*channel)),
            Op::Subscribe(_) | Op::RefreshAsOther(_) | Op::RevokeOther => {}
        }
    }
}

fn perform(world: &mut World, client: usize, op: &Op) {
    let name = |channel: u8| format!("room:{channel}");
    let command = |kind: &str, channel: u8| json!({"type": kind, "data": {"channel": name(channel)}});
    let conn = world.clients[client].conn;
    let granting = |granted: &BTreeSet<u8>| -> Value {
        granted.iter().map(|channel| (name(*channel), json!(["subscribe"]))).collect::<serde_json::Map<_, _>>().into()
    };
    match op {
        Op::Refresh(granted) | Op::RefreshAsOther(granted) => {
            let user = if matches!(op, Op::Refresh(_)) { "ann" } else { "bob" };
            let token = token(world, user, &granting(granted));
            world.send(client, &json!({"type": "refresh", "data": {"token": token}}));
        }
        Op::Subscribe(channel) => world.send(client, &command("subscribe", *channel)),
        Op::Unsubscribe(channel) => world.send(client, &command("unsubscribe", *channel)),
        Op::HookGrants(channel) => {
            let raw = command("subscribe", *channel).to_string().into_bytes().into();
            let rights = vec!["subscribe".into()];
            world.submit(Command::Grant { conn, channel: name(*channel).into(), rights, raw });
        }
        Op::PythonSubscribes(channel) => world.submit(Command::Subscribe { conn, channel: name(*channel).into() }),
        Op::RevokeOther => revoke(world, Some("bob"), Some("t0"), None),
    }
}

proptest! {
    #![proptest_config(Config { cases: 256, ..Config::default() })]

    #[test]
    fn a_session_is_in_the_channels_that_its_rights_cover(ops in ops()) {
        let mut world = World::new(1);
        let first = token(&world, "ann", &json!({}));
        let client = connect(&mut world, 0, &first);
        let mut model = Model::default();
        for (op, rests) in ops {
            perform(&mut world, client, &op);
            model.apply(&op);
            // Commands from both sides meet in the inbox; only what the shard has seen is compared.
            if rests || !matches!(op, Op::Subscribe(_) | Op::Unsubscribe(_)) {
                world.run();
                let members: BTreeSet<u8> =
                    (0..4).filter(|channel| world.hub.members(&format!("room:{channel}")) == 1).collect();
                assert_eq!(members, model.members, "{op:?}");
            }
        }
        world.take_json(client);
    }
}

/// What a session of `ann` with one pattern is charged: the user, the pattern, and what a grant takes besides.
const OF_ANN: usize = 3 + "secret:1".len() + 48;

fn holding(identities_bytes_max: usize) -> (World, String, String) {
    let mut options = options();
    options["limits"] = json!({"identities_bytes_max": identities_bytes_max});
    let world = World::with(&options, 2, Store::default());
    let small = token(&world, "ann", &json!({"secret:1": ["subscribe"]}));
    let large = token(&world, "ann", &json!({"secret:12": ["subscribe"]}));
    (world, small, large)
}

fn identities(world: &World) -> (u64, u64) {
    let counters = world.hub.counters();
    (counters.identities_bytes.load(Ordering::Relaxed), counters.identities_refused.load(Ordering::Relaxed))
}

#[test]
fn identities_are_held_up_to_their_bound_and_a_session_above_it_is_told_to_come_back() {
    let (mut world, small, _) = holding(2 * OF_ANN);
    let first = connect(&mut world, 0, &small);
    connect(&mut world, 1, &small);
    assert_eq!(identities(&world), (2 * OF_ANN as u64, 0));
    let refused = upgrade(&mut world, 0, &format!("/ws?token={small}"), "");
    assert_eq!(status(&mut world, refused), "Service Unavailable");
    assert_eq!(identities(&world), (2 * OF_ANN as u64, 1));
    world.cut(first);
    world.run();
    assert_eq!(identities(&world), (OF_ANN as u64, 1));
    connect(&mut world, 0, &small);
}

#[test]
fn a_refresh_above_the_bound_of_identities_leaves_the_session_as_it_was() {
    let (mut world, small, large) = holding(2 * OF_ANN + 1);
    let clients = [connect(&mut world, 0, &small), connect(&mut world, 1, &small)];
    let mut renew = |client: usize, token: &str| {
        let command = json!({"type": "refresh", "id": 1, "data": {"token": token}}).to_string();
        let answers = world.ask(client, &command);
        let code = answers[0]["data"]["code"].as_str().unwrap_or("ack").to_owned();
        (code, identities(&world).0 as usize)
    };
    assert_eq!(renew(clients[0], &large), ("ack".into(), 2 * OF_ANN + 1));
    assert_eq!(renew(clients[1], &large), ("overloaded".into(), 2 * OF_ANN + 1));
    assert_eq!(renew(clients[0], &small), ("ack".into(), 2 * OF_ANN));
    assert_eq!(renew(clients[1], &large), ("ack".into(), 2 * OF_ANN + 1));
}
