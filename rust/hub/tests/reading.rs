//! Pages that are read beside appends: every order of commit, publish, read and hand-over.
//!
//! What must hold: a page ends where the channel stood when it was asked; nothing that was erased before the hand-over
//! is in it; and who replays gets each offset once and in order, whatever is published meanwhile.

mod world;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use world::orders::every_order;
use world::{Store, World};

const CHANNEL: &str = "conversation:1";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The client asks.
    Ask,
    /// The log commits the next append, and publishes it.
    Commit,
    Publish,
    /// The reader reads the page that is next, and hands it over.
    Read,
    HandOver,
    /// The shard takes its inbox and sends, and the client receives.
    Turn,
    /// The log lets go of the first events.
    Sweep,
}
use Step::{Ask, Commit, HandOver, Publish, Read, Sweep, Turn};

/// A conversation of four events, two of them in the log alone.
fn world() -> World {
    let mut options = world::options();
    options["policies"][0]["history"] = json!(2);
    let mut world = World::with(&options, 1, Store::default());
    for n in 1..=4 {
        world.publish(CHANNEL, "e", &json!(format!("secret {n}")));
    }
    world.run();
    let keeps = world.connect(0, "keeps");
    world.ask(keeps, &json!({"type": "subscribe", "data": {"channel": CHANNEL}}).to_string());
    world.read_beside();
    world.log_stands = true;
    world.take_events();
    world
}

struct Run {
    world: World,
    client: usize,
    command: Value,
    got: Vec<Value>,
    /// What the client got behind the erasure.
    after: Vec<Value>,
    is_erased: bool,
    swept: u64,
}

impl Run {
    fn new(command: Value) -> Self {
        let mut world = world();
        let client = world.connect(0, "reads");
        Self { world, client, command, got: Vec::new(), after: Vec::new(), is_erased: false, swept: 0 }
    }

    fn receive(&mut self) {
        self.world.turn(0);
        self.world.receive(0);
        self.world.receive(self.client);
        let frames = self.world.take_json(self.client);
        if self.is_erased { self.after.extend(frames) } else { self.got.extend(frames) }
    }

    fn do_step(&mut self, step: Step) -> bool {
        match step {
            Ask => self.world.send(self.client, &self.command.clone()),
            Commit => return self.world.commit(),
            Publish => {
                let has_published = self.world.publish_committed();
                if has_published && !self.is_erased {
                    // What is on its way was handed over before.
                    self.receive();
                    self.is_erased = true;
                }
                return has_published;
            }
            Read => return self.world.read_page(),
            HandOver => return self.world.hand_over(),
            Turn => self.receive(),
            Sweep => {
                self.swept = 2;
                self.world.store.sweep(CHANNEL, 2);
                self.world.hub.swept(CHANNEL, 2);
            }
        }
        true
    }

    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            let mut moved = false;
            for step in [Commit, Publish, Read, HandOver] {
                moved |= self.do_step(step);
            }
            while self.world.step_log() {
                moved = true;
            }
            self.receive();
            quiet = if moved { 0 } else { quiet + 1 };
        }
    }

    /// Every offset that the client got as an event of its own, in order.
    fn offsets(&self) -> Vec<u64> {
        self.got.iter().chain(&self.after).filter_map(|frame| frame["offset"].as_u64()).collect()
    }

    fn frames(&self) -> impl Iterator<Item = &Value> {
        self.got.iter().chain(&self.after)
    }
}

/// Erases the first event and publishes another one, while `command` is asked, read and handed over.
fn check(command: &Value, sweeps: bool, judge: impl Fn(&Run)) {
    let reader: &[Step] = if sweeps { &[Read, HandOver, Sweep] } else { &[Read, HandOver, Read, HandOver] };
    let programs: [&[Step]; 3] = [&[Ask, Turn], &[Commit, Publish, Commit, Publish], reader];
    let mut orders = 0;
    every_order(&programs, &mut |order| {
        orders += 1;
        let mut run = Run::new(command.clone());
        run.world.amend(CHANNEL, &json!("deleted"), 1, Some(&json!("gone")), true);
        run.world.publish(CHANNEL, "e", &json!("last"));
        for step in order {
            run.do_step(*step);
        }
        run.settle();
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let late: Vec<&Value> = run.after.iter().filter(|frame| frame.to_string().contains("secret 1")).collect();
            assert!(late.is_empty(), "erased, and handed over all the same: {late:?}");
            judge(&run);
        }));
        assert!(judged.is_ok(), "by the order {order:?}: {:?} then {:?}", run.got, run.after);
    });
    assert!(orders > 500, "{orders} orders");
}

#[test]
fn a_page_of_history_ends_at_the_head_of_when_it_was_asked_and_holds_nothing_erased() {
    let command = json!({"type": "history", "id": 1, "data": {"channel": CHANNEL, "limit": 100}});
    check(&command, false, |run| {
        let answers: Vec<&Value> = run.frames().filter(|frame| frame["type"] == "history").collect();
        assert_eq!(answers.len(), 1);
        let data = &answers[0]["data"];
        let head = data["position"]["offset"].as_u64().unwrap();
        let offsets: Vec<u64> =
            data["events"].as_array().unwrap().iter().map(|event| event["offset"].as_u64().unwrap()).collect();
        assert_eq!(offsets, (1..=head).collect::<Vec<_>>());
    });
}

