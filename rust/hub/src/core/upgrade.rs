//! From an HTTP request to an open connection.
//!
//! Order of the checks: 404 path → 503, 429 → 401 → 403 → 400/426 upgrade → 429 where the user has sessions enough. Browsers cannot see an HTTP status, so where
//! a subprotocol is agreed to, 401, 403, 429 and 503 come as a 101 and an immediate Close. A client that offers a token alone as its subprotocol is refused so, too:
//! a browser fails a connection on which the server agrees to nothing that it offered.

use super::ShardCore;
use crate::accounts::Full;
use crate::command::Rejection;
use crate::compose;
use crate::compression::Window;
use crate::conn::{Answer, Phase, Session, flag};
use crate::counters::{add, add_own, sub};
use crate::event::Event;
use crate::identity::Identity;
use crate::options::{Auth, Endpoint, Mode};
use crate::prepared::Prepared;
use crate::queued::Queued;
use crate::refusal::{Refusal, TOLD_PER_S};
use crate::way::Way;
use crate::{ConnId, Now};
use realtime_protocol::address::limited_as;
use realtime_protocol::close::CloseCode;
use realtime_protocol::extensions::Deflate;
use realtime_protocol::handshake::{HttpError, Request, TwoAuthorizations, query_values, switching_protocols};
use std::borrow::Cow;
use std::sync::Arc;

const VERSION_1: &str = "realtime.v1";
const BEARER: &str = "bearer.";

/// What a client hears whose token has expired.
const EXPIRED: &str = "token expired; fetch a new one and come back";

/// The close code that stands for the HTTP status of a refusal.
const fn close_of(status: u16) -> CloseCode {
    match status {
        401 => CloseCode::UNAUTHORIZED,
        403 => CloseCode::FORBIDDEN,
        _ => CloseCode::BUSY,
    }
}

/// The one value among these; None where there is none. What is not readable, or differs, says nothing.
fn only<'a>(values: impl Iterator<Item = Option<Cow<'a, str>>>) -> Result<Option<Cow<'a, str>>, Refusal> {
    let mut found = None;
    for value in values {
        let value = value.ok_or(Refusal::Malformed)?;
        match &found {
            Some(other) if *other != value => return Err(Refusal::Ambiguous),
            _ => found = Some(value),
        }
    }
    Ok(found)
}

/// The one token that a request carries, in whatever place.
fn shown<'a>(request: &Request<'a>) -> Result<Option<Cow<'a, str>>, Refusal> {
    let in_query = query_values(request.query, "token");
    let in_header = request.bearer().map_err(|TwoAuthorizations| Refusal::Ambiguous)?;
    let in_header = in_header.map(Cow::Borrowed).map(Some);
    let in_protocol = request.protocols().filter_map(|offered| offered.strip_prefix(BEARER));
    only(in_query.chain(in_header).chain(in_protocol.map(Cow::Borrowed).map(Some)))
}

/// The subprotocol that an endpoint agrees to with a client: the first of its own that was offered.
fn agreed<'a>(rule: &'a Endpoint, request: &Request<'_>) -> Option<&'a str> {
    let is_offered = |wanted: &str| request.protocols().any(|offered| offered == wanted);
    match rule.mode {
        Mode::Json => Some(VERSION_1).filter(|version| is_offered(version)),
        Mode::Raw => rule.subprotocols.iter().map(|own| &**own).find(|own| is_offered(own)),
    }
}

/// The subprotocol of a client that offers a token and nothing beside it.
fn bearer_alone<'a>(request: &Request<'a>) -> Option<&'a str> {
    let first = request.protocols().next()?;
    request.protocols().all(|offered| offered.starts_with(BEARER)).then_some(first)
}

/// What a client should do that offers a token alone.
fn bearer_alone_reason(rule: &Endpoint) -> &'static str {
    match rule.mode {
        Mode::Json => "offer the subprotocol realtime.v1 beside bearer.<token>",
        Mode::Raw if rule.subprotocols.is_empty() => "no subprotocol is spoken here; send the token as ?token=",
        Mode::Raw => "offer a subprotocol of this endpoint beside bearer.<token>",
    }
}

