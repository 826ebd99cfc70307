//! Sockets on their way from the acceptor to a shard.

use mio::Waker;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// An accepted socket and whose it is.
pub(crate) type Arrival = (OwnedFd, IpAddr);

/// One shard's door: the acceptor leaves sockets, the shard takes them in its next turn.
#[derive(Debug)]
pub(crate) struct Arrivals {
    waiting: Mutex<Vec<Arrival>>,
    /// Sockets that wait here or are open in the shard: the acceptor picks the shard with the fewest.
    load: AtomicUsize,
    /// Of these, the ones whose handshake the shard has not begun: the hub knows nothing of them yet.
    unbegun: AtomicUsize,
    waker: Arc<Waker>,
}

impl Arrivals {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { waiting: Mutex::default(), load: AtomicUsize::new(0), unbegun: AtomicUsize::new(0), waker }
    }

    pub(crate) fn push(&self, arrival: Arrival) {
        self.load.fetch_add(1, Ordering::Relaxed);
        self.unbegun.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(arrival);
        let is_first = waiting.len() == 1;
        drop(waiting);
        if is_first {
            self.wake();
        }
    }

    pub(crate) fn take(&self, into: &mut Vec<Arrival>) {
        into.append(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }

    #[cfg(test)]
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The handshake of one of the sockets has begun: from here on the hub can end it for another.
    pub(crate) fn begun(&self) {
        self.unbegun.fetch_sub(1, Ordering::Release);
    }

    /// Whether the hub is still to hear of a socket.
    pub(crate) fn has_unbegun(&self) -> bool {
        self.unbegun.load(Ordering::Acquire) > 0
    }

    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// One of the shard's sockets is closed.
    pub(crate) fn left(&self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes the shard take a turn.
    pub(crate) fn wake(&self) {
        // Fails only when the poller's own descriptor is broken; the shard's next tick is 250 ms away at most.
        let _ = self.waker.wake();
    }
}
