//! The channels that were used of late: their row and their head, so that numbering costs no query.
//!
//! Bounded without a list of uses: two generations of 50,000. What is looked up moves to the young one; when that
//! is full it becomes the old one and the old one is forgotten. So the 50,000 most recently used channels are
//! always here, and never more than 100,000. Hashing is std's keyed one, since clients choose the names.

use std::collections::HashMap;
use std::mem;

/// Entries of one generation; twice this is the bound.
const GENERATION_ENTRIES_MAX: usize = 50_000;

/// A channel as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channel {
    /// Its row in `channels`.
    pub(crate) id: i64,
    /// The highest offset that is committed.
    pub(crate) head: u64,
    /// The highest offset that is kept no longer.
    pub(crate) tail: u64,
    /// The last term in which something was appended to it, 0 for none.
    pub(crate) term: u64,
}

/// Only what is committed is put here; after a failed batch everything is forgotten and read again.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    young: HashMap<Box<str>, Channel>,
    old: HashMap<Box<str>, Channel>,
}

impl Heads {
    pub(crate) fn find(&mut self, name: &str) -> Option<Channel> {
        if let Some(channel) = self.young.get(name) {
            return Some(*channel);
        }
        let (name, channel) = self.old.remove_entry(name)?;
        self.insert_young(name, channel);
        Some(channel)
    }

    pub(crate) fn put(&mut self, name: &str, channel: Channel) {
        if let Some(known) = self.young.get_mut(name) {
            *known = channel;
            return;
        }
        let name = self.old.remove_entry(name).map_or_else(|| name.into(), |(name, _)| name);
        self.insert_young(name, channel);
    }

    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    fn insert_young(&mut self, name: Box<str>, channel: Channel) {
        if self.young.len() >= GENERATION_ENTRIES_MAX {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(name, channel);
    }
}

#[cfg(test)]
mod tests {
    use super::{Channel, GENERATION_ENTRIES_MAX, Heads};

    #[test]
    fn never_more_than_two_generations_are_kept_and_what_is_used_stays() {
        let mut heads = Heads::default();
        heads.put("used", Channel { id: 1, head: 1, tail: 0, term: 0 });
        for id in 0..5 * GENERATION_ENTRIES_MAX as i64 {
            heads.put(&format!("channel:{id}"), Channel { id, head: 3, tail: 0, term: 0 });
            if id % 1_000 == 0 {
                assert_eq!(heads.find("used"), Some(Channel { id: 1, head: 1, tail: 0, term: 0 }));
            }
            assert!(heads.young.len() + heads.old.len() <= 2 * GENERATION_ENTRIES_MAX);
        }
        assert_eq!(heads.find("channel:0"), None);
    }

    #[test]
    fn a_newer_head_takes_the_place_of_one_in_the_old_generation() {
        let mut heads = Heads::default();
        heads.put("a", Channel { id: 1, head: 1, tail: 0, term: 0 });
        for id in 0..GENERATION_ENTRIES_MAX as i64 {
            heads.put(&format!("channel:{id}"), Channel { id, head: 3, tail: 0, term: 0 });
        }
        assert!(heads.old.contains_key("a"));
        heads.put("a", Channel { id: 1, head: 2, tail: 0, term: 0 });
        assert_eq!(heads.find("a"), Some(Channel { id: 1, head: 2, tail: 0, term: 0 }));
        assert!(!heads.old.contains_key("a"));
    }
}
