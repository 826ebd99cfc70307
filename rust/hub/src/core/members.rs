//! The inbox: members come and go, events fan out, replays are pulled, credits come back.

use super::ShardCore;
use super::admission::page_milli;
use super::commands::{Source, readable_id};
use super::output::Run;
use crate::accounts::Full;
use crate::channel::{Channel, Publication};
use crate::compose::{self, Fault};
use crate::conn::{NOTHING, Phase, Subscription, flag};
use crate::counters::{add, add_own, sub};
use crate::hub::{GRANTS_FULL, Pull, Replay, channel_member, confirmation};
use crate::inbox::{Deliver, Join, Resubscribe, ShardMsg};
use crate::log_queue::Reader;
use crate::options::Limits;
use crate::outbox::{Class, Queued, lag_frame};
use crate::pattern::Rights;
use crate::prepared::{Form, Prepared};
use crate::refusal::Refusal;
use crate::{ConnId, Event, Now};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Events that one step of a replay takes.
const REPLAY_EVENTS_MAX: usize = 256;
/// Members of a channel on one shard that Python is told of.
const MEMBERS_TOLD_MAX: usize = 10_000;

const JUST_ENDED: Fault<'static> = Fault {
    code: "unavailable",
    message: "The subscription has just ended; subscribe again",
    path: None,
    channel: None,
    retry_after_ms: None,
};

/// One channel's members on this shard.
#[derive(Debug)]
pub(super) struct LocalChannel {
    channel: Arc<Channel>,
    members: Vec<Member>,
}

/// A connection that gets the channel's events.
#[derive(Debug, Clone, Copy)]
struct Member {
    slot: u32,
    /// Still gets older ones: live events are not queued for it meanwhile.
    replays: bool,
    /// The lowest offset that it has not had.
    next: u64,
}

/// What a subscription takes in its connection and its shard, whose lists may be twice as long as what is in them.
const MEMBERSHIP_BYTES: usize = 2 * (size_of::<Subscription>() + size_of::<Member>());

impl ShardCore {
    /// Does what came from outside since the last turn.
    pub fn run_inbox(&mut self, now: Now) {
        self.now = now;
        let hub = Arc::clone(&self.hub);
        let mut messages = std::mem::take(&mut self.inbox);
        hub.inbox(self.shard).take(&mut messages);
        let mut rest = messages.drain(..).peekable();
        while let Some(message) = rest.next() {
            let ShardMsg::Deliver(first) = message else {
                self.run_caught(message);
                continue;
            };
            // A burst in one channel goes through its members once.
            let mut burst = std::mem::take(&mut self.burst);
            let channel = first.channel;
            burst.push(first);
            let is_next = |next: &ShardMsg| matches!(next, ShardMsg::Deliver(deliver) if deliver.channel == channel);
            while let Some(ShardMsg::Deliver(deliver)) = rest.next_if(is_next) {
                burst.push(deliver);
            }
            self.deliver(channel, &mut burst);
            self.burst = burst;
        }
        drop(rest);
        if messages.capacity() > 1 << 16 {
            messages = Vec::new();
        }
        self.inbox = messages;
    }

    /// A panic over what is meant for one connection ends that connection; anywhere else it ends the engine.
    fn run_caught(&mut self, message: ShardMsg) {
        let Some(conn) = message.conn() else { return self.run(message) };
        if catch_unwind(AssertUnwindSafe(|| self.run(message))).is_err() {
            add(&self.hub.counters.panics, 1);
            self.closed(conn, self.now);
        }
    }

