//! Retention: what the log has let go of, and channels in memory that age.
//!
//! The log's thread drives both: it deletes by what [`Hub::keep_of`] says and tells the new tail by [`Hub::swept`], and
//! lets channels in memory age by [`Hub::age`]. A position that is older than what is kept is not recoverable; a member
//! that replays and is overtaken loses its subscription and is told so, never a part as if it were whole.

use super::Hub;
use crate::Now;
use crate::channel::{Keep, State};
use std::sync::atomic::Ordering;

impl Hub {
    /// Whether there is anything to let go of in the log, ever.
    #[must_use]
    pub fn has_retention(&self) -> bool {
        self.rules.has_retention()
    }

    /// Whether anything in memory grows too old, ever.
    #[must_use]
    pub fn ages(&self) -> bool {
        self.rules.ages()
    }

    /// What the log keeps of a channel; None: everything.
    #[must_use]
    pub fn keep_of(&self, channel: &str) -> Option<Keep> {
        let policy = self.rules.kept_policy_of(channel);
        (policy.durable && policy.keep != Keep::ALL).then_some(policy.keep)
    }

    /// The log keeps no longer what stands up to `tail` in a channel.
    pub fn swept(&self, channel: &str, tail: u64) {
        self.in_known_channel(channel, |_, state| state.cut(tail, &self.counters));
    }

    /// Lets go of what channels keep in memory no longer, and of those that are empty then: a sixteenth of all channels
    /// with each call.
    pub fn age(&self, now: Now) {
        let part = self.swept_part.fetch_add(1, Ordering::Relaxed);
        for channel in self.directory.ageing(part) {
            let mut state = channel.lock();
            state.trim(channel.policy, now.mono_ms, &self.counters);
            state.latest.trim(now.mono_ms, channel.policy.retain, &self.bounds.retained, &self.counters);
            if state.members_total() > 0 {
                state.used_ms = now.mono_ms;
            }
            drop(state);
            let policy = channel.policy;
            let is_over =
                |state: &State| state.is_idle(policy) || state.is_forgotten(policy, now.mono_ms, self.idle_ms);
            self.remove_if(&channel, is_over);
        }
    }
}
