//! The engine without sockets, threads or a clock of its own: one shard over links that a test drives.
//!
//! The same hub and the same log as over sockets; only the driver differs. Nothing happens by itself: [`step`] runs
//! what can run now, in a fixed order (bytes up, inbox, bytes down, log, clients), and [`advance`] moves the clock on
//! the timers' own grid. So a run is the same each time.
//!
//! [`step`]: VirtualEngine::step
//! [`advance`]: VirtualEngine::advance

use crate::clock::Clock;
use crate::error::StartError;
use crate::handle::Handle;
use crate::log::LogWorker;
use crate::r#virtual::link::Link;
use crate::r#virtual::link_client::{LinkClient, Received};
use crate::wiring::{self, Wired, check_options};
use realtime_hub::{ConnId, Event, Hub, Now, Outcome, Release, SendOp, ShardCore, TICK_MS, Wire};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What a link may bring in one step.
const READ_BYTES: usize = 256 << 10;
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// One shard, a log and any number of links.
pub struct VirtualEngine {
    handle: Arc<Handle>,
    hub: Arc<Hub>,
    core: ShardCore,
    log: LogWorker,
    links: Links,
    /// Connections between their `Open` and their `Close`.
    open: HashSet<ConnId>,
    events: Vec<Event>,
}

#[derive(Default)]
struct Links {
    all: Vec<Link>,
    /// Those whose server side is not closed.
    by_conn: HashMap<ConnId, usize>,
}

impl Wire for Links {
    fn send_batch(&mut self, batch: &mut [SendOp<'_>]) {
        for op in batch {
            let link = self.by_conn.get(&op.conn).map(|link| &mut self.all[*link]);
            op.outcome = link.map_or(Outcome::Gone, |link| link.send(op.bytes));
        }
    }
}

impl VirtualEngine {
    /// Checks the options (JSON, see [`realtime_hub::Options`]) and starts at `wall_ms`. `host`, `port` and `shards`
    /// mean nothing here.
    ///
    /// # Errors
    /// As [`crate::Engine::new`], and those of the log.
    pub fn new(options: &[u8], wall_ms: u64) -> Result<Self, StartError> {
        let options = check_options(options)?;
        let handle = Handle::new(&options.limits, Clock::manual(wall_ms))
            .map_err(|error| StartError::io("cannot make the event descriptor", &error))?;
        let Wired { hub, log, .. } = wiring::wire(&options, 1, &handle)?;
        hub.inbox(0).set_waker(Box::new(|| {}));
        wiring::watch_pressure(&handle, &hub, || {});
        let _ = handle.hub.set(Arc::clone(&hub));
        Ok(Self {
            core: ShardCore::new(Arc::clone(&hub), 0),
            log,
            handle,
            hub,
            links: Links::default(),
            open: HashSet::new(),
            events: Vec::new(),
        })
    }

    /// Python's end.
    #[must_use]
    pub const fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Opens a link whose client sends an upgrade for `path` (with its query); returns the link's number.
    pub fn connect(&mut self, path: &str, headers: &[(String, String)]) -> usize {
        self.add_link(LinkClient::upgrading(path, headers)).0
    }

    /// Opens a link that is let in at once as `user`; returns its number.
    ///
    /// # Errors
    /// One line: there is no such endpoint, or `grants` is not what it should be.
    pub fn connect_as(
        &mut self,
        endpoint: u16,
        user: &str,
        grants: Option<&[u8]>,
        first_version: bool,
    ) -> Result<usize, String> {
        let now = self.now();
        let (link, conn) = self.add_link(LinkClient::admitted());
        let admitted = self.core.admit_as(conn, endpoint, user, grants, first_version, now);
        if admitted.is_err() {
            self.drop_link(link);
        }
        admitted.map(|()| link)
    }

    /// Tells clients that the process ends and when to come back; see [`Hub::announce_drain`].
    pub fn announce_drain(&self, spread_ms: u64) {
        self.hub.announce_drain(spread_ms);
    }

    /// Closes every connection; see [`Hub::close_all`].
    pub fn close_all(&self, code: u16, reason: &str, over_ms: u64) {
        self.hub.close_all(code, reason, over_ms);
    }

    /// The connection behind a link while it is open.
    #[must_use]
    pub fn conn_of_link(&self, link: usize) -> Option<ConnId> {
        let conn = self.links.all.get(link)?.conn;
        self.open.contains(&conn).then_some(conn)
    }

    /// The client sends one message. Links that do not exist are passed over, here and below.
    pub fn client_send(&mut self, link: usize, is_text: bool, payload: &[u8]) {
        if let Some(link) = self.links.all.get_mut(link) {
            link.client.send(is_text, payload);
        }
    }

    /// The client starts the closing handshake.
    pub fn client_close(&mut self, link: usize, code: u16, reason: &str) {
        if let Some(link) = self.links.all.get_mut(link) {
            link.client.close(code, reason);
        }
    }

    /// The link is cut, as by a lost network.
    pub fn client_drop(&mut self, link: usize) {
        self.drop_link(link);
    }

