//! One key that tokens are checked with: read once from the options, for exactly one algorithm.
//!
//! The algorithm belongs to the key and never to the token, so a public key cannot be taken for a shared secret. What
//! does not go together is told when the options are read, by the key's place and name and without its text: a private
//! key where a public one is meant, another type or curve than the algorithm's, a secret or modulus that is too short.

use crate::options::KeyRule;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use pkcs1::der::Document;
use pkcs1::{ObjectIdentifier, RsaPublicKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use spki::SubjectPublicKeyInfoRef;

/// Bytes of a shared secret: as many as the hash of HS256 has (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;
/// RFC 7518 §3.3; more than the upper bound is refused by the library, and takes longer to check than a shard has.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// A key and what it is for.
pub(crate) struct VerifyKey {
    pub algorithm: Algorithm,
    kid: Option<Box<str>>,
    issuer: Option<Box<str>>,
    key: DecodingKey,
}

impl VerifyKey {
    /// Reads a key.
    ///
    /// # Errors
    /// One line that names the key by `place` and `kid`, and what is wrong; never the key itself.
    pub(crate) fn new(rule: &KeyRule, place: usize) -> Result<Self, String> {
        let named = rule.kid.as_ref().map_or_else(String::new, |kid| format!(" (kid {kid:?})"));
        let (material, own_kid) = Material::read(&rule.key, rule.algorithm)
            .and_then(|(material, kid)| material.check_for(rule.algorithm).map(|()| (material, kid)))
            .map_err(|wrong| format!("token.keys[{place}]{named} for {:?}: {wrong}", rule.algorithm))?;
        let key = material.into_key();
        // What is wrong in a key alone shows here and not at the first token: this signature is none.
        crypto::verify("AAAA", b"", &key, rule.algorithm)
            .map_err(|error| format!("token.keys[{place}]{named} for {:?}: {error}", rule.algorithm))?;
        let kid = rule.kid.clone().or(own_kid).map(Into::into);
        Ok(Self { algorithm: rule.algorithm, kid, issuer: rule.issuer.clone().map(Into::into), key })
    }

    pub(crate) fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether a token that says this of itself is to be tried with the key.
    pub(crate) fn is_for(&self, algorithm: Algorithm, kid: Option<&str>, issuer: Option<&str>) -> bool {
        let is_named = match (self.kid.as_deref(), kid) {
            (Some(own), Some(named)) => own == named,
            _ => true,
        };
        is_named && self.algorithm == algorithm && self.issuer.as_deref().is_none_or(|own| issuer == Some(own))
    }

    /// Whether the key made this signature (base64url) of `message`.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &str) -> bool {
        crypto::verify(signature, message, &self.key, self.algorithm).unwrap_or(false)
    }
}

