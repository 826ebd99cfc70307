//! Who a connection is, and the rules by which that is found out, which may be replaced while the server runs.

use crate::confidential::Confidential;
use crate::options::TokenRule;
use crate::pattern::Grant;
use crate::token::TokenCheck;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::Arc;

/// Who a connection is and what it may do.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user's id.
    pub user: Arc<str>,
    /// Rights beyond the open ones.
    pub grants: Box<[Grant]>,
    /// When it ends, Unix ms.
    pub expires_at_ms: Option<u64>,
    /// When it was issued, Unix s: what a revocation of the user goes by.
    pub issued_at_s: Option<u64>,
    /// The token's `jti`.
    pub token_id: Option<Box<str>>,
    /// The token itself, where Python is told it.
    pub token: Option<Confidential>,
}

impl Identity {
    /// A user of whom nothing else is known.
    #[must_use]
    pub fn of(user: &str) -> Self {
        Self {
            user: user.into(),
            grants: Box::default(),
            expires_at_ms: None,
            issued_at_s: None,
            token_id: None,
            token: None,
        }
    }
}

/// What decides who comes in. A handshake sees one of these whole, the one before a change or the one after it.
#[derive(Default)]
pub(crate) struct IdentityRules {
    pub token: Option<TokenCheck>,
    origins: Option<HashSet<String>>,
}

/// The document of a change.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    token: Option<TokenRule>,
    origins: Option<Vec<String>>,
}

impl IdentityRules {
    pub(crate) fn compile(token: Option<&TokenRule>, origins: Option<&Vec<String>>) -> Result<Self, String> {
        Ok(Self {
            token: token.map(TokenCheck::new).transpose()?,
            origins: origins.map(|all| all.iter().cloned().collect()),
        })
    }

    /// Reads `{"token": …, "origins": …}`.
    ///
    /// # Errors
    /// One line that names the key and what is allowed.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, String> {
        let change: Change = serde_json::from_slice(json).map_err(|error| format!("identity: {error}"))?;
        Self::compile(change.token.as_ref(), change.origins.as_ref())
    }

    /// Whether a page of this origin may connect to `host`. Where a cookie may say who somebody is, any page's script
    /// would be let in as them, so the page has to be ours: listed, or of the very host that it connects to.
    pub(crate) fn allows(&self, origin: &str, host: Option<&str>, by_cookie: bool) -> bool {
        let is_listed = self.origins.as_ref().map(|allowed| allowed.contains(origin));
        let is_ours = || {
            let own = origin.split_once("://").map(|(_, host)| host);
            own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host))
        };
        match is_listed {
            Some(true) => true,
            None if !by_cookie => true,
            _ => by_cookie && is_ours(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_connects_by_cookie_only_where_it_is_listed_or_at_home() {
        let open = IdentityRules::default();
        let origins = vec!["https://app.example".to_owned()];
        let listed = IdentityRules::compile(None, Some(&origins)).unwrap();
        for (origin, by_cookie, in_open, in_listed) in [
            ("https://app.example", false, true, true),
            ("https://evil.example", false, true, false),
            ("https://edge.example:3002", false, true, false),
            ("null", false, true, false),
            ("https://app.example", true, false, true),
            ("https://evil.example", true, false, false),
            ("https://Edge.example:3002", true, true, true),
            ("https://edge.example", true, false, false),
            ("null", true, false, false),
            ("", true, false, false),
        ] {
            let host = Some("edge.example:3002");
            assert_eq!(open.allows(origin, host, by_cookie), in_open, "{origin} {by_cookie}");
            assert_eq!(listed.allows(origin, host, by_cookie), in_listed, "{origin} {by_cookie}");
        }
        assert!(!open.allows("null", None, true));
    }
}
