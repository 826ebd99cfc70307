//! One deadline a connection, in ticks of 250 ms, worked out anew from its state whenever it comes due.
//!
//! Activity only notes its tick; it never moves the deadline, so a message costs no timer. A deadline that comes due
//! early finds that out and is set later.
//!
//! Silence counts only while the connection is read, and each ping has a whole interval. Time in which the shard did not
//! run (the process was stopped, the machine suspended or overloaded) is nobody's silence: a tick that is late moves
//! what was under way by as much. What ends by the date (a token) is worked out anew when the wall clock was set.

use super::{ShardCore, TICK_MS, tick_of};
use crate::Now;
use crate::compose;
use crate::conn::{Phase, flag};
use crate::counters::add;
use crate::prepared::Prepared;
use crate::queued::Queued;
use realtime_protocol::close::CloseCode;
use realtime_protocol::frame::Opcode;
use realtime_protocol::handshake::HttpError;

/// How long before its end a token is called expiring.
const EXPIRY_NOTICE_MS: u64 = 30_000;
/// A tick that comes so many ticks late was held up, and every client has at least as long to be read first.
const LATE_TICKS: u32 = 4;
/// A change between the clocks from which the wall clock counts as set; slewing stays below it.
const CLOCK_SET_MS: u64 = 1_000;

/// What the last tick saw.
#[derive(Debug)]
pub(super) struct Timers {
    /// None before the first.
    last_tick: Option<u32>,
    /// Wall clock less monotonic clock, at the last time that deadlines were worked out by it.
    wall_offset_ms: u64,
}

impl Timers {
    pub(super) const fn new() -> Self {
        Self { last_tick: None, wall_offset_ms: 0 }
    }
}

