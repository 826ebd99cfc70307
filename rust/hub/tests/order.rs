//! A session's commands run in the order they came, whatever Python does meanwhile.
//!
//! Clients pipeline commands of every kind; Python is a model of `realtime.control.routing` and its `lanes`: one lane, whose
//! steps begin one after the other, which takes its events in batches of any size and hands back at any moment. Each
//! step of the model is chosen at random: bytes arrive, the shard turns, the log commits, Python takes, begins or ends.

mod world;

use proptest::prelude::{ProptestConfig, any, prop};
use proptest::proptest;
use realtime_hub::{Command, ConnId, Event};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use world::{Got, World, options};

/// What a client may send; the number is its id and, by its rest, its channel.
fn command(kind: u8, n: usize) -> Value {
    let news = format!("news:{}", n % 3);
    let poll = format!("poll:{}", n % 5);
    let (kind, data) = match kind % 12 {
        0 => ("send_message", json!({"content": "x"})),
        1 | 2 => ("unsubscribe", json!({"channel": format!("never:{n}")})),
        3 | 4 => ("subscribe", json!({"channel": news})),
        5 => ("unsubscribe", json!({"channel": news})),
        6 => ("publish", json!({"channel": news, "event": "said"})),
        7 => ("publish", json!({"channel": "conversation:1", "event": "said"})),
        8 => ("history", json!({"channel": "conversation:1", "last": 2})),
        9 => ("subscribe", json!({"channel": poll})),
        10 => ("publish", json!({"channel": poll, "event": "said"})),
        _ => ("subscribe", json!({"channel": news, "last": "many"})),
    };
    json!({"type": kind, "data": data, "id": n})
}

/// The rest of what a command does at once: no channel, no log, no Python.
fn is_answered_at_once(sent: &Value) -> bool {
    sent["data"]["last"] == "many" || sent["data"]["channel"].as_str().is_some_and(|name| name.starts_with("never:"))
}

/// A generator that needs nothing but its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % most
    }
}

/// What the lane waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Nothing,
    /// A handler that has not returned.
    Handler(usize),
    /// The engine's word that it has run what was handed back.
    Carried,
}

/// The lane of one session, as `lanes` and `routing` of `realtime.control` have it.
struct Python {
    conn: ConnId,
    untaken: VecDeque<Event>,
    lane: VecDeque<Event>,
    step: Step,
    /// Ids in the order in which their steps began; one that came up again stands there twice.
    begun: Vec<usize>,
}

fn id_of(event: &Event) -> usize {
    match event {
        Event::Message { id, .. } => serde_json::from_slice(id.as_ref().unwrap()).unwrap(),
        Event::Authorize { raw, .. } | Event::Deferred { raw, .. } => {
            serde_json::from_slice::<Value>(raw).unwrap()["id"].as_u64().unwrap() as usize
        }
        other => panic!("{other:?} is no step"),
    }
}

impl Python {
    fn takes(&mut self, count: usize) {
        for _ in 0..count {
            match self.untaken.pop_front() {
                None => return,
                Some(Event::Carried { goes_on, .. }) => {
                    assert_eq!(self.step, Step::Carried, "Carried without a command handed back");
                    if goes_on {
                        let again = self.lane.pop_back().expect("what came up again");
                        self.lane.push_front(again);
                    }
                    self.step = Step::Nothing;
                }
                Some(event) => self.lane.push_back(event),
            }
        }
    }

    fn begins(&mut self, world: &mut World, dice: &mut Dice) {
        let Some(event) = self.lane.pop_front() else { return };
        let (conn, n) = (self.conn, id_of(&event));
        self.begun.push(n);
        self.step = match event {
            Event::Message { .. } => Step::Handler(n),
            Event::Deferred { raw, .. } => {
                world.submit(Command::Resume { conn, raw });
                Step::Carried
            }
            Event::Authorize { channel, raw, .. } if dice.below(4) > 0 => {
                let rights = vec!["subscribe".into(), "publish".into()];
                world.submit(Command::Grant { conn, channel, rights, raw });
                Step::Carried
            }
            Event::Authorize { .. } => {
                self.answers(world, n);
                Step::Nothing
            }
            other => panic!("{other:?}"),
        };
    }

