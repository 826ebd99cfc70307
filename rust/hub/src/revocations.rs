//! Who is not let in any more although their token is good: users up to a time of issue, and single tokens.
//!
//! How nobody slips through: an entry is made here first, then every shard is told to close who is in. A shard looks
//! in here in the very turn in which it lets somebody in. So either it sees the entry, or the entry came later, and
//! then so does the message, which finds the session open. Python keeps revocations over a restart, not this table.

use crate::identity::Identity;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// An entry without its name, in two tables; 200 were measured.
const ENTRY_BYTES: usize = 256;

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// Sessions of this user, issued before so many Unix seconds; None is whenever.
    pub user: Option<(Arc<str>, Option<u64>)>,
    /// Sessions by this token.
    pub token_id: Option<Arc<str>>,
}

impl Revocation {
    /// Whether a session of this user, issued then and by this token, ends.
    pub(crate) fn covers(&self, user: &str, issued_at_s: u64, token_id: Option<&str>) -> bool {
        let by_user = self.user.as_ref().is_some_and(|(revoked, before_s)| {
            **revoked == *user && before_s.is_none_or(|before_s| issued_at_s < before_s)
        });
        by_user || (self.token_id.is_some() && self.token_id.as_deref() == token_id)
    }
}

/// Everything that was revoked since the start, up to so many bytes: the oldest goes for a newer one. Names come from tokens: std's keyed hash.
#[derive(Debug)]
pub(crate) struct Revocations {
    /// By user: the time of issue below which nothing counts, and the entry's place in `order`.
    users: HashMap<Arc<str>, (u64, u64)>,
    /// By token.
    tokens: HashMap<Arc<str>, u64>,
    order: BTreeMap<u64, Name>,
    next: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
enum Name {
    User(Arc<str>),
    Token(Arc<str>),
}

impl Name {
    fn bytes(&self) -> usize {
        let (Self::User(name) | Self::Token(name)) = self;
        ENTRY_BYTES + name.len()
    }
}

impl Revocations {
    /// An empty table for so many bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { users: HashMap::new(), tokens: HashMap::new(), order: BTreeMap::new(), next: 0, bytes: 0, bytes_max }
    }

    /// What the entries take.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a revocation; returns how many old ones went for it.
    pub(crate) fn add(&mut self, revocation: &Revocation) -> usize {
        if let Some((user, before_s)) = &revocation.user {
            let before_s = before_s.unwrap_or(u64::MAX);
            let known = self.users.insert(Arc::clone(user), (before_s, self.next));
            if let Some((earlier_s, place)) = known {
                self.forget(place);
                self.users.insert(Arc::clone(user), (before_s.max(earlier_s), self.next));
            }
            self.remember(Name::User(Arc::clone(user)));
        }
        if let Some(token) = &revocation.token_id {
            if let Some(place) = self.tokens.insert(Arc::clone(token), self.next) {
                self.forget(place);
            }
            self.remember(Name::Token(Arc::clone(token)));
        }
        let mut dropped = 0;
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.bytes -= oldest.bytes();
            match oldest {
                Name::User(user) => drop(self.users.remove(&user)),
                Name::Token(token) => drop(self.tokens.remove(&token)),
            }
            dropped += 1;
        }
        dropped
    }

    /// Takes the place of an entry that is told again.
    fn forget(&mut self, place: u64) {
        if let Some(name) = self.order.remove(&place) {
            self.bytes -= name.bytes();
        }
    }

    fn remember(&mut self, name: Name) {
        self.bytes += name.bytes();
        self.order.insert(self.next, name);
        self.next += 1;
    }

    /// Whether whoever this is may not come in.
    pub(crate) fn cover(&self, identity: &Identity) -> bool {
        let issued_at_s = identity.issued_at_s.unwrap_or(0);
        let by_user = self.users.get(&identity.user).is_some_and(|(before_s, _)| issued_at_s < *before_s);
        by_user || identity.token_id.as_ref().is_some_and(|token| self.tokens.contains_key(&**token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, before_s: Option<u64>) -> Revocation {
        Revocation { user: Some((name.into(), before_s)), token_id: None }
    }

    fn token(id: &str) -> Revocation {
        Revocation { user: None, token_id: Some(id.into()) }
    }

    fn identity(name: &str, issued_at_s: Option<u64>, token_id: Option<&str>) -> Identity {
        Identity { issued_at_s, token_id: token_id.map(Into::into), ..Identity::of(name) }
    }

    #[test]
    fn a_user_is_revoked_up_to_a_time_of_issue_and_a_token_by_its_id() {
        let mut revocations = Revocations::new(1 << 20);
        assert_eq!(revocations.add(&user("ann", Some(100))), 0);
        assert_eq!(revocations.add(&token("t1")), 0);
        for (who, is_covered) in [
            (identity("ann", Some(99), None), true),
            (identity("ann", None, None), true),
            (identity("ann", Some(100), None), false),
            (identity("ann", Some(100), Some("t1")), true),
            (identity("bob", Some(99), None), false),
            (identity("bob", None, Some("t1")), true),
            (identity("bob", None, Some("t2")), false),
        ] {
            assert_eq!(revocations.cover(&who), is_covered, "{who:?}");
        }
    }

    #[test]
    fn an_earlier_time_never_takes_a_later_one_back() {
        let mut revocations = Revocations::new(1 << 20);
        for before_s in [Some(100), Some(50)] {
            revocations.add(&user("ann", before_s));
        }
        assert!(revocations.cover(&identity("ann", Some(99), None)));
        revocations.add(&user("ann", None));
        assert!(revocations.cover(&identity("ann", Some(u64::MAX - 1), None)));
    }

    #[test]
    fn the_oldest_entry_goes_and_one_that_is_told_again_is_young() {
        let mut revocations = Revocations::new(2 * (ENTRY_BYTES + 3));
        assert_eq!([user("ann", None), token("t1"), user("ann", None)].map(|one| revocations.add(&one)), [0; 3]);
        assert_eq!(revocations.add(&user("bob", None)), 1);
        assert!(revocations.cover(&identity("ann", None, None)));
        assert!(!revocations.cover(&identity("eve", None, Some("t1"))));
        assert_eq!((revocations.users.len(), revocations.tokens.len(), revocations.order.len()), (2, 0, 2));
        assert_eq!(revocations.bytes(), 2 * (ENTRY_BYTES + 3));
    }
}
