//! What channels hold in memory, who is charged for it, and how it is given back: rings, what waits for the log, states,
//! and channels themselves.

use super::Hub;
use crate::channel::{Channel, Lasting, Publication, State, Waiting, Waits};
use crate::compose::Fault;
use crate::counters::add;
use crate::portions::{Full, Portions};
use crate::prepared::Prepared;
use crate::scramble::scramble;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// After how long something that was refused for lack of memory may be tried again: a log that keeps up has room again.
const RETRY_MS: u32 = 1_000;

/// What is free of the log's queue is the share of each user: alone, half of the queue.
const LOG_DIVISOR: usize = 1;
/// A quarter of it, of what is retained: states stay.
const RETAINED_DIVISOR: usize = 4;
/// An eighth of it, of the channels: they stay as long as somebody is there.
const CHANNELS_DIVISOR: usize = 8;

/// The bounds that users share, each with the part of one user.
#[derive(Debug)]
pub(super) struct Bounds {
    /// What waits for the log.
    pub(super) log: Portions,
    /// States and relays that last.
    pub(super) retained: Portions,
    /// The channels themselves.
    pub(super) channels: Portions,
}

impl Bounds {
    pub(super) fn of(limits: &crate::Limits) -> Self {
        let shares = |bytes_max, divisor| Portions::new(bytes_max, if limits.enabled { divisor } else { 0 });
        Self {
            log: shares(limits.log_queue_bytes_max, LOG_DIVISOR),
            retained: shares(limits.retained_bytes_max, RETAINED_DIVISOR),
            channels: shares(limits.channels_bytes_max, CHANNELS_DIVISOR),
        }
    }
}

