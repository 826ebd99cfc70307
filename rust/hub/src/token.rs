//! The token rule: who a bearer is, by keys that Python handed over. It is the only one: shards ask it for sockets and for
//! `refresh`, Python (`realtime._engine.TokenCheck`) for HTTP, for keys that it has fetched and for the command line.
//!
//! Each key has one algorithm, fixed by the configuration: what a token says of itself chooses among keys and changes
//! none. Time is an argument, so the claims are read here; the library does the arithmetic.

use crate::identity::Identity;
use crate::jose_header::JoseHeader;
use crate::key::{VerifyKey, is_shared_secret};
use crate::options::{Expiry, TokenRule};
use crate::pattern::{Grant, Pattern, Rights};
use crate::token_witness::{First, Granting, Witness};
use crate::unique;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use std::str::FromStr;

pub use crate::refusal::Refusal;
pub use crate::token_witness::{Explanation, Finding, Signer};

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
/// Times are below 2^53 s: every whole second up to there is a number of its own in JSON.
const TIME_S_MAX: f64 = (1u64 << 53) as f64;

/// Checks tokens.
pub struct TokenCheck {
    keys: Vec<VerifyKey>,
    audience: Option<String>,
    issuer: Option<String>,
    user_claim: String,
    require_exp: bool,
    leeway_ms: u64,
    clock_skew_ms: u64,
    expiry: Expiry,
    ask: bool,
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
            leeway_ms: rule.leeway_s.saturating_mul(1_000),
            clock_skew_ms: rule.clock_skew_s.saturating_mul(1_000),
            expiry: rule.expiry,
            ask: rule.ask,
        })
    }

    /// Says who a token names.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order form, times, audience, issuer, key, signature, expiry: a token that is
    /// refused anyway costs no arithmetic and never asks for its key, and one that has expired is otherwise good.
    pub fn check(&self, token: &str, wall_ms: u64) -> Result<Identity, Refusal> {
        self.examine(token, wall_ms, &mut First)
    }

    /// As [`Self::check`], with the JSON of the claim `channels` where there is one.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_with_grants(&self, token: &str, wall_ms: u64) -> Result<(Identity, Option<String>), Refusal> {
        let mut witness = Granting::default();
        let identity = self.examine(token, wall_ms, &mut witness)?;
        Ok((identity, witness.channels))
    }

    /// Says everything that is wrong with a token, and what it holds.
    #[must_use]
    pub fn explain(&self, token: &str, wall_ms: u64) -> Explanation {
        let mut explanation = Explanation::default();
        // What stopped it is among the findings.
        let _ = self.examine(token, wall_ms, &mut explanation);
        explanation
    }

    fn examine(&self, token: &str, wall_ms: u64, witness: &mut impl Witness) -> Result<Identity, Refusal> {
        let Jws { message, signature, algorithm, kid, claims } = Jws::read(token, witness)?;
        let found = self.identity(&claims, wall_ms, witness)?;
        witness.identity(&found.identity);
        let issuer = claims.get("iss").and_then(Value::as_str);
        let is_tried = |key: &VerifyKey| key.is_for(algorithm, kid.as_deref(), issuer);
        let mut tried = self.keys.iter().enumerate().filter(|(_, key)| is_tried(key)).peekable();
        if tried.peek().is_none() {
            // The key of an old token may be gone by now; whoever fetches a new token gets one of a new key.
            if found.is_expired {
                witness.refuse(Refusal::Expired, || self.has_expired())?;
            }
            let unknown =
                if self.ask && !is_shared_secret(algorithm) { Refusal::KeyNotFetched } else { Refusal::UnknownKey };
            witness.refuse(unknown, || match &kid {
                Some(kid) => format!("unknown key: none of {} is for {algorithm:?} and kid {kid:?}", self.keys.len()),
                None => format!("unknown key: none of {} is for {algorithm:?}", self.keys.len()),
            })?;
        } else {
            let tries = if is_shared_secret(algorithm) { KEYS_MAX } else { TRIES_MAX };
            match tried.take(tries).find(|(_, key)| key.has_signed(message.as_bytes(), signature)) {
                Some((place, key)) => witness.signed_by(place, key),
                None => witness.refuse(unsigned(signature), || {
                    let count = self.keys.iter().filter(|key| is_tried(key)).count().min(tries);
                    format!("none of the {count} keys that were tried has signed it")
                })?,
            }
            if found.is_expired {
                witness.refuse(Refusal::Expired, || self.has_expired())?;
            }
        }
        Ok(found.identity)
    }

    fn has_expired(&self) -> String {
        format!("claim exp has passed (auth.leeway_s is {})", self.leeway_ms / 1_000)
    }

    /// What the claims say, if a key has signed them.
    fn identity(
        &self,
        claims: &Map<String, Value>,
        wall_ms: u64,
        witness: &mut impl Witness,
    ) -> Result<Found, Refusal> {
        let mut time = |name: &str| -> Result<Option<u64>, Refusal> {
            let Some(value) = claims.get(name) else { return Ok(None) };
            match value.as_f64().filter(|s| (0.0..TIME_S_MAX).contains(s)) {
                Some(s) => Ok(Some(value.as_u64().map_or((s * 1_000.0) as u64, |whole_s| whole_s * 1_000))),
                None => {
                    witness.refuse(Refusal::Malformed, || {
                        format!("claim {name} is not a number of seconds from 0 to 2^53")
                    })?;
                    Ok(None)
                }
            }
        };
        let (expires_at_ms, issued_at_ms, begins_at_ms) = (time("exp")?, time("iat")?, time("nbf")?);
        if self.require_exp && !claims.contains_key("exp") {
            witness.refuse(Refusal::Malformed, || "claim exp is missing; auth.require_exp asks for it".into())?;
        }
        let (skew_ms, leeway_ms) = (self.clock_skew_ms, self.leeway_ms);
        if begins_at_ms.is_some_and(|at| at > wall_ms.saturating_add(leeway_ms)) {
            witness.refuse(Refusal::NotYetValid, || {
                format!("not yet valid: claim nbf lies over {} s ahead", leeway_ms / 1_000)
            })?;
        }
        if issued_at_ms.is_some_and(|at| at > wall_ms.saturating_add(skew_ms)) {
            witness.refuse(Refusal::NotYetValid, || {
                format!("not yet valid: claim iat lies over {} s ahead (auth.clock_skew_s)", skew_ms / 1_000)
            })?;
        }
        if self.audience.as_ref().is_some_and(|wanted| !names(claims.get("aud"), wanted)) {
            witness.refuse(Refusal::Audience, || {
                format!("claim aud does not name {:?}", self.audience.as_deref().unwrap_or_default())
            })?;
        }
        if self.issuer.as_ref().is_some_and(|wanted| claims.get("iss").and_then(Value::as_str) != Some(wanted)) {
            witness.refuse(Refusal::Issuer, || {
                format!("claim iss is not {:?}", self.issuer.as_deref().unwrap_or_default())
            })?;
        }
        let mut name = |claim: &str| -> Result<String, Refusal> {
            if let Some(name) = name_of(claims.get(claim)) {
                return Ok(name);
            }
            witness.refuse(Refusal::Malformed, || {
                format!("claim {claim} is not a text of 1 to {USER_CHARS_MAX} characters or a whole number")
            })?;
            Ok(String::new())
        };
        let user = name(&self.user_claim)?;
        let token_id = if claims.contains_key("jti") { Some(name("jti")?.into()) } else { None };
        let grants = match claims.get("channels").map(grants_of) {
            Some(Err(wrong)) => {
                witness.refuse(Refusal::Malformed, || format!("claim {wrong}"))?;
                Box::default()
            }
            Some(Ok(grants)) => grants,
            None => Box::default(),
        };
        let is_expired = expires_at_ms.is_some_and(|at| at.saturating_add(leeway_ms) <= wall_ms);
        // Whoever was let in within the leeway may stay for it.
        let expires_at_ms =
            expires_at_ms.filter(|_| self.expiry == Expiry::Close).map(|at| at.saturating_add(leeway_ms));
        let issued_at_s = issued_at_ms.map(|at| at / 1_000);
        let identity = Identity { user: user.into(), grants, expires_at_ms, issued_at_s, token_id, token: None };
        Ok(Found { identity, is_expired })
    }
}

