//! The inbox rule over real sockets: four shards, and everybody joins, leaves and publishes at once.
//!
//! Four watchers, one a shard, are members from the first event to the last: what they see is the channel's order.
//! Eight actors, two a shard, publish to every channel and join and leave three of them; Python publishes too, and
//! makes the actors members of the other three and takes that away again; visitors come, read a little and go, and come
//! again with their position. Each membership has to be one unbroken part of the order, from where its confirmation
//! says to where it ends, and nothing may come outside of one.

use crate::client::{Arrived, Client};
use crate::server::{Server, eventually};
use realtime_hub::{Command, ConnId, Event, Publish};
use realtime_protocol::close::CloseCode;
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const SHARDS: usize = 4;
const ACTORS: usize = 8;
const VISITORS: usize = 4;
const VISITS: usize = 20;
const STEPS: usize = 1_500;
/// The first three are joined by the actors themselves, the others by Python for them.
const CHANNELS: [&str; 6] = ["log:own", "ring:own", "room:own", "log:python", "ring:python", "room:python"];
const OWN: usize = 3;
/// What Python publishes is from here; the last event of a channel is the last of these.
const PYTHON: u64 = 0;

fn is_numbered(channel: &str) -> bool {
    !channel.starts_with("room:")
}

fn number_of(channel: &str) -> usize {
    CHANNELS.iter().position(|name| *name == channel).unwrap()
}

/// The same choices in each run; what comes of them is up to the threads.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// An event as a member got it: from whom, which of theirs, and its place where the channel numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tick {
    from: u64,
    number: u64,
    offset: Option<u64>,
}

/// What came between a confirmation and the end of the membership.
#[derive(Debug, Default)]
struct Run {
    /// The offset that has to come first.
    first: Option<u64>,
    ticks: Vec<Tick>,
    /// Whether the member was still there for the last event.
    is_open: bool,
}

/// All memberships of one client, by channel.
#[derive(Debug, Default)]
struct Seen {
    runs: [Vec<Run>; CHANNELS.len()],
    ended: usize,
}

impl Seen {
    fn open(&mut self, channel: &str) -> Option<&mut Run> {
        self.runs[number_of(channel)].last_mut().filter(|run| run.is_open)
    }

    /// Notes a message. Returns its type.
    fn take(&mut self, message: &Value, position: Option<u64>) -> String {
        let kind = message["type"].as_str().unwrap();
        match kind {
            "subscription_confirmed" => self.confirmed(message, position),
            "unsubscription_confirmed" | "unsubscribed" => {
                let channel = message["data"]["channel"].as_str().unwrap();
                self.open(channel).unwrap_or_else(|| panic!("left without having been a member: {message}")).is_open =
                    false;
            }
            "tick" | "end" => {
                let (data, channel) = (&message["data"], message["channel"].as_str().unwrap());
                let (from, number) = (data["from"].as_u64().unwrap(), data["number"].as_u64().unwrap());
                let offset = message["offset"].as_u64();
                let run = self.open(channel).unwrap_or_else(|| panic!("not a member: {message}"));
                run.ticks.push(Tick { from, number, offset });
                self.ended += usize::from(kind == "end");
            }
            _ => panic!("{message}"),
        }
        kind.to_owned()
    }

    fn confirmed(&mut self, message: &Value, position: Option<u64>) {
        let channel = message["data"]["channel"].as_str().unwrap();
        let before = message["data"]["position"]["offset"].as_u64();
        assert_eq!(before.is_some(), is_numbered(channel), "{message}");
        if let Some(run) = self.open(channel) {
            // It was a member already: that is said at its place between the events.
            let next = run.ticks.last().map_or(run.first, |tick| tick.offset.map(|offset| offset + 1));
            return assert_eq!(before.map(|before| before + 1), next, "{message}");
        }
        if message["data"]["recovered"] == true {
            assert_eq!(before, position, "{message}");
        }
        let first = before.map(|before| before + 1);
        self.runs[number_of(channel)].push(Run { first, ticks: Vec::new(), is_open: true });
    }
}

fn json_of(arrived: Arrived) -> Value {
    let Arrived::Text(text) = arrived else { panic!("{arrived:?}") };
    serde_json::from_str(&text).unwrap()
}

