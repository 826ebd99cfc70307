//! When a shard may sleep, and who wakes it: one flag, whose steps have an order.
//!
//! Who hands something over puts it down first and looks at the flag then; a shard raises the flag first and looks at
//! what was put down then. Whatever the two do at the same time, one of them sees the other: nothing is left to a shard
//! that sleeps. Looking takes the flag down, so of all that hand over before the shard has woken, one wakes it.
//! The flag is only ever swapped: so its values have one order for everybody, and a store would be no cheaper where it
//! has to be as strict. `tests` runs this very type through every interleaving that the memory model allows.

use std::sync::atomic::{AtomicBool, Ordering};

/// What the flag is made of: std's atomic, or a model checker's.
pub(crate) trait Flag {
    fn swap(&self, raised: bool) -> bool;
}

impl Flag for AtomicBool {
    fn swap(&self, raised: bool) -> bool {
        Self::swap(self, raised, Ordering::SeqCst)
    }
}

/// Whether a shard sleeps, or is about to.
#[derive(Debug, Default)]
pub(crate) struct Wake<F = AtomicBool> {
    asleep: F,
}

impl<F: Flag> Wake<F> {
    /// The shard, before it waits: true when it may, since `is_empty` says that nothing was put down.
    pub(crate) fn may_sleep(&self, is_empty: impl FnOnce() -> bool) -> bool {
        self.asleep.swap(true);
        if is_empty() {
            return true;
        }
        self.asleep.swap(false);
        false
    }

    /// The shard, after it has waited, for whatever reason it goes on.
    pub(crate) fn woke(&self) {
        self.asleep.swap(false);
    }

    /// Whoever has put something down: true when the shard has to be woken, and by nobody else.
    pub(crate) fn is_to_be_woken(&self) -> bool {
        self.asleep.swap(false)
    }
}

#[cfg(test)]
mod tests;
