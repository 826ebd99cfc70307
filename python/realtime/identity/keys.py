"""The keys that tokens are checked with, each for exactly one algorithm.

A key comes from the configuration (a secret, a PEM, a file) or from a JWK set. Its type decides which of the allowed
algorithms it can be used with, so a public key is never taken for a shared secret. Public keys are handed to the engine
as PEM, whatever they came as. Private keys, short ones and unknown types are refused by name and never shown.

Called by `tokens` and `key_sets`.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Struct

from realtime.base.config import AuthSettings, ConfigError, Keys

_RSA_BITS: Final = range(2048, 4097)
_RSA_EXPONENTS: Final = range(3, 1 << 33)
"""What the engine takes; it would refuse a whole set for one key with another."""
_OF_RSA: Final = ("RS256", "RS384", "RS512", "PS256")
_OF_CURVE: Final = {"secp256r1": ("ES256",), "secp384r1": ("ES384",)}
_NAMED: Final = re.compile(r"([A-Za-z0-9._-]{1,256})=(.+)\Z", re.DOTALL)
_JWK_TYPES: Final[dict[str, Any]] = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}
_FILE_BYTES_MAX: Final = 1024 * 1024


class VerifyKey(Struct, frozen=True):
    """A key that tokens are checked with.

    Args:
        algorithm: the one that it is used with.
        text: the secret, or the public key as PEM.
        kid: tokens that name another one are not tried with it; None is tried with all.
    """

    algorithm: str
    text: str
    kid: str | None = None

    def __repr__(self) -> str:
        """Leave the key out."""
        return f"VerifyKey({self.algorithm}, kid={self.kid!r})"


def configured_keys(auth: AuthSettings, keys: Keys) -> tuple[VerifyKey, ...]:
    """Return the keys of the configuration: secrets first.

    Raises:
        ConfigError: a public key cannot be read, or no algorithm of `auth.algorithms` is for it.
    """
    found = [
        VerifyKey(algorithm, secret)
        for secret in keys.secrets
        for algorithm in auth.algorithms
        if algorithm.startswith("HS")
    ]
    for place, entry in enumerate(auth.public_keys):
        try:
            found += _from_entry(entry, auth.algorithms)
        except ValueError as error:
            raise ConfigError(f"auth.public_keys[{place}]: {error}") from error
    return tuple(found)


def usable_keys(document: bytes, algorithms: Sequence[str]) -> tuple[tuple[VerifyKey, ...], list[str]]:
    """Return the keys of a JWK set that tokens may be checked with, and why each other one is not among them.

    Raises:
        ValueError: it is no JWK set (RFC 7517 §5), or one without a key that can be used.
    """
    try:
        jwks = msgspec.json.decode(document, type=_JwkSet).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no JWK set: {error}") from error
    found: list[VerifyKey] = []
    passed_over: list[str] = []
    for place, jwk in enumerate(jwks):
        try:
            found += _from_jwk(jwk, algorithms)
        except ValueError as error:
            passed_over.append(f"keys[{place}]: {error}")
    if not found:
        raise ValueError(f"the set holds no key that can be used: {'; '.join(passed_over[:5]) or 'it is empty'}")
    return tuple(found), passed_over


class _JwkSet(Struct):
    keys: list[dict[str, Any]]


def _from_entry(entry: str, algorithms: Sequence[str]) -> Iterable[VerifyKey]:
    """Read one entry of `auth.public_keys`: `[kid=]` and a PEM, or the path of a PEM, a JWK or a JWK set."""
    kid: str | None = None
    text = _unescaped(entry.strip())
    if not text.startswith("-----BEGIN") and (named := _NAMED.match(text)):
        kid, text = named.groups()
    if text.startswith("-----BEGIN"):
        return _from_pem(text, algorithms, kid)
    try:
        with Path(text).open("rb") as file:
            content = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise ValueError(
            f"{text[:200]!r} cannot be read: {error.strerror}; give a PEM, or the path of a key"
        ) from error
    content = content.removeprefix(BOM_UTF8)
    if content.lstrip().startswith(b"{"):
        found = _from_json(content, algorithms)
        return found if kid is None else [msgspec.structs.replace(key, kid=kid) for key in found]
    return _from_pem(_unescaped(content.decode("ascii", "replace")), algorithms, kid)


def _unescaped(text: str) -> str:
    """Return a PEM with real ends of lines: an env file holds them as two characters only, a backslash and an n."""
    if "-----BEGIN" not in text:
        return text
    return text.replace("\\r", "").replace("\\n", "\n")


def _from_json(content: bytes, algorithms: Sequence[str]) -> Sequence[VerifyKey]:
    try:
        jwk = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if "keys" not in jwk:
        return _from_jwk(jwk, algorithms)
    return usable_keys(content, algorithms)[0]


def _from_pem(text: str, algorithms: Sequence[str], kid: str | None) -> Sequence[VerifyKey]:
    if "PRIVATE KEY-----" in text:
        raise ValueError("this is a private key; give the public one")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("no public key as PEM; it begins with -----BEGIN PUBLIC KEY-----") from error
    return _of_public_key(key, algorithms, kid)


def _from_jwk(members: Mapping[str, Any], algorithms: Sequence[str]) -> Sequence[VerifyKey]:
    # Some providers write members that they do not use as null: those count as absent.
    jwk = {name: value for name, value in members.items() if value is not None}
    kind = _JWK_TYPES.get(str(jwk.get("kty")))
    if kind is None:
        raise ValueError(f"keys of the type {jwk.get('kty')!r} are not public keys that are used here")
    if "d" in jwk:
        raise ValueError("this is a private key; give the public one")
    uses = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
        raise ValueError("it is not for signatures")
    if (algorithm := jwk.get("alg")) is not None:
        if algorithm not in algorithms or str(algorithm).startswith("HS"):
            raise ValueError(f"it is for {algorithm!r}, which auth.algorithms does not name")
        algorithms = [algorithm]
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("its kid is not a text")
    try:
        key = kind.from_jwk(jwk)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    return _of_public_key(key, algorithms, kid)


def _of_public_key(key: object, algorithms: Sequence[str], kid: str | None) -> Sequence[VerifyKey]:
    match key:
        case RSAPublicKey():
            if key.key_size not in _RSA_BITS:
                raise ValueError(f"an RSA key of {key.key_size} bits is not taken; give one of 2048 to 4096")
            if key.public_numbers().e not in _RSA_EXPONENTS:
                raise ValueError("an RSA key with an exponent over 33 bits is not taken; 65537 is usual")
            goes: Sequence[str] = _OF_RSA
        case EllipticCurvePublicKey():
            goes = _OF_CURVE.get(key.curve.name, ())
        case Ed25519PublicKey():
            goes = ("EdDSA",)
        case _:
            goes = ()
    if not goes or not isinstance(key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError("keys of this type are not used; give RSA, P-256, P-384 or Ed25519")
    allowed = [algorithm for algorithm in algorithms if algorithm in goes]
    if not allowed:
        raise ValueError(f"it is a key for {' or '.join(goes)}, which auth.algorithms does not name; add one")
    text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return [VerifyKey(algorithm, text, kid) for algorithm in allowed]