    /// Takes what arrived at the client, oldest first.
    pub fn client_receive(&mut self, link: usize) -> Vec<Received> {
        self.links.all.get_mut(link).map_or_else(Vec::new, Link::take_received)
    }

    /// Limits how fast the client reads; None: at once.
    pub fn client_reads(&mut self, link: usize, bytes_per_s: Option<u64>) {
        if let Some(link) = self.links.all.get_mut(link) {
            link.set_rate(bytes_per_s);
        }
    }

    /// Moves the clock in steps of the timers' grid and runs what comes of each, so that a client that answers pings
    /// is not taken for a dead one.
    pub fn advance(&mut self, ms: u64) {
        let mut left = ms;
        while left > 0 {
            let moved = left.min(TICK_MS);
            left -= moved;
            self.handle.clock.advance(moved);
            self.links.all.iter_mut().for_each(|link| link.advance(moved));
            let now = self.now();
            self.core.tick(now);
            while self.step() {}
        }
    }

    /// The wall clock of this world, in ms.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now().wall_ms
    }

    /// Runs everything that can run now, once round; true if anything happened.
    pub fn step(&mut self) -> bool {
        let now = self.now();
        let mut happened = self.bytes_up(now);
        happened |= self.run_inbox(now);
        self.core.flush(&mut self.links, now);
        if self.core.has_fanned_out() {
            self.core.fanned_out(now);
        }
        happened |= self.core.more_to_flush();
        self.core.take_events(&mut self.events);
        happened |= self.release();
        happened |= self.serve_log();
        happened |= self.bytes_down(now);
        happened | self.hand_up()
    }

    fn now(&self) -> Now {
        self.handle.clock.now()
    }

    fn add_link(&mut self, client: LinkClient) -> (usize, ConnId) {
        let conn = self.core.open(PEER, self.handle.clock.now());
        let link = self.links.all.len();
        self.links.all.push(Link::new(conn, client));
        self.links.by_conn.insert(conn, link);
        (link, conn)
    }

    fn drop_link(&mut self, link: usize) {
        let now = self.now();
        if let Some(link) = self.links.all.get_mut(link)
            && !std::mem::replace(&mut link.cut, true)
            && !link.server_closed
        {
            self.core.closed(link.conn, now);
        }
    }

    /// What clients have sent, as far as the hub reads it.
    fn bytes_up(&mut self, now: Now) -> bool {
        let mut happened = false;
        for link in &mut self.links.all {
            if link.client.up.is_empty() || link.cut || link.server_closed {
                continue;
            }
            let is_read = self.core.pause_unless_readable(link.conn);
            if !is_read && !link.server_shut {
                continue;
            }
            let count = link.client.up.len().min(READ_BYTES);
            let mut bytes: Vec<u8> = link.client.up.drain(..count).collect();
            if is_read {
                self.core.bytes_in(link.conn, &mut bytes, now);
            }
            happened = true;
        }
        happened
    }

    fn run_inbox(&mut self, now: Now) -> bool {
        let inbox = self.hub.inbox(0);
        let waits = !inbox.may_sleep();
        inbox.woke();
        self.core.run_inbox(now);
        self.core.end_evicted(now);
        waits
    }

    fn release(&mut self) -> bool {
        let mut releases = Vec::new();
        self.core.take_releases(&mut releases);
        // Links are looked at in every step, so who may be read again needs no list.
        self.core.take_unpaused(&mut Vec::new());
        for release in &releases {
            let (Release::Shutdown(conn) | Release::Close(conn)) = *release;
            let Some(&link) = self.links.by_conn.get(&conn) else {
                continue;
            };
            self.links.all[link].server_shut = true;
            if matches!(release, Release::Close(_)) {
                self.links.all[link].server_closed = true;
                self.links.by_conn.remove(&conn);
            }
        }
        !releases.is_empty()
    }

    fn serve_log(&mut self) -> bool {
        let mut waiting = self.handle.requests.take();
        let happened = !waiting.is_empty();
        let clock = Arc::clone(&self.handle.clock);
        while !waiting.is_empty() {
            let count = self.log.serve_next(&mut waiting, || clock.now(), &mut self.events);
            self.handle.requests.answered(count);
        }
        happened | self.log.do_chore(|| clock.now(), !happened, &mut self.events)
    }

    /// What clients read, and what the server hears of it.
    fn bytes_down(&mut self, now: Now) -> bool {
        let mut happened = false;
        for link in &mut self.links.all {
            let has_read = link.client_reads();
            happened |= has_read;
            if link.server_closed || link.cut {
                continue;
            }
            if link.has_room_again() {
                self.core.writable(link.conn);
                happened = true;
            }
            if link.client.has_ended() {
                // It saw the end of the stream and ends its own side.
                link.cut = true;
                self.core.closed(link.conn, now);
            }
        }
        happened
    }

    fn hand_up(&mut self) -> bool {
        for event in &self.events {
            match event {
                Event::Open { conn, .. } => {
                    self.open.insert(*conn);
                }
                Event::Close { conn, .. } => {
                    self.open.remove(conn);
                }
                _ => {}
            }
        }
        let happened = !self.events.is_empty();
        self.handle.bridge.push(&mut self.events);
        happened
    }
}
