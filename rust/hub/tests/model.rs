//! Shards with a log against a naive model, under random operations, interleavings and crashes.
//!
//! What must hold, whatever happens in whatever order: a subscriber's offsets follow one another without a gap, a
//! double or a step back, from where its confirmation says; what it was told is what is stored; what was acknowledged
//! is there after a crash; every command is answered once, the ones before a Close too; nothing follows our Close;
//! volatile events keep their order, and each that is missing is counted by `lag`; and when everything has come to
//! rest, everybody has everything.

mod world;

use proptest::prelude::*;
use realtime_hub::{Amendment, Command, Event, Publish, Reply, StoredEvent};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use world::{Got, Store, World};

const CHANNELS: [&str; 5] = ["conversation:a", "conversation:b", "ring:a", "news:a", "news:states"];
const CLIENTS: usize = 4;
/// What each client offers at its upgrade: none, and windows of all kinds.
const OFFERS: [Option<&str>; CLIENTS] = [
    None,
    Some("permessage-deflate; client_max_window_bits"),
    Some("permessage-deflate; server_max_window_bits=8"),
    Some("permessage-deflate; server_max_window_bits=15"),
];

#[derive(Debug, Clone)]
enum Op {
    Subscribe {
        client: usize,
        channel: usize,
        with: With,
    },
    Unsubscribe {
        client: usize,
        channel: usize,
    },
    /// Both without a turn between them.
    Renew {
        client: usize,
        channel: usize,
        with: With,
    },
    History {
        client: usize,
        channel: usize,
        after: Option<u64>,
    },
    Evict {
        client: usize,
        channel: usize,
    },
    /// The client says Close.
    Leave {
        client: usize,
    },
    Publish {
        channel: usize,
        dedupe: Option<u8>,
        from: Option<usize>,
    },
    /// An event about an earlier one; with `erases` it becomes a deletion.
    Amend {
        channel: usize,
        offset: u64,
        erases: bool,
    },
    /// The log lets go of the oldest events.
    Sweep {
        channel: usize,
        tail: u64,
    },
    Typing {
        client: usize,
    },
    Turn {
        shard: usize,
    },
    Log,
    Read {
        client: usize,
    },
    Narrow {
        client: usize,
        room: Option<usize>,
    },
    Cut {
        client: usize,
    },
    Advance,
    LogFails(bool),
    Crash,
    /// The log is copied.
    Copy,
    /// The process ends and starts again on the copy.
    Restore,
}

#[derive(Debug, Clone)]
enum With {
    Nothing,
    Last(u64),
    Position,
}

fn op() -> impl Strategy<Value = Op> {
    let client = 0..CLIENTS;
    let channel = 0..CHANNELS.len();
    let with = prop_oneof![Just(With::Nothing), (0_u64..40).prop_map(With::Last), Just(With::Position)];
    prop_oneof![
        4 => (client.clone(), channel.clone(), with.clone()).prop_map(|(client, channel, with)| Op::Subscribe { client, channel, with }),
        2 => (client.clone(), channel.clone(), with).prop_map(|(client, channel, with)| Op::Renew { client, channel, with }),
        2 => (client.clone(), channel.clone(), prop::option::of(0_u64..40))
            .prop_map(|(client, channel, after)| Op::History { client, channel, after }),
        1 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Op::Evict { client, channel }),
        1 => client.clone().prop_map(|client| Op::Leave { client }),
        2 => (client.clone(), channel.clone()).prop_map(|(client, channel)| Op::Unsubscribe { client, channel }),
        8 => (channel, prop::option::weighted(0.3, 0_u8..4), prop::option::of(client.clone()))
            .prop_map(|(channel, dedupe, from)| Op::Publish { channel, dedupe, from }),
        2 => (0_usize..2, 1_u64..20, any::<bool>())
            .prop_map(|(channel, offset, erases)| Op::Amend { channel, offset, erases }),
        1 => (0_usize..2, 0_u64..20).prop_map(|(channel, tail)| Op::Sweep { channel, tail }),
        1 => client.clone().prop_map(|client| Op::Typing { client }),
        8 => (0_usize..3).prop_map(|shard| Op::Turn { shard }),
        6 => Just(Op::Log),
        6 => client.clone().prop_map(|client| Op::Read { client }),
        2 => (client.clone(), prop::option::of(1_usize..400)).prop_map(|(client, room)| Op::Narrow { client, room }),
        2 => client.prop_map(|client| Op::Cut { client }),
        1 => Just(Op::Advance),
        1 => any::<bool>().prop_map(Op::LogFails),
        1 => Just(Op::Crash),
        1 => Just(Op::Copy),
        1 => Just(Op::Restore),
    ]
}

