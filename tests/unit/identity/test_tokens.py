"""Tokens as Python asks the engine about them, and the keys that they are checked with."""

import base64
import hmac
import json
import re
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from realtime.base.config import AuthSettings, ConfigError, Keys
from realtime.identity import TokenRule, token_for, token_rule
from realtime.identity.auth import Identity, InvalidToken, mint_token
from realtime.identity.keys import usable_keys
from realtime.identity.tokens import KeyNotFetched, identity_of
from tests.unit.identity.keys import FAR, jwk, private_key, private_pem, public_pem, signed

SECRET = "s" * 32
OTHER = "o" * 32
NOW_MS = 1_800_000_000_000
DEEP = b'{"keys":' + b"[" * 4000 + b"]" * 4000 + b"}"
"""Deeper than a decoder goes."""


def rule(*secrets: str, **auth: object) -> TokenRule:
    settings = AuthSettings(secrets=secrets or (SECRET,), **auth)  # type: ignore[arg-type]
    return token_rule(settings, Keys(settings.secrets, generated=False))


def check(rule: TokenRule, token: str, now_ms: int) -> Identity:
    return identity_of(rule.compiled(), token, now_ms)


def of_public_keys(*keys: str, algorithms: tuple[str, ...]) -> TokenRule:
    return token_rule(AuthSettings(public_keys=keys, algorithms=algorithms), Keys((), generated=False))  # type: ignore[arg-type]


def unsigned(head: object, claims: object) -> str:
    return encoded(*(json.dumps(part).encode() for part in (head, claims)))


def encoded(*parts: bytes) -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hs(claims: dict[str, object], secret: str = SECRET, algorithm: str = "HS256", **head: object) -> str:
    message = unsigned({"alg": algorithm, **head}, claims)
    signature = jwt.get_algorithm_by_name(algorithm).sign(message.encode(), secret.encode())
    return f"{message}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_a_token_says_who_its_bearer_is() -> None:
    token = hs({"sub": "ann", "exp": FAR, "iat": 7.9, "jti": "t1", "channels": {"file:*": ["subscribe"]}})
    identity = check(rule(), token, NOW_MS)
    assert identity == Identity("ann", {"file:*": ["subscribe"]}, FAR, False, "t1", 7, token)


def test_any_of_the_secrets_may_have_signed() -> None:
    both = rule(OTHER, SECRET)
    assert check(both, hs({"sub": "a", "exp": FAR}), NOW_MS).user == "a"
    assert check(both, hs({"sub": "a", "exp": FAR}, OTHER), NOW_MS).user == "a"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "not a token",
        "a.b",
        "a.b.c.d",
        "a.b.c",
        "x" * 20_000,
        unsigned({"alg": "none"}, {"sub": "a", "exp": FAR}) + ".",
        unsigned({"alg": ["HS256"]}, {"sub": "a", "exp": FAR}) + ".AAAA",
        unsigned([], []) + ".AAAA",
        hs({"sub": "a", "exp": FAR}, OTHER),
        hs({"sub": "a", "exp": FAR}, SECRET, "HS512"),
        hs({"sub": "a", "exp": FAR}, crit=["exp"]),
        hs({"sub": "a", "exp": 1}),
        hs({"sub": "a"}),
        hs({"sub": "a", "exp": FAR, "nbf": FAR - 1}),
        hs({"sub": "a", "exp": True}),
        hs({"sub": "a", "exp": None}),
        hs({"sub": "a", "exp": "never"}),
        hs({"sub": "a", "exp": -1}),
        hs({"sub": "a", "exp": FAR, "iat": "then"}),
        hs({"exp": FAR}),
        hs({"sub": "", "exp": FAR}),
        hs({"sub": "a" * 257, "exp": FAR}),
        hs({"sub": ["a"], "exp": FAR}),
        hs({"sub": True, "exp": FAR}),
        hs({"sub": "a", "exp": FAR, "jti": ""}),
        hs({"sub": "a", "exp": FAR, "channels": ["a"]}),
        hs({"sub": "a", "exp": FAR, "channels": None, "jti": None}),
        encoded(DEEP, b"{}") + ".AAAA",
        encoded(b'{"alg":"HS256"}', DEEP) + ".AAAA",
    ],
)
def test_a_wrong_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        check(rule(), token, NOW_MS)


def test_a_numeric_user_is_read_as_its_digits() -> None:
    assert check(rule(), hs({"sub": 42, "exp": FAR}), NOW_MS).user == "42"


