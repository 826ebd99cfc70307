"""The rule of tokens as the configuration has it, and tokens that are made here.

The engine checks: in its shards for sockets, and by `TokenCheck` for HTTP, for keys that were fetched a moment ago and
for the command line. There is no second rule in Python.

Called by `identities`, `server` (options), `cli` and those who sign tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Struct

from realtime._engine import EngineError, TokenCheck, TokenRefused
from realtime.base.config import AuthSettings, ConfigError, Keys
from realtime.identity.auth import Identity, InvalidToken, mint_token
from realtime.identity.keys import VerifyKey, configured_keys

KEYS_MAX: Final = 64
"""Keys that the engine takes: a token without a `kid` may have to be tried with each."""


class KeyNotFetched(InvalidToken):
    """A token of a public key that is none of ours; whoever published it may have more by now."""


class TokenRule(Struct, frozen=True, kw_only=True):
    """How tokens are checked."""

    keys: tuple[VerifyKey, ...]
    audience: str | None = None
    issuer: str | None = None
    user_claim: str = "sub"
    require_exp: bool = True
    leeway_s: int = 0
    clock_skew_s: int = 5
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
            "clock_skew_s": self.clock_skew_s,
            "expiry": self.expiry,
            "ask": self.ask,
        }

    def compiled(self) -> TokenCheck | None:
        """Return the rule as the engine checks by it; None where there is nothing to check tokens with.

        Raises:
            ConfigError: a key cannot be used.
        """
        document = self.document()
        if document is None:
            return None
        try:
            return TokenCheck(msgspec.json.encode(document))
        except EngineError as error:
            raise ConfigError(str(error.args[0])) from error


def identity_of(check: TokenCheck | None, token: str, now_ms: int) -> Identity:
    """Return who `token` names.

    Args:
        check: the rule; None refuses every token.
        token: in the compact form (RFC 7515 §7.1).
        now_ms: the wall clock, ms since 1970.

    Raises:
        KeyNotFetched: what can be seen without its key is right, but no key is for it.
        InvalidToken: anything else is wrong with it.
    """
    if check is None:
        raise InvalidToken("there is no key to check tokens with; set auth.secrets or auth.public_keys", "unknown_key")
    try:
        user, grants, expires_at_ms, issued_at_s, token_id = check.check(token, now_ms)
    except TokenRefused as refused:
        reason, text, may_be_new = refused.args
        raise (KeyNotFetched if may_be_new else InvalidToken)(text, reason) from None
    return Identity(
        user=user,
        grants=None if grants is None else msgspec.json.decode(grants, type=dict[str, list[str]]),
        expires_at=None if expires_at_ms is None else expires_at_ms / 1000,
        token_id=token_id,
        issued_at_s=issued_at_s,
        token=token,
    )


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
        clock_skew_s=auth.clock_skew_s,
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
