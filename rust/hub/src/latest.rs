//! The newest event of each key, for members that come later: how far a file is, where a cursor stands.
//!
//! A channel retains what has a key and no offset, as its policy says: so many keys, each for a time, the one that was
//! renewed longest ago going first. All channels together hold at most `retained_bytes_max`; what would pass that is not
//! retained, and what it would have replaced goes: nobody is told of a state that is no longer true.

use crate::counters::{Counters, add, sub};
use crate::prepared::{Form, Prepared};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a place is taken to cost beside frame and key.
const PLACE_BYTES: usize = 160;
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
}

impl State {
    fn cost(&self) -> usize {
        PLACE_BYTES + self.key.len() + self.frame.wire_len(Form::Plain)
    }
}

impl Latest {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Makes this event the state of its key. `bytes_max` is what all channels may hold.
    pub(crate) fn set(
        &mut self,
        key: &Arc<str>,
        frame: &Arc<Prepared>,
        now_ms: u64,
        retain: Retain,
        bytes_max: usize,
        counters: &Counters,
    ) {
        self.remove(key, counters);
        let state = State { key: Arc::clone(key), frame: Arc::clone(frame), since_ms: now_ms };
        let cost = state.cost();
        while self.0.as_ref().is_some_and(|s| s.by_age.len() >= retain.keys || s.bytes + cost > CHANNEL_BYTES_MAX) {
            self.pop_oldest(counters);
        }
        let held = counters.retained_bytes.load(Ordering::Relaxed) as usize;
        if cost > CHANNEL_BYTES_MAX || held + cost > bytes_max {
            return add(&counters.retained_refused, 1);
        }
        let states = self.0.get_or_insert_default();
        states.last += 1;
        states.bytes += cost;
        states.numbers.insert(Arc::clone(key), states.last);
        states.by_age.insert(states.last, state);
        add(&counters.retained, 1);
        add(&counters.retained_bytes, cost as u64);
    }

    /// What the key stood for is over.
    pub(crate) fn remove(&mut self, key: &str, counters: &Counters) {
        if let Some(number) = self.0.as_ref().and_then(|states| states.numbers.get(key)) {
            self.take(*number, counters);
        }
    }

    /// Lets go of what was not renewed in time.
    pub(crate) fn trim(&mut self, now_ms: u64, retain: Retain, counters: &Counters) {
        let is_old = |state: &State| state.since_ms.saturating_add(retain.ms) <= now_ms;
        while self.0.as_ref().is_some_and(|states| states.by_age.values().next().is_some_and(is_old)) {
            self.pop_oldest(counters);
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self, counters: &Counters) {
        while self.0.is_some() {
            self.pop_oldest(counters);
        }
    }

    /// Keys and events as a new member gets them, the one that was renewed longest ago first.
    pub(crate) fn events(&self) -> Vec<(Arc<str>, Arc<Prepared>)> {
        let states = self.0.iter().flat_map(|states| states.by_age.values());
        states.map(|state| (Arc::clone(&state.key), Arc::clone(&state.frame))).collect()
    }

    fn pop_oldest(&mut self, counters: &Counters) {
        if let Some(number) = self.0.as_ref().and_then(|states| states.by_age.keys().next().copied()) {
            self.take(number, counters);
        }
    }

    fn take(&mut self, number: u64, counters: &Counters) {
        let Some(states) = self.0.as_mut() else { return };
        let Some(state) = states.by_age.remove(&number) else { return };
        states.numbers.remove(&state.key);
        states.bytes -= state.cost();
        sub(&counters.retained, 1);
        sub(&counters.retained_bytes, state.cost() as u64);
        if states.by_age.is_empty() {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETAIN: Retain = Retain { keys: 3, ms: 1_000 };
    const BYTES_MAX: usize = 1 << 20;

    fn set(latest: &mut Latest, key: &str, text: &str, now_ms: u64, counters: &Counters) {
        latest.set(&key.into(), &Prepared::text(text.as_bytes()), now_ms, RETAIN, BYTES_MAX, counters);
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
        let (mut latest, counters) = (Latest::default(), Counters::default());
        for (key, text) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4"), ("d", "5")] {
            set(&mut latest, key, text, 0, &counters);
        }
        assert_eq!(keys(&latest), "cad");
        assert_eq!(latest.events()[1].1.payload(), b"4");
        assert_eq!(held(&counters).0, 3);
        latest.remove("a", &counters);
        latest.remove("a", &counters);
        assert_eq!(keys(&latest), "cd");
        latest.clear(&counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 0));
    }

    #[test]
    fn a_state_that_is_not_renewed_goes_after_its_time() {
        let (mut latest, counters) = (Latest::default(), Counters::default());
        set(&mut latest, "a", "1", 0, &counters);
        set(&mut latest, "b", "2", 10, &counters);
        set(&mut latest, "a", "3", 20, &counters);
        latest.trim(1_009, RETAIN, &counters);
        assert_eq!(keys(&latest), "ba");
        latest.trim(1_010, RETAIN, &counters);
        assert_eq!(keys(&latest), "a");
        latest.trim(1_020, RETAIN, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 0));
    }

    #[test]
    fn over_the_limit_of_all_channels_nothing_is_retained_and_nothing_stale_stays() {
        let (mut latest, counters) = (Latest::default(), Counters::default());
        set(&mut latest, "a", "small", 0, &counters);
        latest.set(&"a".into(), &Prepared::text(&[b'x'; 900]), 0, RETAIN, 1_000, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 1));
    }

    #[test]
    fn a_channel_holds_so_many_bytes_and_never_refuses_a_small_one_for_older_ones() {
        let (mut latest, counters) = (Latest::default(), Counters::default());
        let large = "x".repeat(CHANNEL_BYTES_MAX / 2);
        for key in ["a", "b"] {
            set(&mut latest, key, &large, 0, &counters);
        }
        assert_eq!(keys(&latest), "b");
        set(&mut latest, "c", &"x".repeat(CHANNEL_BYTES_MAX), 0, &counters);
        assert!(latest.is_empty());
        assert_eq!(held(&counters), (0, 0, 1));
    }
}
