//! Who a connection is, and the rules by which that is found out, which may be replaced while the server runs.

use crate::confidential::Confidential;
use crate::options::TokenRule;
use crate::origin::OriginRule;
use crate::pattern::Grant;
use crate::token::TokenCheck;
use serde::Deserialize;
use std::sync::Arc;

/// A grant without its pattern: its place, and what the allocator takes for a text.
const GRANT_BYTES: usize = 48;
/// A token without its text, as Python holds it.
const TOKEN_BYTES: usize = 128;

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
    /// About what it takes while its session is open, with what Python holds of it.
    pub(crate) fn held_bytes(&self) -> usize {
        let grants: usize = self.grants.iter().map(|grant| GRANT_BYTES + grant.pattern.text().len()).sum();
        let token = self.token.as_ref().map_or(0, |token| TOKEN_BYTES + token.len());
        self.user.len() + self.token_id.as_ref().map_or(0, |id| id.len()) + grants + token
    }

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
    pub origins: OriginRule,
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
            origins: OriginRule::new(origins.map(Vec::as_slice)).map_err(|error| format!("auth.origins: {error}"))?,
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
}
