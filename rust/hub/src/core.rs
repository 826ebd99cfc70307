//! A shard's whole logic, without a socket, a clock or a thread.
//!
//! A driver (the reactor, a virtual link, another transport) calls the public methods in this order each turn:
//! `bytes_in` for what was read, `tick` when 250 ms have passed, `run_inbox`, `flush`, then takes events, releases and
//! unpaused connections. State belongs to one thread and has no locks. Members change only by messages of the inbox;
//! a connection that ends takes its own places back at once, since nothing can be meant for it any more.

mod access;
mod admission;
mod budget;
mod commands;
mod doors;
mod drain;
mod events;
mod fan_outs;
mod input;
mod members;
mod origin;
mod output;
mod passing;
mod presence;
mod renewal;
mod timers;
mod unfinished;
mod upgrade;

pub(crate) use admission::{Seat, page_milli};
pub(crate) use doors::Eviction;

use crate::accounts::Own;
use crate::compression::Compressor;
use crate::conn::{Cold, Conn, Phase, flag};
use crate::counters::{Tally, add, sub};
use crate::inbox::{Deliver, ShardMsg};
use crate::json::Scanner;
use crate::{ConnId, Event, Hub, Now, Release};
use budget::Budget;
use drain::Drain;
use events::Orphan;
use fan_outs::FanOuts;
use members::LocalChannel;
use origin::OriginLines;
use output::Turn;
use presence::Presence;
use realtime_protocol::deflate::Inflater;
use rustc_hash::FxHashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use timers::Timers;

/// Milliseconds of one tick of the timers.
pub const TICK_MS: u64 = 250;

/// One shard.
pub struct ShardCore {
    hub: Arc<Hub>,
    shard: usize,
    conns: Vec<Conn>,
    /// When each connection has to be looked at, in ticks; beside `conns`, so that a walk reads four bytes each.
    deadlines: Vec<u32>,
    free: Vec<u32>,
    /// Upgrades that Python decides about: the address that each counts for, and its bytes.
    deciding: FxHashMap<ConnId, (IpAddr, usize)>,
    /// Commands that Python has of connections that are gone.
    orphans: FxHashMap<ConnId, Orphan>,
    /// Connections that have to make room.
    evictions: Vec<(ConnId, Eviction)>,
    members: FxHashMap<u64, LocalChannel>,
    scanner: Scanner,
    turn: Turn,
    compressor: Compressor,
    /// None while it is used, and before the first use.
    inflater: Option<Inflater>,
    events: Vec<Event>,
    releases: Vec<Release>,
    passed: Vec<(ConnId, Vec<u8>)>,
    unpaused: Vec<ConnId>,
    inbox: Vec<ShardMsg>,
    /// The second in which tokens were refused last, and how often Python was told.
    refusals_told: (u64, u32),
    burst: Vec<Deliver>,
    drain: Drain,
    budget: Budget,
    fan_outs: FanOuts,
    presence: Presence,
    origin_lines: OriginLines,
    now: Now,
    timers: Timers,
}

impl ShardCore {
    /// An empty shard.
    #[must_use]
    pub fn new(hub: Arc<Hub>, shard: usize) -> Self {
        Self {
            compressor: Compressor::new(Arc::clone(&hub), shard),
            hub,
            shard,
            conns: Vec::new(),
            deadlines: Vec::new(),
            free: Vec::new(),
            deciding: FxHashMap::default(),
            orphans: FxHashMap::default(),
            evictions: Vec::new(),
            members: FxHashMap::default(),
            scanner: Scanner::default(),
            turn: Turn::default(),
            inflater: None,
            events: Vec::new(),
            releases: Vec::new(),
            passed: Vec::new(),
            unpaused: Vec::new(),
            inbox: Vec::new(),
            refusals_told: (0, 0),
            burst: Vec::new(),
            drain: Drain::default(),
            budget: Budget::default(),
            fan_outs: FanOuts::default(),
            presence: Presence::default(),
            origin_lines: OriginLines::default(),
            now: Now::default(),
            timers: Timers::default(),
        }
    }

