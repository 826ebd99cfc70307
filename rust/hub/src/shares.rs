//! Upgrades that wait for `authenticate`: a bound for all, and a share for each client address.
//!
//! An address may have at most as many as are still free for the others, so one address alone takes at most half and
//! the next one always finds room (the dynamic threshold of shared packet buffers). A place is held until Python has
//! decided, also where the client is gone before: what is bounded is the work under way in Python.

use std::collections::HashMap;
use std::hash::RandomState;
use std::net::IpAddr;

/// Places taken, by address.
#[derive(Debug)]
pub(crate) struct Shares {
    most: usize,
    taken: usize,
    /// Addresses come from clients: std's keyed hash. At most `most` of them.
    by_address: HashMap<IpAddr, usize, RandomState>,
}

impl Shares {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, taken: 0, by_address: HashMap::default() }
    }

    /// Takes a place for the address; false where it has as many as are free.
    pub(crate) fn take(&mut self, address: IpAddr) -> bool {
        let own = self.by_address.get(&address).copied().unwrap_or(0);
        if own >= self.most - self.taken {
            return false;
        }
        self.by_address.insert(address, own + 1);
        self.taken += 1;
        true
    }

    /// Gives a place of the address back.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        let Some(own) = self.by_address.get_mut(&address) else { return };
        *own -= 1;
        self.taken -= 1;
        if *own == 0 {
            self.by_address.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn one_address_takes_half_and_the_next_ones_always_find_room() {
        let mut shares = Shares::new(16);
        let taken = |shares: &mut Shares, n| (0..100).filter(|_| shares.take(address(n))).count();
        assert_eq!([1, 2, 3, 4, 5].map(|n| taken(&mut shares, n)), [8, 4, 2, 1, 1]);
        assert!(!shares.take(address(6)), "all sixteen are taken");
        for _ in 0..8 {
            shares.give_back(address(1));
        }
        assert!(shares.take(address(6)));
        assert!(!shares.by_address.contains_key(&address(1)));
    }

    #[test]
    fn a_single_place_can_be_taken() {
        let mut shares = Shares::new(1);
        assert!(shares.take(address(1)));
        assert!(!shares.take(address(2)));
        shares.give_back(address(1));
        assert!(shares.take(address(2)));
    }
}
