//! Tokens and the keys that check them: what is let in, and everything that looks like it.
//!
//! `keys/` holds pairs that open nothing; they stand in files so that a failure can be looked at with openssl.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use pkcs1::der::Document;
use realtime_hub::TokenRule;
use realtime_hub::token::{Refusal, TOKEN_BYTES_MAX, TokenCheck};
use serde_json::{Value, json};
use spki::SubjectPublicKeyInfoRef;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const RSA: &str = include_str!("keys/rsa.public.pem");
const OTHER_RSA: &str = include_str!("keys/other_rsa.public.pem");
const P256: &str = include_str!("keys/p256.public.pem");
const P384: &str = include_str!("keys/p384.public.pem");
const ED25519: &str = include_str!("keys/ed25519.public.pem");
const RSA_PRIVATE: &str = include_str!("keys/rsa.private.pem");
const P256_PRIVATE: &str = include_str!("keys/p256.private.pem");
const P384_PRIVATE: &str = include_str!("keys/p384.private.pem");
const ED25519_PRIVATE: &str = include_str!("keys/ed25519.private.pem");
const ALL: [(&str, &str); 10] = [
    ("HS256", SECRET),
    ("HS384", SECRET),
    ("HS512", SECRET),
    ("RS256", RSA),
    ("RS384", RSA),
    ("RS512", RSA),
    ("PS256", RSA),
    ("ES256", P256),
    ("ES384", P384),
    ("EdDSA", ED25519),
];

fn rule(document: &Value) -> TokenRule {
    serde_json::from_value(document.clone()).unwrap()
}

fn check(document: &Value) -> TokenCheck {
    TokenCheck::new(&rule(document)).map_err(|error| format!("{error}: {document}")).unwrap()
}

fn only(algorithm: &str, key: &str) -> TokenCheck {
    check(&json!({"keys": [{"algorithm": algorithm, "key": key}]}))
}

fn wrong_key(algorithm: &str, key: &str) -> String {
    TokenCheck::new(&rule(&json!({"keys": [{"algorithm": algorithm, "key": key, "kid": "k1"}]}))).err().unwrap()
}

fn claims() -> Value {
    json!({"sub": "ann", "exp": 100, "iat": 4.9, "jti": "t1"})
}

fn signing_key(algorithm: Algorithm) -> EncodingKey {
    let der = |pem| Document::from_pem(pem).unwrap().1.as_bytes().to_vec();
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => EncodingKey::from_secret(SECRET.as_bytes()),
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(P256_PRIVATE)),
        Algorithm::ES384 => EncodingKey::from_ec_der(&der(P384_PRIVATE)),
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der(ED25519_PRIVATE)),
        _ => EncodingKey::from_rsa_der(&der(RSA_PRIVATE)),
    }
}

fn token_by(algorithm: &str, kid: Option<&str>, claims: &Value) -> String {
    let algorithm: Algorithm = algorithm.parse().unwrap();
    let header = Header { kid: kid.map(Into::into), ..Header::new(algorithm) };
    encode(&header, claims, &signing_key(algorithm)).unwrap()
}

fn token(algorithm: &str) -> String {
    token_by(algorithm, None, &claims())
}

/// A token whose head says what it likes, with the signature of another one.
fn with_head(head: &Value, token: &str) -> String {
    let head = BASE64_URL_SAFE_NO_PAD.encode(head.to_string());
    format!("{head}.{}", token.split_once('.').unwrap().1)
}

/// A token whose head says what it likes, signed by HS256 all the same.
fn signed_head(head: &str, secret: &[u8]) -> String {
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(head), part(&claims().to_string()));
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn jwk(pem: &str) -> Value {
    let (_, document) = Document::from_pem(pem).unwrap();
    let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes()).unwrap();
    let bytes = info.subject_public_key.as_bytes().unwrap();
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    match bytes.len() {
        32 => json!({"kty": "OKP", "crv": "Ed25519", "x": text(bytes)}),
        65 => json!({"kty": "EC", "crv": "P-256", "x": text(&bytes[1..33]), "y": text(&bytes[33..])}),
        97 => json!({"kty": "EC", "crv": "P-384", "x": text(&bytes[1..49]), "y": text(&bytes[49..])}),
        _ => {
            let key = pkcs1::RsaPublicKey::try_from(bytes).unwrap();
            json!({"kty": "RSA", "n": text(key.modulus.as_bytes()), "e": text(key.public_exponent.as_bytes())})
        }
    }
}