    /// Takes a slot for an accepted socket and starts the deadline of its handshake.
    pub fn open(&mut self, peer: IpAddr, now: Now) -> ConnId {
        self.now = now;
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None => {
                self.conns.push(Conn::free(0));
                self.deadlines.push(u32::MAX);
                self.conns.len() - 1
            }
        };
        let conn = &mut self.conns[slot];
        conn.phase = Phase::Handshake;
        conn.heard(tick_of(now));
        conn.cold = Some(Box::new(Cold::new(peer)));
        let id = ConnId::new(self.shard as u8, conn.generation, slot as u32);
        add(&self.hub.counters.accepted, 1);
        self.begin_handshake(slot);
        self.end_phase_in(slot, u64::from(self.hub.rules.limits.handshake_timeout_s) * 1_000);
        id
    }

    /// Whether bytes of the connection should be read now; else they stay in the kernel, which tells the peer.
    pub fn reads(&mut self, id: ConnId) -> bool {
        let Some(slot) = self.find(id) else { return false };
        // What was read already comes first.
        let reads = self.is_readable(slot) && !self.has_unread(slot);
        if !reads {
            self.conns[slot].set(flag::PAUSED);
        }
        reads
    }

    /// Whether something of the connection was read already and waits.
    fn has_unread(&self, slot: usize) -> bool {
        self.conns[slot].cold.as_ref().is_some_and(|cold| !cold.unread.is_empty())
    }

    /// Whether nothing stands between the connection and its reading.
    fn is_readable(&mut self, slot: usize) -> bool {
        let may_read = self.hub.may_read();
        let soft = self.hub.rules.limits.outbox_soft_bytes;
        let (most, bytes_max) = (self.hub.rules.limits.commands_waiting_max, self.hub.rules.limits.message_bytes_max);
        let waits_for_user = self.waits_for_user(slot);
        let is_behind = self.hub.is_behind();
        let conn = &mut self.conns[slot];
        match conn.phase {
            Phase::Free => false,
            // What a peer still sends after our last word is read and thrown away, so that this word arrives.
            Phase::Closing => true,
            Phase::Finishing => false,
            // Whose request it is, and whether it is for the engine, is not known yet.
            Phase::Handshake => may_read || self.hub.passes_on(),
            Phase::Deciding => false,
            Phase::Open => {
                let may_read = may_read && !is_behind && !waits_for_user && !conn.has(flag::HELD);
                may_read && !conn.is_full(most, bytes_max) && conn.backlog_bytes() <= soft
            }
        }
    }

    /// The socket ended or failed.
    pub fn closed(&mut self, id: ConnId, now: Now) {
        self.now = now;
        if let Some(slot) = self.find(id) {
            if self.conns[slot].close_code == 0 {
                self.conns[slot].close_code = 1006;
            }
            self.end(slot);
        }
    }

    /// Moves what Python has to hear to the end of `into`.
    pub fn take_events(&mut self, into: &mut Vec<Event>) {
        if !self.events.is_empty() {
            self.hub.weigh_events();
        }
        into.append(&mut self.events);
    }

    /// Moves what the driver has to do with sockets to the end of `into`.
    pub fn take_releases(&mut self, into: &mut Vec<Release>) {
        into.append(&mut self.releases);
    }

    /// Moves the connections whose reading goes on to the end of `into`.
    pub fn take_unpaused(&mut self, into: &mut Vec<ConnId>) {
        into.append(&mut self.unpaused);
    }

    /// Connections of this shard, handshakes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len() - self.free.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slot of a connection that is still there.
    fn find(&self, id: ConnId) -> Option<usize> {
        let conn = self.conns.get(id.slot())?;
        (id.shard() == self.shard && conn.generation == id.generation() && conn.phase != Phase::Free).then(|| id.slot())
    }

    /// What this shard counts by itself.
    fn tally(&self) -> &Tally {
        &self.hub.tallies()[self.shard]
    }

    fn id(&self, slot: usize) -> ConnId {
        ConnId::new(self.shard as u8, self.conns[slot].generation, slot as u32)
    }

    /// Gives everything of a connection back; the driver closes its socket.
    fn end(&mut self, slot: usize) {
        let id = self.id(slot);
        let announced = self.conns[slot].has(flag::ANNOUNCED);
        self.end_handshake(slot, false);
        self.drop_head(slot);
        self.end_lasting(slot, None);
        self.forget_unfinished(slot);
        self.forget_granted(slot, |_| true);
        self.leave_to_python(slot);
        let subscriptions = std::mem::take(&mut self.conns[slot].subscriptions);
        let mut channels = Vec::with_capacity(if announced { subscriptions.len() } else { 0 });
        for subscription in subscriptions {
            if announced && subscription.is_wanted {
                channels.push(Arc::clone(subscription.channel.name()));
            }
            self.count_membership(slot, false);
            if let Some(place) = subscription.member {
                self.remove_member(subscription.channel.id, place);
                self.hub.left(&subscription.channel, self.shard);
            }
        }
        Turn::forget(&mut self.conns[slot]);
        let conn = &mut self.conns[slot];
        if let Some(backlog) = conn.backlog.take() {
            backlog.discard(&self.hub.counters);
            self.hub.set_backlog(id, 0);
        }
        let code = conn.close_code;
        let own = Own { commands: conn.commands, relays: conn.relays, bytes: conn.bytes, ..Own::default() };
        let session = conn.session.take();
        let opened_ms = session.as_ref().map_or(0, |session| session.opened_ms);
        *conn = Conn::free(conn.generation.wrapping_add(1));
        self.deadlines[slot] = u32::MAX;
        self.free.push(slot as u32);
        self.releases.push(Release::Close(id));
        if let Some(session) = session {
            sub(&self.hub.counters.identities_bytes, session.identity_bytes as u64);
            self.leave_seat(id, &session.user, &session.seat, own);
        }
        if announced {
            sub(&self.hub.counters.connections, 1);
            let tally = self.tally();
            tally.connections.store(tally.connections().saturating_sub(1), Ordering::Relaxed);
            let open_ms = self.now.mono_ms.saturating_sub(opened_ms);
            self.hub.counters.connection_closed(code, open_ms);
            self.events.push(Event::Close { conn: id, code, channels, open_ms });
        }
    }

    /// Looks again whether a paused connection may be read.
    fn unpause(&mut self, slot: usize) {
        if !self.conns[slot].has(flag::PAUSED) || !self.is_readable(slot) {
            return;
        }
        if !self.has_unread(slot) {
            self.conns[slot].clear(flag::PAUSED);
        }
        // What the client said meanwhile has not been read: its silence begins now.
        self.conns[slot].silent_from = tick_of(self.now);
        self.unpaused.push(self.id(slot));
    }
}

impl std::fmt::Debug for ShardCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardCore")
            .field("shard", &self.shard)
            .field("connections", &self.len())
            .finish_non_exhaustive()
    }
}

const fn tick_of(now: Now) -> u32 {
    (now.mono_ms / TICK_MS) as u32
}
