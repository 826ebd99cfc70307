//! `subscribe` and `unsubscribe`: what a client asks for, up to the channel's lock.

use super::ShardCore;
use super::command::{Command, Dispatched};
use crate::channel::SubscribeRequest;
use crate::compose::{self, Fault};
use crate::conn::Subscription;
use crate::counters::add;
use crate::credit::Credit;
use crate::hub::{HISTORY_EVENTS_MAX, channel_member};
use crate::json::{Kind, members};
use crate::pattern::Rights;
use crate::prepared::Prepared;
use crate::queued::Queued;
use std::sync::Arc;

/// Bytes that the epoch of a position may have to be one of ours.
const EPOCH_BYTES_MAX: usize = 64;

impl ShardCore {
    pub(super) fn subscribe(&mut self, command: &Command<'_>) -> Dispatched {
        let named = command.member("channel");
        if named.is_none_or(|value| value.text(command.bytes).is_some_and(|text| text.is_empty())) {
            let message = "Channel is required for subscription";
            return self.refuse_command(
                command,
                Fault { code: "invalid_message", message, path: Some("data.channel"), ..Fault::default() },
            );
        }
        let name = match self.channel_of(command) {
            Ok(name) => name,
            Err(dispatched) => return dispatched,
        };
        let position = match self.position_of(command) {
            Ok(position) => position,
            Err(path) => return self.wrong(command, path),
        };
        let last = match command.member("last").map(|value| value.count(command.bytes)) {
            None => None,
            Some(Some(last)) if last <= HISTORY_EVENTS_MAX => Some(last),
            Some(_) => return self.wrong(command, "data.last"),
        };
        if let Err(dispatched) = self.check_right(command, &name, Rights::SUBSCRIBE, None) {
            return dispatched;
        }
        self.subscribe_to(command.slot, &name, command.boxed_id(), position, last, command.credit())
    }

    pub(super) fn position_of(&self, command: &Command<'_>) -> Result<Option<(u64, Box<str>)>, &'static str> {
        let Some(position) = command.member("position") else { return Ok(None) };
        if position.kind != Kind::Object {
            return Err("data.position");
        }
        let members = members(command.bytes, position.span);
        let find = |key: &str| members.iter().find(|(name, _)| name == key).map(|(_, value)| *value);
        let offset = find("offset").and_then(|value| value.count(command.bytes)).ok_or("data.position.offset")?;
        let epoch = find("epoch").and_then(|value| value.text(command.bytes)).ok_or("data.position.epoch")?;
        // No history has so long a name: none is kept while the command waits.
        let epoch = if epoch.len() <= EPOCH_BYTES_MAX { &epoch } else { "" };
        Ok(Some((offset, epoch.into())))
    }

    /// Makes the connection a member; rights are checked already.
    pub(super) fn subscribe_to(
        &mut self,
        slot: usize,
        name: &str,
        id: Option<Box<[u8]>>,
        position: Option<(u64, Box<str>)>,
        last: Option<u64>,
        credit: Option<Credit>,
    ) -> Dispatched {
        let conn = self.connections.id(slot);
        let state = &self.connections[slot];
        let known = state.subscriptions.iter().position(|subscription| **subscription.channel.name() == *name);
        let wanted = known.map(|place| &state.subscriptions[place]).filter(|subscription| subscription.is_wanted);
        let wanted = wanted.map(|subscription| subscription.channel.id);
        if known.is_none()
            && let Err(message) = self.check_memberships(slot)
        {
            add(&self.hub.counters.members_refused, 1);
            let fault = Fault { code: "limit_reached", message: &message, channel: Some(name), ..Fault::default() };
            self.fault(slot, fault, id.as_deref());
            return Dispatched::Answered;
        }
        // Its answer comes by the inbox: a Close right behind it waits for that.
        let state = &mut self.connections[slot];
        let is_handed_back = credit.is_some();
        let credit = credit.unwrap_or_else(|| state.take_own_credit(0));
        let answered = id.clone();
        let request = SubscribeRequest { conn, id, position, last, again: false, credit: Some(credit) };
        let user = state.session.as_ref().map_or("", |session| &session.user);
        let channel = match self.hub.subscribe(name, user, wanted, request, self.now) {
            Ok(channel) => channel,
            Err(fault) => {
                if !is_handed_back {
                    self.return_credit(slot, Credit::Own);
                }
                self.fault(slot, Fault { channel: Some(name), ..fault }, answered.as_deref());
                return Dispatched::Answered;
            }
        };
        let state = &mut self.connections[slot];
        match known {
            Some(place) => {
                let subscription = &mut state.subscriptions[place];
                subscription.is_wanted = true;
                if subscription.channel.id != channel.id {
                    // The log had failed for the one before: what is on its way about that one is only answered.
                    (subscription.channel, subscription.joining) = (channel, 1);
                } else if wanted.is_none() {
                    subscription.joining += 1;
                }
            }
            None => state.subscriptions.push(Subscription {
                channel,
                is_wanted: true,
                joining: 1,
                member: None,
                skipped: 0,
                awaited: 0,
            }),
        }
        if known.is_none() {
            self.count_membership(slot, true);
        }
        Dispatched::OnItsWay
    }

    pub(super) fn unsubscribe(&mut self, command: &Command<'_>) -> Dispatched {
        let said = command.member("channel");
        if said.is_some_and(|value| value.text(command.bytes).is_none()) {
            return self.wrong(command, "data.channel");
        }
        // What is no channel is left all the same, as the first version did.
        let name = self.named(command);
        let json = compose::reply("unsubscription_confirmed", command.id(), self.now.wall_ms, |out| {
            out.extend_from_slice(b"{\"channel\":");
            match (&name, said) {
                (Some(name), _) => compose::string(out, name),
                (None, Some(value)) => out.extend_from_slice(value.span.of(command.bytes)),
                (None, None) => out.extend_from_slice(b"null"),
            }
            out.push(b'}');
        });
        let name = name.unwrap_or_default();
        let json = if name.is_empty() { json } else { channel_member(json, &name) };
        self.leave(command.slot, &name, Prepared::text(&json), command.credit())
    }

    /// Takes a subscription away, or just answers where there is none.
    pub(super) fn leave(
        &mut self,
        slot: usize,
        name: &str,
        reply: Arc<Prepared>,
        credit: Option<Credit>,
    ) -> Dispatched {
        let conn = self.connections.id(slot);
        let state = &mut self.connections[slot];
        let Some(subscription) = state.subscriptions.iter_mut().find(|s| **s.channel.name() == *name) else {
            self.queue(slot, Queued::reply(reply));
            return Dispatched::Answered;
        };
        // One that is leaving already is answered behind that, in the order of the commands.
        subscription.is_wanted = false;
        let channel = Arc::clone(&subscription.channel);
        self.end_lasting(slot, Some(channel.id));
        let credit = credit.unwrap_or_else(|| self.connections[slot].take_own_credit(0));
        self.hub.unsubscribe(&channel, conn, Some(reply), Some(credit));
        Dispatched::OnItsWay
    }
}
