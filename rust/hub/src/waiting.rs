//! What the commands of one user hold in Python, over all its connections, and which of these are not read for it.

use crate::ConnId;
use crate::lock::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The bytes of one user that wait for Python.
///
/// A connection that is to be read while they are at the limit puts itself down; whoever brings them to half of the
/// limit takes the list and has its connections read on. The list is looked at again after each of the two, so that none is
/// forgotten in between.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: AtomicUsize,
    has_paused: AtomicBool,
    /// At most the user's connections.
    paused: Mutex<Vec<ConnId>>,
}

impl Waiting {
    /// Takes bytes; returns how many wait then.
    pub(crate) fn add(&self, bytes: usize) -> usize {
        self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes
    }

    /// Gives bytes back; returns the connections that may be read on for it. The limit is asked for only where a
    /// connection is not read. It may be another one at each call: those who wait are named by the last byte at the latest.
    pub(crate) fn sub(&self, bytes: usize, most: impl FnOnce() -> usize) -> Vec<ConnId> {
        let left = self.bytes.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let has_paused = self.has_paused.load(Ordering::SeqCst);
        if has_paused && left <= most() / 2 && self.has_paused.swap(false, Ordering::SeqCst) {
            return std::mem::take(&mut *lock(&self.paused));
        }
        Vec::new()
    }

    /// Puts a connection down that is not read; false where it may be read by now.
    pub(crate) fn pause(&self, conn: ConnId, most: usize) -> bool {
        lock(&self.paused).push(conn);
        self.has_paused.store(true, Ordering::SeqCst);
        if self.bytes.load(Ordering::SeqCst) > most / 2 {
            return true;
        }
        self.forget(conn);
        false
    }

    /// Takes a connection off the list; it ends, or is read.
    pub(crate) fn forget(&self, conn: ConnId) {
        lock(&self.paused).retain(|paused| *paused != conn);
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_were_paused_are_named_once_at_half_of_the_limit() {
        let (waiting, conns) = (Waiting::default(), [1, 2, 3].map(|n| ConnId::new(0, n, 0)));
        assert_eq!(waiting.add(100), 100);
        assert!(conns.iter().all(|conn| waiting.pause(*conn, 100)));
        waiting.forget(conns[1]);
        assert_eq!(waiting.sub(49, || 100), []);
        assert_eq!(waiting.sub(1, || 100), [conns[0], conns[2]]);
        assert_eq!(waiting.sub(50, || unreachable!("no connection is paused")), []);
        assert!(!waiting.pause(conns[0], 100), "nothing waits any more");
        assert_eq!((waiting.bytes(), lock(&waiting.paused).len()), (0, 0));
    }

    #[test]
    fn a_connection_that_was_paused_at_a_higher_limit_is_named_by_the_last_byte() {
        let (waiting, conn) = (Waiting::default(), ConnId::new(0, 1, 0));
        waiting.add(100);
        assert!(waiting.pause(conn, 100));
        assert_eq!(waiting.sub(99, || 1), [], "of the limit of now, 1 is more than half");
        assert_eq!(waiting.sub(1, || 0), [conn]);
    }
}
