//! Fan-out: events of a channel to its members on this shard, and frames to many connections at once.

use super::ShardCore;
use super::turn::Run;
use crate::Event;
use crate::class::Class;
use crate::conn::Phase;
use crate::counters::{add, add_own};
use crate::inbox::Deliver;
use crate::options::{Mode, Overflow};
use crate::outbox::lag_frame;
use crate::prepared::{Form, Prepared};
use crate::queued::Queued;
use std::sync::Arc;

/// Members of a channel on one shard that Python is told of.
const MEMBERS_TOLD_MAX: usize = 10_000;

impl ShardCore {
    /// Hands events of one channel to its members; empties `burst`.
    pub(super) fn deliver(&mut self, channel: u64, burst: &mut Vec<Deliver>) {
        let Some((of, mut members)) = self.memberships.lend(channel) else { return burst.clear() };
        let offsets: Vec<u64> = burst.iter().map(|deliver| deliver.offset).collect();
        let mut run = Run { first: 0, count: offsets.len() as u32 };
        let mut states = Vec::new();
        for (place, Deliver { frame, class, read_us, .. }) in burst.drain(..).enumerate() {
            self.outgoing.fan_outs.begin(read_us);
            let is_state = of.policy.retain.keys > 0 && matches!(class, Class::Latest(_));
            let queued = Queued { frame, class, channel: Some(Arc::clone(&of)), form: Form::Plain };
            let index = self.outgoing.turn.add(queued);
            if is_state {
                states.push(index);
            }
            if place == 0 {
                run.first = index;
            }
        }
        // What is volatile has no place in a replay, and is told by `lag` at its end.
        let skipped = offsets.iter().filter(|offset| **offset == 0).count() - states.len();
        let lowest = offsets.iter().copied().filter(|offset| *offset > 0).min();
        let highest = offsets.iter().copied().max().unwrap_or(0);
        let mut deliveries = 0;
        for member in members.iter_mut().filter(|member| !member.replays || !states.is_empty() || skipped > 0) {
            let slot = member.slot as usize;
            if !matches!(self.connections[slot].phase, Phase::Open | Phase::Finishing) {
                continue;
            }
            if member.replays {
                // It had the states as they were when it came; what is new of them has no place in what it replays.
                for state in &states {
                    deliveries += 1;
                    self.queue_frame(slot, *state);
                }
                self.skip(slot, of.id, skipped as u64);
            } else if lowest.is_none_or(|lowest| lowest >= member.next) {
                deliveries += u64::from(run.count);
                self.queue_run(slot, run);
            } else {
                // Part of the burst came to it by its replay.
                for (place, offset) in offsets.iter().enumerate().filter(|(_, o)| **o == 0 || **o >= member.next) {
                    deliveries += 1;
                    debug_assert!(*offset == 0 || *offset >= member.next);
                    self.queue_frame(slot, run.first + place as u32);
                }
            }
            if !member.replays {
                member.next = member.next.max(highest + 1);
            }
        }
        add_own(&self.tally().deliveries, deliveries);
        self.memberships.put_back(channel, members);
    }

    /// Counts volatile events that a member does not get while it replays.
    fn skip(&mut self, slot: usize, channel: u64, count: u64) {
        add(&self.hub.counters.dropped_replaying, count);
        if let Some(subscription) = self.connections[slot].subscription(channel) {
            subscription.skipped = subscription.skipped.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// Volatile events were dropped while these members waited for the log.
    pub(super) fn tell_skipped(&mut self, channel: u64, count: u64) {
        let Some(of) = self.memberships.channel(channel).cloned() else { return };
        let members = self.memberships.members(channel).iter();
        let members: Vec<(usize, bool)> = members.map(|member| (member.slot as usize, member.replays)).collect();
        for (slot, replays) in members {
            if replays {
                self.skip(slot, channel, count);
            } else if matches!(self.connections[slot].phase, Phase::Open | Phase::Finishing) {
                add(&self.hub.counters.dropped_replaying, count);
                self.queue(slot, Queued::reply(lag_frame(Some(&of), count, self.now.wall_ms)));
            }
        }
    }

    pub(super) fn send_all(&mut self, frame: Arc<Prepared>, key: Option<Arc<str>>) {
        let frame = self.outgoing.turn.add(unnumbered(frame, key));
        for slot in self.connections.slots() {
            let conn = &self.connections[slot];
            let is_json = || self.hub.rules.endpoints[conn.endpoint as usize].mode == Mode::Json;
            if conn.phase == Phase::Open && is_json() {
                add_own(&self.tally().deliveries, 1);
                self.queue_frame(slot, frame);
            }
        }
    }

    pub(super) fn send_union(&mut self, channels: &[u64], frame: Arc<Prepared>, key: Option<Arc<str>>) {
        let members = channels.iter().flat_map(|channel| self.memberships.members(*channel));
        let mut slots: Vec<u32> = members.map(|member| member.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        // It belongs to none of them: another one may go to others of them, and the newer takes the place of the older.
        let frame = self.outgoing.turn.add(unnumbered(frame, key));
        for slot in slots {
            add_own(&self.tally().deliveries, 1);
            self.queue_frame(slot as usize, frame);
        }
    }

    /// Tells Python who of this shard is subscribed to a channel.
    pub(super) fn tell_members(&mut self, ticket: u64, channel: u64) {
        let members = self.memberships.members(channel);
        let conns =
            members.iter().take(MEMBERS_TOLD_MAX).map(|member| self.connections.id(member.slot as usize)).collect();
        self.outputs.events.push(Event::Members { ticket, conns, total: members.len(), parts: self.hub.shards() });
    }
}

/// An event without an offset that was sent to connections and not published.
pub(super) fn unnumbered(frame: Arc<Prepared>, key: Option<Arc<str>>) -> Queued {
    let class = key.map_or(Class::Volatile(Overflow::DropOldest), Class::Latest);
    Queued { frame, class, channel: None, form: Form::Plain }
}