impl ShardCore {
    pub(super) fn request(&mut self, slot: usize, request: &Request<'_>) {
        self.find_client(slot, request);
        let rules = &self.hub.rules;
        let Some(endpoint) = rules.endpoints.iter().position(|endpoint| endpoint.path == request.path) else {
            return self.refuse(slot, HttpError::NOT_FOUND, &[]);
        };
        let rule = rules.endpoints[endpoint].clone();
        self.connections[slot].endpoint = endpoint as u16;
        let bearer_alone = bearer_alone(request);
        let subprotocol = agreed(&rule, request).or(bearer_alone);
        let upgrade = request.upgrade();
        // A port that the HTTP side shares is closed last: whoever asks there how the server is gets an answer.
        let is_closed = self.hub.passes_on() && (self.is_draining() || !self.hub.may_read());
        if is_closed || self.hub.is_full() {
            return self.refuse_seen(slot, request, subprotocol, HttpError::UNAVAILABLE);
        }
        if !self.take_handshake(slot) {
            return self.refuse_seen(slot, request, subprotocol, HttpError::TOO_MANY_REQUESTS);
        }
        let identity = match rule.auth {
            Auth::Token => self.identify(request),
            Auth::None => Ok(Some(Identity::of(""))),
            Auth::Hook => shown(request).map(|_| None),
        };
        let identity = match identity {
            Ok(identity) => identity,
            Err(refusal) => return self.refuse_token(slot, request, subprotocol, refusal),
        };
        if !self.check_origin(request, rule.auth) {
            return self.refuse_seen(slot, request, subprotocol, HttpError::FORBIDDEN);
        }
        let upgrade = match upgrade {
            Ok(upgrade) => upgrade,
            Err(error) => return self.refuse(slot, error, &[]),
        };
        let deflate = self.deflate_with(request, rule.compression);
        let version_1 = rule.mode == Mode::Json && bearer_alone.is_none() && subprotocol.is_some();
        let subprotocol = subprotocol.map(Into::into);
        let answer = Answer { accept: Some(upgrade.accept()), deflate, subprotocol, version_1 };
        if bearer_alone.is_some() {
            let how = Rejection { body: bearer_alone_reason(&rule).into(), ..Rejection::unauthorized() };
            return self.refuse_by_close(slot, &answer, &how);
        }
        match identity {
            Some(identity) => self.establish(slot, &answer, identity),
            None if self.begin_deciding(slot, request) => self.ask_python(slot, request, answer),
            None => self.refuse_as(slot, &answer, &Rejection::of(HttpError::UNAVAILABLE)),
        }
    }

    /// Who the one token that the request carries, in whatever place, is of; None where Python has to say: by a ticket,
    /// or by a key that the shard does not have.
    fn identify(&self, request: &Request<'_>) -> Result<Option<Identity>, Refusal> {
        let token = shown(request)?;
        match (token, only(query_values(request.query, "ticket"))?) {
            (Some(token), None) => match self.hub.check_token(&token, self.now.wall_ms) {
                Ok(identity) if self.hub.is_revoked(&identity) => Err(Refusal::Revoked),
                Ok(identity) => Ok(Some(identity)),
                Err(Refusal::KeyNotFetched) => Ok(None),
                Err(refusal) => Err(refusal),
            },
            (None, Some(_)) => Ok(None),
            (None, None) => Err(Refusal::Missing),
            (Some(_), Some(_)) => Err(Refusal::Ambiguous),
        }
    }

    /// Refuses an upgrade for its token: an expired one is told apart, so that its client comes back with a new one.
    fn refuse_token(&mut self, slot: usize, request: &Request<'_>, subprotocol: Option<&str>, refusal: Refusal) {
        self.note_refused_token(slot, refusal);
        let mut how = Rejection::unauthorized();
        if refusal == Refusal::Expired {
            how.close = Some(CloseCode::TOKEN_EXPIRED.0);
        }
        match request.upgrade() {
            Ok(upgrade) if subprotocol.is_some() => {
                let subprotocol = subprotocol.map(Into::into);
                let answer = Answer { accept: Some(upgrade.accept()), deflate: None, subprotocol, version_1: true };
                self.refuse_by_close(slot, &answer, &how);
            }
            _ => self.refuse_with(slot, how.status, &how.body),
        }
    }

