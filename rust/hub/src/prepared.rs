//! A frame that is encoded once and shared by everyone who gets it, plain or deflated.

use crate::compression::{Compressor, Window};
use realtime_protocol::frame::{Opcode, encode_frame, header_len};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Which of its two encodings of a frame a connection gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The payload as it is.
    #[default]
    Plain,
    /// The payload deflated (RFC 7692), for who agreed to it.
    Deflated,
}

impl Form {
    /// The encodings that stay in memory for who waits for this one: what was deflated stands beside its copy.
    pub(crate) const fn kept(self) -> &'static [Self] {
        match self {
            Self::Plain => &[Self::Plain],
            Self::Deflated => &[Self::Plain, Self::Deflated],
        }
    }
}

/// Header and payload of one server frame, or bytes that go out as they are (the answer to an upgrade).
#[derive(Debug)]
pub struct Prepared {
    plain: Encoded,
    header_len: u8,
    /// One connection alone gets it: nobody shares what deflating it costs.
    for_one: bool,
    /// Made at most once for all shards, by the first that needs it; None where it is not worth its bytes.
    deflated: OnceLock<Option<Box<Encoded>>>,
}

/// One encoding of the frame.
#[derive(Debug)]
struct Encoded {
    bytes: Box<[u8]>,
    /// Outboxes of slow readers that hold it, so that the process's budget counts it once.
    holders: AtomicU32,
}

impl Encoded {
    fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self { bytes: bytes.into(), holders: AtomicU32::new(0) }
    }
}

impl Prepared {
    /// A frame of this kind.
    #[must_use]
    pub fn frame(opcode: Opcode, payload: &[u8]) -> Arc<Self> {
        Self::new(encode_frame(opcode, payload), header_len(payload.len() as u64))
    }

    /// A text frame.
    #[must_use]
    pub fn text(payload: &[u8]) -> Arc<Self> {
        Self::frame(Opcode::Text, payload)
    }

    /// A text frame that one connection alone gets, though it is an event: a past that was read from the log.
    pub(crate) fn text_for_one(payload: &[u8]) -> Arc<Self> {
        let header_len = header_len(payload.len() as u64);
        Arc::new(Self::with(encode_frame(Opcode::Text, payload), header_len, true))
    }

    /// Whether one connection alone gets it.
    pub(crate) const fn is_for_one(&self) -> bool {
        self.for_one
    }

    /// Bytes that are no frame.
    #[must_use]
    pub fn plain(bytes: Vec<u8>) -> Arc<Self> {
        Self::new(bytes, 0)
    }

    fn new(bytes: Vec<u8>, header_len: usize) -> Arc<Self> {
        Arc::new(Self::with(bytes, header_len, false))
    }

    fn with(bytes: Vec<u8>, header_len: usize, for_one: bool) -> Self {
        Self { plain: Encoded::new(bytes), header_len: header_len as u8, for_one, deflated: OnceLock::new() }
    }

    fn encoded(&self, form: Form) -> &Encoded {
        match (form, self.deflated.get()) {
            (Form::Deflated, Some(Some(deflated))) => deflated,
            // `Deflated` is only given out by `form_for`, which has made it.
            _ => &self.plain,
        }
    }

    /// What goes to the socket.
    #[must_use]
    pub fn bytes(&self, form: Form) -> &[u8] {
        &self.encoded(form).bytes
    }

    /// What the frame carries.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.plain.bytes[self.header_len as usize..]
    }

    /// Bytes on the wire.
    #[must_use]
    pub fn wire_len(&self, form: Form) -> usize {
        self.encoded(form).bytes.len()
    }

    /// What a connection with this window gets: the same at every call. The first call for which it is the deflated
    /// form makes that; another shard that wants it meanwhile waits, which is no longer than to make it itself.
    ///
    /// `bytes_min` is the payload below which it stays plain.
    pub(crate) fn form_for(&self, window: Window, bytes_min: usize, compressor: &mut Compressor) -> Form {
        let len = self.plain.bytes.len() - self.header_len as usize;
        if !window.holds(len) || len < bytes_min || !self.is_message() {
            return Form::Plain;
        }
        let opcode = if self.plain.bytes[0] & 0x0F == Opcode::Text as u8 { Opcode::Text } else { Opcode::Binary };
        let deflated = self.deflated.get_or_init(|| {
            let frame = compressor.deflate(opcode, self.payload())?;
            Some(Box::new(Encoded::new(frame)))
        });
        if deflated.is_some() { Form::Deflated } else { Form::Plain }
    }

    /// How many outboxes hold it in this form.
    pub(crate) fn holders(&self, form: Form) -> usize {
        self.encoded(form).holders.load(Ordering::Relaxed) as usize
    }

    /// Whether it is a data frame: control frames and what is no frame are never deflated (RFC 7692 §6.1).
    fn is_message(&self) -> bool {
        self.header_len > 0 && self.plain.bytes[0] & 0x08 == 0
    }

    /// One more outbox holds it in this form; true for the first.
    pub(crate) fn hold(&self, form: Form) -> bool {
        self.encoded(form).holders.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// One outbox less holds it in this form; true for the last.
    pub(crate) fn release(&self, form: Form) -> bool {
        self.encoded(form).holders.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
