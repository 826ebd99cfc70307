"""Tokens that this server accepts, signed with the first of its secrets.

For the command line, the playground and tests; a product signs its own where its users sign in. The claims are those
that the engine's token rule checks, under the names that `[auth]` sets.
"""

import secrets
import time
from collections.abc import Mapping, Sequence

import jwt

from realtime.config import AuthSettings, Keys

RIGHTS = ("subscribe", "publish", "presence", "history")
"""Everything that a token can grant for a channel."""


def sign(
    auth: AuthSettings,
    keys: Keys,
    user: str,
    *,
    channels: Mapping[str, Sequence[str]] | None = None,
    ttl_s: int = 3600,
) -> str:
    """Return a token for `user`.

    Args:
        auth: names the algorithm, the claim of the user and the audience.
        keys: the first secret signs.
        user: the user's identifier, not empty.
        channels: rights by channel pattern; None leaves the claim out, and the open rules apply.
        ttl_s: seconds from now to `exp`.
    """
    now = int(time.time())
    claims: dict[str, object] = {
        auth.user_claim: user,
        "iat": now,
        "exp": now + ttl_s,
        "jti": secrets.token_hex(8),
    }
    if auth.audience is not None:
        claims["aud"] = auth.audience
    if channels is not None:
        claims["channels"] = {pattern: list(rights) for pattern, rights in channels.items()}
    return jwt.encode(claims, keys.secrets[0], algorithm=auth.algorithm)