    /// Counts a refused token and tells Python why, for the log: some of many.
    pub(super) fn note_refused_token(&mut self, slot: usize, refusal: Refusal) {
        self.hub.counters.token_refused(refusal);
        let second = self.now.mono_ms / 1_000;
        if self.doors.refusals_told.0 != second {
            self.doors.refusals_told = (second, 0);
        }
        if self.doors.refusals_told.1 < TOLD_PER_S {
            self.doors.refusals_told.1 += 1;
            let (conn, endpoint) = (self.connections.id(slot), self.connections[slot].endpoint);
            // An open connection has forgotten its peer; Python knows its session.
            let is_open = self.connections[slot].session.is_some();
            let peer = if is_open { "".into() } else { self.connections[slot].cold().peer.to_string().into() };
            self.outputs.events.push(Event::Refused { conn, endpoint, peer, reason: refusal.name() });
        }
    }

    /// The first offer of permessage-deflate that can be served.
    fn deflate_with(&self, request: &Request<'_>, is_wanted: bool) -> Option<Deflate> {
        let is_wanted = is_wanted && self.hub.rules.compression.enabled;
        is_wanted.then(|| Deflate::negotiate(request.extensions())).flatten()
    }

    fn ask_python(&mut self, slot: usize, request: &Request<'_>, answer: Answer) {
        let headers = request
            .headers()
            .map(|(name, value)| (name.to_ascii_lowercase().into(), String::from_utf8_lossy(value).into_owned().into()))
            .collect();
        let conn = self.connections.id(slot);
        let cold = self.connections[slot].cold();
        cold.answer = Some(Box::new(answer));
        let peer = cold.peer.to_string().into();
        self.connections[slot].phase = Phase::Deciding;
        let endpoint = self.connections[slot].endpoint;
        self.outputs.events.push(Event::Upgrade {
            conn,
            endpoint,
            path: request.path.into(),
            query: request.query.into(),
            headers,
            peer,
        });
    }

    /// Python's decision about an upgrade.
    pub(super) fn decided(&mut self, id: ConnId, decision: Result<Identity, Rejection>) {
        self.end_deciding(id);
        let Some(slot) = self.connections.find(id) else { return };
        if self.connections[slot].phase != Phase::Deciding {
            return;
        }
        let Some(answer) = self.connections[slot].cold().answer.take() else { return };
        match decision {
            Ok(identity) if self.hub.is_revoked(&identity) => {
                self.note_refused_token(slot, Refusal::Revoked);
                self.refuse_as(slot, &answer, &Rejection::unauthorized());
            }
            Ok(identity) => {
                self.establish(slot, &answer, identity);
                self.unread_in(slot);
                // What came while Python decided is in the kernel, and nobody tells of it again.
                self.unpause(slot);
            }
            Err(how) => self.refuse_as(slot, &answer, &how),
        }
    }

    /// A refusal in the form that was agreed.
    fn refuse_as(&mut self, slot: usize, answer: &Answer, how: &Rejection) {
        if answer.subprotocol.is_some() {
            self.refuse_by_close(slot, answer, how);
        } else {
            self.refuse_with(slot, how.status, &how.body);
        }
    }

