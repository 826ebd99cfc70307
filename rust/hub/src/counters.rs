//! Counters of the engine: relaxed atomics that cost no lock on the hot path.
//!
//! What every message touches is counted in its shard's own [`Tally`], on a cache line that no other thread writes;
//! the rest is rare enough for one place. Labels are lists that are known from the start: nothing that a peer chooses
//! makes a new one.

use crate::histogram::Histogram;
use crate::refusal::Refusal;
use realtime_protocol::close::{CloseCode, TABLE};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an `error` can say; docs/reference/protocol.md.
const ERROR_CODES: [&str; 16] = [
    "invalid_message",
    "unknown_type",
    "unauthorized",
    "forbidden",
    "not_found",
    "not_subscribed",
    "rate_limited",
    "limit_reached",
    "too_large",
    "not_recoverable",
    "upstream_failed",
    "timeout",
    "unavailable",
    "overloaded",
    "draining",
    "internal",
];
/// What an upgrade is refused with.
const STATUSES: [u16; 11] = [400, 401, 403, 404, 408, 414, 426, 429, 431, 500, 503];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened since the start, all shards together.
        #[derive(Debug)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            closed_by_code: Labelled<{ TABLE.len() + 1 }>,
            errors_by_code: Labelled<{ ERROR_CODES.len() + 1 }>,
            refused_by_status: Labelled<{ STATUSES.len() + 1 }>,
            tokens_refused: Labelled<{ Refusal::NAMES + 1 }>,
            /// From accept to the end.
            pub connection_s: Histogram,
            /// From the read of a message to the last send of its fan-out on a shard.
            pub delivery_s: Histogram,
            /// How long a commit of the log takes.
            pub log_commit_s: Histogram,
            /// Events of one commit.
            pub log_batch: Histogram,
        }

        impl Default for Counters {
            fn default() -> Self {
                Self {
                    $($name: AtomicU64::new(0),)*
                    closed_by_code: Labelled::default(),
                    errors_by_code: Labelled::default(),
                    refused_by_status: Labelled::default(),
                    tokens_refused: Labelled::default(),
                    connection_s: Histogram::of_long_seconds(),
                    delivery_s: Histogram::of_seconds(),
                    log_commit_s: Histogram::of_seconds(),
                    log_batch: Histogram::of_counts(),
                }
            }
        }

        impl Counters {
            /// The plain counters, each with its name.
            fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Sockets that were taken.
    accepted,
    /// Connections that are open now.
    connections,
    /// Connections that were opened.
    opened,
    /// Connections that were closed.
    closed,
    /// Handshakes that were refused.
    refused,
    /// Handshakes that are under way.
    handshakes_pending,
    /// Unfinished handshakes that ended because all clients have too many.
    evicted_number,
    /// Unfinished handshakes that ended because their heads hold too much.
    evicted_bytes,
    /// Connections without a session that ended because no further socket could be held.
    evicted_sockets,
    /// Bytes held of requests that are not complete.
    heads_bytes,
    /// Upgrades that Python decides about.
    authenticating,
    /// Upgrades refused because too many wait for Python, of all clients or of one address.
    authenticating_refused,
    /// Events of channels.
    publications,
    /// Events dropped because a reader was too slow.
    dropped_slow,
    /// Events dropped because all outboxes together held too much.
    dropped_budget,
    /// Events that a newer one of the same channel and key took the place of, for a reader that was too slow.
    dropped_conflated,
    /// Volatile events that came while a member replayed, or waited for the log.
    dropped_replaying,
    /// Connections closed because a reader was too slow.
    closed_slow,
    /// Connections closed because the peer was silent.
    closed_silent,
    /// Commands refused by a rate.
    rate_limited,
    /// Refusals by the buckets of a connection.
    refused_by_connection,
    /// Refusals by the buckets of a user.
    refused_by_user,
    /// Refusals by the buckets of an address.
    refused_by_address,
    /// Bytes of memberships: what connections and shards keep of each subscription.
    members_bytes,
    /// Subscriptions refused by a limit of the session, the user or the process.
    members_refused,
    /// Bytes of the accounts of users and addresses that have no connection and whose buckets are not full.
    accounts_bytes,
    /// Accounts that were not kept, or shared with others, since too many are.
    accounts_refused,
    /// `error` frames sent.
    errors,
    /// Bytes queued behind what the kernel took: each shared frame once, with 128 for its own places, and 96 for each
    /// place in a queue.
    outbox_bytes,
    /// States that channels retain for late subscribers.
    retained,
    /// Their bytes and those of relays that last, with what keys and places are taken to cost.
    retained_bytes,
    /// States that were not retained, and relays that were refused, since all channels together hold too much, or one
    /// user does, or one is too large.
    retained_refused,
    /// Questions for a history that were refused since more than `commands_waiting_bytes_max` waits for shards.
    pages_refused,
    /// Bytes of who open sessions are: users, rights, and tokens where Python is told them.
    identities_bytes,
    /// Sessions and renewals that were refused, since all identities together hold too much.
    identities_refused,
    /// Bytes of channels that are in memory, without what they keep.
    channels_bytes,
    /// Commands that were refused since they would have made a channel over `channels_bytes_max` or their user's share.
    channels_refused,
    /// Bytes that wait for the log: events to be stored, and commands that wait for a channel's head.
    log_queue_bytes,
    /// Commands that were refused since too much waits for the log, of their user or of all.
    log_queue_refused,
    /// Bytes that channels keep of their newest publications, deflated copies that may be made included.
    rings_bytes,
    /// Publications that went from rings over `ring_bytes_max` or `rings_bytes_max`.
    ring_events_evicted,
    /// Bytes of commands from Python that no shard has run yet.
    commands_bytes,
    /// Bytes held of messages that are not finished, and of those that wait behind a pause.
    unfinished_bytes,
    /// Unfinished messages that were given up, with their connections.
    unfinished_refused,
    /// Of these, those that were not complete in time.
    messages_late,
    /// Bytes of events of channels that Python listens to, until it takes them.
    heard_bytes,
    /// How often reading stopped since Python had too much.
    events_pauses,
    /// How often a connection was not read since its user had too much in Python.
    user_pauses,
    /// How often a publisher was held since too much waited for a shard.
    inboxes_pauses,
    /// Events that were refused since too much waited for a shard.
    inboxes_refused,
    /// Large commands that were refused since Python had too much of all users.
    events_refused,
    /// Appends waiting for the log.
    log_waiting,
    /// Commits of the log.
    log_commits,
    /// Events that the log stored.
    log_events,
    /// Events that the log numbered otherwise than their channel counted.
    log_gaps,
    /// Durable events that were not stored, since their user had stored too much.
    stored_refused,
    /// Pages of the log that wait to be read.
    reads_waiting,
    /// Pages that were read.
    reads,
    /// Payload bytes in them.
    read_bytes,
    /// Pages that were not read, since too many waited.
    reads_refused,
    /// Sockets that could not be taken.
    accept_errors,
    /// Bytes of revocations that are known.
    revocations_bytes,
    /// Revocations that went for newer ones, since there are too many.
    revocations_dropped,
    /// Connections that ended by a panic in their shard.
    panics,
    /// Rings that failed while they were in use, or could not be made: their shards send one by one.
    flush_ring_failures,
}

