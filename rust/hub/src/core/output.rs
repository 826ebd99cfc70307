//! Out: frames are queued for connections and flushed to their sockets, in batches.
//!
//! What is queued stands in the [turn](super::turn)'s log. Only a connection that the kernel refused gets frames of its
//! own ([`Backlog`]).

use super::turn::{Planned, Run, Source};
use super::{ShardCore, tick_of};
use crate::conn::{NOTHING, Phase, flag};
use crate::counters::{add_own, sub};
use crate::outbox::{Backlog, Bounds, TooSlow};
use crate::prepared::{Form, Prepared};
use crate::queued::Queued;
use crate::{ConnId, Event, Now, Outcome, SendOp, Wire};
use std::sync::Arc;

/// Sends of one batch: what one submission to a ring takes.
const BATCH_MAX: usize = 1_024;
/// Sends of one turn: after that, sockets are read again before the rest goes out.
const SENDS_MAX: usize = 8_192;
/// Bytes assembled for one batch: more connections wait for the next, so that slow readers that come back together do
/// not have all their backlogs copied at once.
const SCRATCH_BYTES_MAX: usize = 8 << 20;
/// What one connection that is behind gets in one turn.
const CATCH_UP_BYTES_MAX: usize = 1 << 20;

impl ShardCore {
    /// Queues a frame that only this connection gets.
    pub(super) fn queue(&mut self, slot: usize, queued: Queued) {
        let frame = self.outgoing.turn.add(queued);
        self.queue_frame(slot, frame);
    }

    pub(super) fn queue_json(&mut self, slot: usize, json: &[u8]) {
        self.queue(slot, Queued::reply(Prepared::text(json)));
    }

    /// Queues a frame of this turn's log.
    pub(super) fn queue_frame(&mut self, slot: usize, frame: u32) {
        self.queue_run(slot, Run { first: frame, count: 1 });
    }

    /// Queues neighbours of this turn's log; nothing follows our last word.
    pub(super) fn queue_run(&mut self, slot: usize, run: Run) {
        let conn = &mut self.connections[slot];
        if conn.phase == Phase::Closing {
            return;
        }
        if conn.backlog.is_none() {
            return self.outgoing.turn.link(slot as u32, conn, run);
        }
        for frame in run.first..run.first + run.count {
            self.queue_behind(slot, frame);
            // It may just have been closed as too slow.
            if self.connections[slot].phase == Phase::Closing {
                return;
            }
        }
    }

    fn queue_behind(&mut self, slot: usize, frame: u32) {
        let bounds = self.bounds(slot);
        let conn = &mut self.connections[slot];
        let queued = self.outgoing.turn.frame(frame).to(conn.window(), &mut self.outgoing.compressor);
        self.make_room(Backlog::cost(&queued));
        let conn = &mut self.connections[slot];
        if conn.phase == Phase::Closing {
            // It was the one to pay.
            return;
        }
        let Some(backlog) = conn.backlog.as_mut() else { return };
        let outcome = backlog.push(queued, bounds, &self.hub.counters);
        let bytes = backlog.bytes();
        self.hub.set_backlog(self.connections.id(slot), bytes);
        if outcome == Err(TooSlow) {
            self.close_slow(slot);
        }
    }

    fn bounds(&self, slot: usize) -> Bounds {
        let limits = &self.hub.rules.limits;
        Bounds {
            soft_bytes: limits.outbox_soft_bytes,
            hard_bytes: limits.outbox_hard_bytes,
            resumable: self.connections[slot].has(flag::VERSION_1),
        }
    }

    /// Sends what this turn queued.
    pub fn flush(&mut self, wire: &mut dyn Wire, now: Now) {
        self.flush_since(0, wire, now);
    }

