//! Token buckets: how much a connection may ask for, or all connections of one user or address together.

use std::sync::atomic::{AtomicU64, Ordering};

/// Clocks of shards differ by the length of a turn: a moment that is this little before the last one is none.
const SKEW_MS: u32 = 60_000;

/// A rate and the burst that it allows.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Tokens that come back each second; 0 means no limit.
    pub per_s: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// What is left of a burst, in thousandths of a token. Eight bytes, since every connection has three.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bucket {
    spent_milli: u32,
    at_ms: u32,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub const fn full() -> Self {
        Self { spent_milli: 0, at_ms: 0 }
    }

    const fn of_word(word: u64) -> Self {
        Self { spent_milli: word as u32, at_ms: (word >> 32) as u32 }
    }

    const fn word(self) -> u64 {
        self.spent_milli as u64 | (self.at_ms as u64) << 32
    }

    /// Takes one token.
    ///
    /// # Errors
    /// Milliseconds until one is there again.
    pub fn take(&mut self, rate: Rate, mono_ms: u64) -> Result<(), u32> {
        self.take_many(1, rate, mono_ms)
    }

    /// Takes so many tokens, or all there are where the burst holds fewer.
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub fn take_many(&mut self, count: u32, rate: Rate, mono_ms: u64) -> Result<(), u32> {
        self.take_milli(count.saturating_mul(1_000), rate, mono_ms)
    }

    /// As [`Self::take_many`], in thousandths of a token.
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub fn take_milli(&mut self, milli: u32, rate: Rate, mono_ms: u64) -> Result<(), u32> {
        if rate.per_s == 0 {
            return Ok(());
        }
        let spent = self.spent(rate, mono_ms);
        let full = u64::from(rate.burst.max(1)) * 1_000;
        let wanted = u64::from(milli).min(full);
        if spent + wanted > full {
            self.spent_milli = spent as u32;
            let missing = spent + wanted - full;
            return Err(missing.div_ceil(u64::from(rate.per_s)) as u32);
        }
        self.spent_milli = (spent + wanted) as u32;
        Ok(())
    }

    /// Takes so many thousandths of a token though they may not be there: for what was done already, and is known only
    /// now. Nobody owes more than a whole burst.
    pub fn overdraw(&mut self, milli: u32, rate: Rate, mono_ms: u64) {
        if rate.per_s == 0 {
            return;
        }
        let most = 2 * u64::from(rate.burst.max(1)) * 1_000;
        let spent = self.spent(rate, mono_ms);
        let wanted = (spent + u64::from(milli)).min(most.max(spent));
        self.spent_milli = u32::try_from(wanted).unwrap_or(u32::MAX);
    }

    /// Gives thousandths of a token back, that were taken for more than came of it.
    pub const fn give_back(&mut self, milli: u32) {
        self.spent_milli = self.spent_milli.saturating_sub(milli);
    }

    /// Milliseconds until what is owed is paid; 0 where nothing is.
    pub(crate) fn owes_ms(mut self, rate: Rate, mono_ms: u64) -> u32 {
        if rate.per_s == 0 {
            return 0;
        }
        let owed = self.spent(rate, mono_ms).saturating_sub(u64::from(rate.burst.max(1)) * 1_000);
        owed.div_ceil(u64::from(rate.per_s)) as u32
    }

    /// Adds what is gone from another bucket of the same rate.
    pub(crate) fn join(&mut self, mut other: Self, rate: Rate, mono_ms: u64) {
        let spent = self.spent(rate, mono_ms) + other.spent(rate, mono_ms);
        self.spent_milli = u32::try_from(spent).unwrap_or(u32::MAX);
    }

    /// Takes out a bucket that as much is gone from as may be, and keeps the rest.
    pub(crate) fn split(&mut self, rate: Rate, mono_ms: u64) -> Self {
        let most = 2 * u64::from(rate.burst.max(1)) * 1_000;
        let spent = self.spent(rate, mono_ms);
        let taken = u32::try_from(spent.min(most)).unwrap_or(u32::MAX);
        self.spent_milli = (spent as u32).saturating_sub(taken);
        Self { spent_milli: taken, at_ms: self.at_ms }
    }

    /// What is gone from the burst at this moment, which becomes the bucket's.
    fn spent(&mut self, rate: Rate, mono_ms: u64) -> u64 {
        let now = mono_ms as u32;
        let passed_ms = now.wrapping_sub(self.at_ms);
        if passed_ms > u32::MAX - SKEW_MS {
            return u64::from(self.spent_milli);
        }
        self.at_ms = now;
        u64::from(self.spent_milli).saturating_sub(u64::from(passed_ms) * u64::from(rate.per_s))
    }

    /// Whether nothing is gone from the burst.
    pub(crate) fn is_full(mut self, rate: Rate, mono_ms: u64) -> bool {
        rate.per_s == 0 || self.spent(rate, mono_ms) == 0
    }
}

