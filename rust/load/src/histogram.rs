//! Latencies counted in buckets whose width is at most 1/64 of their value, so that a percentile costs no memory per sample.
//!
//! Unit: nanoseconds in and out. A value below 64 is exact; above, a bucket is one of 64 equal parts of a power of two and
//! reports its upper edge, so a percentile is never understated and at most 1.6 % over. `max` is exact.
//! Recording is two shifts and an addition: called once per delivery by every workload.

const PARTS_BITS: u32 = 6;
const PARTS: u64 = 1 << PARTS_BITS;
const BUCKETS: usize = ((64 - PARTS_BITS as usize) + 1) << PARTS_BITS;

/// Counts of values by size.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    samples: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), samples: 0, max: 0 }
    }
}

impl Histogram {
    /// Count one value.
    pub fn record(&mut self, value_ns: u64) {
        self.counts[bucket(value_ns)] += 1;
        self.samples += 1;
        self.max = self.max.max(value_ns);
    }

    /// Forget everything: the warm-up is over.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Values counted.
    #[must_use]
    pub const fn samples(&self) -> u64 {
        self.samples
    }

    /// The largest value, exactly; 0 without values.
    #[must_use]
    pub const fn max_ns(&self) -> u64 {
        self.max
    }

    /// The smallest bucket edge that at least `share` (0..1) of all values do not pass; 0 without values.
    #[must_use]
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let rank = ((self.samples as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_edge(index).min(self.max);
            }
        }
        self.max
    }
}

const fn bucket(value: u64) -> usize {
    if value < PARTS {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - PARTS_BITS;
    ((shift as usize + 1) << PARTS_BITS) + ((value >> shift) - PARTS) as usize
}

const fn upper_edge(bucket: usize) -> u64 {
    let (row, part) = (bucket >> PARTS_BITS, bucket as u64 & (PARTS - 1));
    if row == 0 {
        return part;
    }
    let shift = row as u32 - 1;
    ((PARTS + part) << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_the_edge_is_at_most_a_sixty_fourth_over() {
        for value in
            (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, (1 << bit) + 1]).chain([0, 1_000_003, u64::MAX])
        {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value, "{value} is above its edge {edge}");
            assert!(edge - value <= value / 64, "{value} is reported as {edge}");
        }
    }

    #[test]
    fn buckets_follow_one_another_without_holes() {
        for index in 1..bucket(u64::MAX) {
            assert_eq!(bucket(upper_edge(index - 1) + 1), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_of_one_to_a_thousand_are_what_sorting_would_give_within_the_bucket_width() {
        let mut histogram = Histogram::default();
        for value in 1..=1_000 {
            histogram.record(value);
        }
        for (share, exact) in [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1_000)] {
            let found = histogram.quantile_ns(share);
            assert!((exact..=exact + exact / 64).contains(&found), "p{share}: {found}");
        }
        assert_eq!(histogram.max_ns(), 1_000);
    }

    #[test]
    fn empty_histogram_says_zero() {
        assert_eq!(Histogram::default().quantile_ns(0.99), 0);
    }
}