    fn run(&mut self, message: ShardMsg) {
        match message {
            ShardMsg::Deliver(deliver) => self.deliver(deliver.channel, &mut vec![deliver]),
            ShardMsg::Settle { conn, reserved, bytes } => {
                if let Some(slot) = self.find(conn) {
                    self.settle_page(slot, reserved, bytes);
                }
            }
            ShardMsg::Send { conn, frame, credits } => {
                self.take_command_bytes(&frame);
                let frame = self.turn.add(Queued::reply(frame));
                self.send_to(conn, frame);
                self.give_back_to(conn, credits);
            }
            ShardMsg::Done { conn, count } => self.give_back_to(conn, count),
            ShardMsg::Passed { conn, credits } => self.hub.to(conn, ShardMsg::Done { conn, count: credits }),
            ShardMsg::ReadOn { conn } => self.read_on_for_user(conn),
            ShardMsg::GiveUp { conn } => self.give_up_chosen(conn),
            ShardMsg::Evict { conn, why } => self.evictions.push((conn, why)),
            ShardMsg::Join(join) => self.join(join),
            ShardMsg::Resubscribe(again) => self.resubscribe(*again),
            ShardMsg::Leave { conn, channel, reply, credits } => self.leave_now(conn, &channel, reply, credits),
            ShardMsg::NotJoined { conn, channel, reply, credits } => self.not_joined(conn, &channel, reply, credits),
            ShardMsg::SendMany { conns, frame, key } => {
                self.take_command_bytes(&frame);
                let frame = self.turn.add(unnumbered(frame, key));
                for conn in conns {
                    self.send_to(conn, frame);
                }
            }
            ShardMsg::SendAll { frame, key } => {
                self.take_command_bytes(&frame);
                self.send_all(frame, key);
            }
            ShardMsg::PresenceMode { users } => self.set_presence(users.as_deref()),
            ShardMsg::PresenceChange { user, is_online } => self.change_presence(user, is_online),
            ShardMsg::SendUnion { channels, frame, key } => {
                self.take_command_bytes(&frame);
                self.send_union(&channels, frame, key);
            }
            ShardMsg::Members { ticket, channel } => self.tell_members(ticket, channel),
            ShardMsg::Page { conn, channel, next, events } => self.page_in(conn, &channel, next, events),
            ShardMsg::Accept { conn, identity } => self.decided(conn, Ok(*identity)),
            ShardMsg::Renew { conn, id, identity } => {
                if let Some(slot) = self.answerable(conn) {
                    let identity = identity.map(|identity| *identity).ok_or(Refusal::Hook);
                    self.renew(slot, id.as_deref(), identity);
                }
                self.give_back_to(conn, 1);
            }
            ShardMsg::Revoke(revocation) => self.revoke(&revocation),
            ShardMsg::Reject { conn, how } => self.decided(conn, Err(how)),
            ShardMsg::Close { conn, code, reason } => {
                if let Some(slot) = self.find(conn) {
                    self.close(slot, code, &reason);
                }
            }
            ShardMsg::AnnounceDrain { spread_ms } => self.announce_drain(spread_ms),
            ShardMsg::CloseAll { code, reason, over_ms } => self.close_all(code, &reason, over_ms),
            ShardMsg::Grant { conn, channel, rights, raw } => self.granted(conn, channel, rights, raw),
            ShardMsg::Resume { conn, mut raw } => {
                if let Some(slot) = self.answerable(conn) {
                    self.carry_out(slot, &mut raw, Source::Resumed);
                } else {
                    self.give_back_to(conn, 1);
                }
            }
            ShardMsg::Subscribe { conn, channel } => {
                if let Some(slot) = self.answerable(conn) {
                    let _ = self.subscribe_to(slot, &channel, None, None, None, 0);
                }
            }
            ShardMsg::Unsubscribe { conn, channel, code, retryable } => self.evict(conn, &channel, &code, retryable),
            ShardMsg::Skipped { channel, count } => self.tell_skipped(channel, count),
            ShardMsg::LoseMembers { channel } => self.lose_members(channel),
            ShardMsg::MakeRoom => drop(self.collect_room(0)),
            ShardMsg::Look => {
                for slot in 0..self.conns.len() {
                    self.unpause(slot);
                }
            }
        }
    }

