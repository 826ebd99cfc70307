//! The inbox rule, schedule by schedule: every interleaving of small programs, run on the hub itself.
//!
//! A world has two shards, two clients, Python and the log. Each of them has a short program; every order in which
//! their steps can follow one another is run, none is left to chance. A step is one call into the hub: a command that
//! arrives, a submit, a turn of a shard, one request of the log, a socket that ends. That is fine enough: a step takes
//! one channel's lock, and what it does while holding it is pushed to inboxes that nobody reads in between but shards
//! that share nothing else, so a finer order gives each shard the same messages in the same order.
//!
//! What must hold: each membership gets an unbroken part of the channel's order; it begins and ends where the commands
//! took the lock; nothing comes before its confirmation or after its end; a connection that takes the slot of another
//! gets nothing of that one's; and the channel counts the members that it has.

mod world;

use realtime_hub::Command;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use world::orders::every_order;
use world::{Client, Got, Store, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A command of a client arrives.
    Subscribe(usize),
    Unsubscribe(usize),
    Publish(usize),
    /// The socket ends, and the next one takes the slot.
    Replace(usize),
    /// Python's commands.
    PythonPublishes,
    PythonSubscribes(usize),
    PythonUnsubscribes(usize),
    /// A shard takes its inbox and sends.
    Turn(usize),
    /// The log does one thing.
    Log,
}
use Step::{
    Log, Publish, PythonPublishes, PythonSubscribes, PythonUnsubscribes, Replace, Subscribe, Turn, Unsubscribe,
};

/// A membership as a client saw it.
#[derive(Debug, Default)]
struct Run {
    got: Vec<u64>,
    is_open: bool,
    /// The offset before what follows, as the confirmation says; None where the channel does not number.
    before: Option<u64>,
}

/// A membership as the schedule asked for it: how many events were published before, and when it ended.
#[derive(Debug)]
struct Asked {
    from: u64,
    to: Option<u64>,
}

/// One connection's part of a schedule.
#[derive(Debug, Default)]
struct Part {
    runs: Vec<Run>,
    asked: Vec<Asked>,
    was_cut: bool,
}

impl Part {
    fn take(&mut self, client: &mut Client, channel: &str, told: &mut BTreeMap<u64, u64>) {
        for got in client.got.drain(..) {
            let frame = match got {
                Got::Json(frame) => frame,
                Got::End => continue,
                other => panic!("{other:?}"),
            };
            match frame["type"].as_str().unwrap() {
                "connection_established" => {}
                "subscription_confirmed" => {
                    assert!(self.runs.last().is_none_or(|run| !run.is_open), "confirmed twice: {frame}");
                    let before = frame["data"]["position"]["offset"].as_u64();
                    self.runs.push(Run { got: Vec::new(), is_open: true, before });
                }
                "unsubscription_confirmed" | "unsubscribed" => {
                    if let Some(run) = self.runs.last_mut() {
                        run.is_open = false;
                    }
                }
                "e" => {
                    assert_eq!(frame["channel"], channel, "nothing of what another connection had asked for");
                    let number = frame["data"]["n"].as_u64().unwrap();
                    // Durable events are in the order of their offsets; that one offset is one event is seen here.
                    let place = frame["offset"].as_u64().unwrap_or(number);
                    assert_eq!(*told.entry(place).or_insert(number), number, "one offset is one event");
                    let run = self.runs.last_mut().filter(|run| run.is_open);
                    run.unwrap_or_else(|| panic!("outside of any membership: {frame}")).got.push(place);
                }
                other => panic!("unexpected {other}: {frame}"),
            }
        }
    }

    /// Whether it is a member when all has come to rest.
    fn is_member(&self) -> bool {
        !self.was_cut && self.runs.last().is_some_and(|run| run.is_open)
    }

