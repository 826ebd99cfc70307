//! Who may come in: the rules in force, and what was revoked.

use super::Hub;
use crate::command::Admitted;
use crate::counters::add;
use crate::identity::{Identity, IdentityRules};
use crate::inbox::ShardMsg;
use crate::lock::lock;
use crate::refusal::Refusal;
use crate::revocations::Revocation;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

impl Hub {
    /// Replaces the rule of tokens and the origins (JSON `{"token": …, "origins": …}`, each as in
    /// [`crate::Options`]) for whoever comes from now on.
    ///
    /// # Errors
    /// One line that names what is wrong; the rules in force stay.
    pub fn set_identity(&self, json: &[u8]) -> Result<(), String> {
        let rules = Arc::new(IdentityRules::from_json(json)?);
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = rules;
        Ok(())
    }

    pub(crate) fn identity_rules(&self) -> Arc<IdentityRules> {
        Arc::clone(&self.identity.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says who a token names. What was revoked is for the caller to look at, in the turn in which it counts.
    pub(crate) fn check_token(&self, token: &str, wall_ms: u64) -> Result<Identity, Refusal> {
        let rules = self.identity_rules();
        let mut identity = rules.token.as_ref().ok_or(Refusal::UnknownKey)?.check(token, wall_ms)?;
        identity.token = self.rules.tell_tokens.then(|| crate::Confidential::new(token));
        Ok(identity)
    }

    /// Whether whoever this is may not come in, however good the token. A shard asks in the turn in which it opens or
    /// renews the session: see [`crate::revocations`].
    pub(crate) fn is_revoked(&self, identity: &Identity) -> bool {
        lock(&self.revocations).cover(identity)
    }

    /// Enters a revocation, then tells the shards.
    pub(super) fn revoke(&self, revocation: Revocation, close: bool) {
        let (dropped, bytes) = {
            let mut revocations = lock(&self.revocations);
            (revocations.add(&revocation), revocations.bytes())
        };
        self.counters.revocations_bytes.store(bytes as u64, Ordering::Relaxed);
        add(&self.counters.revocations_dropped, dropped as u64);
        if close {
            let revocation = Arc::new(revocation);
            self.everywhere(|| ShardMsg::Revoke(Arc::clone(&revocation)));
        }
    }
}

/// Reads what Python says of somebody.
pub(super) fn admitted(who: Admitted) -> Result<Box<Identity>, String> {
    let grants = match who.grants {
        None => Box::default(),
        Some(json) => {
            let value = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
            crate::token::grants_of(&value)?
        }
    };
    let Admitted { user, expires_at_ms, issued_at_s, token_id, .. } = who;
    Ok(Box::new(Identity { user, grants, expires_at_ms, issued_at_s, token_id, token: None }))
}
