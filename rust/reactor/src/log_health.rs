//! What only the log's thread knows: that the log fails, and why.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// How the log fares.
#[derive(Debug, Default)]
pub(crate) struct LogHealth {
    failed: Mutex<Failed>,
}

#[derive(Debug, Default)]
struct Failed {
    count: u64,
    last: Option<String>,
}

impl LogHealth {
    /// A batch or a read could not be served.
    pub(crate) fn failed(&self, error: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.count += 1;
        failed.last = Some(error);
    }

    /// `json`, an object, with `log_failures` and `log_error` (what it said last, or null) behind its members.
    pub(crate) fn append_to(&self, json: &str) -> String {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let error = failed.last.as_deref().map_or_else(|| "null".into(), |error| format!("\"{}\"", json_text(error)));
        let members = json.strip_suffix('}').unwrap_or("{");
        format!("{members},\"log_failures\":{},\"log_error\":{error}}}", failed.count)
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
        assert!(json.starts_with("{\"accepted\":0,"), "{json}");
        assert!(json.ends_with(",\"log_failures\":0,\"log_error\":null}"), "{json}");
    }

    #[test]
    fn the_last_error_is_told_as_json() {
        let health = LogHealth::default();
        health.failed("first".into());
        health.failed("no \"room\"\non \\".into());
        let json = health.append_to("{\"accepted\":0}");
        assert!(json.ends_with(r#","log_failures":2,"log_error":"no \"room\"\u000aon \\"}"#), "{json}");
    }
}
