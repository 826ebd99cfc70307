//! Which channel a command touches, and whether its session may: decided here and nowhere else.
//!
//! A command names its channel by `data.channel`, or by the template of its relay or guard. What comes of either is
//! always the name of a channel, the session's own in the form that answers carry; a command without one ends here with
//! `invalid_message`, before a hook or a handler sees it. Then the rights decide: the open ones, those of the session's
//! grants, and what an `authorize` hook gave. HTTP asks the same functions of `pattern` and `channel_name`.

use super::ShardCore;
use super::command::{Command, Dispatched, Source};
use super::commands::INVALID;
use crate::accounts::Full;
use crate::channel_name::{is_own_channel, named_by_client};
use crate::compose::Fault;
use crate::counters::sub;
use crate::event::Event;
use crate::pattern::{Rights, rights_on};
use crate::relay::{Scope, WrongMember};
use crate::rules::{Guard, Verb};
use std::sync::Arc;

/// What is found of a right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Forbidden,
    /// An `authorize` hook decides, by its place among the rules.
    Ask(u16),
}

/// What a granted channel takes beside its name.
const GRANTED_BYTES: usize = 48;

fn granted_bytes(channel: &str) -> usize {
    GRANTED_BYTES + channel.len()
}

impl ShardCore {
    /// The channel of `data.channel`; None where there is none of this name.
    pub(super) fn named(&self, command: &Command<'_>) -> Option<String> {
        let said = command.member("channel")?;
        let name = said.text(command.bytes)?;
        Some(named_by_client(&name, self.connections[command.slot].user())?.into_owned())
    }

    /// The channel that a command names.
    ///
    /// # Errors
    /// It names none, and that is answered.
    pub(super) fn channel_of(&mut self, command: &Command<'_>) -> Result<String, Dispatched> {
        self.named(command).ok_or_else(|| self.wrong(command, "data.channel"))
    }

    /// The channel that a guard looks at.
    ///
    /// # Errors
    /// The command's members give none, and that is answered.
    pub(super) fn guarded(&mut self, command: &Command<'_>, guard: &Guard) -> Result<String, Dispatched> {
        let session = self.connections[command.slot].session.as_ref();
        let user = session.map_or_else(|| Arc::from(""), |session| Arc::clone(&session.user));
        let id = if guard.channel.names_session() {
            self.hub.session_id(self.connections.id(command.slot))
        } else {
            String::new()
        };
        let scope = Scope { scanner: command.scanner, bytes: command.bytes, user: &user, session: &id };
        let WrongMember(path) = match guard.channel.name(&scope) {
            Ok(channel) => return Ok(channel),
            Err(wrong) => wrong,
        };
        if command.has_other_data() {
            return Err(self.wrong(command, "data"));
        }
        let value = path.strip_prefix("data.").and_then(|name| command.member(name));
        let is_missing = value.is_none_or(|value| value.text(command.bytes).is_some_and(|text| text.is_empty()));
        let message = guard.missing.filter(|_| is_missing).unwrap_or(INVALID);
        let fault = Fault { code: "invalid_message", message, path: Some(&path), ..Fault::default() };
        Err(self.refuse_command(command, fault))
    }

    /// What a session may do on a channel.
    pub(super) fn rights(&self, slot: usize, channel: &str) -> Rights {
        if is_own_channel(channel) {
            return Rights::NONE;
        }
        let conn = &self.connections[slot];
        let user = conn.user();
        let open = self.hub.rules.open_rights(channel, user);
        let granted = conn.session.as_ref().map_or(Rights::NONE, |session| rights_on(&session.grants, channel, user));
        let hooked = conn.cold.as_ref().and_then(|cold| cold.granted.iter().find(|(name, _)| **name == *channel));
        open.and(granted).and(hooked.map_or(Rights::NONE, |(_, rights)| *rights))
    }

    /// Remembers what a hook has granted, charged as a part of the identity.
    pub(super) fn remember_granted(&mut self, slot: usize, channel: Arc<str>, rights: Rights) -> Result<(), Full> {
        let most = self.hub.rules.limits.channels_per_session_max.max(1);
        let granted = &mut self.connections[slot].cold().granted;
        if let Some((_, known)) = granted.iter_mut().find(|(name, _)| *name == channel) {
            *known = known.and(rights);
            return Ok(());
        }
        // Python is asked again for what is forgotten; names without end would be memory without end.
        if granted.len() >= most {
            let (oldest, _) = granted.remove(0);
            sub(&self.hub.counters.identities_bytes, granted_bytes(&oldest) as u64);
        }
        self.charge_identity(0, granted_bytes(&channel))?;
        self.connections[slot].cold().granted.push((channel, rights));
        Ok(())
    }

    /// Forgets what a hook has granted on channels, and gives back what that was charged.
    pub(super) fn forget_granted(&mut self, slot: usize, is_gone: impl Fn(&str) -> bool) {
        let Some(cold) = self.connections[slot].cold.as_deref_mut() else { return };
        let gone: usize =
            cold.granted.extract_if(.., |(name, _)| is_gone(name)).map(|(name, _)| granted_bytes(&name)).sum();
        sub(&self.hub.counters.identities_bytes, gone as u64);
    }

    fn verdict(&self, slot: usize, channel: &str, right: Rights) -> Verdict {
        if self.rights(slot, channel).has(right) {
            return Verdict::Allowed;
        }
        if is_own_channel(channel) {
            return Verdict::Forbidden;
        }
        let user = self.connections[slot].user();
        let rule = self.hub.rules.authorize.iter().position(|pattern| pattern.covers(channel, user));
        rule.map_or(Verdict::Forbidden, |rule| Verdict::Ask(rule as u16))
    }

    /// Looks whether the session has the right.
    ///
    /// # Errors
    /// Where the command is now: Python is asked, or `forbidden` is answered.
    pub(super) fn check_right(
        &mut self,
        command: &Command<'_>,
        channel: &str,
        right: Rights,
        failure: Option<&str>,
    ) -> Result<(), Dispatched> {
        match self.verdict(command.slot, channel, right) {
            Verdict::Allowed => Ok(()),
            Verdict::Ask(rule) if command.source != Source::Granted => {
                let conn = self.connections.id(command.slot);
                self.go_up(command.slot, command.held_bytes(), command.is_handed_back());
                let (id, raw) = (command.boxed_id(), command.bytes.into());
                let right = right.name();
                self.outputs.events.push(Event::Authorize { conn, rule, channel: channel.into(), right, id, raw });
                Err(Dispatched::WentUp)
            }
            _ => {
                let message = format!("Not allowed to {} on this channel", right.deed());
                let message = failure.unwrap_or(&message);
                let fault = Fault { code: "forbidden", message, channel: Some(channel), ..Fault::default() };
                Err(self.refuse_command(command, fault))
            }
        }
    }

    /// Whether Python is to decide on the command's right: it then goes up as that question, which keeps its place in
    /// the session's order by itself. Deferred first, it would come back only to go up again, behind what followed it.
    pub(super) fn asks(&self, command: &Command<'_>, verb: Verb) -> bool {
        let right = match verb {
            Verb::Subscribe => Rights::SUBSCRIBE,
            Verb::Publish => Rights::PUBLISH,
            Verb::History => Rights::HISTORY,
            _ => return false,
        };
        // Most apps have no such hook, and pay for none.
        !self.hub.rules.authorize.is_empty()
            && !command.is_handed_back()
            && self
                .named(command)
                .is_some_and(|channel| matches!(self.verdict(command.slot, &channel, right), Verdict::Ask(_)))
    }
}
