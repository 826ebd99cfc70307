//! One shard over sockets of uWebSockets: what the library tells goes to the hub, what comes of it to the library.

use crate::bridge::Bridge;
use crate::clock::Clock;
use crate::panics;
use crate::uws::callbacks::{Heard, Note};
use crate::uws::sockets::{Request, UwsSockets};
use realtime_hub::{ConnId, Event, Hub, Now, Release, ShardCore, TICK_MS, add_own};
use realtime_protocol::frame::{Opcode, encode_masked_frame};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a frame's buffer keeps.
const FRAME_BYTES: usize = 64 << 10;
/// What may wait of a connection that is not read, besides one message: the library hands on all that one read of its
/// own brought (512 KiB) before it reads no more.
const UNREAD_SLACK: usize = 1 << 20;

pub(crate) struct UwsShard {
    hub: Arc<Hub>,
    bridge: Arc<Bridge>,
    clock: Arc<Clock>,
    heard: Arc<Heard>,
    core: ShardCore,
    sockets: UwsSockets,
    now: Now,
    tick_due_ms: u64,
    /// A message as a client's frame.
    frame: Vec<u8>,
    /// Connections that sent too much while they were not read, or whose bytes brought out a fault.
    to_cut: Vec<ConnId>,
    events: Vec<Event>,
    releases: Vec<Release>,
    unpaused: Vec<ConnId>,
}

impl UwsShard {
    pub(crate) fn new(
        hub: Arc<Hub>,
        bridge: Arc<Bridge>,
        clock: Arc<Clock>,
        heard: Arc<Heard>,
        sockets: UwsSockets,
    ) -> Self {
        Self {
            core: ShardCore::new(Arc::clone(&hub), 0),
            hub,
            bridge,
            heard,
            sockets,
            now: clock.now(),
            clock,
            tick_due_ms: 0,
            frame: Vec::new(),
            to_cut: Vec::new(),
            events: Vec::new(),
            releases: Vec::new(),
            unpaused: Vec::new(),
        }
    }

    /// Sockets and requests that are there.
    pub(crate) const fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether the hub has no connection.
    pub(crate) fn is_empty(&self) -> bool {
        self.core.is_empty()
    }

    /// The time of everything until [`Self::step`] ends.
    pub(crate) fn begin(&mut self) {
        self.now = self.clock.now();
    }

    /// Takes a request, with its head as HTTP/1.1 has it, and answers it if the hub does so at once; true where not.
    pub(crate) fn request(&mut self, peer: IpAddr, mut head: Vec<u8>, request: Request) -> bool {
        // What is sent below must not go to a socket that ended a moment ago.
        self.hand_in();
        let conn = self.core.open(peer, self.now);
        self.sockets.put(conn, request);
        let queued = self.core.queued();
        self.bytes_in(conn, &mut head);
        // Within the library's own call: what is written there leaves in one send, and it reads frames from here on.
        let Self { core, sockets, now, .. } = self;
        if let Err(what) = panics::caught(|| core.flush_since(queued, sockets, *now)) {
            self.heard.set_fault(what);
        }
        self.sockets.waits(conn)
    }

    /// Takes a whole message, or a pong.
    pub(crate) fn message(&mut self, conn: ConnId, opcode: Opcode, payload: &[u8]) {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        // With a key of zeros the payload is as it was.
        encode_masked_frame(opcode, true, payload, [0; 4], &mut frame);
        if self.core.pause_unless_readable(conn) {
            self.bytes_in(conn, &mut frame);
        } else if !self.core.keep(conn, &frame, UNREAD_SLACK, self.now) {
            self.to_cut.push(conn);
        }
        // At once, and not with the next message: that may be a long one, of which the library has a part by now.
        if !self.core.pause_unless_readable(conn) {
            self.sockets.pause(conn);
        }
        if frame.capacity() <= FRAME_BYTES {
            self.frame = frame;
        }
    }

    /// Runs what can run now; true if there is more at once.
    pub(crate) fn step(&mut self) -> bool {
        self.hub.inbox(0).woke();
        self.hand_in();
        if self.now.mono_ms >= self.tick_due_ms {
            self.tick_due_ms = self.now.mono_ms + TICK_MS;
            self.core.tick(self.now);
        }
        self.core.run_inbox(self.now);
        self.core.end_evicted(self.now);
        self.core.flush(&mut self.sockets, self.now);
        if self.core.has_fanned_out() {
            self.core.fanned_out(self.clock.now());
        }
        // What the flush has ended must be known before the next one.
        self.hand_in();
        self.core.take_events(&mut self.events);
        self.bridge.push(&mut self.events);
        self.release();
        let has_read_on = self.read_on();
        let busy_ns = self.clock.now().mono_us.saturating_sub(self.now.mono_us) * 1_000;
        add_own(&self.hub.tallies()[0].busy_ns, busy_ns);
        has_read_on || self.core.more_to_flush() || !self.hub.inbox(0).may_sleep()
    }

    /// Closes every socket.
    pub(crate) fn close_all(&mut self) {
        // What ended since the last step may have been freed by the library.
        self.hand_in();
        self.sockets.close_all();
    }

    /// Where a panic costs one connection: what its bytes caused in the hub may be half done, so it must go.
    fn bytes_in(&mut self, conn: ConnId, bytes: &mut [u8]) {
        let Self { core, now, .. } = self;
        if panics::caught(|| core.bytes_in(conn, bytes, *now)).is_err() {
            self.hub.counters().panics.fetch_add(1, Ordering::Relaxed);
            self.to_cut.push(conn);
        }
    }

    fn hand_in(&mut self) {
        for note in self.heard.take_notes() {
            match note {
                Note::Drained(conn) => self.core.writable(conn),
                Note::Closed(conn, payload) => self.closed(conn, payload.as_deref()),
                Note::Aborted(response) => {
                    if let Some(conn) = self.sockets.of_aborted(response) {
                        self.closed(conn, None);
                    }
                }
            }
        }
        for conn in std::mem::take(&mut self.to_cut) {
            self.core.closed(conn, self.now);
        }
    }

    fn closed(&mut self, conn: ConnId, close: Option<&[u8]>) {
        if !self.sockets.forget(conn) {
            return;
        }
        if let Some(payload) = close
            && self.core.pause_unless_readable(conn)
        {
            let mut frame = Vec::new();
            encode_masked_frame(Opcode::Close, true, payload, [0; 4], &mut frame);
            self.bytes_in(conn, &mut frame);
        }
        self.core.closed(conn, self.now);
    }

    /// Hands on what waited for connections that are read again; false where there are none.
    fn read_on(&mut self) -> bool {
        let mut unpaused = std::mem::take(&mut self.unpaused);
        self.core.take_unpaused(&mut unpaused);
        let has_any = !unpaused.is_empty();
        for conn in unpaused.drain(..) {
            let Self { core, now, .. } = self;
            if panics::caught(|| core.kept_in(conn, *now)).is_err() {
                self.hub.counters().panics.fetch_add(1, Ordering::Relaxed);
                self.to_cut.push(conn);
            }
            if self.core.pause_unless_readable(conn) {
                self.sockets.resume(conn);
            }
        }
        self.unpaused = unpaused;
        has_any
    }

    fn release(&mut self) {
        let mut releases = std::mem::take(&mut self.releases);
        self.core.take_releases(&mut releases);
        for release in releases.drain(..) {
            // The library shuts down by itself behind a close frame and behind a refusal.
            if let Release::Close(conn) = release {
                self.sockets.close(conn);
            }
        }
        self.releases = releases;
    }
}