impl ShardCore {
    /// Runs the deadlines that are due; to be called about every 250 ms.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        let tick = tick_of(now);
        let last = self.connections.timers.last_tick.replace(tick);
        if last == Some(tick) {
            return;
        }
        let late = last.map_or(0, |last| tick.saturating_sub(last).saturating_sub(1));
        if late >= LATE_TICKS {
            self.forgive(late);
        }
        self.look_for_set_clock();
        self.tick_events();
        self.hub.users.forget_settled(now.mono_ms, &self.hub.counters);
        self.hub.addresses.forget_settled(now.mono_ms, &self.hub.counters);
        for slot in self.connections.slots() {
            if self.connections.is_due(slot, tick) {
                self.due(slot);
            }
        }
    }

    /// Moves what was under way while the shard did not run for so many ticks.
    fn forgive(&mut self, late: u32) {
        let tick = tick_of(self.now);
        let grace_from = tick.saturating_sub(self.silence_ticks()).saturating_add(LATE_TICKS);
        for slot in self.connections.slots() {
            let conn = &mut self.connections[slot];
            match conn.phase {
                Phase::Free => continue,
                Phase::Open => {
                    conn.silent_from = conn.silent_from.saturating_add(late).max(grace_from).min(tick);
                    if let Some(begun) = conn.inbound.begun() {
                        conn.inbound.set_begun(begun.saturating_add(late));
                    }
                }
                _ => {
                    if let Some(cold) = conn.cold.as_deref_mut() {
                        cold.phase_ends_ms += u64::from(late) * TICK_MS;
                    }
                }
            }
            self.look_at(slot);
        }
    }

    /// Deadlines that stand for a date are wrong once the wall clock has moved against the monotonic one.
    fn look_for_set_clock(&mut self) {
        let offset_ms = self.now.wall_ms.wrapping_sub(self.now.mono_ms);
        let moved_ms = offset_ms.wrapping_sub(self.connections.timers.wall_offset_ms).cast_signed().unsigned_abs();
        if moved_ms < CLOCK_SET_MS {
            return;
        }
        self.connections.timers.wall_offset_ms = offset_ms;
        for slot in self.connections.slots() {
            if self.connections[slot].phase == Phase::Open {
                self.look_at(slot);
            }
        }
    }

    /// How long a connection may be silent before something is done.
    fn silence_ticks(&self) -> u32 {
        let limits = &self.hub.rules.limits;
        ticks(if limits.heartbeats { limits.heartbeat_interval_s } else { limits.idle_timeout_s })
    }

    /// Ends the phase that the connection is in after so long.
    pub(super) fn end_phase_in(&mut self, slot: usize, after_ms: u64) {
        self.connections[slot].cold().phase_ends_ms = self.now.mono_ms + after_ms;
        self.look_at(slot);
    }

    fn due(&mut self, slot: usize) {
        match self.connections[slot].phase {
            Phase::Free => {}
            Phase::Open => self.due_open(slot),
            phase => {
                let ends_ms = self.connections[slot].cold().phase_ends_ms;
                if ends_ms > self.now.mono_ms {
                    return self.look_at(slot);
                }
                match phase {
                    Phase::Handshake => self.refuse(slot, HttpError::TIMEOUT, &[]),
                    Phase::Deciding => self.refuse(slot, HttpError::UNAVAILABLE, &[("Retry-After", "1")]),
                    Phase::Finishing => {
                        if let Some((code, reason)) = self.connections[slot].cold().finish.take() {
                            self.say_close(slot, code, &reason);
                        }
                    }
                    _ => self.end(slot),
                }
            }
        }
    }

    fn due_open(&mut self, slot: usize) {
        self.end_relays_due(slot);
        self.release_if_due(slot);
        if self.connections[slot].phase != Phase::Open {
            return;
        }
        if self.end_if_due(slot) || self.check_expiry(slot) || self.end_late_message(slot) {
            return;
        }
        let silent_ticks = tick_of(self.now).saturating_sub(self.connections[slot].silent_from);
        // Asked here too: nothing may have come since the last pause began.
        if !self.pause_unless_readable(self.connections.id(slot)) {
            return self.due_paused(slot, silent_ticks);
        }
        if silent_ticks >= self.silence_ticks() {
            return self.miss_a_beat(slot);
        }
        self.look_at(slot);
    }

    /// What a connection says while it is not read is not known, so it is not silent. One that is not read because it
    /// takes nothing itself has sent its last sign of life when it last took a byte.
    fn due_paused(&mut self, slot: usize, silent_ticks: u32) {
        let limits = &self.hub.rules.limits;
        let is_behind = self.connections[slot].backlog_bytes() > limits.outbox_soft_bytes;
        if is_behind && silent_ticks >= ticks(limits.idle_timeout_s) {
            return self.close_slow(slot);
        }
        self.look_at(slot);
    }

    /// One more interval without a sign of life: a ping, or the end.
    fn miss_a_beat(&mut self, slot: usize) {
        let reason = match (self.hub.rules.limits.heartbeats, self.connections[slot].pings_unanswered) {
            (false, _) => "silent for too long",
            (true, 0 | 1) => {
                let conn = &mut self.connections[slot];
                conn.pings_unanswered += 1;
                conn.silent_from = tick_of(self.now);
                self.queue(slot, Queued::reply(Prepared::frame(Opcode::Ping, b"")));
                return self.look_at(slot);
            }
            (true, _) => "two pings were not answered",
        };
        add(&self.hub.counters.closed_silent, 1);
        self.close(slot, CloseCode::SILENT.0, reason);
    }

    /// Tells of a token's end, then closes; true when closed.
    fn check_expiry(&mut self, slot: usize) -> bool {
        let ends_ms = self.connections[slot].session.as_ref().map_or(0, |session| session.expires_at_ms);
        if ends_ms == 0 || self.now.wall_ms + EXPIRY_NOTICE_MS < ends_ms {
            return false;
        }
        if self.now.wall_ms >= ends_ms {
            self.close(slot, CloseCode::TOKEN_EXPIRED.0, "the token expired");
            return true;
        }
        if !self.connections[slot].cold().told_of_expiry {
            self.connections[slot].cold().told_of_expiry = true;
            let json = compose::reply("token_expiring", None, self.now.wall_ms, |out| {
                out.extend_from_slice(b"{\"expiresAt\":");
                compose::timestamp(out, ends_ms);
                out.push(b'}');
            });
            self.queue_json(slot, &json);
        }
        false
    }

    /// Works the connection's deadline out from its state.
    pub(super) fn look_at(&mut self, slot: usize) {
        let conn = &self.connections[slot];
        let cold = conn.cold.as_deref();
        let tick = if conn.phase == Phase::Open {
            let from = if conn.has(flag::PAUSED) { tick_of(self.now) } else { conn.silent_from };
            let mut due = from.saturating_add(self.silence_ticks());
            if let Some(relay_ms) = cold.and_then(|cold| cold.lasting.iter().map(|relay| relay.ends_ms).min()) {
                due = due.min(tick_after(relay_ms));
            }
            let ends_ms = conn.session.as_ref().map_or(0, |session| session.expires_at_ms);
            if ends_ms > 0 {
                let told = cold.is_some_and(|cold| cold.told_of_expiry);
                let at_ms = if told { ends_ms } else { ends_ms.saturating_sub(EXPIRY_NOTICE_MS) };
                due = due.min(tick_after(self.now.mono_ms + at_ms.saturating_sub(self.now.wall_ms)));
            }
            if let Some(held_ms) = cold.map(|cold| cold.held_until_ms).filter(|held_ms| *held_ms > 0) {
                due = due.min(tick_after(held_ms));
            }
            if let Some(message) = self.message_due(slot) {
                due = due.min(message);
            }
            if let Some(ends_ms) = self.ends_at_ms(self.connections.id(slot)) {
                due = due.min(tick_after(ends_ms));
            }
            due
        } else {
            cold.map_or(u32::MAX, |cold| tick_after(cold.phase_ends_ms))
        };
        self.connections.set_deadline(slot, tick);
    }
}

pub(super) const fn ticks(seconds: u32) -> u32 {
    seconds.saturating_mul((1_000 / TICK_MS) as u32)
}

/// The first tick at which `mono_ms` is past.
const fn tick_after(mono_ms: u64) -> u32 {
    let tick = mono_ms.div_ceil(TICK_MS);
    if tick >= u32::MAX as u64 { u32::MAX - 1 } else { tick as u32 }
}
