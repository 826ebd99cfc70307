//! What a run says at its end: one JSON object for programs and a few lines for people, from the same figures.
//!
//! Times are µs, rates per second, sizes bytes. `ok` is false if anything was lost, doubled, out of order, refused or ended early, and
//! `wrong` then says what, one sentence each; times never make a run fail.

use crate::histogram::Histogram;
use serde_json::{Map, Value, json};

/// Figures and faults, in the order in which they were added.
#[derive(Default)]
pub struct Report {
    figures: Vec<(String, Value)>,
    wrong: Vec<String>,
}

impl Report {
    /// Add a figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Add `count` of a fault; zero is shown too, and is no fault.
    pub fn fault(&mut self, name: &str, count: u64) {
        self.figure(name, count);
        if count > 0 {
            self.wrong.push(format!("{count} {}", name.replace('_', " ")));
        }
    }

    /// Add a fault in words.
    pub fn wrong(&mut self, sentence: String) {
        self.wrong.push(sentence);
    }

    /// Add percentiles of a histogram in µs.
    pub fn latency(&mut self, name: &str, histogram: &Histogram) {
        let us = |ns: u64| ns as f64 / 1e3;
        let value = json!({
            "p50": us(histogram.quantile_ns(0.5)),
            "p90": us(histogram.quantile_ns(0.9)),
            "p99": us(histogram.quantile_ns(0.99)),
            "p999": us(histogram.quantile_ns(0.999)),
            "max": us(histogram.max_ns()),
            "samples": histogram.samples(),
        });
        self.figure(name, value);
    }

    /// Whether nothing was wrong.
    #[must_use]
    pub const fn ok(&self) -> bool {
        self.wrong.is_empty()
    }

    /// The JSON object.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object: Map<String, Value> = self.figures.iter().cloned().collect();
        object.insert("ok".to_owned(), Value::Bool(self.ok()));
        object.insert("wrong".to_owned(), json!(self.wrong));
        Value::Object(object)
    }

    /// The lines for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.figures.iter().map(|(name, value)| format!("{name:<32} {}", plain(value))).collect();
        lines.extend(self.wrong.iter().map(|sentence| format!("WRONG: {sentence}")));
        lines
    }
}

/// A value without JSON's quotes and braces; fractions with three digits.
fn plain(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            members.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join("  ")
        }
        Value::Array(items) => items.iter().map(|item| format!("\n    {}", plain(item))).collect(),
        Value::Number(number) if number.is_f64() => {
            format!("{:.3}", number.as_f64().unwrap_or_default())
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_of_a_fault_is_shown_and_one_makes_the_run_wrong() {
        let mut report = Report::default();
        report.fault("lost", 0);
        assert!(report.ok());
        report.fault("out_of_order", 1);
        assert!(!report.ok());
        assert_eq!(report.json()["wrong"][0], "1 out of order");
        assert_eq!(report.json()["lost"], 0);
    }
}
