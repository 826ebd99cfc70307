//! Random operations against a naive model: a list a channel, searched from its start.
//!
//! Batches that fail because another program holds the database, and reopening, are among the operations.

mod kit;

use std::collections::HashMap;
use std::sync::Arc;

use kit::Dir;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use realtime_log::{Append, Appended, Error, Log, Page, Stored};
use rusqlite::Connection;

#[derive(Debug, Clone)]
struct Event {
    channel: String,
    data: String,
    number_field: bool,
    user: Option<String>,
    dedupe: Option<String>,
    time_ms: u64,
}

#[derive(Debug, Clone)]
enum Operation {
    Append(Vec<Event>),
    AppendWhileLocked(Vec<Event>),
    Head(String),
    Page { channel: String, after: u64, limit: usize, bytes_max: usize },
    Reopen,
}

fn channels() -> impl Strategy<Value = String> {
    "[abc]"
}

fn events() -> impl Strategy<Value = Event> {
    (channels(), "x{0,40}", any::<bool>(), option::of("[uv]"), option::of("[1-6]"), 0..1_000_u64).prop_map(
        |(channel, text, number_field, user, dedupe, time_ms)| {
            let data = if text.is_empty() { "{}".to_owned() } else { format!(r#"{{"content":"{text}"}}"#) };
            Event { channel, data, number_field, user, dedupe, time_ms }
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
        1 => Just(Operation::Reopen),
    ]
}

/// The rules once more, as simply as they can be written.
#[derive(Default)]
struct Model {
    channels: HashMap<String, Vec<(Stored, Option<String>)>>,
}

impl Model {
    fn append(&mut self, event: &Event) -> Appended {
        let events = self.channels.entry(event.channel.clone()).or_default();
        let user: Option<Box<str>> = event.user.clone().map(Into::into);
        let first =
            events.iter().find(|(stored, dedupe)| dedupe.is_some() && *dedupe == event.dedupe && stored.user == user);
        if let Some((stored, _)) = first {
            let stored = stored.clone();
            return Appended { offset: stored.offset, duplicate: true, stored: Some(stored), ..Appended::default() };
        }
        let offset = events.len() as u64 + 1;
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
        events.push((stored, event.dedupe.clone()));
        Appended { offset, data, ..Appended::default() }
    }

    fn head(&self, channel: &str) -> u64 {
        self.channels.get(channel).map_or(0, |events| events.len() as u64)
    }

    fn page(&self, channel: &str, after: u64, limit: usize, bytes_max: usize) -> Page {
        let mut events: Vec<Stored> = Vec::new();
        let mut bytes = 0;
        for (stored, _) in self.channels.get(channel).into_iter().flatten() {
            if stored.offset <= after || events.len() >= limit {
                continue;
            }
            bytes += stored.data.len() + stored.event.len() + stored.user.as_ref().map_or(0, |user| user.len());
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
            let Event { channel, data, number_field, user, dedupe, time_ms } = event;
            Append {
                channel,
                event: "new_message",
                data: data.as_bytes(),
                number_field: *number_field,
                user: user.as_deref(),
                dedupe: dedupe.as_deref(),
                request: None,
                amends: None,
                time_ms: *time_ms,
            }
        })
        .collect()
}

/// Runs the operations on a log in `dir`, or in memory, where nothing can be locked or reopened.
fn compare(dir: Option<&Dir>, operations: &[Operation]) {
    let open = || dir.map_or_else(|| Log::open_in_memory().unwrap(), Dir::open);
    let mut log = open();
    let epoch = log.epoch().to_owned();
    let mut model = Model::default();
    for operation in operations {
        match (operation, dir) {
            (Operation::Append(events), _) => {
                let expected: Vec<Appended> = events.iter().map(|event| model.append(event)).collect();
                assert_eq!(log.append(&batch(events)).unwrap(), expected);
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
            (Operation::Reopen, Some(_)) => {
                drop(log);
                log = open();
                assert_eq!(log.epoch(), epoch);
            }
            (Operation::AppendWhileLocked(_) | Operation::Reopen, None) => {}
        }
    }
    for channel in ["a", "b", "c"] {
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
