//! What all connections of one user, or of one address, share on all shards: their buckets and how many they are.
//!
//! An account is found once, when a connection opens. Messages touch only the buckets, by one atomic exchange each; the
//! tables are locked when somebody comes or goes, so that a number of sessions is exact however many come at once.
//!
//! An account outlives its last connection until its buckets are full again: who comes back finds them as they were. So
//! does what a connection had to itself: the next one of the account begins with what is gone from the buckets of those
//! that ended. Accounts without a connection are charged to `accounts_bytes_max`. Where there is no room for one more it
//! is forgotten, and for as long as its buckets could need to fill, whoever is not known shares one account with all
//! others that are not.

use crate::ConnId;
use crate::bucket::{Bucket, Rate, SharedBucket};
use crate::counters::{Counters, add, sub};
use crate::lock::lock;
use crate::waiting::Waiting;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Tables beside each other, so that shards seldom meet.
const STRIPES: usize = 32;
/// Accounts without a connection that are looked at with each that comes or goes, and with each tick of a shard: more
/// than one, so that they go faster than they come.
const LOOKS: usize = 2;
const LOOKS_A_TICK: usize = 256;
/// The time over which refusals are counted.
const REFUSALS_WINDOW_MS: u32 = 10_000;
/// What a kept account takes beside its key: its entry in the table, its buckets, its place in the queue.
const ACCOUNT_BYTES: usize = 384;

/// The buckets of one user or address.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub commands: SharedBucket,
    pub relays: SharedBucket,
    /// What opens a connection.
    handshakes: SharedBucket,
    /// What it has stored in the log, in KiB.
    pub stored: SharedBucket,
    /// What its commands hold in Python.
    pub waiting: Waiting,
    /// Channels that its connections are subscribed to, each as often as it is.
    pub channels: AtomicUsize,
}

/// The rates that the accounts of a table are held to, and those of each connection for itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub commands: Rate,
    pub relays: Rate,
    pub handshakes: Rate,
    pub stored: Rate,
    pub own: OwnRates,
}

/// The rates of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnRates {
    pub commands: Rate,
    pub relays: Rate,
    pub bytes: Rate,
}

/// How often somebody was refused lately. Eight bytes, since every connection has them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Refusals {
    count: u32,
    /// When the window began in which they are counted.
    from_ms: u32,
}

impl Refusals {
    /// Notes one; true where they are more than `most` within the window.
    pub(crate) const fn note_one(&mut self, most: u32, mono_ms: u64) -> bool {
        if self.are_over(mono_ms) {
            *self = Self { count: 0, from_ms: mono_ms as u32 };
        }
        self.count = self.count.saturating_add(1);
        most > 0 && self.count > most
    }

    const fn age_ms(self, mono_ms: u64) -> u32 {
        (mono_ms as u32).wrapping_sub(self.from_ms)
    }

    const fn are_over(self, mono_ms: u64) -> bool {
        self.count == 0 || self.age_ms(mono_ms) >= REFUSALS_WINDOW_MS
    }

    const fn join(&mut self, other: Self, mono_ms: u64) {
        if other.are_over(mono_ms) {
            return;
        }
        if self.are_over(mono_ms) {
            *self = other;
            return;
        }
        let from_ms = if self.age_ms(mono_ms) < other.age_ms(mono_ms) { self.from_ms } else { other.from_ms };
        *self = Self { count: self.count.saturating_add(other.count), from_ms };
    }
}

/// What a connection had to itself: it comes from the ones before it, and goes to the ones behind it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Own {
    pub commands: Bucket,
    pub relays: Bucket,
    pub bytes: Bucket,
    pub refusals: Refusals,
}

impl Own {
    fn join(&mut self, ended: Self, rates: OwnRates, mono_ms: u64) {
        self.commands.join(ended.commands, rates.commands, mono_ms);
        self.relays.join(ended.relays, rates.relays, mono_ms);
        self.bytes.join(ended.bytes, rates.bytes, mono_ms);
        self.refusals.join(ended.refusals, mono_ms);
    }