    fn check(&self, published: u64, is_durable: bool) {
        for run in &self.runs {
            let first = run.before.map(|before| before + 1).or_else(|| run.got.first().copied());
            let Some(first) = first else { continue };
            let end = first + run.got.len() as u64;
            assert!(run.got.iter().copied().eq(first..end), "a gap, a double or a swap");
            if run.is_open && !self.was_cut {
                assert_eq!(end, published + 1, "who stayed has everything");
            }
        }
        // Of events that are stored the order is the log's, which is none of the schedule's commands.
        if is_durable {
            return;
        }
        for (run, asked) in self.runs.iter().zip(&self.asked) {
            let expected = asked.from + 1..asked.to.unwrap_or(published) + 1;
            if self.was_cut {
                assert!(expected.take(run.got.len()).eq(run.got.iter().copied()), "a beginning of its part");
            } else {
                assert!(run.got.iter().copied().eq(expected), "its part from the lock to the lock");
            }
        }
        if !self.was_cut && !self.asked.is_empty() {
            assert_eq!(self.runs.len(), self.asked.len(), "every subscribe is confirmed");
        }
    }
}

/// A world that runs one schedule after the other, each in a channel of its own.
struct Bench {
    world: World,
    kind: &'static str,
    channel: String,
    published: u64,
    parts: [Part; 2],
    past: Vec<Part>,
    told: BTreeMap<u64, u64>,
    schedules: u64,
}

impl Bench {
    fn new(kind: &'static str) -> Self {
        let mut world = World::with(&world::options(), 2, Store::default());
        world.log_stands = true;
        for client in 0..2 {
            world.connect(client, "somebody");
        }
        Self {
            world,
            kind,
            channel: String::new(),
            published: 0,
            parts: Default::default(),
            past: Vec::new(),
            told: BTreeMap::new(),
            schedules: 0,
        }
    }

    fn command(&mut self, client: usize, kind: &str, mut data: Value) {
        data["channel"] = json!(self.channel);
        self.world.send(client, &json!({"type": kind, "data": data}));
    }

    fn do_step(&mut self, step: Step) {
        let numbered = json!({"n": self.published + 1});
        match step {
            Subscribe(client) => {
                self.parts[client].asked.push(Asked { from: self.published, to: None });
                self.command(client, "subscribe", json!({}));
            }
            Unsubscribe(client) => {
                let published = self.published;
                if let Some(asked) = self.parts[client].asked.last_mut() {
                    asked.to.get_or_insert(published);
                }
                self.command(client, "unsubscribe", json!({}));
            }
            Publish(client) => {
                self.command(client, "publish", json!({"event": "e", "data": numbered}));
                self.published += 1;
            }
            PythonPublishes => {
                self.world.publish(&self.channel, "e", &numbered);
                self.published += 1;
            }
            PythonSubscribes(client) => {
                let (conn, channel) = (self.world.clients[client].conn, self.channel.as_str().into());
                self.world.submit(Command::Subscribe { conn, channel });
            }
            PythonUnsubscribes(client) => {
                let (conn, channel) = (self.world.clients[client].conn, self.channel.as_str().into());
                self.world.submit(Command::Unsubscribe { conn, channel, code: "forbidden".into(), retryable: false });
            }
            Replace(client) => self.replace(client),
            Turn(shard) => drop(self.world.turn(shard)),
            Log => drop(self.world.step_log()),
        }
    }

    fn replace(&mut self, client: usize) {
        self.receive(client);
        let gone = self.world.clients[client].conn;
        self.world.cut(client);
        let mut part = std::mem::take(&mut self.parts[client]);
        part.was_cut = true;
        self.past.push(part);
        let fresh = self.world.socket(client);
        let conn = self.world.clients[fresh].conn;
        assert_eq!((conn.slot(), conn == gone), (gone.slot(), false), "the slot is given again, the name is not");
        self.world.shards[client].admit_as(conn, 0, "somebody", None, false, self.world.now).unwrap();
        self.world.clients[client] = self.world.clients.remove(fresh);
    }

