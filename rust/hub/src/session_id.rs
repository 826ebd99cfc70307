//! A permutation of 64-bit numbers, so that a `sessionId` does not show slot and generation as they are.

/// An odd number with its bits well spread (2^64 over the golden ratio), and its inverse modulo 2^64.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
const GATHER: u64 = inverse(SPREAD);

const fn inverse(odd: u64) -> u64 {
    // Newton's iteration doubles the number of right bits each time.
    let mut found: u64 = odd;
    let mut round = 0;
    while round < 6 {
        found = found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)));
        round += 1;
    }
    found
}

pub(crate) const fn scramble(raw: u64) -> u64 {
    let mixed = raw.wrapping_mul(SPREAD);
    (mixed ^ (mixed >> 32)).wrapping_mul(SPREAD)
}

pub(crate) const fn unscramble(raw: u64) -> u64 {
    let mixed = raw.wrapping_mul(GATHER);
    (mixed ^ (mixed >> 32)).wrapping_mul(GATHER)
}
