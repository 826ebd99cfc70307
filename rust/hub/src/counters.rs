//! Counters of the engine: relaxed atomics that cost no lock on the hot path.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened since the start.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// One JSON object, a member a counter.
            #[must_use]
            pub fn to_json(&self) -> Vec<u8> {
                let rows = [$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*];
                let members: Vec<String> = rows.iter().map(|(name, count)| format!("\"{name}\":{count}")).collect();
                format!("{{{}}}", members.join(",")).into_bytes()
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
    /// Messages from clients.
    messages_in,
    /// Bytes from clients.
    bytes_in,
    /// Bytes that the kernel took.
    bytes_out,
    /// Sends to the kernel.
    sends,
    /// Frames queued for connections.
    deliveries,
    /// Events of channels.
    publications,
    /// Events dropped because a reader was too slow.
    dropped_slow,
    /// Connections closed because a reader was too slow.
    closed_slow,
    /// Connections closed because the peer was silent.
    closed_silent,
    /// Commands refused by a rate.
    rate_limited,
    /// `error` frames sent.
    errors,
    /// Bytes queued behind what the kernel took, each shared frame once.
    outbox_bytes,
    /// Bytes of commands from Python that no shard has run yet.
    commands_bytes,
    /// Bytes held of messages that are not finished.
    unfinished_bytes,
    /// Appends waiting for the log.
    log_waiting,
    /// Commits of the log.
    log_commits,
    /// Events that the log stored.
    log_events,
    /// Sockets that could not be taken.
    accept_errors,
    /// Connections that ended by a panic in their shard.
    panics,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Takes from a gauge.
pub(crate) fn sub(counter: &AtomicU64, count: u64) {
    counter.fetch_sub(count, Ordering::Relaxed);
}
