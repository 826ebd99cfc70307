"""Tokens of this server: `auth.mint_token` with what the configuration says of a token.

For the playground, the line at start and the command line. A product signs its own tokens, where its users sign in.
"""

from collections.abc import Mapping, Sequence

from realtime.auth import mint_token
from realtime.config import AuthSettings, Keys


def token_for(
    user: str, auth: AuthSettings, keys: Keys, *, ttl_s: int, channels: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return a token for `user` that a server with these settings and keys accepts for `ttl_s` seconds.

    Args:
        user: whom it is for.
        auth: names the algorithm, the claim of the user and the audience.
        keys: the first secret signs.
        ttl_s: seconds from now until it expires.
        channels: rights by pattern; None leaves what is open to everybody.

    Raises:
        ValueError: on a pattern or a right that does not exist.
    """
    return mint_token(
        keys.secrets[0],
        user,
        channels,
        ttl_s,
        audience=auth.audience,
        user_claim=auth.user_claim,
        algorithm=auth.algorithm,
    )
