//! Out: this turn's frames, who gets which, and the flush.
//!
//! The turn's log holds each frame once; a connection's pending list is a chain of runs of indices into it, in one
//! arena for the shard, so an idle connection holds nothing and a burst in one channel is one link a member. Neighbours with equal lists share the assembled bytes: one big
//! channel costs one assembly and N sends. Only a connection that the kernel refused gets frames of its own
//! ([`Backlog`]).

use super::{ShardCore, tick_of};
use crate::compression::{Compressor, Window};
use crate::conn::{Conn, NOTHING, Phase, flag};
use crate::counters::{add, add_own, sub};
use crate::outbox::{Backlog, Bounds, Queued, TooSlow};
use crate::prepared::{Form, Prepared};
use crate::{ConnId, Event, Now, Outcome, SendOp, Wire};
use realtime_protocol::close::{CloseCode, encode_close_payload};
use realtime_protocol::frame::Opcode;
use std::sync::Arc;

/// Frames of one send.
const FRAMES_MAX: usize = 32;
/// Bytes of one send.
const BYTES_MAX: usize = 64 << 10;
/// Sends of one batch: what one submission to a ring takes.
const BATCH_MAX: usize = 1_024;
/// Sends of one turn: after that, sockets are read again before the rest goes out.
const SENDS_MAX: usize = 8_192;
/// What the turn's log may hold when a turn ends with sends left over; beyond it they go out all the same, since only
/// an empty list of connections lets the log begin anew.
const KEPT_FRAMES_MAX: usize = 4_096;
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Bytes assembled for one batch: more connections wait for the next, so that slow readers that come back together do
/// not have all their backlogs copied at once.
const SCRATCH_BYTES_MAX: usize = 8 << 20;
/// What one connection that is behind gets in one turn.
const CATCH_UP_BYTES_MAX: usize = 1 << 20;

/// Neighbours in the turn's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub first: u32,
    pub count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    run: Run,
    next: u32,
}

/// What is on its way out in this turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    frames: Vec<Queued>,
    /// Bytes of `frames`.
    frame_bytes: usize,
    links: Vec<Link>,
    /// Slots with something to send. One whose connection has ended or was closed stands here until its place comes:
    /// it is not marked then, or for its new owner. Taking it out at once would cost the list for each of many ends.
    dirty: Vec<u32>,
    /// Assembled bytes of one batch.
    scratch: Vec<u8>,
    /// The list assembled last for each window, so that clients of both kinds among each other still share.
    same: [Same; Window::COUNT],
    /// The list being planned.
    list: Vec<Run>,
    sends: Vec<Planned>,
}

/// A pending list, and where its bytes are in the scratch.
#[derive(Debug, Default)]
struct Same {
    list: Vec<Run>,
    bytes: (usize, usize),
}

/// One send of a batch.
#[derive(Debug, Clone, Copy)]
struct Planned {
    slot: u32,
    source: Source,
    /// Frames of the pending list that it covers.
    frames: u32,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Frame(u32, Form),
    Scratch { start: usize, end: usize },
    Backlog { start: usize, end: usize },
}

impl Turn {
    /// Notes a frame for this turn.
    pub(super) fn add(&mut self, queued: Queued) -> u32 {
        self.frame_bytes += queued.wire_len();
        self.frames.push(queued);
        (self.frames.len() - 1) as u32
    }

    fn is_long(&self) -> bool {
        self.frames.len() > KEPT_FRAMES_MAX || self.frame_bytes > KEPT_BYTES_MAX
    }

    pub(super) fn frame(&self, index: u32) -> &Queued {
        &self.frames[index as usize]
    }

    fn link(&mut self, slot: u32, conn: &mut Conn, run: Run) {
        if conn.pending_tail != NOTHING {
            let tail = &mut self.links[conn.pending_tail as usize];
            if tail.run.first + tail.run.count == run.first {
                tail.run.count += run.count;
                return;
            }
        }
        let link = self.links.len() as u32;
        self.links.push(Link { run, next: NOTHING });
        if conn.pending_tail == NOTHING {
            conn.pending_head = link;
        } else {
            self.links[conn.pending_tail as usize].next = link;
        }
        conn.pending_tail = link;
        self.mark(slot, conn);
    }

