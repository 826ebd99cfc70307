//! How often an address may ask without showing who asks.
//!
//! Python costs a few tenths of a millisecond of the loop that serves sockets, whatever the answer: `/health`, 401 and
//! 404 alike. So each request takes one from its address before Python hears of it, and gives it back where Python says
//! that it knew the caller, whom other limits hold. Above the rate a request waits for its time, and one whose time is
//! too far away is refused.
//!
//! What an address has used is the one moment at which its bucket is full again (GCRA). An address whose moment is past
//! needs no entry.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are known; beyond, new ones share one.
const ADDRESSES_MAX: usize = 16_384;

/// Whose rate a request takes: those of the reserved paths are apart, so that whoever asks for others all the time can
/// still ask how the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) address: IpAddr,
    pub(crate) is_reserved: bool,
}

impl Account {
    const fn shared(self) -> Self {
        Self { address: IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), is_reserved: self.is_reserved }
    }
}

/// The rates of all addresses.
pub(crate) struct Rates {
    /// Between two requests; None where there is no limit.
    interval: Option<Duration>,
    burst: Duration,
    full_at: RefCell<HashMap<Account, Instant>>,
}

impl Rates {
    /// `per_s` of 0 sets no limit; `burst` of 0 is that of a second.
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        let interval = (per_s > 0).then(|| Duration::from_secs(1) / per_s);
        let burst = interval.unwrap_or_default() * if burst == 0 { per_s } else { burst };
        Self { interval, burst, full_at: RefCell::default() }
    }

    /// Takes one; how long its request has to wait, and whose it is, for [`Self::give_back`].
    ///
    /// # Errors
    /// How long it would have had to wait, where that is more than `most`: nothing is taken.
    pub(crate) fn take(&self, account: Account, now: Instant, most: Duration) -> Result<(Duration, Account), Duration> {
        let Some(interval) = self.interval else { return Ok((Duration::ZERO, account)) };
        let mut full_at = self.full_at.borrow_mut();
        let account =
            if full_at.len() < ADDRESSES_MAX || full_at.contains_key(&account) { account } else { account.shared() };
        let before = full_at.get(&account).map_or(now, |at| (*at).max(now));
        let after = before + interval;
        let wait = after.saturating_duration_since(now + self.burst);
        if wait > most {
            return Err(wait);
        }
        full_at.insert(account, after);
        Ok((wait, account))
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, account: Account) {
        if let (Some(interval), Some(at)) = (self.interval, self.full_at.borrow_mut().get_mut(&account)) {
            *at = at.checked_sub(interval).unwrap_or(*at);
        }
    }

    /// Forgets whose bucket is full.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut full_at = self.full_at.borrow_mut();
        if !full_at.is_empty() {
            full_at.retain(|_, at| *at > now);
            if full_at.is_empty() {
                *full_at = HashMap::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(2);

    fn wait(rates: &Rates, account: Account, now: Instant, most: Duration) -> Result<Duration, Duration> {
        rates.take(account, now, most).map(|(wait, _)| wait)
    }

    fn of(last: u32) -> Account {
        Account { address: IpAddr::V4(std::net::Ipv4Addr::from_bits(last)), is_reserved: false }
    }

    #[test]
    fn a_burst_goes_at_once_then_each_waits_for_its_time_and_is_refused_where_that_is_far() {
        let (rates, now) = (Rates::new(10, 3), Instant::now());
        for _ in 0..3 {
            assert_eq!(wait(&rates, of(1), now, MOST), Ok(Duration::ZERO));
        }
        for tenths in 1..=20 {
            assert_eq!(wait(&rates, of(1), now, MOST), Ok(Duration::from_millis(100 * tenths)));
        }
        assert_eq!(wait(&rates, of(1), now, MOST), Err(Duration::from_millis(2_100)));
        assert_eq!(wait(&rates, of(2), now, MOST), Ok(Duration::ZERO), "another address");
        assert_eq!(
            wait(&rates, Account { is_reserved: true, ..of(1) }, now, MOST),
            Ok(Duration::ZERO),
            "a reserved path"
        );
        assert_eq!(wait(&rates, of(1), now + MOST, MOST), Ok(Duration::from_millis(100)), "refused ones cost nothing");
        assert_eq!(wait(&rates, of(1), now + 3 * MOST, MOST), Ok(Duration::ZERO));
    }

    #[test]
    fn whoever_is_known_asks_as_often_as_it_likes() {
        let (rates, now) = (Rates::new(10, 3), Instant::now());
        for _ in 0..1_000 {
            let (wait, charged) = rates.take(of(1), now, MOST).unwrap();
            assert_eq!(wait, Duration::ZERO);
            rates.give_back(charged);
        }
    }

    #[test]
    fn a_rate_of_zero_is_none() {
        let (rates, now) = (Rates::new(0, 0), Instant::now());
        assert!((0..100_000).all(|_| wait(&rates, of(1), now, MOST) == Ok(Duration::ZERO)));
        assert!(rates.full_at.borrow().is_empty());
    }

    #[test]
    fn more_addresses_than_are_known_share_one_rate_until_others_are_forgotten() {
        let (rates, now) = (Rates::new(1, 1), Instant::now());
        for last in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            assert_eq!(wait(&rates, of(last), now, Duration::ZERO), Ok(Duration::ZERO));
        }
        assert_eq!(wait(&rates, of(1 << 20), now, Duration::ZERO), Ok(Duration::ZERO));
        assert!(wait(&rates, of(2 << 20), now, Duration::ZERO).is_err());
        assert_eq!(rates.full_at.borrow().len(), ADDRESSES_MAX + 1);
        let (rates, others) = (Rates::new(1, 1), 3 << 20);
        for last in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
            assert_eq!(wait(&rates, of(last), now, Duration::ZERO), Ok(Duration::ZERO));
        }
        for stranger in 0..1_000 {
            let (wait, charged) = rates.take(of(others + stranger), now, Duration::ZERO).unwrap();
            assert_eq!(wait, Duration::ZERO, "what was known of them is given back to all of them");
            rates.give_back(charged);
        }
        rates.sweep(now + Duration::from_secs(1));
        assert_eq!(rates.full_at.borrow().capacity(), 0);
        assert_eq!(wait(&rates, of(2 << 20), now + Duration::from_secs(1), Duration::ZERO), Ok(Duration::ZERO));
    }
}