#[test]
fn every_algorithm_lets_its_own_tokens_in_and_no_others() {
    for (algorithm, key) in ALL {
        let check = only(algorithm, key);
        for (other, _) in ALL {
            let outcome = check.check(&token(other), 0);
            if other == algorithm {
                let identity = outcome.unwrap();
                let facts = (&*identity.user, identity.issued_at_s, identity.token_id.as_deref());
                assert_eq!(facts, ("ann", Some(4), Some("t1")), "{algorithm}");
            } else {
                assert_eq!(outcome.err(), Some(Refusal::UnknownKey), "{other} for {algorithm}");
            }
        }
    }
}

#[test]
fn a_public_key_may_come_as_pem_as_pkcs1_or_as_jwk() {
    for (algorithm, key) in ALL.into_iter().filter(|(algorithm, _)| !algorithm.starts_with("HS")) {
        let mut jwk = jwk(key);
        assert!(only(algorithm, &jwk.to_string()).check(&token(algorithm), 0).is_ok(), "{algorithm} {jwk}");
        jwk["use"] = "sig".into();
        jwk["alg"] = algorithm.into();
        jwk["kid"] = "2026".into();
        let named = only(algorithm, &jwk.to_string());
        assert!(named.check(&token_by(algorithm, Some("2026"), &claims()), 0).is_ok(), "{algorithm} {jwk}");
        assert!(named.check(&token_by(algorithm, Some("2025"), &claims()), 0).is_err(), "{algorithm} {jwk}");
    }
    assert!(only("RS256", include_str!("keys/rsa.pkcs1.pem")).check(&token("RS256"), 0).is_ok());
    let secret = json!({"kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode(SECRET)}).to_string();
    assert!(only("HS256", &secret).check(&token("HS256"), 0).is_ok());
    assert!(only("HS256", &format!("{{{SECRET}")).check(&token("HS256"), 0).is_err());
}

#[test]
fn a_key_that_does_not_go_with_its_algorithm_is_named_and_not_shown() {
    let short = json!({"kty": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode("short")}).to_string();
    let with = |pem: &str, name: &str, value: Value| {
        let mut jwk = jwk(pem);
        jwk[name] = value;
        jwk.to_string()
    };
    for (algorithm, key, words) in [
        ("HS256", RSA, "an RSA key does not go with it; give a shared secret"),
        ("HS256", P256, "an EC key on P-256 does not go with it"),
        ("HS256", "31-bytes-are-one-byte-too-few!!", "a secret of 31 bytes can be guessed; give at least 32"),
        ("HS512", "short", "a secret of 5 bytes"),
        ("HS256", &short, "a secret of 5 bytes"),
        ("RS256", SECRET, "a shared secret does not go with it; give a public RSA key"),
        ("RS256", P256, "an EC key on P-256 does not go with it"),
        ("RS256", RSA_PRIVATE, "this is a private key; give the public one"),
        ("RS256", include_str!("keys/rsa1024.public.pem"), "an RSA key of 1024 bits is not taken; give one of 2048"),
        ("ES256", P384, "an EC key on P-384 does not go with it; give a public EC key on P-256"),
        ("ES384", P256, "an EC key on P-256 does not go with it; give a public EC key on P-384"),
        ("ES256", include_str!("keys/p521.public.pem"), "an EC key on another curve"),
        ("ES256", P256_PRIVATE, "this is a private key"),
        ("ES256", &with(P256, "d", "AA".into()), "this is a private key"),
        ("ES256", &with(P256, "y", "AAAA".into()), "not of 32 bytes each"),
        ("ES256", &with(P256, "y", "é".into()), "its member \"y\" is not base64url"),
        ("ES256", &with(P256, "x", jwk(P256)["y"].clone()), "Invalid"),
        ("ES256", &with(P256, "use", "enc".into()), "its use is \"enc\""),
        ("ES256", &with(P256, "alg", "ES384".into()), "names the algorithm \"ES384\""),
        ("ES256", &with(P256, "crv", "secp256k1".into()), "are not used here"),
        ("RS256", &with(RSA, "n", Value::Null), "its member \"n\" is missing"),
        ("RS256", &with(RSA, "e", "AQ".into()), "exponent"),
        ("EdDSA", P256, "give a public Ed25519 key"),
        ("EdDSA", &with(ED25519, "x", "AAAA".into()), "3 bytes are no Ed25519 key"),
        ("EdDSA", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not readable"),
        (
            "EdDSA",
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
            "a PEM of \"CERTIFICATE\" is not read",
        ),
    ] {
        let error = wrong_key(algorithm, key);
        assert!(error.starts_with(&format!("token.keys[0] (kid \"k1\") for {algorithm}: ")), "{error}");
        assert!(error.contains(words), "{error}");
        assert!(!error.contains('\n') && !error.contains(key.trim()), "{error}");
    }
    let printed = format!("{:?}", rule(&json!({"keys": [{"algorithm": "HS256", "key": SECRET}]})));
    assert!(!printed.contains(SECRET), "{printed}");
}

#[test]
fn a_rule_needs_keys_or_somebody_to_ask_and_not_too_many() {
    let key = json!({"algorithm": "HS256", "key": SECRET});
    assert!(TokenCheck::new(&rule(&json!({"keys": []}))).is_err());
    assert!(TokenCheck::new(&rule(&json!({"keys": [], "ask": true}))).is_ok());
    assert!(TokenCheck::new(&rule(&json!({"keys": vec![&key; 64]}))).is_ok());
    let error = TokenCheck::new(&rule(&json!({"keys": vec![&key; 65]}))).err().unwrap();
    assert!(error.contains("65 keys, at most 64"), "{error}");
    for unknown in ["none", "HS1", "ES512", "rs256", ""] {
        let document = json!({"keys": [{"algorithm": unknown, "key": SECRET}]});
        assert!(serde_json::from_value::<TokenRule>(document).is_err(), "{unknown}");
    }
}

#[test]
fn what_a_token_says_of_its_algorithm_never_changes_how_a_key_is_used() {
    let mixed = check(&json!({"keys": [{"algorithm": "RS256", "key": RSA}, {"algorithm": "ES256", "key": P256}]}));
    assert!(mixed.check(&token("RS256"), 0).is_ok());
    assert!(mixed.check(&token("ES256"), 0).is_ok());
    // The public key as the secret of an HMAC, in every form that somebody may have it in.
    for secret in [RSA.as_bytes(), RSA.trim().as_bytes(), Document::from_pem(RSA).unwrap().1.as_bytes()] {
        for algorithm in ["HS256", "RS256", "ES256"] {
            let head = json!({"alg": algorithm}).to_string();
            let refusal = if algorithm == "HS256" { Refusal::UnknownKey } else { Refusal::Signature };
            assert_eq!(mixed.check(&signed_head(&head, secret), 0).err(), Some(refusal), "{algorithm}");
        }
    }
    for (said, signed) in
        [("RS256", "PS256"), ("PS256", "RS256"), ("RS256", "RS512"), ("ES256", "RS256"), ("RS256", "ES256")]
    {
        assert!(mixed.check(&with_head(&json!({"alg": said}), &token(signed)), 0).is_err(), "{said} by {signed}");
    }
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let body = token("RS256").split('.').nth(1).unwrap().to_owned();
        let head = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": none}).to_string());
        for bad in
            [format!("{head}.{body}."), format!("{head}.{body}"), with_head(&json!({"alg": none}), &token("RS256"))]
        {
            assert_eq!(mixed.check(&bad, 0).err(), Some(Refusal::Malformed), "{bad}");
        }
    }
}

#[test]
fn a_head_that_demands_what_nobody_here_understands_is_refused() {
    let check = only("HS256", SECRET);
    assert!(check.check(&signed_head(r#"{"alg":"HS256"}"#, SECRET.as_bytes()), 0).is_ok());
    for head in [
        r#"{"alg":"HS256","crit":["exp"],"exp":9}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":"HS256","kid":7}"#,
        r#"{"typ":"JWT"}"#,
        r#"["HS256"]"#,
        "",
    ] {
        assert_eq!(check.check(&signed_head(head, SECRET.as_bytes()), 0).err(), Some(Refusal::Malformed), "{head}");
    }
    // Keys and addresses that a token brings along are not even looked at.
    for head in [
        r#"{"alg":"HS256","jku":"https://evil.example/keys","x5u":"file:///etc/passwd"}"#,
        r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#,
        r#"{"alg":"HS256","x5c":"not even a list"}"#,
    ] {
        assert!(check.check(&signed_head(head, SECRET.as_bytes()), 0).is_ok(), "{head}");
        assert!(check.check(&signed_head(head, &[0; 3]), 0).is_err(), "{head}");
    }
}

#[test]
fn a_kid_chooses_among_keys_and_is_nothing_else() {
    let check = check(&json!({"keys": [
        {"algorithm": "RS256", "key": RSA, "kid": "a"},
        {"algorithm": "ES256", "key": P256, "kid": "b"},
        {"algorithm": "EdDSA", "key": ED25519},
    ]}));
    let kid = |algorithm, kid| check.check(&token_by(algorithm, kid, &claims()), 0).is_ok();
    assert!(kid("RS256", Some("a")) && kid("RS256", None) && kid("ES256", Some("b")) && kid("EdDSA", Some("x")));
    assert!(!kid("RS256", Some("b")) && !kid("ES256", Some("a")));
    for text in
        ["", "A", "a ", "a\0", "../a", "../../dev/null", "a' OR '1'='1", "a; DROP TABLE keys", "http://evil/", "%61"]
    {
        assert!(!kid("RS256", Some(text)), "{text}");
    }
}

#[test]
fn a_token_without_a_kid_is_tried_with_eight_public_keys_and_every_secret() {
    let with = |first: Value, count: usize, last: Value| {
        let mut keys = vec![first; count];
        keys.push(last);
        check(&json!({"keys": keys}))
    };
    let (other, ours) = (json!({"algorithm": "RS256", "key": OTHER_RSA}), json!({"algorithm": "RS256", "key": RSA}));
    assert!(with(other.clone(), 7, ours.clone()).check(&token("RS256"), 0).is_ok());
    assert!(with(other.clone(), 8, ours).check(&token("RS256"), 0).is_err());
    let named = json!({"algorithm": "RS256", "key": RSA, "kid": "a"});
    let mut others = other;
    others["kid"] = "b".into();
    assert!(with(others, 63, named).check(&token_by("RS256", Some("a"), &claims()), 0).is_ok());
    let (secret, ours) = ("another-secret-0123456789abcdef0", json!({"algorithm": "HS256", "key": SECRET}));
    assert!(with(json!({"algorithm": "HS256", "key": secret}), 63, ours).check(&token("HS256"), 0).is_ok());
}

#[test]
fn python_is_asked_about_a_key_that_nobody_here_has_and_about_nothing_else() {
    let known = json!({"algorithm": "RS256", "key": RSA, "kid": "a"});
    let document = json!({"keys": [known], "ask": true, "issuer": "https://id.example", "audience": "edge"});
    let (asks, never) = (check(&document), {
        let mut document = document.clone();
        document["ask"] = false.into();
        check(&document)
    });
    let claims = json!({"sub": "ann", "exp": 100, "iss": "https://id.example", "aud": "edge"});
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    assert!(asks.check(&token_by("RS256", Some("a"), &claims), 0).is_ok());
    for (algorithm, kid) in [("RS256", Some("b")), ("ES256", Some("a")), ("EdDSA", None)] {
        let token = token_by(algorithm, kid, &claims);
        assert_eq!(asks.check(&token, 0).err(), Some(Refusal::KeyNotFetched), "{algorithm} {kid:?}");
        assert_eq!(never.check(&token, 0).err(), Some(Refusal::UnknownKey), "{algorithm} {kid:?}");
        assert_eq!(asks.check(&token, 100_000).err(), Some(Refusal::Expired), "expired: {algorithm} {kid:?}");
    }
    let es256 = token_by("ES256", None, &claims);
    for (token, why) in [
        (token_by("HS256", Some("b"), &claims), Refusal::UnknownKey),
        (token_by("RS256", Some("b"), &with("iss", "https://evil.example".into())), Refusal::Issuer),
        (token_by("RS256", Some("b"), &with("aud", "other".into())), Refusal::Audience),
        (token_by("RS256", Some("b"), &with("sub", Value::Null)), Refusal::Malformed),
        (with_head(&json!({"alg": "RS256", "kid": "a"}), &es256), Refusal::Signature),
        (format!("{}=", token_by("RS256", Some("a"), &claims)), Refusal::Malformed),
    ] {
        assert_eq!(asks.check(&token, 0).err(), Some(why), "{token}");
    }
}

#[test]
fn a_key_of_an_issuer_is_for_its_tokens_alone() {
    let check = check(&json!({"keys": [
        {"algorithm": "ES256", "key": P256, "issuer": "https://one.example"},
        {"algorithm": "EdDSA", "key": ED25519, "issuer": "https://two.example"},
    ]}));
    let by = |algorithm, issuer: Value| {
        check.check(&token_by(algorithm, None, &json!({"sub": "ann", "exp": 100, "iss": issuer})), 0).is_ok()
    };
    assert!(by("ES256", "https://one.example".into()) && by("EdDSA", "https://two.example".into()));
    assert!(!by("ES256", "https://two.example".into()) && !by("ES256", Value::Null));
    assert!(!by("ES256", json!(["https://one.example"])));
}

#[test]
fn ids_of_tokens_are_names_or_whole_numbers() {
    let check = only("HS256", SECRET);
    let id = |id: Value| {
        let identity = check.check(&token_by("HS256", None, &json!({"sub": "ann", "exp": 100, "jti": id})), 0);
        identity.map(|identity| identity.token_id.unwrap().into_string())
    };
    assert_eq!(id("t1".into()), Ok("t1".into()));
    assert_eq!(id(7.into()), Ok("7".into()));
    for bad in [json!(""), json!(null), json!(1.5), json!(["t1"]), json!("x".repeat(257))] {
        assert_eq!(id(bad.clone()), Err(Refusal::Malformed), "{bad}");
    }
}

#[test]
fn text_of_any_shape_is_survived() {
    let check =
        check(&json!({"keys": [{"algorithm": "HS256", "key": SECRET}, {"algorithm": "EdDSA", "key": ED25519}]}));
    let good = token("HS256");
    let parts: Vec<&str> = good.split('.').collect();
    let [head, body, signature] = parts[..] else { panic!("{good}") };
    for bad in [
        "".to_owned(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        format!("{head}.{body}"),
        format!("{head}.{body}.{signature}.{signature}"),
        format!(".{good}"),
        format!("{good} "),
        format!("{good}="),
        format!("{head}.{body}.{}", signature.replace(|c: char| c.is_ascii_alphabetic(), "é")),
        format!("{head}..{signature}"),
        good.to_uppercase(),
        good.chars().rev().collect(),
        "a".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        assert!(check.check(&bad, 0).is_err(), "{bad}");
    }
    for at in 0..good.len() {
        assert!(check.check(&good[..at], 0).is_err(), "{at}");
    }
    for signature in ["", "AAAA", &"A".repeat(86), &"A".repeat(87)] {
        let ed25519 = with_head(&json!({"alg": "EdDSA"}), &format!("x.{body}.{signature}"));
        assert!(check.check(&ed25519, 0).is_err());
    }
}

/// A token of HS256 whose header and claims are any text.
fn of_texts(head: &str, claims: &str) -> String {
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", part(head), part(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    format!("{message}.{}", jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap())
}

#[test]
fn a_member_that_stands_twice_is_refused_wherever_it_stands() {
    let check = only("HS256", SECRET);
    let (head, body) = (r#"{"alg":"HS256"}"#, r#"{"sub":"ann","exp":100}"#);
    assert!(check.check(&of_texts(head, body), 0).is_ok());
    for (head, body) in [
        (r#"{"alg":"HS256","typ":"JWT","typ":"JWT"}"#, body),
        (r#"{"alg":"HS256","x":{"a":1,"a":1}}"#, body),
        (head, r#"{"sub":"eve","exp":100,"sub":"ann"}"#),
        (head, r#"{"sub":"ann","exp":1,"exp":100}"#),
        (head, r#"{"sub":"ann","exp":100,"channels":{"a":["subscribe"],"a":["publish"]}}"#),
    ] {
        assert_eq!(check.check(&of_texts(head, body), 0).err(), Some(Refusal::Malformed), "{head} {body}");
    }
}

#[test]
fn base64url_is_canonical_and_white_space_is_none_of_it() {
    let check = only("HS256", SECRET);
    let good = token("HS256");
    let [head, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    // The last character of 32 bytes holds two bits that mean nothing: the next one decodes to the same bytes elsewhere.
    let (rest, last) = signature.split_at(signature.len() - 1);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    for bad in [
        format!("{head}.{body}.{rest}{next}"),
        format!("{head}.{body}.{signature}="),
        format!(" {good}"),
        format!("{good} "),
        format!("{good}\n"),
        format!("{head}. {body}.{signature}"),
        format!("{head}.{body}\t.{signature}"),
        format!("{head}.{body}=.{signature}"),
    ] {
        assert_eq!(check.check(&bad, 0).err(), Some(Refusal::Malformed), "{bad:?}");
    }
}

#[test]
fn times_are_seconds_from_0_to_2_to_the_53rd() {
    let check = check(&json!({"keys": [{"algorithm": "HS256", "key": SECRET}], "clock_skew_s": 300}));
    let of = |name: &str, time: &str| {
        let claims = match name {
            "exp" => format!(r#"{{"sub":"ann","exp":{time}}}"#),
            _ => format!(r#"{{"sub":"ann","exp":100,"{name}":{time}}}"#),
        };
        check.check(&of_texts(r#"{"alg":"HS256"}"#, &claims), 50_000).map(|identity| identity.expires_at_ms)
    };
    for (time, ends_ms) in [
        ("100", 100_000),
        ("100.5", 100_500),
        ("1e3", 1_000_000),
        ("9007199254740991", 9_007_199_254_740_991_000),
        ("253402300800", 253_402_300_800_000),
    ] {
        assert_eq!(of("exp", time), Ok(Some(ends_ms)), "{time}");
    }
    for time in ["9007199254740992", "18446744073709551616", "1e300", "-1", "-0.5", "true", "null", "\"100\"", "[100]"]
    {
        for name in ["exp", "nbf", "iat"] {
            assert_eq!(of(name, time), Err(Refusal::Malformed), "{name} {time}");
        }
    }
    assert_eq!(of("exp", "1e400"), Err(Refusal::Malformed));
    assert_eq!(of("exp", "NaN"), Err(Refusal::Malformed));
}

#[test]
fn a_token_of_the_future_is_refused_whatever_the_leeway() {
    let at = |leeway_s: u64, skew_s: u64, iat: f64| {
        let key = json!({"algorithm": "HS256", "key": SECRET});
        let check = check(&json!({"keys": [key], "leeway_s": leeway_s, "clock_skew_s": skew_s}));
        check.check(&token_by("HS256", None, &json!({"sub": "ann", "exp": 100, "iat": iat})), 50_000).err()
    };
    for leeway_s in [0, 300] {
        assert_eq!((at(leeway_s, 5, 55.0), at(leeway_s, 5, 50.0), at(leeway_s, 0, 50.0)), (None, None, None));
        assert_eq!(at(leeway_s, 5, 55.1), Some(Refusal::NotYetValid));
        assert_eq!(at(leeway_s, 5, 3_650.0), Some(Refusal::NotYetValid));
        assert_eq!(at(leeway_s, 0, 51.0), Some(Refusal::NotYetValid));
    }
}

#[test]
fn an_expired_token_is_told_apart_only_where_nothing_else_is_wrong() {
    let document = json!({"keys": [{"algorithm": "HS256", "key": SECRET}], "audience": "edge"});
    let check = check(&document);
    let old = json!({"sub": "ann", "exp": 100, "aud": "edge"});
    assert_eq!(check.check(&token_by("HS256", None, &old), 100_000).err(), Some(Refusal::Expired));
    let forged = format!("{}AAAA", token_by("HS256", None, &old).rsplit_once('.').unwrap().0.to_owned() + ".");
    assert_eq!(check.check(&forged, 100_000).err(), Some(Refusal::Signature));
    let foreign = token_by("HS256", None, &json!({"sub": "ann", "exp": 100, "aud": "other"}));
    assert_eq!(check.check(&foreign, 100_000).err(), Some(Refusal::Audience));
}

#[test]
fn an_explanation_says_all_of_it_and_which_key_signed() {
    let document = json!({
        "keys": [{"algorithm": "HS256", "key": "another-secret-0123456789abcdef0"}, {"algorithm": "HS256", "key": SECRET}],
        "audience": "edge",
        "issuer": "https://id.example",
    });
    let check = check(&document);
    let claims = json!({"sub": "", "exp": 100, "nbf": 500, "iat": 500, "aud": "other", "channels": null});
    let told = check.explain(&token_by("HS256", None, &claims), 200_000);
    let reasons: Vec<&str> = told.refusals.iter().map(|finding| finding.reason).collect();
    let all = ["not_yet_valid", "not_yet_valid", "audience", "issuer", "malformed", "malformed", "expired"];
    assert_eq!(reasons, all);
    assert_eq!(
        (told.claims.unwrap()["aud"].clone(), told.header.unwrap()["alg"].clone()),
        (json!("other"), json!("HS256"))
    );
    assert_eq!(told.key.unwrap().place, 1);
    let good = json!({"sub": "ann", "exp": 300, "aud": "edge", "iss": "https://id.example"});
    assert!(check.explain(&token_by("HS256", None, &good), 200_000).refusals.is_empty());
    for (text, reason) in [("", "malformed"), ("a.b.c", "malformed"), (&*token("ES256"), "unknown_key")] {
        let told = check.explain(text, 0);
        assert!(told.refusals.iter().any(|finding| finding.reason == reason), "{text}: {told:?}");
    }
}
