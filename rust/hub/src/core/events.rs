//! What goes up to Python is charged until Python has done with it: to the connection, to its user and in all.
//!
//! A command is charged from the moment it goes up until its credit comes back, so what Python's lanes hold counts as
//! what waits in the queue. Above a user's share the connections of the user are not read, above
//! `events_waiting_bytes_max` no open connection is, until half is done. The share is an eighth of what stays free, at
//! most `user_waiting_bytes_max`: however many users take all that they can get, the next one finds room (as in
//! [`crate::portions`], but that nothing is refused for it). A share that has shrunk below one command would let
//! newcomers fill the rest by a command each, so a large command that is larger than the share is answered `overloaded`.
//!
//! A connection that ends leaves its commands to Python: their charge stays in `orphans` until their credits have come.
//! An upgrade is charged until it is decided.

use super::ShardCore;
use crate::accounts::Account;
use crate::conn::flag;
use crate::counters::{add, add_own, sub};
use crate::credit::Credit;
use crate::inbox::ShardMsg;
use crate::way::Way;
use crate::{ConnId, Hub};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What an event takes beside its payload, in the queue and as Python's objects.
pub(super) const EVENT_BYTES: usize = 256;
/// From this size on a command is weighed at once, and not at the end of the turn.
const LARGE_BYTES: usize = 64 << 10;
/// What stays free, divided by this, is the share of a user.
const SHARE_DIVISOR: usize = 8;
/// A user has this part of the whole however little is free: most users never have more, and for them what is free need
/// not be known.
const SHARE_LEAST: usize = 1_024;
/// After this a command of a connection that is gone counts as done: `handlers.timeout_s` may be an hour, and Python
/// tells of each end. Only one on a thread may take longer, and is charged no more.
const ORPHAN_MS: u64 = 3_660_000;

/// Commands under way of a connection that has ended.
#[derive(Debug)]
pub(super) struct Orphan {
    way: Way,
    account: Option<Arc<Account>>,
    since_ms: u64,
}

impl ShardCore {
    /// Something of so many bytes goes up to Python; a command that was handed back has its credit and its charge.
    pub(super) fn go_up(&mut self, slot: usize, bytes: usize, is_handed_back: bool) {
        if is_handed_back {
            return;
        }
        let conn = &mut self.connections[slot];
        conn.under_way += 1;
        conn.way_bytes = conn.way_bytes.saturating_add(bytes as u32);
        let Some(session) = conn.session.as_deref_mut() else { return };
        session.way.up(bytes);
        let held = session.seat.account().map_or(0, |account| account.waiting.add(bytes + EVENT_BYTES));
        self.charge_events(bytes + EVENT_BYTES);
        if self.hub.is_over_share(held) {
            // What was read with it waits, too.
            self.connections[slot].hold_back();
        }
        if bytes >= LARGE_BYTES {
            self.hub.weigh_events();
        }
    }

    /// Credits of commands come back.
    pub(super) fn return_credit(&mut self, slot: usize, credit: Credit) {
        let conn = &mut self.connections[slot];
        let count = match credit {
            Credit::Python(count) => count,
            Credit::Own => 1,
        };
        conn.under_way = conn.under_way.saturating_sub(count);
        if conn.under_way == 0 {
            conn.way_bytes = 0;
        }
        if credit == Credit::Own {
            conn.own_way = conn.own_way.saturating_sub(1);
            return;
        }
        let Some(session) = conn.session.as_deref_mut() else { return };
        let (count, bytes) = session.way.back(count);
        let account = session.seat.account().cloned();
        self.uncharge_events(account.as_deref(), bytes + usize::from(count) * EVENT_BYTES);
    }

    /// Whether the connection's user has as much in Python as one may; the connection is then told of when it has less.
    pub(super) fn wait_for_user(&mut self, slot: usize) -> bool {
        let id = self.connections.id(slot);
        let conn = &mut self.connections[slot];
        let account = conn.session.as_deref().and_then(|session| session.seat.account());
        let Some(account) = account else { return false };
        if conn.flags & flag::WAITS != 0 {
            let held = account.waiting.bytes();
            return held > self.hub.share_least() / 2 && held > self.hub.user_share() / 2;
        }
        if !self.hub.is_over_share(account.waiting.bytes()) {
            return false;
        }
        let waits = account.waiting.pause(id, self.hub.user_share());
        if waits {
            conn.set(flag::WAITS);
            add(&self.hub.counters.user_pauses, 1);
        }
        waits
    }

    /// The user of a connection has less in Python.
    pub(super) fn read_on_for_user(&mut self, conn: ConnId) {
        if let Some(slot) = self.connections.find(conn) {
            self.connections[slot].clear(flag::WAITS);
            self.read_on(slot);
        }
    }

    /// Has a connection not read until a shard has taken what waits for it now.
    pub(super) fn hold_through(&mut self, slot: usize, shard: usize) {
        let id = self.connections.id(slot);
        let credit = self.connections[slot].take_own_credit(0);
        self.connections[slot].hold_back();
        self.hub.give_back_through(shard, id, credit);
    }