/// What one client knows of one channel.
#[derive(Debug, Default, Clone)]
struct Seen {
    /// Some while subscribed: the offset that has to come next.
    next: Option<u64>,
    position: Option<(u64, String)>,
    /// The event that the position stands for, which another history has not.
    birth: u64,
    /// Of volatile events, the number that has to come next.
    number: Option<u64>,
    /// The last state of class `latest`.
    state: u64,
}

struct Model {
    world: World,
    options: Value,
    /// Ids of commands that are not answered.
    asked: Vec<BTreeSet<String>>,
    /// When the client said Close.
    left_ms: Vec<Option<u64>>,
    /// Events of each volatile channel.
    numbers: u64,
    shards: usize,
    seen: Vec<BTreeMap<&'static str, Seen>>,
    told: BTreeMap<(String, u64), Value>,
    acknowledged: Vec<(String, u64)>,
    /// What Python has to hear next: an offset, or the number of a volatile event.
    heard: BTreeMap<String, u64>,
    sent: u64,
    copy: Store,
}

impl Model {
    fn new(shards: usize, small: bool) -> Self {
        let mut options = world::options();
        options["compression"] = json!({"threshold_bytes": 16});
        options["listen"] = json!(["conversation:*", "news:*"]);
        if small {
            options["limits"] = json!({"enabled": false, "outbox_soft_bytes": 400, "outbox_hard_bytes": 1_500,
                "commands_waiting_max": 3});
        }
        let mut model = Self {
            world: World::with(&options, shards, Store::default()),
            options,
            asked: vec![BTreeSet::new(); CLIENTS],
            left_ms: vec![None; CLIENTS],
            numbers: 0,
            shards,
            seen: Vec::new(),
            told: BTreeMap::new(),
            acknowledged: Vec::new(),
            heard: BTreeMap::new(),
            sent: 0,
            copy: Store::default(),
        };
        model.copy = model.world.store.clone();
        model.world.log_stands = true;
        for client in 0..CLIENTS {
            model.enter(client, client % shards);
            model.world.run();
            model.world.take(client);
            model.seen.push(BTreeMap::new());
        }
        model
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Subscribe { client, channel, with } => self.subscribe(*client, CHANNELS[*channel], with),
            Op::Unsubscribe { client, channel } => self.unsubscribe(*client, CHANNELS[*channel]),
            Op::Renew { client, channel, with } => {
                self.unsubscribe(*client, CHANNELS[*channel]);
                self.subscribe(*client, CHANNELS[*channel], with);
            }
            Op::History { client, channel, after } => {
                let channel = CHANNELS[*channel];
                let seen = self.seen[*client].get(channel).and_then(|seen| seen.position.clone());
                let epoch = seen.map_or_else(|| "log-epoch".to_owned(), |(_, epoch)| epoch);
                let position = after.map(|offset| json!({"offset": offset, "epoch": epoch}));
                self.ask(*client, "history", "", json!({"channel": channel, "position": position, "limit": 20}));
            }
            Op::Evict { client, channel } => {
                let (conn, channel) = (self.world.clients[*client].conn, CHANNELS[*channel].into());
                self.world.submit(Command::Unsubscribe { conn, channel, code: "forbidden".into(), retryable: false });
            }
            Op::Leave { client } => self.leave(*client),
            Op::Publish { channel, dedupe, from } => self.publish(CHANNELS[*channel], *dedupe, *from),
            Op::Amend { channel, offset, erases } => self.amend(CHANNELS[*channel], *offset, *erases),
            Op::Sweep { channel, tail } => {
                let channel = CHANNELS[*channel];
                let tail = (*tail).min(self.world.store.head(channel));
                self.world.store.sweep(channel, tail);
                self.world.hub.swept(channel, tail);
            }
            Op::Typing { client } => {
                self.world.send(*client, &json!({"type": "typing_start", "data": {"conversationId": "a"}}));
            }
            Op::Turn { shard } => drop(self.world.turn(shard % self.shards)),
            Op::Log => drop(self.world.step_log()),
            Op::Read { client } => drop(self.world.receive(*client)),
            Op::Narrow { client, room } => self.world.limit(*client, *room),
            Op::Cut { client } => self.reconnect(*client),
            Op::Advance => self.world.advance(250),
            Op::LogFails(fails) => self.world.log_fails = *fails,
            Op::Crash => self.crash(None),
            Op::Copy => self.copy = self.world.store.clone(),
            Op::Restore => self.crash(Some(self.copy.clone())),
        }
        self.check();
    }

    fn subscribe(&mut self, client: usize, channel: &'static str, with: &With) {
        let mut data = json!({"channel": channel});
        let seen = self.seen[client].entry(channel).or_default();
        match (with, &seen.position) {
            (With::Last(last), _) => data["last"] = json!(last),
            (With::Position, Some((offset, epoch))) => data["position"] = json!({"offset": offset, "epoch": epoch}),
            _ => {}
        }
        // The confirmation repeats the id, so it tells which position it answers.
        let birth = seen.birth;
        let id = format!("{}:{birth}:{}", data["position"]["offset"], data["position"]["epoch"].as_str().unwrap_or(""));
        self.ask(client, "subscribe", &id, data);
    }

    fn unsubscribe(&mut self, client: usize, channel: &str) {
        self.ask(client, "unsubscribe", "", json!({"channel": channel}));
    }

    fn ask(&mut self, client: usize, kind: &str, mark: &str, data: Value) {
        if self.left_ms[client].is_some() {
            return;
        }
        self.sent += 1;
        let id = format!("{mark}#{}", self.sent);
        self.world.send(client, &json!({"type": kind, "data": data, "id": id}));
        self.asked[client].insert(id);
    }

    fn leave(&mut self, client: usize) {
        if self.left_ms[client].is_none() {
            self.left_ms[client] = Some(self.world.now.mono_ms);
            let mut close = Vec::new();
            encode_masked_frame(Opcode::Close, true, b"\x03\xe8", [1, 2, 3, 4], &mut close);
            self.world.raw_bytes(client, &close);
        }
    }

    fn publish(&mut self, channel: &str, dedupe: Option<u8>, from: Option<usize>) {
        self.sent += 1;
        let mut data = json!({"sent": self.sent, "text": "again and again ".repeat(self.sent as usize % 4 * 4)});
        let is_state = channel == "news:states";
        if is_state {
            data = json!({"state": self.sent});
        } else if channel == "news:a" {
            self.numbers += 1;
            data = json!({"n": self.numbers});
        }
        let publish = Publish {
            ticket: self.sent,
            channel: channel.into(),
            event: "e".into(),
            data: data.to_string().into_bytes().into(),
            user: Some("writer".into()),
            key: is_state.then(|| "key".into()),
            dedupe: dedupe.map(|key| format!("{channel}-{key}").into()),
            number: true,
            request: None,
            amends: None,
            notify: from.is_none(),
            reply: from.map(|client| Reply {
                conn: self.world.clients[client].conn,
                id: Some(self.sent.to_string().into_bytes().into()),
                failure: None,
                credit: None,
            }),
        };
        self.world.submit(Command::Publish(publish));
    }

    fn amend(&mut self, channel: &str, offset: u64, erases: bool) {
        self.sent += 1;
        let event = self.world.event(channel, "e", &json!({if erases { "gone" } else { "edit" }: self.sent}));
        let replacement = Some(json!({"now": self.sent}).to_string().into_bytes().into());
        let amends = Some(Amendment { offset, replacement, erases });
        self.world.submit(Command::Publish(Publish { number: true, notify: true, amends, ..event }));
    }

    /// Notes what a channel's offset is told to be: always the same, or what an amendment has made of it.
    fn tell(&mut self, channel: &str, offset: u64, data: &Value) {
        let is_changed = |data: &Value| data["now"].is_u64() || data["gone"].is_u64();
        if !is_changed(data) {
            let first = self.told.entry((channel.to_owned(), offset)).or_insert_with(|| data.clone());
            assert_eq!(first, data, "one offset is one event");
        }
    }

    fn reconnect(&mut self, client: usize) {
        self.world.cut(client);
        self.forget(client);
        let shard = (self.world.clients[client].shard + 1) % self.shards;
        self.take_place(client, shard);
    }

    /// Opens a connection for a client, behind those that are there; returns its place.
    fn enter(&mut self, client: usize, shard: usize) -> usize {
        let user = format!("user{client}");
        let Some(offer) = OFFERS[client] else {
            let socket = self.world.socket(shard);
            let conn = self.world.clients[socket].conn;
            self.world.shards[shard].admit_as(conn, 0, &user, None, false, self.world.now).unwrap();
            return socket;
        };
        self.world.offer(shard, &user, offer)
    }

    /// A new connection in the client's place.
    fn take_place(&mut self, client: usize, shard: usize) {
        let socket = self.enter(client, shard);
        let fresh = self.world.clients.remove(socket);
        self.world.clients[client] = fresh;
    }

    fn forget(&mut self, client: usize) {
        for seen in self.seen[client].values_mut() {
            (seen.next, seen.number) = (None, None);
        }
        self.asked[client].clear();
        self.left_ms[client] = None;
    }

    /// The process dies: what was committed is all that is left.
    fn crash(&mut self, copy: Option<Store>) {
        self.collect();
        if let Some(copy) = &copy {
            self.told.retain(|(channel, offset), _| channel == "ring:a" || *offset <= copy.head(channel));
            self.acknowledged.clear();
            for channel in &CHANNELS[..2] {
                self.heard.insert((*channel).to_owned(), copy.head(channel) + 1);
            }
        }
        let store = copy.unwrap_or_else(|| self.world.store.clone());
        let now = self.world.now;
        self.world = World::with(&self.options, self.shards, store);
        self.world.now = now;
        self.world.log_stands = true;
        for client in 0..CLIENTS {
            self.enter(client, client % self.shards);
            self.forget(client);
            // Channels in memory begin anew, under an epoch that this test's nonce makes the same.
            self.seen[client].remove("ring:a");
        }
        self.told.retain(|(channel, _), _| channel != "ring:a");
    }

    fn check(&mut self) {
        self.collect();
        for client in 0..CLIENTS {
            let mut closed = false;
            for got in self.world.take(client) {
                match got {
                    Got::End => {}
                    _ if closed => panic!("{got:?} behind our Close"),
                    Got::Json(frame) => self.check_frame(client, &frame),
                    Got::Close(code, _) => {
                        closed = true;
                        let in_time = |left_ms| self.world.now.mono_ms < left_ms + 5_000;
                        if code == Some(1000) && self.left_ms[client].is_some_and(in_time) {
                            assert!(
                                self.asked[client].is_empty(),
                                "{client} {:?} before its Close",
                                self.asked[client]
                            );
                        }
                    }
                    Got::Ping | Got::Pong(_) | Got::Text(_) | Got::Binary(_) | Got::Http(_) => {}
                }
            }
            if closed {
                self.reconnect(client);
            }
        }
    }

    /// Notes what was acknowledged to Python.
    fn collect(&mut self) {
        for (channel, frame) in self.world.take_heard() {
            let place = frame["offset"].as_u64().or_else(|| frame["data"]["n"].as_u64());
            // Typing and states have no number.
            let Some(place) = place else { continue };
            let next = self.heard.entry(channel).or_insert(1);
            assert_eq!(place, *next, "Python hears each event once and in order");
            *next += 1;
        }
        for event in self.world.take_events() {
            if let Event::Published { outcome: Ok(published), .. } = event {
                let data: Value = serde_json::from_slice(&published.data).unwrap();
                // A repeated publish is answered with what an amendment has made of the first.
                assert!(data["now"].is_u64() || data["number"] == published.offset);
                self.acknowledged.push((String::new(), published.offset));
            }
        }
    }

    fn check_frame(&mut self, client: usize, frame: &Value) {
        if let Some(id) = frame["id"].as_str().filter(|id| id.contains('#')) {
            assert!(self.asked[client].remove(id), "{client} {frame} answers nothing");
        }
        let channel = frame["channel"].as_str().and_then(|name| CHANNELS.into_iter().find(|known| *known == name));
        let Some(channel) = channel else { return };
        let seen = self.seen[client].entry(channel).or_default();
        match frame["type"].as_str().unwrap() {
            "history" => self.check_page(channel, &frame["data"]),
            "lag" => {
                // Of a numbered channel only what has no offset is dropped: typing.
                if let (Some(number), "news:a") = (&mut seen.number, channel) {
                    *number += frame["data"]["skipped"].as_u64().unwrap();
                }
            }
            "subscription_confirmed" if channel.starts_with("news:") => seen.next = Some(0),
            "e" if frame["data"]["state"].is_u64() => {
                let state = frame["data"]["state"].as_u64().unwrap();
                assert!(seen.next.is_some() && state > seen.state, "{client}: never an older state behind a newer one");
                seen.state = state;
            }
            "e" if channel == "news:a" => {
                assert!(seen.next.is_some());
                let number = frame["data"]["n"].as_u64().unwrap();
                assert_eq!(*seen.number.get_or_insert(number), number, "{client}: in order, and none missing untold");
                seen.number = Some(number + 1);
            }
            "subscription_confirmed" => {
                let data = &frame["data"];
                let before = data["position"]["offset"].as_u64().unwrap();
                let replayed = data["replayed"].as_u64().unwrap();
                assert_eq!(before + replayed, data["head"].as_u64().unwrap(), "what follows leads up to the head");
                if let (Some(next), Value::Null) = (seen.next, &data["recovered"]) {
                    assert_eq!(before + 1, next, "a second subscribe without a position moves nothing");
                }
                let store = &self.world.store;
                if let Some(recovered) = data["recovered"].as_bool() {
                    let mark: Vec<&str> = frame["id"].as_str().unwrap().split(['#', ':']).collect();
                    let (offset, birth): (u64, u64) = (mark[0].parse().unwrap(), mark[1].parse().unwrap());
                    let is_same = channel == "ring:a" || store.birth(channel, offset) == Some(birth);
                    if recovered {
                        assert_eq!(offset, before, "recovered is every missed event");
                        assert!(is_same, "{channel} {frame}: what it had seen is no part of this history");
                    } else {
                        assert_eq!(replayed, 0, "what is not recovered is not replayed in part");
                        let is_known = store.terms.iter().any(|epoch| epoch == mark[2]);
                        let is_kept = offset >= store.bounds(channel).tail;
                        assert!(!(is_known && is_same && is_kept) || channel == "ring:a", "{channel} {frame} is whole");
                    }
                }
                seen.birth = store.birth(channel, before).unwrap_or(0);
                seen.next = Some(before + 1);
                seen.position = Some((before, data["position"]["epoch"].as_str().unwrap().to_owned()));
            }
            "unsubscription_confirmed" | "unsubscribed" => (seen.next, seen.number) = (None, None),
            "e" => {
                let offset = frame["offset"].as_u64().unwrap();
                assert_eq!(Some(offset), seen.next, "{client} {channel}: the next offset and no other");
                seen.next = Some(offset + 1);
                if let Some((known, _)) = &mut seen.position {
                    *known = offset;
                    seen.birth = self.world.store.birth(channel, offset).unwrap_or(0);
                }
                self.tell(channel, offset, &frame["data"]);
            }
            "error" => assert!(["unavailable", "not_recoverable"].contains(&frame["data"]["code"].as_str().unwrap())),
            "typing_indicator" => assert!(seen.next.is_some()),
            other => panic!("unexpected {other}"),
        }
    }

    /// A page of history: without a hole, and what was told.
    fn check_page(&mut self, channel: &str, page: &Value) {
        let events = page["events"].as_array().unwrap();
        let mut next = events.first().map_or(0, |event| event["offset"].as_u64().unwrap());
        for event in events {
            assert_eq!(event["offset"], next, "{channel}: a page has no hole");
            self.tell(channel, next, &event["data"]);
            next += 1;
        }
        let head = page["position"]["offset"].as_u64().unwrap_or(0);
        assert_eq!(page["next"].is_null(), events.is_empty() || next == head + 1);
    }

    /// What memory has of a durable channel is what the log has, amended and erased events too.
    fn check_ring(&mut self) {
        let reader = self.world.connect(0, "reader");
        for channel in &CHANNELS[..2] {
            let data = json!({"channel": channel, "limit": 8});
            let answers = self.world.ask(reader, &json!({"type": "history", "data": data}).to_string());
            let events = answers[0]["data"]["events"].as_array().unwrap();
            let told: Vec<_> =
                events.iter().map(|event| (event["offset"].as_u64().unwrap(), event["data"].clone())).collect();
            let after = self.world.store.head(channel).saturating_sub(8);
            let page = self.world.store.page(channel, after, u64::MAX, 8, usize::MAX);
            let stored = |event: &StoredEvent| (event.offset, serde_json::from_slice(&event.data).unwrap());
            assert_eq!(told, page.iter().map(stored).collect::<Vec<_>>(), "{channel}");
        }
        self.world.cut(reader);
    }

    /// Lets everything come to rest; then everybody subscribed has everything.
    fn rest(&mut self) {
        self.world.log_fails = false;
        self.world.log_stands = false;
        for client in 0..CLIENTS {
            self.world.limit(client, None);
            let (conn, shard) = (self.world.clients[client].conn, self.world.clients[client].shard);
            self.world.shards[shard].writable(conn);
        }
        self.world.run();
        self.check();
        // Who was closed meanwhile is back.
        self.world.run();
        self.check();
        for (client, asked) in self.asked.iter().enumerate() {
            assert!(asked.is_empty(), "{client} has no answer to {asked:?}");
        }
        for (client, channels) in self.seen.iter().enumerate() {
            for (channel, seen) in channels {
                if let (Some(next), true) = (seen.next, channel.starts_with("conversation")) {
                    assert_eq!(next, self.world.store.head(channel) + 1, "{client} {channel} has everything");
                }
            }
        }
        self.check_ring();
        let members = |channel: &str| self.world.hub.members(channel);
        for channel in CHANNELS {
            let subscribed =
                self.seen.iter().filter(|seen| seen.get(channel).is_some_and(|seen| seen.next.is_some())).count();
            assert_eq!(members(channel), subscribed, "{channel} counts its members");
        }
        for offset in self.acknowledged.iter().map(|(_, offset)| *offset) {
            assert!(
                CHANNELS.iter().any(|channel| self.world.store.head(channel) >= offset),
                "what was acknowledged is there"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_order_and_completeness_hold(
        shards in 1_usize..4,
        small in any::<bool>(),
        ops in prop::collection::vec(op(), 1..160),
    ) {
        let mut model = Model::new(shards, small);
        for op in &ops {
            model.apply(op);
        }
        model.rest();
    }
}
