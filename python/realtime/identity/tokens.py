"""Tokens as Python checks them, by the same rule as the engine does in its shards, and as it hands the rule over.

Each key has one algorithm, fixed by the configuration: what a token says of itself (`alg`, `kid`) chooses among keys
and changes none; addresses and keys in it are not even read. Claims are looked at before the signature, so that a token
that is refused anyway costs no arithmetic and never makes us fetch keys. Time is an argument.

Called by `identities` (HTTP, tokens of keys that the engine lacks), `server` (options) and those who sign tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from jwt.utils import base64url_decode
from msgspec import Struct

from realtime.auth import Identity, InvalidToken, claimed_grants, mint_token
from realtime.config import AuthSettings, ConfigError, Keys
from realtime.identity.keys import VerifyKey, configured_keys

TOKEN_BYTES_MAX: Final = 16 * 1024
NAME_CHARS_MAX: Final = 256
"""Characters of a user's id and of a token's."""
KEYS_MAX: Final = 64
"""Keys that the engine takes: a token without a `kid` may have to be tried with each."""

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)\Z")


class UnknownKey(InvalidToken):
    """A token of a public key that is none of ours; whoever published it may have more by now."""


class _Head(Struct):
    alg: str
    kid: str | None = None
    crit: Any = None


class TokenRule(Struct, frozen=True, kw_only=True):
    """How tokens are checked."""

    keys: tuple[VerifyKey, ...]
    audience: str | None = None
    issuer: str | None = None
    user_claim: str = "sub"
    require_exp: bool = True
    leeway_s: int = 0
    expiry: str = "close"
    ask: bool = False

    def document(self) -> dict[str, object] | None:
        """Return the rule as the engine's option `token`; None where there is nothing to check tokens with."""
        if not self.keys and not self.ask:
            return None
        keys = [
            {"algorithm": key.algorithm, "key": key.text, **({} if key.kid is None else {"kid": key.kid})}
            for key in self.keys
        ]
        return {
            "keys": keys,
            "audience": self.audience,
            "issuer": self.issuer,
            "user_claim": self.user_claim,
            "require_exp": self.require_exp,
            "leeway_s": self.leeway_s,
            "expiry": self.expiry,
            "ask": self.ask,
        }

    def check(self, token: str, now_ms: int) -> Identity:
        """Return who `token` names.

        Args:
            token: in the compact form (RFC 7515 §7.1).
            now_ms: the wall clock, ms since 1970.

        Raises:
            UnknownKey: what can be seen without its key is right, but no key is for it.
            InvalidToken: anything else is wrong with it.
        """
        parts = _COMPACT.match(token) if len(token) <= TOKEN_BYTES_MAX else None
        if parts is None:
            raise InvalidToken("not a token")
        try:
            head = msgspec.json.decode(base64url_decode(parts[1]), type=_Head)
            claims = msgspec.json.decode(base64url_decode(parts[2]), type=dict[str, Any])
            signature = base64url_decode(parts[3])
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            raise InvalidToken(f"not a token: {error}") from error
        if head.crit is not None:
            raise InvalidToken("it demands extensions (crit)")
        identity = self._identity(claims, token, now_ms)
        tried = [
            key
            for key in self.keys
            if key.algorithm == head.alg and (key.kid is None or head.kid is None or key.kid == head.kid)
        ]
        if not tried:
            wrong = UnknownKey if self.ask and not head.alg.startswith("HS") else InvalidToken
            raise wrong("no key of ours is for its algorithm and kid")
        message = token.rpartition(".")[0].encode()
        if not any(key.has_signed(message, signature) for key in tried):
            raise InvalidToken("signed with no key of ours")
        return identity

    def _identity(self, claims: Mapping[str, Any], token: str, now_ms: int) -> Identity:
        expires_at, begins_at, issued_at = (_time(claims, name) for name in ("exp", "nbf", "iat"))
        leeway_ms = self.leeway_s * 1000
        if expires_at is None and self.require_exp:
            raise InvalidToken("claim exp is missing")
        if expires_at is not None and expires_at * 1000 + leeway_ms <= now_ms:
            raise InvalidToken("it has expired")
        if begins_at is not None and begins_at * 1000 > now_ms + leeway_ms:
            raise InvalidToken("it is not valid yet")
        if self.audience is not None and not _names(claims.get("aud"), self.audience):
            raise InvalidToken("claim aud names another audience")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise InvalidToken("claim iss names another issuer")
        # Whoever was let in within the leeway may stay for it.
        ends_at = expires_at + self.leeway_s if expires_at is not None and self.expiry == "close" else None
        return Identity(
            user=_name(claims, self.user_claim),
            grants=claimed_grants(claims.get("channels")) if "channels" in claims else None,
            expires_at=ends_at,
            token_id=_name(claims, "jti") if "jti" in claims else None,
            issued_at_s=None if issued_at is None else int(issued_at),
            token=token,
        )


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        raise InvalidToken(f"claim {name} is no time")
    return value


def _name(claims: Mapping[str, Any], claim: str) -> str:
    """Return an id as text; whole numbers are read as their decimal digits, as the engine does."""
    value = claims.get(claim)
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 64:
        return str(value)
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_CHARS_MAX:
        raise InvalidToken(f"claim {claim} is not a text of 1 to {NAME_CHARS_MAX} characters")
    return value


def _names(audience: object, wanted: str) -> bool:
    return audience == wanted or (isinstance(audience, list) and wanted in audience)


def token_rule(auth: AuthSettings, keys: Keys, fetched: Sequence[VerifyKey] = ()) -> TokenRule:
    """Return the rule of a configuration, with the keys of its key set.

    Raises:
        ConfigError: a public key of the configuration cannot be used, or there are too many.
    """
    configured = configured_keys(auth, keys)
    if len(configured) > KEYS_MAX:
        raise ConfigError(
            f"auth.secrets and auth.public_keys make {len(configured)} keys, one for each algorithm that they can be "
            f"used with; at most {KEYS_MAX} are allowed: name fewer keys or auth.algorithms"
        )
    return TokenRule(
        keys=(*configured, *fetched)[:KEYS_MAX],
        audience=auth.audience,
        issuer=auth.issuer,
        user_claim=auth.user_claim,
        require_exp=auth.require_exp,
        leeway_s=auth.leeway_s,
        expiry=auth.expiry,
        ask=auth.jwks_url is not None,
    )


def token_for(
    user: str,
    auth: AuthSettings,
    keys: Keys,
    *,
    ttl_s: float,
    channels: Mapping[str, Sequence[str]] | None = None,
    now_s: float | None = None,
) -> str:
    """Return a token for `user` that a server with these settings and keys accepts for `ttl_s` seconds.

    For the playground, the command line, tests and requests to `api.url`. A product signs its own tokens, where its
    users sign in.

    Args:
        user: whom it is for.
        auth: names the algorithm, the claim of the user, the audience and the issuer.
        keys: the first secret signs.
        ttl_s: seconds from now until it expires.
        channels: rights by pattern; None leaves what is open to everybody.
        now_s: the time of issue, seconds since 1970; None reads the clock.

    Raises:
        ConfigError: tokens are signed by others alone.
        ValueError: on a pattern or a right that does not exist.
    """
    if not keys.secrets or auth.signing_algorithm is None:
        raise ConfigError("there is no secret to sign a token with: auth.algorithms names public keys alone; add HS256")
    return mint_token(
        keys.secrets[0],
        user,
        channels,
        ttl_s,
        audience=auth.audience,
        issuer=auth.issuer,
        user_claim=auth.user_claim,
        algorithm=auth.signing_algorithm,
        now_s=now_s,
    )
