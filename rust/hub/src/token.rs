//! The token rule: who a bearer is, decided in the shard by keys that Python handed over.
//!
//! One algorithm, fixed by the configuration; the key never depends on what a token says of itself. Time is an
//! argument, so expiry is checked here and not by the library.

use crate::options::{Expiry, TokenRule};
use crate::pattern::{Grant, Pattern, Rights};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Entries that a token's `channels` may have.
pub const GRANTS_MAX: usize = 100;
/// Characters of a user's id.
pub const USER_CHARS_MAX: usize = 256;

/// Who a connection is and what it may do.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user's id.
    pub user: Arc<str>,
    /// Rights beyond the open ones.
    pub grants: Box<[Grant]>,
    /// When it ends, Unix ms.
    pub expires_at_ms: Option<u64>,
}

/// Why a token is not taken. Clients hear only `Unauthorized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unauthorized;

/// Checks tokens.
pub struct TokenCheck {
    keys: Vec<DecodingKey>,
    validation: Validation,
    user_claim: String,
    require_exp: bool,
    leeway_ms: u64,
    expiry: Expiry,
}

impl TokenCheck {
    /// Compiles the rule.
    ///
    /// # Errors
    /// One line, where the algorithm is not known or a key is missing.
    pub fn new(rule: &TokenRule) -> Result<Self, String> {
        if rule.algorithm != "HS256" {
            return Err(format!("auth.algorithm={:?} is not HS256", rule.algorithm));
        }
        if rule.secrets.is_empty() {
            return Err("auth.secrets is empty; give at least one key".into());
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        match &rule.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".into());
            }
            None => validation.validate_aud = false,
        }
        Ok(Self {
            keys: rule.secrets.iter().map(|secret| DecodingKey::from_secret(secret.as_bytes())).collect(),
            validation,
            user_claim: rule.user_claim.clone(),
            require_exp: rule.require_exp,
            leeway_ms: rule.leeway_s * 1_000,
            expiry: rule.expiry,
        })
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`Unauthorized`] for whatever is wrong with it.
    pub fn check(&self, token: &str, wall_ms: u64) -> Result<Identity, Unauthorized> {
        let claims = self
            .keys
            .iter()
            .find_map(|key| decode::<Map<String, Value>>(token, key, &self.validation).ok())
            .ok_or(Unauthorized)?
            .claims;
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().filter(|s| *s >= 0.0).map(|s| Some((s * 1_000.0) as u64)).ok_or(Unauthorized),
        };
        let expires_at_ms = time("exp")?;
        if expires_at_ms.is_none() && self.require_exp
            || expires_at_ms.is_some_and(|at| at.saturating_add(self.leeway_ms) <= wall_ms)
            || time("nbf")?.is_some_and(|at| at > wall_ms.saturating_add(self.leeway_ms))
        {
            return Err(Unauthorized);
        }
        let user = match claims.get(&self.user_claim) {
            Some(Value::String(user)) if !user.is_empty() && user.chars().count() <= USER_CHARS_MAX => {
                user.as_str().into()
            }
            Some(Value::Number(number)) if number.is_u64() || number.is_i64() => number.to_string().into(),
            _ => return Err(Unauthorized),
        };
        let grants = claims
            .get("channels")
            .map_or_else(|| Ok(Box::default()), |channels| grants_of(channels).map_err(|_| Unauthorized))?;
        // Whoever was let in within the leeway may stay for it.
        let expires_at_ms =
            expires_at_ms.filter(|_| self.expiry == Expiry::Close).map(|at| at.saturating_add(self.leeway_ms));
        Ok(Identity { user, grants, expires_at_ms })
    }
}

/// Reads `{"conversation:42": ["subscribe", …], …}`.
///
/// # Errors
/// One line that names what is wrong.
pub fn grants_of(channels: &Value) -> Result<Box<[Grant]>, String> {
    let map = channels.as_object().ok_or("channels is not an object of pattern and rights")?;
    if map.len() > GRANTS_MAX {
        return Err(format!("channels has {} entries, at most {GRANTS_MAX} are allowed", map.len()));
    }
    map.iter()
        .map(|(pattern, rights)| {
            let names: Option<Vec<&str>> = rights.as_array().and_then(|all| all.iter().map(Value::as_str).collect());
            let names = names.ok_or_else(|| format!("rights of {pattern:?} are not an array of names"))?;
            Ok(Grant { pattern: Pattern::new(pattern)?, rights: Rights::from_names(&names)? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn rule() -> TokenRule {
        TokenRule {
            algorithm: "HS256".into(),
            secrets: vec!["newer-0123456789abcdef0123456789".into(), SECRET.into()],
            audience: None,
            user_claim: "sub".into(),
            require_exp: true,
            leeway_s: 0,
            expiry: Expiry::Close,
        }
    }

    fn token(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    #[test]
    fn a_good_token_tells_user_grants_and_expiry() {
        let check = TokenCheck::new(&rule()).unwrap();
        let claims = json!({"sub": "ann", "exp": 100, "channels": {"conversation:*": ["subscribe"]}});
        let identity = check.check(&token(Algorithm::HS256, SECRET, &claims), 99_000).unwrap();
        assert_eq!((&*identity.user, identity.expires_at_ms, identity.grants.len()), ("ann", Some(100_000), 1));
        let numeric = check.check(&token(Algorithm::HS256, SECRET, &json!({"sub": 42, "exp": 100})), 0).unwrap();
        assert_eq!(&*numeric.user, "42");
    }

    #[test]
    fn the_leeway_counts_at_connect_and_for_the_end() {
        let check = TokenCheck::new(&TokenRule { leeway_s: 5, ..rule() }).unwrap();
        let token = token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 100}));
        assert_eq!(check.check(&token, 104_000).unwrap().expires_at_ms, Some(105_000));
        assert_eq!(check.check(&token, 105_000).err(), Some(Unauthorized));
    }

    #[test]
    fn whatever_is_wrong_with_a_token_refuses_it() {
        let check = TokenCheck::new(&rule()).unwrap();
        let good = json!({"sub": "ann", "exp": 100});
        let audience = TokenCheck::new(&TokenRule { audience: Some("edge".into()), ..rule() }).unwrap();
        let with_aud = |aud: Value| token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 100, "aud": aud}));
        assert!(audience.check(&with_aud(json!("edge")), 0).is_ok());
        assert!(audience.check(&with_aud(json!("other")), 0).is_err());
        assert!(audience.check(&token(Algorithm::HS256, SECRET, &good), 0).is_err());
        for (bad, wall_ms) in [
            (token(Algorithm::HS256, SECRET, &good), 100_000),
            (token(Algorithm::HS256, "another-secret-0123456789abcdef01", &good), 0),
            (token(Algorithm::HS512, SECRET, &good), 0),
            (token(Algorithm::HS256, SECRET, &json!({"exp": 100})), 0),
            (token(Algorithm::HS256, SECRET, &json!({"sub": "", "exp": 100})), 0),
            (token(Algorithm::HS256, SECRET, &json!({"sub": "ann"})), 0),
            (token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": "soon"})), 0),
            (token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 100, "nbf": 50})), 0),
            (token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 100, "channels": {"a": "subscribe"}})), 0),
            ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4iLCJleHAiOjEwMH0.".into(), 0),
            ("nonsense".into(), 0),
            (String::new(), 0),
        ] {
            assert_eq!(check.check(&bad, wall_ms).err(), Some(Unauthorized), "{bad}");
        }
    }
}
