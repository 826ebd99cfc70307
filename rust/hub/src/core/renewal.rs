//! A session goes on with another token, or ends because its token was revoked.

use super::ShardCore;
use super::command::{Command, Dispatched};
use crate::Confidential;
use crate::accounts::Full;
use crate::compose::{self, Fault};
use crate::conn::Phase;
use crate::event::Event;
use crate::identity::Identity;
use crate::options::Auth;
use crate::pattern::Rights;
use crate::refusal::Refusal;
use crate::revocations::Revocation;
use crate::token::TOKEN_BYTES_MAX;
use realtime_protocol::close::CloseCode;
use std::sync::Arc;

impl ShardCore {
    pub(super) fn refresh(&mut self, command: &Command<'_>) -> Dispatched {
        let token = command.member("token").and_then(|value| value.text(command.bytes));
        let Some(token) = token.filter(|token| !token.is_empty()) else { return self.wrong(command, "data.token") };
        let slot = command.slot;
        let endpoint = self.connections[slot].endpoint as usize;
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
        let conn = self.connections.id(slot);
        self.go_up(slot, command.held_bytes(), command.is_handed_back());
        self.outputs.events.push(Event::Refresh { conn, id: command.boxed_id(), token: Confidential::new(&token) });
        Dispatched::WentUp
    }

    /// Answers a `refresh`: the session goes on as `identity`, or stays as it was where the token is refused or is of
    /// somebody else.
    ///
    /// The new grants replace the old ones. What an `authorize` hook granted, and subscriptions that Python made, were
    /// never the token's: they stay.
    pub(super) fn renew(&mut self, slot: usize, id: Option<&[u8]>, identity: Result<Identity, Refusal>) {
        let checked = match identity {
            Ok(identity) if self.hub.is_revoked(&identity) => Err(Refusal::Revoked),
            checked => checked,
        };
        let refused = match checked {
            Err(refusal) => {
                self.note_refused_token(slot, refusal);
                let is_expired = refusal == Refusal::Expired;
                let message = if is_expired { "The token has expired; fetch a new one" } else { "Unauthorized" };
                Err(Fault { code: "unauthorized", message, ..Fault::default() })
            }
            Ok(identity) if *identity.user != *self.connections[slot].user() => {
                Err(Fault { code: "forbidden", message: "The token is of another user", ..Fault::default() })
            }
            Ok(identity) => Ok(identity),
        };
        match refused.and_then(|identity| self.charge_renewal(slot, identity)) {
            Err(fault) => self.fault(slot, fault, id),
            Ok(identity) => self.renew_as(slot, id, identity),
        }
    }

    fn charge_renewal(&mut self, slot: usize, identity: Identity) -> Result<Identity, Fault<'static>> {
        let before = self.connections[slot].session.as_deref().map_or(0, |session| session.identity_bytes);
        match self.charge_identity(before, identity.held_bytes()) {
            Ok(()) => Ok(identity),
            Err(Full) => {
                let retry_after_ms = u32::try_from(self.retry_after_ms(slot)).ok();
                let message = "The rights of all sessions take too much memory";
                Err(Fault { code: "overloaded", message, retry_after_ms, ..Fault::default() })
            }
        }
    }

    fn renew_as(&mut self, slot: usize, id: Option<&[u8]>, identity: Identity) {
        let conn = self.connections.id(slot);
        let covered: Vec<Arc<str>> = self.covered_subscriptions(slot).collect();
        let Some(session) = self.connections[slot].session.as_deref_mut() else { return };
        session.identity_bytes = identity.held_bytes();
        let Identity { user: _, grants, expires_at_ms, issued_at_s, token_id, token } = identity;
        session.grants = grants;
        session.expires_at_ms = expires_at_ms.unwrap_or(0);
        session.issued_at_s = issued_at_s.unwrap_or(0);
        session.token_id.clone_from(&token_id);
        if let Some(cold) = self.connections[slot].cold.as_deref_mut() {
            cold.told_of_expiry = false;
            self.connections[slot].warm();
        }
        self.look_at(slot);
        if id.is_some() {
            let json = compose::reply("ack", id, self.now.wall_ms, |out| {
                out.extend_from_slice(b"{\"expiresAt\":");
                match expires_at_ms {
                    Some(at_ms) => compose::timestamp(out, at_ms),
                    None => out.extend_from_slice(b"null"),
                }
                out.push(b'}');
            });
            self.queue_json(slot, &json);
        }
        self.outputs.events.push(Event::Renewed { conn, expires_at_ms, token, token_id, issued_at_s });
        for name in covered {
            if !self.rights(slot, &name).has(Rights::SUBSCRIBE) {
                let told = self.unsubscribed(&name, "forbidden", false);
                let _ = self.leave(slot, &name, told, None);
            }
        }
    }

    /// Channels that the session is subscribed to by a right that it has now.
    fn covered_subscriptions(&self, slot: usize) -> impl Iterator<Item = Arc<str>> + '_ {
        let wanted = self.connections[slot].subscriptions.iter().filter(|subscription| subscription.is_wanted);
        wanted
            .map(|subscription| subscription.channel.name())
            .filter(move |name| self.rights(slot, name).has(Rights::SUBSCRIBE))
            .cloned()
    }

    /// Ends the sessions that a revocation covers.
    pub(super) fn revoke(&mut self, revocation: &Revocation) {
        for slot in self.connections.slots() {
            let conn = &self.connections[slot];
            let Some(session) = conn.session.as_deref() else { continue };
            if matches!(conn.phase, Phase::Open | Phase::Finishing)
                && revocation.covers(&session.user, session.issued_at_s, session.token_id.as_deref())
            {
                self.close(slot, CloseCode::TOKEN_REVOKED.0, "the token was revoked");
            }
        }
    }
}
