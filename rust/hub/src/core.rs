//! A shard's whole logic, without a socket, a clock or a thread.
//!
//! A driver (the reactor, a virtual link, another transport) calls the public methods in this order each turn:
//! `bytes_in` for what was read, `tick` when 250 ms have passed, `run_inbox`, `flush`, then takes events, releases and
//! unpaused connections. State belongs to one thread and has no locks. Members change only by messages of the inbox;
//! a connection that ends takes its own places back at once, since nothing can be meant for it any more.

mod access;
mod admission;
mod budget;
mod closing;
mod command;
mod commands;
mod connections;
mod deliver;
mod doors;
mod drain;
mod events;
mod fan_outs;
mod inbox;
mod input;
mod joins;
mod memberships;
mod notices;
mod origin;
mod outgoing;
mod output;
mod outputs;
mod passing;
mod presence;
mod publish;
mod reading;
mod relays;
mod renewal;
mod replay;
mod subscribe;
mod timers;
mod turn;
mod unfinished;
mod upgrade;

pub(crate) use admission::{Seat, page_milli};
pub(crate) use doors::Eviction;

use crate::accounts::Own;
use crate::conn::{Cold, flag};
use crate::counters::{Tally, add, sub};
use crate::{ConnId, Event, Hub, Now, Release};
use connections::Connections;
use doors::Doors;
use inbox::Mail;
use memberships::Memberships;
use notices::Notices;
use outgoing::Outgoing;
use outputs::Outputs;
use reading::Reading;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use turn::Turn;

/// Milliseconds of one tick of the timers.
pub const TICK_MS: u64 = 250;

/// One shard: what it owns, each part with its own methods, and what takes more than one of them.
pub struct ShardCore {
    hub: Arc<Hub>,
    connections: Connections,
    memberships: Memberships,
    reading: Reading,
    outgoing: Outgoing,
    outputs: Outputs,
    mail: Mail,
    doors: Doors,
    notices: Notices,
    now: Now,
}

impl ShardCore {
    /// An empty shard.
    #[must_use]
    pub fn new(hub: Arc<Hub>, shard: usize) -> Self {
        Self {
            outgoing: Outgoing::new(&hub, shard),
            hub,
            connections: Connections::new(shard),
            memberships: Memberships::default(),
            reading: Reading::default(),
            outputs: Outputs::default(),
            mail: Mail::default(),
            doors: Doors::default(),
            notices: Notices::default(),
            now: Now::default(),
        }
    }

    /// Takes a slot for an accepted socket and starts the deadline of its handshake.
    pub fn open(&mut self, peer: IpAddr, now: Now) -> ConnId {
        self.now = now;
        let slot = self.connections.take();
        let conn = &mut self.connections[slot];
        conn.heard(tick_of(now));
        conn.cold = Some(Box::new(Cold::new(peer)));
        let id = self.connections.id(slot);
        add(&self.hub.counters.accepted, 1);
        self.begin_handshake(slot);
        self.end_phase_in(slot, u64::from(self.hub.rules.limits.handshake_timeout_s) * 1_000);
        id
    }

    /// The socket ended or failed.
    pub fn closed(&mut self, id: ConnId, now: Now) {
        self.now = now;
        if let Some(slot) = self.connections.find(id) {
            if self.connections[slot].close_code == 0 {
                self.connections[slot].close_code = 1006;
            }
            self.end(slot);
        }
    }

    /// Connections of this shard, handshakes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What this shard counts by itself.
    fn tally(&self) -> &Tally {
        &self.hub.tallies()[self.connections.shard()]
    }

    /// Gives everything of a connection back; the driver closes its socket.
    fn end(&mut self, slot: usize) {
        let id = self.connections.id(slot);
        let announced = self.connections[slot].has(flag::ANNOUNCED);
        self.end_handshake(slot, false);
        self.drop_head(slot);
        self.end_lasting(slot, None);
        self.forget_unfinished(slot);
        self.forget_granted(slot, |_| true);
        self.leave_to_python(slot);
        let subscriptions = std::mem::take(&mut self.connections[slot].subscriptions);
        let mut channels = Vec::with_capacity(if announced { subscriptions.len() } else { 0 });
        for subscription in subscriptions {
            if announced && subscription.is_wanted {
                channels.push(Arc::clone(subscription.channel.name()));
            }
            self.count_membership(slot, false);
            if let Some(place) = subscription.member {
                self.memberships.leave(subscription.channel.id, place, &mut self.connections);
                self.hub.left(&subscription.channel, self.connections.shard());
            }
        }
        Turn::forget(&mut self.connections[slot]);
        let conn = &mut self.connections[slot];
        if let Some(backlog) = conn.backlog.take() {
            backlog.discard(&self.hub.counters);
            self.hub.set_backlog(id, 0);
        }
        let conn = self.connections.release(slot);
        let code = conn.close_code;
        let own = Own { commands: conn.commands, relays: conn.relays, bytes: conn.bytes, ..Own::default() };
        let opened_ms = conn.session.as_ref().map_or(0, |session| session.opened_ms);
        self.outputs.releases.push(Release::Close(id));
        if let Some(session) = conn.session {
            sub(&self.hub.counters.identities_bytes, session.identity_bytes as u64);
            self.leave_seat(id, &session.user, &session.seat, own);
        }
        if announced {
            sub(&self.hub.counters.connections, 1);
            let tally = self.tally();
            tally.connections.store(tally.connections().saturating_sub(1), Ordering::Relaxed);
            let open_ms = self.now.mono_ms.saturating_sub(opened_ms);
            self.hub.counters.connection_closed(code, open_ms);
            self.outputs.events.push(Event::Close { conn: id, code, channels, open_ms });
        }
    }
}

impl std::fmt::Debug for ShardCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardCore")
            .field("shard", &self.connections.shard())
            .field("connections", &self.len())
            .finish_non_exhaustive()
    }
}

const fn tick_of(now: Now) -> u32 {
    (now.mono_ms / TICK_MS) as u32
}