    fn split(&mut self, rates: OwnRates, mono_ms: u64) -> Self {
        Self {
            commands: self.commands.split(rates.commands, mono_ms),
            relays: self.relays.split(rates.relays, mono_ms),
            bytes: self.bytes.split(rates.bytes, mono_ms),
            refusals: std::mem::take(&mut self.refusals),
        }
    }

    fn is_settled(&self, rates: OwnRates, mono_ms: u64) -> bool {
        self.commands.is_full(rates.commands, mono_ms)
            && self.relays.is_full(rates.relays, mono_ms)
            && self.bytes.is_full(rates.bytes, mono_ms)
            && self.refusals.are_over(mono_ms)
    }
}

/// How many connections an account may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seats {
    /// 0 for no limit.
    pub most: usize,
    /// Whether the oldest makes room for one that is too many.
    pub replaces: bool,
}

/// Why there is no seat: as many connections as there may be are open, or they come too quickly one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A connection that has its seat.
#[derive(Debug)]
pub(crate) struct Entered {
    pub account: Arc<Account>,
    /// What is left to it by those that ended before.
    pub own: Own,
    /// The one that has to go for it.
    pub replaced: Option<ConnId>,
}

/// What has bytes beside its own place.
pub(crate) trait Key: Hash + Eq + Clone {
    /// How many.
    fn bytes(&self) -> usize;
}

impl Key for Arc<str> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Key for IpAddr {
    fn bytes(&self) -> usize {
        0
    }
}

/// Small, since every user with a connection has one.
#[derive(Debug)]
struct Entry {
    account: Arc<Account>,
    open: u32,
    /// Stands in the queue of those that are looked at.
    is_queued: bool,
    /// The open ones, oldest first; kept only where the oldest makes room.
    order: Vec<ConnId>,
    /// What those that ended had to themselves, where anything is gone.
    own: Option<Box<Own>>,
}

impl Entry {
    const fn of(account: Arc<Account>) -> Self {
        Self { account, open: 0, is_queued: false, order: Vec::new(), own: None }
    }

    /// Gives what is left to the connection that comes.
    fn hand_over(&mut self, rates: OwnRates, mono_ms: u64) -> Own {
        let Some(own) = self.own.as_deref_mut() else { return Own::default() };
        let handed = own.split(rates, mono_ms);
        if own.is_settled(rates, mono_ms) {
            self.own = None;
        }
        handed
    }

    /// Keeps what a connection leaves that ended.
    fn keep(&mut self, ended: Own, rates: OwnRates, mono_ms: u64) {
        if !ended.is_settled(rates, mono_ms) {
            self.own.get_or_insert_default().join(ended, rates, mono_ms);
        }
    }

    fn is_settled(&self, rates: &Rates, mono_ms: u64) -> bool {
        self.account.commands.is_full(rates.commands, mono_ms)
            && self.account.relays.is_full(rates.relays, mono_ms)
            && self.account.handshakes.is_full(rates.handshakes, mono_ms)
            && self.account.stored.is_full(rates.stored, mono_ms)
            && self.own.as_ref().is_none_or(|own| own.is_settled(rates.own, mono_ms))
            && self.account.waiting.bytes() == 0
    }
}

#[derive(Debug)]
struct Stripe<K> {
    /// Those with a connection, and those whose buckets are not full again.
    entries: HashMap<K, Entry>,
    /// Those without a connection, by when they were looked at, the longest ago first; each once.
    resting: VecDeque<K>,
    /// Of all that are not known, while some were forgotten that may come back.
    others: Arc<Account>,
    others_until_ms: u64,
}

impl<K> Default for Stripe<K> {
    fn default() -> Self {
        Self { entries: HashMap::new(), resting: VecDeque::new(), others: Arc::default(), others_until_ms: 0 }
    }
}

/// Accounts by user or by address.
#[derive(Debug)]
pub(crate) struct Accounts<K> {
    seats: Seats,
    rates: Rates,
    /// Bytes that accounts without a connection may take, those of all tables together.
    bytes_max: usize,
    /// How long the buckets of whoever is forgotten may need to be full again.
    refill_ms: u64,
    /// Users and addresses come from clients: std's keyed hash.
    hasher: RandomState,
    stripes: Box<[Mutex<Stripe<K>>]>,
    /// The stripe that is looked through next.
    next: AtomicUsize,
}