/// What the claims of a token say.
struct Found {
    identity: Identity,
    is_expired: bool,
}

/// A token in its compact form (RFC 7515 §7.1), read and not yet believed.
struct Jws<'a> {
    message: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl<'a> Jws<'a> {
    fn read(token: &'a str, witness: &mut impl Witness) -> Result<Self, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            let told = || format!("{} bytes exceed the limit of {TOKEN_BYTES_MAX} for a token", token.len());
            return Err(witness.end(Refusal::Malformed, told));
        }
        let split = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, claims) = message.split_once('.')?;
            Some((message, header, claims, signature))
        });
        let Some((message, header, claims, signature)) = split else {
            return Err(witness.end(Refusal::Malformed, || "it is not of three parts with a dot between".into()));
        };
        let json = part(header).map_err(|wrong| witness.end(Refusal::Malformed, || format!("header: {wrong}")))?;
        witness.header(&json);
        let header: JoseHeader = serde_json::from_slice(&json)
            .map_err(|wrong| witness.end(Refusal::Malformed, || format!("header: {wrong}")))?;
        let claims = part(claims).and_then(|json| unique::object(&json));
        let claims = claims.map_err(|wrong| witness.end(Refusal::Malformed, || format!("claims: {wrong}")))?;
        witness.claims(&claims);
        let Some(algorithm) = header.algorithm.and_then(|name| Algorithm::from_str(&name).ok()) else {
            let told = || "header: alg is missing or no algorithm that is used here".into();
            return Err(witness.end(Refusal::Malformed, told));
        };
        if header.is_critical {
            witness.refuse(Refusal::Malformed, || "header: crit demands extensions".into())?;
        }
        let kid = header.kid;
        Ok(Self { message, signature, algorithm, kid, claims })
    }
}

/// A part of a token: base64url without padding, white space and spare bits.
fn part(text: &str) -> Result<Vec<u8>, String> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("not canonical base64url: {error}"))
}

/// Why a signature that no key has made is refused.
fn unsigned(signature: &str) -> Refusal {
    match BASE64_URL_SAFE_NO_PAD.decode(signature) {
        Ok(_) => Refusal::Signature,
        Err(_) => Refusal::Malformed,
    }
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
            clock_skew_s: 5,
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
        assert_eq!(check.check(&token, 105_000).err(), Some(Refusal::Expired));
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
            assert!(check.check(&bad, wall_ms).is_err(), "{bad}");
        }
    }
}
