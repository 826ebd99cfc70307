//! Commands of the `json` endpoints: what the hub answers itself, what turns round, what goes up to Python.

use super::ShardCore;
use super::admission::page_milli;
use super::input::LONG_UNIT;
use crate::Confidential;
use crate::channel::{HistoryFor, HistoryRequest, SubscribeRequest};
use crate::channel_name::is_name;
use crate::command::{Publish, Reply};
use crate::compose::{self, Fault};
use crate::conn::{LastingRelay, flag};
use crate::counters::add;
use crate::event::Event;
use crate::hub::{
    HISTORY_EVENTS_MAX, PAGE_BYTES_MAX, PAGES_FULL, PYTHON_FULL, Pace, Relayed, TOO_LARGE, channel_member,
};
use crate::json::{Envelope, Kind, Scanner, Value, id_of};
use crate::options::Auth;
use crate::outbox::latest_key;
use crate::pattern::Rights;
use crate::prepared::Prepared;
use crate::refusal::Refusal;
use crate::relay::{Scope, WrongMember};
use crate::rules::{BYTES_UNIT, Traffic, Verb};
use crate::token::TOKEN_BYTES_MAX;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) const INVALID: &str = "Invalid message format";
const ID_CHARS_MAX: usize = 64;
/// Bytes that the epoch of a position may have to be one of ours.
const EPOCH_BYTES_MAX: usize = 64;
/// Characters of an unknown type that an error repeats.
const TYPE_CHARS_MAX: usize = 64;

/// Commands that one `refresh` counts as: a signature of a public key takes a shard far longer than any other command.
const REFRESH_COST: u32 = 10;

/// What Python makes of one value: 75 bytes were measured of an empty list, 90 of a member of an object.
const VALUE_BYTES: usize = 96;
/// Values that what every event takes has room for.
const VALUES_FREE: usize = 16;
/// What an event of a page is taken for until the page is read: most are shorter, and what was too much comes back.
const EVENT_BYTES_ASSUMED: usize = 4 << 10;

/// Where a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The client, just now.
    Client,
    /// Python, in the session's order; it may still ask Python for a right.
    Resumed,
    /// Python, with the right that it had asked for: what is still missing is not asked for again.
    Granted,
}

/// Where a command is once it was dispatched.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dispatched {
    /// It is answered; the credit that it brought is free.
    Answered,
    /// Python has it, for the first time or again, and its credit.
    WentUp,
    /// A channel or the log has it, and its credit, which comes back by the inbox.
    OnItsWay,
}

/// One command while it is handled.
pub(super) struct Command<'a> {
    pub(super) slot: usize,
    pub(super) bytes: &'a [u8],
    envelope: Envelope,
    pub(super) scanner: &'a Scanner,
    pub(super) source: Source,
}

impl<'a> Command<'a> {
    fn id(&self) -> Option<&'a [u8]> {
        self.envelope.id.map(|id| id.span.of(self.bytes))
    }

    /// What it takes in Python: its text, and what its values are decoded into.
    pub(super) fn held_bytes(&self) -> usize {
        let values = (self.envelope.values as usize).saturating_sub(VALUES_FREE);
        self.bytes.len() + values * VALUE_BYTES
    }

    pub(super) fn boxed_id(&self) -> Option<Box<[u8]>> {
        self.id().map(Into::into)
    }

    pub(super) fn member(&self, key: &str) -> Option<Value> {
        self.scanner.member(self.bytes, key)
    }

    /// Whether its data is neither an object nor absent.
    pub(super) fn has_other_data(&self) -> bool {
        self.envelope.data.is_some_and(|data| data.kind != Kind::Object)
    }

    /// Whether it came back from Python in its order, with a credit to give back.
    pub(super) const fn is_handed_back(&self) -> bool {
        !matches!(self.source, Source::Client)
    }

    const fn credits(&self) -> u16 {
        self.is_handed_back() as u16
    }
}

/// What a command takes of the bytes that its connection may send.
const fn bytes_units(command: &Command<'_>) -> u32 {
    (command.bytes.len() as u32).div_ceil(BYTES_UNIT)
}

