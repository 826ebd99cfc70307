//! What a slow reader gets, against a list of what it was sent.

use super::*;
use crate::channel::Policy;
use crate::options::Overflow;
use proptest::prelude::*;
use std::sync::atomic::Ordering;

fn event(channel: &Arc<Channel>, class: Class, text: &str) -> Queued {
    Queued { frame: Prepared::text(text.as_bytes()), class, channel: Some(Arc::clone(channel)), form: Form::Plain }
}

fn channel() -> Arc<Channel> {
    Arc::new(Channel::new("c".into(), 1, Policy::VOLATILE, "e".into(), false, None, 1))
}

fn all(backlog: &mut Backlog, counters: &Counters) -> String {
    let mut out = Vec::new();
    backlog.fill(&mut out, 1 << 20, true, 0, counters);
    backlog.sent(out.len(), counters);
    String::from_utf8_lossy(&out).into_owned()
}

const VOLATILE: Class = Class::Volatile(Overflow::DropOldest);

#[test]
fn over_the_hard_limit_the_oldest_volatile_events_go_and_lag_stands_in_their_place() {
    let (channel, counters) = (channel(), Counters::default());
    let bounds = Bounds { soft_bytes: 1 << 20, hard_bytes: 36, resumable: true };
    let mut backlog = Backlog::start([event(&channel, VOLATILE, "first-0000")].into_iter(), 3, &counters);
    for n in 1..=5 {
        backlog.push(event(&channel, VOLATILE, &format!("event-000{n}")), bounds, &counters).unwrap();
    }
    let out = all(&mut backlog, &counters);
    let places: Vec<Option<usize>> =
        ["rst-0000", "\"skipped\":2", "event-0003", "event-0005"].iter().map(|t| out.find(t)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{out}");
    assert!(!out.contains("event-0001") && !out.contains("event-0002"), "{out}");
    assert_eq!((backlog.bytes(), counters.outbox_bytes.into_inner()), (0, 0));
}

#[test]
fn durable_events_are_never_dropped_for_who_can_resume() {
    let (channel, counters) = (channel(), Counters::default());
    let bounds = |resumable| Bounds { soft_bytes: 1 << 20, hard_bytes: 20, resumable };
    let mut backlog = Backlog::start([event(&channel, Class::Durable, &"x".repeat(500))].into_iter(), 0, &counters);
    backlog.push(event(&channel, Class::Durable, "0123456789"), bounds(true), &counters).unwrap();
    assert_eq!(backlog.push(event(&channel, Class::Durable, "0123456789"), bounds(true), &counters), Err(TooSlow));
    backlog.push(event(&channel, Class::Durable, "abcdefghij"), bounds(false), &counters).unwrap();
    assert!(all(&mut backlog, &counters).contains("\"skipped\""));
}

#[test]
fn partial_sends_of_any_size_give_the_same_bytes() {
    for step in 1..40 {
        let (channel, counters) = (channel(), Counters::default());
        let frames: Vec<Queued> = (0..4).map(|n| event(&channel, Class::Reply, &format!("frame {n}"))).collect();
        let whole: Vec<u8> = frames.iter().flat_map(|q| q.bytes().to_vec()).collect();
        let mut backlog = Backlog::start(frames.into_iter(), 2, &counters);
        let mut got = whole[..2].to_vec();
        while !backlog.is_empty() {
            let mut out = Vec::new();
            backlog.fill(&mut out, 16, true, 0, &counters);
            let taken = out.len().min(step);
            got.extend_from_slice(&out[..taken]);
            backlog.sent(taken, &counters);
        }
        assert_eq!(got, whole);
        assert_eq!((backlog.bytes(), counters.outbox_bytes.into_inner()), (0, 0));
    }
}

#[test]
fn whole_frames_go_out_whole_however_long_they_are() {
    let (channel, counters) = (channel(), Counters::default());
    let frames: Vec<Queued> =
        [3, 40, 3, 3].iter().map(|len| event(&channel, Class::Reply, &"x".repeat(*len))).collect();
    let lengths: Vec<usize> = frames.iter().map(Queued::wire_len).collect();
    let mut backlog = Backlog::start(frames.into_iter(), 0, &counters);
    for filled in [lengths[0], lengths[1], lengths[2] + lengths[3]] {
        let mut out = Vec::new();
        backlog.fill(&mut out, 16, false, 0, &counters);
        assert_eq!(out.len(), filled);
        backlog.sent(filled, &counters);
    }
    assert!(backlog.is_empty());
}

#[test]
fn a_newer_state_takes_the_place_of_a_queued_one_only_over_the_soft_limit() {
    let (channel, counters) = (channel(), Counters::default());
    let bounds = Bounds { soft_bytes: 30, hard_bytes: 1 << 20, resumable: true };
    let latest = |key: &str, text: &str| event(&channel, Class::Latest(key.into()), text);
    let mut backlog = Backlog::start([latest("a", "a-0")].into_iter(), 1, &counters);
    for queued in [latest("a", "a-1"), latest("b", "b-1"), latest("a", "a-2"), latest("c", "c-1234567890")] {
        backlog.push(queued, bounds, &counters).unwrap();
    }
    assert_eq!(counters.dropped_conflated.load(Ordering::Relaxed), 0);
    for queued in [latest("a", "a-3"), latest("b", "b-2"), latest("a", "a-4")] {
        backlog.push(queued, bounds, &counters).unwrap();
    }
    let out = all(&mut backlog, &counters);
    let text: String = out.chars().filter(char::is_ascii_graphic).collect();
    let places: Vec<_> = ["a-0", "a-1", "b-2", "a-4", "c-1234567890"].iter().map(|t| text.find(t)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{text}");
    assert_eq!((text.contains("lag"), text.contains("a-2") || text.contains("a-3")), (false, false));
    assert_eq!((counters.dropped_conflated.into_inner(), counters.outbox_bytes.into_inner()), (3, 0));
}

#[test]
fn a_flood_of_volatile_events_does_not_push_a_state_out() {
    let (channel, counters) = (channel(), Counters::default());
    let bounds = Bounds { soft_bytes: 100, hard_bytes: 200, resumable: true };
    let mut backlog = Backlog::start([event(&channel, Class::Reply, "0")].into_iter(), 1, &counters);
    backlog.push(event(&channel, Class::Latest("k".into()), "the state"), bounds, &counters).unwrap();
    for n in 0..100 {
        backlog.push(event(&channel, VOLATILE, &format!("event {n}")), bounds, &counters).unwrap();
    }
    assert!(all(&mut backlog, &counters).contains("the state"));
}

#[test]
fn an_outbox_with_nothing_but_a_mark_takes_a_frame_of_any_size() {
    let (channel, counters) = (channel(), Counters::default());
    let bounds = Bounds { soft_bytes: 10, hard_bytes: 50, resumable: true };
    let mut backlog = Backlog::start([event(&channel, VOLATILE, "volatile")].into_iter(), 0, &counters);
    backlog.push(event(&channel, Class::Reply, &"x".repeat(500)), bounds, &counters).unwrap();
    backlog.push(event(&channel, Class::Reply, "behind it"), bounds, &counters).unwrap();
    assert_eq!(backlog.push(event(&channel, Class::Reply, &"y".repeat(60)), bounds, &counters), Err(TooSlow));
    assert!(all(&mut backlog, &counters).contains("behind it"));
}

#[test]
fn the_budget_counts_a_shared_frame_once_and_each_place() {
    let (channel, counters) = (channel(), Counters::default());
    let queued = event(&channel, Class::Reply, &"x".repeat(300));
    let readers: Vec<_> = (0..3).map(|_| Backlog::start(std::iter::once(queued.clone()), 0, &counters)).collect();
    let bytes = || counters.outbox_bytes.load(Ordering::Relaxed) as usize;
    assert_eq!(bytes(), FRAME_BYTES + queued.wire_len() + 3 * PLACE_BYTES);
    for backlog in readers {
        backlog.discard(&counters);
    }
    assert_eq!(bytes(), 0);
}

// ---- against a list

/// Bytes of the largest frame.
const LARGEST: usize = 310;

#[derive(Debug, Clone)]
enum Op {
    /// An event of a kind, and how long it is.
    Push(Kind, usize),
    /// The client subscribes: its confirmation is queued.
    Join,
    /// Somebody needs memory.
    Pay,
    /// The kernel takes at most so many bytes of a send of at most so many.
    Send { most: usize, taken: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Reply,
    Durable,
    Volatile,
    /// In the channel of the volatile ones, or in one of its own.
    Latest {
        key: u8,
        apart: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        1 => Just(Kind::Reply),
        1 => Just(Kind::Durable),
        4 => Just(Kind::Volatile),
        4 => (0_u8..4, any::<bool>()).prop_map(|(key, apart)| Kind::Latest { key, apart }),
    ];
    prop_oneof![
        12 => (kind, prop_oneof![Just(4_usize), 4_usize..40, Just(300)]).prop_map(|(kind, len)| Op::Push(kind, len)),
        1 => Just(Op::Join),
        1 => Just(Op::Pay),
        5 => (1_usize..400, 0_usize..300).prop_map(|(most, taken)| Op::Send { most, taken }),
    ]
}

/// What was sent and what was read, as plain lists.
struct Model {
    channels: [Arc<Channel>; 3],
    counters: Counters,
    bounds: Bounds,
    backlog: Backlog,
    sent: Vec<Kind>,
    /// Confirmations among them.
    joins: Vec<usize>,
    wire: Vec<u8>,
    is_closed: bool,
    was_over_soft: bool,
}

impl Model {
    fn new(bounds: Bounds) -> Self {
        let channels = [1, 2, 3].map(|id| {
            Arc::new(Channel::new(format!("c{id}").into(), id, Policy::VOLATILE, "e".into(), false, None, 1))
        });
        let counters = Counters::default();
        let mut model = Self {
            channels,
            bounds,
            backlog: Backlog::default(),
            counters,
            sent: Vec::new(),
            joins: Vec::new(),
            wire: Vec::new(),
            is_closed: false,
            was_over_soft: false,
        };
        // The connection fell behind with an answer that was partly sent.
        let first = model.queued(Kind::Reply, 4);
        model.wire.extend_from_slice(&first.bytes()[..3]);
        model.backlog = Backlog::start(std::iter::once(first), 3, &model.counters);
        model
    }

    fn queued(&mut self, kind: Kind, len: usize) -> Queued {
        let text = format!("{}:{}", self.sent.len(), "x".repeat(len));
        self.sent.push(kind);
        let (class, channel) = match kind {
            Kind::Reply => (Class::Reply, None),
            Kind::Durable => (Class::Durable, Some(2)),
            Kind::Volatile => (VOLATILE, Some(0)),
            Kind::Latest { key, apart } => (Class::Latest(key.to_string().into()), Some(usize::from(apart))),
        };
        let channel = channel.map(|place| Arc::clone(&self.channels[place]));
        Queued { frame: Prepared::text(text.as_bytes()), class, channel, form: Form::Plain }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Push(kind, len) if !self.is_closed => {
                let queued = self.queued(*kind, *len);
                self.push(queued);
            }
            Op::Join if !self.is_closed => {
                self.backlog.keep_before();
                self.joins.push(self.sent.len());
                let queued = self.queued(Kind::Reply, 4);
                self.push(queued);
            }
            Op::Pay => drop(self.backlog.drop_quarter(self.bounds.resumable, &self.counters)),
            Op::Send { most, taken } => self.send(*most, *taken),
            _ => {}
        }
        let held = self.backlog.behind().unwrap_or(0);
        // A mark that is partly sent stands before what was the first frame and did not count until then.
        assert!(held <= self.bounds.hard_bytes + LARGEST, "{held}");
        self.was_over_soft |= self.backlog.bytes() > self.bounds.soft_bytes;
        assert!(self.backlog.holes <= HOLES_MIN.max(self.backlog.entries.len() / 2));
    }

    fn push(&mut self, queued: Queued) {
        if self.backlog.push(queued, self.bounds, &self.counters).is_err() {
            self.sent.pop();
            self.backlog.drop_whole_frames(&self.counters);
            self.is_closed = true;
        }
    }

    fn send(&mut self, most: usize, taken: usize) {
        let mut out = Vec::new();
        self.backlog.fill(&mut out, most, true, 0, &self.counters);
        let taken = taken.min(out.len());
        self.wire.extend_from_slice(&out[..taken]);
        self.backlog.sent(taken, &self.counters);
    }

    /// Frames from the first byte to the last: numbers of events, and channel and count of what was skipped.
    fn read(&self) -> Vec<Result<usize, (usize, u64)>> {
        let (mut frames, mut rest) = (Vec::new(), &self.wire[..]);
        while !rest.is_empty() {
            assert_eq!(rest[0], 0x81);
            let (len, header) = match rest[1] {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                short => (usize::from(short), 2),
            };
            let text = std::str::from_utf8(&rest[header..header + len]).expect("never half a frame");
            frames.push(match text.split_once(':').unwrap() {
                (number, _) if !number.starts_with('{') => Ok(number.parse().unwrap()),
                _ => {
                    let lag: serde_json::Value = serde_json::from_str(text).unwrap();
                    let channel = self.channels.iter().position(|channel| lag["channel"] == **channel.name());
                    Err((channel.unwrap(), lag["data"]["skipped"].as_u64().unwrap()))
                }
            });
            rest = &rest[header + len..];
        }
        frames
    }

    fn check(mut self) {
        while !self.backlog.is_empty() {
            self.send(1_000, 1_000);
        }
        let frames = self.read();
        let got: Vec<usize> = frames.iter().filter_map(|frame| frame.ok()).collect();
        let of = |kind: fn(Kind) -> bool| {
            let sent: Vec<usize> = (0..self.sent.len()).filter(|n| kind(self.sent[*n])).collect();
            let got: Vec<usize> = got.iter().copied().filter(|n| kind(self.sent[*n])).collect();
            (sent, got)
        };
        let mut seen = std::collections::BTreeSet::new();
        assert!(got.iter().all(|number| seen.insert(*number)), "nothing comes twice");

        let promised = if self.bounds.resumable {
            of(|kind| matches!(kind, Kind::Reply | Kind::Durable))
        } else {
            of(|kind| kind == Kind::Reply)
        };
        let (sent, whole) = promised;
        if self.is_closed {
            assert!(sent.starts_with(&whole), "what was promised has no hole");
        } else {
            assert_eq!(sent, whole, "what was promised comes, in its order");
        }
        let (_, in_order) = of(|kind| kind == Kind::Durable);
        assert!(in_order.is_sorted());
        self.check_volatile(&frames);
        self.check_latest(&got, &frames);

        let skipped = |of: usize| -> u64 {
            frames.iter().filter_map(|f| f.err()).filter(|(channel, _)| *channel == of).map(|(_, n)| n).sum()
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lost = (self.sent.len() - got.len()) as u64;
        let counters = &self.counters;
        if !self.is_closed {
            let all = skipped(0) + skipped(1) + skipped(2);
            assert_eq!(all, count(&counters.dropped_slow) + count(&counters.dropped_budget), "every drop is told");
            assert_eq!(lost, all + count(&counters.dropped_conflated), "every event came, was told of, or replaced");
        }
        assert!(self.was_over_soft || count(&counters.dropped_conflated) == 0);
        assert_eq!((self.backlog.bytes(), count(&counters.outbox_bytes)), (0, 0));
    }

    /// Volatile events come in order, and where one is missing `lag` was there before the next.
    fn check_volatile(&self, frames: &[Result<usize, (usize, u64)>]) {
        let (mut last, mut told) = (None, 0);
        for frame in frames {
            match frame {
                Err((0, skipped)) => told += skipped,
                Ok(number) if self.sent[*number] == Kind::Volatile => {
                    let first = last.map_or(0, |last| last + 1);
                    assert!(*number >= first, "in order");
                    let missing = self.sent[first..*number].iter().filter(|kind| **kind == Kind::Volatile).count();
                    assert!(told >= missing as u64, "{missing} are missing before {number} and {told} were told");
                    told -= missing as u64;
                    last = Some(*number);
                }
                _ => {}
            }
        }
    }

    /// States of a key come in order, and the last one is the newest.
    fn check_latest(&self, got: &[usize], frames: &[Result<usize, (usize, u64)>]) {
        let keys: std::collections::BTreeSet<Kind> =
            self.sent.iter().copied().filter(|kind| matches!(kind, Kind::Latest { .. })).collect();
        for kind in keys {
            let states: Vec<usize> = got.iter().copied().filter(|number| self.sent[*number] == kind).collect();
            assert!(states.is_sorted(), "an older state never comes behind a newer one");
            let newest = (0..self.sent.len()).rfind(|number| self.sent[*number] == kind);
            let channel = usize::from(matches!(kind, Kind::Latest { apart: true, .. }));
            let is_told = frames.iter().any(|frame| matches!(frame, Err((lost, _)) if *lost == channel));
            assert!(self.is_closed || is_told || states.last().copied() == newest, "{kind:?}: the newest state comes");
        }
        // Nothing of a membership comes before its confirmation.
        for (place, number) in got.iter().enumerate().filter(|(_, number)| self.joins.contains(number)) {
            assert!(got[..place].iter().all(|before| before < number), "{number} was overtaken");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_slow_reader_gets_what_it_was_promised_and_is_told_of_the_rest(
        soft_bytes in 0_usize..600,
        over_soft in 1_usize..600,
        resumable in any::<bool>(),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let bounds = Bounds { soft_bytes, hard_bytes: soft_bytes + over_soft, resumable };
        let mut model = Model::new(bounds);
        for op in &ops {
            model.apply(op);
        }
        model.check();
    }
}
