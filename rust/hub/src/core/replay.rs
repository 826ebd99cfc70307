//! Replay: a member gets what it missed, from the channel's ring or the log, then becomes live.
//!
//! Each step takes as much as the member's outbox has room for below its soft limit; the next one follows when that was
//! sent. A member that is at the head becomes live under the channel's lock, so that nothing is lost or comes twice.

use super::ShardCore;
use super::admission::page_milli;
use super::memberships::Member;
use crate::ConnId;
use crate::channel::{Channel, Publication};
use crate::class::Class;
use crate::conn::{NOTHING, flag};
use crate::counters::add_own;
use crate::hub::{Pull, Replay};
use crate::log_queue::Reader;
use crate::outbox::lag_frame;
use crate::prepared::Form;
use crate::queued::Queued;
use std::sync::Arc;

/// Events that one step of a replay takes.
const REPLAY_EVENTS_MAX: usize = 256;

impl ShardCore {
    /// Goes on with the replays of a connection whose outbox has room again.
    pub(super) fn pump_replays(&mut self, slot: usize) {
        if !self.connections[slot].has(flag::REPLAYS) {
            return;
        }
        let channels: Vec<Arc<Channel>> = self.connections[slot]
            .subscriptions
            .iter()
            .filter(|s| {
                s.awaited == 0 && self.memberships.member(s.channel.id, s.member).is_some_and(|member| member.replays)
            })
            .map(|s| Arc::clone(&s.channel))
            .collect();
        if channels.is_empty() && !self.connections[slot].subscriptions.iter().any(|s| s.awaited > 0) {
            self.connections[slot].clear(flag::REPLAYS);
        }
        for channel in channels {
            self.pump(slot, &channel);
        }
    }

    pub(super) fn member_mut(&mut self, slot: usize, channel: &Channel) -> Option<&mut Member> {
        let place = self.connections[slot].subscription(channel.id)?.member;
        self.memberships.member_mut(channel.id, place)
    }

    /// Pulls the next part of a replay, or makes the member live under the channel's lock.
    pub(super) fn pump(&mut self, slot: usize, channel: &Arc<Channel>) {
        let id = self.connections.id(slot);
        let soft = self.hub.rules.limits.outbox_soft_bytes;
        // Room is what the outbox has below its soft limit: a replay of any length never overflows it.
        if self.connections[slot].backlog_bytes() > soft {
            return;
        }
        let Some(next) = self.member_mut(slot, channel).filter(|member| member.replays).map(|member| member.next)
        else {
            return;
        };
        let pull = Pull { conn: id, next, events_max: REPLAY_EVENTS_MAX, bytes_max: soft, reader: self.reader(slot) };
        match self.hub.replay(channel, pull) {
            Replay::Live => self.go_live(slot, channel),
            Replay::Events(events) => self.replay_events(slot, channel, events),
            Replay::Asked => {
                if let Some(subscription) = self.connections[slot].subscription(channel.id) {
                    subscription.awaited = next;
                }
            }
            Replay::Refused => {
                let name = Arc::clone(channel.name());
                self.evict(id, &name, "overloaded", true);
            }
            Replay::Lost => {
                let name = Arc::clone(channel.name());
                self.evict(id, &name, "not_recoverable", true);
            }
        }
    }

    /// Whose turn it is when a page is read for a connection.
    pub(super) fn reader(&self, slot: usize) -> Reader {
        let session = self.connections[slot].session.as_ref().filter(|session| !session.user.is_empty());
        session
            .map_or_else(|| Reader::Conn(self.connections.id(slot)), |session| Reader::User(Arc::clone(&session.user)))
    }

    fn replay_events(&mut self, slot: usize, channel: &Arc<Channel>, events: Vec<Arc<Publication>>) {
        let id = self.connections.id(slot);
        let soft = self.hub.rules.limits.outbox_soft_bytes;
        let mut queued_bytes = 0;
        for publication in events {
            let Some(member) = self.member_mut(slot, channel) else { return };
            if publication.offset < member.next {
                continue;
            }
            // What is over the room comes from the ring or the log again, when this is sent. One that is larger than
            // all room goes alone, when nothing waits: behind others it could pass the hard limit.
            let len = publication.frame.wire_len(Form::Plain);
            let conn = &self.connections[slot];
            let is_alone = queued_bytes == 0 && conn.backlog.is_none() && conn.pending_head == NOTHING;
            if !is_alone && (len > soft || queued_bytes + len > soft) {
                break;
            }
            let Some(member) = self.member_mut(slot, channel) else { return };
            member.next = publication.offset + 1;
            queued_bytes += len;
            add_own(&self.tally().deliveries, 1);
            let queued = Queued {
                frame: Arc::clone(&publication.frame),
                class: Class::Durable,
                channel: Some(Arc::clone(channel)),
                form: Form::Plain,
            };
            self.queue(slot, queued);
            if self.connections.find(id).is_none() {
                return;
            }
        }
        // What is replayed is never cut off: it is paid for by what is asked next.
        self.overdraw(slot, page_milli(queued_bytes));
        // The next part comes when this one is sent; whoever has everything becomes live now.
        let Some(next) = self.member_mut(slot, channel).map(|member| member.next) else { return };
        if self.hub.is_head(channel, next) {
            self.go_live(slot, channel);
        }
    }

    /// A member has had everything up to the head: what it missed meanwhile is told before what is live.
    pub(super) fn go_live(&mut self, slot: usize, channel: &Arc<Channel>) {
        let Some(member) = self.member_mut(slot, channel) else { return };
        member.replays = false;
        let Some(subscription) = self.connections[slot].subscription(channel.id) else { return };
        let skipped = std::mem::take(&mut subscription.skipped);
        if skipped > 0 {
            let lag = lag_frame(Some(channel), u64::from(skipped), self.now.wall_ms);
            self.queue(slot, Queued::reply(lag));
        }
    }

    pub(super) fn page_in(
        &mut self,
        conn: ConnId,
        channel: &Arc<Channel>,
        next: u64,
        events: Option<Vec<Arc<Publication>>>,
    ) {
        let Some(slot) = self.answerable(conn) else { return };
        let Some(subscription) = self.connections[slot].subscription(channel.id).filter(|s| s.awaited == next) else {
            return;
        };
        subscription.awaited = 0;
        // A second subscribe has moved the member meanwhile: the page is another's.
        if self.member_mut(slot, channel).is_none_or(|member| !member.replays || member.next != next) {
            return self.pump(slot, channel);
        }
        match events {
            Some(events) if events.first().is_some_and(|first| first.offset == next) => {
                self.replay_events(slot, channel, events);
            }
            // Never a part as if it were whole: the subscription is taken away, and the client may ask again.
            found => {
                let code = if found.is_some() { "not_recoverable" } else { "unavailable" };
                let name = Arc::clone(channel.name());
                self.evict(conn, &name, code, true);
            }
        }
    }
}
