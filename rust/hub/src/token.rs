//! The token rule: who a bearer is, decided in the shard by keys that Python handed over.
//!
//! Each key has one algorithm, fixed by the configuration: what a token says of itself chooses among keys and changes
//! none. Time is an argument, so the claims are read here; the library does the arithmetic.

use crate::identity::Identity;
use crate::key::{VerifyKey, is_shared_secret};
use crate::options::{Expiry, TokenRule};
use crate::pattern::{Grant, Pattern, Rights};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};
use std::str::FromStr;

/// Entries that a token's `channels` may have.
pub const GRANTS_MAX: usize = 100;
/// Characters of a user's id, and of a token's.
pub const USER_CHARS_MAX: usize = 256;
/// Bytes of a token; one in a URL or a header is bounded by the request's head before.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Keys of a rule.
const KEYS_MAX: usize = 64;
/// Public keys that one token is tried with, the first that it may be of: a signature takes up to 1.5 ms, and whoever
/// sends nonsense without a `kid` must not get that times sixty-four.
const TRIES_MAX: usize = 8;

/// Why a token is not taken. Clients hear only `Unauthorized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Something is wrong with it.
    Unauthorized,
    /// All that can be seen without its key is right, and the key is not one of ours: Python may know of more.
    UnknownKey,
}

/// Checks tokens.
pub struct TokenCheck {
    keys: Vec<VerifyKey>,
    audience: Option<String>,
    issuer: Option<String>,
    user_claim: String,
    require_exp: bool,
    leeway_ms: u64,
    expiry: Expiry,
    ask: bool,
}

/// What a token says of itself: which key to try, and nothing else that is believed. Addresses and keys in it (`jku`,
/// `x5u`, `jwk`) are not even read.
#[derive(Deserialize)]
struct Head {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 §4.1.11); none is.
    crit: Option<IgnoredAny>,
}

impl TokenCheck {
    /// Compiles the rule.
    ///
    /// # Errors
    /// One line that names the key that cannot be used.
    pub fn new(rule: &TokenRule) -> Result<Self, String> {
        if rule.keys.is_empty() && !rule.ask {
            return Err("token.keys is empty; give at least one key".into());
        }
        if rule.keys.len() > KEYS_MAX {
            return Err(format!("token.keys has {} keys, at most {KEYS_MAX} are allowed", rule.keys.len()));
        }
        Ok(Self {
            keys: rule
                .keys
                .iter()
                .enumerate()
                .map(|(place, key)| VerifyKey::new(key, place))
                .collect::<Result<_, _>>()?,
            audience: rule.audience.clone(),
            issuer: rule.issuer.clone(),
            user_claim: rule.user_claim.clone(),
            require_exp: rule.require_exp,
            leeway_ms: rule.leeway_s * 1_000,
            expiry: rule.expiry,
            ask: rule.ask,
        })
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`Refusal`]; a token that is wrong in any other way never asks for its key.
    pub fn check(&self, token: &str, wall_ms: u64) -> Result<Identity, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Unauthorized);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(Refusal::Unauthorized)?;
        let (head, claims) = message.split_once('.').ok_or(Refusal::Unauthorized)?;
        let head: Head = decoded(head)?;
        let algorithm = Algorithm::from_str(&head.alg).map_err(|_| Refusal::Unauthorized)?;
        if head.crit.is_some() {
            return Err(Refusal::Unauthorized);
        }
        // Before the signature: what is refused anyway costs no arithmetic, and nothing of it is used before.
        let claims = decoded(claims)?;
        let identity = self.identity(&claims, wall_ms)?;
        let issuer = claims.get("iss").and_then(Value::as_str);
        let mut tried = self.keys.iter().filter(|key| key.is_for(algorithm, head.kid.as_deref(), issuer)).peekable();
        if tried.peek().is_none() && self.ask && !is_shared_secret(algorithm) {
            return Err(Refusal::UnknownKey);
        }
        let tries = if is_shared_secret(algorithm) { KEYS_MAX } else { TRIES_MAX };
        match tried.take(tries).any(|key| key.has_signed(message.as_bytes(), signature)) {
            true => Ok(identity),
            false => Err(Refusal::Unauthorized),
        }
    }

    /// What the claims say, once somebody is found to have signed them.
    fn identity(&self, claims: &Map<String, Value>, wall_ms: u64) -> Result<Identity, Refusal> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => {
                value.as_f64().filter(|s| *s >= 0.0).map(|s| Some((s * 1_000.0) as u64)).ok_or(Refusal::Unauthorized)
            }
        };
        let (expires_at_ms, issued_at_ms) = (time("exp")?, time("iat")?);
        if expires_at_ms.is_none() && self.require_exp
            || expires_at_ms.is_some_and(|at| at.saturating_add(self.leeway_ms) <= wall_ms)
            || time("nbf")?.is_some_and(|at| at > wall_ms.saturating_add(self.leeway_ms))
            || self.audience.as_ref().is_some_and(|wanted| !names(claims.get("aud"), wanted))
            || self.issuer.as_ref().is_some_and(|wanted| claims.get("iss").and_then(Value::as_str) != Some(wanted))
        {
            return Err(Refusal::Unauthorized);
        }
        let user = name_of(claims.get(&self.user_claim)).ok_or(Refusal::Unauthorized)?;
        let token_id = match claims.get("jti") {
            None => None,
            id => Some(name_of(id).ok_or(Refusal::Unauthorized)?.into()),
        };
        let grants = claims
            .get("channels")
            .map_or_else(|| Ok(Box::default()), |channels| grants_of(channels).map_err(|_| Refusal::Unauthorized))?;
        // Whoever was let in within the leeway may stay for it.
        let expires_at_ms =
            expires_at_ms.filter(|_| self.expiry == Expiry::Close).map(|at| at.saturating_add(self.leeway_ms));
        let issued_at_s = issued_at_ms.map(|at| at / 1_000);
        Ok(Identity { user: user.into(), grants, expires_at_ms, issued_at_s, token_id, token: None })
    }
}

