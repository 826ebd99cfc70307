//! How many events a second does the log store, in commits of 200 with `synchronous=FULL`?
//!
//! Unit: rows/s, and milliseconds per commit. Arguments: directory (default: a new one under the system's
//! temporary directory, removed afterwards), seconds (default 5). Payload 130 bytes, 100 channels, every event
//! with a user and a dedupe key, as messages have them.

#![allow(clippy::print_stdout, reason = "a program that prints its result")]

use std::time::{Duration, Instant};

use realtime_log::{Append, Log, Options};

const BATCH_ROWS: usize = 200;
const CHANNELS: usize = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let given = arguments.next();
    let dir = given.clone().map_or_else(
        || std::env::temp_dir().join(format!("append-rate-{}", std::process::id())),
        Into::into,
    );
    let seconds = arguments.next().map_or(Ok(5.0), |text| text.parse())?;
    let mut log = Log::open(&Options::new(&dir))?;
    let channels: Vec<String> = (0..CHANNELS)
        .map(|index| format!("conversation:{index}"))
        .collect();
    let data = format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(100));

    let mut commits_ms = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let first = commits_ms.len() * BATCH_ROWS;
        let keys: Vec<String> = (first..first + BATCH_ROWS)
            .map(|row| format!("{:016x}", scatter(row)))
            .collect();
        let batch: Vec<Append<'_>> = keys
            .iter()
            .enumerate()
            .map(|(index, key)| Append {
                channel: &channels[scatter(first + index) as usize % CHANNELS],
                event: "new_message",
                data: data.as_bytes(),
                number_field: true,
                user: Some("alice"),
                dedupe: Some(key),
                time_ms: 1_700_000_000_000,
            })
            .collect();
        let began = Instant::now();
        log.append(&batch)?;
        commits_ms.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let rows_per_s = (commits_ms.len() * BATCH_ROWS) as f64 / start.elapsed().as_secs_f64();
    commits_ms.sort_by(f64::total_cmp);
    let at = |share: f64| commits_ms[((commits_ms.len() - 1) as f64 * share) as usize];
    println!(
        "{rows_per_s:.0} rows/s, commits of {BATCH_ROWS}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    drop(log);
    if given.is_none() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Spreads consecutive numbers over 64 bits (the finalizer of SplitMix64), as the keys of real clients are.
const fn scatter(row: usize) -> u64 {
    let mut bits = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits ^ (bits >> 27)
}
