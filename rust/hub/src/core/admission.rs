//! Whether there is room for one more: for this address to begin a handshake, for this user to open a session.
//!
//! And, once open, whether a command is within what its connection, its user and its address may ask for.

use super::ShardCore;
use crate::ConnId;
use crate::accounts::{Account, Entered, Full, Own, Refusals};
use crate::bucket::{Bucket, Rate, SharedBucket};
use crate::conn::{Conn, flag};
use crate::counters::{Counters, add, sub};
use crate::inbox::ShardMsg;
use crate::rules::{Rules, Traffic};
use realtime_protocol::address::limited_as;
use realtime_protocol::close::CloseCode;
use realtime_protocol::handshake::Request;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a client waits at least that is told to come back, and how far clients are spread beyond it.
const RETRY_MS: u64 = 1_000;
const RETRY_SPREAD_MS: u64 = 4_000;

/// Bytes of a page that the command has paid for.
const PAGE_BYTES_FREE: usize = 4 << 10;
/// Bytes of a page for a thousandth of a token.
const PAGE_BYTES_A_MILLI: usize = 64;

/// What an open connection shares with others, and how often it was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    user: Option<Arc<Account>>,
    // A box, since few servers limit addresses, and every open connection has a seat.
    address: Option<Box<(IpAddr, Arc<Account>)>>,
    refusals: Refusals,
}

impl Seat {
    /// The account of the user, or of the address where there is no name; None where no limits apply.
    pub(super) fn account(&self) -> Option<&Arc<Account>> {
        self.user.as_ref().or_else(|| self.address.as_deref().map(|(_, account)| account))
    }

    /// Channels that all connections of the user are subscribed to; 0 for who has no name.
    pub(super) fn channels_of_user(&self) -> usize {
        self.user.as_ref().map_or(0, |account| account.channels.load(Ordering::Relaxed))
    }

    pub(super) fn count_channel(&self, begins: bool) {
        let Some(account) = &self.user else { return };
        if begins {
            account.channels.fetch_add(1, Ordering::Relaxed);
        } else {
            account.channels.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The buckets of the user and of the address, each with its rate and the counter of what it refused.
    fn buckets<'a>(
        &'a self,
        rules: &Rules,
        traffic: Traffic,
        counters: &'a Counters,
    ) -> impl Iterator<Item = (&'a SharedBucket, Rate, &'a AtomicU64)> {
        let user = self.user.as_deref().map(|account| (account, rules.user_rate(traffic), &counters.refused_by_user));
        let address = self.address.as_deref().map(|(_, account)| {
            let rate = rules.address_rate(traffic);
            (&**account, rate, &counters.refused_by_address)
        });
        user.into_iter().chain(address).map(move |(account, rate, refused)| match traffic {
            Traffic::Commands => (&account.commands, rate, refused),
            Traffic::Relays => (&account.relays, rate, refused),
        })
    }
}

impl ShardCore {
    /// Takes the address that our proxy names for the connection's.
    pub(super) fn find_client(&mut self, slot: usize, request: &Request<'_>) {
        let hub = Arc::clone(&self.hub);
        let cold = self.connections[slot].cold();
        cold.peer = hub.rules.proxies.client_of(cold.peer, request.header_values("x-forwarded-for"));
    }

    /// Whether the connection's address may begin a handshake.
    pub(super) fn take_handshake(&mut self, slot: usize) -> bool {
        let address = limited_as(self.connections[slot].cold().peer);
        self.hub.handshakes.take(address, self.hub.rules.handshake_rate(), self.now.mono_ms)
    }

