//! What the front counts: written by its thread, read by whoever asks.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// What bytes are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Heads,
    Bodies,
    Answers,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Heads, Self::Bodies, Self::Answers];

    const fn name(self) -> &'static str {
        match self {
            Self::Heads => "http_heads",
            Self::Bodies => "http_bodies",
            Self::Answers => "http_answers",
        }
    }
}

/// Why a connection was ended before its client ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Another one needed the place.
    Crowded,
    /// No request came for too long.
    Idle,
    /// The head did not become whole.
    Head,
    /// The body did not come, or too slowly.
    Body,
    /// The client did not take its answer.
    Answer,
    /// Its client closed its side, and no answer came for long.
    HalfClosed,
    /// Another address needed the place of a body that still came.
    GaveWay,
    /// The front held too many bytes, most of them for this address.
    Bytes,
    /// The front ends.
    Stopped,
}

impl End {
    const ALL: [Self; 9] = [
        Self::Crowded,
        Self::Idle,
        Self::Head,
        Self::Body,
        Self::Answer,
        Self::HalfClosed,
        Self::GaveWay,
        Self::Bytes,
        Self::Stopped,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Idle => "idle",
            Self::Head => "head_timeout",
            Self::Body => "body_timeout",
            Self::Answer => "answer_timeout",
            Self::HalfClosed => "half_closed",
            Self::GaveWay => "gave_way",
            Self::Bytes => "bytes",
            Self::Stopped => "stopped",
        }
    }
}

/// Statuses that the front answers by itself; others count as the last.
const STATUSES: [u16; 9] = [400, 408, 414, 417, 429, 431, 500, 503, 0];

/// Counters and gauges.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) panics: AtomicU64,
    held: [AtomicU64; 3],
    ended: [AtomicU64; 9],
    refused: [AtomicU64; 9],
}

/// Only the front's thread writes.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// Only the front's thread writes.
pub(crate) fn sub(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn ended(&self, why: End) {
        add(&self.ended[why as usize], 1);
    }

    pub(crate) fn refused(&self, status: u16) {
        let place = STATUSES.iter().position(|other| *other == status).unwrap_or(STATUSES.len() - 1);
        add(&self.refused[place], 1);
    }

    pub(crate) fn held(&self, purpose: Purpose, before: usize, now: usize) {
        let gauge = &self.held[purpose as usize];
        add(gauge, now as u64);
        sub(gauge, before as u64);
    }

    /// Members of a JSON object: `http` with all of it, and what a bound of its bytes is compared with.
    pub(crate) fn to_json(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut json = String::from("\"http\":{");
        for (name, counter) in [
            ("connections", &self.connections),
            ("accepted", &self.accepted),
            ("accept_errors", &self.accept_errors),
            ("requests", &self.requests),
            ("in_flight", &self.in_flight),
            ("waiting", &self.waiting),
            ("panics", &self.panics),
        ] {
            let _ = write!(json, "\"{name}\":{},", of(counter));
        }
        let bytes = Purpose::ALL.map(|purpose| (purpose.name().to_owned(), of(&self.held[purpose as usize])));
        let ended = End::ALL.map(|why| (why.name().to_owned(), of(&self.ended[why as usize])));
        let statuses = STATUSES.iter().zip(&self.refused).filter(|(status, _)| **status != 0);
        let refused: Vec<(String, u64)> = statuses.map(|(status, count)| (status.to_string(), of(count))).collect();
        let _ = write!(
            json,
            "\"bytes\":{},\"ended\":{},\"refused\":{}}},\"http_bytes\":{},\"http_ended_for_bytes\":{}",
            object(&bytes),
            object(&ended),
            object(&refused),
            bytes.iter().map(|(_, held)| held).sum::<u64>(),
            of(&self.ended[End::Bytes as usize]),
        );
        json
    }
}

fn object(members: &[(String, u64)]) -> String {
    let members: Vec<String> = members.iter().map(|(name, count)| format!("\"{name}\":{count}")).collect();
    format!("{{{}}}", members.join(","))
}
