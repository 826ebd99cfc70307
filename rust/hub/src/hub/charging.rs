//! What is asked for over HTTP: from the same buckets as what the same user asks for over sockets.

use super::Hub;
use crate::Now;
use crate::accounts::Account;
use crate::bucket::Rate;
use crate::core::page_milli;
use crate::counters::add;
use crate::rules::Traffic;
use realtime_protocol::address::limited_as;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

impl Hub {
    /// Takes what a request costs: so many commands, and a page of so many bytes. Who has no name is known by the
    /// address.
    ///
    /// # Errors
    /// Milliseconds until it is there.
    pub fn charge(
        &self,
        user: &str,
        peer: Option<IpAddr>,
        commands: u32,
        page_bytes: usize,
        now: Now,
    ) -> Result<(), u32> {
        let milli = commands.saturating_mul(1_000).saturating_add(self.rules.reserved_milli(page_milli(page_bytes)));
        for (account, rate, is_address) in self.accounts_of(user, peer, now) {
            account.commands.take_milli(milli, rate, now.mono_ms).inspect_err(|_| {
                let counters = &self.counters;
                add(if is_address { &counters.refused_by_address } else { &counters.refused_by_user }, 1);
            })?;
        }
        Ok(())
    }

    /// Settles what was taken for a page that was not known yet: it was taken for `reserved` bytes and has `bytes`.
    pub fn settle(&self, user: &str, peer: Option<IpAddr>, reserved: usize, bytes: usize, now: Now) {
        let (reserved, milli) = (self.rules.reserved_milli(page_milli(reserved)), page_milli(bytes));
        for (account, rate, _) in self.accounts_of(user, peer, now) {
            if milli < reserved {
                account.commands.give_back(reserved - milli);
            } else {
                account.commands.overdraw(milli - reserved, rate, now.mono_ms);
            }
        }
    }

    /// Takes what an event of a user's has to be stored, of sockets and HTTP alike. The server's own is never held back.
    ///
    /// # Errors
    /// Milliseconds until it is there.
    pub(super) fn charge_stored(&self, user: Option<&Arc<str>>, bytes: usize, now: Now) -> Result<(), u32> {
        let rate = self.rules.stored_rate();
        let Some(user) = user.filter(|_| rate.per_s > 0) else { return Ok(()) };
        let account = self.users.find(user, now.mono_ms, &self.counters);
        account.stored.take_milli(stored_milli(bytes), rate, now.mono_ms)
    }

    /// Gives it back: it was stored before, or could not be.
    pub(super) fn return_stored(&self, user: Option<&Arc<str>>, bytes: usize, now: Now) {
        if let Some(user) = user.filter(|_| self.rules.stored_rate().per_s > 0) {
            self.users.find(user, now.mono_ms, &self.counters).stored.give_back(stored_milli(bytes));
        }
    }

    fn accounts_of(&self, user: &str, peer: Option<IpAddr>, now: Now) -> Vec<(Arc<Account>, Rate, bool)> {
        let limits = &self.rules.limits;
        let mut found = Vec::with_capacity(2);
        let address = peer.map(limited_as);
        if limits.enabled && limits.user_commands_per_s > 0 {
            let nobody = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            // No user has such an id.
            let key: Arc<str> = if user.is_empty() { format!("\0{nobody}").into() } else { user.into() };
            let account = self.users.find(&key, now.mono_ms, &self.counters);
            found.push((account, self.rules.user_rate(Traffic::Commands), false));
        }
        if let (true, Some(address)) = (limits.enabled && limits.address_commands_per_s > 0, address) {
            let account = self.addresses.find(&address, now.mono_ms, &self.counters);
            found.push((account, self.rules.address_rate(Traffic::Commands), true));
        }
        found
    }
}

/// Thousandths of a token of 1 KiB.
fn stored_milli(bytes: usize) -> u32 {
    u32::try_from(bytes.saturating_mul(1_000) >> 10).unwrap_or(u32::MAX)
}