    /// Takes a place among the connections of the user and of the address; the user's oldest may have to go for it.
    ///
    /// The connection begins with what those that ended before it have left.
    pub(super) fn take_seat(&mut self, slot: usize, user: &Arc<str>) -> Result<Seat, Full> {
        let (id, address) = (self.connections.id(slot), limited_as(self.connections[slot].cold().peer));
        let (hub, now_ms) = (Arc::clone(&self.hub), self.now.mono_ms);
        let mut seat = Seat::default();
        if !hub.rules.limits.enabled {
            return Ok(seat);
        }
        let mut left = Own::default();
        if hub.rules.counts_addresses() || user.is_empty() {
            let Entered { account, own, .. } = hub.addresses.enter(&address, id, now_ms, &hub.counters)?;
            seat.address = Some(Box::new((address, account)));
            left = own;
        }
        // Who was let in without a name is nobody's session.
        if !user.is_empty() {
            match hub.users.enter(user, id, now_ms, &hub.counters) {
                Ok(Entered { account, own, replaced }) => {
                    seat.user = Some(account);
                    left = own;
                    if let Some(conn) = replaced {
                        let (code, reason) = (CloseCode::REPLACED.0, "a newer session took its place".into());
                        hub.to(conn, ShardMsg::Close { conn, code, reason });
                    }
                }
                Err(Full) => {
                    self.leave_seat(id, user, &seat, Own::default());
                    return Err(Full);
                }
            }
        }
        seat.refusals = left.refusals;
        let conn = &mut self.connections[slot];
        (conn.commands, conn.relays, conn.bytes) = (left.commands, left.relays, left.bytes);
        Ok(seat)
    }

    /// Gives back what [`Self::take_seat`] took, and leaves what the connection had to itself to the next.
    pub(super) fn leave_seat(&self, conn: ConnId, user: &Arc<str>, seat: &Seat, mut own: Own) {
        let (hub, now_ms) = (&*self.hub, self.now.mono_ms);
        own.refusals = seat.refusals;
        if seat.user.is_some() {
            hub.users.leave(user, conn, std::mem::take(&mut own), now_ms, &hub.counters);
        }
        if let Some((address, _)) = seat.address.as_deref() {
            hub.addresses.leave(address, conn, own, now_ms, &hub.counters);
        }
    }

    /// Charges what a session holds of its identity: `after` bytes in place of `before`.
    ///
    /// # Errors
    /// All sessions together would hold too much; nothing is charged.
    pub(super) fn charge_identity(&self, before: usize, after: usize) -> Result<(), Full> {
        let counters = &self.hub.counters;
        let most = self.hub.rules.limits.identities_bytes_max as u64;
        let more = (after as u64).saturating_sub(before as u64);
        let held = counters.identities_bytes.fetch_add(more, Ordering::Relaxed);
        if more > 0 && held + more > most {
            sub(&counters.identities_bytes, more);
            add(&counters.identities_refused, 1);
            return Err(Full);
        }
        sub(&counters.identities_bytes, (before as u64).saturating_sub(after as u64));
        Ok(())
    }

    /// Takes so many tokens of the connection, its user and its address.
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub(super) fn take_tokens(&mut self, slot: usize, traffic: Traffic, cost: u32) -> Result<(), u32> {
        self.take_milli(slot, traffic, cost.saturating_mul(1_000))
    }

    /// The same in thousandths.
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub(super) fn take_milli(&mut self, slot: usize, traffic: Traffic, milli: u32) -> Result<(), u32> {
        let (hub, now_ms) = (&*self.hub, self.now.mono_ms);
        let conn = &mut self.connections[slot];
        own_bucket(conn, traffic)
            .take_milli(milli, hub.rules.own_rate(traffic), now_ms)
            .inspect_err(|_| add(&hub.counters.refused_by_connection, 1))?;
        let Some(session) = &conn.session else { return Ok(()) };
        for (bucket, rate, refused) in session.seat.buckets(&hub.rules, traffic, &hub.counters) {
            bucket.take_milli(milli, rate, now_ms).inspect_err(|_| add(refused, 1))?;
        }
        Ok(())
    }

    /// Takes tokens for what was done already, whether they are there or not.
    pub(super) fn overdraw(&mut self, slot: usize, milli: u32) {
        let (hub, now_ms, traffic) = (&*self.hub, self.now.mono_ms, Traffic::Commands);
        let conn = &mut self.connections[slot];
        conn.commands.overdraw(milli, hub.rules.own_rate(traffic), now_ms);
        let Some(session) = &conn.session else { return };
        for (bucket, rate, _) in session.seat.buckets(&hub.rules, traffic, &hub.counters) {
            bucket.overdraw(milli, rate, now_ms);
        }
    }