#[test]
fn a_page_of_which_a_part_is_let_go_of_begins_behind_that() {
    let command = json!({"type": "history", "id": 1, "data": {"channel": CHANNEL, "limit": 100}});
    check(&command, true, |run| {
        let answers: Vec<&Value> = run.frames().filter(|frame| frame["type"] == "history").collect();
        assert_eq!(answers.len(), 1);
        let events = answers[0]["data"]["events"].as_array().unwrap();
        let first = events.first().map_or(3, |event| event["offset"].as_u64().unwrap());
        assert!(first == 1 || first == 3, "a whole page or one behind the tail, not {first}");
    });
}

#[test]
fn a_replay_gives_each_offset_once_and_in_order_while_others_are_published() {
    let command = json!({"type": "subscribe", "id": 1, "data": {"channel": CHANNEL, "last": 100}});
    check(&command, false, |run| assert_eq!(run.offsets(), [1, 2, 3, 4, 5, 6]));
}

#[test]
fn a_replay_that_retention_overtakes_ends_or_is_whole() {
    let command = json!({"type": "subscribe", "id": 1, "data": {"channel": CHANNEL, "last": 100}});
    check(&command, true, |run| {
        let ended = run.frames().any(|frame| frame["type"] == "unsubscribed");
        let offsets = run.offsets();
        let first = offsets.first().copied().unwrap_or(1);
        assert!(offsets.iter().copied().eq(first..first + offsets.len() as u64), "{offsets:?}");
        let head = run.world.store.head(CHANNEL);
        assert!(ended || offsets.last() == Some(&head), "{offsets:?}");
    });
}

#[test]
fn a_channel_stays_known_until_its_pages_are_handed_over() {
    let mut world = World::new(1);
    for n in 1..=20 {
        world.publish(CHANNEL, "e", &json!(format!("secret {n}")));
    }
    world.run();
    let mut world = World::with(&world::options(), 1, world.store.clone());
    let reads = world.connect(0, "reads");
    world.read_beside();
    world.send(reads, &json!({"type": "history", "data": {"channel": CHANNEL, "limit": 100}}));
    world.run();
    assert!(world.read_page());
    assert_eq!(world.hub.channels(), 1, "nobody is subscribed, but a page is being read");
    world.amend(CHANNEL, &json!("deleted"), 1, Some(&json!("gone")), true);
    world.run();
    assert!(world.hand_over() && world.read_page(), "it is read again");
    assert!(world.hand_over() && !world.read_page());
    world.run();
    let told = serde_json::to_string(&world.take_json(reads)).unwrap();
    assert!(!told.contains("secret 1\"") && told.contains("secret 20"), "{told}");
    assert_eq!(world.hub.channels(), 0);
    let seen: BTreeSet<&str> = ["reads", "reads_waiting"].into();
    let stats: Value = serde_json::from_str(&world.hub.counters().to_json(world.hub.tallies())).unwrap();
    assert_eq!(seen.iter().map(|name| stats[*name].as_u64().unwrap()).collect::<Vec<_>>(), [1, 0]);
}

#[test]
fn as_many_pages_wait_as_may_and_one_more_is_refused() {
    let mut options = world::options();
    options["limits"]["reads_waiting_max"] = json!(2);
    let mut world = World::with(&options, 1, Store::default());
    for n in 1..=20 {
        world.publish(CHANNEL, "e", &json!(n));
    }
    world.run();
    let [first, second, third] = ["first", "second", "third"].map(|user| world.connect(0, user));
    world.read_beside();
    for (id, reads) in [(1, first), (2, second), (3, third)] {
        world.send(reads, &json!({"type": "history", "id": id, "data": {"channel": CHANNEL, "limit": 100}}));
    }
    world.run();
    let refused = world.take_json(third);
    assert_eq!((refused.len(), &refused[0]["id"], &refused[0]["data"]["code"]), (1, &json!(3), &json!("overloaded")));
    assert_eq!(refused[0]["data"]["retryAfterMs"], 1_000);
    let joins = world.connect(0, "joins");
    let told = world.ask(joins, &json!({"type": "subscribe", "data": {"channel": CHANNEL, "last": 20}}).to_string());
    let last = told.last().unwrap();
    assert_eq!((&last["type"], &last["data"]["code"]), (&json!("unsubscribed"), &json!("overloaded")));
    while world.read_page() {
        world.hand_over();
    }
    world.run();
    assert_eq!(world.take_json(first).len() + world.take_json(second).len(), 2, "those that waited are answered");
    world.send(third, &json!({"type": "history", "id": 4, "data": {"channel": CHANNEL, "limit": 100}}));
    assert!(
        {
            world.run();
            world.read_page()
        } && world.hand_over(),
        "there is room again"
    );
}
