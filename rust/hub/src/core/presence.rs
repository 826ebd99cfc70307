//! Who is online, as clients are told: `presence_mode`, behind the first frame of each connection and to all at once.
//!
//! Python decides who is told of whom, and tells each shard by the inbox, just before the events that say the same. So a
//! connection that opens between two turns gets the users as they were before all that it gets live; what comes twice
//! says the same. The frame is made for the first connection that needs it after a change. For a reader that is behind it
//! stands in its place among the changes. Clients of the first version get none.

use super::ShardCore;
use crate::class::Class;
use crate::compose;
use crate::conn::{Phase, flag};
use crate::hub::PAGE_BYTES_MAX;
use crate::options::Mode;
use crate::prepared::{Form, Prepared};
use crate::queued::Queued;
use std::collections::BTreeSet;
use std::sync::Arc;

const TYPE: &str = "presence_mode";

/// What this shard tells of who is online.
#[derive(Debug, Default)]
pub(super) struct Presence {
    mode: PresenceMode,
    /// None until it is asked for.
    frame: Option<Arc<Prepared>>,
}

/// Who hears of whom.
#[derive(Debug, Default)]
enum PresenceMode {
    /// Python has not said.
    #[default]
    Unknown,
    /// Those who share a channel.
    Shared,
    /// Everybody of everybody: these are online.
    Everyone(BTreeSet<Arc<str>>),
}

impl ShardCore {
    /// Takes who is told of whom, and tells all who are open; None for those alone who share a channel.
    pub(super) fn set_presence(&mut self, users: Option<&[Arc<str>]>) {
        let mode = users.map_or(PresenceMode::Shared, |users| PresenceMode::Everyone(users.iter().cloned().collect()));
        self.notices.presence = Presence { mode, frame: None };
        let Some(frame) = self.presence_frame() else { return };
        let frame = self.outgoing.turn.add(frame);
        for slot in self.connections.slots() {
            if self.connections[slot].phase == Phase::Open && self.knows_presence_mode(slot) {
                self.queue_frame(slot, frame);
            }
        }
    }

    /// Takes that a user came or went, of which everybody is told.
    pub(super) fn change_presence(&mut self, user: Arc<str>, is_online: bool) {
        let PresenceMode::Everyone(users) = &mut self.notices.presence.mode else { return };
        if if is_online { users.insert(user) } else { users.remove(&user) } {
            self.notices.presence.frame = None;
        }
    }

    /// Tells a connection whose first frame was just queued.
    pub(super) fn tell_of_presence(&mut self, slot: usize) {
        if self.knows_presence_mode(slot)
            && let Some(frame) = self.presence_frame()
        {
            self.queue(slot, frame);
        }
    }

    fn knows_presence_mode(&self, slot: usize) -> bool {
        let conn = &self.connections[slot];
        conn.has(flag::VERSION_1) && self.hub.rules.endpoints[conn.endpoint as usize].mode == Mode::Json
    }

    fn presence_frame(&mut self) -> Option<Queued> {
        let Presence { mode, frame } = &mut self.notices.presence;
        let frame = match (&*mode, &mut *frame) {
            (PresenceMode::Unknown, _) => return None,
            (_, Some(frame)) => Arc::clone(frame),
            (mode, frame) => {
                let most = self.hub.rules.limits.publication_bytes_max.min(PAGE_BYTES_MAX);
                Arc::clone(frame.insert(Prepared::text(&to_json(mode, most, self.now.wall_ms))))
            }
        };
        Some(Queued { frame, class: Class::Snapshot, channel: None, form: Form::Plain })
    }
}

/// The frame; `users` are left out where they would be longer than an event, or a page of events, may be.
fn to_json(mode: &PresenceMode, bytes_max: usize, wall_ms: u64) -> Vec<u8> {
    compose::reply(TYPE, None, wall_ms, |out| {
        let PresenceMode::Everyone(users) = mode else { return out.extend_from_slice(b"{\"mode\":\"shared\"}") };
        out.extend_from_slice(b"{\"mode\":\"everyone\"");
        let without = out.len();
        out.extend_from_slice(b",\"users\":[");
        for (place, user) in users.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            compose::string(out, user);
            if out.len() > bytes_max {
                out.truncate(without);
                return out.push(b'}');
            }
        }
        out.extend_from_slice(b"]}");
    })
}
