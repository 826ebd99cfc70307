//! The memory that all slow readers together may hold: who holds most of it pays, and nobody else.
//!
//! A frame is shared by the outboxes that hold it, so each is charged its part: what all are charged is what is held.
//! Where the next frame would pass `outboxes_bytes_max`, those of this shard that are charged at least as much as the
//! mean of all slow readers pay, the largest first: they lose what may be dropped, and who still holds as much then is
//! closed with 4000, until an eighth of the budget is free. Somebody is always above the mean; where that is on
//! another shard, it is asked.
//!
//! Who was closed for it may still read what it has; above the budget and a quarter it is ended, its Close unread.
//!
//! Nobody pays within a flush: a backlog must stay as it was between what it gave to a send and what the kernel took.

use super::ShardCore;
use crate::conn::{Phase, flag};
use crate::inbox::ShardMsg;
use crate::outbox::PLACE_BYTES;
use std::cmp::Reverse;
use std::sync::atomic::Ordering;

/// What those that were closed may still hold beside the others: one part in so many of the budget.
const LEAVING_PART: usize = 4;

/// When the budget is looked at.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// A look at all slow readers is worth it again above this: what is left may be leaving already.
    look_from: usize,
    pub(super) is_flushing: bool,
}

impl ShardCore {
    /// Makes room in the budget for so many bytes more, at the cost of those that hold most.
    pub(super) fn make_room(&mut self, more: usize) {
        let wanted = self.outbox_bytes() + more;
        let most = self.hub.rules.limits.outboxes_bytes_max;
        if wanted <= most {
            self.outgoing.budget.look_from = 0;
            return;
        }
        if self.outgoing.budget.is_flushing || wanted <= self.outgoing.budget.look_from {
            return;
        }
        if self.collect_room(more) {
            self.hub.elsewhere(self.connections.shard(), || ShardMsg::MakeRoom);
        }
        self.outgoing.budget.look_from = self.outbox_bytes().max(most) + most / 32;
    }

    /// Lets those of this shard pay that hold more than others; true where that was not enough.
    pub(super) fn collect_room(&mut self, more: usize) -> bool {
        let most = self.hub.rules.limits.outboxes_bytes_max;
        let goal = most - most / 8;
        let (behind, all) = self.hub.behind_on(self.connections.shard());
        let mean = self.outbox_bytes().min(most) / all.max(1);
        // What those hold that end already: it goes with them, and nobody else has to pay for it.
        let mut leaving = 0;
        let mut holders = Vec::with_capacity(behind.len());
        for id in behind {
            let Some(slot) = self.connections.find(id) else { continue };
            let Some(backlog) = &self.connections[slot].backlog else { continue };
            match self.connections[slot].phase {
                Phase::Closing => leaving += backlog.part(),
                _ => holders.push((Reverse(backlog.part()), slot)),
            }
        }
        holders.sort_unstable();
        let is_over = |shard: &Self, leaving: usize| (shard.outbox_bytes() + more).saturating_sub(leaving) > goal;
        for (Reverse(part), slot) in holders {
            // The parts are rounded down.
            if part + PLACE_BYTES < mean || !is_over(self, leaving) {
                break;
            }
            let resumable = self.connections[slot].has(flag::VERSION_1);
            while is_over(self, leaving)
                && let Some(backlog) = &mut self.connections[slot].backlog
                && backlog.drop_quarter(resumable, &self.hub.counters)
            {}
            let bytes = self.connections[slot].backlog_bytes();
            self.hub.set_backlog(self.connections.id(slot), bytes);
            // Who has little left has paid.
            let part = self.connections[slot].backlog.as_ref().map_or(0, |backlog| backlog.part());
            if part + PLACE_BYTES >= mean && is_over(self, leaving) {
                self.close_slow(slot);
                leaving += self.connections[slot].backlog.as_ref().map_or(0, |backlog| backlog.part());
            }
        }
        is_over(self, leaving)
    }

    /// Ends those of this shard that were told to go and still hold what they do not read, the largest first, until all
    /// is within the budget and a quarter: a frame of which the kernel has a part cannot be taken back, and whoever has
    /// one would hold it until the time for its Close is over. Behind a flush, where no list of members is gone through.
    pub(super) fn end_leaving(&mut self) {
        let most = self.hub.rules.limits.outboxes_bytes_max;
        let most = most + most / LEAVING_PART;
        if self.outbox_bytes() <= most {
            return;
        }
        let (behind, _) = self.hub.behind_on(self.connections.shard());
        let leaving = behind.into_iter().filter_map(|id| {
            let slot = self.connections.find(id)?;
            let conn = &self.connections[slot];
            let part = conn.backlog.as_ref().filter(|_| conn.phase == Phase::Closing)?.part();
            Some((Reverse(part), slot))
        });
        let mut leaving: Vec<_> = leaving.collect();
        leaving.sort_unstable();
        for (_, slot) in leaving {
            if self.outbox_bytes() <= most {
                return;
            }
            self.end(slot);
            // With it went what the last look found to be leaving.
            self.outgoing.budget.look_from = 0;
        }
    }

    fn outbox_bytes(&self) -> usize {
        self.hub.counters.outbox_bytes.load(Ordering::Relaxed) as usize
    }
}