fn decoded<T: DeserializeOwned>(part: &str) -> Result<T, Refusal> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Unauthorized)?;
    serde_json::from_slice(&json).map_err(|_| Refusal::Unauthorized)
}

/// Whether `aud`, a name or a list of them (RFC 7519 §4.1.3), holds this one.
fn names(audience: Option<&Value>, wanted: &str) -> bool {
    match audience {
        Some(Value::String(name)) => name == wanted,
        Some(Value::Array(all)) => all.iter().any(|name| name.as_str() == Some(wanted)),
        _ => false,
    }
}

/// An id as text; whole numbers are read as their decimal digits.
fn name_of(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(name) if !name.is_empty() && name.chars().count() <= USER_CHARS_MAX => Some(name.clone()),
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
        _ => None,
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
    use crate::Confidential;
    use crate::options::KeyRule;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn rule() -> TokenRule {
        TokenRule {
            keys: ["newer-0123456789abcdef0123456789", SECRET].map(key).into(),
            audience: None,
            issuer: None,
            user_claim: "sub".into(),
            require_exp: true,
            leeway_s: 0,
            expiry: Expiry::Close,
            ask: false,
        }
    }

    fn key(secret: &str) -> KeyRule {
        KeyRule { algorithm: Algorithm::HS256, key: Confidential::new(secret), kid: None, issuer: None }
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
        assert_eq!(check.check(&token, 105_000).err(), Some(Refusal::Unauthorized));
    }

    #[test]
    fn whatever_is_wrong_with_a_token_refuses_it() {
        let check = TokenCheck::new(&rule()).unwrap();
        let good = json!({"sub": "ann", "exp": 100});
        let audience = TokenCheck::new(&TokenRule { audience: Some("edge".into()), ..rule() }).unwrap();
        let with_aud = |aud: Value| token(Algorithm::HS256, SECRET, &json!({"sub": "ann", "exp": 100, "aud": aud}));
        assert!(audience.check(&with_aud(json!("edge")), 0).is_ok());
        assert!(audience.check(&with_aud(json!(["other", "edge"])), 0).is_ok());
        for other in [json!("other"), json!(["other"]), json!([]), json!(null), json!({"edge": 1})] {
            assert!(audience.check(&with_aud(other), 0).is_err());
        }
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
            assert_eq!(check.check(&bad, wall_ms).err(), Some(Refusal::Unauthorized), "{bad}");
        }
    }
}