    fn mark(&mut self, slot: u32, conn: &mut Conn) {
        if !conn.has(flag::DIRTY) {
            conn.set(flag::DIRTY);
            self.dirty.push(slot);
        }
    }

    /// A connection ends: nothing is pending for its slot any more.
    pub(super) fn forget(conn: &mut Conn) {
        conn.clear(flag::DIRTY);
        (conn.pending_head, conn.pending_tail) = (NOTHING, NOTHING);
    }

    fn runs(&self, conn: &Conn) -> impl Iterator<Item = Run> + '_ {
        let mut at = conn.pending_head;
        std::iter::from_fn(move || {
            let link = self.links.get(at as usize)?;
            at = link.next;
            Some(link.run)
        })
    }

    fn pending(&self, conn: &Conn) -> impl Iterator<Item = u32> + '_ {
        self.runs(conn).flat_map(|run| run.first..run.first + run.count)
    }

    /// Takes frames that were sent off the front of a pending list.
    fn take(&mut self, conn: &mut Conn, mut frames: u32) {
        while frames > 0 {
            let link = &mut self.links[conn.pending_head as usize];
            if link.run.count > frames {
                link.run.first += frames;
                link.run.count -= frames;
                return;
            }
            frames -= link.run.count;
            conn.pending_head = link.next;
        }
        if conn.pending_head == NOTHING {
            conn.pending_tail = NOTHING;
        }
    }

    /// Plans the next send of a pending list: the frame itself, bytes assembled for the one before, or new ones.
    fn plan(&mut self, slot: u32, conn: &Conn, compressor: &mut Compressor) {
        let window = conn.window();
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        let (mut frames, mut bytes) = (0, 0);
        'full: for run in self.runs(conn) {
            let mut count = 0;
            for frame in run.first..run.first + run.count {
                let queued = &self.frames[frame as usize];
                let len = queued.frame.wire_len(queued.form_for(window, compressor));
                if frames as usize == FRAMES_MAX || (frames > 0 && bytes + len > BYTES_MAX) {
                    if count > 0 {
                        list.push(Run { first: run.first, count });
                    }
                    break 'full;
                }
                (frames, count, bytes) = (frames + 1, count + 1, bytes + len);
            }
            list.push(Run { first: run.first, count });
        }
        let source = match list[..] {
            [Run { first, count: 1 }] => Source::Frame(first, self.frames[first as usize].form_for(window, compressor)),
            _ => self.assemble(&list, window, compressor),
        };
        self.list = list;
        self.sends.push(Planned { slot, source, frames });
    }

    fn assemble(&mut self, list: &[Run], window: Window, compressor: &mut Compressor) -> Source {
        let same = &mut self.same[usize::from(window.place())];
        if same.list != list {
            let start = self.scratch.len();
            for frame in list.iter().flat_map(|run| run.first..run.first + run.count) {
                let queued = &self.frames[frame as usize];
                self.scratch.extend_from_slice(queued.frame.bytes(queued.form_for(window, compressor)));
            }
            same.list.clear();
            same.list.extend_from_slice(list);
            same.bytes = (start, self.scratch.len());
        }
        let (start, end) = same.bytes;
        Source::Scratch { start, end }
    }

    /// What was assembled is gone from the scratch.
    fn forget_assembled(&mut self) {
        for same in &mut self.same {
            same.list.clear();
        }
    }
}

impl ShardCore {
    /// Queues a frame that only this connection gets.
    pub(super) fn queue(&mut self, slot: usize, queued: Queued) {
        let frame = self.turn.add(queued);
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
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Closing {
            return;
        }
        if conn.backlog.is_none() {
            return self.turn.link(slot as u32, conn, run);
        }
        for frame in run.first..run.first + run.count {
            self.queue_behind(slot, frame);
            // It may just have been closed as too slow.
            if self.conns[slot].phase == Phase::Closing {
                return;
            }
        }
    }