def test_audience_and_issuer_count_where_they_are_set() -> None:
    strict = rule(audience="chat", issuer="me")
    assert check(strict, mint_token(SECRET, "a", audience="chat", issuer="me", now_s=NOW_MS / 1000), NOW_MS).user == "a"
    assert check(strict, hs({"sub": "a", "exp": FAR, "aud": ["x", "chat"], "iss": "me"}), NOW_MS).user == "a"
    for claims in ({"aud": "chat"}, {"iss": "me"}, {"aud": "x", "iss": "me"}, {"aud": ["x"], "iss": "me"}):
        with pytest.raises(InvalidToken):
            check(strict, hs({"sub": "a", "exp": FAR, **claims}), NOW_MS)
    assert check(rule(), hs({"sub": "a", "exp": FAR, "aud": "x", "iss": "y"}), NOW_MS).user == "a"


def test_a_token_may_do_without_an_end_where_the_rule_says_so() -> None:
    lasting = rule(require_exp=False, user_claim="uid")
    assert check(lasting, hs({"uid": "a"}), NOW_MS).expires_at is None


def test_the_leeway_counts_at_connect_and_for_the_end() -> None:
    token = hs({"sub": "a", "exp": NOW_MS // 1000 - 4})
    assert check(rule(leeway_s=5), token, NOW_MS).expires_at == NOW_MS // 1000 + 1
    assert check(rule(leeway_s=5, expiry="connect"), token, NOW_MS).expires_at is None
    with pytest.raises(InvalidToken, match="expired"):
        check(rule(leeway_s=4), token, NOW_MS)


ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_a_public_key_checks_tokens_of_its_algorithm_alone(algorithm: str) -> None:
    checked = of_public_keys(public_pem(algorithm), algorithms=(algorithm,))
    assert check(checked, signed(algorithm), NOW_MS).user == "ann"
    for other in ASYMMETRIC:
        if other != algorithm:
            with pytest.raises(InvalidToken):
                check(checked, signed(other), NOW_MS)
    with pytest.raises(InvalidToken, match="no key of the server has signed"):
        check(checked, signed(algorithm, "another"), NOW_MS)


def test_a_public_key_is_no_shared_secret() -> None:
    both = token_rule(
        AuthSettings(secrets=(SECRET,), public_keys=(public_pem("RS256"),), algorithms=("HS256", "RS256")),
        Keys((SECRET,), generated=False),
    )
    key = private_key("RS256").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    message = unsigned({"alg": "HS256"}, {"sub": "a", "exp": FAR})
    signature = base64.urlsafe_b64encode(hmac.digest(key, message.encode(), "sha256")).rstrip(b"=").decode()
    with pytest.raises(InvalidToken, match="no key of the server has signed"):
        check(both, f"{message}.{signature}", NOW_MS)
    assert check(both, signed("RS256"), NOW_MS).user == "ann"


def test_a_kid_chooses_among_keys_and_is_nothing_else() -> None:
    checked = of_public_keys(
        f"first={public_pem('ES256', 'one')}", f"second={public_pem('ES256', 'two')}", algorithms=("ES256",)
    )
    assert check(checked, signed("ES256", "one", "first"), NOW_MS).user == "ann"
    assert check(checked, signed("ES256", "two"), NOW_MS).user == "ann"
    for name, kid in (("one", "second"), ("one", "../../etc/passwd"), ("one", "' OR 1=1 --"), ("one", "")):
        with pytest.raises(InvalidToken):
            check(checked, signed("ES256", name, kid), NOW_MS)


def test_keys_come_as_pem_as_jwk_and_as_a_set(tmp_path: Path) -> None:
    forms = {
        "key.pem": public_pem("ES256"),
        "key.json": json.dumps(jwk("ES256", kid="a")),
        "keys.json": json.dumps({"keys": [{"kty": "oct", "k": "AAAA"}, jwk("ES256")]}),
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content, "ascii")
        found = of_public_keys(str(tmp_path / name), algorithms=("RS256", "ES256"))
        assert check(found, signed("ES256"), NOW_MS).user == "ann"
        named = of_public_keys(f"b={tmp_path / name}", algorithms=("ES256",))
        assert [key.kid for key in named.keys] == ["b"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (private_pem("ES256"), "this is a private key; give the public one"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no public key as PEM"),
        (public_pem("RS256"), "it is a key for RS256 or RS384 or RS512 or PS256, which auth.algorithms does not name"),
        ("/nowhere/key.pem", "'/nowhere/key.pem' cannot be read: No such file or directory"),
    ],
)
def test_a_key_that_cannot_be_used_is_told_by_its_place(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.public_keys\[1\]: ") as refused:
        of_public_keys(public_pem("ES256"), text, algorithms=("ES256",))
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"use": "enc"}, "it is not for signatures"),
        ({"key_ops": ["sign"]}, "it is not for signatures"),
        ({"key_ops": 5}, "it is not for signatures"),
        ({"e": "AQAAAAAB"}, "an exponent over 33 bits"),
        ({"alg": "RS512"}, "it is for 'RS512'"),
        ({"alg": "HS256"}, "it is for 'HS256'"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "keys of the type 'oct'"),
        ({"kty": None}, "keys of the type None"),
        ({"d": "AAAA"}, "private key"),
        ({"kid": 7}, "its kid is not a text"),
        ({"n": "AQAB"}, "it cannot be read|bits is not taken"),
        ({"n": 5}, "it cannot be read"),
    ],
)
def test_keys_of_a_set_that_are_not_for_us_are_passed_over(member: dict[str, object], reason: str) -> None:
    algorithms = ("HS256", "RS256", "ES256")
    document = json.dumps({"keys": [jwk("RS256") | member, jwk("ES256", kid="good")]}).encode()
    keys, passed_over = usable_keys(document, algorithms)
    assert [(key.kid, key.algorithm) for key in keys] == [("good", "ES256")]
    assert re.search(reason, passed_over[0])


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_members_of_a_key_that_are_null_count_as_absent(algorithm: str) -> None:
    unused = dict.fromkeys(("kid", "use", "key_ops", "alg", "x5c", "x5t", "x5u", "d"))
    keys, passed_over = usable_keys(json.dumps({"keys": [jwk(algorithm) | unused]}).encode(), (algorithm,))
    assert ([(key.kid, key.algorithm) for key in keys], passed_over) == ([(None, algorithm)], [])
    for needed in ("kty", "n" if algorithm == "RS256" else "x"):
        with pytest.raises(ValueError, match="holds no key"):
            usable_keys(json.dumps({"keys": [jwk(algorithm) | {needed: None}]}).encode(), (algorithm,))


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1]}', b"\xff", b'{"keys":[]}', DEEP]
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match=r"no JWK set|holds no key"):
        usable_keys(document, ("RS256",))


