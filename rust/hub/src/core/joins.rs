//! Subscriptions begin and end: what a channel has decided about a connection, in the order of the inbox.

use super::ShardCore;
use super::command::{Source, readable_id};
use super::memberships::{MEMBERSHIP_BYTES, Member};
use crate::accounts::Full;
use crate::channel::Channel;
use crate::class::Class;
use crate::compose::{self, Fault};
use crate::conn::flag;
use crate::counters::{add, add_own, sub};
use crate::credit::Credit;
use crate::hub::{GRANTS_FULL, channel_member, confirmation};
use crate::inbox::{Join, Resubscribe};
use crate::options::Limits;
use crate::pattern::Rights;
use crate::prepared::{Form, Prepared};
use crate::queued::Queued;
use crate::{ConnId, Event};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const JUST_ENDED: Fault<'static> = Fault {
    code: "unavailable",
    message: "The subscription has just ended; subscribe again",
    path: None,
    channel: None,
    retry_after_ms: None,
};

impl ShardCore {
    pub(super) fn join(&mut self, join: Join) {
        let Join { conn, channel, confirm, latest, next, replays, credit } = join;
        let Some(slot) = self.answerable(conn).filter(|_| self.is_asked_for(conn, channel.id)) else {
            // The connection went meanwhile: a join with a stale generation is a leave.
            self.hub.left(&channel, self.connections.shard());
            return self.give_back_to(conn, credit);
        };
        let place = self.memberships.join(&channel, Member { slot: slot as u32, replays, next });
        if let Some(subscription) = self.connections[slot].subscription(channel.id) {
            subscription.member = Some(place);
            subscription.joining = subscription.joining.saturating_sub(1);
        }
        self.queue(slot, Queued { class: Class::Confirmation, ..Queued::reply(confirm) });
        add_own(&self.tally().deliveries, latest.len() as u64);
        for (key, frame) in latest {
            let (class, channel) = (Class::Latest(key), Some(Arc::clone(&channel)));
            self.queue(slot, Queued { frame, class, channel, form: Form::Plain });
        }
        self.give_back_to(conn, credit);
        if replays && self.connections.find(conn).is_some() {
            self.connections[slot].set(flag::REPLAYS);
            self.pump(slot, &channel);
        }
    }

    /// Confirms a second subscribe. With a position the member goes on from there, as if it had just joined: what it
    /// was to get of an earlier replay is part of this one or was not asked for.
    pub(super) fn resubscribe(&mut self, again: Resubscribe) {
        let Resubscribe { conn, channel, id, epoch, head, recovered, next, credit } = again;
        let Some(slot) = self.answerable(conn) else { return self.give_back_to(conn, credit) };
        if self.connections[slot].subscription(channel.id).is_none() {
            // It was taken away with all others of the channel when this command was under way.
            let fault = Fault { channel: Some(channel.name()), ..JUST_ENDED };
            self.hub.counters.error_sent(fault.code);
            self.queue_json(slot, &fault.to_json(id.as_deref(), self.now.wall_ms));
            return self.give_back_to(conn, credit);
        }
        let numbers = channel.policy.numbers();
        let mut before = next.map_or(head, |next| next - 1);
        let mut replays = false;
        if let Some(member) = self.member_mut(slot, &channel) {
            match next {
                Some(next) => (member.next, member.replays) = (next, next <= head),
                None if numbers => before = member.next - 1,
                None => {}
            }
            replays = member.replays;
        }
        // A member that has just replayed may be ahead of what was the head under the lock.
        let confirm = confirmation(&channel, &epoch, id.as_deref(), before, head.max(before), recovered, self.now);
        self.queue(slot, Queued::reply(confirm));
        if !replays {
            // What it missed of volatile events in a replay that ends here.
            self.go_live(slot, &channel);
        }
        self.give_back_to(conn, credit);
        if !replays || next.is_none() || self.connections.find(conn).is_none() {
            return;
        }
        self.connections[slot].set(flag::REPLAYS);
        // A page that is on its way is not asked for twice: when it comes, the replay goes on from where it has to.
        if self.connections[slot].subscription(channel.id).is_some_and(|subscription| subscription.awaited == 0) {
            self.pump(slot, &channel);
        }
    }

    fn is_asked_for(&self, conn: ConnId, channel: u64) -> bool {
        self.connections[conn.slot()].subscriptions.iter().any(|s| s.channel.id == channel && s.member.is_none())
    }

    pub(super) fn leave_now(
        &mut self,
        conn: ConnId,
        channel: &Arc<Channel>,
        reply: Option<Arc<Prepared>>,
        credit: Option<Credit>,
    ) {
        let Some(slot) = self.connections.find(conn) else { return self.give_back_to(conn, credit) };
        if let Some(subscription) = self.connections[slot].subscription(channel.id) {
            let member = subscription.member.take();
            (subscription.awaited, subscription.skipped) = (0, 0);
            // Asked for again meanwhile: that join comes behind this in the inbox.
            if !subscription.is_wanted && subscription.joining == 0 {
                self.forget_subscription(slot, channel.id);
            }
            if let Some(place) = member {
                self.memberships.leave(channel.id, place, &mut self.connections);
                self.hub.left(channel, self.connections.shard());
            }
        }
        if let Some(reply) = reply {
            let frame = self.outgoing.turn.add(Queued::reply(reply));
            self.send_to(conn, frame);
        }
        self.give_back_to(conn, credit);
    }

