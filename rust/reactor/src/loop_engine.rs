//! The engine on the thread of an event loop: one shard over sockets of another library, which does the framing.
//!
//! The hub speaks HTTP heads and RFC 6455 frames to every driver. This one puts a whole message into an unmasked-looking
//! frame (a key of zeros) on its way up, and takes the frames of a flush apart on their way down, so that the hub knows
//! nothing of it. The library's C functions are called by address: no Python runs per receiver. A socket is named by
//! its [`ConnId`], generation included, and its address is forgotten before it can dangle: see [`LoopEngine::closed`].
//!
//! The library calls back only while its loop runs, and what it says is handed in afterwards: no call in here is made
//! from within one of its own.

use crate::clock::Clock;
use crate::engine::{check_options, nonce, open_log, options_error};
use crate::error::StartError;
use crate::handle::Handle;
use crate::log_thread::{self, LogPort, far_deadline};
use crate::log_worker::LogWorker;
use crate::notify::Notify;
use realtime_hub::{ConnId, Event, Hub, Options, Outcome, Release, SendOp, ShardCore, TICK_MS, Wire};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_void};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the library may hold for one connection; the rest stays in our outbox, where its class says what becomes of it.
const BUFFERED_MAX: usize = 64 << 10;
/// What waits here for one connection that the hub does not read: the library cannot be told to stop reading.
const UNREAD_BYTES_MAX: usize = 1 << 20;
const STOP_POLL: Duration = Duration::from_millis(2);

type Send = unsafe extern "C" fn(c_int, *mut c_void, *const c_char, usize, c_int, bool, bool) -> c_int;
type Buffered = unsafe extern "C" fn(c_int, *mut c_void) -> c_int;

/// What the driver's Python half has to do with a socket, outside of every call into the engine.
#[derive(Debug, PartialEq, Eq)]
pub enum SocketTask {
    /// Answer the request by this HTTP response; a 101 is the upgrade.
    Answer(ConnId, Vec<u8>),
    /// Send a close frame with this payload and end.
    End(ConnId, Vec<u8>),
    /// Close it at once.
    Close(ConnId),
}

/// One shard on the caller's thread, and the log on its own.
pub struct LoopEngine {
    options: Options,
    handle: Arc<Handle>,
    wake: Arc<Notify>,
    running: Option<Running>,
    events: Vec<Event>,
    tick_due_ms: u64,
}

struct Running {
    hub: Arc<Hub>,
    core: ShardCore,
    wire: Sockets,
    epoch: String,
    log: Option<JoinHandle<()>>,
}

struct Sockets {
    send: Send,
    buffered: Buffered,
    by_conn: HashMap<ConnId, Socket>,
    tasks: Vec<SocketTask>,
}

#[derive(Default)]
struct Socket {
    /// The library's socket, 0 until the upgrade.
    address: usize,
    /// Frames that the hub does not read yet.
    unread: VecDeque<Vec<u8>>,
    unread_bytes: usize,
    answered: bool,
    ended: bool,
}

impl Wire for Sockets {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for op in batch {
            let Some(socket) = self.by_conn.get_mut(&op.conn) else { continue };
            op.outcome = if socket.answered {
                frames_out(self.send, self.buffered, socket, op, &mut self.tasks)
            } else {
                answer(socket, op, &mut self.tasks)
            };
        }
    }
}

/// The first bytes are an HTTP response; frames behind a 101 wait until the upgrade is made.
fn answer(socket: &mut Socket, op: &SendOp<'_>, tasks: &mut Vec<SocketTask>) -> Outcome {
    socket.answered = true;
    let is_upgrade = op.bytes.starts_with(b"HTTP/1.1 101");
    let head = op.bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(op.bytes.len(), |at| at + 4);
    let taken = if is_upgrade { head } else { op.bytes.len() };
    socket.ended = !is_upgrade;
    tasks.push(SocketTask::Answer(op.conn, op.bytes[..taken].to_vec()));
    Outcome::Sent(taken)
}

fn frames_out(
    send: Send,
    buffered: Buffered,
    socket: &mut Socket,
    op: &SendOp<'_>,
    tasks: &mut Vec<SocketTask>,
) -> Outcome {
    if socket.ended {
        return Outcome::Sent(op.bytes.len());
    }
    if socket.address == 0 {
        return Outcome::Sent(0);
    }
    let address = socket.address as *mut c_void;
    let mut taken = 0;
    while let Some((opcode, header, length)) = head_of(&op.bytes[taken..]) {
        let payload = &op.bytes[taken + header..taken + header + length];
        if opcode == Opcode::Close as u8 {
            socket.ended = true;
            tasks.push(SocketTask::End(op.conn, payload.to_vec()));
            return Outcome::Sent(op.bytes.len());
        }
        // SAFETY: the socket is open: `closed` takes it out of the map before the library frees it.
        let held = unsafe { buffered(0, address) };
        if usize::try_from(held).unwrap_or(0) >= BUFFERED_MAX {
            break;
        }
        // SAFETY: as above; `payload` lives through the call, which copies what it does not send.
        unsafe { send(0, address, payload.as_ptr().cast(), length, c_int::from(opcode), false, true) };
        taken += header + length;
    }
    Outcome::Sent(taken)
}