    /// Settles what was taken for a page that is not known yet, now that its bytes are.
    pub(super) fn settle_page(&mut self, slot: usize, reserved_milli: u32, bytes: usize) {
        let milli = page_milli(bytes);
        if milli >= reserved_milli {
            return self.overdraw(slot, milli - reserved_milli);
        }
        let (hub, too_much) = (&*self.hub, reserved_milli - milli);
        let conn = &mut self.connections[slot];
        conn.commands.give_back(too_much);
        let Some(session) = &conn.session else { return };
        for (bucket, ..) in session.seat.buckets(&hub.rules, Traffic::Commands, &hub.counters) {
            bucket.give_back(too_much);
        }
    }

    /// Does not read the connection until what it owes is paid: for those who cannot be told that they are over a rate.
    pub(super) fn hold_while_owing(&mut self, slot: usize) {
        let (owes_ms, now_ms) = (self.owes_ms(slot), self.now.mono_ms);
        if owes_ms > 0 {
            self.connections[slot].set(flag::HELD);
            self.connections[slot].cold().held_until_ms = now_ms + u64::from(owes_ms);
            self.look_at(slot);
        }
    }

    /// Milliseconds until the connection, its user and its address have paid for what was done already.
    pub(super) fn owes_ms(&self, slot: usize) -> u32 {
        let (hub, now_ms, traffic) = (&*self.hub, self.now.mono_ms, Traffic::Commands);
        let conn = &self.connections[slot];
        let own_ms = conn.commands.owes_ms(hub.rules.own_rate(traffic), now_ms);
        let own_ms = own_ms.max(conn.bytes.owes_ms(hub.rules.bytes_rate(), now_ms));
        let seat = conn.session.as_ref().map(|session| &session.seat);
        let shared = seat.into_iter().flat_map(|seat| seat.buckets(&hub.rules, traffic, &hub.counters));
        shared.map(|(bucket, rate, _)| bucket.owes_ms(rate, now_ms)).fold(own_ms, u32::max)
    }

    /// Reads a connection on that has paid what it owed.
    pub(super) fn release_if_due(&mut self, slot: usize) {
        let now_ms = self.now.mono_ms;
        let conn = &mut self.connections[slot];
        if !conn.has(flag::HELD) || conn.cold().held_until_ms > now_ms {
            return;
        }
        conn.clear(flag::HELD);
        conn.cold().held_until_ms = 0;
        conn.warm();
        self.read_on(slot);
    }

    /// Counts a refused command, and closes the connection of whoever goes on; behind the answers that are queued.
    pub(super) fn note_refusal(&mut self, slot: usize) {
        add(&self.hub.counters.rate_limited, 1);
        let (most, now_ms) = (self.hub.rules.limits.refusals_max, self.now.mono_ms);
        let conn = &mut self.connections[slot];
        if conn.session.as_mut().is_some_and(|session| session.seat.refusals.note_one(most, now_ms)) {
            // What it goes on sending is not parsed any more: it was cut in the middle.
            conn.set(flag::BROKEN);
            self.close_behind(slot, CloseCode::RATE_LIMITED.0, "too many commands for too long");
        }
    }

    /// How long a client that finds no room waits before it comes back, in ms: not all at once.
    pub(super) fn retry_after_ms(&self, slot: usize) -> u64 {
        RETRY_MS + self.hub.reconnect_delay_ms(self.connections.id(slot), RETRY_SPREAD_MS)
    }
}

/// What a page of so many bytes costs beside its command, in thousandths of a token: one for each 64,000 bytes.
pub(crate) const fn page_milli(bytes: usize) -> u32 {
    (bytes.saturating_sub(PAGE_BYTES_FREE) / PAGE_BYTES_A_MILLI) as u32
}

const fn own_bucket(conn: &mut Conn, traffic: Traffic) -> &mut Bucket {
    match traffic {
        Traffic::Commands => &mut conn.commands,
        Traffic::Relays => &mut conn.relays,
    }
}
