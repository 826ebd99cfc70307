//! Commands of the `json` endpoints: what the hub answers itself, what turns round, what goes up to Python.

use super::ShardCore;
use super::command::{Command, Dispatched, Source, bytes_units, is_id, printable, readable_id};
use super::input::LONG_UNIT;
use crate::compose::{self, Fault};
use crate::conn::flag;
use crate::counters::add;
use crate::credit::Credit;
use crate::event::Event;
use crate::hub::PYTHON_FULL;
use crate::rules::{Traffic, Verb};
use std::sync::Arc;

pub(super) const INVALID: &str = "Invalid message format";

/// Commands that one `refresh` counts as: a signature of a public key takes a shard far longer than any other command.
const REFRESH_COST: u32 = 10;

impl ShardCore {
    /// Runs a command that Python handed back, and tells Python so.
    ///
    /// Its credit is free only behind `Carried`: with it the connection may be read on, and what that brings up is not
    /// the command that came up again.
    pub(super) fn carry_out(&mut self, slot: usize, raw: &mut [u8], source: Source) {
        let conn = self.connections.id(slot);
        let dispatched = self.command_in(slot, raw, source);
        self.outputs.events.push(Event::Carried { conn, goes_on: dispatched == Dispatched::WentUp });
        if dispatched == Dispatched::Answered {
            self.give_back_to(conn, Some(Credit::Python(1)));
        }
    }

    /// Takes one message of a `json` endpoint. It never reads on: whoever has a credit to give back does so afterwards.
    pub(super) fn command_in(&mut self, slot: usize, bytes: &mut [u8], source: Source) -> Dispatched {
        // Who still owes for long messages has the next one refused unread: its other connections may bring as many.
        if source == Source::Client && bytes.len() >= LONG_UNIT {
            let owes_ms = self.owes_ms(slot);
            if owes_ms > 0 {
                let id = readable_id(bytes);
                return self.over_rate(slot, id.as_deref(), owes_ms, "Too many bytes");
            }
        }
        let mut scanner = std::mem::take(&mut self.reading.scanner);
        let dispatched = match scanner.scan(bytes, self.hub.rules.limits.message_values_max) {
            Err(invalid) => {
                let id = readable_id(bytes);
                self.unreadable(slot, id.as_deref(), invalid.path(bytes).as_deref(), source)
            }
            Ok(envelope) => {
                let command = Command { slot, bytes, envelope, scanner: &scanner, source };
                self.dispatch(&command)
            }
        };
        self.reading.scanner = scanner;
        dispatched
    }

    /// Answers a message that the scanner does not take; it costs as much as a command.
    pub(super) fn unreadable(
        &mut self,
        slot: usize,
        id: Option<&[u8]>,
        path: Option<&str>,
        source: Source,
    ) -> Dispatched {
        match self.take_tokens(slot, Traffic::Commands, u32::from(source == Source::Client)) {
            Ok(()) => self.invalid(slot, id, path),
            Err(wait_ms) => self.over_rate(slot, id, wait_ms, "Too many commands"),
        }
    }

    fn dispatch(&mut self, command: &Command<'_>) -> Dispatched {
        let slot = command.slot;
        let kind = command.envelope.kind.map(|kind| kind.text(command.bytes));
        let verb = kind.as_ref().and_then(Option::as_ref).and_then(|kind| self.hub.rules.verbs.get(&**kind)).copied();
        let is_named = command.envelope.id.is_none_or(|id| is_id(&id, command.bytes));
        if let Err((wait_ms, message)) = self.charge(command, verb)
            && !self.lend(command, verb)
        {
            return self.over_rate(slot, command.id().filter(|_| is_named), wait_ms, message);
        }
        if !is_named {
            return self.invalid(slot, None, Some("id"));
        }
        let kind = match kind {
            None => return self.unknown_type(command, "undefined"),
            Some(None) => return self.invalid(slot, command.id(), Some("type")),
            Some(Some(kind)) => kind,
        };
        let Some(verb) = verb else {
            return self.unknown_type(command, &printable(&kind));
        };
        match verb {
            Verb::Ping => self.ping(command),
            Verb::Relay(rule) => self.relay(command, rule),
            // Whatever else there is may go up to Python.
            _ if command.bytes.len() > self.hub.rules.limits.command_bytes_max => self.too_long(command, verb),
            _ if self.finds_no_room(command, verb) => self.refuse_large(command),
            Verb::Route(route) => self.route(command, route),
            _ if !self.asks(command, verb) && self.defer(command) => Dispatched::WentUp,
            Verb::Subscribe => self.subscribe(command),
            Verb::Unsubscribe => self.unsubscribe(command),
            Verb::Publish => self.publish(command),
            Verb::History => self.history(command),
            Verb::Refresh => self.refresh(command),
        }
    }

