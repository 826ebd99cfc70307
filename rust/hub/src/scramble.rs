//! A fixed permutation of 64-bit numbers that spreads neighbours far apart. It hides nothing: see [`crate::session_id`].

/// An odd number with its bits well spread (2^64 over the golden ratio).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) const fn scramble(raw: u64) -> u64 {
    let mixed = raw.wrapping_mul(SPREAD);
    (mixed ^ (mixed >> 32)).wrapping_mul(SPREAD)
}