impl<K: Key> Accounts<K> {
    pub(crate) fn new(seats: Seats, rates: Rates, bytes_max: usize) -> Self {
        let OwnRates { commands, relays, bytes } = rates.own;
        let all = [rates.commands, rates.relays, rates.handshakes, rates.stored, commands, relays, bytes];
        // A bucket may be overdrawn by as much as it holds.
        let slowest = all.into_iter().filter(|rate| rate.per_s > 0);
        let slowest = slowest.map(|rate| u64::from(rate.burst.max(1)) * 2_000 / u64::from(rate.per_s)).max();
        Self {
            seats,
            rates,
            bytes_max,
            refill_ms: slowest.unwrap_or(0).max(u64::from(REFUSALS_WINDOW_MS)),
            hasher: RandomState::new(),
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    fn stripe(&self, key: &K) -> &Mutex<Stripe<K>> {
        &self.stripes[self.hasher.hash_one(key) as usize % STRIPES]
    }

    /// Takes a seat for a connection.
    pub(crate) fn enter(&self, key: &K, conn: ConnId, mono_ms: u64, counters: &Counters) -> Result<Entered, Full> {
        let Seats { most, replaces } = self.seats;
        let mut stripe = lock(self.stripe(key));
        self.look(&mut stripe, LOOKS, mono_ms, counters);
        if let Some(entry) = stripe.entries.get(key) {
            let has_no_seat = !replaces && most > 0 && entry.open as usize >= most;
            // Those who share an account know nothing of each other: they are held back by their address alone.
            let is_hasty = !Arc::ptr_eq(&entry.account, &stripe.others)
                && entry.account.handshakes.take_many(1, self.rates.handshakes, mono_ms).is_err();
            if has_no_seat || is_hasty {
                add(&counters.refused_by_user, u64::from(is_hasty));
                return Err(Full);
            }
            if entry.open == 0 {
                sub(&counters.accounts_bytes, bytes_of(key) as u64);
            }
        } else {
            let account = Self::account_of_newcomer(&stripe, mono_ms, counters);
            let _ = account.handshakes.take_many(1, self.rates.handshakes, mono_ms);
            stripe.entries.insert(key.clone(), Entry::of(account));
        }
        let Some(entry) = stripe.entries.get_mut(key) else { return Err(Full) };
        entry.open += 1;
        let mut replaced = None;
        if replaces && most > 0 {
            entry.order.push(conn);
            if entry.open as usize > most {
                entry.open -= 1;
                replaced = Some(entry.order.remove(0));
            }
        }
        let own = entry.hand_over(self.rates.own, mono_ms);
        Ok(Entered { account: Arc::clone(&entry.account), own, replaced })
    }

    /// A connection that had a seat ended, and leaves what it had to itself; one that had to make room has no seat any
    /// more.
    pub(crate) fn leave(&self, key: &K, conn: ConnId, own: Own, mono_ms: u64, counters: &Counters) {
        let Seats { most, replaces } = self.seats;
        let mut stripe = lock(self.stripe(key));
        self.look(&mut stripe, LOOKS, mono_ms, counters);
        let Some(entry) = stripe.entries.get_mut(key) else { return };
        entry.keep(own, self.rates.own, mono_ms);
        if replaces && most > 0 {
            let Some(place) = entry.order.iter().position(|open| *open == conn) else { return };
            entry.order.remove(place);
        }
        entry.open -= 1;
        if entry.open == 0 {
            self.rest(&mut stripe, key, mono_ms, counters);
        }
    }

    /// The account of somebody who may have no connection: who asks over HTTP.
    pub(crate) fn find(&self, key: &K, mono_ms: u64, counters: &Counters) -> Arc<Account> {
        let mut stripe = lock(self.stripe(key));
        self.look(&mut stripe, LOOKS, mono_ms, counters);
        if let Some(entry) = stripe.entries.get(key) {
            return Arc::clone(&entry.account);
        }
        let account = Self::account_of_newcomer(&stripe, mono_ms, counters);
        if Arc::ptr_eq(&account, &stripe.others) {
            return account;
        }
        if !self.has_room(key, counters) {
            add(&counters.accounts_refused, 1);
            return Arc::clone(&stripe.others);
        }
        stripe.entries.insert(key.clone(), Entry { is_queued: true, ..Entry::of(Arc::clone(&account)) });
        stripe.resting.push_back(key.clone());
        add(&counters.accounts_bytes, bytes_of(key) as u64);
        account
    }

    /// Forgets accounts that nobody needs any more: some of them, others with the next call.
    pub(crate) fn forget_settled(&self, mono_ms: u64, counters: &Counters) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % STRIPES;
        self.look(&mut lock(&self.stripes[next]), LOOKS_A_TICK, mono_ms, counters);
    }

    fn account_of_newcomer(stripe: &Stripe<K>, mono_ms: u64, counters: &Counters) -> Arc<Account> {
        if mono_ms < stripe.others_until_ms {
            add(&counters.accounts_refused, 1);
            return Arc::clone(&stripe.others);
        }
        Arc::default()
    }

    fn has_room(&self, key: &K, counters: &Counters) -> bool {
        counters.accounts_bytes.load(Ordering::Relaxed) as usize + bytes_of(key) <= self.bytes_max
    }

    /// The last connection is gone: the account stays while it has to, and while there is room.
    fn rest(&self, stripe: &mut Stripe<K>, key: &K, mono_ms: u64, counters: &Counters) {
        let Some(entry) = stripe.entries.get_mut(key) else { return };
        let is_shared = Arc::ptr_eq(&entry.account, &stripe.others);
        let is_settled = is_shared || entry.is_settled(&self.rates, mono_ms);
        // One that stands in the queue stays until its turn, so that nothing stands there twice.
        if entry.is_queued || (!is_settled && self.has_room(key, counters)) {
            if !entry.is_queued {
                entry.is_queued = true;
                stripe.resting.push_back(key.clone());
            }
            add(&counters.accounts_bytes, bytes_of(key) as u64);
            return;
        }
        stripe.entries.remove(key);
        if !is_settled {
            add(&counters.accounts_refused, 1);
            stripe.others_until_ms = stripe.others_until_ms.max(mono_ms + self.refill_ms);
        }
    }

    /// Looks at some accounts without a connection, and forgets those whose buckets are full.
    fn look(&self, stripe: &mut Stripe<K>, most: usize, mono_ms: u64, counters: &Counters) {
        for _ in 0..most.min(stripe.resting.len()) {
            let Some(key) = stripe.resting.pop_front() else { return };
            let Some(entry) = stripe.entries.get_mut(&key) else { continue };
            if entry.open > 0 {
                entry.is_queued = false;
            } else if entry.is_settled(&self.rates, mono_ms) {
                stripe.entries.remove(&key);
                sub(&counters.accounts_bytes, bytes_of(&key) as u64);
            } else {
                stripe.resting.push_back(key);
            }
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).entries.len()).sum()
    }
}