/// The answer to a command for which there is no memory.
pub(crate) const fn overloaded(message: &'static str) -> Fault<'static> {
    Fault { code: "overloaded", message, path: None, channel: None, retry_after_ms: Some(RETRY_MS) }
}

pub(crate) const LOG_FULL: Fault<'static> = overloaded("Too much waits for the log; try again later");
pub(crate) const PYTHON_FULL: Fault<'static> = overloaded("Too much waits for handlers; try again later");
pub(crate) const INBOX_FULL: Fault<'static> = overloaded("Too much waits for subscribers; try again later");
pub(crate) const PAGES_FULL: Fault<'static> = overloaded("Too many pages wait to be sent; try again later");
pub(crate) const GRANTS_FULL: Fault<'static> = overloaded("Too many rights are remembered; try again later");
pub(crate) const CHANNELS_FULL: Fault<'static> = overloaded("Too many channels are in memory; try again later");
pub(crate) const RETAINED_FULL: Fault<'static> = overloaded("Too many states are kept in memory; try again later");

impl Hub {
    // ---- channels

    /// Runs `act` under the channel's lock, making the channel for `owner` where it is not there.
    ///
    /// # Errors
    /// [`Full`]: it is not there, and `channels_bytes_max` or the owner's share of it is reached.
    pub(super) fn in_channel<R>(
        &self,
        name: &str,
        owner: Option<&str>,
        act: impl FnOnce(&Arc<Channel>, &mut State) -> R,
    ) -> Result<R, Full> {
        loop {
            let make = |name: Arc<str>| {
                let cost = Channel::cost(&name, self.shards());
                let taken = self.bounds.channels.take(owner, cost, &self.counters.channels_bytes);
                taken.map(|_| self.make_channel(name, owner))
            };
            let channel = self.directory.find_or_insert(name, make).inspect_err(|Full| {
                add(&self.counters.channels_refused, 1);
            })?;
            let mut state = channel.lock();
            if !state.dead {
                return Ok(act(&channel, &mut state));
            }
        }
    }

    /// As [`Self::in_channel`], for no longer than the call: whoever publishes to where Python listens needs the lock
    /// for the order, and there are no more of these channels than threads.
    pub(super) fn in_passing<R>(&self, name: &str, act: impl FnOnce(&Arc<Channel>, &mut State) -> R) -> R {
        loop {
            let make = |name: Arc<str>| {
                let cost = Channel::cost(&name, self.shards());
                self.bounds.channels.add(None, cost, &self.counters.channels_bytes);
                Ok(self.make_channel(name, None))
            };
            let Ok(channel) = self.directory.find_or_insert(name, make) else { continue };
            let mut state = channel.lock();
            if !state.dead {
                return act(&channel, &mut state);
            }
        }
    }

    /// Runs `act` under the channel's lock, if the channel is there.
    pub(super) fn in_known_channel<R>(
        &self,
        name: &str,
        act: impl FnOnce(&Arc<Channel>, &mut State) -> R,
    ) -> Option<R> {
        let channel = self.directory.find(name)?;
        let mut state = channel.lock();
        // A dead channel had no members and no history: as good as none.
        (!state.dead).then(|| act(&channel, &mut state))
    }

    fn make_channel(&self, name: Arc<str>, owner: Option<&str>) -> Channel {
        let policy = self.rules.kept_policy_of(&name);
        let is_heard = self.rules.is_heard(&name);
        let id = self.channel_ids.fetch_add(1, Ordering::Relaxed);
        let epoch = if policy.durable {
            Arc::clone(self.terms.epoch())
        } else {
            // A channel in memory that went and came again counts from 1 once more: that is another history.
            format!("{:016x}", scramble(self.memory_nonce ^ id)).into()
        };
        Channel::new(name, id, policy, epoch, is_heard, owner.map(Into::into), self.shards())
    }

    /// Takes a channel out if nothing would be lost by it.
    pub(super) fn remove_idle(&self, channel: &Arc<Channel>) {
        self.remove_if(channel, |state| state.is_idle(channel.policy));
    }

    /// Takes a channel out whose head could not be read, whoever waits: they get it, and who comes next begins anew.
    /// Its members are none, since all wait.
    pub(super) fn give_up(&self, channel: &Arc<Channel>) -> Vec<Waits> {
        self.remove_if(channel, |_| true);
        self.take_waiting(&mut channel.lock())
    }

    /// Takes a channel out and gives back what it held.
    pub(super) fn remove_if(&self, channel: &Arc<Channel>, is_over: impl FnOnce(&State) -> bool) {
        if !self.directory.remove_if(channel, is_over) {
            return;
        }
        let mut state = channel.lock();
        state.ring.clear(&self.counters);
        self.rings.forget(&mut state.ring);
        state.latest.clear(&self.bounds.retained, &self.counters);
        // What began here lasts no longer: who ends it finds no channel.
        for ((_, user), lasting) in state.lasting.drain() {
            self.lasted(&user, &lasting);
        }
        drop(state);
        let cost = Channel::cost(channel.name(), self.shards());
        self.bounds.channels.give(channel.owner.as_deref(), cost, &self.counters.channels_bytes);
    }

    // ---- rings

    /// Keeps a publication in its channel's ring; the lock is held.
    pub(super) fn keep(&self, channel: &Arc<Channel>, state: &mut State, publication: Arc<Publication>) {
        state.ring.push(publication, channel.policy.history, &self.ring_limits, &self.counters);
        self.rings.list(channel, &mut state.ring);
    }

    /// Lets the largest rings pay where all hold too much; no lock of a channel is held.
    pub(super) fn make_room_in_rings(&self) {
        self.rings.make_room(&self.ring_limits, &self.counters);
    }

    // ---- what waits for the log

    /// Lets a command wait for the channel's head.
    ///
    /// # Errors
    /// The command, where too much waits for the log, of this user or of all.
    pub(super) fn wait(&self, state: &mut State, one: Waiting, user: Option<&str>) -> Result<(), Box<Waiting>> {
        let cost = one.cost();
        if self.bounds.log.take(user, cost, &self.counters.log_queue_bytes).is_err() {
            add(&self.counters.log_queue_refused, 1);
            return Err(Box::new(one));
        }
        state.put_off(Waits { one, user: user.map(Into::into), cost });
        Ok(())
    }

    /// As [`Self::wait`], for what cannot be refused: a connection has only so many commands under way.
    pub(super) fn must_wait(&self, state: &mut State, one: Waiting) {
        let cost = one.cost();
        self.bounds.log.add(None, cost, &self.counters.log_queue_bytes);
        state.put_off(Waits { one, user: None, cost });
    }

    /// Takes what waits for the head.
    pub(super) fn take_waiting(&self, state: &mut State) -> Vec<Waits> {
        state.waiting_bytes = 0;
        let waiting = std::mem::take(&mut state.waiting);
        waiting.iter().for_each(|waits| self.waited(waits));
        waiting
    }

    /// Something waits no longer.
    pub(super) fn waited(&self, waits: &Waits) {
        self.bounds.log.give(waits.user.as_deref(), waits.cost, &self.counters.log_queue_bytes);
    }

    // ---- states

    /// Retains an event without an offset as the state of its key where the policy asks for it, or lets the state go.
    pub(super) fn retain(
        &self,
        channel: &Channel,
        state: &mut State,
        frame: &Arc<Prepared>,
        key: Option<&Arc<str>>,
        by: Retained<'_>,
    ) {
        let retain = channel.policy.retain;
        let Some(key) = key.filter(|_| retain.keys > 0) else { return };
        let shares = &self.bounds.retained;
        if by.is_over {
            state.latest.remove(key, shares, &self.counters);
        } else {
            let bytes = self.ring_limits.frame_bytes(frame);
            state.latest.set(key, frame, bytes, by.user, by.mono_ms, retain, shares, &self.counters);
        }
    }

    /// Charges a user for a relay that lasts, in the place of what it was.
    pub(super) fn charge_lasting(&self, user: &str, before: usize, cost: usize) -> Result<(), Full> {
        let (shares, total) = (&self.bounds.retained, &self.counters.retained_bytes);
        shares.give(Some(user), before, total);
        if shares.take(Some(user), cost, total).is_ok() {
            return Ok(());
        }
        shares.add(Some(user), before, total);
        add(&self.counters.retained_refused, 1);
        Err(Full)
    }

    /// A relay that lasted is over.
    pub(super) fn lasted(&self, user: &str, lasting: &Lasting) {
        self.bounds.retained.give(Some(user), lasting.cost, &self.counters.retained_bytes);
    }
}

/// Whose state it is, from when, and whether it says that what its key stood for is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retained<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) is_over: bool,
    pub(super) mono_ms: u64,
}

#[cfg(test)]
mod tests;
