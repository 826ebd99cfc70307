//! Publishing: at once where nothing is stored, else by the log, whose answers come back in log order.
//!
//! A durable event is committed, then published under its channel's lock, then acknowledged; a position is therefore
//! what was published and never what was merely stored. Python's `publish`, the shards' commands and relays come here.

use super::holdings::{INBOX_FULL, Retained};
use super::{CHANNELS_FULL, Hub, LOG_FULL, TOO_LARGE};
use crate::Now;
use crate::channel::{Channel, Head, Publication, State, Waiting, Waits};
use crate::channel_name::is_channel_name;
use crate::class::latest_key;
use crate::command::{Publish, Reply};
use crate::compose::{self, ChannelEvent, Fault};
use crate::counters::{add, sub};
use crate::event::{Event, Published};
use crate::inbox::{Inbox, ShardMsg};
use crate::log_queue::{AppendError, AppendedEvent, LogRequest, StoredEvent};
use crate::portions::Full;
use crate::prepared::Prepared;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What may wait for a channel's head before volatile events are no longer kept for those who subscribe.
const WAITING_MAX: usize = 1_024;
/// And how many bytes of them.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Between two lines about events that the log numbered otherwise; each is counted.
const GAP_TOLD_MS: u64 = 1_000;

/// How a publisher goes on.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As before.
    On,
    /// Its user has so much with the log that no more should be read from the connection until that is stored.
    Behind,
    /// Too much waits for this shard: no more should be read from the connection until the shard has taken it.
    Through(usize),
}

