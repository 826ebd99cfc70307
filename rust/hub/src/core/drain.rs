//! The end of the process as clients see it: told ahead, each with its own delay for coming back, then closed.
//!
//! A connection's delay comes from its id alone, so nothing is kept for it, and the close that is spread over the same
//! time comes when the client was told to come back. What opens after the announcement is told with its first frame.

use super::ShardCore;
use crate::ConnId;
use crate::compose;
use crate::conn::Phase;
use crate::options::Mode;

/// How far this shard has got with the end.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// The time over which clients come back, once it was announced.
    spread_ms: Option<u64>,
    closing: Option<Closing>,
}

/// Connections end one by one.
#[derive(Debug)]
struct Closing {
    from_ms: u64,
    over_ms: u64,
    code: u16,
    reason: Box<str>,
}

impl ShardCore {
    /// Tells every open `json` connection when to come back, and those that open from now on.
    /// Whether clients were told that the process ends.
    pub(super) const fn is_draining(&self) -> bool {
        self.notices.drain.spread_ms.is_some()
    }

    pub(super) fn announce_drain(&mut self, spread_ms: u64) {
        self.notices.drain.spread_ms = Some(spread_ms);
        for slot in self.connections.slots() {
            if self.connections[slot].phase == Phase::Open {
                self.tell_of_drain(slot);
            }
        }
    }

    /// Tells a connection that is open when to come back, if the end was announced.
    pub(super) fn tell_of_drain(&mut self, slot: usize) {
        let Some(spread_ms) = self.notices.drain.spread_ms else { return };
        if self.hub.rules.endpoints[self.connections[slot].endpoint as usize].mode != Mode::Json {
            return;
        }
        let delay_ms = self.hub.reconnect_delay_ms(self.connections.id(slot), spread_ms);
        let json = compose::reply("draining", None, self.now.wall_ms, |out| {
            out.extend_from_slice(b"{\"reconnectInMs\":");
            compose::number(out, delay_ms);
            out.push(b'}');
        });
        self.queue_json(slot, &json);
    }

    /// Closes every connection behind what is queued for it: now, or each at its own moment within `over_ms`.
    pub(super) fn close_all(&mut self, code: u16, reason: &str, over_ms: u64) {
        if over_ms > 0 {
            self.notices.drain.closing =
                Some(Closing { from_ms: self.now.mono_ms, over_ms, code, reason: reason.into() });
        }
        for slot in self.connections.slots() {
            match self.connections[slot].phase {
                Phase::Open if over_ms > 0 => self.look_at(slot),
                // It closes by itself within its own time.
                Phase::Finishing if over_ms > 0 => {}
                _ => self.close_behind(slot, code, reason),
            }
        }
    }

    /// When a connection has to end, where all of them do.
    pub(super) fn ends_at_ms(&self, id: ConnId) -> Option<u64> {
        let closing = self.notices.drain.closing.as_ref()?;
        Some(closing.from_ms + self.hub.reconnect_delay_ms(id, closing.over_ms))
    }

    /// Closes a connection whose moment has come; true if it did.
    pub(super) fn end_if_due(&mut self, slot: usize) -> bool {
        if self.ends_at_ms(self.connections.id(slot)).is_none_or(|at_ms| at_ms > self.now.mono_ms) {
            return false;
        }
        if let Some(Closing { code, reason, .. }) = &self.notices.drain.closing {
            let (code, reason) = (*code, reason.clone());
            self.close_behind(slot, code, &reason);
        }
        true
    }
}