    fn answers(&self, world: &mut World, n: usize) {
        let payload = json!({"type": "ack", "id": n, "data": null}).to_string().into_bytes().into();
        world.submit(Command::Send { conn: self.conn, text: true, payload, done: 1 });
    }

    fn ends(&mut self, world: &mut World) {
        if let Step::Handler(n) = self.step {
            self.answers(world, n);
            self.step = Step::Nothing;
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self.step, Step::Nothing) && self.lane.is_empty() && self.untaken.is_empty()
    }
}

/// The channels that the commands before `n` leave the session in.
fn subscribed(sent: &[Value]) -> BTreeMap<String, bool> {
    let mut state = BTreeMap::new();
    for command in sent {
        let name = command["data"]["channel"].as_str().unwrap_or_default();
        if name.starts_with("news:") && !is_answered_at_once(command) {
            match command["type"].as_str().unwrap() {
                "subscribe" => state.insert(name.to_owned(), true),
                "unsubscribe" => state.insert(name.to_owned(), false),
                _ => None,
            };
        }
    }
    state
}

fn assert_subscribed(world: &World, sent: &[Value]) {
    for (name, is_subscribed) in subscribed(sent) {
        assert_eq!(world.hub.members(&name) > 0, is_subscribed, "{name} after {} commands", sent.len());
    }
}