impl ShardCore {
    /// Runs a command that Python handed back, and tells Python so.
    ///
    /// Its credit is free only behind `Carried`: with it the connection may be read on, and what that brings up is not
    /// the command that came up again.
    pub(super) fn carry_out(&mut self, slot: usize, raw: &mut [u8], source: Source) {
        let conn = self.id(slot);
        let dispatched = self.command_in(slot, raw, source);
        self.events.push(Event::Carried { conn, goes_on: dispatched == Dispatched::WentUp });
        if dispatched == Dispatched::Answered {
            self.give_back_to(conn, 1);
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
        let mut scanner = std::mem::take(&mut self.scanner);
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
        self.scanner = scanner;
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
            && !self.lends(command, verb)
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
            _ if !self.asks(command, verb) && self.defers(command) => Dispatched::WentUp,
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
        let bytes = &mut self.conns[command.slot].bytes;
        let taken = bytes.take_many(bytes_units(command), self.hub.rules.bytes_rate(), self.now.mono_ms);
        taken.map_err(|wait_ms| (wait_ms, "Too many bytes"))?;
        let cost = if verb == Some(Verb::Refresh) { REFRESH_COST } else { 1 };
        self.take_tokens(command.slot, traffic, cost).map_err(|wait_ms| (wait_ms, "Too many commands"))
    }

    /// Lets a legacy client owe for its `subscribe`; false for any other command. It subscribes once a connection and
    /// never again, so refused it would stay without events and not know it. It is not read until it has paid.
    fn lends(&mut self, command: &Command<'_>, verb: Option<Verb>) -> bool {
        let conn = &mut self.conns[command.slot];
        if verb != Some(Verb::Subscribe) || conn.has(flag::VERSION_1) || command.envelope.id.is_some() {
            return false;
        }
        conn.bytes.overdraw(bytes_units(command).saturating_mul(1_000), self.hub.rules.bytes_rate(), self.now.mono_ms);
        self.overdraw(command.slot, 1_000);
        self.hold_while_owing(command.slot);
        true
    }

    /// Answers a command that is over a rate.
    fn over_rate(&mut self, slot: usize, id: Option<&[u8]>, wait_ms: u32, message: &str) -> Dispatched {
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
        let conn = &self.conns[command.slot];
        let goes_up = matches!(verb, Verb::Route(_)) || conn.under_way != conn.own_way;
        goes_up && !command.is_handed_back() && self.hub.is_over_free(command.held_bytes())
    }

    /// Answers a command that is.
    fn refuse_large(&mut self, command: &Command<'_>) -> Dispatched {
        add(&self.hub.counters.events_refused, 1);
        self.refuse_command(command, PYTHON_FULL)
    }

    /// Sends a command behind others that Python has; true if it went.
    fn defers(&mut self, command: &Command<'_>) -> bool {
        let conn = self.id(command.slot);
        let state = &self.conns[command.slot];
        if command.is_handed_back() || state.under_way == state.own_way {
            return false;
        }
        self.go_up(command.slot, command.held_bytes(), false);
        self.events.push(Event::Deferred { conn, raw: command.bytes.into() });
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

    // ---- subscribe, unsubscribe

    fn subscribe(&mut self, command: &Command<'_>) -> Dispatched {
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
        self.subscribe_to(command.slot, &name, command.boxed_id(), position, last, command.credits())
    }

    fn position_of(&self, command: &Command<'_>) -> Result<Option<(u64, Box<str>)>, &'static str> {
        let Some(position) = command.member("position") else { return Ok(None) };
        if position.kind != Kind::Object {
            return Err("data.position");
        }
        let members = crate::json::members(command.bytes, position.span);
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
        credits: u16,
    ) -> Dispatched {
        let conn = self.id(slot);
        let state = &self.conns[slot];
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
        let state = &mut self.conns[slot];
        let is_handed_back = credits > 0;
        let credits = if is_handed_back { credits } else { state.take_own_credit(0) };
        let answered = id.clone();
        let request = SubscribeRequest { conn, id, position, last, again: false, credits };
        let user = state.session.as_ref().map_or("", |session| &session.user);
        let channel = match self.hub.subscribe(name, user, wanted, request, self.now) {
            Ok(channel) => channel,
            Err(fault) => {
                if !is_handed_back {
                    self.return_credits(slot, credits);
                }
                self.fault(slot, Fault { channel: Some(name), ..fault }, answered.as_deref());
                return Dispatched::Answered;
            }
        };
        let state = &mut self.conns[slot];
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
            None => state.subscriptions.push(crate::conn::Subscription {
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

    fn unsubscribe(&mut self, command: &Command<'_>) -> Dispatched {
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
        self.leave(command.slot, &name, Prepared::text(&json), command.credits())
    }

    /// Takes a subscription away, or just answers where there is none.
    pub(super) fn leave(&mut self, slot: usize, name: &str, reply: Arc<Prepared>, credits: u16) -> Dispatched {
        let conn = self.id(slot);
        let state = &mut self.conns[slot];
        let Some(subscription) = state.subscriptions.iter_mut().find(|s| **s.channel.name() == *name) else {
            self.queue(slot, crate::outbox::Queued::reply(reply));
            return Dispatched::Answered;
        };
        // One that is leaving already is answered behind that, in the order of the commands.
        subscription.is_wanted = false;
        let channel = Arc::clone(&subscription.channel);
        self.end_lasting(slot, Some(channel.id));
        let credits = if credits == 0 { self.conns[slot].take_own_credit(0) } else { credits };
        self.hub.unsubscribe(&channel, conn, Some(reply), credits);
        Dispatched::OnItsWay
    }

    // ---- publish, history

    fn publish(&mut self, command: &Command<'_>) -> Dispatched {
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
        let conn = self.id(command.slot);
        let credits = self.log_credits(command, self.hub.rules.policy_of(&name).durable);
        let publish = Publish {
            ticket: 0,
            channel: name.into(),
            event: (&*event).into(),
            data: data.into(),
            user: self.conns[command.slot].session.as_ref().map(|session| Arc::clone(&session.user)),
            key,
            dedupe: None,
            number: false,
            request: None,
            amends: None,
            notify: false,
            reply: Some(Reply { conn, id: command.boxed_id(), failure: None, credits }),
        };
        let hub = Arc::clone(&self.hub);
        match hub.publish(publish, self.now, &mut self.events) {
            Pace::On => {}
            Pace::Behind => self.conns[command.slot].hold_back(),
            Pace::Through(shard) => self.hold_through(command.slot, shard),
        }
        Dispatched::OnItsWay
    }

    /// What a command carries to the hub: the credit that it has, or one of its own where it may wait for the log.
    fn log_credits(&mut self, command: &Command<'_>, waits: bool) -> u16 {
        match command.credits() {
            0 if waits => self.conns[command.slot].take_own_credit(command.bytes.len()),
            credits => credits,
        }
    }

    fn history(&mut self, command: &Command<'_>) -> Dispatched {
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
        let conn = self.id(command.slot);
        let credits = self.log_credits(command, true);
        let who = HistoryFor::Client { conn, id: command.boxed_id(), credits, reserved };
        let hub = Arc::clone(&self.hub);
        let user = self.conns[command.slot].session.as_ref().map(|session| Arc::clone(&session.user));
        let request = HistoryRequest { who, after, epoch, limit, reader: self.reader(command.slot) };
        hub.history(&name, request, user.as_deref(), self.now, &mut self.events);
        // One page at a time: what it cost is known behind it, and nobody has a hundred made before the first is paid.
        self.conns[command.slot].hold_back();
        Dispatched::OnItsWay
    }

    // ---- refresh

    fn refresh(&mut self, command: &Command<'_>) -> Dispatched {
        let token = command.member("token").and_then(|value| value.text(command.bytes));
        let Some(token) = token.filter(|token| !token.is_empty()) else { return self.wrong(command, "data.token") };
        let slot = command.slot;
        let endpoint = self.conns[slot].endpoint as usize;
        let checked = match self.hub.rules.endpoints[endpoint].auth {
            // Longer ones are not even handed to Python.
            _ if token.len() > TOKEN_BYTES_MAX => Err(Refusal::Malformed),
            Auth::Hook => Err(Refusal::KeyNotFetched),
            Auth::Token | Auth::None => self.hub.check_token(&token, self.now.wall_ms),
        };
        if !matches!(checked, Err(Refusal::KeyNotFetched)) {
            self.renew(slot, command.id(), checked);
            return Dispatched::Answered;
        }
        let conn = self.id(slot);
        self.go_up(slot, command.held_bytes(), command.is_handed_back());
        self.events.push(Event::Refresh { conn, id: command.boxed_id(), token: Confidential::new(&token) });
        Dispatched::WentUp
    }

    // ---- relays and handlers

    fn relay(&mut self, command: &Command<'_>, rule: u16) -> Dispatched {
        let hub = Arc::clone(&self.hub);
        let relay = &hub.rules.relays[rule as usize];
        let conn = self.id(command.slot);
        let Some(session) = self.conns[command.slot].session.as_ref() else { return Dispatched::Answered };
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
            if self.defers(command) {
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

    fn route(&mut self, command: &Command<'_>, route: u16) -> Dispatched {
        let hub = Arc::clone(&self.hub);
        if let Some(guard) = &hub.rules.guards[route as usize] {
            let channel = match self.guarded(command, guard) {
                Ok(channel) => channel,
                Err(dispatched) => return dispatched,
            };
            // As for a relay: the right may be on its way.
            if !self.rights(command.slot, &channel).has(guard.right) && self.defers(command) {
                return Dispatched::WentUp;
            }
            if let Err(dispatched) = self.check_right(command, &channel, guard.right, guard.failure) {
                return dispatched;
            }
        }
        let conn = self.id(command.slot);
        self.go_up(command.slot, command.held_bytes(), command.is_handed_back());
        let data = command.envelope.data.map(|data| data.span.of(command.bytes).into());
        self.events.push(Event::Message { conn, route, id: command.boxed_id(), data, received_ms: self.now.wall_ms });
        Dispatched::WentUp
    }
}

/// The `id` of a message that is refused unread.
pub(super) fn readable_id(bytes: &[u8]) -> Option<Box<[u8]>> {
    id_of(bytes).filter(|(id, value)| is_id(value, id)).map(|(id, _)| id)
}

fn is_id(id: &Value, bytes: &[u8]) -> bool {
    match id.kind {
        Kind::Integer => true,
        Kind::String { .. } => id.text(bytes).is_some_and(|text| text.chars().count() <= ID_CHARS_MAX),
        _ => false,
    }
}

/// At most 64 printable characters of what a client sent.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TYPE_CHARS_MAX).collect()
}