impl Counters {
    /// A connection that was open ended with this code, after so long.
    pub(crate) fn connection_closed(&self, code: u16, after_ms: u64) {
        add(&self.closed, 1);
        self.closed_by_code.add(TABLE.iter().position(|row| row.code == CloseCode(code)));
        self.connection_s.observe(after_ms.saturating_mul(1_000), 1);
    }

    /// An `error` with this code goes out.
    pub(crate) fn error_sent(&self, code: &str) {
        add(&self.errors, 1);
        self.errors_by_code.add(ERROR_CODES.iter().position(|known| *known == code));
    }

    /// A peer was refused with this HTTP status, or with the close code that stands for it.
    pub fn peer_refused(&self, status: u16) {
        add(&self.refused, 1);
        self.refused_by_status.add(STATUSES.iter().position(|known| *known == status));
    }

    /// A token, or what stands in its place, was refused.
    pub(crate) fn token_refused(&self, refusal: Refusal) {
        self.tokens_refused.add(refusal.place());
    }

    /// One JSON object: a member a counter, the tallies' as sums, then what is told by label, and histograms.
    #[must_use]
    pub fn to_json(&self, tallies: &[Tally]) -> String {
        let mut out = String::from("{");
        let own = Tally::ROWS
            .into_iter()
            .map(|(name, of)| (name, tallies.iter().map(|tally| of(tally).load(Ordering::Relaxed)).sum()));
        for (name, count) in self.rows().into_iter().chain(own) {
            let _ = write!(out, "\"{name}\":{count},");
        }
        let codes = TABLE.iter().map(|row| row.code.0.to_string());
        self.closed_by_code.write_json(&mut out, "closed_by_code", codes);
        self.errors_by_code.write_json(&mut out, "errors_by_code", ERROR_CODES.iter().map(ToString::to_string));
        self.refused_by_status.write_json(&mut out, "refused_by_status", STATUSES.iter().map(ToString::to_string));
        self.tokens_refused.write_json(&mut out, "tokens_refused", Refusal::names().map(str::to_owned));
        let [slow, budget, conflated, replaying] =
            [&self.dropped_slow, &self.dropped_budget, &self.dropped_conflated, &self.dropped_replaying]
                .map(|counter| counter.load(Ordering::Relaxed));
        let _ = write!(
            out,
            "\"dropped_by_reason\":{{\"slow\":{slow},\"budget\":{budget},\"conflated\":{conflated},\"replaying\":{replaying}}},"
        );
        let [number, bytes, sockets] = [&self.evicted_number, &self.evicted_bytes, &self.evicted_sockets]
            .map(|counter| counter.load(Ordering::Relaxed));
        let _ = write!(out, "\"evicted_by_reason\":{{\"number\":{number},\"bytes\":{bytes},\"sockets\":{sockets}}},");
        out.push_str("\"histograms\":{");
        let histograms = [
            ("connection_s", &self.connection_s),
            ("delivery_s", &self.delivery_s),
            ("log_commit_s", &self.log_commit_s),
            ("log_batch", &self.log_batch),
        ];
        for (place, (name, histogram)) in histograms.into_iter().enumerate() {
            let _ = write!(out, "{}\"{name}\":", if place > 0 { "," } else { "" });
            histogram.write_json(&mut out);
        }
        out.push_str("}}");
        out
    }
}