    /// Keeps the charge of what Python still has of a connection that ends.
    pub(super) fn leave_to_python(&mut self, slot: usize) {
        let id = self.connections.id(slot);
        let Some(session) = self.connections[slot].session.as_deref() else { return };
        let account = session.seat.account().cloned();
        if self.connections[slot].has(flag::WAITS)
            && let Some(account) = &account
        {
            account.waiting.forget(id);
        }
        if session.way.count() > 0 {
            self.reading.orphans.insert(id, Orphan { way: session.way, account, since_ms: self.now.mono_ms });
        }
    }

    /// Credits of a connection that has ended.
    pub(super) fn return_orphans_credit(&mut self, conn: ConnId, credit: Credit) {
        let Credit::Python(count) = credit else { return };
        let Some(orphan) = self.reading.orphans.get_mut(&conn) else { return };
        let (count, bytes) = orphan.way.back(count);
        let account = orphan.account.clone();
        if orphan.way.count() == 0 {
            self.reading.orphans.remove(&conn);
        }
        self.uncharge_events(account.as_deref(), bytes + usize::from(count) * EVENT_BYTES);
    }

    /// Looks for what other shards gave back, and lets go of commands that no handler has any more.
    pub(super) fn tick_events(&mut self) {
        let until_ms = self.now.mono_ms.saturating_sub(ORPHAN_MS);
        let late: Vec<ConnId> = self
            .reading
            .orphans
            .iter()
            .filter(|(_, orphan)| orphan.since_ms < until_ms)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in late {
            self.return_orphans_credit(conn, Credit::Python(u16::MAX));
        }
        self.hub.weigh_events();
    }

    /// Charges bytes that Python has from now on.
    pub(super) fn charge_events(&self, bytes: usize) {
        add_own(&self.tally().events_bytes, bytes as u64);
    }

    /// Gives bytes back that Python had.
    pub(super) fn uncharge_events(&self, account: Option<&Account>, bytes: usize) {
        add_own(&self.tally().events_bytes, (bytes as u64).wrapping_neg());
        let most = || self.hub.user_share();
        for conn in account.map_or_else(Vec::new, |account| account.waiting.sub(bytes, most)) {
            self.hub.to(conn, ShardMsg::ReadOn { conn });
        }
        if self.hub.is_behind() {
            self.hub.weigh_events();
        }
    }
}

impl Hub {
    /// Bytes of events that wait for Python, and of commands that Python has not done with.
    #[must_use]
    pub fn events_bytes(&self) -> u64 {
        let heard = self.counters.heard_bytes.load(Ordering::Relaxed);
        self.tallies().iter().map(|tally| tally.events_bytes.load(Ordering::Relaxed)).fold(heard, u64::wrapping_add)
    }

    /// Python has taken so many bytes of events of channels that it listens to.
    pub fn took_heard(&self, bytes: u64) {
        if bytes > 0 {
            sub(&self.counters.heard_bytes, bytes);
            self.weigh_events();
        }
    }

    /// What a user has at least.
    fn share_least(&self) -> usize {
        let limits = &self.rules.limits;
        limits.user_waiting_bytes_max.min((limits.events_waiting_bytes_max / SHARE_LEAST).max(1))
    }

    /// What a user may have in Python now, before none of its connections is read.
    fn user_share(&self) -> usize {
        let limits = &self.rules.limits;
        let share = self.free_events_bytes() / SHARE_DIVISOR;
        limits.user_waiting_bytes_max.min(share).max(self.share_least())
    }

    fn free_events_bytes(&self) -> usize {
        self.rules.limits.events_waiting_bytes_max.saturating_sub(self.events_bytes() as usize)
    }

    /// Whether a user who has so much in Python has all that it may.
    fn is_over_share(&self, held: usize) -> bool {
        held >= self.share_least() && held >= self.user_share()
    }

    /// Whether a command is larger than a user's share, where more than half of the whole is taken: below that the
    /// largest command is let in.
    pub(crate) fn is_over_free(&self, bytes: usize) -> bool {
        if bytes < LARGE_BYTES {
            return false;
        }
        let free = self.free_events_bytes();
        free < self.rules.limits.events_waiting_bytes_max / 2 && bytes > free / SHARE_DIVISOR
    }

    /// Whether Python has as much as it may: no open connection is read then.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// Has reading stop above `events_waiting_bytes_max`, and go on at half of it.
    pub(crate) fn weigh_events(&self) {
        let most = self.rules.limits.events_waiting_bytes_max as u64;
        if !self.is_behind() && self.events_bytes() > most && !self.is_behind.swap(true, Ordering::SeqCst) {
            add(&self.counters.events_pauses, 1);
        }
        if self.is_behind() && self.events_bytes() <= most / 2 && self.is_behind.swap(false, Ordering::SeqCst) {
            self.everywhere(|| ShardMsg::RecheckPauses);
        }
    }
}
