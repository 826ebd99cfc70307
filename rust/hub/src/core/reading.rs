//! Reading: whether a connection is read, the commands that it has under way, and what it needs to parse them.
//!
//! Bytes of a connection that is not read stay in the kernel, which tells the peer. Reading stops while too much of the
//! connection, its user or the whole process is under way, while it is over its soft limit, and while it owes for what
//! was done already; what was read before that waits in the connection.

use super::events::Orphan;
use super::{ShardCore, tick_of};
use crate::ConnId;
use crate::conn::{Phase, flag};
use crate::credit::Credit;
use crate::json::Scanner;
use realtime_protocol::deflate::Inflater;
use rustc_hash::FxHashMap;

/// What the shard's connections share to read commands.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) scanner: Scanner,
    /// None while it is used, and before the first use.
    pub(super) inflater: Option<Inflater>,
    /// Commands that Python has of connections that are gone.
    pub(super) orphans: FxHashMap<ConnId, Orphan>,
}

impl ShardCore {
    /// Whether bytes of the connection are to be read now. Where not, they stay in the kernel, which tells the peer, and
    /// [`Self::take_unpaused`] names the connection when that changes.
    pub fn pause_unless_readable(&mut self, id: ConnId) -> bool {
        let Some(slot) = self.connections.find(id) else { return false };
        // What was read already comes first.
        let reads = self.check_readable(slot) && !self.has_unread(slot);
        if !reads {
            self.connections[slot].set(flag::PAUSED);
        }
        reads
    }

    /// Whether something of the connection was read already and waits.
    pub(super) fn has_unread(&self, slot: usize) -> bool {
        self.connections[slot].cold.as_ref().is_some_and(|cold| !cold.unread.is_empty())
    }

    /// Whether nothing stands between the connection and its reading.
    fn check_readable(&mut self, slot: usize) -> bool {
        let may_read = self.hub.may_read();
        let soft = self.hub.rules.limits.outbox_soft_bytes;
        let (most, bytes_max) = (self.hub.rules.limits.commands_waiting_max, self.hub.rules.limits.message_bytes_max);
        let waits_for_user = self.wait_for_user(slot);
        let is_behind = self.hub.is_behind();
        let conn = &mut self.connections[slot];
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

    /// Looks again whether a paused connection may be read.
    pub(super) fn unpause(&mut self, slot: usize) {
        if !self.connections[slot].has(flag::PAUSED) || !self.check_readable(slot) {
            return;
        }
        if !self.has_unread(slot) {
            self.connections[slot].clear(flag::PAUSED);
        }
        // What the client said meanwhile has not been read: its silence begins now.
        self.connections[slot].silent_from = tick_of(self.now);
        self.outputs.unpaused.push(self.connections.id(slot));
    }

    pub(super) fn give_back_to(&mut self, conn: ConnId, credit: Option<Credit>) {
        let Some(credit) = credit else { return };
        match self.connections.find(conn) {
            Some(slot) => self.give_back(slot, credit),
            None => self.return_orphans_credit(conn, credit),
        }
    }

    /// Credits come back: reading goes on at half of the limit, and what waited for the last one is done.
    pub(super) fn give_back(&mut self, slot: usize, credit: Credit) {
        let limits = &self.hub.rules.limits;
        let (half, bytes_max) = (limits.commands_waiting_max / 2, limits.message_bytes_max);
        self.return_credit(slot, credit);
        let conn = &self.connections[slot];
        if !conn.is_full(half + 1, bytes_max) && !conn.has(flag::HELD) {
            self.read_on(slot);
        }
        self.finish_if_answered(slot);
    }

    /// What stood between a connection and its reading is gone: what was read already comes first.
    pub(super) fn read_on(&mut self, slot: usize) {
        let conn = &self.connections[slot];
        if self.hub.has_stopped_reading() || !conn.has(flag::PAUSED) || conn.phase != Phase::Open {
            return;
        }
        self.unread_in(slot);
        if self.connections[slot].phase == Phase::Open {
            self.unpause(slot);
        }
    }
}