/// Runs the commands, and returns the ids in the order in which they were answered.
fn run(kinds: &[u8], seed: u64, first: usize) -> Vec<usize> {
    let mut dice = Dice(seed | 1);
    let mut world = World::with(&options(), 1, world::Store::default());
    let ann = world.connect(0, "ann");
    world.take(ann);
    world.take_events();
    let conn = world.clients[ann].conn;
    let mut python =
        Python { conn, untaken: VecDeque::new(), lane: VecDeque::new(), step: Step::Nothing, begun: Vec::new() };
    let sent: Vec<Value> = kinds.iter().enumerate().map(|(n, kind)| command(*kind, n)).collect();
    let mut unsent = 0;
    for round in 0.. {
        assert!(round < 100_000, "it does not come to rest: {:?} {:?}", python.step, python.lane);
        match dice.below(8) {
            0 if unsent < sent.len() => {
                let count = if unsent == 0 { first } else { 1 + dice.below(40) }.min(sent.len() - unsent);
                let mut bytes = Vec::new();
                for command in &sent[unsent..unsent + count] {
                    encode_masked_frame(Opcode::Text, true, command.to_string().as_bytes(), [9; 4], &mut bytes);
                }
                unsent += count;
                world.raw_bytes(ann, &bytes);
            }
            1 => drop(world.step_log()),
            2 => python.takes(1 + dice.below(70)),
            3 | 4 if python.step == Step::Nothing => {
                if let Some(n) = python.lane.front().map(id_of)
                    && dice.below(4) == 0
                {
                    // Before a step begins, all that came before it has taken effect and nothing that came after it.
                    world.run();
                    assert_subscribed(&world, &sent[..n]);
                }
                python.begins(&mut world, &mut dice);
            }
            5 => python.ends(&mut world),
            _ => drop(world.turn(0)),
        }
        python.untaken.extend(world.take_events());
        if unsent == sent.len() && python.is_idle() {
            world.run();
            python.untaken.extend(world.take_events());
            if python.is_idle() {
                break;
            }
        }
    }
    assert!(python.begun.is_sorted(), "begun out of order: {:?}", python.begun);
    assert_subscribed(&world, &sent);
    let is_answer = |got: &Value| got.get("id").is_some();
    let answered: Vec<usize> = world
        .take(ann)
        .into_iter()
        .filter_map(|got| if let Got::Json(json) = got { Some(json) } else { None })
        .filter(is_answer)
        .map(|got| got["id"].as_u64().unwrap() as usize)
        .collect();
    // All credits are back: what comes now goes nowhere else first.
    let last = world.ask(ann, "{\"type\":\"unsubscribe\",\"data\":{\"channel\":\"never:0\"},\"id\":\"last\"}");
    assert_eq!((last.len(), &last[0]["id"]), (1, &json!("last")));
    assert_eq!(world.take_events(), [], "a credit was lost");
    let mut once = answered.clone();
    once.sort_unstable();
    assert_eq!(once, (0..sent.len()).collect::<Vec<_>>(), "each is answered once");
    answered.into_iter().filter(|n| is_answered_at_once(&sent[*n])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_of_a_session_run_in_their_order_under_random_hand_backs(
        kinds in prop::collection::vec(any::<u8>(), 1..300),
        seed in any::<u64>(),
        first in 1_usize..300,
    ) {
        let at_once = run(&kinds, seed, first);
        assert!(at_once.is_sorted(), "answered out of order: {at_once:?}");
    }
}

#[test]
fn two_hundred_and_forty_commands_behind_a_handler_are_answered_in_their_order() {
    let mut kinds = vec![1; 241];
    kinds[0] = 0;
    for seed in 1..20 {
        assert_eq!(run(&kinds, seed, 241), (1..=240).collect::<Vec<_>>());
    }
}

#[test]
fn unsubscribe_and_subscribe_behind_64_others_end_subscribed() {
    let mut kinds = vec![1; 70];
    kinds[0] = 0;
    // 66 and 69 name the same channel.
    (kinds[3], kinds[66], kinds[69]) = (3, 5, 3);
    for seed in 1..20 {
        run(&kinds, seed, 70);
    }
}

#[test]
fn a_connection_is_read_on_only_behind_the_word_that_a_command_ran() {
    let mut world = World::new(1);
    let ann = world.connect(0, "ann");
    world.take_events();
    for n in 0..65 {
        let kind = if n == 0 { 0 } else { 1 };
        world.send(ann, &command(kind, n));
    }
    // What is read on is a handler's, and not what Python handed back.
    world.send(ann, &command(0, 65));
    world.run();
    let conn = world.clients[ann].conn;
    let events = world.take_events();
    assert_eq!(events.len(), 64);
    let Event::Deferred { raw, .. } = &events[1] else { panic!("not deferred: {:?}", events[1]) };
    world.submit(Command::Done { conn, count: 31 });
    world.submit(Command::Resume { conn, raw: raw.clone() });
    world.run();
    let after = world.take_events();
    assert_eq!(after[0], Event::Carried { conn, goes_on: false });
    assert!(matches!(&after[1..], [Event::Deferred { .. }, Event::Message { .. }]), "{after:?}");
}

#[test]
fn a_guarded_command_waits_for_a_right_that_may_be_on_its_way() {
    let mut options = options();
    options["routes"] = json!(["send_message", {"type": "draw", "right": "publish", "channel": "board:{data.board}"}]);
    let mut world = World::with(&options, 1, world::Store::default());
    let ann = world.connect(0, "ann");
    world.take_events();
    let draw = |id: usize| json!({"type": "draw", "data": {"board": "1"}, "id": id}).to_string();
    assert_eq!(world.ask(ann, &draw(1))[0]["data"]["code"], "forbidden", "nothing is under way");
    world.ask(ann, "{\"type\":\"send_message\",\"data\":{},\"id\":2}");
    assert_eq!(world.ask(ann, &draw(3)), Vec::<Value>::new());
    let [Event::Message { .. }, Event::Deferred { conn, raw }] = &world.take_events()[..] else {
        panic!("it was not deferred")
    };
    let conn = *conn;
    world.submit(Command::Done { conn, count: 1 });
    world.submit(Command::Resume { conn, raw: raw.clone() });
    world.run();
    assert_eq!(world.take_json(ann)[0]["data"]["code"], "forbidden", "the right did not come");
    assert_eq!(world.take_events(), [Event::Carried { conn, goes_on: false }]);
}