    fn receive(&mut self, client: usize) {
        self.world.receive(client);
        self.parts[client].take(&mut self.world.clients[client], &self.channel, &mut self.told);
    }

    /// Runs everything to its end.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 2 {
            let mut moved = self.world.step_log();
            for shard in 0..2 {
                moved |= self.world.turn(shard);
                moved |= !self.world.hub.inbox(shard).may_sleep();
                self.world.hub.inbox(shard).woke();
            }
            quiet = if moved { 0 } else { quiet + 1 };
        }
        (0..2).for_each(|client| self.receive(client));
    }

    fn run(&mut self, schedule: &[Step]) {
        self.schedules += 1;
        self.channel = format!("{}:{}", self.kind, self.schedules);
        self.published = 0;
        self.parts = Default::default();
        self.past.clear();
        self.told.clear();
        schedule.iter().for_each(|step| self.do_step(*step));
        self.settle();
        let is_durable = self.kind == "conversation";
        for part in self.parts.iter().chain(&self.past) {
            part.check(self.published, is_durable);
        }
        let members = self.parts.iter().filter(|part| part.is_member()).count();
        assert_eq!(self.world.hub.members(&self.channel), members, "the channel counts its members");
        for client in 0..2 {
            self.command(client, "unsubscribe", json!({}));
        }
        self.settle();
        assert_eq!(self.world.hub.members(&self.channel), 0);
        self.world.take_events();
    }
}

/// Runs every schedule in channels of each kind; `expected` is how many there are.
fn check_all(kinds: &[&'static str], programs: &[&[Step]], expected: u64) {
    for kind in kinds {
        let mut bench = Bench::new(kind);
        every_order(programs, &mut |schedule| {
            let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bench.run(schedule)));
            assert!(run.is_ok(), "in a {kind} channel, by the schedule {schedule:?}");
        });
        assert_eq!(bench.schedules, expected);
    }
}

const IN_MEMORY: [&str; 2] = ["ring", "news"];

#[test]
fn joins_leaves_and_publishes_from_everywhere() {
    let programs: [&[Step]; 5] = [
        &[Subscribe(0), Unsubscribe(0)],
        &[Subscribe(1), Publish(1)],
        &[PythonPublishes, PythonPublishes],
        &[Turn(0), Turn(0)],
        &[Turn(1)],
    ];
    check_all(&IN_MEMORY, &programs, 22_680);
}

#[test]
fn one_who_leaves_and_comes_back_at_once() {
    let programs: [&[Step]; 4] = [
        &[Subscribe(0), Unsubscribe(0), Subscribe(0), Publish(0)],
        &[PythonPublishes, PythonPublishes],
        &[Publish(1)],
        &[Turn(0), Turn(0)],
    ];
    check_all(&IN_MEMORY, &programs, 3_780);
}

#[test]
fn a_connection_that_is_gone_and_one_that_takes_its_slot() {
    let programs: [&[Step]; 4] = [
        &[Subscribe(0), Replace(0), Subscribe(0)],
        &[PythonPublishes, PythonPublishes],
        &[Turn(0), Turn(0)],
        &[Publish(1), Turn(1)],
    ];
    check_all(&IN_MEMORY, &programs, 7_560);
}

#[test]
fn members_that_python_makes_and_takes_away() {
    let programs: [&[Step]; 4] = [
        &[PythonSubscribes(0), PythonPublishes, PythonUnsubscribes(0), PythonPublishes],
        &[Publish(0), Replace(0)],
        &[Turn(0), Turn(0)],
        &[Publish(1)],
    ];
    check_all(&IN_MEMORY, &programs, 3_780);
}

#[test]
fn events_that_are_stored_first() {
    let programs: [&[Step]; 5] =
        [&[Subscribe(0), Unsubscribe(0)], &[Publish(1)], &[PythonPublishes], &[Log, Log, Log], &[Turn(0), Turn(0)]];
    check_all(&["conversation"], &programs, 15_120);
}
