//! Histograms with fixed bounds: two relaxed additions an observation, no lock.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long things last, in bounds that double or so: seconds, counted in microseconds.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How long connections last.
const LONG_SECONDS: &[f64] = &[0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];
/// How many things come together.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Every list of bounds fits, with one more place for what is above all of them.
const PLACES_MAX: usize = 17;

/// Counts of observations up to each bound, not cumulated, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// What the integer that is observed has to be divided by for the unit of the bounds.
    scale: f64,
    counts: [AtomicU64; PLACES_MAX],
    sum: AtomicU64,
}

impl Histogram {
    const fn new(bounds: &'static [f64], scale: f64) -> Self {
        assert!(bounds.len() < PLACES_MAX, "a place for each bound and one above all");
        Self { bounds, scale, counts: [const { AtomicU64::new(0) }; PLACES_MAX], sum: AtomicU64::new(0) }
    }

    /// Of short times, observed in µs and told in seconds.
    #[must_use]
    pub const fn of_seconds() -> Self {
        Self::new(SECONDS, 1e6)
    }

    /// Of the lives of connections, observed in µs and told in seconds.
    #[must_use]
    pub const fn of_long_seconds() -> Self {
        Self::new(LONG_SECONDS, 1e6)
    }

    /// Of sizes of batches.
    #[must_use]
    pub const fn of_counts() -> Self {
        Self::new(COUNTS, 1.0)
    }

    /// Notes the same value so many times.
    pub fn observe(&self, value: u64, times: u64) {
        let scaled = value as f64 / self.scale;
        let place = self.bounds.partition_point(|bound| *bound < scaled);
        self.counts[place].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(value * times, Ordering::Relaxed);
    }

    /// `{"bounds": […], "counts": [… one more], "sum": n}`, the sum in the unit of the bounds.
    pub(crate) fn write_json(&self, out: &mut String) {
        let counts = self.counts[..=self.bounds.len()].iter().map(|count| count.load(Ordering::Relaxed).to_string());
        let counts = counts.collect::<Vec<_>>().join(",");
        let sum = self.sum.load(Ordering::Relaxed) as f64 / self.scale;
        // A String takes every write; `{:?}` writes a float as JSON does.
        let _ = write!(out, "{{\"bounds\":{:?},\"counts\":[{counts}],\"sum\":{sum:?}}}", self.bounds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_up_to_the_first_bound_that_holds_it() {
        let histogram = Histogram::of_counts();
        for (value, times) in [(1, 2), (2, 1), (3, 1), (512, 1), (513, 7)] {
            histogram.observe(value, times);
        }
        let mut json = String::new();
        histogram.write_json(&mut json);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["counts"], serde_json::json!([2, 1, 1, 0, 0, 0, 0, 0, 0, 1, 7]));
        assert_eq!(read["sum"], 2.0 + 2.0 + 3.0 + 512.0 + 7.0 * 513.0);
        assert_eq!(read["bounds"].as_array().unwrap().len(), 10);
    }

    #[test]
    fn times_are_observed_in_microseconds_and_told_in_seconds() {
        let histogram = Histogram::of_seconds();
        histogram.observe(1_500, 2);
        let mut json = String::new();
        histogram.write_json(&mut json);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&read["sum"], &read["counts"][4]), (&serde_json::json!(0.003), &serde_json::json!(2)));
    }
}
