//! The seam to whatever moves bytes: sockets one by one, a ring, or a virtual link in tests.

use crate::ConnId;

/// Takes bytes for connections. One flush of a turn is one or more batches.
pub trait Wire {
    /// Tries to send each entry once and fills its outcome. Never blocks; entries are for different connections.
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]);

    /// Whether bytes may begin and end within a frame; else each entry is whole frames and whole frames are taken.
    fn takes_parts(&self) -> bool {
        true
    }
}

/// Bytes for one connection.
#[derive(Debug)]
pub struct SendOp<'a> {
    /// Whose.
    pub conn: ConnId,
    /// What; never empty.
    pub bytes: &'a [u8],
    /// What became of it; [`Outcome::Gone`] until the wire says otherwise.
    pub outcome: Outcome,
}

/// What a send did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// So many bytes were taken, 0 to all. Fewer than all: the driver calls `writable` when there is room again.
    Sent(usize),
    /// The peer is gone; the driver will hear of it from the poller too.
    Gone,
}

/// What the driver has to do with a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Say that nothing more follows (`shutdown(Write)`) and go on reading, so that what the peer still sends does
    /// not make the kernel throw away the answer that is on its way.
    Shutdown(ConnId),
    /// Close it; the slot is free again.
    Close(ConnId),
}
