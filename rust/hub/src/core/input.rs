//! In: bytes to handshakes and messages.
//!
//! Bytes are parsed where the driver read them. What has to stay (half a head, a message that is not finished, bytes
//! behind a pause) is copied to the connection's own memory and counted.

use super::command::Source;
use super::{ShardCore, tick_of};
use crate::conn::{Phase, flag};
use crate::counters::{add, add_own, sub};
use crate::options::Mode;
use crate::prepared::Prepared;
use crate::queued::Queued;
use crate::rules::Traffic;
use crate::{ConnId, Event, Now};
use realtime_protocol::close::CloseCode;
use realtime_protocol::connection::{Inbound, Item, Role};
use realtime_protocol::deflate::Inflater;
use realtime_protocol::frame::Opcode;
use realtime_protocol::handshake::{Head, Limits, parse_head};

/// What is long, or is once it is inflated, costs a command for each of these: some tens of microseconds.
pub(super) const LONG_UNIT: usize = 64 << 10;

impl ShardCore {
    /// Takes bytes that were read from the connection; they are parsed (and unmasked) in place.
    pub fn bytes_in(&mut self, id: ConnId, input: &mut [u8], now: Now) {
        self.now = now;
        let Some(slot) = self.connections.find(id) else { return };
        add_own(&self.tally().bytes_in, input.len() as u64);
        self.connections[slot].heard(tick_of(now));
        match self.connections[slot].phase {
            Phase::Free => {}
            Phase::Handshake => self.head_in(slot, input),
            // Frames before the 101 wait for it.
            Phase::Deciding => self.keep_unread(slot, input),
            // Nothing comes behind a Close, or behind a fault.
            Phase::Finishing => {}
            Phase::Open if self.has_unread(slot) => {
                // A driver that does not ask `pause_unless_readable` first still keeps the order.
                self.keep_unread(slot, input);
            }
            Phase::Open => self.frames_in(slot, input),
            Phase::Closing => {
                if self.count_in_vain(slot, input.len()) {
                    return self.end(slot);
                }
                self.last_frames_in(slot, input);
            }
        }
    }

    fn head_in(&mut self, slot: usize, input: &mut [u8]) {
        let mut cold = self.connections[slot].cold.take();
        let Some(parts) = cold.as_deref_mut() else { return };
        let (known, held) = (parts.head.len(), parts.head.capacity());
        parts.head.extend_from_slice(input);
        let head = std::mem::take(&mut parts.head);
        let mut searched = parts.head_searched;
        let limits = Limits { head_bytes_max: self.hub.rules.limits.head_bytes_max, ..Limits::default() };
        let outcome = parse_head(&head, &mut searched, &limits);
        parts.head_searched = searched;
        match outcome {
            Head::Partial => {
                parts.head = head;
                self.connections[slot].cold = cold;
                self.weigh_head(slot, held);
            }
            Head::Bad(error) => {
                sub(&self.hub.counters.heads_bytes, held as u64);
                self.connections[slot].cold = cold;
                self.refuse(slot, error, &[]);
            }
            Head::Request(request, _) if self.passes_on(&request) => {
                sub(&self.hub.counters.heads_bytes, held as u64);
                self.connections[slot].cold = cold;
                self.pass_on(slot, head);
            }
            Head::Request(request, len) => {
                sub(&self.hub.counters.heads_bytes, held as u64);
                self.connections[slot].cold = cold;
                self.request(slot, &request);
                let rest = &mut input[len.saturating_sub(known)..];
                if self.connections[slot].phase == Phase::Open {
                    self.frames_in(slot, rest);
                } else if self.connections[slot].phase == Phase::Deciding {
                    self.keep_unread(slot, rest);
                }
            }
        }
    }

    /// Keeps bytes that a driver had to read although [`Self::pause_unless_readable`] says no; false where more waits than one message
    /// and `slack` bytes, so that the connection must end.
    pub fn keep(&mut self, id: ConnId, input: &[u8], slack: usize, now: Now) -> bool {
        self.now = now;
        let Some(slot) = self.connections.find(id) else { return true };
        self.connections[slot].heard(tick_of(now));
        let known = self.connections[slot].cold.as_ref().map_or(0, |cold| cold.unread.len());
        let fits = known + input.len() <= self.hub.rules.limits.message_bytes_max + slack;
        if fits && matches!(self.connections[slot].phase, Phase::Open | Phase::Deciding) {
            add_own(&self.tally().bytes_in, input.len() as u64);
            self.keep_unread(slot, input);
        }
        fits
    }