    /// Lets a connection in without a request: for links of tests, and for transports that upgrade by themselves.
    ///
    /// # Errors
    /// One line, where the grants are not readable.
    pub fn admit_as(
        &mut self,
        id: ConnId,
        endpoint: u16,
        user: &str,
        grants: Option<&[u8]>,
        first_version: bool,
        now: Now,
    ) -> Result<(), String> {
        self.now = now;
        let grants = match grants {
            None => Box::default(),
            Some(json) => {
                let value = serde_json::from_slice(json).map_err(|error| format!("grants: {error}"))?;
                crate::token::grants_of(&value)?
            }
        };
        let Some(slot) = self.connections.find(id).filter(|_| self.hub.rules.endpoints.len() > usize::from(endpoint))
        else {
            return Err(format!("endpoint {endpoint} does not exist"));
        };
        self.connections[slot].endpoint = endpoint;
        let rule = &self.hub.rules.endpoints[usize::from(endpoint)];
        // It offers all that the endpoint speaks, or nothing.
        let subprotocol = match rule.mode {
            _ if first_version => None,
            Mode::Json => Some(VERSION_1.into()),
            Mode::Raw => rule.subprotocols.first().cloned(),
        };
        let answer = Answer { accept: Some(String::new()), deflate: None, subprotocol, version_1: !first_version };
        self.establish(slot, &answer, Identity { grants, ..Identity::of(user) });
        Ok(())
    }

    /// Queues the 101 and the first frame, if there is room for one more session; from here on broadcasts can see the
    /// connection.
    fn establish(&mut self, slot: usize, answer: &Answer, identity: Identity) {
        let id = self.connections.id(slot);
        let identity_bytes = identity.held_bytes();
        if self.charge_identity(0, identity_bytes).is_err() {
            return self.refuse_as(slot, answer, &Rejection::of(HttpError::UNAVAILABLE));
        }
        let seat = match self.take_seat(slot, &identity.user) {
            Ok(seat) => seat,
            Err(Full) => {
                sub(&self.hub.counters.identities_bytes, identity_bytes as u64);
                return self.refuse_as(slot, answer, &Rejection::of(HttpError::TOO_MANY_REQUESTS));
            }
        };
        self.end_handshake(slot, false);
        let peer = self.connections[slot].cold().peer;
        let conn = &mut self.connections[slot];
        conn.phase = Phase::Open;
        conn.cold().phase_ends_ms = 0;
        conn.warm();
        let Identity { user, grants, expires_at_ms, issued_at_s, token_id, token } = identity;
        conn.session = Some(Box::new(Session {
            user: Arc::clone(&user),
            grants,
            expires_at_ms: expires_at_ms.unwrap_or(0),
            issued_at_s: issued_at_s.unwrap_or(0),
            token_id: token_id.clone(),
            identity_bytes,
            opened_ms: self.now.mono_ms,
            seat,
            way: Way::default(),
            address: user.is_empty().then(|| Box::new(limited_as(peer))),
        }));
        conn.set(flag::ANNOUNCED | flag::FRESH);
        if answer.version_1 {
            conn.set(flag::VERSION_1);
        }
        conn.set_window(Window::of(answer.deflate.as_ref()));
        let endpoint = conn.endpoint;
        self.queue_switching(slot, answer);
        if self.hub.rules.endpoints[endpoint as usize].mode == Mode::Json {
            let hello = self.hello(id, &user, expires_at_ms);
            self.queue_json(slot, &hello);
            self.tell_of_presence(slot);
            self.tell_of_drain(slot);
        }
        add(&self.hub.counters.connections, 1);
        add_own(&self.tally().connections, 1);
        add(&self.hub.counters.opened, 1);
        self.outputs.events.push(Event::Open {
            conn: id,
            user,
            endpoint,
            first_version: !answer.version_1,
            peer: peer.to_string().into(),
            token,
            expires_at_ms,
            token_id,
            issued_at_s,
            subprotocol: answer.subprotocol.clone(),
        });
        self.look_at(slot);
        // Who comes back before what it owes is paid has gained nothing.
        self.hold_while_owing(slot);
    }

