//! One client connection: connect, upgrade, read frames, write what the kernel takes.
//!
//! Invariants: bytes of a partial frame wait in `held`, bytes that the kernel refused in `out`; both are empty and unallocated while the
//! connection is idle. Nothing blocks. An [`End`] is final: the socket is dropped with it. Pings are answered here, a server's Close is
//! echoed here; every text frame goes to the caller. Called by `swarm` alone, which owns readiness.

use crate::clock::Clock;
use crate::deflate::{self, Agreement, Context, Inflater};
use crate::dialect::{Dialect, Part};
use crate::frame::{self, Opcode};
use crate::scan;
use mio::net::TcpStream;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

/// The key of RFC 6455 §1.3 and its accept value: a fixed pair checks the server's answer without a hash of our own.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// TCP is under way.
    Connecting,
    /// The request is sent.
    Upgrading,
    /// 101 came; the first frame has not.
    Greeting,
    /// Ready for commands.
    Open,
    /// We have sent Close and wait for the server's.
    Closing,
    /// Over.
    Closed,
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The server's Close frame: code (1005 for none, RFC 6455 §7.1.5) and reason.
    Close(u16, String),
    /// TCP ended without a Close frame.
    Cut,
    /// The upgrade was answered with something other than a correct 101.
    Refused(String),
    /// Connect, read or write failed.
    Io(String),
    /// The server broke RFC 6455.
    Protocol(String),
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close(code, reason) => write!(out, "closed by the server with {code} {reason:?}"),
            Self::Cut => write!(out, "cut by the server without a close frame"),
            Self::Refused(answer) => write!(out, "refused: {answer}"),
            Self::Io(error) => write!(out, "failed: {error}"),
            Self::Protocol(fault) => write!(out, "broke the protocol: {fault}"),
        }
    }
}

/// A socket with what is under way on it.
pub struct Connection {
    stream: TcpStream,
    stage: Stage,
    held: Vec<u8>,
    out: Vec<u8>,
    out_sent: usize,
    mask: u32,
    request: Vec<u8>,
    started_ns: u64,
    traffic: Traffic,
    offers_deflate: bool,
    deflate: Option<Agreement>,
    context: Context,
    dialect: Dialect,
}

/// What went over a connection, or over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the socket gave.
    pub received_bytes: u64,
    /// Bytes that the socket took.
    pub sent_bytes: u64,
    /// Text messages that came compressed.
    pub compressed: u64,
    /// Pings that were answered.
    pub pings: u64,
}

impl Traffic {
    /// Add another connection's.
    pub const fn add(&mut self, other: Self) {
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.compressed += other.compressed;
        self.pings += other.pings;
    }

    /// What came since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            received_bytes: self.received_bytes - before.received_bytes,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            compressed: self.compressed - before.compressed,
            pings: self.pings - before.pings,
        }
    }
}

/// What is read with, shared by all connections.
pub struct Reader {
    /// What the kernel writes into.
    pub buffer: Box<[u8]>,
    /// What inflates.
    pub inflater: Inflater,
}

impl Connection {
    /// Begin with a socket whose connect is under way since `now_ns`; `request` goes out when it stands.
    #[must_use]
    pub fn new(stream: TcpStream, request: Vec<u8>, seed: u32, now_ns: u64) -> Self {
        let offers_deflate = scan::after(&request, deflate::OFFER.as_bytes()).is_some();
        // xorshift must not start at zero; any other seed gives all 2^32 - 1 masks.
        Self {
            stream,
            stage: Stage::Connecting,
            held: Vec::new(),
            out: Vec::new(),
            out_sent: 0,
            mask: seed | 1,
            request,
            started_ns: now_ns,
            traffic: Traffic::default(),
            offers_deflate,
            deflate: None,
            context: Context::default(),
            dialect: Dialect::default(),
        }
    }

    /// Say what the server speaks, before it says anything.
    pub const fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// When its connect began.
    #[must_use]
    pub const fn started_ns(&self) -> u64 {
        self.started_ns
    }