/// Reads until every channel has had its last event; tells when the last subscribes are confirmed.
fn read_all(mut client: Client, settled: &Sender<()>) -> Seen {
    let (mut seen, mut finals) = (Seen::default(), 0);
    while seen.ended < CHANNELS.len() {
        let message = json_of(client.next());
        seen.take(&message, None);
        if message["id"] == "final" {
            finals += 1;
            if finals == CHANNELS.len() {
                settled.send(()).unwrap();
            }
        }
    }
    seen
}

fn command(stream: &mut TcpStream, kind: &str, data: &Value, id: Option<&str>) {
    let mut frame = Vec::new();
    let mut text = json!({"type": kind, "data": data});
    if let Some(id) = id {
        text["id"] = id.into();
    }
    encode_masked_frame(Opcode::Text, true, text.to_string().as_bytes(), [1, 2, 3, 4], &mut frame);
    stream.write_all(&frame).unwrap();
}

/// What an actor has done: per channel of its own, the numbers that it published in each of its memberships; and per
/// channel how many in all.
struct Acted {
    stream: TcpStream,
    memberships: [Vec<Vec<u64>>; OWN],
    published: [u64; CHANNELS.len()],
}

fn act(mut stream: TcpStream, from: u64, at_work: &AtomicUsize) -> Acted {
    let (mut memberships, mut published) = ([const { Vec::<Vec<u64>>::new() }; OWN], [0; CHANNELS.len()]);
    let (mut dice, mut is_member) = (Dice(from), [false; OWN]);
    for _ in 0..STEPS {
        if dice.below(4) == 0 {
            let at = dice.below(OWN);
            let kind = if is_member[at] { "unsubscribe" } else { "subscribe" };
            command(&mut stream, kind, &json!({"channel": CHANNELS[at]}), None);
            is_member[at] = !is_member[at];
            if is_member[at] {
                memberships[at].push(Vec::new());
            }
        } else {
            let at = dice.below(CHANNELS.len());
            let data = json!({"from": from, "number": published[at]});
            command(&mut stream, "publish", &json!({"channel": CHANNELS[at], "event": "tick", "data": data}), None);
            if at < OWN && is_member[at] {
                memberships[at].last_mut().unwrap().push(published[at]);
            }
            published[at] += 1;
        }
    }
    at_work.fetch_sub(1, Ordering::SeqCst);
    Acted { stream, memberships, published }
}

/// Comes, reads some events and goes, every other time without a word; the next time it asks for what it has missed.
fn visit(port: u16, seed: u64, at_work: &AtomicUsize) -> Vec<Seen> {
    let mut dice = Dice(seed);
    let mut last: HashMap<&str, (u64, String)> = HashMap::new();
    let mut visits = Vec::new();
    for visit in 0..VISITS {
        let mut client = Client::connect(port, "/ws");
        client.expect("connection_established");
        for channel in CHANNELS {
            let mut data = json!({ "channel": channel });
            if let Some((offset, epoch)) = last.get(channel) {
                data["position"] = json!({"offset": offset, "epoch": epoch});
            }
            client.command("subscribe", &data);
        }
        let (mut seen, mut rest) = (Seen::default(), 20 + dice.below(60));
        while rest > 0 {
            let message = json_of(client.next());
            let channel = message["channel"].as_str().unwrap_or_else(|| panic!("{message}"));
            let channel = CHANNELS[number_of(channel)];
            let kind = seen.take(&message, last.get(channel).map(|(offset, _)| *offset));
            let position = &message["data"]["position"];
            if kind == "tick" {
                rest -= 1;
                if let (Some(offset), Some(known)) = (message["offset"].as_u64(), last.get_mut(channel)) {
                    known.0 = offset;
                }
            } else if position.is_object() {
                let epoch = position["epoch"].as_str().unwrap().to_owned();
                last.insert(channel, (position["offset"].as_u64().unwrap(), epoch));
            }
        }
        visits.push(seen);
        if visit % 2 == 0 {
            client.close(CloseCode::NORMAL);
        }
    }
    at_work.fetch_sub(1, Ordering::SeqCst);
    visits
}

/// This test in Python's place: it publishes, and makes actors members and takes that away.
struct Python<'a> {
    server: &'a Server,
    actors: Vec<ConnId>,
    is_member: Vec<[bool; CHANNELS.len()]>,
    published: [u64; CHANNELS.len()],
    dice: Dice,
}