    pub(super) fn not_joined(&mut self, conn: ConnId, channel: &Channel, reply: Arc<Prepared>, credit: Option<Credit>) {
        let Some(slot) = self.connections.find(conn) else { return self.give_back_to(conn, credit) };
        if self.connections[slot].subscription(channel.id).is_some_and(|subscription| subscription.member.is_none()) {
            self.forget_subscription(slot, channel.id);
        }
        let frame = self.outgoing.turn.add(Queued::reply(reply));
        self.send_to(conn, frame);
        self.give_back_to(conn, credit);
    }

    fn forget_subscription(&mut self, slot: usize, channel: u64) {
        let subscriptions = &mut self.connections[slot].subscriptions;
        let before = subscriptions.len();
        subscriptions.retain(|subscription| subscription.channel.id != channel);
        let gone = before - subscriptions.len();
        if subscriptions.is_empty() {
            *subscriptions = Vec::new();
        }
        (0..gone).for_each(|_| self.count_membership(slot, false));
    }

    /// Whether the connection may subscribe to one channel more.
    ///
    /// # Errors
    /// What there is too much of.
    pub(super) fn check_memberships(&self, slot: usize) -> Result<(), String> {
        let limits = &self.hub.rules.limits;
        let Limits { channels_per_session_max, channels_per_user_max, members_bytes_max, .. } = limits;
        let conn = &self.connections[slot];
        if conn.subscriptions.len() >= *channels_per_session_max {
            return Err(format!(
                "More than {channels_per_session_max} channels of one connection (limits.channels_per_session_max); \
                 unsubscribe from some"
            ));
        }
        let of_user = conn.session.as_ref().map_or(0, |session| session.seat.channels_of_user());
        if *channels_per_user_max > 0 && of_user >= *channels_per_user_max {
            return Err(format!(
                "More than {channels_per_user_max} channels of one user, all connections together \
                 (limits.channels_per_user_max); unsubscribe from some"
            ));
        }
        if self.hub.counters.members_bytes.load(Ordering::Relaxed) as usize + MEMBERSHIP_BYTES > *members_bytes_max {
            return Err(
                "All connections together are subscribed to as much as may be (limits.members_bytes_max); try \
                        again later"
                    .into(),
            );
        }
        Ok(())
    }

    /// Counts a subscription that begins, or ends.
    pub(super) fn count_membership(&self, slot: usize, begins: bool) {
        let count = if begins { add } else { sub };
        count(&self.hub.counters.members_bytes, MEMBERSHIP_BYTES as u64);
        if let Some(session) = &self.connections[slot].session {
            session.seat.count_channel(begins);
        }
    }

    pub(super) fn evict(&mut self, conn: ConnId, name: &str, code: &str, retryable: bool) {
        let Some(slot) = self.answerable(conn) else { return };
        self.forget_granted(slot, |granted| *granted == *name);
        if !self.connections[slot].subscriptions.iter().any(|s| s.is_wanted && **s.channel.name() == *name) {
            return;
        }
        let reply = self.unsubscribed(name, code, retryable);
        let _ = self.leave(slot, name, reply, None);
    }

    pub(super) fn unsubscribed(&self, name: &str, code: &str, retryable: bool) -> Arc<Prepared> {
        let json = compose::reply("unsubscribed", None, self.now.wall_ms, |out| {
            out.extend_from_slice(b"{\"channel\":");
            compose::string(out, name);
            out.extend_from_slice(b",\"code\":");
            compose::string(out, code);
            out.extend_from_slice(if retryable { b",\"retryable\":true}" } else { b",\"retryable\":false}" });
        });
        Prepared::text(&channel_member(json, name))
    }

    pub(super) fn granted(&mut self, conn: ConnId, channel: Arc<str>, rights: Rights, mut raw: Box<[u8]>) {
        let Some(slot) = self.answerable(conn) else { return self.give_back_to(conn, Some(Credit::Python(1))) };
        if let Err(Full) = self.remember_granted(slot, channel, rights) {
            self.outputs.events.push(Event::Carried { conn, goes_on: false });
            let id = readable_id(&raw);
            self.fault(slot, GRANTS_FULL, id.as_deref());
            return self.give_back_to(conn, Some(Credit::Python(1)));
        }
        self.carry_out(slot, &mut raw, Source::Granted);
    }

    /// Takes all members of a channel out, at once: nothing of the channel comes behind what tells them so.
    pub(super) fn lose_members(&mut self, channel: u64) {
        let Some(of) = self.memberships.channel(channel).cloned() else { return };
        let members = self.memberships.members(channel).iter();
        let members: Vec<ConnId> = members.map(|member| self.connections.id(member.slot as usize)).collect();
        for conn in members {
            let Some(slot) = self.connections.find(conn) else { continue };
            self.end_lasting(slot, Some(channel));
            let Some(subscription) = self.connections[slot].subscription(channel) else { continue };
            // One that is leaving already, or has asked again behind that, is answered when its turn comes.
            let is_told = subscription.is_wanted && subscription.joining == 0;
            if is_told {
                subscription.is_wanted = false;
            }
            let reply = is_told.then(|| self.unsubscribed(of.name(), "not_recoverable", true));
            self.leave_now(conn, &of, reply, None);
        }
    }
}