    /// What has gone over it.
    #[must_use]
    pub const fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The upgrade request for `path` (with its query) on `host`, with an offer of permessage-deflate if `compress`.
    #[must_use]
    pub fn request(host: &str, path: &str, compress: bool) -> Vec<u8> {
        let offer = if compress { format!("Sec-WebSocket-Extensions: {}\r\n", deflate::OFFER) } else { String::new() };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
        )
        .into_bytes()
    }

    /// How far it has come.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// The socket, for registration.
    pub const fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether bytes wait for the kernel.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Queue one masked frame; [`Self::flush`] sends it.
    pub fn queue(&mut self, opcode: Opcode, payload: &[u8]) {
        self.mask ^= self.mask << 13;
        self.mask ^= self.mask >> 17;
        self.mask ^= self.mask << 5;
        frame::write_masked(opcode, payload, self.mask.to_ne_bytes(), &mut self.out);
    }

    /// Queue a command in the server's words.
    pub fn say(&mut self, command: &[u8]) {
        match self.dialect.command(command) {
            None => self.queue(Opcode::Text, command),
            Some(command) => self.queue(Opcode::Text, &command),
        }
    }

    /// Queue Close 1000 and wait for the server's.
    pub fn begin_close(&mut self) {
        self.queue(Opcode::Close, &1000_u16.to_be_bytes());
        self.stage = Stage::Closing;
    }

    /// Drop the socket's both directions; the caller has recorded the end.
    pub fn end(&mut self) {
        self.stage = Stage::Closed;
        self.held = Vec::new();
        self.out = Vec::new();
        // It may be gone already; there is nothing left to do about it.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The socket became writable: finish the connect, or send what waits.
    ///
    /// # Errors
    /// [`End::Io`] when the connect or a write failed.
    pub fn writable(&mut self) -> Result<(), End> {
        if self.stage == Stage::Connecting {
            if let Some(error) = self.stream.take_error().map_err(io_end)? {
                return Err(io_end(error));
            }
            match self.stream.peer_addr() {
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(io_end(error)),
                Ok(_) => {}
            }
            self.stream.set_nodelay(true).map_err(io_end)?;
            self.out = std::mem::take(&mut self.request);
            self.stage = Stage::Upgrading;
        }
        self.flush()
    }

    /// Send what waits until the kernel refuses; the rest goes at the next `writable`.
    ///
    /// # Errors
    /// [`End::Io`] when a write failed.
    pub fn flush(&mut self) -> Result<(), End> {
        while self.out_sent < self.out.len() {
            match self.stream.write(&self.out[self.out_sent..]) {
                Ok(sent) => {
                    self.out_sent += sent;
                    self.traffic.sent_bytes += sent as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io_end(error)),
            }
        }
        self.out_sent = 0;
        // A publisher writes again at once: keep a small buffer, give back a large one.
        if self.out.capacity() > 64 * 1024 {
            self.out = Vec::new()
        } else {
            self.out.clear()
        }
        Ok(())
    }

    /// Read until the kernel has no more and hand every text payload to `on_text` with the time of its read.
    ///
    /// # Errors
    /// The [`End`] of the connection, after everything that came before it was handed over.
    pub fn readable(
        &mut self,
        reader: &mut Reader,
        clock: &Clock,
        mut on_text: impl FnMut(&[u8], u64),
    ) -> Result<(), End> {
        let Reader { buffer, inflater } = reader;
        loop {
            let count = match self.stream.read(&mut buffer[..]) {
                Ok(0) => return Err(End::Cut),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_end(error)),
            };
            let now_ns = clock.now_ns();
            self.traffic.received_bytes += count as u64;
            if self.held.is_empty() {
                let used = self.consume(&buffer[..count], inflater, now_ns, &mut on_text)?;
                self.held.extend_from_slice(&buffer[used..count]);
            } else {
                let mut held = std::mem::take(&mut self.held);
                held.extend_from_slice(&buffer[..count]);
                let used = self.consume(&held, inflater, now_ns, &mut on_text)?;
                if used < held.len() {
                    held.drain(..used);
                    self.held = held;
                }
            }
            // A short read emptied the socket; what comes later raises a new edge (epoll(7)).
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handle all that is whole in `bytes`; returns how much that was.
    fn consume(
        &mut self,
        bytes: &[u8],
        inflater: &mut Inflater,
        now_ns: u64,
        on_text: &mut impl FnMut(&[u8], u64),
    ) -> Result<usize, End> {
        let mut used = 0;
        if self.stage == Stage::Upgrading {
            let Some(head) = head_bytes(bytes)? else {
                return Ok(0);
            };
            self.deflate = check_upgrade(bytes, head, self.offers_deflate)?;
            self.stage = Stage::Greeting;
            used = head;
            if let Some(opening) = self.dialect.opening() {
                self.queue(Opcode::Text, opening);
            }
        }
        let broken = |fault: frame::FrameFault| End::Protocol(fault.to_string());
        while let Some(frame) = frame::parse(&bytes[used..], self.deflate.is_some()).map_err(broken)? {
            used += frame.bytes;
            match frame.opcode {
                Opcode::Text => {
                    let payload = match self.deflate {
                        Some(agreement) if frame.compressed => {
                            self.traffic.compressed += 1;
                            let inflated = inflater.message(frame.payload, agreement, &mut self.context);
                            inflated.map_err(|fault| End::Protocol(fault.to_owned()))?
                        }
                        _ => frame.payload,
                    };
                    for part in self.dialect.parts(payload) {
                        let said = match part {
                            Part::Said(said) => said,
                            Part::Answer(answer) => {
                                self.queue(Opcode::Text, answer);
                                continue;
                            }
                        };
                        if self.stage == Stage::Greeting {
                            check_greeting(said)?;
                            self.stage = Stage::Open;
                        }
                        on_text(said, now_ns);
                    }
                }
                Opcode::Ping => {
                    self.traffic.pings += 1;
                    let payload = frame.payload.to_vec();
                    self.queue(Opcode::Pong, &payload);
                }
                Opcode::Pong => {}
                Opcode::Binary => {
                    return Err(End::Protocol("binary frame; events are text".to_owned()));
                }
                Opcode::Close => return Err(self.closed_by_server(frame.payload)),
            }
        }
        Ok(used)
    }

    fn closed_by_server(&mut self, payload: &[u8]) -> End {
        if self.stage != Stage::Closing {
            self.queue(Opcode::Close, &payload[..payload.len().min(2)]);
            // The connection is over either way; the echo is a courtesy.
            let _ = self.flush();
        }
        match payload {
            [high, low, reason @ ..] => {
                End::Close(u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
            }
            _ => End::Close(1005, String::new()),
        }
    }
}

// Taken by value because that is what `map_err` hands over.
#[allow(clippy::needless_pass_by_value)]
fn io_end(error: io::Error) -> End {
    End::Io(error.to_string())
}

/// Bytes of the response head with its empty line, or `None` while it is not whole.
fn head_bytes(bytes: &[u8]) -> Result<Option<usize>, End> {
    match scan::after(bytes, b"\r\n\r\n") {
        None if bytes.len() > HEAD_BYTES_MAX => {
            Err(End::Protocol(format!("response head over {HEAD_BYTES_MAX} bytes")))
        }
        found => Ok(found),
    }
}

/// Returns what was agreed on.
fn check_upgrade(bytes: &[u8], head: usize, offers_deflate: bool) -> Result<Option<Agreement>, End> {
    let text = String::from_utf8_lossy(&bytes[..head]);
    let status = text.lines().next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 101") {
        let body = String::from_utf8_lossy(&bytes[head..]);
        return Err(End::Refused(format!("{status} {}", body.trim()).trim().to_owned()));
    }
    let header = |wanted: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    if header("sec-websocket-accept").map(str::as_bytes) != Some(ACCEPT) {
        return Err(End::Refused("101 without the accept value of our key".to_owned()));
    }
    match deflate::agreed(header("sec-websocket-extensions")).map_err(End::Protocol)? {
        None if offers_deflate => {
            Err(End::Refused("101 without permessage-deflate; turn it on there, or leave --compress away".to_owned()))
        }
        Some(_) if !offers_deflate => Err(End::Protocol("agreed to an extension that nobody offered".to_owned())),
        agreement => Ok(agreement),
    }
}

fn check_greeting(payload: &[u8]) -> Result<(), End> {
    match scan::event_type(payload) {
        b"connection_established" => Ok(()),
        other => Err(End::Protocol(format!(
            "first frame is {:?}; connection_established must come before anything else",
            String::from_utf8_lossy(other)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrade_is_accepted_only_with_101_and_our_accept_value() {
        let good = b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(check_upgrade(good, good.len(), false), Ok(None));
        let other_key = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
        assert!(check_upgrade(other_key, other_key.len(), false).is_err());
        assert!(check_upgrade(good, good.len(), true).is_err(), "compression was asked for and is not there");
    }

    #[test]
    fn refusal_carries_status_and_body() {
        let answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nUnauthorized";
        let head = head_bytes(answer).expect("a short head").expect("a whole head");
        let refused = check_upgrade(answer, head, false).expect_err("401 is a refusal");
        assert_eq!(refused.to_string(), "refused: HTTP/1.1 401 Unauthorized Unauthorized");
    }

    #[test]
    fn first_frame_must_be_the_greeting() {
        assert_eq!(check_greeting(br#"{"type":"connection_established","data":{}}"#), Ok(()));
        assert!(check_greeting(br#"{"type":"user_presence","data":{}}"#).is_err());
    }
}