    /// Takes what a command of the client costs.
    ///
    /// # Errors
    /// How many milliseconds to wait, and what there was too much of.
    fn charge(&mut self, command: &Command<'_>, verb: Option<Verb>) -> Result<(), (u32, &'static str)> {
        if command.is_handed_back() {
            return Ok(());
        }
        let traffic = if matches!(verb, Some(Verb::Relay(_))) { Traffic::Relays } else { Traffic::Commands };
        let bytes = &mut self.connections[command.slot].bytes;
        let taken = bytes.take_many(bytes_units(command), self.hub.rules.bytes_rate(), self.now.mono_ms);
        taken.map_err(|wait_ms| (wait_ms, "Too many bytes"))?;
        let cost = if verb == Some(Verb::Refresh) { REFRESH_COST } else { 1 };
        self.take_tokens(command.slot, traffic, cost).map_err(|wait_ms| (wait_ms, "Too many commands"))
    }

    /// Lets a legacy client owe for its `subscribe`; false for any other command. It subscribes once a connection and
    /// never again, so refused it would stay without events and not know it. It is not read until it has paid.
    fn lend(&mut self, command: &Command<'_>, verb: Option<Verb>) -> bool {
        let conn = &mut self.connections[command.slot];
        if verb != Some(Verb::Subscribe) || conn.has(flag::VERSION_1) || command.envelope.id.is_some() {
            return false;
        }
        conn.bytes.overdraw(bytes_units(command).saturating_mul(1_000), self.hub.rules.bytes_rate(), self.now.mono_ms);
        self.overdraw(command.slot, 1_000);
        self.hold_while_owing(command.slot);
        true
    }

    /// Answers a command that is over a rate.
    pub(super) fn over_rate(&mut self, slot: usize, id: Option<&[u8]>, wait_ms: u32, message: &str) -> Dispatched {
        let fault = Fault { code: "rate_limited", message, retry_after_ms: Some(wait_ms), ..Fault::default() };
        self.fault(slot, fault, id);
        self.note_refusal(slot);
        Dispatched::Answered
    }

    /// Answers a command that Python would read for too long.
    fn too_long(&mut self, command: &Command<'_>, verb: Verb) -> Dispatched {
        let (size, most) = (command.bytes.len(), self.hub.rules.limits.command_bytes_max);
        let message = format!("command of {size} bytes exceeds limits.command_bytes_max={most}; send less at once");
        let hub = Arc::clone(&self.hub);
        let guard = if let Verb::Route(route) = verb { hub.rules.guards[route as usize].as_ref() } else { None };
        // The words of the protocol's first version, whose clients look at them.
        let message = guard.and_then(|guard| guard.failure).unwrap_or(&message);
        self.refuse_command(command, Fault { code: "too_large", message, ..Fault::default() })
    }

    /// Whether a command that would go up is larger than what a user may have in Python now.
    fn finds_no_room(&self, command: &Command<'_>, verb: Verb) -> bool {
        let conn = &self.connections[command.slot];
        let goes_up = matches!(verb, Verb::Route(_)) || conn.under_way != conn.own_way;
        goes_up && !command.is_handed_back() && self.hub.is_over_free(command.held_bytes())
    }

    /// Answers a command that is.
    fn refuse_large(&mut self, command: &Command<'_>) -> Dispatched {
        add(&self.hub.counters.events_refused, 1);
        self.refuse_command(command, PYTHON_FULL)
    }

    /// Sends a command behind others that Python has; true if it went.
    pub(super) fn defer(&mut self, command: &Command<'_>) -> bool {
        let conn = self.connections.id(command.slot);
        let state = &self.connections[command.slot];
        if command.is_handed_back() || state.under_way == state.own_way {
            return false;
        }
        self.go_up(command.slot, command.held_bytes(), false);
        self.outputs.events.push(Event::Deferred { conn, raw: command.bytes.into() });
        true
    }

    fn ping(&mut self, command: &Command<'_>) -> Dispatched {
        let now = self.now.wall_ms;
        let json = compose::reply("pong", command.id(), now, |out| {
            out.extend_from_slice(b"{\"timestamp\":");
            compose::timestamp(out, now);
            out.push(b'}');
        });
        self.queue_json(command.slot, &json);
        Dispatched::Answered
    }

    // ---- errors

    pub(super) fn fault(&mut self, slot: usize, fault: Fault<'_>, id: Option<&[u8]>) {
        self.hub.counters.error_sent(fault.code);
        let json = fault.to_json(id, self.now.wall_ms);
        self.queue_json(slot, &json);
    }

    pub(super) fn invalid(&mut self, slot: usize, id: Option<&[u8]>, path: Option<&str>) -> Dispatched {
        self.fault(slot, Fault { code: "invalid_message", message: INVALID, path, ..Fault::default() }, id);
        Dispatched::Answered
    }

    pub(super) fn wrong(&mut self, command: &Command<'_>, path: &str) -> Dispatched {
        self.invalid(command.slot, command.id(), Some(path))
    }

    fn unknown_type(&mut self, command: &Command<'_>, kind: &str) -> Dispatched {
        let message = format!("Unknown message type: {kind}");
        self.refuse_command(command, Fault { code: "unknown_type", message: &message, ..Fault::default() })
    }

    pub(super) fn refuse_command(&mut self, command: &Command<'_>, fault: Fault<'_>) -> Dispatched {
        self.fault(command.slot, fault, command.id());
        Dispatched::Answered
    }
}
