//! Counters of what only the reactor sees; the hub counts the rest. Read by Python as one JSON object.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Sockets taken from the listener.
    pub(crate) accepted: AtomicU64,
    /// Times that the system refused a socket (no descriptor, no memory); each costs a pause of the acceptor.
    pub(crate) accept_errors: AtomicU64,
    /// Sockets answered 503 because `connections_max` were open.
    pub(crate) turned_away: AtomicU64,
    /// Connections that ended by a panic.
    pub(crate) panics: AtomicU64,
    /// Transactions of the log.
    pub(crate) log_commits: AtomicU64,
    /// Events handed to those transactions, duplicates included.
    pub(crate) log_events: AtomicU64,
    /// Requests or batches that the log could not serve.
    pub(crate) log_failures: AtomicU64,
    /// What it said the last time.
    log_error: Mutex<Option<String>>,
}

impl Stats {
    pub(crate) fn log_failed(&self, error: String) {
        self.log_failures.fetch_add(1, Ordering::Relaxed);
        *self
            .log_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The hub's object with this one's members after its own.
    pub(crate) fn append_to(&self, hub_json: &str) -> String {
        let head = hub_json.trim_end().strip_suffix('}').unwrap_or("{");
        let mut json = String::from(head);
        for (name, count) in [
            ("accepted", &self.accepted),
            ("accept_errors", &self.accept_errors),
            ("turned_away", &self.turned_away),
            ("panics", &self.panics),
            ("log_commits", &self.log_commits),
            ("log_events", &self.log_events),
            ("log_failures", &self.log_failures),
        ] {
            let comma = if json.trim_end().ends_with('{') {
                ""
            } else {
                ","
            };
            // A String takes every write.
            let _ = write!(json, r#"{comma}"{name}":{}"#, count.load(Ordering::Relaxed));
        }
        let error = self
            .log_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match error.as_deref() {
            None => json.push_str(r#","log_error":null}"#),
            Some(error) => {
                let _ = write!(json, r#","log_error":"{}"}}"#, json_text(error));
            }
        }
        json
    }
}

/// The inside of a JSON string.
fn json_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\\' => escaped.extend(['\\', char]),
            _ if char.is_control() => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(char));
            }
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_follow_the_hubs_own() {
        let stats = Stats::default();
        stats.accepted.store(3, Ordering::Relaxed);
        assert!(
            stats
                .append_to(r#"{"messages":1}"#)
                .starts_with(r#"{"messages":1,"accepted":3,"#)
        );
        assert!(stats.append_to("{}").starts_with(r#"{"accepted":3,"#));
        assert!(
            stats
                .append_to("{}")
                .ends_with(r#""log_failures":0,"log_error":null}"#)
        );
    }

    #[test]
    fn an_error_is_told_as_json() {
        let stats = Stats::default();
        stats.log_failed("no \"room\"\non \\".into());
        assert!(
            stats
                .append_to("{}")
                .ends_with(r#""log_failures":1,"log_error":"no \"room\"\u000aon \\"}"#)
        );
    }
}
