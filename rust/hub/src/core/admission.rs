//! Whether there is room for one more: for this address to begin a handshake, for this user to open a session.
//!
//! And, once open, whether a command is within what its connection, its user and its address may ask for.

use super::ShardCore;
use crate::ConnId;
use crate::accounts::{Account, Full};
use crate::address::limited_as;
use crate::bucket::Bucket;
use crate::conn::{Conn, flag};
use crate::counters::add;
use crate::inbox::ShardMsg;
use crate::rules::{Rules, Traffic};
use realtime_protocol::close::CloseCode;
use realtime_protocol::handshake::Request;
use std::net::IpAddr;
use std::sync::Arc;

/// The time over which refusals are counted.
const REFUSALS_WINDOW_S: u32 = 10;
/// What a client waits at least that is told to come back, and how far clients are spread beyond it.
const RETRY_MS: u64 = 1_000;
const RETRY_SPREAD_MS: u64 = 4_000;

/// What an open connection shares with others, and how often it was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    user: Option<Arc<Account>>,
    // A box, since few servers limit addresses, and every open connection has a seat.
    address: Option<Box<(IpAddr, Arc<Account>)>>,
    refused: u32,
    /// When the window began in which `refused` was counted, in monotonic seconds.
    refused_from_s: u32,
}

impl Seat {
    /// Takes from the buckets of the user and of the address.
    fn take(&self, rules: &Rules, traffic: Traffic, cost: u32, mono_ms: u64) -> Result<(), u32> {
        let accounts = [
            (self.user.as_ref(), rules.user_rate(traffic)),
            (self.address.as_deref().map(|(_, account)| account), rules.address_rate(traffic)),
        ];
        for (account, rate) in accounts {
            let Some(account) = account else { continue };
            let bucket = match traffic {
                Traffic::Commands => &account.commands,
                Traffic::Relays => &account.relays,
            };
            bucket.take_many(cost, rate, mono_ms)?;
        }
        Ok(())
    }

    /// Notes a refusal; true where they are more than `most` within the window.
    fn is_refused_too_often(&mut self, most: u32, mono_ms: u64) -> bool {
        let mono_s = (mono_ms / 1_000) as u32;
        if mono_s >= self.refused_from_s.saturating_add(REFUSALS_WINDOW_S) {
            (self.refused_from_s, self.refused) = (mono_s, 0);
        }
        self.refused += 1;
        most > 0 && self.refused > most
    }
}

impl ShardCore {
    /// Takes the address that our proxy names for the connection's.
    pub(super) fn find_client(&mut self, slot: usize, request: &Request<'_>) {
        let hub = Arc::clone(&self.hub);
        let cold = self.conns[slot].cold();
        cold.peer = hub.rules.proxies.client_of(cold.peer, request.header_values("x-forwarded-for"));
    }

    /// Whether the connection's address may begin a handshake.
    pub(super) fn may_shake_hands(&mut self, slot: usize) -> bool {
        let address = limited_as(self.conns[slot].cold().peer);
        self.hub.handshakes.take(address, self.hub.rules.handshake_rate(), self.now.mono_ms)
    }

    /// Takes a place among the connections of the user and of the address; the user's oldest may have to go for it.
    pub(super) fn take_seat(&mut self, slot: usize, user: &Arc<str>) -> Result<Seat, Full> {
        let (id, address) = (self.id(slot), limited_as(self.conns[slot].cold().peer));
        let hub = Arc::clone(&self.hub);
        let mut seat = Seat::default();
        if hub.rules.counts_addresses() {
            seat.address = Some(Box::new((address, hub.addresses.enter(&address, id)?.0)));
        }
        // Who was let in without a name is nobody's session.
        if hub.rules.counts_users() && !user.is_empty() {
            match hub.users.enter(user, id) {
                Ok((account, replaced)) => {
                    seat.user = Some(account);
                    if let Some(conn) = replaced {
                        let (code, reason) = (CloseCode::REPLACED.0, "a newer session took its place".into());
                        hub.to(conn, ShardMsg::Close { conn, code, reason });
                    }
                }
                Err(Full) => {
                    self.leave_seat(id, user, &seat);
                    return Err(Full);
                }
            }
        }
        Ok(seat)
    }

    /// Gives back what [`Self::take_seat`] took.
    pub(super) fn leave_seat(&self, conn: ConnId, user: &Arc<str>, seat: &Seat) {
        if seat.user.is_some() {
            self.hub.users.leave(user, conn);
        }
        if let Some((address, _)) = seat.address.as_deref() {
            self.hub.addresses.leave(address, conn);
        }
    }

    /// Takes so many tokens of the connection, its user and its address.
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub(super) fn take_tokens(&mut self, slot: usize, traffic: Traffic, cost: u32) -> Result<(), u32> {
        let rules = &self.hub.rules;
        let Conn { commands, relays, session, .. } = &mut self.conns[slot];
        let own: &mut Bucket = match traffic {
            Traffic::Commands => commands,
            Traffic::Relays => relays,
        };
        own.take_many(cost, rules.own_rate(traffic), self.now.mono_ms)?;
        match session {
            Some(session) => session.seat.take(rules, traffic, cost, self.now.mono_ms),
            None => Ok(()),
        }
    }

    /// Counts a refused command, and closes the connection of whoever goes on; behind the answers that are queued.
    pub(super) fn note_refusal(&mut self, slot: usize) {
        add(&self.hub.counters.rate_limited, 1);
        let (most, now_ms) = (self.hub.rules.limits.refusals_max, self.now.mono_ms);
        let conn = &mut self.conns[slot];
        if conn.session.as_mut().is_some_and(|session| session.seat.is_refused_too_often(most, now_ms)) {
            // What it goes on sending is not parsed any more: it was cut in the middle.
            conn.set(flag::BROKEN);
            self.close_behind(slot, CloseCode::RATE_LIMITED.0, "too many commands for too long");
        }
    }

    /// How long a client that finds no room waits before it comes back, in ms: not all at once.
    pub(super) fn retry_after_ms(&self, slot: usize) -> u64 {
        RETRY_MS + self.hub.reconnect_delay_ms(self.id(slot), RETRY_SPREAD_MS)
    }
}
