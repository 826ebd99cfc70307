//! Bytes held of messages that are not complete, and of those that wait behind a pause: their limit and their deadline.
//!
//! Each connection is charged what is allocated for it. Above `unfinished_bytes_max` the largest connection of the user
//! that holds the most is closed, on whichever shard it is, and not the one whose bytes crossed the limit. A message has
//! `message_timeout_s` from its first byte, however many bytes come meanwhile. Time in which the server does not read
//! the connection, for a reason that is not the client's (its backlog, its debt), extends it.

use super::{ShardCore, tick_of};
use crate::ConnId;
use crate::conn::{Phase, flag};
use crate::counters::{add, sub};
use crate::holders::Holder;
use crate::inbox::ShardMsg;
use crate::lock::lock;
use realtime_protocol::address::limited_as;
use realtime_protocol::close::CloseCode;
use realtime_protocol::connection::{Inbound, Role};
use realtime_protocol::handshake::HttpError;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a message that is late has left once the connection is read again.
const GRACE_TICKS: u32 = 20;
const TOO_MUCH: &str = "unfinished messages hold too much memory, and yours the most; send smaller ones";
const TOO_LATE: &str = "the message was not complete in time; send smaller ones";

impl ShardCore {
    /// Charges the connection what it holds now; above the limit of all, those that hold the most are closed.
    pub(super) fn charge_unfinished(&mut self, slot: usize) {
        let id = self.connections.id(slot);
        let conn = &mut self.connections[slot];
        let held = conn.inbound.bytes_held() + conn.cold.as_ref().map_or(0, |cold| cold.unread.capacity());
        let before = std::mem::replace(&mut conn.charged, held as u32) as usize;
        if held == before {
            return;
        }
        let all = &self.hub.counters.unfinished_bytes;
        add(all, held as u64);
        sub(all, before as u64);
        if held.max(before) >= self.hub.holders_least {
            lock(&self.hub.holders).set(id, || self.holder(slot), held);
        }
        if held > before && all.load(Ordering::Relaxed) as usize > self.hub.rules.unfinished_bytes_max() {
            self.relieve(slot);
        }
    }

    fn holder(&self, slot: usize) -> Holder {
        let conn = &self.connections[slot];
        let session = conn.session.as_deref();
        match session.filter(|session| !session.user.is_empty()) {
            Some(session) => Holder::User(Arc::clone(&session.user)),
            None => {
                let known = session.and_then(|session| session.address.as_deref().copied());
                let peer = known.or_else(|| conn.cold.as_ref().map(|cold| limited_as(cold.peer)));
                Holder::Address(peer.unwrap_or_else(|| [0, 0, 0, 0].into()))
            }
        }
    }

    /// Closes those that hold the most, until the rest is within the limit; this connection where all are small.
    fn relieve(&mut self, slot: usize) {
        let hub = Arc::clone(&self.hub);
        let most = hub.rules.unfinished_bytes_max();
        let mut holders = lock(&hub.holders);
        loop {
            let all = hub.counters.unfinished_bytes.load(Ordering::Relaxed) as usize;
            if all.saturating_sub(holders.leaving()) <= most {
                return;
            }
            let Some(conn) = holders.choose() else { break };
            hub.to(conn, ShardMsg::GiveUp { conn });
        }
        drop(holders);
        self.give_up(slot, CloseCode::MESSAGE_TOO_BIG, TOO_MUCH);
    }

    /// Closes a connection that was chosen, unless its message is complete by now.
    pub(super) fn give_up_chosen(&mut self, conn: ConnId) {
        if let Some(slot) = self.connections.find(conn)
            && lock(&self.hub.holders).is_leaving(conn)
        {
            self.give_up(slot, CloseCode::MESSAGE_TOO_BIG, TOO_MUCH);
        }
    }

    /// Drops the unfinished message of a connection and ends it, behind the answers that it was promised.
    fn give_up(&mut self, slot: usize, code: CloseCode, reason: &str) {
        add(&self.hub.counters.unfinished_refused, 1);
        self.connections[slot].inbound = Inbound::new(Role::Server);
        self.drop_unread(slot);
        self.charge_unfinished(slot);
        self.connections[slot].set(flag::BROKEN);
        match self.connections[slot].phase {
            Phase::Open => self.finish(slot, code.0, reason),
            Phase::Deciding => self.refuse(slot, HttpError::UNAVAILABLE, &[("Retry-After", "1")]),
            _ => {}
        }
    }

    /// Gives everything back that the connection was charged; it ends.
    pub(super) fn forget_unfinished(&mut self, slot: usize) {
        let inbound = std::mem::replace(&mut self.connections[slot].inbound, Inbound::new(Role::Server));
        // A message that its sender never ends has kept the shard as busy as one that is whole.
        self.overdraw(slot, super::input::long_units(inbound.bytes_held()).saturating_mul(1_000));
        self.drop_unread(slot);
        self.charge_unfinished(slot);
    }

    /// Notes that a message began with the bytes read just now.
    pub(super) fn note_message_begun(&mut self, slot: usize) {
        if self.connections[slot].inbound.note_begun(tick_of(self.now))
            && let Some(due) = self.message_due(slot)
        {
            self.connections.bring_deadline_forward(slot, due);
        }
    }

    /// The tick at which the unfinished message is late.
    pub(super) fn message_due(&self, slot: usize) -> Option<u32> {
        let begun = self.connections[slot].inbound.begun()?;
        Some(begun.saturating_add(super::timers::ticks(self.hub.rules.limits.message_timeout_s)))
    }

    /// Closes a connection whose message is late; true when closed.
    pub(super) fn end_late_message(&mut self, slot: usize) -> bool {
        let tick = tick_of(self.now);
        let Some(due) = self.message_due(slot).filter(|due| *due <= tick) else { return false };
        let conn = &self.connections[slot];
        let is_its_own = conn.backlog_bytes() > self.hub.rules.limits.outbox_soft_bytes || conn.has(flag::HELD);
        if !is_its_own && !self.pause_unless_readable(self.connections.id(slot)) {
            let begun = self.connections[slot].inbound.begun().unwrap_or(tick);
            self.connections[slot].inbound.set_begun(begun + (tick - due) + GRACE_TICKS);
            return false;
        }
        add(&self.hub.counters.messages_late, 1);
        self.give_up(slot, CloseCode::POLICY_VIOLATION, TOO_LATE);
        true
    }
}
