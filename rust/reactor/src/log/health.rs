//! What only the log's thread knows and all may ask: whether the log fails now, and why.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// How the log fares.
#[derive(Debug, Default)]
pub(crate) struct LogHealth {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u64,
    /// Why it cannot store now, without a path.
    failing: Option<String>,
}

impl LogHealth {
    /// A batch or a read could not be served.
    pub(crate) fn count_failure(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failures += 1;
    }

    /// From now on the log cannot store, for this reason; or it can.
    pub(crate) fn set_failing(&self, reason: Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failing = reason;
    }

    /// `json`, an object, with `log_failures`, `log_failing` (0 or 1) and `log_error` (why it fails, or null) behind its
    /// members.
    pub(crate) fn append_to(&self, json: &str) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let error = state.failing.as_deref().map_or_else(|| "null".into(), |error| format!("\"{}\"", json_text(error)));
        let (failures, failing) = (state.failures, u8::from(state.failing.is_some()));
        let members = json.strip_suffix('}').unwrap_or("{");
        format!("{members},\"log_failures\":{failures},\"log_failing\":{failing},\"log_error\":{error}}}")
    }
}

/// The inside of a JSON string.
fn json_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\\' => escaped.extend(['\\', char]),
            _ if char.is_control() => {
                // A String takes every write.
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
    fn a_healthy_log_is_told_beside_the_counters() {
        let json = LogHealth::default().append_to("{\"accepted\":0}");
        assert_eq!(json, r#"{"accepted":0,"log_failures":0,"log_failing":0,"log_error":null}"#);
    }

    #[test]
    fn why_it_fails_is_told_as_json_until_it_does_no_more() {
        let health = LogHealth::default();
        health.count_failure();
        health.count_failure();
        health.set_failing(Some("no \"room\"\non \\".into()));
        let json = health.append_to("{\"accepted\":0}");
        assert!(json.ends_with(r#","log_failures":2,"log_failing":1,"log_error":"no \"room\"\u000aon \\"}"#), "{json}");
        health.set_failing(None);
        let json = health.append_to("{}");
        assert!(json.ends_with(r#""log_failures":2,"log_failing":0,"log_error":null}"#), "{json}");
    }
}
