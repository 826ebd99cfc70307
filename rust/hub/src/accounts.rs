//! What all connections of one user, or of one address, share on all shards: their buckets and how many they are.
//!
//! An account is found once, when a connection opens, and goes with its last connection. Messages touch only the
//! buckets, by one atomic exchange each; the tables are locked when somebody comes or goes, so that a number of
//! sessions is exact however many come at once.

use crate::ConnId;
use crate::bucket::SharedBucket;
use crate::inbox::lock;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex};

/// Tables beside each other, so that shards seldom meet.
const STRIPES: usize = 32;

/// The buckets of one user or address.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub commands: SharedBucket,
    pub relays: SharedBucket,
}

/// How many connections an account may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seats {
    /// 0 for no limit.
    pub most: usize,
    /// Whether the oldest makes room for one that is too many.
    pub replaces: bool,
}

/// As many connections as there may be are open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug, Default)]
struct Entry {
    account: Arc<Account>,
    open: usize,
    /// The open ones, oldest first; kept only where the oldest makes room.
    order: VecDeque<ConnId>,
}

/// Accounts by user or by address.
#[derive(Debug)]
pub(crate) struct Accounts<K> {
    seats: Seats,
    /// Users and addresses come from clients: std's keyed hash.
    hasher: RandomState,
    stripes: Box<[Mutex<HashMap<K, Entry>>]>,
}

impl<K: Hash + Eq + Clone> Accounts<K> {
    pub(crate) fn new(seats: Seats) -> Self {
        Self { seats, hasher: RandomState::new(), stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    fn stripe(&self, key: &K) -> &Mutex<HashMap<K, Entry>> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }

    /// Takes a seat for a connection; the second is the one that has to go for it.
    pub(crate) fn enter(&self, key: &K, conn: ConnId) -> Result<(Arc<Account>, Option<ConnId>), Full> {
        let Seats { most, replaces } = self.seats;
        let mut table = lock(self.stripe(key));
        if !replaces && most > 0 && table.get(key).is_some_and(|entry| entry.open >= most) {
            return Err(Full);
        }
        let entry = table.entry(key.clone()).or_default();
        entry.open += 1;
        let mut replaced = None;
        if replaces && most > 0 {
            entry.order.push_back(conn);
            if entry.open > most {
                entry.open -= 1;
                replaced = entry.order.pop_front();
            }
        }
        Ok((Arc::clone(&entry.account), replaced))
    }

    /// A connection that had a seat ended; one that had to make room has none any more.
    pub(crate) fn leave(&self, key: &K, conn: ConnId) {
        let Seats { most, replaces } = self.seats;
        let mut table = lock(self.stripe(key));
        let Some(entry) = table.get_mut(key) else { return };
        if replaces && most > 0 {
            let Some(place) = entry.order.iter().position(|open| *open == conn) else { return };
            entry.order.remove(place);
        }
        entry.open -= 1;
        if entry.open == 0 {
            table.remove(key);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(n: u32) -> ConnId {
        ConnId::new(0, n, 0)
    }

    #[test]
    fn a_full_account_refuses_and_goes_with_its_last_connection() {
        let accounts = Accounts::new(Seats { most: 2, replaces: false });
        assert!(accounts.enter(&"ann", conn(1)).is_ok());
        assert!(accounts.enter(&"ann", conn(2)).is_ok());
        assert_eq!(accounts.enter(&"ann", conn(3)).err(), Some(Full));
        assert!(accounts.enter(&"bob", conn(4)).is_ok());
        accounts.leave(&"ann", conn(1));
        assert!(accounts.enter(&"ann", conn(3)).is_ok());
        for (user, n) in [("ann", 2), ("ann", 3), ("bob", 4)] {
            accounts.leave(&user, conn(n));
        }
        assert_eq!(accounts.len(), 0);
    }

    #[test]
    fn the_oldest_makes_room_and_its_end_takes_nobody_elses_seat() {
        let accounts = Accounts::new(Seats { most: 2, replaces: true });
        let replaced = [1, 2, 3, 4].map(|n| accounts.enter(&"ann", conn(n)).unwrap().1);
        assert_eq!(replaced, [None, None, Some(conn(1)), Some(conn(2))]);
        accounts.leave(&"ann", conn(1));
        accounts.leave(&"ann", conn(2));
        assert_eq!(accounts.enter(&"ann", conn(5)).unwrap().1, Some(conn(3)), "still two of them");
        accounts.leave(&"ann", conn(4));
        accounts.leave(&"ann", conn(5));
        assert_eq!(accounts.len(), 0);
    }

    #[test]
    fn seats_are_exact_however_many_come_at_once() {
        let accounts = Arc::new(Accounts::new(Seats { most: 10, replaces: false }));
        let threads: Vec<_> = (0..4_u32)
            .map(|thread| {
                let accounts = Arc::clone(&accounts);
                std::thread::spawn(move || {
                    (0..1_000).filter(|n| accounts.enter(&"ann", conn(thread * 1_000 + n)).is_ok()).count()
                })
            })
            .collect();
        assert_eq!(threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 10);
    }
}