    /// Connections that something is queued for.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outgoing.turn.dirty.len()
    }

    /// Sends at once what was queued since [`Self::queued`] was `first`, to connections that nothing was queued for
    /// before: for a driver that can answer a request best while it is handed in.
    pub fn flush_since(&mut self, first: usize, wire: &mut dyn Wire, now: Now) {
        self.now = now;
        self.outgoing.budget.is_flushing = true;
        let (mut budget, mut done) = (SENDS_MAX, first);
        // What goes on stands behind the rest of the list, so nothing is moved within it.
        while done < self.outgoing.turn.dirty.len() && (budget > 0 || self.outgoing.turn.is_long()) {
            let planned = self.plan_batch(done, wire.takes_parts());
            budget = budget.saturating_sub(planned);
            done += planned;
            self.send_batch(wire);
        }
        self.outgoing.turn.end(first..done);
        self.outgoing.budget.is_flushing = false;
        self.make_room(0);
        self.end_leaving();
    }

    /// Whether the turn's budget ran out before everything was sent.
    #[must_use]
    pub fn more_to_flush(&self) -> bool {
        !self.outgoing.turn.dirty.is_empty()
    }

    /// The kernel has room again.
    pub fn writable(&mut self, id: ConnId) {
        let Some(slot) = self.connections.find(id) else { return };
        let conn = &mut self.connections[slot];
        conn.clear(flag::BLOCKED);
        if conn.backlog.is_some() {
            self.outgoing.turn.mark(slot as u32, conn);
        }
    }

    /// Plans a send for each of the list from `first` on, as far as a batch and the scratch reach; returns how many
    /// connections that is, at least one.
    fn plan_batch(&mut self, first: usize, parts: bool) -> usize {
        self.outgoing.turn.begin_batch();
        let end = self.outgoing.turn.dirty.len().min(first + BATCH_MAX);
        for place in first..end {
            if self.outgoing.turn.scratch.len() >= SCRATCH_BYTES_MAX {
                return place - first;
            }
            let slot = self.outgoing.turn.dirty[place];
            let conn = &mut self.connections[slot as usize];
            if !conn.has(flag::DIRTY) {
                continue;
            }
            conn.clear(flag::DIRTY);
            if conn.has(flag::BLOCKED) {
                self.fall_behind(slot as usize, 0, 0);
            } else if let Some(backlog) = conn.backlog.as_mut() {
                let start = self.outgoing.turn.scratch.len();
                backlog.fill(
                    &mut self.outgoing.turn.scratch,
                    CATCH_UP_BYTES_MAX,
                    parts,
                    self.now.wall_ms,
                    &self.hub.counters,
                );
                self.outgoing.turn.plan_backlog(slot, start);
            } else if conn.pending_head != NOTHING {
                let conn = &self.connections[slot as usize];
                self.outgoing.turn.plan(slot, conn, &mut self.outgoing.compressor);
            }
        }
        end - first
    }

    fn send_batch(&mut self, wire: &mut dyn Wire) {
        let sends = std::mem::take(&mut self.outgoing.turn.sends);
        let mut ops: Vec<SendOp<'_>> = sends
            .iter()
            .map(|planned| SendOp {
                conn: self.connections.id(planned.slot as usize),
                bytes: self.outgoing.turn.bytes(planned),
                outcome: Outcome::Gone,
            })
            .collect();
        if ops.is_empty() {
            self.outgoing.turn.sends = sends;
            return;
        }
        wire.send_batch(&mut ops);
        let results: Vec<(usize, Outcome)> = ops.iter().map(|op| (op.bytes.len(), op.outcome)).collect();
        drop(ops);
        add_own(&self.tally().sends, results.len() as u64);
        let mut bytes_out = 0;
        for (planned, (len, outcome)) in sends.iter().zip(&results) {
            let slot = planned.slot as usize;
            match *outcome {
                Outcome::Gone => {
                    if self.connections[slot].close_code == 0 {
                        self.connections[slot].close_code = 1006;
                    }
                    self.end(slot);
                }
                Outcome::Sent(count) => {
                    bytes_out += count as u64;
                    self.sent(planned, *len, count);
                }
            }
        }
        add_own(&self.tally().bytes_out, bytes_out);
        self.outgoing.turn.sends = sends;
        self.outgoing.turn.sends.clear();
    }

    fn sent(&mut self, planned: &Planned, len: usize, count: usize) {
        let slot = planned.slot as usize;
        if let Source::Backlog { .. } = planned.source {
            return self.sent_backlog(slot, len, count);
        }
        if count < len {
            self.connections[slot].set(flag::BLOCKED);
            return self.fall_behind(slot, count, planned.frames);
        }
        let conn = &mut self.connections[slot];
        self.outgoing.turn.take(conn, planned.frames);
        if conn.pending_head == NOTHING {
            self.sent_all(slot);
        } else {
            self.outgoing.turn.mark(slot as u32, conn);
        }
    }

    fn sent_backlog(&mut self, slot: usize, len: usize, count: usize) {
        let id = self.connections.id(slot);
        let conn = &mut self.connections[slot];
        let Some(backlog) = conn.backlog.as_mut() else { return };
        backlog.sent(count, &self.hub.counters);
        let (bytes, is_empty) = (backlog.bytes(), backlog.is_empty());
        if count > 0 {
            // A slow reader that reads is alive, even where we do not read from it meanwhile.
            conn.heard(tick_of(self.now));
        }
        if is_empty {
            conn.backlog = None;
        }
        self.hub.set_backlog(id, if is_empty { 0 } else { bytes });
        if count < len {
            self.connections[slot].set(flag::BLOCKED);
        } else if !is_empty {
            self.outgoing.turn.mark(slot as u32, &mut self.connections[slot]);
        }
        if bytes <= self.hub.rules.limits.outbox_soft_bytes {
            self.unpause(slot);
            self.pump_replays(slot);
        }
        if is_empty && self.connections[slot].phase == Phase::Open {
            self.outputs.events.push(Event::Drained { conn: id });
        }
        if is_empty {
            self.sent_all(slot);
        }
    }

    /// Everything queued is with the kernel.
    fn sent_all(&mut self, slot: usize) {
        self.connections[slot].clear(flag::FRESH);
        if self.connections[slot].has(flag::REPLAYS) {
            self.pump_replays(slot);
        }
        let conn = &self.connections[slot];
        if conn.phase == Phase::Closing && conn.pending_head == NOTHING && conn.backlog.is_none() {
            self.finish_closing(slot);
        }
    }

    /// Moves the pending list to a backlog: the kernel took `sent` bytes of its next send and wants no more now.
    fn fall_behind(&mut self, slot: usize, sent: usize, tried: u32) {
        let conn = &mut self.connections[slot];
        let (turn, compressor, window) = (&self.outgoing.turn, &mut self.outgoing.compressor, conn.window());
        let frames: Vec<Queued> = turn.pending(conn).map(|frame| turn.frame(frame).to(window, compressor)).collect();
        (conn.pending_head, conn.pending_tail) = (NOTHING, NOTHING);
        let mut front_sent = sent;
        let mut whole = 0;
        for queued in frames.iter().take(tried as usize) {
            if front_sent < queued.wire_len() {
                break;
            }
            front_sent -= queued.wire_len();
            whole += 1;
        }
        let mut rest = frames.into_iter().skip(whole);
        if self.connections[slot].backlog.is_none() {
            let Some(first) = rest.next() else { return };
            let backlog = Backlog::start(std::iter::once(first), front_sent, &self.hub.counters);
            self.connections[slot].backlog = Some(Box::new(backlog));
        }
        let bounds = self.bounds(slot);
        let conn = &mut self.connections[slot];
        let Some(backlog) = conn.backlog.as_mut() else { return };
        while let Some(queued) = rest.next() {
            if backlog.push(queued.clone(), bounds, &self.hub.counters) == Ok(()) {
                continue;
            }
            if conn.phase != Phase::Closing {
                return self.close_slow(slot);
            }
            // The last frame is our Close. What does not fit before it is left out from here on: never a hole.
            backlog.push_last(rest.last().unwrap_or(queued), &self.hub.counters);
            break;
        }
        let bytes = self.connections[slot].backlog_bytes();
        self.hub.set_backlog(self.connections.id(slot), bytes);
    }

    /// One frame to a connection that came by name: passed over when it is gone.
    pub(super) fn send_to(&mut self, id: ConnId, frame: u32) {
        if let Some(slot) = self.connections.find(id)
            && matches!(self.connections[slot].phase, Phase::Open | Phase::Finishing)
        {
            add_own(&self.tally().deliveries, 1);
            self.queue_frame(slot, frame);
        }
    }

    pub(super) fn take_command_bytes(&self, frame: &Arc<Prepared>) {
        sub(&self.hub.counters.commands_bytes, frame.wire_len(Form::Plain) as u64);
    }
}

#[cfg(test)]
mod tests;