    fn queue_behind(&mut self, slot: usize, frame: u32) {
        let bounds = self.bounds(slot);
        let conn = &mut self.conns[slot];
        let queued = self.turn.frame(frame).to(conn.window(), &mut self.compressor);
        self.make_room(Backlog::cost(&queued));
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Closing {
            // It was the one to pay.
            return;
        }
        let Some(backlog) = conn.backlog.as_mut() else { return };
        let outcome = backlog.push(queued, bounds, &self.hub.counters);
        let bytes = backlog.bytes();
        self.hub.set_backlog(self.id(slot), bytes);
        if outcome == Err(TooSlow) {
            self.close_slow(slot);
        }
    }

    fn bounds(&self, slot: usize) -> Bounds {
        let limits = &self.hub.rules.limits;
        Bounds {
            soft_bytes: limits.outbox_soft_bytes,
            hard_bytes: limits.outbox_hard_bytes,
            resumable: self.conns[slot].has(flag::VERSION_1),
        }
    }

    pub(super) fn close_slow(&mut self, slot: usize) {
        add(&self.hub.counters.closed_slow, 1);
        self.close(slot, CloseCode::SLOW_READER.0, "too slow; come back with your position");
    }

    /// Sends what this turn queued.
    pub fn flush(&mut self, wire: &mut dyn Wire, now: Now) {
        self.flush_since(0, wire, now);
    }

