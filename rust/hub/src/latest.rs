//! The newest event of each key, for members that come later: how far a file is, where a cursor stands.
//!
//! A channel retains what has a key and no offset, as its policy says: so many keys, each for a time, the one that was
//! renewed longest ago going first. All channels together hold at most `retained_bytes_max`, of which each user has a
//! share; what would pass that is not retained, and what it would have replaced goes: nobody is told of a state that is
//! no longer true.

use crate::counters::{Counters, add, sub};
use crate::portions::Portions;
use crate::prepared::Prepared;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What a place is taken to cost beside the bytes of frame and key.
const PLACE_BYTES: usize = 256;
/// Bytes that one channel retains: a new member gets all of it at once, and its outbox has to take that.
const CHANNEL_BYTES_MAX: usize = 512 << 10;

/// What a channel retains for late subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retain {
    /// Keys; 0 retains nothing.
    pub keys: usize,
    /// How long a state is true unless it is renewed, in milliseconds.
    pub ms: u64,
}

impl Retain {
    /// Nothing.
    pub const NOTHING: Self = Self { keys: 0, ms: 0 };
}

/// A channel's states.
#[derive(Debug, Default)]
pub(crate) struct Latest(Option<Box<States>>);

#[derive(Debug, Default)]
struct States {
    /// By number, which rises with each renewal.
    by_age: BTreeMap<u64, State>,
    /// Keys come from clients: std's keyed hash.
    numbers: HashMap<Arc<str>, u64>,
    last: u64,
    bytes: usize,
}

#[derive(Debug)]
struct State {
    key: Arc<str>,
    frame: Arc<Prepared>,
    since_ms: u64,
    /// Who is charged for it, and how much.
    user: Option<Arc<str>>,
    cost: usize,
}

