//! Terms: whether a position belongs to the history that a channel has now.
//!
//! Every start of the log begins a term; its epoch is what confirmations name. A position names the term in which it was
//! given. It belongs to this history where that term is one of the log's and its offset is below the channel's first of
//! any later term: what was published above that offset in the old term is not what stands there now. So a restart
//! recovers, and a log that was restored from a copy is noticed.

use crate::log_queue::TermStarts;
use std::collections::HashMap;
use std::sync::Arc;

/// The starts of the log, this one the last. The log bounds how many there are.
#[derive(Debug)]
pub struct Terms {
    epoch: Arc<str>,
    current: u64,
    /// Number by epoch. Epochs come from clients: std's keyed hash.
    numbers: HashMap<Box<str>, u64>,
}

impl Terms {
    /// Terms by number and epoch, their numbers rising.
    pub fn new(chain: impl IntoIterator<Item = (u64, Box<str>)>) -> Self {
        let mut terms = Self { epoch: "".into(), current: 0, numbers: HashMap::new() };
        for (number, epoch) in chain {
            (terms.epoch, terms.current) = ((*epoch).into(), number);
            terms.numbers.insert(epoch, number);
        }
        terms
    }

    /// The epoch of this start.
    pub(crate) const fn epoch(&self) -> &Arc<str> {
        &self.epoch
    }

    /// Notes an append of this start in a channel; only the channel's first leaves anything.
    pub(crate) fn note(&self, starts: &mut TermStarts, offset: u64) {
        if starts.firsts.last().is_none_or(|(term, _)| *term < self.current) {
            starts.firsts.push((self.current, offset));
        }
    }

    /// Whether an offset that was given in the term `epoch` still stands for the same events in a channel.
    pub(crate) fn vouch(&self, starts: &TermStarts, epoch: &str, offset: u64) -> bool {
        let Some(&number) = self.numbers.get(epoch) else { return false };
        let later = starts.firsts.iter().find(|(term, _)| *term > number);
        number >= starts.oldest && later.is_none_or(|(_, first)| offset < *first)
    }
}

impl From<&str> for Terms {
    /// A log that was started once.
    fn from(epoch: &str) -> Self {
        Self::new([(1, epoch.into())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_vouched_for_below_the_first_of_any_later_term() {
        let terms = Terms::new([(3, "c".into()), (4, "d".into()), (7, "g".into()), (8, "h".into())]);
        // Nothing was appended in the terms 4 and 8.
        let mut starts = TermStarts { firsts: vec![(2, 5), (3, 10), (7, 20)], oldest: 0 };
        for (epoch, offset, expected) in [
            ("b", 1, false),
            ("c", 0, true),
            ("c", 19, true),
            ("c", 20, false),
            ("d", 19, true),
            ("d", 20, false),
            ("g", 20, true),
            ("g", 1 << 60, true),
            ("h", 1 << 60, true),
        ] {
            assert_eq!(terms.vouch(&starts, epoch, offset), expected, "{epoch} {offset}");
        }
        terms.note(&mut starts, 30);
        terms.note(&mut starts, 31);
        assert_eq!(starts.firsts.last(), Some(&(8, 30)), "one for a term");
        assert_eq!([29, 30].map(|offset| terms.vouch(&starts, "g", offset)), [true, false]);
        starts.oldest = 4;
        assert_eq!(["c", "d"].map(|epoch| terms.vouch(&starts, epoch, 0)), [false, true], "rows may be gone");
    }
}