impl Python<'_> {
    fn publish(&mut self, at: usize, event: &str) -> Command {
        let data = json!({"from": PYTHON, "number": self.published[at]});
        self.published[at] += 1;
        Command::Publish(Publish {
            ticket: 0,
            channel: CHANNELS[at].into(),
            event: event.into(),
            data: data.to_string().into_bytes().into(),
            user: None,
            key: None,
            dedupe: None,
            number: false,
            request: None,
            amends: None,
            notify: false,
            reply: None,
        })
    }

    fn act(&mut self) {
        let at = self.dice.below(CHANNELS.len());
        let publish = self.publish(at, "tick");
        let (actor, joined) = (self.dice.below(ACTORS), OWN + self.dice.below(CHANNELS.len() - OWN));
        let (conn, channel) = (self.actors[actor], CHANNELS[joined].into());
        let is_member = &mut self.is_member[actor][joined];
        let membership = if *is_member {
            Command::Unsubscribe { conn, channel, code: "forbidden".into(), retryable: false }
        } else {
            Command::Subscribe { conn, channel }
        };
        *is_member = !*is_member;
        self.server.engine.handle().submit(vec![publish, membership]);
    }

    /// Waits until every shard has done what it was told.
    fn settle(&self) {
        self.server.submit(Command::Members { ticket: 7, channel: CHANNELS[0].into() });
        for _ in 0..SHARDS {
            self.server.wait_for(|event| matches!(event, Event::Members { ticket: 7, .. }).then_some(()));
        }
    }
}

/// The order of one channel, and where each event stands in it.
struct Truth {
    ticks: Vec<Tick>,
    places: HashMap<(u64, u64), usize>,
}

impl Truth {
    /// From a watcher's only membership; `published` says how many came from whom.
    fn new(watched: &Run, published: &[u64], channel: &str) -> Self {
        let ticks = watched.ticks.clone();
        let total: u64 = published.iter().sum();
        assert_eq!(ticks.len() as u64, total, "every event of {channel} came to the watchers, once");
        for (from, count) in published.iter().enumerate() {
            let own = ticks.iter().filter(|tick| tick.from == from as u64).map(|tick| tick.number);
            assert!(own.eq(0..*count), "what {from} published in {channel} came in its order");
        }
        if is_numbered(channel) {
            let offsets = ticks.iter().map(|tick| tick.offset.unwrap());
            assert!(offsets.eq(1..=total), "offsets of {channel} rise by one");
        }
        let places = ticks.iter().enumerate().map(|(place, tick)| ((tick.from, tick.number), place)).collect();
        Self { ticks, places }
    }

    /// A membership is one unbroken part of the order.
    fn check(&self, run: &Run, channel: &str, who: &str) {
        let start = match (run.first, run.ticks.first()) {
            (Some(first), _) => first as usize - 1,
            (None, Some(tick)) => self.places[&(tick.from, tick.number)],
            (None, None) => return,
        };
        let expected = &self.ticks[start..start + run.ticks.len()];
        assert_eq!(run.ticks, expected, "{who} saw a gap, a double or a swap in {channel}");
    }
}