/// Opcode, bytes of the header and of the payload of a server's frame that is there whole.
fn head_of(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (header, length) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    (bytes.len() - header >= length).then_some((first & 0x0f, header, length))
}

/// A client's frame around a whole message; with a key of zeros its payload is as it was.
fn frame_of(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_masked_frame(opcode, true, payload, [0; 4], &mut frame);
    frame
}

impl LoopEngine {
    /// Checks the options (JSON, see [`Options`]); `host`, `port` and `shards` mean nothing here.
    ///
    /// # Errors
    /// As [`crate::Engine::new`].
    pub fn new(options: &[u8]) -> Result<Self, StartError> {
        let options = check_options(options)?;
        let no_descriptor = |error: std::io::Error| StartError::io("cannot make the event descriptor", &error);
        let handle = Handle::new(&options.limits, Clock::system()).map_err(no_descriptor)?;
        let wake = Arc::new(Notify::new().map_err(no_descriptor)?);
        Ok(Self { options, handle, wake, running: None, events: Vec::new(), tick_due_ms: 0 })
    }

    /// Python's end.
    #[must_use]
    pub const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// A descriptor that is readable when [`Self::step`] has something to do.
    #[must_use]
    pub fn wake_fileno(&self) -> RawFd {
        self.wake.fileno()
    }

    /// Opens the log. `send` and `buffered` are the addresses of `uws_ws_send_with_options` and
    /// `uws_ws_get_buffered_amount`.
    ///
    /// # Safety
    /// They are these functions, of one library that stays loaded.
    ///
    /// # Errors
    /// As [`crate::Engine::start`], less those of the port.
    pub unsafe fn start(&mut self, send: usize, buffered: usize) -> Result<(), StartError> {
        if self.handle.is_started() || send == 0 || buffered == 0 {
            return Err(options_error("this engine was started before, or without a library; make a new one".into()));
        }
        // SAFETY: the caller's word.
        let (send, buffered) =
            unsafe { (std::mem::transmute::<usize, Send>(send), std::mem::transmute::<usize, Buffered>(buffered)) };
        let log = open_log(&self.options)?;
        let epoch = log.epoch().to_owned();
        let queue = Box::new(LogPort(Arc::clone(&self.handle.requests)));
        let hub = Hub::new(&self.options, 1, queue, &epoch, nonce()?).map_err(options_error)?;
        let wake = Arc::clone(&self.wake);
        hub.inbox(0).set_waker(Box::new(move || wake.set()));
        let bridge = Arc::clone(&self.handle.bridge);
        hub.set_ear(Box::new(move |event| bridge.push_one(event)));
        let pressed = Arc::downgrade(&hub);
        self.handle.bridge.on_pressure(Box::new(move |on| {
            if let Some(hub) = pressed.upgrade() {
                hub.set_pressure(on);
            }
        }));
        let worker = LogWorker::new(log, Arc::clone(&hub), Arc::clone(&self.handle.log_health));
        let (requests, bridge) = (Arc::clone(&self.handle.requests), Arc::clone(&self.handle.bridge));
        let log = log_thread::spawn(worker, requests, bridge, Arc::clone(&self.handle.clock))
            .map_err(|error| StartError::io("cannot start a thread", &error))?;
        let _ = self.handle.hub.set(Arc::clone(&hub));
        let wire = Sockets { send, buffered, by_conn: HashMap::new(), tasks: Vec::new() };
        let core = ShardCore::new(Arc::clone(&hub), 0);
        self.running = Some(Running { hub, core, wire, epoch, log: Some(log) });
        Ok(())
    }

    /// The epoch of the durable channels; empty before the start.
    #[must_use]
    pub fn epoch(&self) -> &str {
        self.running.as_ref().map_or("", |running| &running.epoch)
    }

    /// A request came, with its head as HTTP/1.1 has it; None where the engine does not run.
    pub fn request(&mut self, peer: IpAddr, head: &[u8]) -> Option<ConnId> {
        let now = self.handle.clock.now();
        let running = self.running.as_mut()?;
        let conn = running.core.open(peer, now);
        running.wire.by_conn.insert(conn, Socket::default());
        running.core.bytes_in(conn, &mut head.to_vec(), now);
        Some(conn)
    }

    /// The upgrade is made: the library's socket is at `address`.
    pub fn upgraded(&mut self, conn: ConnId, address: usize) {
        let Some(running) = self.running.as_mut() else { return };
        if let Some(socket) = running.wire.by_conn.get_mut(&conn) {
            socket.address = address;
            running.core.writable(conn);
        }
    }

