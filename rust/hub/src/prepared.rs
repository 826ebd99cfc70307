//! A frame that is encoded once and shared by everyone who gets it.

use realtime_protocol::frame::{Opcode, encode_frame, header_len};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Header and payload of one server frame, or bytes that go out as they are (the answer to an upgrade).
#[derive(Debug)]
pub struct Prepared {
    bytes: Box<[u8]>,
    header_len: u8,
    /// Outboxes of slow readers that hold it, so that the process's budget counts it once.
    holders: AtomicU32,
}

impl Prepared {
    /// A frame of this kind.
    #[must_use]
    pub fn frame(opcode: Opcode, payload: &[u8]) -> Arc<Self> {
        let header_len = header_len(payload.len() as u64) as u8;
        Arc::new(Self { bytes: encode_frame(opcode, payload).into(), header_len, holders: AtomicU32::new(0) })
    }

    /// A text frame.
    #[must_use]
    pub fn text(payload: &[u8]) -> Arc<Self> {
        Self::frame(Opcode::Text, payload)
    }

    /// Bytes that are no frame.
    #[must_use]
    pub fn plain(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes: bytes.into(), header_len: 0, holders: AtomicU32::new(0) })
    }

    /// What goes to the socket.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the frame carries.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.header_len as usize..]
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        self.bytes.len()
    }

    /// One more outbox holds it; true for the first.
    pub(crate) fn hold(&self) -> bool {
        self.holders.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// One outbox less holds it; true for the last.
    pub(crate) fn release(&self) -> bool {
        self.holders.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
