//! Commands that the app's rules send on: a relay turns round at once, a route goes up to its handler.
//!
//! A relay that lasts ("typing") is kept by its session, and ended by its stop, by time or with the connection.

use super::ShardCore;
use super::command::{Command, Dispatched};
use crate::class::latest_key;
use crate::compose::{self, Fault};
use crate::conn::LastingRelay;
use crate::event::Event;
use crate::hub::{Relayed, TOO_LARGE};
use crate::pattern::Rights;
use crate::relay::{Scope, WrongMember};
use std::sync::Arc;

impl ShardCore {
    pub(super) fn relay(&mut self, command: &Command<'_>, rule: u16) -> Dispatched {
        let hub = Arc::clone(&self.hub);
        let relay = &hub.rules.relays[rule as usize];
        let conn = self.connections.id(command.slot);
        let Some(session) = self.connections[command.slot].session.as_ref() else { return Dispatched::Answered };
        let user = Arc::clone(&session.user);
        let session_id = if relay.names_session { hub.session_id(conn) } else { String::new() };
        let scope = Scope { scanner: command.scanner, bytes: command.bytes, user: &user, session: &session_id };
        let parts = (|| {
            let channel = relay.channel.name(&scope)?;
            let mut data = Vec::with_capacity(64);
            relay.data.write(&scope, &mut data)?;
            let undo = relay.undo.as_ref().map(|undo| {
                let mut json = Vec::with_capacity(64);
                undo.write(&scope, &mut json).map(|()| json)
            });
            let key = relay.latest_by.as_ref().map(|key| key.key(&scope).map(|key| latest_key(&relay.event, &key)));
            Ok::<_, WrongMember>((channel, data, undo.transpose()?, key.transpose()?))
        })();
        let (channel, mut data, undo, key) = match parts {
            Ok(parts) => parts,
            Err(WrongMember(path)) => return self.wrong(command, &path),
        };
        let most = hub.rules.limits.publication_bytes_max;
        if data.len() > most {
            let message = format!(
                "publication of {} bytes exceeds limits.publication_bytes_max={most}; send less at once",
                data.len()
            );
            return self.refuse_command(command, Fault { message: &message, channel: Some(&channel), ..TOO_LARGE });
        }
        if !self.rights(command.slot, &channel).has(Rights::PUBLISH) {
            // The right may be on its way: a subscribe or a refresh just before that Python decides about.
            if self.defer(command) {
                return Dispatched::WentUp;
            }
            if let Err(dispatched) = self.check_right(command, &channel, Rights::PUBLISH, None) {
                return dispatched;
            }
        }
        let sent = Relayed { rule, conn, user: &user, channel: &channel, data: &mut data, undo, key, now: self.now };
        let outcome = match hub.relay(sent) {
            Ok(outcome) => outcome,
            Err(fault) => return self.refuse_command(command, Fault { channel: Some(&channel), ..fault }),
        };
        if let Some(shard) = outcome.full {
            self.hold_through(command.slot, shard);
        }
        if let Some(channel) = outcome.lasting {
            let ends_ms = relay.ends_after_ms.map_or(u64::MAX, |after| self.now.mono_ms + after);
            self.lasts_until(command.slot, LastingRelay { channel, rule, ends_ms });
        } else if let Some(start) = relay.ends {
            self.forget_lasting(command.slot, start, &channel);
        }
        if let Some(id) = command.id() {
            let json = compose::reply("ack", Some(id), self.now.wall_ms, |out| out.extend_from_slice(b"null"));
            self.queue_json(command.slot, &json);
        }
        Dispatched::Answered
    }

    pub(super) fn route(&mut self, command: &Command<'_>, route: u16) -> Dispatched {
        let hub = Arc::clone(&self.hub);
        if let Some(guard) = &hub.rules.guards[route as usize] {
            let channel = match self.guarded(command, guard) {
                Ok(channel) => channel,
                Err(dispatched) => return dispatched,
            };
            // As for a relay: the right may be on its way.
            if !self.rights(command.slot, &channel).has(guard.right) && self.defer(command) {
                return Dispatched::WentUp;
            }
            if let Err(dispatched) = self.check_right(command, &channel, guard.right, guard.failure) {
                return dispatched;
            }
        }
        let conn = self.connections.id(command.slot);
        self.go_up(command.slot, command.held_bytes(), command.is_handed_back());
        let data = command.envelope.data.map(|data| data.span.of(command.bytes).into());
        self.outputs.events.push(Event::Message {
            conn,
            route,
            id: command.boxed_id(),
            data,
            received_ms: self.now.wall_ms,
        });
        Dispatched::WentUp
    }

    pub(super) fn lasts_until(&mut self, slot: usize, relay: LastingRelay) {
        let lasting = &mut self.connections[slot].cold().lasting;
        match lasting.iter_mut().find(|known| known.rule == relay.rule && known.channel.id == relay.channel.id) {
            Some(known) => known.ends_ms = relay.ends_ms,
            None => lasting.push(relay),
        }
        self.look_at(slot);
    }

    /// A stop was relayed: its start does not end by time any more.
    pub(super) fn forget_lasting(&mut self, slot: usize, rule: u16, channel: &str) {
        if let Some(cold) = self.connections[slot].cold.as_deref_mut() {
            cold.lasting.retain(|relay| relay.rule != rule || **relay.channel.name() != *channel);
            self.connections[slot].warm();
        }
    }

    pub(super) fn end_relays_due(&mut self, slot: usize) {
        let now_ms = self.now.mono_ms;
        self.end_relays(slot, |relay| relay.ends_ms <= now_ms);
    }

    /// Ends what the session started: in one channel, or everywhere.
    pub(super) fn end_lasting(&mut self, slot: usize, channel: Option<u64>) {
        self.end_relays(slot, |relay| channel.is_none_or(|id| relay.channel.id == id));
    }

    fn end_relays(&mut self, slot: usize, is_over: impl Fn(&LastingRelay) -> bool) {
        let id = self.connections.id(slot);
        let Some(user) = self.connections[slot].session.as_ref().map(|session| Arc::clone(&session.user)) else {
            return;
        };
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        if cold.lasting.is_empty() {
            return;
        }
        let (over, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut cold.lasting).into_iter().partition(is_over);
        cold.lasting = rest;
        self.connections[slot].warm();
        for relay in over {
            self.hub.end_relay(&relay.channel, relay.rule, &user, id, self.now);
        }
    }
}
