//! What hears of a token's faults: a check stops at the first one, an explanation goes on to the last.

use crate::identity::Identity;
use crate::key::VerifyKey;
use crate::refusal::Refusal;
use crate::unique;
use serde::Serialize;
use serde_json::{Map, Value};

/// Hears what is wrong with a token while it is examined, in the order of the checks.
pub(crate) trait Witness {
    /// Something is wrong, and what comes next can still be looked at.
    ///
    /// # Errors
    /// The refusal, where nothing else is to be looked at.
    fn refuse(&mut self, refusal: Refusal, told: impl FnOnce() -> String) -> Result<(), Refusal>;

    /// Something is wrong by which nothing else can be looked at.
    fn end(&mut self, refusal: Refusal, told: impl FnOnce() -> String) -> Refusal {
        let _ = self.refuse(refusal, told);
        refusal
    }

    fn header(&mut self, _json: &[u8]) {}

    fn claims(&mut self, _: &Map<String, Value>) {}

    /// Whom the claims name; what of them is malformed is empty or absent.
    fn identity(&mut self, _: &Identity) {}

    fn signed_by(&mut self, _place: usize, _: &VerifyKey) {}
}

/// Stops at the first fault and makes no text of it.
pub(crate) struct First;

impl Witness for First {
    fn refuse(&mut self, refusal: Refusal, _: impl FnOnce() -> String) -> Result<(), Refusal> {
        Err(refusal)
    }
}

/// As [`First`], and keeps the claim `channels`.
#[derive(Default)]
pub(crate) struct Granting {
    pub channels: Option<String>,
}

impl Witness for Granting {
    fn refuse(&mut self, refusal: Refusal, _: impl FnOnce() -> String) -> Result<(), Refusal> {
        Err(refusal)
    }

    fn claims(&mut self, claims: &Map<String, Value>) {
        self.channels = claims.get("channels").map(Value::to_string);
    }
}

/// Everything about a token, for its owner and for the operator; it holds the token's claims, and never its signature.
#[derive(Debug, Default, Serialize)]
pub struct Explanation {
    /// The header; None where it cannot be read.
    pub header: Option<Map<String, Value>>,
    /// The claims; None where they cannot be read.
    pub claims: Option<Map<String, Value>>,
    /// Whom it names: what revocations go by. None where that cannot be read.
    pub user: Option<Box<str>>,
    /// Time of issue in Unix s.
    pub issued_at_s: Option<u64>,
    /// `jti`.
    pub token_id: Option<Box<str>>,
    /// The key that signed it.
    pub key: Option<Signer>,
    /// Why it is refused, each reason with its facts; empty where it is good.
    pub refusals: Vec<Finding>,
}

/// Which key signed a token.
#[derive(Debug, Serialize)]
pub struct Signer {
    /// Its place in the rule.
    pub place: usize,
    /// What it is for.
    pub algorithm: String,
    /// Its name.
    pub kid: Option<String>,
}

/// One reason to refuse a token.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// [`Refusal::name`].
    pub reason: &'static str,
    /// What exactly is wrong.
    pub told: String,
}

impl Witness for Explanation {
    fn refuse(&mut self, refusal: Refusal, told: impl FnOnce() -> String) -> Result<(), Refusal> {
        self.refusals.push(Finding { reason: refusal.name(), told: told() });
        Ok(())
    }

    fn header(&mut self, json: &[u8]) {
        self.header = unique::object(json).ok();
    }

    fn claims(&mut self, claims: &Map<String, Value>) {
        self.claims = Some(claims.clone());
    }

    fn identity(&mut self, identity: &Identity) {
        self.user = Some(&*identity.user).filter(|user| !user.is_empty()).map(Into::into);
        self.issued_at_s = identity.issued_at_s;
        self.token_id = identity.token_id.as_deref().filter(|id| !id.is_empty()).map(Into::into);
    }

    fn signed_by(&mut self, place: usize, key: &VerifyKey) {
        let algorithm = format!("{:?}", key.algorithm);
        self.key = Some(Signer { place, algorithm, kid: key.kid().map(str::to_owned) });
    }
}
