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
        if rate.per_s == 0 {
            return Ok(());
        }
        let spent = self.spent(rate, mono_ms);
        let full = u64::from(rate.burst.max(1)) * 1_000;
        let wanted = (u64::from(count) * 1_000).min(full);
        if spent + wanted > full {
            self.spent_milli = spent as u32;
            let missing = spent + wanted - full;
            return Err(missing.div_ceil(u64::from(rate.per_s)) as u32);
        }
        self.spent_milli = (spent + wanted) as u32;
        Ok(())
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
        self.spent(rate, mono_ms) == 0
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
        if rate.per_s == 0 {
            return Ok(());
        }
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let mut bucket = Bucket { spent_milli: word as u32, at_ms: (word >> 32) as u32 };
            let taken = bucket.take_many(count, rate, mono_ms);
            let next = u64::from(bucket.spent_milli) | u64::from(bucket.at_ms) << 32;
            match self.0.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return taken,
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
}