/// A [`Bucket`] that shards take from at once, without a lock: it is one word.
#[derive(Debug, Default)]
pub struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// As [`Bucket::take_many`].
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub fn take_many(&self, count: u32, rate: Rate, mono_ms: u64) -> Result<(), u32> {
        self.take_milli(count.saturating_mul(1_000), rate, mono_ms)
    }

    /// As [`Bucket::take_milli`].
    ///
    /// # Errors
    /// Milliseconds until they are there.
    pub fn take_milli(&self, milli: u32, rate: Rate, mono_ms: u64) -> Result<(), u32> {
        if rate.per_s == 0 {
            return Ok(());
        }
        self.update(|bucket| bucket.take_milli(milli, rate, mono_ms))
    }

    /// As [`Bucket::overdraw`].
    pub fn overdraw(&self, milli: u32, rate: Rate, mono_ms: u64) {
        self.update(|bucket| bucket.overdraw(milli, rate, mono_ms));
    }

    /// As [`Bucket::give_back`].
    pub fn give_back(&self, milli: u32) {
        self.update(|bucket| bucket.give_back(milli));
    }

    /// As [`Bucket::is_full`].
    pub(crate) fn is_full(&self, rate: Rate, mono_ms: u64) -> bool {
        self.now().is_full(rate, mono_ms)
    }

    /// As [`Bucket::owes_ms`].
    pub(crate) fn owes_ms(&self, rate: Rate, mono_ms: u64) -> u32 {
        self.now().owes_ms(rate, mono_ms)
    }

    fn now(&self) -> Bucket {
        Bucket::of_word(self.0.load(Ordering::Relaxed))
    }

    fn update<R>(&self, change: impl Fn(&mut Bucket) -> R) -> R {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let mut bucket = Bucket::of_word(word);
            let result = change(&mut bucket);
            match self.0.compare_exchange_weak(word, bucket.word(), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return result,
                Err(other) => word = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_waits_for_its_token() {
        let rate = Rate { per_s: 10, burst: 3 };
        let mut bucket = Bucket::full();
        assert_eq!([0; 3].map(|_| bucket.take(rate, 5_000)), [Ok(()); 3]);
        assert_eq!(bucket.take(rate, 5_000), Err(100));
        assert_eq!(bucket.take(rate, 5_060), Err(40));
        assert_eq!(bucket.take(rate, 5_100), Ok(()));
        assert_eq!(bucket.take(rate, 5_100), Err(100));
    }

    #[test]
    fn a_moment_before_the_last_gives_nothing_back() {
        let rate = Rate { per_s: 1_000, burst: 1 };
        let mut bucket = Bucket::full();
        assert_eq!(bucket.take(rate, 5_000), Ok(()));
        assert!(bucket.take(rate, 4_999).is_err(), "another shard's turn began earlier");
        assert_eq!(bucket.take(rate, 5_001), Ok(()));
    }

    #[test]
    fn shards_share_one_burst() {
        let (rate, bucket) = (Rate { per_s: 1, burst: 1_000 }, SharedBucket::default());
        let taken: usize = std::thread::scope(|scope| {
            let take = || scope.spawn(|| (0..1_000).filter(|_| bucket.take_many(1, rate, 5).is_ok()).count());
            [take(), take(), take()].map(|thread| thread.join().unwrap()).iter().sum()
        });
        assert_eq!(taken, 1_000);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::full();
        assert!((0..10_000).all(|_| bucket.take(Rate { per_s: 0, burst: 0 }, 1).is_ok()));
    }

    #[test]
    fn nobody_owes_more_than_a_burst_and_what_was_too_much_comes_back() {
        let rate = Rate { per_s: 10, burst: 30 };
        let mut bucket = Bucket::full();
        bucket.overdraw(1_000_000, rate, 5_000);
        assert_eq!(bucket.owes_ms(rate, 5_000), 3_000);
        assert_eq!(bucket.take(rate, 5_000), Err(3_100), "as much again as a burst, and the one token");
        bucket.give_back(40_000);
        assert_eq!(bucket.take_many(10, rate, 5_000), Ok(()));
        assert_eq!(bucket.take(rate, 5_000), Err(100));
    }

    #[test]
    fn what_is_gone_moves_to_another_bucket_and_none_of_it_is_lost() {
        let rate = Rate { per_s: 10, burst: 30 };
        let mut left = Bucket::full();
        for spent in [30, 20, 30] {
            let mut ended = Bucket::full();
            ended.take_many(spent, rate, 5_000).unwrap();
            left.join(ended, rate, 5_000);
        }
        let mut next = left.split(rate, 6_000);
        assert_eq!(next.take(rate, 6_000), Err(3_100), "60 of the 70 that are still gone, and the one token");
        assert!(!left.is_full(rate, 6_999) && left.is_full(rate, 7_000));
    }
}
