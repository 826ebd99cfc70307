//! Handshakes an address may begin: a bucket each, in a table that nobody can make grow without end.
//!
//! One who comes from ever new addresses fills the table; buckets that are full again are then forgotten, which changes
//! nothing, and while there are none of them whoever is new shares one bucket with all others that are.

use crate::bucket::{Bucket, Rate};
use crate::lock::lock;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Mutex;

const STRIPES: usize = 16;
/// Addresses of one stripe: 65,536 in all, some 3 MB.
const ADDRESSES_MAX: usize = 4_096;
/// How often a full stripe looks for buckets to forget.
const SWEEP_MS: u64 = 100;

#[derive(Debug, Default)]
struct Stripe {
    buckets: HashMap<IpAddr, Bucket>,
    /// Of addresses that the table has no room for.
    others: Bucket,
    swept_ms: u64,
}

/// The buckets of all addresses that came lately.
#[derive(Debug)]
pub(crate) struct Handshakes {
    /// Addresses come from clients: std's keyed hash.
    hasher: RandomState,
    stripes: [Mutex<Stripe>; STRIPES],
}

impl Handshakes {
    pub(crate) fn new() -> Self {
        Self { hasher: RandomState::new(), stripes: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Whether the address may begin one more.
    pub(crate) fn take(&self, address: IpAddr, rate: Rate, mono_ms: u64) -> bool {
        if rate.per_s == 0 {
            return true;
        }
        let mut stripe = lock(&self.stripes[self.hasher.hash_one(address) as usize % STRIPES]);
        if let Some(bucket) = stripe.buckets.get_mut(&address) {
            return bucket.take(rate, mono_ms).is_ok();
        }
        if stripe.buckets.len() >= ADDRESSES_MAX && mono_ms >= stripe.swept_ms + SWEEP_MS {
            stripe.swept_ms = mono_ms;
            stripe.buckets.retain(|_, bucket| !bucket.is_full(rate, mono_ms));
        }
        if stripe.buckets.len() >= ADDRESSES_MAX {
            return stripe.others.take(rate, mono_ms).is_ok();
        }
        stripe.buckets.entry(address).or_insert(Bucket::full()).take(rate, mono_ms).is_ok()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.stripes.iter().map(|stripe| lock(stripe).buckets.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const RATE: Rate = Rate { per_s: 10, burst: 3 };

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn each_address_has_a_burst_of_its_own() {
        let handshakes = Handshakes::new();
        let taken = [1, 1, 1, 1, 2].map(|n| handshakes.take(address(n), RATE, 1_000));
        assert_eq!(taken, [true, true, true, false, true]);
        assert!(handshakes.take(address(1), RATE, 1_100));
    }

    #[test]
    fn ever_new_addresses_do_not_grow_the_table_and_are_held_back_together() {
        let handshakes = Handshakes::new();
        let let_in = (0..200_000).filter(|n| handshakes.take(address(*n), RATE, 1_000)).count();
        assert!(handshakes.len() <= STRIPES * ADDRESSES_MAX);
        assert!(let_in <= STRIPES * (ADDRESSES_MAX + 3), "{let_in}");
        // All buckets are full again by then: the next that comes makes room.
        assert!(handshakes.take(address(900_000), RATE, 60_000));
        assert!(handshakes.len() < STRIPES * ADDRESSES_MAX);
    }
}
