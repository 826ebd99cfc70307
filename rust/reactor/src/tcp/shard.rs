//! One shard's thread: readiness in, bytes to the hub, bytes out, in turns.
//!
//! A turn polls, takes new sockets, reads what is ready, runs the timers and the inbox, sends everything that came of
//! it and hands events to the bridge. What one turn produced for a connection leaves in one send. Reads are bounded
//! per connection and per turn, so that nobody who sends much holds up the others. The shard sleeps only when no
//! socket is ready, the inbox is empty by its own protocol and nothing is left to send. A panic while one connection's
//! bytes are handled ends that connection; anywhere else it ends the engine, and Python is told.

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::handle::Passer;
use crate::panics;
use crate::tcp::arrivals::{Arrival, Arrivals};
use crate::tcp::flush::{Flusher, Flushes};
use crate::tcp::sockets::{BLOCKED, ENDING, LISTED, READABLE, SHUT, Sockets};
use mio::event::Event as Readiness;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use realtime_hub::{ConnId, Event, Hub, Now, Release, ShardCore, TICK_MS, add_own};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The waker's token; slots are below it.
pub(crate) const WAKE: Token = Token(ConnId::SLOTS_MAX);
/// One read, and what one connection may bring in one turn.
const READ_BYTES: usize = 256 << 10;
/// What all connections together may bring in one turn before what they caused is sent.
const TURN_BYTES_MAX: usize = 4 << 20;
/// How long a turn may read before what was read is answered, in µs. The clock is asked behind each long read, and
/// behind every fourth of the others: a short question may have a page of 1 MiB made.
const TURN_READS_US: u64 = 2_000;
const READS_A_LOOK: usize = 4;
/// A read of as much may have taken long: to copy, to inflate, to check.
const LONG_READ_BYTES: usize = 4 << 10;
const POLL_EVENTS_MAX: usize = 1_024;
/// How often a turn looks for more before it sends.
const LOOKS_MAX: usize = 3;

/// What a shard shares with the rest of the engine.
pub(crate) struct Shared {
    pub(crate) hub: Arc<Hub>,
    pub(crate) bridge: Arc<Bridge>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) stopping: AtomicBool,
    pub(crate) flushes: Arc<Flushes>,
    pub(crate) passer: Arc<OnceLock<Passer>>,
}

pub(crate) struct Shard {
    index: usize,
    core: ShardCore,
    shared: Arc<Shared>,
    arrivals: Arc<Arrivals>,
    poll: Poll,
    polled: Events,
    sockets: Sockets,
    flusher: Flusher,
    /// Connections that may be read without asking the poller; `LISTED` says that one stands here or in `lengthy`.
    ready: Vec<ConnId>,
    /// Those of them that brought all that one may in a turn: they wait until the others are read.
    lengthy: VecDeque<ConnId>,
    reads: Reads,
    buffer: Box<[u8]>,
    tick_due_ms: u64,
    /// When the last turn ended.
    ended: Now,
    /// Something was closed after the flush: the next turn must not wait.
    unsettled: bool,
    scratch: Scratch,
}

/// What a turn has read, and since when.
#[derive(Default)]
struct Reads {
    began_us: u64,
    count: usize,
    bytes: usize,
    took_too_long: bool,
}

impl Reads {
    const fn are_enough(&self) -> bool {
        self.bytes >= TURN_BYTES_MAX || self.took_too_long
    }

    fn note(&mut self, bytes: usize, clock: &Clock) {
        self.count += 1;
        self.bytes += bytes;
        if bytes >= LONG_READ_BYTES || self.count.is_multiple_of(READS_A_LOOK) {
            self.took_too_long = clock.now().mono_us.saturating_sub(self.began_us) >= TURN_READS_US;
        }
    }
}

/// Vectors that keep their room from turn to turn.
#[derive(Default)]
struct Scratch {
    arrivals: Vec<Arrival>,
    gone: Vec<ConnId>,
    evictions: Vec<ConnId>,
    unpaused: Vec<ConnId>,
    events: Vec<Event>,
    releases: Vec<Release>,
    passed: Vec<(ConnId, Vec<u8>)>,
}

/// Runs a shard until the engine stops; whatever ends it otherwise is told to Python.
pub(crate) fn run(mut shard: Shard) {
    let bridge = Arc::clone(&shard.shared.bridge);
    let index = shard.index;
    let run = panics::caught(move || shard.run());
    if let Err(what) = run.and_then(|ended| ended.map_err(|error| error.to_string())) {
        bridge.fatal(format!("shard {index} failed: {what}; end the process and start it again"));
    }
}

