//! Commands of one connection that Python has: how many, and what they hold.
//!
//! Credits come back by number, in about the order in which commands went up. Bytes are kept for two generations: the
//! older is given back when as many credits have come as it had commands, and the newer takes its place. So what is
//! charged is never less than what is held, and at most that of two rounds.

/// The commands under way of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Way {
    count: u16,
    /// Of these, those of the older generation.
    older: u16,
    bytes: u32,
    older_bytes: u32,
}

impl Way {
    /// Commands under way.
    pub(crate) const fn count(&self) -> u16 {
        self.count
    }

    /// Bytes that they are charged.
    #[cfg(test)]
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// A command of so many bytes goes up.
    pub(crate) const fn up(&mut self, bytes: usize) {
        let bytes = bytes as u32;
        if self.count == 0 {
            (self.older, self.older_bytes) = (1, bytes);
        }
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Credits of so many come back; returns how many had gone up, and the bytes that are given back with them.
    pub(crate) const fn back(&mut self, credits: u16) -> (u16, usize) {
        let credits = if credits < self.count { credits } else { self.count };
        self.count -= credits;
        if self.count > 0 && credits < self.older {
            self.older -= credits;
            return (credits, 0);
        }
        let freed = if self.count == 0 { self.bytes } else { self.older_bytes };
        self.bytes -= freed;
        (self.older, self.older_bytes) = (self.count, self.bytes);
        (credits, freed as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn a_large_command_is_charged_until_it_is_answered_whatever_small_ones_come_and_go() {
        let mut way = Way::default();
        for bytes in [10, 10, 10, 1_000] {
            way.up(bytes);
        }
        assert_eq!((way.back(1), way.bytes()), ((1, 10), 1_020));
        assert_eq!((way.back(2), way.bytes()), ((2, 0), 1_020));
        assert_eq!((way.back(1), way.bytes(), way.count()), ((1, 1_020), 0, 0));
        assert_eq!(way.back(5), (0, 0));
    }

    #[test]
    fn it_never_charges_less_than_what_is_under_way_and_at_most_two_rounds() {
        let (mut way, mut held) = (Way::default(), VecDeque::new());
        for n in 0..10_000_usize {
            let bytes = (n * 7_919) % 1_000;
            way.up(bytes);
            held.push_back(bytes);
            if held.len() == 8 || n % 5 == 0 {
                way.back(1);
                held.pop_front();
            }
            assert!(way.bytes() >= held.iter().sum());
            assert!(way.bytes() <= 17 * 1_000);
        }
    }
}