    /// Takes what [`Self::keep`] has of a connection that is read again; some may wait on.
    pub fn kept_in(&mut self, id: ConnId, now: Now) {
        self.now = now;
        if let Some(slot) = self.connections.find(id).filter(|slot| self.connections[*slot].phase == Phase::Open) {
            self.unread_in(slot);
        }
    }

    fn keep_unread(&mut self, slot: usize, rest: &[u8]) {
        if !rest.is_empty() {
            self.connections[slot].cold().unread.extend_from_slice(rest);
            self.charge_unfinished(slot);
        }
    }

    /// Throws away what was kept: where the next frame begins is then not known any more.
    pub(super) fn drop_unread(&mut self, slot: usize) {
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        if !std::mem::take(&mut cold.unread).is_empty() {
            self.connections[slot].set(flag::BROKEN);
            self.charge_unfinished(slot);
        }
    }

    /// Frames that waited behind a pause or for the 101.
    pub(super) fn unread_in(&mut self, slot: usize) {
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        let mut unread = std::mem::take(&mut cold.unread);
        self.connections[slot].warm();
        if !unread.is_empty() {
            self.charge_unfinished(slot);
            self.frames_in(slot, &mut unread);
        }
    }

    fn frames_in(&mut self, slot: usize, input: &mut [u8]) {
        let mut inflater = self.lend_inflater(slot);
        self.frames_through(slot, input, inflater.as_mut());
        self.take_inflater(inflater);
    }

    /// The shard's inflater, where the connection may send what needs it. Messages keep nothing in it, so one serves
    /// all connections.
    fn lend_inflater(&mut self, slot: usize) -> Option<Inflater> {
        self.connections[slot].window().is_agreed().then(|| self.reading.inflater.take().unwrap_or_default())
    }

    fn take_inflater(&mut self, inflater: Option<Inflater>) {
        if let Some(mut inflater) = inflater {
            inflater.release();
            self.reading.inflater = Some(inflater);
        }
    }

    fn frames_through(&mut self, slot: usize, input: &mut [u8], mut inflater: Option<&mut Inflater>) {
        // The parser is taken out while it is used: what it yields borrows it, and handling that needs the shard.
        let mut inbound = std::mem::replace(&mut self.connections[slot].inbound, Inbound::new(Role::Server));
        let generation = self.connections[slot].generation;
        let message_bytes_max = self.hub.rules.limits.message_bytes_max;
        let most = self.hub.rules.limits.commands_waiting_max;
        let mut kept = 0;
        let mut at = 0;
        while at < input.len() {
            if self.connections[slot].is_full(most, message_bytes_max) || self.connections[slot].has(flag::HELD) {
                self.connections[slot].set(flag::PAUSED);
                kept = input.len() - at;
                break;
            }
            let held = inbound.bytes_held();
            match inbound.receive(&mut input[at..], message_bytes_max, inflater.as_deref_mut()) {
                Ok((used, item)) => {
                    at += used;
                    let mut len = 0;
                    match item {
                        Some(item) => {
                            len = message_len(&item);
                            self.item_in(slot, item);
                        }
                        None => self.charge_fragments(slot, inbound.take_small_fragments()),
                    }
                    match self.inflated(inflater.as_deref_mut()) {
                        Some(cost) => self.charge_inflated(slot, cost),
                        None if len >= LONG_UNIT => self.charge_long(slot, len),
                        None => {}
                    }
                }
                Err(violation) => {
                    // It ends with this, so that what was read and inflated in vain is owed by the next of the same
                    // user.
                    let cost = self.inflated(inflater.as_deref_mut()).unwrap_or(0);
                    self.overdraw(slot, cost.saturating_add(long_units(held)).saturating_mul(1_000));
                    self.connections[slot].set(flag::BROKEN);
                    self.finish(slot, violation.code.0, violation.reason);
                }
            }
            if self.connections[slot].generation != generation {
                return;
            }
            if self.connections[slot].phase != Phase::Open {
                return self.charge_unfinished(slot);
            }
        }
        inbound.release_finished();
        let is_unfinished = inbound.is_unfinished();
        self.connections[slot].inbound = inbound;
        if is_unfinished {
            self.note_message_begun(slot);
        }
        if kept > 0 {
            self.connections[slot].cold().unread.extend_from_slice(&input[at..]);
        }
        self.charge_unfinished(slot);
    }

