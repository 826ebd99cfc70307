//! Connections without a session: unfinished handshakes, upgrades that wait for Python, refusals that linger.
//!
//! A request that is complete is never refused because of handshakes that are not. Above `handshakes_pending_max`
//! unfinished ones, or `heads_bytes_max` bytes of their heads, the oldest of the address with the most is ended; at the
//! limit of descriptors the acceptor asks for the same. The table is shared by all shards, so the one that ends may be
//! another shard's: its inbox tells it. Before a shard ends one, its driver reads what the kernel has of it; a head that
//! is complete by that is served.

use super::ShardCore;
use super::events::EVENT_BYTES;
use super::origin::OriginLines;
use crate::by_address::NO_PLACE;
use crate::conn::Phase;
use crate::counters::{add, sub};
use crate::inbox::ShardMsg;
use crate::lock::lock;
use crate::{ConnId, Now};
use realtime_protocol::address::limited_as;
use realtime_protocol::handshake::Request;
use rustc_hash::FxHashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

/// Why a connection without a session is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// More than `handshakes_pending_max` are unfinished.
    Number,
    /// Their heads hold more than `heads_bytes_max`.
    Bytes,
    /// No further socket can be held.
    Sockets,
}

/// Connections of this shard without a session that something has to come of.
#[derive(Debug, Default)]
pub(super) struct Doors {
    /// Upgrades that Python decides about: the address that each counts for, and its bytes.
    deciding: FxHashMap<ConnId, (IpAddr, usize)>,
    /// Connections that have to make room.
    pub(super) evictions: Vec<(ConnId, Eviction)>,
    /// The second in which tokens were refused last, and how often Python was told.
    pub(super) refusals_told: (u64, u32),
    pub(super) origin_lines: OriginLines,
}

impl ShardCore {
    /// Counts a handshake that begins; above the limit another one ends for it.
    pub(super) fn begin_handshake(&mut self, slot: usize) {
        let (id, address) = (self.connections.id(slot), limited_as(self.connections[slot].cold().peer));
        let most = self.hub.rules.limits.handshakes_pending_max;
        let mut table = lock(&self.hub.half_open);
        let place = table.enter(id, address);
        let victim = (table.len() > most).then(|| table.pop_of_most()).flatten();
        drop(table);
        self.connections[slot].cold().place = place;
        add(&self.hub.counters.handshakes_pending, 1);
        if let Some(victim) = victim {
            self.hub.to(victim, ShardMsg::Evict { conn: victim, why: Eviction::Number });
        }
    }

    /// Notes the bytes that the connection's unfinished head holds; above the limit of all heads others end for it.
    pub(super) fn weigh_head(&mut self, slot: usize, before: usize) {
        let id = self.connections.id(slot);
        let cold = self.connections[slot].cold();
        let (place, bytes) = (cold.place, cold.head.capacity());
        if bytes == before {
            return;
        }
        add(&self.hub.counters.heads_bytes, bytes as u64);
        sub(&self.hub.counters.heads_bytes, before as u64);
        let most = self.hub.rules.limits.heads_bytes_max;
        let mut victims = Vec::new();
        let mut table = lock(&self.hub.half_open);
        table.weigh(place, id, bytes);
        while table.bytes() > most
            && let Some(victim) = table.pop_of_heaviest()
        {
            victims.push(victim);
        }
        drop(table);
        for conn in victims {
            self.hub.to(conn, ShardMsg::Evict { conn, why: Eviction::Bytes });
        }
    }

    /// Frees the head of a request that was read, or will not be.
    pub(super) fn drop_head(&mut self, slot: usize) {
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        let head = std::mem::take(&mut cold.head);
        sub(&self.hub.counters.heads_bytes, head.capacity() as u64);
    }

