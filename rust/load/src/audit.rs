//! What one receiver of one numbered sequence has seen: every number once, in order, or a named fault.
//!
//! Invariant: `seen + still missing = next - first`. A number above `next` opens a hole; a number that fills a hole later was
//! reordered, not lost; any other number below `next` was doubled. Holes are ranges, so losing a million numbers costs one entry.
//! Called once per delivery; without a fault it is one comparison and one addition.

/// Faults of one receiver, or the sum over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Numbers that never came.
    pub lost: u64,
    /// Deliveries of a number that had come before.
    pub doubled: u64,
    /// Numbers that came after a later one.
    pub reordered: u64,
}

impl Faults {
    /// Whether nothing was wrong.
    #[must_use]
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    /// Add the faults of another receiver.
    pub const fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
    }
}

/// The receiver's account.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    next: u64,
    doubled: u64,
    reordered: u64,
    holes: Vec<(u64, u64)>,
}

impl Audit {
    /// Expect `first` and everything after it.
    #[must_use]
    pub fn starting_at(first: u64) -> Self {
        Self { next: first, ..Self::default() }
    }

    /// Account for one delivery; true if the number was new.
    pub fn see(&mut self, number: u64) -> bool {
        if number == self.next {
            self.next += 1;
            return true;
        }
        if number > self.next {
            self.holes.push((self.next, number));
            self.next = number + 1;
            return true;
        }
        let Some(index) = self.holes.iter().position(|hole| (hole.0..hole.1).contains(&number)) else {
            self.doubled += 1;
            return false;
        };
        let (start, end) = self.holes.swap_remove(index);
        self.holes.extend([(start, number), (number + 1, end)].iter().filter(|hole| hole.0 < hole.1));
        self.reordered += 1;
        true
    }

    /// The number after the largest one seen.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// What is wrong as long as nothing more comes: a number that was overtaken counts until it comes.
    #[must_use]
    pub fn faults_so_far(&self) -> u64 {
        let Faults { lost, doubled, reordered } = self.close(self.next);
        lost + doubled + reordered
    }

    /// The account when `end` is the number after the last one that was sent.
    #[must_use]
    pub fn close(&self, end: u64) -> Faults {
        let inside: u64 = self.holes.iter().map(|hole| hole.1 - hole.0).sum();
        Faults { lost: inside + end.saturating_sub(self.next), doubled: self.doubled, reordered: self.reordered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(numbers: &[u64], end: u64) -> Faults {
        let mut audit = Audit::starting_at(1);
        for number in numbers {
            audit.see(*number);
        }
        audit.close(end)
    }

    #[test]
    fn each_kind_of_fault_is_told_from_the_others() {
        let faults = |lost, doubled, reordered| Faults { lost, doubled, reordered };
        for (numbers, end, expected) in [
            (&[1, 2, 3][..], 4, faults(0, 0, 0)),
            (&[1, 3], 4, faults(1, 0, 0)),
            (&[2, 3], 4, faults(1, 0, 0)),
            (&[1, 2], 4, faults(1, 0, 0)),
            (&[], 4, faults(3, 0, 0)),
            (&[1, 2, 2, 3], 4, faults(0, 1, 0)),
            (&[1, 1, 3, 2, 2], 4, faults(0, 2, 1)),
            (&[1, 3, 2], 4, faults(0, 0, 1)),
            (&[5, 3, 1], 6, faults(2, 0, 2)),
            (&[0, 1, 2, 3], 4, faults(0, 1, 0)),
        ] {
            assert_eq!(account(numbers, end), expected, "{numbers:?} of 1..{end}");
        }
    }

    #[test]
    fn hole_of_a_million_is_one_entry_and_counts_as_a_million() {
        let mut audit = Audit::starting_at(0);
        audit.see(1_000_000);
        assert_eq!(audit.holes.len(), 1);
        assert_eq!(audit.close(1_000_001).lost, 1_000_000);
    }
}