impl Latest {
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |states| states.by_age.values().map(|state| state.cost).sum())
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Makes this event the state of its key. `bytes` is what its frame holds, `shares` who is charged how much.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own, and there is one caller")]
    pub(crate) fn set(
        &mut self,
        key: &Arc<str>,
        frame: &Arc<Prepared>,
        bytes: usize,
        user: Option<&str>,
        now_ms: u64,
        retain: Retain,
        shares: &Portions,
        counters: &Counters,
    ) {
        self.remove(key, shares, counters);
        let cost = PLACE_BYTES + key.len() + user.map_or(0, str::len) + bytes;
        while self.0.as_ref().is_some_and(|s| s.by_age.len() >= retain.keys || s.bytes + cost > CHANNEL_BYTES_MAX) {
            self.pop_oldest(shares, counters);
        }
        if cost > CHANNEL_BYTES_MAX || shares.take(user, cost, &counters.retained_bytes).is_err() {
            return add(&counters.retained_refused, 1);
        }
        let (key, frame) = (Arc::clone(key), Arc::clone(frame));
        let state = State { key: Arc::clone(&key), frame, since_ms: now_ms, user: user.map(Into::into), cost };
        let states = self.0.get_or_insert_default();
        states.last += 1;
        states.bytes += cost;
        states.numbers.insert(key, states.last);
        states.by_age.insert(states.last, state);
        add(&counters.retained, 1);
    }

    /// What the key stood for is over.
    pub(crate) fn remove(&mut self, key: &str, shares: &Portions, counters: &Counters) {
        if let Some(number) = self.0.as_ref().and_then(|states| states.numbers.get(key)) {
            self.take(*number, shares, counters);
        }
    }

    /// Lets go of what was not renewed in time.
    pub(crate) fn trim(&mut self, now_ms: u64, retain: Retain, shares: &Portions, counters: &Counters) {
        let is_old = |state: &State| state.since_ms.saturating_add(retain.ms) <= now_ms;
        while self.0.as_ref().is_some_and(|states| states.by_age.values().next().is_some_and(is_old)) {
            self.pop_oldest(shares, counters);
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self, shares: &Portions, counters: &Counters) {
        while self.0.is_some() {
            self.pop_oldest(shares, counters);
        }
    }

    /// Keys and events as a new member gets them, the one that was renewed longest ago first.
    pub(crate) fn events(&self) -> Vec<(Arc<str>, Arc<Prepared>)> {
        let states = self.0.iter().flat_map(|states| states.by_age.values());
        states.map(|state| (Arc::clone(&state.key), Arc::clone(&state.frame))).collect()
    }

    fn pop_oldest(&mut self, shares: &Portions, counters: &Counters) {
        if let Some(number) = self.0.as_ref().and_then(|states| states.by_age.keys().next().copied()) {
            self.take(number, shares, counters);
        }
    }

    fn take(&mut self, number: u64, shares: &Portions, counters: &Counters) {
        let Some(states) = self.0.as_mut() else { return };
        let Some(state) = states.by_age.remove(&number) else { return };
        states.numbers.remove(&state.key);
        states.bytes -= state.cost;
        sub(&counters.retained, 1);
        shares.give(state.user.as_deref(), state.cost, &counters.retained_bytes);
        if states.by_age.is_empty() {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    const RETAIN: Retain = Retain { keys: 3, ms: 1_000 };

    fn shares() -> Portions {
        Portions::new(1 << 20, 0)
    }

    fn set(latest: &mut Latest, key: &str, text: &str, now_ms: u64, shares: &Portions, counters: &Counters) {
        let frame = Prepared::text(text.as_bytes());
        latest.set(&key.into(), &frame, text.len(), Some("ann"), now_ms, RETAIN, shares, counters);
    }

    fn keys(latest: &Latest) -> String {
        latest.events().iter().map(|(key, _)| &**key).collect()
    }

    fn held(counters: &Counters) -> (u64, u64, u64) {
        let [held, bytes, refused] = [&counters.retained, &counters.retained_bytes, &counters.retained_refused];
        (held.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed), refused.load(Ordering::Relaxed))
    }

    #[test]
    fn the_newest_of_each_key_stays_and_the_one_renewed_longest_ago_goes_first() {
        let (mut latest, shares, counters) = (Latest::default(), shares(), Counters::default());
        for (key, text) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4"), ("d", "5")] {
            set(&mut latest, key, text, 0, &shares, &counters);
        }
        assert_eq!(keys(&latest), "cad");
        assert_eq!(latest.events()[1].1.payload(), b"4");
        assert_eq!(held(&counters).0, 3);
        latest.remove("a", &shares, &counters);
        latest.remove("a", &shares, &counters);
        assert_eq!(keys(&latest), "cd");
        latest.clear(&shares, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 0));
    }

    #[test]
    fn a_state_that_is_not_renewed_goes_after_its_time() {
        let (mut latest, shares, counters) = (Latest::default(), shares(), Counters::default());
        set(&mut latest, "a", "1", 0, &shares, &counters);
        set(&mut latest, "b", "2", 10, &shares, &counters);
        set(&mut latest, "a", "3", 20, &shares, &counters);
        latest.trim(1_009, RETAIN, &shares, &counters);
        assert_eq!(keys(&latest), "ba");
        latest.trim(1_010, RETAIN, &shares, &counters);
        assert_eq!(keys(&latest), "a");
        latest.trim(1_020, RETAIN, &shares, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 0));
    }

    #[test]
    fn over_the_limit_of_all_channels_nothing_is_retained_and_nothing_stale_stays() {
        let (mut latest, shares, counters) = (Latest::default(), Portions::new(1_000, 0), Counters::default());
        set(&mut latest, "a", "small", 0, &shares, &counters);
        set(&mut latest, "a", &"x".repeat(900), 0, &shares, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 1));
    }

    #[test]
    fn a_user_retains_a_share_and_another_one_finds_room_beside() {
        let (mut latest, shares, counters) = (Latest::default(), Portions::new(10_000, 4), Counters::default());
        let states = |who: &str, latest: &mut Latest| {
            let frame = Prepared::text(b"1");
            (0..20).for_each(|n| {
                let retain = Retain { keys: 100, ms: 1_000 };
                latest.set(&format!("{who}{n}").into(), &frame, 1, Some(who), 0, retain, &shares, &counters);
            });
            keys(latest).matches(who).count()
        };
        let most = states("ann", &mut latest);
        assert!((6..=7).contains(&most), "a fifth of the whole: {most}");
        assert!(states("bob", &mut latest) >= most - 2);
        latest.clear(&shares, &counters);
        assert_eq!((shares.held(), held(&counters).1), ((0, 0), 0));
    }

    #[test]
    fn a_channel_holds_so_many_bytes_and_never_refuses_a_small_one_for_older_ones() {
        let (mut latest, shares, counters) = (Latest::default(), shares(), Counters::default());
        let large = "x".repeat(CHANNEL_BYTES_MAX / 2);
        for key in ["a", "b"] {
            set(&mut latest, key, &large, 0, &shares, &counters);
        }
        assert_eq!(keys(&latest), "b");
        set(&mut latest, "c", &"x".repeat(CHANNEL_BYTES_MAX), 0, &shares, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 1));
    }
}