    /// A message that was long only once it was inflated costs the more of it, whatever it was: some hundred bytes can
    /// keep a shard busy for a hundred thousand. Who has no tokens left for that is closed.
    fn charge_inflated(&mut self, slot: usize, cost: u32) {
        let is_open = matches!(self.connections[slot].phase, Phase::Open | Phase::Closing);
        if cost == 0 || !is_open || self.take_tokens(slot, Traffic::Commands, cost).is_ok() {
            return;
        }
        // It is owed all the same, so that who comes back and does it again is not read before it is paid.
        self.overdraw(slot, cost.saturating_mul(1_000));
        add(&self.hub.counters.rate_limited, 1);
        self.connections[slot].set(flag::BROKEN);
        if self.connections[slot].phase == Phase::Open {
            self.close_behind(slot, CloseCode::RATE_LIMITED.0, "too many compressed bytes");
        }
    }

    /// Counts a message that was just inflated, if one was, and says what it costs.
    fn inflated(&self, inflater: Option<&mut Inflater>) -> Option<u32> {
        let len = inflater.and_then(Inflater::take_inflated)?;
        add_own(&self.tally().inflations, 1);
        add_own(&self.tally().inflated_bytes, len as u64);
        Some((len / LONG_UNIT) as u32)
    }

    /// A message that came long is done, and its sender is not read until its length is paid: reading, checking and
    /// copying it keeps a shard as busy as many short ones.
    fn charge_long(&mut self, slot: usize, len: usize) {
        if matches!(self.connections[slot].phase, Phase::Open) {
            self.overdraw(slot, long_units(len).saturating_mul(1_000));
            self.hold_while_owing(slot);
        }
    }

    /// Small fragments cost a command each: whoever sends many of them sends few bytes and ends no message.
    fn charge_fragments(&mut self, slot: usize, count: u32) {
        if count > 0 && self.take_tokens(slot, Traffic::Commands, count).is_err() {
            self.note_refusal(slot);
        }
    }

    fn item_in(&mut self, slot: usize, item: Item<'_>) {
        match item {
            Item::Text(payload) => self.message_in(slot, true, payload),
            Item::Binary(payload) => self.message_in(slot, false, payload),
            // Over the rate it stays unanswered: a later pong may stand for it (RFC 6455 §5.5.3).
            Item::Ping(_) if self.take_tokens(slot, Traffic::Commands, 1).is_err() => self.note_refusal(slot),
            Item::Ping(payload) => {
                let pong = Queued::reply(Prepared::frame(Opcode::Pong, payload));
                self.queue(slot, pong);
            }
            // One in each interval of heartbeats is asked for; a flood of them is none.
            Item::Pong(_) => {
                if self.take_tokens(slot, Traffic::Commands, 1).is_err() {
                    self.note_refusal(slot);
                }
            }
            Item::Close(code, reason) => {
                let code = code.unwrap_or(CloseCode::NO_STATUS);
                self.connections[slot].set(flag::PEER_CLOSED);
                self.connections[slot].close_code = code.0;
                // The answer repeats the code (RFC 6455 §5.5.1).
                self.finish(slot, code.0, reason);
            }
        }
    }