/// Whether tokens of this algorithm are signed with a secret that both sides share. Such a key is never published, so
/// it cannot be one that somebody has yet to fetch.
pub(crate) const fn is_shared_secret(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

/// What a key's text holds.
enum Material {
    Secret(Vec<u8>),
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point: 4, x, y.
    Ec {
        curve: &'static str,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
}

impl Material {
    /// Reads a JWK, a PEM or a secret, told apart by how the text begins; a JWK may bring its `kid`.
    fn read(text: &str, algorithm: Algorithm) -> Result<(Self, Option<String>), String> {
        let text = text.trim_ascii();
        if text.starts_with('{')
            && let Ok(jwk) = serde_json::from_str::<Jwk>(text)
        {
            return Ok((jwk.material(algorithm)?, jwk.kid));
        }
        let material =
            if text.starts_with("-----BEGIN") { Self::from_pem(text)? } else { Self::Secret(text.as_bytes().into()) };
        Ok((material, None))
    }

    fn from_pem(text: &str) -> Result<Self, String> {
        let (label, document) =
            Document::from_pem(text).map_err(|error| format!("the PEM is not readable: {error}"))?;
        match label {
            "RSA PUBLIC KEY" => Self::from_pkcs1(document.as_bytes()),
            "PUBLIC KEY" => Self::from_spki(document.as_bytes()),
            _ if label.ends_with("PRIVATE KEY") => Err("this is a private key; give the public one".into()),
            _ => Err(format!("a PEM of {label:?} is not read; give a PUBLIC KEY")),
        }
    }

    fn from_spki(der: &[u8]) -> Result<Self, String> {
        let unreadable = || "the public key is not readable".to_owned();
        let info = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| unreadable())?;
        let bytes = info.subject_public_key.as_bytes().ok_or_else(unreadable)?;
        if info.algorithm.oid == RSA {
            return Self::from_pkcs1(bytes);
        }
        if info.algorithm.oid == ED25519 {
            return Ok(Self::Ed25519(bytes.into()));
        }
        if info.algorithm.oid != EC {
            return Err(format!("keys of the type {} are not used by any algorithm here", info.algorithm.oid));
        }
        let curve = match info.algorithm.parameters_oid() {
            Ok(P256) => "P-256",
            Ok(P384) => "P-384",
            _ => "another curve",
        };
        Ok(Self::Ec { curve, point: bytes.into() })
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, String> {
        let key = RsaPublicKey::try_from(der).map_err(|_| "the RSA key is not readable".to_owned())?;
        Ok(Self::Rsa { n: key.modulus.as_bytes().into(), e: key.public_exponent.as_bytes().into() })
    }

    fn is_of(&self) -> String {
        match self {
            Self::Secret(_) => "a shared secret".into(),
            Self::Rsa { .. } => "an RSA key".into(),
            Self::Ec { curve, .. } => format!("an EC key on {curve}"),
            Self::Ed25519(_) => "an Ed25519 key".into(),
        }
    }

    fn check_for(&self, algorithm: Algorithm) -> Result<(), String> {
        let (goes, wanted) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                (matches!(self, Self::Secret(_)), "a shared secret")
            }
            Algorithm::ES256 => (matches!(self, Self::Ec { curve: "P-256", .. }), "a public EC key on P-256"),
            Algorithm::ES384 => (matches!(self, Self::Ec { curve: "P-384", .. }), "a public EC key on P-384"),
            Algorithm::EdDSA => (matches!(self, Self::Ed25519(_)), "a public Ed25519 key"),
            _ => (matches!(self, Self::Rsa { .. }), "a public RSA key"),
        };
        if !goes {
            return Err(format!("{} does not go with it; give {wanted}", self.is_of()));
        }
        match self {
            Self::Secret(secret) if secret.len() < SECRET_BYTES_MIN => Err(format!(
                "a secret of {} bytes can be guessed; give at least {SECRET_BYTES_MIN} random bytes",
                secret.len()
            )),
            Self::Rsa { n, .. } if !RSA_BITS.contains(&bits(n)) => {
                let (least, most) = RSA_BITS.into_inner();
                Err(format!("an RSA key of {} bits is not taken; give one of {least} to {most}", bits(n)))
            }
            // 1 would sign by itself; the library takes exponents of up to 33 bits.
            Self::Rsa { e, .. } if !(2..=33).contains(&bits(e)) => Err("the RSA key's exponent is out of range".into()),
            Self::Ed25519(bytes) if bytes.len() != 32 => Err(format!("{} bytes are no Ed25519 key", bytes.len())),
            _ => Ok(()),
        }
    }

    fn into_key(self) -> DecodingKey {
        match self {
            Self::Secret(secret) => DecodingKey::from_secret(&secret),
            Self::Rsa { n, e } => DecodingKey::from_rsa_raw_components(&n, &e),
            Self::Ec { point, .. } => DecodingKey::from_ec_der(&point),
            Self::Ed25519(bytes) => DecodingKey::from_ed_der(&bytes),
        }
    }
}

/// A key as RFC 7517 and RFC 7518 §6 write it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    /// Of private keys.
    d: Option<IgnoredAny>,
}

impl Jwk {
    fn material(&self, algorithm: Algorithm) -> Result<Material, String> {
        if self.d.is_some() {
            return Err("this is a private key; give the public one".into());
        }
        if let Some(usage) = self.usage.as_ref().filter(|usage| *usage != "sig") {
            return Err(format!("its use is {usage:?} and not \"sig\""));
        }
        if let Some(alg) = self.alg.as_ref().filter(|alg| **alg != format!("{algorithm:?}")) {
            return Err(format!("the key itself names the algorithm {alg:?}"));
        }
        let part = |name: &str, value: &Option<String>| {
            let text = value.as_ref().ok_or_else(|| format!("its member {name:?} is missing"))?;
            BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("its member {name:?} is not base64url"))
        };
        Ok(match (self.kty.as_str(), self.crv.as_deref()) {
            ("oct", _) => Material::Secret(part("k", &self.k)?),
            ("RSA", _) => Material::Rsa { n: part("n", &self.n)?, e: part("e", &self.e)? },
            ("EC", Some("P-256")) => self.point("P-256", 32, part)?,
            ("EC", Some("P-384")) => self.point("P-384", 48, part)?,
            ("OKP", Some("Ed25519")) => Material::Ed25519(part("x", &self.x)?),
            (kty, crv) => return Err(format!("keys of the type {kty:?} with the curve {crv:?} are not used here")),
        })
    }

    fn point(
        &self,
        curve: &'static str,
        len: usize,
        part: impl Fn(&str, &Option<String>) -> Result<Vec<u8>, String>,
    ) -> Result<Material, String> {
        let (x, y) = (part("x", &self.x)?, part("y", &self.y)?);
        if x.len() != len || y.len() != len {
            return Err(format!("its members \"x\" and \"y\" are not of {len} bytes each"));
        }
        Ok(Material::Ec { curve, point: [&[4][..], &x, &y].concat() })
    }
}

fn bits(number: &[u8]) -> usize {
    let digits = &number[number.iter().position(|byte| *byte != 0).unwrap_or(number.len())..];
    digits.first().map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}
