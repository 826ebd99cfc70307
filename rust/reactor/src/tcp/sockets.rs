//! The sockets of one shard, by the hub's slots: a descriptor and three bits each.
//!
//! Readiness is edge-triggered: a bit says what the poller will not say again. `READABLE` is set by an event and
//! cleared only by a read that would block; `BLOCKED` is set by a send that the kernel did not take whole and cleared
//! by an event. A stale name never finds the socket that took its slot: names carry a generation. 16 bytes a slot.

use realtime_hub::ConnId;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The poller has said that there is something to read, and no read has found nothing since.
pub(crate) const READABLE: u8 = 1;
/// The kernel has not taken the last send whole, and the poller has not said since that there is room.
pub(crate) const BLOCKED: u8 = 2;
/// Stands in the shard's ready list.
pub(crate) const LISTED: u8 = 4;
/// Nothing more is sent; what still comes is read, so that the kernel delivers what was sent.
pub(crate) const SHUT: u8 = 8;
/// The poller has said that the peer's end of the stream or an error is there to be read.
pub(crate) const ENDING: u8 = 16;

/// One connection's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) conn: ConnId,
    fd: OwnedFd,
    bits: u8,
}

impl Socket {
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) const fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }

    pub(crate) const fn set(&mut self, bit: u8) {
        self.bits |= bit;
    }

    pub(crate) const fn clear(&mut self, bit: u8) {
        self.bits &= !bit;
    }
}

/// A shard's sockets.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    slots: Vec<Option<Socket>>,
}

impl Sockets {
    /// Keeps a socket; true when that closed another one. The hub may give a slot again before it has told that the
    /// last connection in it is to be closed.
    pub(crate) fn put(&mut self, conn: ConnId, fd: OwnedFd) -> bool {
        let slot = conn.slot();
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let bits = 0;
        self.slots[slot].replace(Socket { conn, fd, bits }).is_some()
    }

    /// The socket in a slot, whoever's it is.
    pub(crate) fn at(&mut self, slot: usize) -> Option<&mut Socket> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// The socket of exactly this connection.
    pub(crate) fn find(&mut self, conn: ConnId) -> Option<&mut Socket> {
        self.at(conn.slot()).filter(|socket| socket.conn == conn)
    }

    /// The socket of exactly this connection, which is its driver's no more.
    pub(crate) fn take(&mut self, conn: ConnId) -> Option<OwnedFd> {
        let slot = self.slots.get_mut(conn.slot())?;
        slot.take_if(|socket| socket.conn == conn).map(|socket| socket.fd)
    }

    /// Closes the socket of exactly this connection; false when it has none.
    pub(crate) fn close(&mut self, conn: ConnId) -> bool {
        match self.slots.get_mut(conn.slot()) {
            Some(slot) if slot.as_ref().is_some_and(|socket| socket.conn == conn) => {
                *slot = None;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_slot_costs_sixteen_bytes() {
        assert_eq!(size_of::<Option<Socket>>(), 16);
    }

    #[test]
    fn a_stale_name_finds_nothing() {
        let (old, new) = (ConnId::new(0, 1, 5), ConnId::new(0, 2, 5));
        let mut sockets = Sockets::default();
        assert!(!sockets.put(old, fd()));
        assert!(sockets.find(old).is_some());
        assert!(sockets.close(old));
        assert!(!sockets.put(new, fd()));
        assert!(sockets.find(old).is_none());
        assert!(!sockets.close(old));
        assert_eq!(sockets.at(5).map(|socket| socket.conn), Some(new));
        assert!(sockets.at(6).is_none());
    }

    #[test]
    fn a_slot_that_is_given_again_closes_its_last_socket() {
        let (old, new) = (ConnId::new(0, 1, 0), ConnId::new(0, 2, 0));
        let mut sockets = Sockets::default();
        sockets.put(old, fd());
        assert!(sockets.put(new, fd()));
        assert!(!sockets.close(old), "it was counted already");
    }
}