    /// The connection's handshake is over, one way or the other. Where its head was refused it stays in the table of
    /// those that the acceptor may end when no further socket can be held.
    pub(super) fn end_handshake(&mut self, slot: usize, lingers: bool) {
        let id = self.connections.id(slot);
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        let (place, peer) = (std::mem::replace(&mut cold.place, NO_PLACE), cold.peer);
        match self.connections[slot].phase {
            Phase::Handshake => lock(&self.hub.half_open).leave(place, id),
            Phase::Closing if place != NO_PLACE => lock(&self.hub.refused).leave(place, id),
            _ => {}
        }
        if matches!(self.connections[slot].phase, Phase::Handshake | Phase::Deciding) {
            sub(&self.hub.counters.handshakes_pending, 1);
        }
        if lingers {
            self.connections[slot].cold().place = lock(&self.hub.refused).enter(id, limited_as(peer));
        }
    }

    /// Takes a place among the upgrades that wait for Python; false where the address has its share, or Python has too much.
    pub(super) fn begin_deciding(&mut self, slot: usize, request: &Request<'_>) -> bool {
        let (id, address) = (self.connections.id(slot), limited_as(self.connections[slot].cold().peer));
        if self.hub.is_behind() || !lock(&self.hub.authenticating).take(address) {
            add(&self.hub.counters.authenticating_refused, 1);
            return false;
        }
        add(&self.hub.counters.authenticating, 1);
        let place = std::mem::replace(&mut self.connections[slot].cold().place, NO_PLACE);
        lock(&self.hub.half_open).leave(place, id);
        let headers: usize = request.headers().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = request.path.len() + request.query.len() + headers + EVENT_BYTES;
        self.charge_events(bytes);
        self.doors.deciding.insert(id, (address, bytes));
        true
    }

    /// Gives the place of an upgrade back that Python has decided about, whether its client still waits or not.
    pub(super) fn end_deciding(&mut self, id: ConnId) {
        if let Some((address, bytes)) = self.doors.deciding.remove(&id) {
            self.uncharge_events(None, bytes);
            lock(&self.hub.authenticating).give_back(address);
            sub(&self.hub.counters.authenticating, 1);
        }
    }

    /// Moves the connections that have to make room to the end of `into`. The driver reads each once more, then calls
    /// [`Self::end_evicted`].
    pub fn take_evictions(&mut self, into: &mut Vec<ConnId>) {
        into.extend(self.doors.evictions.iter().map(|(conn, _)| *conn));
    }

    /// Ends the connections that have to make room and are still without a session.
    pub fn end_evicted(&mut self, now: Now) {
        self.now = now;
        for (conn, why) in std::mem::take(&mut self.doors.evictions) {
            if why == Eviction::Sockets {
                self.hub.making_room.fetch_sub(1, Ordering::Relaxed);
            }
            let Some(slot) = self.connections.find(conn) else { continue };
            let state = &self.connections[slot];
            let is_refused = state.phase == Phase::Closing && state.session.is_none();
            if state.phase != Phase::Handshake && !(is_refused && why == Eviction::Sockets) {
                continue;
            }
            let counters = &self.hub.counters;
            add(
                match why {
                    Eviction::Number => &counters.evicted_number,
                    Eviction::Bytes => &counters.evicted_bytes,
                    Eviction::Sockets => &counters.evicted_sockets,
                },
                1,
            );
            self.end(slot);
        }
    }
}

impl crate::Hub {
    /// Has a connection without a session end, so that another socket can be held: the oldest unfinished handshake of
    /// the address with the most, else the oldest of those that were refused and have not closed. False where there is
    /// none.
    pub fn evict_one(&self) -> bool {
        let victim = lock(&self.half_open).pop_of_most();
        let victim = victim.or_else(|| lock(&self.refused).pop_of_most());
        if let Some(conn) = victim {
            self.making_room.fetch_add(1, Ordering::Relaxed);
            self.to(conn, ShardMsg::Evict { conn, why: Eviction::Sockets });
        }
        victim.is_some()
    }

    /// Connections that [`Self::evict_one`] named and no shard has ended yet.
    pub fn making_room(&self) -> usize {
        self.making_room.load(Ordering::Relaxed)
    }
}
