//! Subscribe, unsubscribe and replay: what the channel's lock decides about a member.
//!
//! The shard keeps who is a member; here the lock gives the position and the order. What needs the head of a durable
//! channel waits for it in the channel's state and goes on when the log has answered.

use super::holdings::Retained;
use super::{CHANNELS_FULL, Hub, LOG_FULL, UNREADABLE, channel_member};
use crate::channel::{Channel, Head, Publication, State, SubscribeRequest, Waiting, Waits};
use crate::compose::{self, Fault};
use crate::credit::Credit;
use crate::event::Event;
use crate::inbox::{Join, Resubscribe, ShardMsg};
use crate::log_queue::{Bounds, LogFailure, LogRequest, PagePurpose, PageRequest, Reader};
use crate::portions::Full;
use crate::prepared::Prepared;
use crate::{ConnId, Now};
use std::sync::Arc;

impl Hub {
    /// The head of a channel was read: what waited for it goes on.
    pub fn head_read(
        &self,
        channel: &Arc<Channel>,
        outcome: Result<Bounds, LogFailure>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        match outcome {
            Ok(Bounds { head, tail, starts }) => {
                let mut state = channel.lock();
                state.head = Head::Known(head);
                state.starts = starts;
                state.cut(tail, &self.counters);
                for one in self.take_waiting(&mut state) {
                    self.run_waiting(channel, &mut state, one, now, events);
                }
                drop(state);
                // It may have been made for a question alone.
                self.remove_idle(channel);
            }
            Err(_) => {
                for one in self.give_up(channel) {
                    self.fail_waiting(channel, one, now, events);
                }
            }
        }
    }

    fn run_waiting(&self, channel: &Arc<Channel>, state: &mut State, waits: Waits, now: Now, events: &mut Vec<Event>) {
        match waits.one {
            Waiting::Subscribe(request) => self.subscribe_locked(channel, state, request, now),
            Waiting::Unsubscribe { conn, reply, credit } => {
                self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credit });
            }
            Waiting::History(request) => self.history_locked(channel, state, request, now, events),
            Waiting::Deliver { frame, key, is_over } => {
                let by = Retained { user: waits.user.as_deref(), is_over, mono_ms: now.mono_ms };
                self.retain(channel, state, &frame, key.as_ref(), by);
                let _ = self.deliver(channel, state, &frame, 0, key, now.mono_us);
            }
            Waiting::Skipped { count } => {
                for (inbox, _) in self.inboxes.iter().zip(&state.members).filter(|(_, count)| **count > 0) {
                    inbox.push(ShardMsg::Skipped { channel: channel.id, count });
                }
            }
        }
    }

    fn fail_waiting(&self, channel: &Arc<Channel>, waits: Waits, now: Now, events: &mut Vec<Event>) {
        match waits.one {
            Waiting::Subscribe(SubscribeRequest { conn, id, credit, .. }) => {
                let fault = Fault { channel: Some(channel.name()), ..UNREADABLE };
                self.counters.error_sent(fault.code);
                let reply = Prepared::text(&fault.to_json(id.as_deref(), now.wall_ms));
                self.to(conn, ShardMsg::NotJoined { conn, channel: Arc::clone(channel), reply, credit });
            }
            Waiting::Unsubscribe { conn, reply, credit } => {
                self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credit });
            }
            Waiting::History(request) => self.fail_history(channel.name(), request.who, UNREADABLE, now, events),
            Waiting::Deliver { .. } | Waiting::Skipped { .. } => {}
        }
    }

    /// Takes a subscribe to the channel's lock; the shard keeps the channel for its own list. `known` is the channel
    /// that the session has asked for before: where that one was given up, the name is another channel now and this
    /// is no second subscribe.
    ///
    /// # Errors
    /// What the subscribe is answered where there is no memory for it.
    pub(crate) fn subscribe(
        &self,
        name: &str,
        user: &str,
        known: Option<u64>,
        mut request: SubscribeRequest,
        now: Now,
    ) -> Result<Arc<Channel>, Fault<'static>> {
        let act = |channel: &Arc<Channel>, state: &mut State| {
            request.again = known == Some(channel.id);
            if self.waits_for_head(channel, state) {
                self.wait(state, Waiting::Subscribe(request), Some(user)).map_err(|_| Full)?;
            } else {
                self.subscribe_locked(channel, state, request, now);
            }
            Ok(Arc::clone(channel))
        };
        match self.in_channel(name, Some(user), act) {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(Full)) => Err(LOG_FULL),
            Err(Full) => Err(CHANNELS_FULL),
        }
    }

    /// Whether `next` is above the newest offset: asked under the lock by a member that replays.
    pub(crate) fn is_head(&self, channel: &Channel, next: u64) -> bool {
        matches!(channel.lock().head, Head::Known(head) if next > head)
    }

    /// Whether a position is one of the channel's history as it is now, be it kept or not: its epoch and its offset up to
    /// the head. The head is known.
    pub(super) fn is_of_history(&self, channel: &Channel, state: &State, offset: u64, epoch: &str) -> bool {
        let Head::Known(head) = state.head else { return false };
        let is_current = *epoch == *state.epoch;
        let is_vouched = || channel.policy.durable && self.terms.vouch(&state.starts, epoch, offset);
        channel.policy.numbers() && offset <= head && (is_current || is_vouched())
    }

    /// Whether the head is still to come; asks for it once.
    pub(super) fn waits_for_head(&self, channel: &Arc<Channel>, state: &mut State) -> bool {
        if state.head == Head::Unknown {
            state.head = Head::Loading;
            self.log.push(LogRequest::Head { channel: Arc::clone(channel) });
        }
        state.head == Head::Loading
    }

    fn subscribe_locked(&self, channel: &Arc<Channel>, state: &mut State, request: SubscribeRequest, now: Now) {
        let SubscribeRequest { conn, id, position, last, again, credit } = request;
        let head = if let Head::Known(head) = state.head { head } else { 0 };
        state.trim(channel.policy, now.mono_ms, &self.counters);
        let oldest = state.oldest(channel.policy, head);
        let mut recovered = None;
        let mut next = head + 1;
        if let Some((offset, epoch)) = &position {
            let is_whole = *offset + 1 >= oldest && self.is_of_history(channel, state, *offset, epoch);
            recovered = Some(is_whole);
            if is_whole {
                next = offset + 1;
            }
        } else if let (false, Some(last)) = (again, last) {
            next = (head + 1).saturating_sub(last).max(oldest).min(head + 1);
        }
        if again {
            let next = position.is_some().then_some(next);
            let (channel, epoch) = (Arc::clone(channel), Arc::clone(&state.epoch));
            let again = Resubscribe { conn, channel, id, epoch, head, recovered, next, credit };
            return self.to(conn, ShardMsg::Resubscribe(Box::new(again)));
        }
        let confirm = confirmation(channel, &state.epoch, id.as_deref(), next - 1, head, recovered, now);
        state.members[conn.shard()] += 1;
        state.latest.trim(now.mono_ms, channel.policy.retain, &self.bounds.retained, &self.counters);
        let latest = state.latest.events();
        let join = Join { conn, channel: Arc::clone(channel), confirm, latest, next, replays: next <= head, credit };
        self.to(conn, ShardMsg::Join(join));
    }

    /// Takes an unsubscribe to the channel's lock, so that it comes behind the subscribe before it.
    pub(crate) fn unsubscribe(
        &self,
        channel: &Arc<Channel>,
        conn: ConnId,
        reply: Option<Arc<Prepared>>,
        credit: Option<Credit>,
    ) {
        let mut state = channel.lock();
        if state.waiting.is_empty() {
            self.to(conn, ShardMsg::Leave { conn, channel: Arc::clone(channel), reply, credit });
        } else {
            self.must_wait(&mut state, Waiting::Unsubscribe { conn, reply, credit });
        }
    }

    /// A member is gone: its shard has done it.
    pub(crate) fn left(&self, channel: &Arc<Channel>, shard: usize) {
        let mut state = channel.lock();
        state.members[shard] -= 1;
        let is_idle = state.is_idle(channel.policy);
        drop(state);
        if is_idle {
            self.remove_idle(channel);
        }
    }

    /// What a member that replays gets next, from memory or from the log: as many bytes of those as it has room for.
    pub(crate) fn replay(&self, channel: &Arc<Channel>, pull: Pull) -> Replay {
        let Pull { conn, next, events_max, bytes_max, reader } = pull;
        let mut state = channel.lock();
        match state.head {
            Head::Known(head) if next > head => Replay::Live,
            _ if channel.policy.durable && next <= state.tail => Replay::Lost,
            head => match state.ring.from(next, events_max) {
                Some(found) if !found.is_empty() => Replay::Events(found),
                _ if !channel.policy.durable => Replay::Lost,
                _ => {
                    let page = PageRequest {
                        channel: Arc::clone(channel),
                        after: next - 1,
                        head: if let Head::Known(head) = head { head } else { 0 },
                        limit: events_max,
                        bytes_max,
                        reader,
                        purpose: PagePurpose::Replay { conn, next },
                    };
                    if self.read_locked(&mut state, page).is_err() { Replay::Refused } else { Replay::Asked }
                }
            },
        }
    }
}