#[test]
fn every_membership_is_an_unbroken_part_of_the_order_with_four_shards() {
    let rights = ["subscribe", "publish"];
    let patterns = ["log:*", "ring:*", "room:*"];
    let server = Server::start(
        SHARDS,
        // Nobody is slow here: what the limits do to slow readers is another test's question.
        &json!({
            "limits": {"enabled": false, "outbox_hard_bytes": 64 << 20},
            "policies": [{"pattern": "log:*", "durable": true}, {"pattern": "ring:*", "history": 100}],
            "open_grants": patterns.map(|pattern| json!({"pattern": pattern, "rights": rights})),
        }),
    );
    let port = server.port();
    let channels: Vec<String> = CHANNELS.iter().map(|name| (*name).to_owned()).collect();
    let mut conns = Vec::new();
    let mut client = |channels: &[String]| {
        let client = Client::subscribed(port, channels);
        conns.push(server.opened());
        client
    };
    let actors: Vec<Client> = (0..ACTORS).map(|_| client(&[])).collect();
    // They subscribe by the same reader as everybody.
    let watchers: Vec<Client> = (0..SHARDS).map(|_| client(&[])).collect();
    for shard in 0..SHARDS {
        let there = |conns: &[ConnId]| conns.iter().filter(|conn| conn.shard() == shard).count();
        assert_eq!((there(&conns[..ACTORS]), there(&conns[ACTORS..])), (ACTORS / SHARDS, 1), "of shard {shard}");
    }
    let writer = |client: &Client| client.stream.try_clone().unwrap();
    let (writers, mut watching) =
        (actors.iter().map(writer).collect::<Vec<_>>(), watchers.iter().map(writer).collect::<Vec<_>>());
    let at_work = &AtomicUsize::new(ACTORS + VISITORS);
    let (settled, told): (Sender<()>, Receiver<()>) = channel();
    std::thread::scope(|scope| {
        let read = |client: Client| {
            let settled = settled.clone();
            scope.spawn(move || read_all(client, &settled))
        };
        let watchers: Vec<_> = watchers.into_iter().map(read).collect();
        for stream in &mut watching {
            for channel in &channels {
                command(stream, "subscribe", &json!({ "channel": channel }), None);
            }
        }
        for channel in CHANNELS {
            eventually("watcher", || server.engine.handle().members(channel) == SHARDS);
        }
        let readers: Vec<_> = actors.into_iter().map(read).collect();
        let acting: Vec<_> = writers
            .into_iter()
            .zip(1..)
            .map(|(stream, from)| scope.spawn(move || act(stream, from, at_work)))
            .collect();
        let visiting: Vec<_> =
            (0..VISITORS as u64).map(|visitor| scope.spawn(move || visit(port, 1_000 + visitor, at_work))).collect();
        let mut python = Python {
            server: &server,
            actors: conns[..ACTORS].to_vec(),
            is_member: vec![[false; CHANNELS.len()]; ACTORS],
            published: [0; CHANNELS.len()],
            dice: Dice(99),
        };
        // As long as anybody works, so that what they do meets Python's; at a pace that leaves them the processor.
        while at_work.load(Ordering::SeqCst) > 0 {
            python.act();
            std::thread::sleep(Duration::from_millis(1));
        }
        python.settle();
        let mut acted: Vec<Acted> = acting.into_iter().map(|thread| thread.join().unwrap()).collect();
        for stream in acted.iter_mut().map(|acted| &mut acted.stream).chain(&mut watching) {
            for channel in &channels {
                command(stream, "subscribe", &json!({ "channel": channel }), Some("final"));
            }
        }
        for _ in 0..ACTORS + SHARDS {
            told.recv_timeout(Duration::from_secs(20)).expect("the last subscribes are confirmed");
        }
        for at in 0..CHANNELS.len() {
            let last = python.publish(at, "end");
            server.submit(last);
        }
        let watched: Vec<Seen> = watchers.into_iter().map(|thread| thread.join().unwrap()).collect();
        let seen: Vec<Seen> = readers.into_iter().map(|thread| thread.join().unwrap()).collect();
        let visits: Vec<Seen> = visiting.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        for (at, name) in CHANNELS.into_iter().enumerate() {
            let of_actors = acted.iter().map(|acted| acted.published[at]);
            let published: Vec<u64> = [python.published[at]].into_iter().chain(of_actors).collect();
            let truth = Truth::new(&watched[0].runs[at][0], &published, name);
            for watched in &watched {
                assert_eq!(watched.runs[at].len(), 1);
                assert_eq!(watched.runs[at][0].ticks, truth.ticks, "one order for all watchers of {name}");
            }
            for visited in &visits {
                visited.runs[at].iter().for_each(|run| truth.check(run, name, "a visitor"));
            }
            for (actor, seen) in seen.iter().enumerate() {
                seen.runs[at].iter().for_each(|run| truth.check(run, name, &format!("actor {actor}")));
                assert_eq!(seen.runs[at].last().unwrap().ticks.last(), truth.ticks.last(), "it stayed to the end");
                // What it published as a member it has seen, and nothing of its own besides; the log takes its time.
                if at < OWN && name != "log:own" {
                    let from = actor as u64 + 1;
                    let own = |run: &Run| -> Vec<u64> {
                        run.ticks.iter().filter(|tick| tick.from == from).map(|tick| tick.number).collect()
                    };
                    let runs: Vec<Vec<u64>> = seen.runs[at].iter().map(own).collect();
                    let memberships = &acted[actor].memberships[at];
                    assert_eq!(&runs[..memberships.len()], &memberships[..], "own events of actor {actor} in {name}");
                }
            }
        }
        assert!(seen.iter().all(|seen| (0..OWN).all(|at| seen.runs[at].len() > 10)), "many memberships");
    });
}
