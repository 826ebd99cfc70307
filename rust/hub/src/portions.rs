//! What users hold of something that all of them share, in bytes.
//!
//! A user may hold as much of it as stays free, divided by a number: alone a good part of the whole, beside others as
//! much as they; and whoever holds nothing finds something free, however many take all that they can get. The share
//! is known from two numbers, so that nobody is looked through. What no user causes (the app itself, a service) is held
//! under no name, and may be half of the whole.

use crate::lock::lock;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Tables beside each other, so that shards seldom meet.
const STRIPES: usize = 32;

/// There is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Who holds how much. The sum stands in a counter, which each call is given.
#[derive(Debug)]
pub(crate) struct Portions {
    bytes_max: usize,
    /// What stays free, divided by this, is the share of each; 0 where only the sum is limited.
    divisor: usize,
    /// Users come from clients: std's keyed hash. Only who holds something stands in it.
    hasher: RandomState,
    stripes: Vec<Stripe>,
}

/// Bytes by user.
type Stripe = Mutex<HashMap<Arc<str>, usize>>;

impl Portions {
    pub(crate) fn new(bytes_max: usize, divisor: usize) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { bytes_max, divisor, hasher: RandomState::new(), stripes }
    }

    fn stripe(&self, user: &str) -> &Stripe {
        &self.stripes[self.hasher.hash_one(user) as usize % STRIPES]
    }

    /// Takes so many bytes for a user; what the user holds then.
    ///
    /// # Errors
    /// [`Full`]: the user's share or the whole does not allow it, and nothing is taken.
    pub(crate) fn take(&self, user: Option<&str>, bytes: usize, total: &AtomicU64) -> Result<usize, Full> {
        let before = total.fetch_add(bytes as u64, Ordering::Relaxed) as usize;
        let free = self.bytes_max.checked_sub(before + bytes);
        let user = user.unwrap_or_default();
        let mut stripe = lock(self.stripe(user));
        let held = stripe.get(user).copied().unwrap_or(0) + bytes;
        let divisor = if user.is_empty() { self.divisor.min(1) } else { self.divisor };
        let fits = |free: usize| divisor == 0 || held <= free / divisor;
        if !free.is_some_and(fits) {
            drop(stripe);
            total.fetch_sub(bytes as u64, Ordering::Relaxed);
            return Err(Full);
        }
        set(&mut stripe, user, held);
        Ok(held)
    }

    /// Takes what cannot be refused.
    pub(crate) fn add(&self, user: Option<&str>, bytes: usize, total: &AtomicU64) {
        total.fetch_add(bytes as u64, Ordering::Relaxed);
        let user = user.unwrap_or_default();
        let mut stripe = lock(self.stripe(user));
        let held = stripe.get(user).copied().unwrap_or(0) + bytes;
        set(&mut stripe, user, held);
    }

    /// Gives back what was taken.
    pub(crate) fn give(&self, user: Option<&str>, bytes: usize, total: &AtomicU64) {
        let user = user.unwrap_or_default();
        let mut stripe = lock(self.stripe(user));
        let held = stripe.get(user).copied().unwrap_or(0);
        debug_assert!(held >= bytes, "{user:?} gives back {bytes} bytes of {held}");
        set(&mut stripe, user, held.saturating_sub(bytes));
        drop(stripe);
        total.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Whether a user who holds so much should slow down: an eighth of what is free, divided as shares are.
    pub(crate) fn is_much(&self, held: usize, total: &AtomicU64) -> bool {
        let free = self.bytes_max.saturating_sub(total.load(Ordering::Relaxed) as usize);
        self.divisor > 0 && held > free / (8 * self.divisor)
    }

    /// Users that hold something, and what all of them do.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        let tables: Vec<(usize, usize)> =
            self.stripes.iter().map(|stripe| lock(stripe)).map(|table| (table.len(), table.values().sum())).collect();
        (tables.iter().map(|table| table.0).sum(), tables.iter().map(|table| table.1).sum())
    }
}

fn set(table: &mut HashMap<Arc<str>, usize>, user: &str, held: usize) {
    match table.get_mut(user) {
        Some(_) if held == 0 => drop(table.remove(user)),
        Some(known) => *known = held,
        None if held == 0 => {}
        None => drop(table.insert(user.into(), held)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_alone_has_half_and_each_of_many_as_much_as_stays_free() {
        let (shares, total) = (Portions::new(1_000, 1), AtomicU64::new(0));
        assert_eq!(shares.take(Some("ann"), 500, &total), Ok(500));
        assert_eq!(shares.take(Some("ann"), 1, &total), Err(Full));
        assert_eq!(shares.take(Some("bob"), 250, &total), Ok(250));
        assert_eq!(shares.take(Some("bob"), 1, &total), Err(Full));
        assert_eq!(shares.take(None, 125, &total), Ok(125));
        assert_eq!(total.load(Ordering::Relaxed), 875, "what is refused is not counted");
        shares.give(Some("ann"), 500, &total);
        assert_eq!(shares.take(Some("bob"), 62, &total), Ok(312));
        shares.give(Some("bob"), 312, &total);
        shares.give(None, 125, &total);
        assert_eq!((shares.held(), total.load(Ordering::Relaxed)), ((0, 0), 0));
    }

    #[test]
    fn however_many_take_all_that_they_can_get_a_newcomer_finds_room() {
        let (shares, total) = (Portions::new(64 << 20, 1), AtomicU64::new(0));
        let users: Vec<String> = (0..100).map(|n| format!("greedy-{n}")).collect();
        for _ in 0..200 {
            for user in &users {
                let _ = shares.take(Some(user), 1 << 20, &total);
            }
        }
        assert!(shares.take(Some("new"), 500_000, &total).is_ok(), "{total:?} bytes are taken");
    }

    #[test]
    fn without_shares_the_whole_is_the_limit() {
        let (shares, total) = (Portions::new(1_000, 0), AtomicU64::new(0));
        assert_eq!(shares.take(Some("ann"), 1_000, &total), Ok(1_000));
        assert_eq!(shares.take(Some("bob"), 1, &total), Err(Full));
        shares.add(Some("bob"), 7, &total);
        assert_eq!(shares.held(), (2, 1_007));
        assert!(!shares.is_much(1_000, &total));
    }

    #[test]
    fn a_sum_is_exact_however_many_take_and_give_at_once() {
        let (shares, total) = (Arc::new(Portions::new(100_000, 2)), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let (shares, total) = (Arc::clone(&shares), Arc::clone(&total));
                std::thread::spawn(move || {
                    for n in 0..2_000_u64 {
                        let user = format!("u{}", (n + thread) % 7);
                        let bytes = (n % 977) as usize;
                        if shares.take(Some(&user), bytes, &total).is_ok() {
                            shares.give(Some(&user), bytes, &total);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((shares.held(), total.load(Ordering::Relaxed)), ((0, 0), 0));
    }
}