fn bytes_of(key: &impl Key) -> usize {
    ACCOUNT_BYTES + key.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: Rate = Rate { per_s: 10, burst: 30 };
    const OFF: Rate = Rate { per_s: 0, burst: 0 };
    const RATES: Rates = Rates {
        commands: COMMANDS,
        relays: OFF,
        handshakes: OFF,
        stored: OFF,
        own: OwnRates { commands: Rate { per_s: 5, burst: 10 }, relays: OFF, bytes: OFF },
    };

    fn conn(n: u32) -> ConnId {
        ConnId::new(0, n, 0)
    }

    fn user(n: u32) -> Arc<str> {
        n.to_string().into()
    }

    fn accounts(most: usize, replaces: bool) -> Accounts<Arc<str>> {
        Accounts::new(Seats { most, replaces }, RATES, 1 << 20)
    }

    fn spent(commands: u32, mono_ms: u64) -> Own {
        let mut own = Own::default();
        own.commands.overdraw(commands * 1_000, RATES.own.commands, mono_ms);
        own
    }

    #[test]
    fn a_full_account_refuses_and_goes_with_its_last_connection() {
        let (accounts, counters, ann, bob) = (accounts(2, false), Counters::default(), user(1), user(2));
        let enter = |user, n| accounts.enter(user, conn(n), 0, &counters);
        assert!(enter(&ann, 1).is_ok() && enter(&ann, 2).is_ok());
        assert_eq!(enter(&ann, 3).err(), Some(Full));
        assert!(enter(&bob, 4).is_ok());
        accounts.leave(&ann, conn(1), Own::default(), 0, &counters);
        assert!(enter(&ann, 3).is_ok());
        for (user, n) in [(&ann, 2), (&ann, 3), (&bob, 4)] {
            accounts.leave(user, conn(n), Own::default(), 0, &counters);
        }
        assert_eq!(accounts.len(), 0);
    }

    #[test]
    fn the_oldest_makes_room_and_its_end_takes_nobody_elses_seat() {
        let (accounts, counters, ann) = (accounts(2, true), Counters::default(), user(1));
        let enter = |n| accounts.enter(&ann, conn(n), 0, &counters).unwrap().replaced;
        assert_eq!([1, 2, 3, 4].map(enter), [None, None, Some(conn(1)), Some(conn(2))]);
        let leave = |n| accounts.leave(&ann, conn(n), Own::default(), 0, &counters);
        [1, 2].into_iter().for_each(leave);
        assert_eq!(enter(5), Some(conn(3)), "still two of them");
        [4, 5].into_iter().for_each(leave);
        assert_eq!(accounts.len(), 0);
    }

    #[test]
    fn seats_are_exact_however_many_come_at_once() {
        let (accounts, counters, ann) = (accounts(10, false), Counters::default(), user(1));
        let entered: usize = std::thread::scope(|scope| {
            let enter = |n| accounts.enter(&ann, conn(n), 0, &counters).is_ok();
            let come = |thread: u32| scope.spawn(move || (0..1_000).filter(|n| enter(thread * 1_000 + n)).count());
            [0, 1, 2, 3].map(come).map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!(entered, 10);
    }

    #[test]
    fn who_comes_back_finds_what_it_has_spent_until_the_buckets_are_full() {
        let (accounts, counters, ann) = (accounts(0, false), Counters::default(), user(1));
        let first = accounts.enter(&ann, conn(1), 1_000, &counters).unwrap();
        first.account.commands.take_many(30, COMMANDS, 1_000).unwrap();
        accounts.leave(&ann, conn(1), spent(8, 1_000), 1_000, &counters);
        assert_eq!(counters.accounts_bytes.load(Ordering::Relaxed) as usize, ACCOUNT_BYTES + 1);
        let mut second = accounts.enter(&ann, conn(2), 1_000, &counters).unwrap();
        assert_eq!(counters.accounts_bytes.load(Ordering::Relaxed), 0, "a connection is charged for it");
        assert!(second.account.commands.take_many(1, COMMANDS, 1_000).is_err());
        assert!(second.own.commands.take_many(3, RATES.own.commands, 1_000).is_err(), "8 of 10 are gone");
        assert!(second.own.commands.take_many(2, RATES.own.commands, 1_000).is_ok());
        accounts.leave(&ann, conn(2), second.own, 1_000, &counters);
        (0..STRIPES).for_each(|_| accounts.forget_settled(3_999, &counters));
        assert_eq!(accounts.len(), 1);
        (0..STRIPES).for_each(|_| accounts.forget_settled(4_000, &counters));
        assert_eq!((accounts.len(), counters.accounts_bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn who_was_refused_too_often_is_not_forgiven_by_coming_back() {
        let (accounts, counters, ann) = (accounts(0, false), Counters::default(), user(1));
        let mut own = accounts.enter(&ann, conn(1), 1_000, &counters).unwrap().own;
        assert_eq!([1_000; 4].map(|now| own.refusals.note_one(3, now)), [false, false, false, true]);
        accounts.leave(&ann, conn(1), own, 2_000, &counters);
        let mut own = accounts.enter(&ann, conn(2), 2_000, &counters).unwrap().own;
        assert!(own.refusals.note_one(3, 10_999), "the window began with the first");
        accounts.leave(&ann, conn(2), own, 11_000, &counters);
        let mut own = accounts.enter(&ann, conn(3), 11_000, &counters).unwrap().own;
        assert!(!own.refusals.note_one(3, 11_000));
    }

    #[test]
    fn who_comes_and_goes_too_quickly_has_to_wait() {
        let handshakes = Rate { per_s: 2, burst: 3 };
        let rates = Rates { handshakes, ..RATES };
        let (accounts, counters) =
            (Accounts::new(Seats { most: 0, replaces: false }, rates, 1 << 20), Counters::default());
        let ann = user(1);
        let comes = |n, now| {
            let is_in = accounts.enter(&ann, conn(n), now, &counters).is_ok();
            if is_in {
                accounts.leave(&ann, conn(n), Own::default(), now, &counters);
            }
            is_in
        };
        assert_eq!([1, 2, 3, 4].map(|n| comes(n, 1_000)), [true, true, true, false]);
        assert_eq!(counters.refused_by_user.load(Ordering::Relaxed), 1);
        assert_eq!([5, 6].map(|n| comes(n, 1_500)), [true, false]);
    }

    #[test]
    fn without_room_the_unknown_share_one_account_until_all_that_was_forgotten_is_full() {
        let room = 3 * (ACCOUNT_BYTES + 1);
        let accounts = Accounts::<Arc<str>>::new(Seats { most: 0, replaces: false }, RATES, room);
        let counters = Counters::default();
        // As many as a user could take the ids of: ten stripes see none of those that are kept.
        for n in 0..3_000 {
            let entered = accounts.enter(&user(n), conn(n), 1_000, &counters).unwrap();
            entered.account.commands.overdraw(30_000, COMMANDS, 1_000);
            accounts.leave(&user(n), conn(n), Own::default(), 1_000, &counters);
        }
        assert!(accounts.len() <= 3 && counters.accounts_bytes.load(Ordering::Relaxed) as usize <= room);
        assert!(counters.accounts_refused.load(Ordering::Relaxed) >= 2_900);
        let late = |n, now| accounts.find(&user(n), now, &counters).commands.take_many(1, COMMANDS, now).is_ok();
        assert_eq!((10_000..11_000).filter(|n| late(*n, 1_001)).count(), 0, "their account is empty");
        (0..STRIPES).for_each(|_| accounts.forget_settled(30_000, &counters));
        assert!(late(20_000, 30_000), "all buckets are full by then");
    }

    #[test]
    fn however_somebody_comes_and_goes_no_more_is_spent_than_the_rates_give() {
        let (accounts, counters, ann) = (accounts(3, false), Counters::default(), user(1));
        let mut random = 7_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut open: Vec<(u32, Entered)> = Vec::new();
        let (mut now, mut spent_all, mut most_open) = (1_000, 0, 0);
        for n in 0..50_000_u32 {
            match next(4) {
                0 => now += next(40),
                1 => {
                    if let Ok(entered) = accounts.enter(&ann, conn(n), now, &counters) {
                        open.push((n, entered));
                    }
                }
                2 if !open.is_empty() => {
                    let (n, entered) = open.swap_remove(next(open.len() as u64) as usize);
                    accounts.leave(&ann, conn(n), entered.own, now, &counters);
                }
                _ if !open.is_empty() => {
                    let place = next(open.len() as u64) as usize;
                    let (cost, entered) = (1 + next(3) as u32, &mut open[place].1);
                    let is_there = entered.own.commands.take_many(cost, RATES.own.commands, now).is_ok();
                    if is_there && entered.account.commands.take_many(cost, COMMANDS, now).is_ok() {
                        spent_all += u64::from(cost);
                    }
                }
                _ => accounts.forget_settled(now, &counters),
            }
            most_open = most_open.max(open.len() as u64);
            let passed_ms = now - 1_000;
            assert!(spent_all * 1_000 <= 30_000 + passed_ms * 10, "after {passed_ms} ms: {spent_all}");
            assert!(spent_all * 1_000 <= most_open * (10_000 + passed_ms * 5), "of {most_open} connections");
        }
        assert!(spent_all > 1_000, "{spent_all}");
    }
}