/// What a member that replays asks for.
pub(crate) struct Pull {
    pub conn: ConnId,
    /// The first offset.
    pub next: u64,
    pub events_max: usize,
    pub bytes_max: usize,
    pub reader: Reader,
}

/// `subscription_confirmed`. `before` is the offset before the first event that the member gets from now on.
pub(crate) fn confirmation(
    channel: &Channel,
    epoch: &str,
    id: Option<&[u8]>,
    before: u64,
    head: u64,
    recovered: Option<bool>,
    now: Now,
) -> Arc<Prepared> {
    let json = compose::reply("subscription_confirmed", id, now.wall_ms, |out| {
        out.extend_from_slice(b"{\"channel\":");
        compose::string(out, channel.name());
        if channel.policy.numbers() {
            out.extend_from_slice(b",\"position\":");
            compose::position(out, before, epoch);
            out.extend_from_slice(b",\"head\":");
            compose::number(out, head);
        }
        if let Some(recovered) = recovered {
            out.extend_from_slice(if recovered { b",\"recovered\":true" } else { b",\"recovered\":false" });
        }
        if channel.policy.numbers() {
            out.extend_from_slice(b",\"replayed\":");
            compose::number(out, head - before);
        }
        out.push(b'}');
    });
    Prepared::text(&channel_member(json, channel.name()))
}

/// What a member that replays gets.
pub(crate) enum Replay {
    /// It has everything up to the head.
    Live,
    /// The next ones.
    Events(Vec<Arc<Publication>>),
    /// A page of the log comes to the shard's inbox.
    Asked,
    /// Too many pages wait to be read.
    Refused,
    /// It is kept no longer: the ring went on past it and there is no log, or the log let go of it.
    Lost,
}
