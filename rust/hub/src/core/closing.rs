//! The end of a connection as its peer sees it: our Close, in force or behind what is queued, then the socket.

use super::ShardCore;
use super::turn::Turn;
use crate::Release;
use crate::conn::{Phase, flag};
use crate::counters::add;
use crate::prepared::Prepared;
use crate::queued::Queued;
use realtime_protocol::close::{CloseCode, encode_close_payload};
use realtime_protocol::frame::Opcode;

impl ShardCore {
    pub(super) fn close_slow(&mut self, slot: usize) {
        add(&self.hub.counters.closed_slow, 1);
        self.close(slot, CloseCode::SLOW_READER.0, "too slow; come back with your position");
    }

    /// Closes in force: whole frames that wait are dropped, then comes our Close.
    pub(super) fn close(&mut self, slot: usize, code: u16, reason: &str) {
        match self.connections[slot].phase {
            Phase::Free | Phase::Closing => return,
            Phase::Handshake | Phase::Deciding => {
                // No 101 was sent: a Close frame would be noise.
                self.connections[slot].close_code = code;
                return self.end(slot);
            }
            // Without its 101 the client could not read our Close.
            Phase::Open | Phase::Finishing if self.connections[slot].has(flag::FRESH) => {
                return self.say_close(slot, code, reason);
            }
            Phase::Open | Phase::Finishing => {}
        }
        let id = self.connections.id(slot);
        Turn::forget(&mut self.connections[slot]);
        let conn = &mut self.connections[slot];
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
        match self.connections[slot].phase {
            Phase::Open | Phase::Finishing => self.say_close(slot, code, reason),
            _ => self.close(slot, code, reason),
        }
    }

    /// Queues our Close behind what is queued; nothing else follows it.
    pub(super) fn say_close(&mut self, slot: usize, code: u16, reason: &str) {
        let conn = &mut self.connections[slot];
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
                    self.outgoing.turn.mark(slot as u32, conn);
                }
            }
            None => self.queue(slot, close),
        }
        self.stop_queueing(slot);
    }

    /// What is queued now is the last; the connection ends when it is sent and the peer has answered, or by time.
    pub(super) fn stop_queueing(&mut self, slot: usize) {
        let is_refused = self.connections[slot].session.is_none();
        self.end_handshake(slot, is_refused);
        self.drop_head(slot);
        self.drop_unread(slot);
        self.connections[slot].phase = Phase::Closing;
        self.end_phase_in(slot, u64::from(self.hub.rules.limits.close_timeout_s) * 1_000);
        self.unpause(slot);
    }

    pub(super) fn finish_closing(&mut self, slot: usize) {
        let conn = &mut self.connections[slot];
        if conn.has(flag::PEER_CLOSED) {
            self.end(slot);
        } else if !conn.has(flag::SHUT) && (conn.session.is_none() || conn.has(flag::BROKEN)) {
            // An HTTP answer, or a peer whose Close we could not find any more: it reads to the end and goes.
            conn.set(flag::SHUT);
            let id = self.connections.id(slot);
            self.outputs.releases.push(Release::Shutdown(id));
        }
    }
}
