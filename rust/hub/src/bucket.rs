//! Token buckets: how much a connection may ask for.

/// A rate and the burst that it allows.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Tokens that come back each second; 0 means no limit.
    pub per_s: u32,
    /// Tokens that a full bucket holds.
    pub burst: u32,
}

/// What is left of a burst, in thousandths of a token. Eight bytes, since every connection has two.
#[derive(Debug, Clone, Copy)]
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
        let now = mono_ms as u32;
        let back = u64::from(now.wrapping_sub(self.at_ms)) * u64::from(rate.per_s);
        let spent = u64::from(self.spent_milli).saturating_sub(back);
        self.at_ms = now;
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
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::full();
        assert!((0..10_000).all(|_| bucket.take(Rate { per_s: 0, burst: 0 }, 1).is_ok()));
    }
}
