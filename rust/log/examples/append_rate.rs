//! How many events a second does the log store, in commits of 200 with `synchronous=FULL`?
//!
//! Unit: rows/s, and milliseconds per commit. Payload 130 bytes; for 1 and 100 channels, each with and without
//! dedupe keys. Random keys are the dear part: each dirties a page of the index by itself, so it is the pages per
//! commit that are measured, more than the rows. Arguments: seconds for each shape (default 5), directory (default
//! under the system's temporary one; what is measured is its disk). Removed afterwards.

#![allow(clippy::print_stdout, reason = "a program that prints its result")]

use std::path::Path;
use std::time::{Duration, Instant};

use realtime_log::{Append, Error, Log, Options};

const BATCH_ROWS: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(5.0), |text| text.parse())?;
    let parent = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let dir = parent.join(format!("append-rate-{}", std::process::id()));
    for (channels, has_keys) in [(100, true), (100, false), (1, true), (1, false)] {
        let commits_ms = measure(&dir, channels, has_keys, Duration::from_secs_f64(seconds))?;
        report(channels, has_keys, commits_ms);
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// Appends to a new log for `time`, and returns how long each commit took, in milliseconds.
fn measure(dir: &Path, channels: usize, has_keys: bool, time: Duration) -> Result<Vec<f64>, Error> {
    let mut log = Log::open(&Options::new(dir))?;
    let channels: Vec<String> = (0..channels).map(|index| format!("conversation:{index}")).collect();
    let data = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(100));
    let mut commits_ms = Vec::new();
    let start = Instant::now();
    while commits_ms.is_empty() || start.elapsed() < time {
        let first = commits_ms.len() * BATCH_ROWS;
        let rows: Vec<u64> = (first..first + BATCH_ROWS).map(scatter).collect();
        let keys: Vec<String> = rows.iter().map(|row| format!("{row:016x}")).collect();
        let batch: Vec<Append<'_>> = rows
            .iter()
            .zip(&keys)
            .map(|(row, key)| Append {
                channel: &channels[*row as usize % channels.len()],
                event: "new_message",
                data: data.as_bytes(),
                number_field: true,
                user: Some("alice"),
                dedupe: has_keys.then_some(key),
                request: None,
                amends: None,
                time_ms: 1_700_000_000_000,
            })
            .collect();
        let began = Instant::now();
        log.append(&batch)?;
        commits_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(commits_ms)
}

fn report(channels: usize, has_keys: bool, mut commits_ms: Vec<f64>) {
    let rows_per_s = (commits_ms.len() * BATCH_ROWS) as f64 / commits_ms.iter().sum::<f64>() * 1e3;
    commits_ms.sort_by(f64::total_cmp);
    let at = |share: f64| commits_ms[((commits_ms.len() - 1) as f64 * share) as usize];
    let keys = if has_keys { "random keys" } else { "no keys" };
    println!(
        "{channels} channels, {keys}: {rows_per_s:.0} rows/s; a commit of {BATCH_ROWS}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Spreads consecutive numbers over 64 bits (the finalizer of SplitMix64), as the keys of real clients are.
const fn scatter(row: usize) -> u64 {
    let mut bits = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits ^ (bits >> 27)
}