    /// A whole message, or the payload of a control frame, came; false where the connection has to be cut, since it
    /// sends on while nothing of it is read.
    pub fn message(&mut self, conn: ConnId, opcode: u8, payload: &[u8]) -> bool {
        let now = self.handle.clock.now();
        let Some(running) = self.running.as_mut() else { return true };
        let Some(socket) = running.wire.by_conn.get_mut(&conn) else { return true };
        let Some(opcode) = Opcode::from_nibble(opcode) else { return false };
        let mut frame = frame_of(opcode, payload);
        if socket.unread.is_empty() && running.core.reads(conn) {
            running.core.bytes_in(conn, &mut frame, now);
            return true;
        }
        let fits = socket.unread_bytes <= UNREAD_BYTES_MAX;
        if fits {
            socket.unread_bytes += frame.len();
            socket.unread.push_back(frame);
        }
        fits
    }

    /// The library has room for the connection again.
    pub fn writable(&mut self, conn: ConnId) {
        if let Some(running) = self.running.as_mut() {
            running.core.writable(conn);
        }
    }

    /// The socket ended, by a close frame with this payload or without one: its address is never used again.
    pub fn closed(&mut self, conn: ConnId, close: Option<&[u8]>) {
        let now = self.handle.clock.now();
        let Some(running) = self.running.as_mut() else { return };
        if running.wire.by_conn.remove(&conn).is_none() {
            return;
        }
        if let Some(payload) = close
            && running.core.reads(conn)
        {
            running.core.bytes_in(conn, &mut frame_of(Opcode::Close, payload), now);
        }
        running.core.closed(conn, now);
    }

    /// Runs everything that can run now and returns what has to be done with sockets; the second is whether there is
    /// more at once.
    pub fn step(&mut self) -> (Vec<SocketTask>, bool) {
        self.wake.clear();
        let now = self.handle.clock.now();
        let Some(running) = self.running.as_mut() else { return (Vec::new(), false) };
        let inbox = running.hub.inbox(0);
        inbox.woke();
        if now.mono_ms >= self.tick_due_ms {
            self.tick_due_ms = now.mono_ms + TICK_MS;
            running.core.tick(now);
        }
        running.read_on(now);
        running.core.run_inbox(now);
        running.core.flush(&mut running.wire, now);
        if running.core.has_fanned_out() {
            running.core.fanned_out(self.handle.clock.now());
        }
        running.core.take_events(&mut self.events);
        self.handle.bridge.push(&mut self.events);
        running.release();
        let more = running.core.more_to_flush() || !running.hub.inbox(0).may_sleep();
        (std::mem::take(&mut running.wire.tasks), more)
    }

    /// Waits for nothing; see [`Hub::stop_reading`].
    pub fn stop_reading(&self) {
        if let Some(running) = &self.running {
            running.hub.stop_reading();
        }
    }

    /// Tells clients that the process ends; see [`Hub::announce_drain`].
    pub fn announce_drain(&self, spread_ms: u64) {
        if let Some(running) = &self.running {
            running.hub.announce_drain(spread_ms);
        }
    }

    /// Closes every connection; see [`Hub::close_all`].
    pub fn close_all(&self, code: u16, reason: &str, over_ms: u64) {
        if let Some(running) = &self.running {
            running.hub.close_all(code, reason, over_ms);
        }
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.core.is_empty())
    }

    /// Waits until the engine has no connection, by asking `is_empty`, which the loop's thread makes true.
    pub fn wait_until(is_empty: impl Fn() -> bool, timeout: Duration) {
        let deadline = far_deadline(timeout);
        while !is_empty() && Instant::now() < deadline {
            std::thread::sleep(STOP_POLL);
        }
    }

    /// Ends the log's thread. Idempotent.
    pub fn stop(&mut self) {
        self.handle.stopped.store(true, Ordering::Release);
        if let Some(mut running) = self.running.take() {
            self.handle.requests.stop();
            if let Some(thread) = running.log.take() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for LoopEngine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// Hands on what waited for connections that are read again.
    fn read_on(&mut self, now: realtime_hub::Now) {
        let mut unpaused = Vec::new();
        self.core.take_unpaused(&mut unpaused);
        for conn in unpaused {
            while self.core.reads(conn) {
                let Some(socket) = self.wire.by_conn.get_mut(&conn) else { break };
                let Some(mut frame) = socket.unread.pop_front() else { break };
                socket.unread_bytes -= frame.len();
                self.core.bytes_in(conn, &mut frame, now);
            }
        }
    }

    fn release(&mut self) {
        let mut releases = Vec::new();
        self.core.take_releases(&mut releases);
        for release in releases {
            // The library shuts down by itself behind a close frame and behind a refusal.
            if let Release::Close(conn) = release
                && self.wire.by_conn.remove(&conn).is_some()
            {
                self.wire.tasks.push(SocketTask::Close(conn));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_tells_where_its_payload_is() {
        assert_eq!(head_of(&[0x81, 2, b'h', b'i']), Some((1, 2, 2)));
        assert_eq!(head_of(&[0x81, 2, b'h']), None);
        let mut long = vec![0x82, 126, 1, 0];
        long.extend_from_slice(&[0; 256]);
        assert_eq!(head_of(&long), Some((2, 4, 256)));
    }

    #[test]
    fn a_message_is_framed_as_a_client_would() {
        assert_eq!(frame_of(Opcode::Text, b"hi"), [0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!(frame_of(Opcode::Binary, &[7; 300])[..4], [0x82, 0xfe, 1, 44]);
    }
}
