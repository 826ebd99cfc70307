//! Random operations against a naive model: a list a channel, searched from its start.
//!
//! Batches that fail because another program holds the database, and reopening, are among the operations.

mod kit;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kit::Dir;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use realtime_log::{Amends, Append, Appended, Error, Keep, Log, Page, Stored};
use rusqlite::Connection;

/// Events have times from 0 to 2,000: some keys move, some of those are too old for a later event.
const DEDUPE_S: u64 = 1;
const SWEPT_MS: u64 = 1_500;

#[derive(Debug, Clone)]
struct Event {
    channel: String,
    data: String,
    number_field: bool,
    user: Option<String>,
    dedupe: Option<String>,
    /// Offset, replacement, erases.
    amends: Option<(u64, Option<String>, bool)>,
    time_ms: u64,
}

#[derive(Debug, Clone)]
enum Operation {
    Append(Vec<Event>),
    AppendWhileLocked(Vec<Event>),
    Head(String),
    Page { channel: String, after: u64, limit: usize, bytes_max: usize },
    Sweep { since_ms: Option<u64>, events: Option<u64> },
    Forget,
    Reopen,
}

fn channels() -> impl Strategy<Value = String> {
    "[abc]"
}

fn events() -> impl Strategy<Value = Event> {
    let amends = option::weighted(0.3, (0..12_u64, option::of("[yz]{0,60}"), any::<bool>()));
    (channels(), "x{0,40}", any::<bool>(), option::of("[uv]"), option::of("[1-6]"), amends, 0..2_000_u64).prop_map(
        |(channel, text, number_field, user, dedupe, amends, time_ms)| {
            let data = if text.is_empty() { "{}".to_owned() } else { format!(r#"{{"content":"{text}"}}"#) };
            Event { channel, data, number_field, user, dedupe, amends, time_ms }
        },
    )
}

fn operations() -> impl Strategy<Value = Operation> {
    let page = (channels(), 0..40_u64, 0..12_usize, 0..400_usize)
        .prop_map(|(channel, after, limit, bytes_max)| Operation::Page { channel, after, limit, bytes_max });
    prop_oneof![
        6 => vec(events(), 0..8).prop_map(Operation::Append),
        1 => vec(events(), 1..8).prop_map(Operation::AppendWhileLocked),
        2 => channels().prop_map(Operation::Head),
        4 => page,
        2 => (option::of(0..1_000_u64), option::of(1..12_u64))
            .prop_map(|(since_ms, events)| Operation::Sweep { since_ms, events }),
        1 => Just(Operation::Forget),
        1 => Just(Operation::Reopen),
    ]
}

/// The rules once more, as simply as they can be written.
#[derive(Default)]
struct Model {
    channels: HashMap<String, Vec<Row>>,
    /// Offset and time by channel, user and key, of events that are kept no longer.
    moved: HashMap<(String, Option<String>, String), (u64, u64)>,
    heads: HashMap<String, u64>,
}

struct Row {
    stored: Stored,
    dedupe: Option<String>,
    refers: Option<u64>,
}

impl Model {
    fn append(&mut self, event: &Event) -> Appended {
        let events = self.channels.entry(event.channel.clone()).or_default();
        let user: Option<Box<str>> = event.user.clone().map(Into::into);
        if let Some(key) = &event.dedupe
            && let Some((offset, time_ms)) =
                self.moved.get(&(event.channel.clone(), event.user.clone(), key.clone())).copied()
            && time_ms + DEDUPE_S * 1_000 > event.time_ms
        {
            let data = format!(r#"{{"number":{offset}}}"#).into_bytes().into();
            let stored = Stored { offset, event: "new_message".into(), data, user, request: None, time_ms };
            return Appended { offset, duplicate: true, stored: Some(stored), ..Appended::default() };
        }
        let first =
            events.iter().find(|row| row.dedupe.is_some() && row.dedupe == event.dedupe && row.stored.user == user);
        if let Some(row) = first {
            let stored = row.stored.clone();
            return Appended { offset: stored.offset, duplicate: true, stored: Some(stored), ..Appended::default() };
        }
        let refers = event.amends.as_ref().map(|(offset, ..)| *offset);
        if refers.is_some_and(|offset| !events.iter().any(|row| row.stored.offset == offset)) {
            return Appended { missing: true, ..Appended::default() };
        }
        let head = self.heads.entry(event.channel.clone()).or_default();
        *head += 1;
        let offset = *head;
        let data = match (event.number_field, event.data.as_str()) {
            (false, data) => data.to_owned(),
            (true, "{}") => format!(r#"{{"number":{offset}}}"#),
            (true, data) => format!(r#"{{"number":{offset},{}"#, &data[1..]),
        };
        let data: Arc<[u8]> = data.into_bytes().into();
        let stored = Stored {
            offset,
            event: "new_message".into(),
            data: data.clone(),
            user,
            request: None,
            time_ms: event.time_ms,
        };
        let mut amended = Vec::new();
        if let Some((target, replacement, erases)) = &event.amends {
            let mut change = |row: &mut Row, data: Arc<[u8]>| {
                row.stored.data = data;
                amended.push(row.stored.clone());
            };
            for row in events.iter_mut().filter(|row| row.stored.offset == *target) {
                replacement.iter().for_each(|new| change(row, new.as_bytes().into()));
            }
            for row in events.iter_mut().filter(|row| *erases && row.refers == Some(*target)) {
                change(row, Arc::clone(&data));
            }
        }
        events.push(Row { stored, dedupe: event.dedupe.clone(), refers });
        Appended { offset, data, amended, ..Appended::default() }
    }

    fn head(&self, channel: &str) -> u64 {
        self.heads.get(channel).copied().unwrap_or(0)
    }

    fn sweep(&mut self, since_ms: Option<u64>, events: Option<u64>) {
        for (channel, rows) in &mut self.channels {
            let by_count = events.map_or(0, |events| self.heads.get(channel).unwrap_or(&0).saturating_sub(events));
            let is_old =
                |row: &Row| row.stored.offset <= by_count || since_ms.is_some_and(|ms| row.stored.time_ms < ms);
            let gone = rows.iter().take_while(|row| is_old(row)).count();
            for Row { stored, dedupe, .. } in rows.drain(..gone) {
                let Some(key) = dedupe.filter(|_| stored.time_ms > SWEPT_MS - DEDUPE_S * 1_000) else { continue };
                let user = stored.user.map(Into::into);
                self.moved.insert((channel.clone(), user, key), (stored.offset, stored.time_ms));
            }
        }
    }

    fn page(&self, channel: &str, after: u64, limit: usize, bytes_max: usize) -> Page {
        let mut events: Vec<Stored> = Vec::new();
        let mut bytes = 0;
        for Row { stored, .. } in self.channels.get(channel).into_iter().flatten() {
            if stored.offset <= after || events.len() >= limit {
                continue;
            }
            bytes += stored.data.len() + stored.event.len() + stored.user.as_ref().map_or(0, |user| user.len()) + 128;
            if !events.is_empty() && bytes > bytes_max {
                break;
            }
            events.push(stored.clone());
        }
        Page { events, head: self.head(channel) }
    }
}

fn batch(events: &[Event]) -> Vec<Append<'_>> {
    events
        .iter()
        .map(|event| {
            let Event { channel, data, number_field, user, dedupe, amends, time_ms } = event;
            let amends = amends.as_ref().map(|(offset, replacement, erases)| Amends {
                offset: *offset,
                replacement: replacement.as_deref().map(str::as_bytes),
                erases: *erases,
            });
            Append {
                channel,
                event: "new_message",
                data: data.as_bytes(),
                number_field: *number_field,
                user: user.as_deref(),
                dedupe: dedupe.as_deref(),
                request: None,
                amends,
                time_ms: *time_ms,
            }
        })
        .collect()
}

/// Runs the operations on a log in `dir`, or in memory, where nothing can be locked or reopened.
fn compare(dir: Option<&Dir>, operations: &[Operation]) {
    let open = || {
        let mut log = dir.map_or_else(|| Log::open_in_memory().unwrap(), Dir::open);
        log.set_dedupe_s(DEDUPE_S);
        log
    };
    let mut log = open();
    let mut chain = log.terms().to_vec();
    let mut firsts: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    let mut model = Model::default();
    for operation in operations {
        match (operation, dir) {
            (Operation::Append(events), _) => {
                let before = ["a", "b", "c"].map(|channel| model.head(channel));
                let expected: Vec<Appended> = events.iter().map(|event| model.append(event)).collect();
                assert_eq!(log.append(&batch(events)).unwrap(), expected);
                let term = chain.last().unwrap().number;
                for (channel, before) in ["a", "b", "c"].into_iter().zip(before) {
                    let rows = firsts.entry(channel).or_default();
                    if model.head(channel) > before && rows.last().is_none_or(|(last, _)| *last < term) {
                        rows.push((term, before + 1));
                    }
                }
            }
            (Operation::AppendWhileLocked(events), Some(dir)) => {
                let other = Connection::open(dir.database()).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                assert!(matches!(log.append(&batch(events)), Err(Error::Busy { waited_ms: 100, .. })));
            }
            (Operation::Head(channel), _) => {
                assert_eq!(log.head(channel).unwrap(), model.head(channel))
            }
            (Operation::Page { channel, after, limit, bytes_max }, _) => {
                let page = log.page(channel, *after, *limit, *bytes_max).unwrap();
                assert_eq!(page, model.page(channel, *after, *limit, *bytes_max));
            }
            (Operation::Sweep { since_ms, events }, _) => {
                let keep = Keep { since_ms: *since_ms, events: *events };
                let mut after = Some(0);
                while let Some(from) = after {
                    after = log.sweep(from, SWEPT_MS, |_| Some(keep)).unwrap().next;
                }
                model.sweep(*since_ms, *events);
            }
            (Operation::Forget, _) => assert!(log.forget().unwrap()),
            (Operation::Reopen, Some(_)) => {
                drop(log);
                log = open();
                assert_eq!(log.terms()[..chain.len()], chain);
                assert_eq!(log.terms().len(), chain.len() + 1);
                chain = log.terms().to_vec();
            }
            (Operation::AppendWhileLocked(_) | Operation::Reopen, None) => {}
        }
    }
    for channel in ["a", "b", "c"] {
        assert_eq!(log.term_starts(channel).unwrap().firsts, firsts.remove(channel).unwrap_or_default());
        assert_eq!(
            log.page(channel, 0, usize::MAX, usize::MAX).unwrap(),
            model.page(channel, 0, usize::MAX, usize::MAX)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_log_in_memory_does_what_the_model_does(operations in vec(operations(), 1..60)) {
        compare(None, &operations);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_log_on_disk_does_what_the_model_does(operations in vec(operations(), 1..40)) {
        compare(Some(&Dir::new()), &operations);
    }
}