    /// Connections that something is queued for.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.turn.dirty.len()
    }

    /// Sends at once what was queued since [`Self::queued`] was `first`, to connections that nothing was queued for
    /// before: for a driver that can answer a request best while it is handed in.
    pub fn flush_since(&mut self, first: usize, wire: &mut dyn Wire, now: Now) {
        self.now = now;
        self.budget.is_flushing = true;
        let (mut budget, mut done) = (SENDS_MAX, first);
        // What goes on stands behind the rest of the list, so nothing is moved within it.
        while done < self.turn.dirty.len() && (budget > 0 || self.turn.is_long()) {
            let planned = self.plan_batch(done, wire.takes_parts());
            budget = budget.saturating_sub(planned);
            done += planned;
            self.send_batch(wire);
        }
        self.turn.dirty.drain(first..done);
        if self.turn.dirty.is_empty() {
            self.turn.frames.clear();
            self.turn.frame_bytes = 0;
            self.turn.links.clear();
            self.turn.forget_assembled();
            if self.turn.scratch.capacity() > 4 << 20 {
                self.turn.scratch = Vec::new();
            }
            if self.turn.links.capacity() > 1 << 20 {
                self.turn.links = Vec::new();
            }
        }
        self.budget.is_flushing = false;
        self.make_room(0);
        self.end_leaving();
    }

    /// Whether the turn's budget ran out before everything was sent.
    #[must_use]
    pub fn more_to_flush(&self) -> bool {
        !self.turn.dirty.is_empty()
    }

    /// The kernel has room again.
    pub fn writable(&mut self, id: ConnId) {
        let Some(slot) = self.find(id) else { return };
        let conn = &mut self.conns[slot];
        conn.clear(flag::BLOCKED);
        if conn.backlog.is_some() {
            self.turn.mark(slot as u32, conn);
        }
    }

    /// Plans a send for each of the list from `first` on, as far as a batch and the scratch reach; returns how many
    /// connections that is, at least one.
    fn plan_batch(&mut self, first: usize, parts: bool) -> usize {
        self.turn.scratch.clear();
        self.turn.forget_assembled();
        self.turn.sends.clear();
        let end = self.turn.dirty.len().min(first + BATCH_MAX);
        for place in first..end {
            if self.turn.scratch.len() >= SCRATCH_BYTES_MAX {
                return place - first;
            }
            let slot = self.turn.dirty[place];
            let conn = &mut self.conns[slot as usize];
            if !conn.has(flag::DIRTY) {
                continue;
            }
            conn.clear(flag::DIRTY);
            if conn.has(flag::BLOCKED) {
                self.fall_behind(slot as usize, 0, 0);
            } else if let Some(backlog) = conn.backlog.as_mut() {
                let start = self.turn.scratch.len();
                backlog.fill(&mut self.turn.scratch, CATCH_UP_BYTES_MAX, parts, self.now.wall_ms, &self.hub.counters);
                let end = self.turn.scratch.len();
                if end > start {
                    self.turn.sends.push(Planned { slot, source: Source::Backlog { start, end }, frames: 0 });
                }
            } else if conn.pending_head != NOTHING {
                let conn = &self.conns[slot as usize];
                self.turn.plan(slot, conn, &mut self.compressor);
            }
        }
        end - first
    }

    fn send_batch(&mut self, wire: &mut dyn Wire) {
        let sends = std::mem::take(&mut self.turn.sends);
        let mut ops: Vec<SendOp<'_>> = sends
            .iter()
            .map(|planned| SendOp {
                conn: self.id(planned.slot as usize),
                bytes: match planned.source {
                    Source::Frame(frame, form) => self.turn.frames[frame as usize].frame.bytes(form),
                    Source::Scratch { start, end } | Source::Backlog { start, end } => &self.turn.scratch[start..end],
                },
                outcome: Outcome::Gone,
            })
            .collect();
        if ops.is_empty() {
            self.turn.sends = sends;
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
                    if self.conns[slot].close_code == 0 {
                        self.conns[slot].close_code = 1006;
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
        self.turn.sends = sends;
        self.turn.sends.clear();
    }

    fn sent(&mut self, planned: &Planned, len: usize, count: usize) {
        let slot = planned.slot as usize;
        if let Source::Backlog { .. } = planned.source {
            return self.sent_backlog(slot, len, count);
        }
        if count < len {
            self.conns[slot].set(flag::BLOCKED);
            return self.fall_behind(slot, count, planned.frames);
        }
        let conn = &mut self.conns[slot];
        self.turn.take(conn, planned.frames);
        if conn.pending_head == NOTHING {
            self.sent_all(slot);
        } else {
            self.turn.mark(slot as u32, conn);
        }
    }

    fn sent_backlog(&mut self, slot: usize, len: usize, count: usize) {
        let id = self.id(slot);
        let conn = &mut self.conns[slot];
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
            self.conns[slot].set(flag::BLOCKED);
        } else if !is_empty {
            self.turn.mark(slot as u32, &mut self.conns[slot]);
        }
        if bytes <= self.hub.rules.limits.outbox_soft_bytes {
            self.unpause(slot);
            self.pump_replays(slot);
        }
        if is_empty && self.conns[slot].phase == Phase::Open {
            self.events.push(Event::Drained { conn: id });
        }
        if is_empty {
            self.sent_all(slot);
        }
    }

    /// Everything queued is with the kernel.
    fn sent_all(&mut self, slot: usize) {
        self.conns[slot].clear(flag::FRESH);
        if self.conns[slot].has(flag::REPLAYS) {
            self.pump_replays(slot);
        }
        let conn = &self.conns[slot];
        if conn.phase == Phase::Closing && conn.pending_head == NOTHING && conn.backlog.is_none() {
            self.said_last_word(slot);
        }
    }

    /// Moves the pending list to a backlog: the kernel took `sent` bytes of its next send and wants no more now.
    fn fall_behind(&mut self, slot: usize, sent: usize, tried: u32) {
        let conn = &mut self.conns[slot];
        let (turn, compressor, window) = (&self.turn, &mut self.compressor, conn.window());
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
        if self.conns[slot].backlog.is_none() {
            let Some(first) = rest.next() else { return };
            let backlog = Backlog::start(std::iter::once(first), front_sent, &self.hub.counters);
            self.conns[slot].backlog = Some(Box::new(backlog));
        }
        let bounds = self.bounds(slot);
        let conn = &mut self.conns[slot];
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
        let bytes = self.conns[slot].backlog_bytes();
        self.hub.set_backlog(self.id(slot), bytes);
    }

    /// Closes in force: whole frames that wait are dropped, then comes our Close.
    pub(super) fn close(&mut self, slot: usize, code: u16, reason: &str) {
        match self.conns[slot].phase {
            Phase::Free | Phase::Closing => return,
            Phase::Handshake | Phase::Deciding => {
                // No 101 was sent: a Close frame would be noise.
                self.conns[slot].close_code = code;
                return self.end(slot);
            }
            // Without its 101 the client could not read our Close.
            Phase::Open | Phase::Finishing if self.conns[slot].has(flag::FRESH) => {
                return self.say_close(slot, code, reason);
            }
            Phase::Open | Phase::Finishing => {}
        }
        let id = self.id(slot);
        Turn::forget(&mut self.conns[slot]);
        let conn = &mut self.conns[slot];
        if let Some(backlog) = conn.backlog.as_mut() {
            backlog.drop_whole_frames(&self.hub.counters);
            let bytes = backlog.bytes();
            if backlog.is_empty() {
                conn.backlog = None;
            }
            self.hub.set_backlog(id, bytes);
        }
        self.say_close(slot, code, reason);
    }

    /// Closes in order: what is queued goes out first, since it was promised (acknowledgements at the server's end).
    pub(super) fn close_behind(&mut self, slot: usize, code: u16, reason: &str) {
        match self.conns[slot].phase {
            Phase::Open | Phase::Finishing => self.say_close(slot, code, reason),
            _ => self.close(slot, code, reason),
        }
    }

    /// Queues our Close behind what is queued; nothing else follows it.
    pub(super) fn say_close(&mut self, slot: usize, code: u16, reason: &str) {
        let conn = &mut self.conns[slot];
        // The first version's client stops only at 1000: "do not come back" is told by it, with the reason. An answer
        // to the peer's own Close repeats its code all the same.
        let is_final = code >= 4500 && !conn.has(flag::VERSION_1) && !conn.has(flag::PEER_CLOSED);
        let told = CloseCode(if is_final { CloseCode::NORMAL.0 } else { code });
        if conn.close_code == 0 {
            conn.close_code = code;
        }
        let payload = if code == CloseCode::NO_STATUS.0 { Vec::new() } else { encode_close_payload(told, reason) };
        let close = Queued::reply(Prepared::frame(Opcode::Close, &payload));
        match conn.backlog.as_mut() {
            // Whatever is full: refusing it would mean to close for that, and so on without end.
            Some(backlog) => {
                backlog.push_last(close, &self.hub.counters);
                // The room that the kernel told of in this turn is still to be used.
                if !conn.has(flag::BLOCKED) {
                    self.turn.mark(slot as u32, conn);
                }
            }
            None => self.queue(slot, close),
        }
        self.last_word(slot);
    }

    /// What is queued now is the last; the connection ends when it is sent and the peer has answered, or by time.
    pub(super) fn last_word(&mut self, slot: usize) {
        let is_refused = self.conns[slot].session.is_none();
        self.end_handshake(slot, is_refused);
        self.drop_head(slot);
        self.drop_unread(slot);
        self.conns[slot].phase = Phase::Closing;
        self.end_phase_in(slot, u64::from(self.hub.rules.limits.close_timeout_s) * 1_000);
        self.unpause(slot);
    }

    fn said_last_word(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if conn.has(flag::PEER_CLOSED) {
            self.end(slot);
        } else if !conn.has(flag::SHUT) && (conn.session.is_none() || conn.has(flag::BROKEN)) {
            // An HTTP answer, or a peer whose Close we could not find any more: it reads to the end and goes.
            conn.set(flag::SHUT);
            let id = self.id(slot);
            self.releases.push(crate::Release::Shutdown(id));
        }
    }

    /// One frame to a connection that came by name: passed over when it is gone.
    pub(super) fn send_to(&mut self, id: ConnId, frame: u32) {
        if let Some(slot) = self.find(id)
            && matches!(self.conns[slot].phase, Phase::Open | Phase::Finishing)
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