impl Hub {
    /// Publishes what is not stored in the log: now. Returns a shard for which too much waits.
    ///
    /// # Errors
    /// There is no memory for the channel that it would make, or a shard takes no more. Nobody got the event.
    fn emit(&self, event: ChannelEvent<'_>, key: Option<Arc<str>>, now: Now) -> Result<Option<usize>, Fault<'static>> {
        let is_over = event.data == b"null";
        let policy = self.rules.policy_of(event.channel);
        let is_state = key.is_some() && policy.retain.keys > 0;
        let is_heard = self.rules.is_heard(event.channel);
        let act = |channel: &Arc<Channel>, state: &mut State| {
            if self.is_refused(state) {
                return Err(INBOX_FULL);
            }
            Ok(self.emit_locked(channel, state, event, key, is_over, now))
        };
        let sent = if policy.history > 0 || is_state && !is_over {
            self.in_channel(event.channel, event.user, act).map_err(|Full| CHANNELS_FULL)?
        } else if is_heard {
            self.in_passing(event.channel, act)
        } else {
            self.in_known_channel(event.channel, act).unwrap_or(Ok(None))
        };
        if is_heard || is_state {
            self.forget_idle(event.channel);
        }
        if policy.history > 0 {
            self.make_room_in_rings();
        }
        sent
    }

    /// Takes a channel out that was made for its order alone.
    fn forget_idle(&self, name: &str) {
        if let Some(channel) = self.directory.find(name) {
            self.remove_idle(&channel);
        }
    }

    pub(super) fn emit_locked(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        mut event: ChannelEvent<'_>,
        key: Option<Arc<str>>,
        is_over: bool,
        now: Now,
    ) -> Option<usize> {
        let mut offset = 0;
        let is_state = key.is_some() && channel.policy.retain.keys > 0;
        if let (true, false, Head::Known(head)) = (channel.policy.history > 0, channel.policy.durable, state.head) {
            offset = head + 1;
            state.head = Head::Known(offset);
            event.offset = Some(offset);
        } else if state.waiting.is_empty() && state.members_total() == 0 && !channel.is_heard && !is_state {
            return None;
        }
        let frame = Prepared::text(&event.to_json());
        let by = Retained { user: event.user, is_over, mono_ms: now.mono_ms };
        self.hear(channel, &frame);
        if offset == 0 && !state.waiting.is_empty() {
            self.deliver_later(channel, state, frame, key, by);
            return None;
        }
        if offset == 0 {
            self.retain(channel, state, &frame, key.as_ref(), by);
        } else {
            state.used_ms = now.mono_ms;
            let publication = Publication { offset, frame: Arc::clone(&frame), since_ms: now.mono_ms };
            self.keep(channel, state, Arc::new(publication));
        }
        self.deliver(channel, state, &frame, offset, key, now.mono_us)
    }

    /// Puts a volatile event behind the subscribes that wait for the head; where there is no room for it, who waits is
    /// told how many it did not get, and a state comes with the confirmation.
    fn deliver_later(
        &self,
        channel: &Channel,
        state: &mut State,
        frame: Arc<Prepared>,
        key: Option<Arc<str>>,
        by: Retained<'_>,
    ) {
        let one = Waiting::Deliver { frame: Arc::clone(&frame), key: key.clone(), is_over: by.is_over };
        let has_room = state.waiting.len() < WAITING_MAX && state.waiting_bytes + one.cost() <= WAITING_BYTES_MAX;
        if has_room && self.wait(state, one, by.user).is_ok() {
            return;
        }
        if key.is_some() && channel.policy.retain.keys > 0 {
            // Who waits gets the state with its confirmation; nothing older of the key may come behind it.
            let is_older = |waits: &mut Waits| matches!(&waits.one, Waiting::Deliver { key: of, .. } if *of == key);
            let older: Vec<Waits> = state.waiting.extract_if(.., is_older).collect();
            for waits in older {
                state.waiting_bytes -= waits.cost;
                self.waited(&waits);
            }
            return self.retain(channel, state, &frame, key.as_ref(), by);
        }
        match state.waiting.last_mut() {
            Some(Waits { one: Waiting::Skipped { count }, .. }) => *count += 1,
            _ => self.must_wait(state, Waiting::Skipped { count: 1 }),
        }
    }

    /// Publishes an event, at once or by the log.
    pub(crate) fn publish(&self, publish: Publish, now: Now, events: &mut Vec<Event>) -> Pace {
        let refused = match self.try_publish(publish, now) {
            Ok(pace) => return pace,
            Err(refused) => refused,
        };
        let (publish, fault) = *refused;
        if fault == INBOX_FULL {
            add(&self.counters.inboxes_refused, 1);
            if publish.reply.is_none() && !publish.notify {
                self.tell_skipped(&publish.channel);
            }
        }
        self.fail(publish, fault, now, events);
        Pace::On
    }

    /// Whoever published the event is not told that nobody got it: those who should have got it are.
    fn tell_skipped(&self, channel: &str) {
        self.in_known_channel(channel, |channel, state| {
            for (inbox, _) in self.inboxes.iter().zip(&state.members).filter(|(_, count)| **count > 0) {
                inbox.skip(channel.id);
            }
        });
    }

    /// Whether an event for the log would be more than a shard takes; what is on its way there goes in.
    fn is_refused_for_log(&self, channel: &str) -> bool {
        self.inboxes.iter().any(Inbox::is_full)
            && self.in_known_channel(channel, |_, state| self.is_refused(state)).unwrap_or(false)
    }

    fn try_publish(&self, publish: Publish, now: Now) -> Result<Pace, Box<(Publish, Fault<'static>)>> {
        if !is_channel_name(&publish.channel) {
            return refused(publish, INVALID_CHANNEL);
        }
        let most = self.rules.limits.publication_bytes_max;
        let replacement = publish.amends.as_ref().and_then(|amends| amends.replacement.as_deref());
        if publish.data.len() > most || replacement.is_some_and(|data| data.len() > most) {
            return refused(publish, TOO_LARGE);
        }
        if self.rules.policy_of(&publish.channel).durable {
            if self.is_refused_for_log(&publish.channel) {
                return refused(publish, INBOX_FULL);
            }
            let bytes = publish.bytes();
            if let Err(wait_ms) = self.charge_stored(publish.user.as_ref(), bytes, now) {
                add(&self.counters.stored_refused, 1);
                return refused(publish, Fault { retry_after_ms: Some(wait_ms), ..STORED_TOO_MUCH });
            }
            let (shares, total) = (&self.bounds.log, &self.counters.log_queue_bytes);
            let Ok(held) = shares.take(publish.user.as_deref(), publish.cost(), total) else {
                self.return_stored(publish.user.as_ref(), bytes, now);
                add(&self.counters.log_queue_refused, 1);
                return refused(publish, LOG_FULL);
            };
            add(&self.counters.log_waiting, 1);
            self.log.push(LogRequest::Append { publish, received_wall_ms: now.wall_ms });
            return Ok(if shares.is_much(held, total) { Pace::Behind } else { Pace::On });
        }
        if publish.amends.is_some() {
            return refused(publish, NO_SUCH_EVENT);
        }
        let event = ChannelEvent {
            event: &publish.event,
            data: &publish.data,
            time_ms: now.wall_ms,
            user: publish.user.as_deref(),
            channel: &publish.channel,
            offset: None,
            request: publish.request.as_deref(),
        };
        let key = publish.key.as_ref().map(|key| latest_key(&publish.event, key));
        let full = match self.emit(event, key, now) {
            Ok(full) => full,
            Err(fault) => return refused(publish, fault),
        };
        self.succeed(publish.reply, b"null", full, now);
        Ok(full.map_or(Pace::On, Pace::Through))
    }

    /// Acknowledges a publish. Where too much waits for the shard `full`, the credits come back through its inbox.
    fn succeed(&self, reply: Option<Reply>, data: &[u8], full: Option<usize>, now: Now) {
        let Some(Reply { conn, id, mut credit, .. }) = reply else { return };
        if let Some(shard) = full
            && let Some(credit) = credit.take()
        {
            self.give_back_through(shard, conn, credit);
        }
        match id {
            Some(id) => {
                let json = compose::reply("ack", Some(&id), now.wall_ms, |out| out.extend_from_slice(data));
                self.send(conn, Prepared::text(&json), credit);
            }
            None => {
                if let Some(credit) = credit {
                    self.to(conn, ShardMsg::Done { conn, credit });
                }
            }
        }
    }

    fn fail(&self, publish: Publish, fault: Fault<'static>, now: Now, events: &mut Vec<Event>) {
        let code: &'static str = fault.code;
        if let Some(reply) = publish.reply {
            let message = reply.failure.as_deref().unwrap_or(fault.message);
            let fault = Fault { message, channel: Some(&publish.channel), ..fault };
            self.counters.error_sent(code);
            self.send(reply.conn, Prepared::text(&fault.to_json(reply.id.as_deref(), now.wall_ms)), reply.credit);
        }
        if publish.notify {
            events.push(Event::Published { ticket: publish.ticket, outcome: Err(code) });
        }
    }

    /// Publishes what the log has stored. What it has changed is changed in the ring under the same lock
    /// ([`Hub::change`]): who replays gets an event as it was and then this one, or as it is now.
    fn append_locked(
        &self,
        channel: &Arc<Channel>,
        state: &mut State,
        stored: &StoredEvent,
        now: Now,
        events: &mut Vec<Event>,
    ) -> Option<usize> {
        // Unknown or still loading: nobody is a member, and the head comes later in the same queue.
        let is_live = matches!(state.head, Head::Known(_));
        if !is_live && !channel.is_heard {
            return None;
        }
        let publication = publication_of(channel, stored);
        self.hear(channel, &publication.frame);
        if let Head::Known(head) = state.head
            && stored.offset != head + 1
        {
            self.lose_order(channel, state, stored.offset, head, now, events);
            self.keep(channel, state, publication);
            None
        } else if is_live {
            state.head = Head::Known(stored.offset);
            self.terms.note(&mut state.starts, stored.offset);
            // The wall clock alone went to the log and back; a millisecond is fine beside a commit.
            let waited_ms = now.wall_ms.saturating_sub(stored.time_ms);
            let read_us = now.mono_us.saturating_sub(waited_ms * 1_000);
            let full = self.deliver(channel, state, &publication.frame, stored.offset, None, read_us);
            self.keep(channel, state, publication);
            full
        } else {
            None
        }
    }

    /// Puts events whose data has changed in the place of what they were, and lets go of all up to `erased_up_to`, among
    /// which are others: they come from the log.
    fn change(&self, channel: &Channel, state: &mut State, amended: &[StoredEvent], erased_up_to: u64) {
        state.changes += u64::from(!amended.is_empty() || erased_up_to > 0);
        state.ring.pop_while(|publication| publication.offset <= erased_up_to, &self.counters);
        for changed in amended {
            state.ring.amend(publication_of(channel, changed), &self.ring_limits, &self.counters);
        }
    }

    /// The log numbered an event otherwise than the channel counted: something else writes to the log, or it is damaged.
    /// Nobody gets the event as if nothing were missing before it. The members lose their subscription and come back
    /// with their positions, which the log answers.
    fn lose_order(
        &self,
        channel: &Channel,
        state: &mut State,
        offset: u64,
        head: u64,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        add(&self.counters.log_gaps, 1);
        state.head = Head::Known(offset);
        self.terms.note(&mut state.starts, offset);
        state.ring.clear(&self.counters);
        for (inbox, _) in self.inboxes.iter().zip(&state.members).filter(|(_, count)| **count > 0) {
            inbox.push(ShardMsg::LoseMembers { channel: channel.id });
        }
        let told_ms = self.gap_told_ms.load(Ordering::Relaxed);
        if told_ms > 0 && now.mono_ms < told_ms + GAP_TOLD_MS {
            return;
        }
        self.gap_told_ms.store(now.mono_ms.max(1), Ordering::Relaxed);
        let message = format!(
            "channel {}: the log gave an event the number {offset} where {} was next; {} subscribers must come back with \
             their positions; see what else writes to the log's file",
            channel.name(),
            head + 1,
            state.members_total(),
        );
        events.push(Event::Warned { message: message.into() });
    }

    /// An append is committed, or failed: publish, then acknowledge, then tell Python.
    pub fn appended(
        &self,
        publish: Publish,
        outcome: Result<AppendedEvent, AppendError>,
        now: Now,
        events: &mut Vec<Event>,
    ) {
        sub(&self.counters.log_waiting, 1);
        self.bounds.log.give(publish.user.as_deref(), publish.cost(), &self.counters.log_queue_bytes);
        if outcome.as_ref().map_or(true, |appended| appended.duplicate) {
            self.return_stored(publish.user.as_ref(), publish.bytes(), now);
        }
        let AppendedEvent { duplicate, stored, amended, erased_up_to } = match outcome {
            Ok(appended) => appended,
            Err(AppendError::NotFound) => {
                return self.fail(publish, NO_SUCH_EVENT, now, events);
            }
            Err(AppendError::Log(_)) => {
                return self.fail(publish, NOT_STORED, now, events);
            }
        };
        let mut full = None;
        if !duplicate {
            add(&self.counters.log_events, 1);
            let act = |channel: &Arc<Channel>, state: &mut State| {
                let full = self.append_locked(channel, state, &stored, now, events);
                self.change(channel, state, &amended, erased_up_to);
                full
            };
            if self.rules.is_heard(&publish.channel) {
                full = self.in_passing(&publish.channel, act);
                self.forget_idle(&publish.channel);
            } else {
                full = self.in_known_channel(&publish.channel, act).flatten();
            }
            self.make_room_in_rings();
        }
        self.succeed(publish.reply, &stored.data, full, now);
        if publish.notify {
            let published = Published { offset: stored.offset, duplicate, data: stored.data };
            events.push(Event::Published { ticket: publish.ticket, outcome: Ok(published) });
        }
    }
}

const INVALID_CHANNEL: Fault<'static> = plain("invalid_message", "Invalid channel name");
/// An event amends one that is not there.
const NO_SUCH_EVENT: Fault<'static> = plain("not_found", "No such event");
const STORED_TOO_MUCH: Fault<'static> = plain("rate_limited", "Too much was stored for this user; try again later");
const NOT_STORED: Fault<'static> = plain("unavailable", "The log could not store it");

const fn plain(code: &'static str, message: &'static str) -> Fault<'static> {
    Fault { code, message, path: None, channel: None, retry_after_ms: None }
}

/// A publish that is answered with an error; boxed, since it is rare and a publish is large.
fn refused(publish: Publish, fault: Fault<'static>) -> Result<Pace, Box<(Publish, Fault<'static>)>> {
    Err(Box::new((publish, fault)))
}

pub(super) fn publication_of(channel: &Channel, stored: &StoredEvent) -> Arc<Publication> {
    let frame = Prepared::text(&frame_of(channel, stored));
    Arc::new(Publication { offset: stored.offset, frame, since_ms: 0 })
}

/// As [`publication_of`], for one member that replays.
pub(super) fn publication_for_one(channel: &Channel, stored: &StoredEvent) -> Arc<Publication> {
    let frame = Prepared::text_for_one(&frame_of(channel, stored));
    Arc::new(Publication { offset: stored.offset, frame, since_ms: 0 })
}

fn frame_of(channel: &Channel, stored: &StoredEvent) -> Vec<u8> {
    let event = ChannelEvent {
        event: &stored.event,
        data: &stored.data,
        time_ms: stored.time_ms,
        user: stored.user.as_deref(),
        channel: channel.name(),
        offset: Some(stored.offset),
        request: stored.request.as_deref(),
    };
    event.to_json()
}