    /// A connection whose commands still count.
    fn answerable(&self, conn: ConnId) -> Option<usize> {
        self.find(conn).filter(|&slot| matches!(self.conns[slot].phase, Phase::Open | Phase::Finishing))
    }

    // ---- fan-out

    /// Hands events of one channel to its members; empties `burst`.
    fn deliver(&mut self, channel: u64, burst: &mut Vec<Deliver>) {
        let Some(local) = self.members.get_mut(&channel) else { return burst.clear() };
        let mut members = std::mem::take(&mut local.members);
        let of = Arc::clone(&local.channel);
        let offsets: Vec<u64> = burst.iter().map(|deliver| deliver.offset).collect();
        let mut run = Run { first: 0, count: offsets.len() as u32 };
        let mut states = Vec::new();
        for (place, Deliver { frame, class, read_us, .. }) in burst.drain(..).enumerate() {
            self.fan_outs.begin(read_us);
            let is_state = of.policy.retain.keys > 0 && matches!(class, Class::Latest(_));
            let queued = Queued { frame, class, channel: Some(Arc::clone(&of)), form: Form::Plain };
            let index = self.turn.add(queued);
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
            if !matches!(self.conns[slot].phase, Phase::Open | Phase::Finishing) {
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
        if let Some(local) = self.members.get_mut(&channel) {
            local.members = members;
        }
    }

    /// Counts volatile events that a member does not get while it replays.
    fn skip(&mut self, slot: usize, channel: u64, count: u64) {
        add(&self.hub.counters.dropped_replaying, count);
        if let Some(subscription) = self.conns[slot].subscription(channel) {
            subscription.skipped = subscription.skipped.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// Volatile events were dropped while these members waited for the log.
    fn tell_skipped(&mut self, channel: u64, count: u64) {
        let Some(local) = self.members.get(&channel) else { return };
        let of = Arc::clone(&local.channel);
        let members: Vec<(usize, bool)> =
            local.members.iter().map(|member| (member.slot as usize, member.replays)).collect();
        for (slot, replays) in members {
            if replays {
                self.skip(slot, channel, count);
            } else if matches!(self.conns[slot].phase, Phase::Open | Phase::Finishing) {
                add(&self.hub.counters.dropped_replaying, count);
                self.queue(slot, Queued::reply(lag_frame(Some(&of), count, self.now.wall_ms)));
            }
        }
    }

    /// Takes all members of a channel out, at once: nothing of the channel comes behind what tells them so.
    fn lose_members(&mut self, channel: u64) {
        let Some(local) = self.members.get(&channel) else { return };
        let of = Arc::clone(&local.channel);
        let members: Vec<ConnId> = local.members.iter().map(|member| self.id(member.slot as usize)).collect();
        for conn in members {
            let Some(slot) = self.find(conn) else { continue };
            self.end_lasting(slot, Some(channel));
            let Some(subscription) = self.conns[slot].subscription(channel) else { continue };
            // One that is leaving already, or has asked again behind that, is answered when its turn comes.
            let is_told = subscription.is_wanted && subscription.joining == 0;
            if is_told {
                subscription.is_wanted = false;
            }
            let reply = is_told.then(|| self.unsubscribed(of.name(), "not_recoverable", true));
            self.leave_now(conn, &of, reply, 0);
        }
    }

    fn send_all(&mut self, frame: Arc<Prepared>, key: Option<Arc<str>>) {
        let frame = self.turn.add(unnumbered(frame, key));
        for slot in 0..self.conns.len() {
            let conn = &self.conns[slot];
            let is_json = || self.hub.rules.endpoints[conn.endpoint as usize].mode == crate::options::Mode::Json;
            if conn.phase == Phase::Open && is_json() {
                add_own(&self.tally().deliveries, 1);
                self.queue_frame(slot, frame);
            }
        }
    }

    fn send_union(&mut self, channels: &[u64], frame: Arc<Prepared>, key: Option<Arc<str>>) {
        let local = channels.iter().filter_map(|channel| self.members.get(channel));
        let mut slots: Vec<u32> = local.flat_map(|local| local.members.iter().map(|member| member.slot)).collect();
        slots.sort_unstable();
        slots.dedup();
        // It belongs to none of them: another one may go to others of them, and the newer takes the place of the older.
        let frame = self.turn.add(unnumbered(frame, key));
        for slot in slots {
            add_own(&self.tally().deliveries, 1);
            self.queue_frame(slot as usize, frame);
        }
    }

    /// Tells Python who of this shard is subscribed to a channel.
    fn tell_members(&mut self, ticket: u64, channel: u64) {
        let members = self.members.get(&channel).map_or(&[][..], |local| &local.members);
        let conns = members.iter().take(MEMBERS_TOLD_MAX).map(|member| self.id(member.slot as usize)).collect();
        self.events.push(Event::Members { ticket, conns, total: members.len(), parts: self.hub.shards() });
    }

    // ---- members

    fn join(&mut self, join: Join) {
        let Join { conn, channel, confirm, latest, next, replays, credits } = join;
        let Some(slot) = self.answerable(conn).filter(|_| self.is_asked_for(conn, channel.id)) else {
            // The connection went meanwhile: a join with a stale generation is a leave.
            self.hub.left(&channel, self.shard);
            return self.give_back_to(conn, credits);
        };
        let local = self
            .members
            .entry(channel.id)
            .or_insert_with(|| LocalChannel { channel: Arc::clone(&channel), members: Vec::new() });
        let place = local.members.len() as u32;
        local.members.push(Member { slot: slot as u32, replays, next });
        if let Some(subscription) = self.conns[slot].subscription(channel.id) {
            subscription.member = Some(place);
            subscription.joining = subscription.joining.saturating_sub(1);
        }
        self.queue(slot, Queued { class: Class::Confirmation, ..Queued::reply(confirm) });
        add_own(&self.tally().deliveries, latest.len() as u64);
        for (key, frame) in latest {
            let (class, channel) = (Class::Latest(key), Some(Arc::clone(&channel)));
            self.queue(slot, Queued { frame, class, channel, form: Form::Plain });
        }
        self.give_back(slot, credits);
        if replays && self.find(conn).is_some() {
            self.conns[slot].set(flag::REPLAYS);
            self.pump(slot, &channel);
        }
    }

    /// Confirms a second subscribe. With a position the member goes on from there, as if it had just joined: what it
    /// was to get of an earlier replay is part of this one or was not asked for.
    fn resubscribe(&mut self, again: Resubscribe) {
        let Resubscribe { conn, channel, id, epoch, head, recovered, next, credits } = again;
        let Some(slot) = self.answerable(conn) else { return self.give_back_to(conn, credits) };
        if self.conns[slot].subscription(channel.id).is_none() {
            // It was taken away with all others of the channel when this command was under way.
            let fault = Fault { channel: Some(channel.name()), ..JUST_ENDED };
            self.hub.counters.error_sent(fault.code);
            self.queue_json(slot, &fault.to_json(id.as_deref(), self.now.wall_ms));
            return self.give_back(slot, credits);
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
        self.give_back(slot, credits);
        if !replays || next.is_none() || self.find(conn).is_none() {
            return;
        }
        self.conns[slot].set(flag::REPLAYS);
        // A page that is on its way is not asked for twice: when it comes, the replay goes on from where it has to.
        if self.conns[slot].subscription(channel.id).is_some_and(|subscription| subscription.awaited == 0) {
            self.pump(slot, &channel);
        }
    }

    fn is_asked_for(&self, conn: ConnId, channel: u64) -> bool {
        self.conns[conn.slot()].subscriptions.iter().any(|s| s.channel.id == channel && s.member.is_none())
    }

    fn leave_now(&mut self, conn: ConnId, channel: &Arc<Channel>, reply: Option<Arc<Prepared>>, credits: u16) {
        let Some(slot) = self.find(conn) else { return self.give_back_to(conn, credits) };
        if let Some(subscription) = self.conns[slot].subscription(channel.id) {
            let member = subscription.member.take();
            (subscription.awaited, subscription.skipped) = (0, 0);
            // Asked for again meanwhile: that join comes behind this in the inbox.
            if !subscription.is_wanted && subscription.joining == 0 {
                self.forget_subscription(slot, channel.id);
            }
            if let Some(place) = member {
                self.remove_member(channel.id, place);
                self.hub.left(channel, self.shard);
            }
        }
        if let Some(reply) = reply {
            let frame = self.turn.add(Queued::reply(reply));
            self.send_to(conn, frame);
        }
        self.give_back_to(conn, credits);
    }

    fn not_joined(&mut self, conn: ConnId, channel: &Channel, reply: Arc<Prepared>, credits: u16) {
        let Some(slot) = self.find(conn) else { return self.give_back_to(conn, credits) };
        if self.conns[slot].subscription(channel.id).is_some_and(|subscription| subscription.member.is_none()) {
            self.forget_subscription(slot, channel.id);
        }
        let frame = self.turn.add(Queued::reply(reply));
        self.send_to(conn, frame);
        self.give_back_to(conn, credits);
    }

    fn forget_subscription(&mut self, slot: usize, channel: u64) {
        let subscriptions = &mut self.conns[slot].subscriptions;
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
        let conn = &self.conns[slot];
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
        if let Some(session) = &self.conns[slot].session {
            session.seat.count_channel(begins);
        }
    }

    /// Takes a member out; the last one takes its place.
    pub(super) fn remove_member(&mut self, channel: u64, place: u32) {
        let Some(local) = self.members.get_mut(&channel) else { return };
        local.members.swap_remove(place as usize);
        match local.members.get(place as usize) {
            Some(moved) => {
                let slot = moved.slot as usize;
                if let Some(subscription) = self.conns[slot].subscription(channel) {
                    subscription.member = Some(place);
                }
            }
            None if local.members.is_empty() => {
                self.members.remove(&channel);
            }
            None => {}
        }
    }

    fn evict(&mut self, conn: ConnId, name: &str, code: &str, retryable: bool) {
        let Some(slot) = self.answerable(conn) else { return };
        self.forget_granted(slot, |granted| *granted == *name);
        if !self.conns[slot].subscriptions.iter().any(|s| s.is_wanted && **s.channel.name() == *name) {
            return;
        }
        let reply = self.unsubscribed(name, code, retryable);
        let _ = self.leave(slot, name, reply, 0);
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

    fn granted(&mut self, conn: ConnId, channel: Arc<str>, rights: Rights, mut raw: Box<[u8]>) {
        let Some(slot) = self.answerable(conn) else { return self.give_back_to(conn, 1) };
        if let Err(Full) = self.remember_granted(slot, channel, rights) {
            self.events.push(Event::Carried { conn, goes_on: false });
            let id = readable_id(&raw);
            self.fault(slot, GRANTS_FULL, id.as_deref());
            return self.give_back_to(conn, 1);
        }
        self.carry_out(slot, &mut raw, Source::Granted);
    }

    // ---- replay

    /// Goes on with the replays of a connection whose outbox has room again.
    pub(super) fn pump_replays(&mut self, slot: usize) {
        if !self.conns[slot].has(flag::REPLAYS) {
            return;
        }
        let channels: Vec<Arc<Channel>> = self.conns[slot]
            .subscriptions
            .iter()
            .filter(|s| s.awaited == 0 && self.member(&s.channel, s.member).is_some_and(|member| member.replays))
            .map(|s| Arc::clone(&s.channel))
            .collect();
        if channels.is_empty() && !self.conns[slot].subscriptions.iter().any(|s| s.awaited > 0) {
            self.conns[slot].clear(flag::REPLAYS);
        }
        for channel in channels {
            self.pump(slot, &channel);
        }
    }

    fn member(&self, channel: &Channel, place: Option<u32>) -> Option<&Member> {
        self.members.get(&channel.id)?.members.get(place? as usize)
    }

    fn member_mut(&mut self, slot: usize, channel: &Channel) -> Option<&mut Member> {
        let place = self.conns[slot].subscription(channel.id)?.member?;
        self.members.get_mut(&channel.id)?.members.get_mut(place as usize)
    }

    /// Pulls the next part of a replay, or makes the member live under the channel's lock.
    fn pump(&mut self, slot: usize, channel: &Arc<Channel>) {
        let id = self.id(slot);
        let soft = self.hub.rules.limits.outbox_soft_bytes;
        // Room is what the outbox has below its soft limit: a replay of any length never overflows it.
        if self.conns[slot].backlog_bytes() > soft {
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
                if let Some(subscription) = self.conns[slot].subscription(channel.id) {
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
        let session = self.conns[slot].session.as_ref().filter(|session| !session.user.is_empty());
        session.map_or_else(|| Reader::Conn(self.id(slot)), |session| Reader::User(Arc::clone(&session.user)))
    }

    fn replay_events(&mut self, slot: usize, channel: &Arc<Channel>, events: Vec<Arc<Publication>>) {
        let id = self.id(slot);
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
            let conn = &self.conns[slot];
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
            if self.find(id).is_none() {
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
    fn go_live(&mut self, slot: usize, channel: &Arc<Channel>) {
        let Some(member) = self.member_mut(slot, channel) else { return };
        member.replays = false;
        let Some(subscription) = self.conns[slot].subscription(channel.id) else { return };
        let skipped = std::mem::take(&mut subscription.skipped);
        if skipped > 0 {
            let lag = lag_frame(Some(channel), u64::from(skipped), self.now.wall_ms);
            self.queue(slot, Queued::reply(lag));
        }
    }

    fn page_in(&mut self, conn: ConnId, channel: &Arc<Channel>, next: u64, events: Option<Vec<Arc<Publication>>>) {
        let Some(slot) = self.answerable(conn) else { return };
        let Some(subscription) = self.conns[slot].subscription(channel.id).filter(|s| s.awaited == next) else {
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

    // ---- credits

    pub(super) fn give_back_to(&mut self, conn: ConnId, credits: u16) {
        match self.find(conn) {
            Some(slot) => self.give_back(slot, credits),
            None => self.return_orphans_credits(conn, credits),
        }
    }

    /// Credits come back: reading goes on at half of the limit, and what waited for the last one is done.
    fn give_back(&mut self, slot: usize, credits: u16) {
        if credits == 0 {
            return;
        }
        let limits = &self.hub.rules.limits;
        let (half, bytes_max) = (limits.commands_waiting_max / 2, limits.message_bytes_max);
        self.return_credits(slot, credits);
        let conn = &self.conns[slot];
        if !conn.is_full(half + 1, bytes_max) && !conn.has(flag::HELD) {
            self.read_on(slot);
        }
        self.finish_if_answered(slot);
    }

    /// What stood between a connection and its reading is gone: what was read already comes first.
    pub(super) fn read_on(&mut self, slot: usize) {
        let conn = &self.conns[slot];
        if self.hub.has_stopped_reading() || !conn.has(flag::PAUSED) || conn.phase != Phase::Open {
            return;
        }
        self.unread_in(slot);
        if self.conns[slot].phase == Phase::Open {
            self.unpause(slot);
        }
    }
}

/// An event without an offset that was sent to connections and not published.
fn unnumbered(frame: Arc<Prepared>, key: Option<Arc<str>>) -> Queued {
    let class = key.map_or(Class::Volatile(crate::options::Overflow::DropOldest), Class::Latest);
    Queued { frame, class, channel: None, form: Form::Plain }
}