    fn hello(&self, id: ConnId, user: &str, expires_at_ms: Option<u64>) -> Vec<u8> {
        let limits = &self.hub.rules.limits;
        compose::reply("connection_established", None, self.now.wall_ms, |out| {
            out.extend_from_slice(b"{\"sessionId\":");
            compose::string(out, &self.hub.session_id(id));
            out.extend_from_slice(b",\"timestamp\":");
            compose::timestamp(out, self.now.wall_ms);
            out.extend_from_slice(b",\"protocol\":1,\"userId\":");
            compose::string(out, user);
            if let Some(at) = expires_at_ms {
                out.extend_from_slice(b",\"expiresAt\":");
                compose::timestamp(out, at);
            }
            let rows = [
                ("messageBytes", limits.message_bytes_max as u64),
                ("publicationBytes", limits.publication_bytes_max as u64),
                ("channels", limits.channels_per_session_max as u64),
                ("commandsPerS", if limits.enabled { u64::from(limits.commands_per_s) } else { 0 }),
                ("heartbeatS", if limits.heartbeats { u64::from(limits.heartbeat_interval_s) } else { 0 }),
            ];
            out.extend_from_slice(b",\"limits\":{");
            for (place, (name, value)) in rows.into_iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                compose::string(out, name);
                out.push(b':');
                compose::number(out, value);
            }
            out.extend_from_slice(b"}}");
        })
    }

    fn queue_switching(&mut self, slot: usize, answer: &Answer) {
        let accept = answer.accept.as_deref().unwrap_or_default();
        let bytes = switching_protocols(accept, answer.subprotocol.as_deref(), answer.deflate.as_ref());
        self.queue(slot, Queued::reply(Prepared::plain(bytes)));
    }

    /// A refusal that a browser has to understand: by Close where it offered a subprotocol to agree to.
    fn refuse_seen(&mut self, slot: usize, request: &Request<'_>, subprotocol: Option<&str>, error: HttpError) {
        match request.upgrade() {
            Ok(upgrade) if subprotocol.is_some() => {
                let subprotocol = subprotocol.map(Into::into);
                let answer = Answer { accept: Some(upgrade.accept()), deflate: None, subprotocol, version_1: true };
                self.refuse_by_close(slot, &answer, &Rejection::of(error));
            }
            _ => self.refuse_with(slot, error.status, error.body),
        }
    }

    fn refuse_by_close(&mut self, slot: usize, answer: &Answer, how: &Rejection) {
        self.count_refusal(slot, how.status);
        self.queue_switching(slot, answer);
        self.connections[slot].set(flag::VERSION_1);
        let code = how.close.map_or_else(|| close_of(how.status), CloseCode);
        let wait_ms = how.wait_ms.unwrap_or_else(|| self.retry_after_ms(slot)).to_string();
        let reason = match code {
            CloseCode::BUSY => &*wait_ms,
            CloseCode::TOKEN_EXPIRED => EXPIRED,
            _ => &*how.body,
        };
        self.say_close(slot, code.0, reason);
    }

    fn refuse_with(&mut self, slot: usize, status: u16, body: &str) {
        let known =
            [HttpError::UNAUTHORIZED, HttpError::FORBIDDEN, HttpError::TOO_MANY_REQUESTS, HttpError::UNAVAILABLE];
        match known.into_iter().find(|error| error.status == status) {
            Some(error @ (HttpError::TOO_MANY_REQUESTS | HttpError::UNAVAILABLE)) => {
                let wait_s = self.retry_after_ms(slot).div_ceil(1_000).to_string();
                self.refuse(slot, error, &[("Retry-After", &wait_s)]);
            }
            Some(error) if error.body == body => self.refuse(slot, error, &[]),
            _ => {
                self.count_refusal(slot, status);
                let bytes = realtime_protocol::handshake::error_response(status, body, &[]);
                self.queue(slot, Queued::reply(Prepared::plain(bytes)));
                self.stop_queueing(slot);
            }
        }
    }

    /// Answers with an HTTP status and ends the connection.
    pub(super) fn refuse(&mut self, slot: usize, error: HttpError, extra: &[(&str, &str)]) {
        self.count_refusal(slot, error.status);
        self.queue(slot, Queued::reply(Prepared::plain(error.response(extra))));
        self.stop_queueing(slot);
    }

    fn count_refusal(&self, slot: usize, status: u16) {
        debug_assert!(matches!(self.connections[slot].phase, Phase::Handshake | Phase::Deciding));
        self.hub.counters.peer_refused(status);
    }
}
