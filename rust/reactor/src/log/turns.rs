//! A queue in which those who wait take turns.
//!
//! Each has its own things in their order, and behind one thing of one comes the next one's: whoever brings many delays
//! nobody by more than one of them a turn.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Things by whose they are.
#[derive(Debug)]
pub(crate) struct Turns<K, T> {
    waiting: HashMap<K, VecDeque<T>>,
    /// Those who have something waiting, each once.
    order: VecDeque<K>,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Hash + Eq + Clone, T> Turns<K, T> {
    /// How many things of one wait.
    pub(crate) fn of(&self, whose: &K) -> usize {
        self.waiting.get(whose).map_or(0, VecDeque::len)
    }

    /// Puts a thing behind the others of the same one.
    pub(crate) fn push(&mut self, whose: K, thing: T) {
        let things = self.waiting.entry(whose.clone()).or_default();
        things.push_back(thing);
        if things.len() == 1 {
            self.order.push_back(whose);
        }
    }

    /// Takes the first thing of whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let whose = self.order.pop_front()?;
        let things = self.waiting.get_mut(&whose)?;
        let thing = things.pop_front();
        if things.is_empty() {
            self.waiting.remove(&whose);
        } else {
            self.order.push_back(whose);
        }
        thing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_of_one_is_followed_by_one_of_everybody_else() {
        let mut turns = Turns::default();
        for (whose, thing) in [("ann", 1), ("ann", 2), ("ann", 3), ("bob", 10), ("cem", 20), ("bob", 11)] {
            turns.push(whose, thing);
        }
        assert_eq!((turns.of(&"ann"), turns.of(&"dan")), (3, 0));
        assert_eq!(std::iter::from_fn(|| turns.pop()).collect::<Vec<_>>(), [1, 10, 20, 2, 11, 3]);
        assert!(turns.waiting.is_empty() && turns.order.is_empty(), "nothing is kept of who waits no more");
    }

    #[test]
    fn who_comes_again_waits_behind_those_who_came_meanwhile() {
        let mut turns = Turns::default();
        turns.push("ann", 1);
        turns.push("ann", 2);
        assert_eq!(turns.pop(), Some(1));
        turns.push("bob", 10);
        turns.push("ann", 3);
        assert_eq!(std::iter::from_fn(|| turns.pop()).collect::<Vec<_>>(), [2, 10, 3]);
    }
}
