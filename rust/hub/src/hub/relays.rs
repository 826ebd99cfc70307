//! Relays on their way to a channel, and the state of those that last: by rule and user, until the last session ends.

use super::holdings::INBOX_FULL;
use super::{CHANNELS_FULL, Hub, RETAINED_FULL};
use crate::channel::{Channel, Lasting, State};
use crate::compose::{ChannelEvent, Fault};
use crate::counters::add;
use crate::portions::Full;
use crate::{ConnId, Now};
use std::sync::Arc;

impl Hub {
    /// Sends a relay: see [`Outcome`].
    ///
    /// # Errors
    /// What the command is answered where there is no memory for what stays of it, or a shard takes no more. Nobody got
    /// it.
    pub(crate) fn relay(&self, sent: Relayed<'_>) -> Result<Outcome, Fault<'static>> {
        let relay = &self.rules.relays[sent.rule as usize];
        let act = |channel: &Arc<Channel>, state: &mut State| {
            let (mut data, mut event_key) = (&*sent.data, sent.key.clone());
            let mut is_over = false;
            let still;
            let mut lasts = false;
            if self.is_refused(state) {
                add(&self.counters.inboxes_refused, 1);
                return Err(INBOX_FULL);
            }
            if let Some(start) = relay.ends {
                let key = (start, Arc::clone(sent.user));
                if let Some(lasting) = state.lasting.get_mut(&key) {
                    lasting.sessions.retain(|conn| *conn != sent.conn);
                    event_key = lasting.key.clone().or(event_key);
                    if lasting.sessions.is_empty() {
                        self.lasted(sent.user, lasting);
                        state.lasting.remove(&key);
                        is_over = true;
                    } else {
                        // Another session of the user goes on: what is told is how things are now.
                        still = lasting.data.clone();
                        data = &*still;
                    }
                } else {
                    is_over = true;
                }
            } else if let Some(undo) = &sent.undo {
                let place = (sent.rule, Arc::clone(sent.user));
                let before = state.lasting.get(&place).map_or(0, |lasting| lasting.cost);
                let cost = Lasting::cost(data, undo, event_key.as_ref());
                self.charge_lasting(sent.user, before, cost).map_err(|Full| RETAINED_FULL)?;
                let lasting = state.lasting.entry(place).or_default();
                lasting.cost = cost;
                lasting.key = event_key.clone();
                lasting.undo = undo.as_slice().into();
                lasting.data = data.into();
                if !lasting.sessions.contains(&sent.conn) {
                    lasting.sessions.push(sent.conn);
                }
                lasts = true;
            }
            let event = ChannelEvent {
                event: &relay.event,
                data,
                time_ms: sent.now.wall_ms,
                user: Some(sent.user),
                channel: channel.name(),
                offset: None,
                request: None,
            };
            let full = self.emit_locked(channel, state, event, event_key, is_over, sent.now);
            Ok(Outcome { lasting: lasts.then(|| Arc::clone(channel)), full })
        };
        let outcome = match self.in_known_channel(sent.channel, act) {
            Some(outcome) => outcome,
            None if relay.ends.is_none()
                && sent.key.is_some()
                && self.rules.policy_of(sent.channel).retain.keys > 0 =>
            {
                self.in_channel(sent.channel, Some(sent.user), act).map_err(|Full| CHANNELS_FULL)?
            }
            None => Ok(Outcome::default()),
        };
        self.make_room_in_rings();
        outcome
    }

    /// A session's relay is over by time, unsubscribe or close; the last session's end is told.
    pub(crate) fn end_relay(&self, channel: &Arc<Channel>, rule: u16, user: &Arc<str>, conn: ConnId, now: Now) {
        let key = (rule, Arc::clone(user));
        let mut state = channel.lock();
        let Some(lasting) = state.lasting.get_mut(&key) else { return };
        lasting.sessions.retain(|session| *session != conn);
        if !lasting.sessions.is_empty() {
            return;
        }
        let Some(lasting) = state.lasting.remove(&key) else { return };
        self.lasted(user, &lasting);
        let event = ChannelEvent {
            event: &self.rules.relays[rule as usize].event,
            data: &lasting.undo,
            time_ms: now.wall_ms,
            user: Some(user),
            channel: channel.name(),
            offset: None,
            request: None,
        };
        let _ = self.emit_locked(channel, &mut state, event, lasting.key, true, now);
        let is_idle = state.is_idle(channel.policy);
        drop(state);
        if is_idle {
            self.remove_idle(channel);
        }
        self.make_room_in_rings();
    }
}

/// What came of a relay.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// It lasts now, so that the shard watches for its end.
    pub lasting: Option<Arc<Channel>>,
    /// A shard for which too much waits.
    pub full: Option<usize>,
}

/// A relay on its way to its channel.
pub(crate) struct Relayed<'a> {
    pub rule: u16,
    pub conn: ConnId,
    pub user: &'a Arc<str>,
    pub channel: &'a str,
    pub data: &'a mut [u8],
    pub undo: Option<Vec<u8>>,
    pub key: Option<Arc<str>>,
    pub now: Now,
}