    /// A whole message, text already known to be UTF-8.
    fn message_in(&mut self, slot: usize, text: bool, payload: &mut [u8]) {
        add_own(&self.tally().messages_in, 1);
        let endpoint = self.connections[slot].endpoint as usize;
        match self.hub.rules.endpoints[endpoint].mode {
            Mode::Raw => {
                let conn = self.connections.id(slot);
                self.go_up(slot, payload.len(), false);
                self.outputs.events.push(Event::Raw { conn, text, payload: (&*payload).into() });
                // Nobody can be told in a protocol that we do not know: who is over the rate is read more slowly.
                if self.take_tokens(slot, Traffic::Commands, 1).is_err() {
                    self.overdraw(slot, 1_000);
                    self.hold_while_owing(slot);
                }
            }
            Mode::Json => {
                // JSON in a binary frame is taken as text, so it has to be text.
                if text || realtime_protocol::utf8::is_valid(payload) {
                    let _ = self.command_in(slot, payload, Source::Client);
                } else {
                    let _ = self.unreadable(slot, None, None, Source::Client);
                }
            }
        }
    }

    /// Closes once everything that was asked before is answered.
    pub(super) fn finish(&mut self, slot: usize, code: u16, reason: &str) {
        self.end_lasting(slot, None);
        let conn = &mut self.connections[slot];
        if conn.under_way == 0 {
            return self.say_close(slot, code, reason);
        }
        conn.phase = Phase::Finishing;
        conn.cold().finish = Some((code, reason.into()));
        self.end_phase_in(slot, u64::from(self.hub.rules.limits.close_timeout_s) * 1_000);
    }

    /// Looks whether a connection that finishes has all its answers.
    pub(super) fn finish_if_answered(&mut self, slot: usize) {
        let conn = &mut self.connections[slot];
        if conn.phase == Phase::Finishing
            && conn.under_way == 0
            && let Some((code, reason)) = conn.cold().finish.take()
        {
            self.say_close(slot, code, &reason);
        }
    }

    /// Counts what is thrown away behind our last word, which a session owes for as for any message. Whether it is more
    /// than a peer may have under way that has not read that word yet: one message, or a request without a session.
    fn count_in_vain(&mut self, slot: usize, len: usize) -> bool {
        let has_session = self.connections[slot].session.is_some();
        let most = if has_session { self.hub.rules.limits.message_bytes_max + LONG_UNIT } else { LONG_UNIT };
        let in_vain = &mut self.connections[slot].cold().in_vain;
        let before = *in_vain;
        let after = before.saturating_add(len);
        *in_vain = after;
        self.overdraw(slot, (long_units(after) - long_units(before)).saturating_mul(1_000));
        after > most
    }

    /// After our Close only the peer's is looked for.
    fn last_frames_in(&mut self, slot: usize, input: &mut [u8]) {
        let conn = &mut self.connections[slot];
        if conn.has(flag::BROKEN) || conn.session.is_none() {
            return;
        }
        let mut inflater = self.lend_inflater(slot);
        let mut at = 0;
        while at < input.len() && !self.connections[slot].has(flag::BROKEN) {
            let (conn, bytes_max) = (&mut self.connections[slot], self.hub.rules.limits.message_bytes_max);
            match conn.inbound.receive(&mut input[at..], bytes_max, inflater.as_mut()) {
                Ok((_, Some(Item::Close(..)))) => {
                    conn.set(flag::PEER_CLOSED);
                    break;
                }
                Ok((used, _)) => at += used,
                Err(_) => conn.set(flag::BROKEN),
            }
            if let Some(cost) = self.inflated(inflater.as_mut()) {
                self.charge_inflated(slot, cost);
            }
        }
        self.take_inflater(inflater);
        let conn = &mut self.connections[slot];
        conn.inbound.release_finished();
        self.charge_unfinished(slot);
        let conn = &self.connections[slot];
        if conn.has(flag::PEER_CLOSED) && conn.backlog.is_none() && !conn.has(flag::DIRTY) {
            self.end(slot);
        }
    }
}

/// What so many bytes of a message cost in commands.
pub(super) const fn long_units(bytes: usize) -> u32 {
    (bytes / LONG_UNIT) as u32
}

/// Bytes of a message; 0 for a control frame.
const fn message_len(item: &Item<'_>) -> usize {
    match item {
        Item::Text(payload) | Item::Binary(payload) => payload.len(),
        Item::Ping(_) | Item::Pong(_) | Item::Close(..) => 0,
    }
}
