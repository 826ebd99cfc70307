//! `publish` and `history`: what goes into a channel's past, and comes out of it.

use super::ShardCore;
use super::admission::page_milli;
use super::command::{Command, Dispatched, ID_CHARS_MAX};
use crate::channel::{HistoryFor, HistoryRequest};
use crate::channel_name::is_name;
use crate::command::{Publish, Reply};
use crate::compose::Fault;
use crate::counters::add;
use crate::credit::Credit;
use crate::hub::{HISTORY_EVENTS_MAX, PAGE_BYTES_MAX, PAGES_FULL, Pace};
use crate::pattern::Rights;
use crate::rules::Traffic;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What an event of a page is taken for until the page is read: most are shorter, and what was too much comes back.
const EVENT_BYTES_ASSUMED: usize = 4 << 10;

impl ShardCore {
    pub(super) fn publish(&mut self, command: &Command<'_>) -> Dispatched {
        let name = match self.channel_of(command) {
            Ok(name) => name,
            Err(dispatched) => return dispatched,
        };
        let event = match command.member("event").and_then(|value| value.text(command.bytes)) {
            Some(event) if is_name(&event) => event,
            _ => return self.wrong(command, "data.event"),
        };
        let key = match command.member("key").map(|value| value.text(command.bytes)) {
            None => None,
            Some(Some(key)) if key.len() <= ID_CHARS_MAX => Some(Arc::from(&*key)),
            Some(_) => return self.wrong(command, "data.key"),
        };
        if self.hub.rules.reserved_events.contains(&*event) {
            let fault = Fault {
                code: "forbidden",
                message: "The event's name is reserved",
                path: Some("data.event"),
                ..Fault::default()
            };
            return self.refuse_command(command, fault);
        }
        if let Err(dispatched) = self.check_right(command, &name, Rights::PUBLISH, None) {
            return dispatched;
        }
        let data = command.member("data").map_or(&b"null"[..], |value| value.span.of(command.bytes));
        let conn = self.connections.id(command.slot);
        let credit = self.log_credit(command, self.hub.rules.policy_of(&name).durable);
        let publish = Publish {
            ticket: 0,
            channel: name.into(),
            event: (&*event).into(),
            data: data.into(),
            user: self.connections[command.slot].session.as_ref().map(|session| Arc::clone(&session.user)),
            key,
            dedupe: None,
            number: false,
            request: None,
            amends: None,
            notify: false,
            reply: Some(Reply { conn, id: command.boxed_id(), failure: None, credit }),
        };
        let hub = Arc::clone(&self.hub);
        match hub.publish(publish, self.now, &mut self.outputs.events) {
            Pace::On => {}
            Pace::Behind => self.connections[command.slot].hold_back(),
            Pace::Through(shard) => self.hold_through(command.slot, shard),
        }
        Dispatched::OnItsWay
    }

    /// What a command carries to the hub: the credit that it has, or one of its own where it may wait for the log.
    fn log_credit(&mut self, command: &Command<'_>, waits: bool) -> Option<Credit> {
        match command.credit() {
            None if waits => Some(self.connections[command.slot].take_own_credit(command.bytes.len())),
            credit => credit,
        }
    }

    pub(super) fn history(&mut self, command: &Command<'_>) -> Dispatched {
        let name = match self.channel_of(command) {
            Ok(name) => name,
            Err(dispatched) => return dispatched,
        };
        let position = match self.position_of(command) {
            Ok(position) => position,
            Err(path) => return self.wrong(command, path),
        };
        let count = |key: &str| match command.member(key).map(|value| value.count(command.bytes)) {
            None => Ok(None),
            Some(Some(count)) if (1..=HISTORY_EVENTS_MAX).contains(&count) => Ok(Some(count)),
            Some(_) => Err(()),
        };
        let Ok(limit) = count("limit") else { return self.wrong(command, "data.limit") };
        let Ok(last) = count("last") else { return self.wrong(command, "data.last") };
        if let Err(dispatched) = self.check_right(command, &name, Rights::HISTORY, None) {
            return dispatched;
        }
        // A page from memory is made at once and waits for its way out.
        let waiting = self.hub.counters.commands_bytes.load(Ordering::Relaxed) as usize;
        if waiting > self.hub.rules.limits.commands_waiting_bytes_max {
            add(&self.hub.counters.pages_refused, 1);
            return self.refuse_command(command, Fault { channel: Some(&name), ..PAGES_FULL });
        }
        let limit = if position.is_some() { limit } else { last.or(limit) };
        let limit = limit.unwrap_or(100) as usize;
        let (after, epoch) = position.unzip();
        let reserved = page_milli((limit * EVENT_BYTES_ASSUMED).min(PAGE_BYTES_MAX));
        let reserved = self.hub.rules.reserved_milli(reserved);
        if let Err(wait_ms) = self.take_milli(command.slot, Traffic::Commands, reserved) {
            return self.over_rate(command.slot, command.id(), wait_ms, "Too many bytes of history");
        }
        let conn = self.connections.id(command.slot);
        let credit = self.log_credit(command, true);
        let who = HistoryFor::Client { conn, id: command.boxed_id(), credit, reserved };
        let hub = Arc::clone(&self.hub);
        let user = self.connections[command.slot].session.as_ref().map(|session| Arc::clone(&session.user));
        let request = HistoryRequest { who, after, epoch, limit, reader: self.reader(command.slot) };
        hub.history(&name, request, user.as_deref(), self.now, &mut self.outputs.events);
        // One page at a time: what it cost is known behind it, and nobody has a hundred made before the first is paid.
        self.connections[command.slot].hold_back();
        Dispatched::OnItsWay
    }
}