/// Counts by label: the known ones in their order, then every other.
#[derive(Debug)]
struct Labelled<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Labelled<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> Labelled<N> {
    fn add(&self, place: Option<usize>) {
        add(&self.0[place.unwrap_or(N - 1)], 1);
    }

    /// Appends `"name":{label:count,…},`, without the labels that were never counted.
    fn write_json(&self, out: &mut String, name: &str, labels: impl Iterator<Item = String>) {
        let labels = labels.chain(["other".to_owned()]);
        let counted = labels.zip(&self.0).map(|(label, count)| (label, count.load(Ordering::Relaxed)));
        let members = counted.filter(|(_, count)| *count > 0).map(|(label, count)| format!("\"{label}\":{count}"));
        let _ = write!(out, "\"{name}\":{{{}}},", members.collect::<Vec<_>>().join(","));
    }
}

type CounterOf = fn(&Tally) -> &AtomicU64;

/// What one shard counts with every message. Only its own thread writes, so nothing is locked for it: a load and a
/// store. Two lines of cache apart from its neighbours, since processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// Messages from clients.
    pub(crate) messages_in: AtomicU64,
    /// Bytes from clients.
    pub(crate) bytes_in: AtomicU64,
    /// Bytes that the kernel took.
    pub(crate) bytes_out: AtomicU64,
    /// Sends to the kernel.
    pub(crate) sends: AtomicU64,
    /// Frames queued for connections.
    pub(crate) deliveries: AtomicU64,
    /// Connections that are open here.
    pub(crate) connections: AtomicU64,
    /// Messages that were deflated, once each for everyone who gets them.
    pub(crate) compressions: AtomicU64,
    /// Their payloads.
    pub(crate) compressed_bytes_in: AtomicU64,
    /// What came of them.
    pub(crate) compressed_bytes_out: AtomicU64,
    /// Messages from clients that were inflated.
    pub(crate) inflations: AtomicU64,
    /// What came of them.
    pub(crate) inflated_bytes: AtomicU64,
    /// Bytes of events of this shard that Python has not done with.
    pub(crate) events_bytes: AtomicU64,
    /// How long the shard has worked and not slept.
    pub busy_ns: AtomicU64,
}

impl Tally {
    const ROWS: [(&'static str, CounterOf); 11] = [
        ("events_bytes", |tally| &tally.events_bytes),
        ("messages_in", |tally| &tally.messages_in),
        ("bytes_in", |tally| &tally.bytes_in),
        ("bytes_out", |tally| &tally.bytes_out),
        ("sends", |tally| &tally.sends),
        ("deliveries", |tally| &tally.deliveries),
        ("compressions", |tally| &tally.compressions),
        ("compressed_bytes_in", |tally| &tally.compressed_bytes_in),
        ("compressed_bytes_out", |tally| &tally.compressed_bytes_out),
        ("inflations", |tally| &tally.inflations),
        ("inflated_bytes", |tally| &tally.inflated_bytes),
    ];

    /// Connections that are open on the shard.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Takes from a gauge.
pub(crate) fn sub(counter: &AtomicU64, count: u64) {
    counter.fetch_sub(count, Ordering::Relaxed);
}

/// Adds to a counter of a [`Tally`], from its shard's thread.
pub fn add_own(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_summed_and_labels_are_known_ones_or_other() {
        let counters = Counters::default();
        let tallies = [Tally::default(), Tally::default()];
        for tally in &tallies {
            add_own(&tally.deliveries, 3);
        }
        counters.connection_closed(1000, 2_000);
        counters.connection_closed(3_777, 0);
        counters.error_sent("rate_limited");
        counters.error_sent("of an app");
        counters.peer_refused(429);
        let read: serde_json::Value = serde_json::from_str(&counters.to_json(&tallies)).unwrap();
        assert_eq!(read["deliveries"], 6);
        assert_eq!(read["closed_by_code"], serde_json::json!({"1000": 1, "other": 1}));
        assert_eq!(read["errors_by_code"], serde_json::json!({"rate_limited": 1, "other": 1}));
        assert_eq!(read["refused_by_status"], serde_json::json!({"429": 1}));
        let reasons = serde_json::json!({"slow": 0, "budget": 0, "conflated": 0, "replaying": 0});
        assert_eq!(read["dropped_by_reason"], reasons);
        assert_eq!(read["histograms"]["connection_s"]["sum"], 2.0);
        assert_eq!((&read["errors"], &read["closed"], &read["refused"]), (&2.into(), &2.into(), &1.into()));
    }
}
