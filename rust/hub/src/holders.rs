//! Unfinished messages by user: finds the user that holds the most, and its largest connection.
//!
//! A connection is charged the bytes allocated for what it has begun to send, to its user, or to its address where it
//! has no name. Buffers double, so a message changes its charge a few times and not with every read; what is below
//! [`Holders::least`] is not in the table at all. Charges and users stand in ordered sets: O(log n) a change, and the
//! most is the last. A connection that was chosen to end is not chosen again, and its bytes count as leaving.

use crate::ConnId;
use std::collections::{BTreeSet, HashMap};
use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::Arc;

/// Below this no connection is in the table with the default limit: 65,536 such connections stay below that limit.
const LEAST_MAX: usize = 4_096;

/// The user or address that is charged.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    User(Arc<str>),
    Address(IpAddr),
}

#[derive(Debug)]
struct Charge {
    account: u64,
    bytes: usize,
    is_leaving: bool,
}

#[derive(Debug)]
struct Account {
    holder: Holder,
    bytes: usize,
    /// Charges of its connections.
    conns: BTreeSet<(usize, ConnId)>,
}

/// Charges by connection and by holder. At most one for each connection with an unfinished message.
#[derive(Debug)]
pub(crate) struct Holders {
    least: usize,
    charges: HashMap<ConnId, Charge>,
    /// Names come from clients: std's keyed hash.
    numbers: HashMap<Holder, u64, RandomState>,
    accounts: HashMap<u64, Account>,
    /// Accounts by their bytes.
    ranking: BTreeSet<(usize, u64)>,
    next: u64,
    leaving: usize,
}

impl Holders {
    /// A table for so many bytes of all connections together.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            least: (bytes_max >> 16).min(LEAST_MAX),
            charges: HashMap::default(),
            numbers: HashMap::default(),
            accounts: HashMap::default(),
            ranking: BTreeSet::new(),
            next: 0,
            leaving: 0,
        }
    }

    /// Bytes from which a connection stands in the table.
    pub(crate) const fn least(&self) -> usize {
        self.least
    }

    /// Sets what a connection is charged; the holder of its first charge stays until the charge is 0.
    pub(crate) fn set(&mut self, conn: ConnId, holder: impl FnOnce() -> Holder, bytes: usize) {
        let bytes = if bytes < self.least { 0 } else { bytes };
        let before = self.take_out(conn);
        if bytes == 0 {
            if let Some(charge) = before {
                self.drop_if_empty(charge.account);
            }
            return;
        }
        let (account, is_leaving) = match before {
            Some(charge) => (charge.account, charge.is_leaving),
            None => (self.account_of(holder()), false),
        };
        self.put_in(conn, Charge { account, bytes, is_leaving });
    }

    /// Bytes of connections that were chosen and have not given them back.
    pub(crate) const fn leaving(&self) -> usize {
        self.leaving
    }

    /// Whether the connection was chosen and still holds what it was chosen for.
    pub(crate) fn is_leaving(&self, conn: ConnId) -> bool {
        self.charges.get(&conn).is_some_and(|charge| charge.is_leaving)
    }

    /// Chooses the largest connection of the holder that has the most.
    pub(crate) fn choose(&mut self) -> Option<ConnId> {
        let (_, number) = *self.ranking.last()?;
        let (_, conn) = *self.accounts.get(&number)?.conns.last()?;
        let mut charge = self.take_out(conn)?;
        charge.is_leaving = true;
        self.put_in(conn, charge);
        Some(conn)
    }

    fn account_of(&mut self, holder: Holder) -> u64 {
        if let Some(number) = self.numbers.get(&holder) {
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(holder.clone(), number);
        self.accounts.insert(number, Account { holder, bytes: 0, conns: BTreeSet::new() });
        number
    }

    fn take_out(&mut self, conn: ConnId) -> Option<Charge> {
        let charge = self.charges.remove(&conn)?;
        if charge.is_leaving {
            self.leaving -= charge.bytes;
        } else if let Some(account) = self.accounts.get_mut(&charge.account) {
            account.conns.remove(&(charge.bytes, conn));
            self.ranking.remove(&(account.bytes, charge.account));
            account.bytes -= charge.bytes;
            if account.bytes > 0 {
                self.ranking.insert((account.bytes, charge.account));
            }
        }
        Some(charge)
    }

    fn put_in(&mut self, conn: ConnId, charge: Charge) {
        if charge.is_leaving {
            self.leaving += charge.bytes;
        } else if let Some(account) = self.accounts.get_mut(&charge.account) {
            account.conns.insert((charge.bytes, conn));
            self.ranking.remove(&(account.bytes, charge.account));
            account.bytes += charge.bytes;
            self.ranking.insert((account.bytes, charge.account));
        }
        let account = charge.account;
        let was_leaving = charge.is_leaving;
        self.charges.insert(conn, charge);
        if was_leaving {
            self.drop_if_empty(account);
        }
    }

    /// Forgets an account without a charge that ranks. One that only holds what is leaving is forgotten, too: its
    /// charges find no account, and need none.
    fn drop_if_empty(&mut self, number: u64) {
        if self.accounts.get(&number).is_some_and(|account| account.conns.is_empty())
            && let Some(account) = self.accounts.remove(&number)
        {
            self.numbers.remove(&account.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(n: u32) -> ConnId {
        ConnId::new(0, n, 0)
    }

    fn user(name: &str) -> impl FnOnce() -> Holder {
        let holder = Holder::User(name.into());
        || holder
    }

    #[test]
    fn the_connections_of_a_user_add_up_and_its_largest_is_chosen() {
        let mut holders = Holders::new(100);
        holders.set(conn(1), user("ann"), 900);
        for n in 2..6 {
            holders.set(conn(n), user("bob"), 300 + n as usize);
        }
        let chosen: Vec<_> = (0..3).filter_map(|_| holders.choose()).collect();
        // Bob holds 1,214, then 909, then 605: ann's 900 are the most by then.
        assert_eq!(chosen, [conn(5), conn(4), conn(1)]);
        assert_eq!(holders.leaving(), 305 + 304 + 900);
        assert!(holders.is_leaving(conn(1)) && !holders.is_leaving(conn(2)));
        for n in 1..6 {
            holders.set(conn(n), user("nobody"), 0);
        }
        assert_eq!((holders.leaving(), holders.choose()), (0, None));
        assert!(holders.accounts.is_empty() && holders.numbers.is_empty() && holders.ranking.is_empty());
    }

    #[test]
    fn what_grows_while_it_leaves_is_not_chosen_again() {
        let mut holders = Holders::new(100);
        holders.set(conn(1), user("ann"), 500);
        assert_eq!(holders.choose(), Some(conn(1)));
        holders.set(conn(1), user("ann"), 5_000);
        assert_eq!((holders.choose(), holders.leaving()), (None, 5_000));
        holders.set(conn(2), user("ann"), 10);
        assert_eq!(holders.choose(), Some(conn(2)));
    }

    #[test]
    fn small_messages_do_not_touch_the_table_where_the_limit_is_large() {
        let mut holders = Holders::new(256 << 20);
        holders.set(conn(1), user("ann"), holders.least() - 1);
        assert!(holders.charges.is_empty() && holders.accounts.is_empty());
        holders.set(conn(1), user("ann"), holders.least());
        assert_eq!(holders.choose(), Some(conn(1)));
    }
}