impl Shard {
    pub(crate) fn new(index: usize, poll: Poll, arrivals: Arc<Arrivals>, shared: Arc<Shared>) -> Self {
        Self {
            index,
            core: ShardCore::new(Arc::clone(&shared.hub), index),
            shared,
            arrivals,
            poll,
            polled: Events::with_capacity(POLL_EVENTS_MAX),
            sockets: Sockets::default(),
            flusher: Flusher::default(),
            ready: Vec::new(),
            lengthy: VecDeque::new(),
            reads: Reads::default(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            tick_due_ms: 0,
            ended: Now::default(),
            unsettled: false,
            scratch: Scratch::default(),
        }
    }

    fn run(&mut self) -> io::Result<()> {
        // Here and not earlier: a ring belongs to the thread that makes it.
        match Flusher::open(self.shared.flushes.of(self.index)) {
            Ok(flusher) => self.flusher = flusher,
            Err(error) => self.lost_ring(&error),
        }
        while !self.shared.stopping.load(Ordering::Acquire) {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        #[cfg(test)]
        tests::fail_if_broken();
        #[cfg(test)]
        tests::hold_ticks_if_asked(&mut self.tick_due_ms);
        let timeout = self.timeout();
        let polled = self.poll.poll(&mut self.polled, Some(timeout));
        self.shared.hub.inbox(self.index).woke();
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = self.shared.clock.now();
        self.take_readiness(now);
        self.take_arrivals(now);
        self.reads = Reads { began_us: now.mono_us, ..Reads::default() };
        self.read_ready(now);
        self.read_lengthy(now);
        self.look_again(now)?;
        if now.mono_ms >= self.tick_due_ms {
            self.tick_due_ms = now.mono_ms + TICK_MS;
            self.core.tick(now);
        }
        self.core.run_inbox(now);
        self.evict(now);
        self.flush(now);
        self.core.take_events(&mut self.scratch.events);
        self.shared.bridge.push(&mut self.scratch.events);
        self.pass_on();
        self.release();
        self.take_unpaused();
        self.ended = self.shared.clock.now();
        // Whatever is not the poller's sleep is work.
        let busy_ns = self.ended.mono_us.saturating_sub(now.mono_us) * 1_000;
        add_own(&self.shared.hub.tallies()[self.index].busy_ns, busy_ns);
        Ok(())
    }

    /// Reads what came while the first part was read, so that it leaves in the same sends: a look costs one system
    /// call, a send to every member that could have been shared costs many.
    fn look_again(&mut self, now: Now) -> io::Result<()> {
        for _ in 0..LOOKS_MAX {
            if self.reads.are_enough() {
                return Ok(());
            }
            match self.poll.poll(&mut self.polled, Some(Duration::ZERO)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ if self.polled.is_empty() => return Ok(()),
                _ => {}
            }
            self.take_readiness(now);
            // The wake for a new socket may be among them, and no other one comes.
            self.take_arrivals(now);
            self.read_ready(now);
        }
        Ok(())
    }

    /// How long the poller may sleep. The inbox is asked last: its word holds until [`realtime_hub::Inbox::woke`].
    fn timeout(&self) -> Duration {
        let is_busy = !self.ready.is_empty() || !self.lengthy.is_empty() || self.unsettled || self.core.more_to_flush();
        if is_busy || !self.shared.hub.inbox(self.index).may_sleep() {
            return Duration::ZERO;
        }
        Duration::from_millis(self.tick_due_ms.saturating_sub(self.ended.mono_ms))
    }

    fn take_readiness(&mut self, now: Now) {
        let polled = std::mem::replace(&mut self.polled, Events::with_capacity(0));
        for readiness in polled.iter().filter(|readiness| readiness.token() != WAKE) {
            self.take_one(readiness, now);
        }
        self.polled = polled;
    }

    fn take_one(&mut self, readiness: &Readiness, now: Now) {
        let Some(socket) = self.sockets.at(readiness.token().0) else {
            return;
        };
        let conn = socket.conn;
        if readiness.is_writable() && socket.has(BLOCKED) {
            socket.clear(BLOCKED);
            self.core.writable(conn);
        }
        if readiness.is_readable() || readiness.is_read_closed() || readiness.is_error() {
            if readiness.is_read_closed() || readiness.is_error() {
                socket.set(ENDING);
            }
            socket.set(READABLE);
            if self.may_read(conn) {
                self.list(conn);
            } else if readiness.is_error() || readiness.is_write_closed() {
                // Both ways are shut, and what the peer still said is not read now: nobody is left to answer.
                self.core.closed(conn, now);
                self.unsettled = true;
            }
        }
    }

    fn take_arrivals(&mut self, now: Now) {
        let mut arrivals = std::mem::take(&mut self.scratch.arrivals);
        self.arrivals.take(&mut arrivals);
        for (fd, peer) in arrivals.drain(..) {
            let conn = self.core.open(peer, now);
            self.arrivals.begun();
            let raw = fd.as_raw_fd();
            if self.sockets.put(conn, fd) {
                self.arrivals.left();
            }
            let interest = Interest::READABLE | Interest::WRITABLE;
            let token = Token(conn.slot());
            if self.poll.registry().register(&mut SourceFd(&raw), token, interest).is_err() {
                // No memory for the poller: this peer cannot be served.
                self.core.closed(conn, now);
            }
        }
        self.scratch.arrivals = arrivals;
    }

    fn may_read(&mut self, conn: ConnId) -> bool {
        self.core.pause_unless_readable(conn) || self.sockets.find(conn).is_some_and(|socket| socket.has(SHUT))
    }

    fn list(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.find(conn)
            && !socket.has(LISTED)
        {
            socket.set(LISTED);
            self.ready.push(conn);
        }
    }

    fn list_lengthy(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.find(conn)
            && !socket.has(LISTED)
        {
            socket.set(LISTED);
            self.lengthy.push_back(conn);
        }
    }

    /// Reads the ready connections; those that the budget leaves over stand first in the next turn.
    fn read_ready(&mut self, now: Now) {
        let mut ready = std::mem::take(&mut self.ready);
        let mut taken = 0;
        while taken < ready.len() && !self.reads.are_enough() {
            self.read_listed(ready[taken], now);
            taken += 1;
        }
        ready.drain(..taken);
        // What was listed meanwhile stands behind those that are left.
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    /// Reads on those that bring much, in turn, while the budget lasts; one of them in any case.
    fn read_lengthy(&mut self, now: Now) {
        for _ in 0..self.lengthy.len() {
            let Some(conn) = self.lengthy.pop_front() else { return };
            self.read_listed(conn, now);
            if self.reads.are_enough() {
                return;
            }
        }
    }

    fn read_listed(&mut self, conn: ConnId, now: Now) {
        let Some(socket) = self.sockets.find(conn) else { return };
        socket.clear(LISTED);
        let fd = socket.fd();
        let bytes = self.read(conn, fd, now);
        self.reads.note(bytes, &self.shared.clock);
    }

    /// Reads one connection until nothing is there, its budget is used or the hub wants no more; returns the bytes.
    fn read(&mut self, conn: ConnId, fd: RawFd, now: Now) -> usize {
        let mut total = 0;
        loop {
            let is_discarded = !self.core.pause_unless_readable(conn);
            if is_discarded && !self.may_read(conn) {
                return total;
            }
            if total >= READ_BYTES {
                self.list_lengthy(conn);
                return total;
            }
            match receive(fd, &mut self.buffer) {
                Ok(0) => {
                    self.unreadable(conn);
                    self.core.closed(conn, now);
                    return total;
                }
                Ok(count) => {
                    total += count;
                    if !is_discarded {
                        self.bytes_in(conn, count, now);
                    }
                    // A short read emptied the socket; what comes later is told anew. Only an end that the poller has
                    // told of already is not told again, and has to be read.
                    if count < READ_BYTES && self.is_emptied(conn) {
                        return total;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unreadable(conn);
                    return total;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.unreadable(conn);
                    self.core.closed(conn, now);
                    return total;
                }
            }
        }
    }

    /// Ends connections without a session that have to make room. Each is read first: a request that is complete in
    /// the kernel is served.
    fn evict(&mut self, now: Now) {
        self.core.take_evictions(&mut self.scratch.evictions);
        if self.scratch.evictions.is_empty() {
            return;
        }
        for conn in std::mem::take(&mut self.scratch.evictions) {
            if let Some(fd) = self.sockets.find(conn).map(|socket| socket.fd()) {
                self.read(conn, fd, now);
            }
        }
        self.core.end_evicted(now);
    }

    fn is_emptied(&mut self, conn: ConnId) -> bool {
        let Some(socket) = self.sockets.find(conn).filter(|socket| !socket.has(ENDING)) else {
            return false;
        };
        socket.clear(READABLE);
        true
    }

    fn unreadable(&mut self, conn: ConnId) {
        if let Some(socket) = self.sockets.find(conn) {
            socket.clear(READABLE);
        }
    }

    /// Where a panic costs one connection: what its bytes caused in the hub may be half done, so it must go.
    fn bytes_in(&mut self, conn: ConnId, count: usize, now: Now) {
        #[cfg(test)]
        tests::await_arrival_on_request(&self.buffer[..count], &self.arrivals);
        let Self { core, buffer, .. } = self;
        let input = &mut buffer[..count];
        let handled = panics::caught(|| {
            #[cfg(test)]
            tests::fault_on_request(input);
            core.bytes_in(conn, input, now);
        });
        if handled.is_err() {
            let panics = &self.shared.hub.counters().panics;
            panics.fetch_add(1, Ordering::Relaxed);
            // A second panic here is a broken hub, and the thread's own catch tells of it.
            self.core.closed(conn, now);
        }
    }

    fn flush(&mut self, now: Now) {
        if let Err(error) = self.flusher.flush(&mut self.core, &mut self.sockets, &mut self.scratch.gone, now) {
            self.lost_ring(&error);
        }
        if self.core.has_fanned_out() {
            self.core.fanned_out(self.shared.clock.now());
        }
        self.unsettled = !self.scratch.gone.is_empty();
        for conn in self.scratch.gone.drain(..) {
            self.core.closed(conn, now);
        }
    }

    /// The shard goes on with the send loop, and that is told.
    fn lost_ring(&self, error: &io::Error) {
        let Shared { hub, bridge, flushes, .. } = &*self.shared;
        hub.counters().flush_ring_failures.fetch_add(1, Ordering::Relaxed);
        flushes.lost_ring(self.index);
        bridge.warn(format!("io_uring of shard {} failed: {error}; its sends go one by one now", self.index));
    }

    /// Hands connections of the HTTP side over to it.
    fn pass_on(&mut self) {
        self.core.take_passed(&mut self.scratch.passed);
        for (conn, read) in self.scratch.passed.drain(..) {
            let Some(fd) = self.sockets.take(conn) else { continue };
            self.arrivals.left();
            // Fails only for what the poller does not know, and then it tells of it no more either.
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd.as_raw_fd()));
            if let Some(pass_on) = self.shared.passer.get() {
                pass_on(fd, read);
            }
        }
    }

    fn release(&mut self) {
        let mut releases = std::mem::take(&mut self.scratch.releases);
        self.core.take_releases(&mut releases);
        for release in releases.drain(..) {
            match release {
                Release::Shutdown(conn) => self.shut(conn),
                // Closing the only descriptor takes it out of the poller.
                Release::Close(conn) => {
                    if self.sockets.close(conn) {
                        self.arrivals.left();
                    }
                }
            }
        }
        self.scratch.releases = releases;
    }

    fn shut(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.find(conn) else {
            return;
        };
        socket.set(SHUT);
        let is_readable = socket.has(READABLE);
        // Fails only for a peer that is gone, of which the poller tells.
        // SAFETY: the descriptor is open and takes no pointer.
        unsafe { libc::shutdown(socket.fd(), libc::SHUT_WR) };
        if is_readable {
            self.list(conn);
        }
    }

    fn take_unpaused(&mut self) {
        let mut unpaused = std::mem::take(&mut self.scratch.unpaused);
        self.core.take_unpaused(&mut unpaused);
        for conn in unpaused.drain(..) {
            if self.sockets.find(conn).is_some_and(|socket| socket.has(READABLE)) {
                self.list(conn);
            }
        }
        self.scratch.unpaused = unpaused;
    }
}

/// Bytes that were there; 0 at the end of the stream.
fn receive(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is writable for its length; the descriptor is the socket's, which lives through the call.
    let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use crate::Engine;
    use crate::tcp::arrivals::Arrivals;
    use realtime_hub::Event;
    use realtime_protocol::frame::{Opcode, encode_masked_frame};
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    thread_local! {
        static BROKEN: Cell<bool> = const { Cell::new(false) };
        static HOLDING: Cell<bool> = const { Cell::new(false) };
    }

    /// Stands for a fault in the hub that certain bytes bring out.
    pub(super) fn fault_on_request(input: &[u8]) {
        let asks_for = |text: &[u8]| input.windows(text.len()).any(|window| window == text);
        BROKEN.set(asks_for(b"break this shard"));
        assert!(!asks_for(b"break this connection"), "asked to");
    }

    /// Stands for a fault in a shard that is no one connection's.
    pub(super) fn fail_if_broken() {
        assert!(!BROKEN.get(), "broken as asked");
    }

    pub(super) fn hold_ticks_if_asked(tick_due_ms: &mut u64) {
        if HOLDING.get() {
            *tick_due_ms = u64::MAX;
        }
    }

    /// A shard reads, and has taken whatever waited before.
    static READS: AtomicBool = AtomicBool::new(false);

    /// Without ticks from now on, and only when a socket waits to be taken.
    pub(super) fn await_arrival_on_request(input: &[u8], arrivals: &Arrivals) {
        if input.windows(22).any(|words| words == b"please wait for a peer") {
            HOLDING.set(true);
            READS.store(true, Ordering::Release);
            // Whoever asks may have failed; the shard's thread must end with the test all the same.
            let deadline = Instant::now() + Duration::from_secs(20);
            while !arrivals.is_waited_for() && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }

    fn started() -> Engine {
        let options = br#"{"endpoints": [{"path": "/raw", "mode": "raw", "auth": "none"}]}"#;
        let engine = Engine::new(options).unwrap();
        engine.start().unwrap();
        engine
    }

    fn connect(engine: &Engine) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", engine.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = "GET /raw HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 1];
        while !answer.ends_with(b"\n") || peek(&stream) != Some(b'\r') {
            stream.read_exact(&mut answer).unwrap();
        }
        stream.read_exact(&mut [0; 2]).unwrap();
        stream
    }

    fn peek(stream: &TcpStream) -> Option<u8> {
        let mut next = [0];
        (stream.peek(&mut next).unwrap() == 1).then_some(next[0])
    }

    fn send(stream: &mut TcpStream, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        // A mask of zeroes leaves the words readable on the way.
        encode_masked_frame(opcode, true, payload, [0; 4], &mut frame);
        stream.write_all(&frame).unwrap();
    }

    fn wait_for(engine: &Engine, is_it: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(event) = engine.handle().drain(usize::MAX).into_iter().find(&is_it) {
                return event;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_panic_over_one_connections_bytes_ends_that_connection_alone() {
        let engine = started();
        let (mut bad, mut good) = (connect(&engine), connect(&engine));
        send(&mut bad, Opcode::Text, b"please break this connection");
        assert_eq!(bad.read(&mut [0; 16]).unwrap_or(0), 0, "its stream ends");
        let closed = wait_for(&engine, |event| matches!(event, Event::Close { .. }));
        assert!(matches!(closed, Event::Close { code: 1006, .. }), "{closed:?}");
        send(&mut good, Opcode::Ping, b"");
        let mut pong = [0; 2];
        good.read_exact(&mut pong).unwrap();
        assert_eq!(pong, [0x8A, 0]);
        assert!(engine.handle().stats_json().contains("\"panics\":1"));
        assert!(engine.handle().stats_json().contains("\"connections\":1"));
    }

    #[test]
    fn a_panic_anywhere_else_is_told_and_takes_nothing_else_along() {
        let engine = started();
        let mut stream = connect(&engine);
        send(&mut stream, Opcode::Text, b"please break this shard");
        let fatal = wait_for(&engine, |event| matches!(event, Event::Fatal { .. }));
        let Event::Fatal { message } = fatal else { unreachable!() };
        assert_eq!(&*message, "shard 0 failed: broken as asked; end the process and start it again");
        engine.stop(Duration::from_millis(50));
    }

    #[test]
    fn a_socket_that_comes_while_others_are_read_does_not_wait_for_the_next_tick() {
        let engine = started();
        let mut first = connect(&engine);
        send(&mut first, Opcode::Text, b"please wait for a peer");
        // A peer that came earlier would be taken before the reading, and none would be left to wait for.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !READS.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline, "the message is not read");
            std::thread::yield_now();
        }
        // Its wake is seen by the look after the reading; no tick comes to its help.
        connect(&engine);
        engine.stop(Duration::from_millis(50));
    }
}