def test_a_token_of_a_key_that_may_be_published_by_now_is_told_apart() -> None:
    asking = token_rule(
        AuthSettings(jwks_url="https://id.example/jwks", algorithms=("HS256", "RS256"), secrets=(SECRET,)),
        Keys((SECRET,), generated=False),
    )
    with pytest.raises(KeyNotFetched):
        check(asking, signed("RS256", kid="new"), NOW_MS)
    for token in (signed("RS256", exp=1), hs({"sub": "a", "exp": FAR}, SECRET, "HS512")):
        with pytest.raises(InvalidToken) as refused:
            check(asking, token, NOW_MS)
        assert not isinstance(refused.value, KeyNotFetched)


def test_tokens_are_signed_as_the_configuration_says() -> None:
    auth = AuthSettings(
        secrets=(SECRET * 2,), algorithms=("RS256", "HS384"), audience="chat", issuer="me", user_claim="u"
    )
    token = token_for("ann", auth, Keys(auth.secrets, generated=False), ttl_s=60, now_s=NOW_MS / 1000)
    assert jwt.get_unverified_header(token)["alg"] == "HS384"
    assert check(token_rule(auth, Keys(auth.secrets, generated=False)), token, NOW_MS).user == "ann"
    with pytest.raises(ConfigError, match="no secret to sign a token with"):
        token_for("ann", AuthSettings(algorithms=("RS256",)), Keys((), generated=False), ttl_s=60)


def test_secrets_are_not_shown() -> None:
    assert SECRET not in repr(rule())


@pytest.mark.parametrize("ends", ["\\n", "\\r\\n"])
def test_a_public_key_may_have_its_ends_of_lines_written_as_backslash_and_n(tmp_path: Path, ends: str) -> None:
    pem = public_pem("RS256").strip().replace("\n", ends)
    (tmp_path / "key.pem").write_bytes(b"\xef\xbb\xbf" + pem.encode())
    (tmp_path / "key.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(jwk("RS256")).encode())
    for entry in (pem, f"a={pem}", str(tmp_path / "key.pem"), str(tmp_path / "key.json")):
        assert of_public_keys(entry, algorithms=("RS256",)).document(), entry
