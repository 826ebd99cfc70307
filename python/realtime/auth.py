"""Who somebody is and what they may do, as plain data that the engine enforces.

The engine checks the tokens of sockets in its shards; `TokenRule` checks those of HTTP by the same configuration.
`Pattern` is the one form of a set of channels: segments split at `:`, `*` for one of them, `**` at the end for the
rest, and `{name}` where an `authorize` hook wants to know what stood there. `Identity` and `Grant` are what hooks
return. Nothing here talks to a socket or reads configuration files.

Called by `routing` and `broadcaster` (patterns), `server` (the rule), `cli` and tests (tokens).
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import jwt
import msgspec
from msgspec import Struct

RIGHTS: Final = ("subscribe", "publish", "presence", "history")
"""What a grant may name: receive a channel's events, publish volatile ones, see who is there, read what was."""

_CHANNEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}\Z")
_NAMED = re.compile(r"\{([a-z_][a-z0-9_]*)\}\Z")


def is_channel(name: str) -> bool:
    """Whether `name` is the name of a channel: 1 to 128 of `A-Za-z0-9_.:@-`, the first a letter, digit or `_`."""
    return _CHANNEL.match(name) is not None


class Pattern:
    """A set of channel names, such as `poll:{poll}`, `conversation:*` or `file:**`.

    Raises:
        ValueError: on an empty segment, a wildcard inside a segment, or `**` before the end.
    """

    __slots__ = ("_named", "_segments", "names", "text")

    def __init__(self, text: str) -> None:
        segments = text.split(":")
        self._named: list[tuple[int, str]] = []
        for index, segment in enumerate(segments):
            if named := _NAMED.match(segment):
                self._named.append((index, named.group(1)))
                segments[index] = "*"
            elif segment == "**" and index == len(segments) - 1:
                continue
            elif segment != "*" and not re.fullmatch(r"[A-Za-z0-9_.@-]+", segment):
                raise ValueError(f"{text!r} is not a pattern: {segment!r}; use names, *, {{name}}, and ** at the end")
        self._segments = segments
        self.text = ":".join(segments)
        self.names = tuple(name for _, name in self._named)

    def matches(self, channel: str) -> bool:
        """Whether `channel` is one of the set, as the engine sees it too: no segment is empty, `**` is at least one."""
        segments = self._segments
        if segments[-1] == "**":
            segments = segments[:-1]
            parts = channel.split(":", len(segments))
            if len(parts) <= len(segments) or not parts[-1]:
                return False
        else:
            parts = channel.split(":")
            if len(parts) != len(segments):
                return False
        return all(part and segment in ("*", part) for segment, part in zip(segments, parts, strict=False))

    def parts(self, channel: str) -> dict[str, str]:
        """Return what stands at the named segments of a channel that matches."""
        found = channel.split(":")
        return {name: found[index] for index, name in self._named}


class Grant:
    """What an `authorize` hook allows on the one channel that it was asked about.

    `Grant()` lets a session read: subscribe, see who is there and what was said. Name the rights for anything else:
    `Grant("subscribe", "publish")`.
    """

    __slots__ = ("rights",)

    def __init__(self, *rights: str) -> None:
        self.rights: tuple[str, ...] = checked_rights(rights or ("subscribe", "presence", "history"))

    def __repr__(self) -> str:
        return f"Grant({', '.join(map(repr, self.rights))})"


class Identity(Struct, frozen=True):
    """Who an `authenticate` hook says a caller is.

    Args:
        user: the user's id; one user may have many sessions.
        grants: rights by pattern, as in a token's `channels`; None leaves what is open to everybody.
        expires_at: seconds since 1970 at which the session ends; None for never.
    """

    user: str
    grants: Mapping[str, Sequence[str]] | None = None
    expires_at: float | None = None


class UpgradeRequest(Struct, frozen=True):
    """What a caller sent before there is a connection, for an `authenticate` hook."""

    path: str
    query: dict[str, str]
    """Decoded; the first value where a name stands twice."""
    headers: dict[str, str]
    """Names in lower case; values of a header that stands twice are joined by a comma."""
    peer: str


class InvalidToken(Exception):  # noqa: N818 -- it is the token that is wrong
    """A token that does not say who somebody is; the text is for logs and is never shown to the caller."""


class TokenRule(Struct, frozen=True, kw_only=True):
    """How Python checks tokens."""

    secrets: tuple[str, ...]
    algorithm: str = "HS256"
    audience: str | None = None
    user_claim: str = "sub"
    require_exp: bool = True
    leeway_s: int = 0
    expiry: str = "close"

    def __repr__(self) -> str:
        return f"TokenRule({len(self.secrets)} secrets, algorithm={self.algorithm!r})"

    def check(self, token: str) -> Identity:
        """Return who `token` names; for HTTP, since the engine checks those of sockets itself.

        Raises:
            InvalidToken: not signed with one of the secrets and the one algorithm, expired, for another audience,
                or without a user.
        """
        required = [self.user_claim, *(["exp"] if self.require_exp else [])]
        for secret in self.secrets:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    secret,
                    algorithms=[self.algorithm],
                    audience=self.audience,
                    leeway=self.leeway_s,
                    options={"require": required, "verify_aud": self.audience is not None},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError as error:
                raise InvalidToken(str(error)) from error
            return _identity(claims, self.user_claim)
        raise InvalidToken("signed with no secret of ours")


def _identity(claims: Mapping[str, Any], user_claim: str) -> Identity:
    user = claims[user_claim]
    if not isinstance(user, str) or not user:
        raise InvalidToken(f"claim {user_claim} is not a text")
    try:
        grants = msgspec.convert(claims.get("channels"), dict[str, list[str]] | None)
    except msgspec.ValidationError as error:
        raise InvalidToken(f"claim channels: {error}") from error
    return Identity(user=user, grants=grants, expires_at=claims.get("exp"))


def mint_token(
    secret: str,
    user: str,
    channels: Mapping[str, Sequence[str]] | Iterable[str] | None = None,
    ttl_s: float = 3600,
    *,
    audience: str | None = None,
    user_claim: str = "sub",
    algorithm: str = "HS256",
    now_s: float | None = None,
) -> str:
    """Return a token that says its bearer is `user` for `ttl_s` seconds.

    Args:
        secret: what it is signed with; the first of `TokenRule.secrets`.
        user: the user's id.
        channels: rights by pattern, or patterns alone for every right; None leaves what is open to everybody.
        ttl_s: seconds from now until it expires.
        audience: the `aud` claim.
        user_claim: the claim that names the user.
        algorithm: the one of the rule.
        now_s: the time of issue, in seconds since 1970; None reads the clock.

    Raises:
        ValueError: on a pattern or a right that does not exist.
    """
    issued_s = int(time.time() if now_s is None else now_s)
    claims: dict[str, Any] = {user_claim: user, "iat": issued_s, "exp": issued_s + max(1, round(ttl_s))}
    if channels is not None:
        by_pattern = channels if isinstance(channels, Mapping) else dict.fromkeys(channels, RIGHTS)
        claims["channels"] = checked_grants(by_pattern)
    if audience is not None:
        claims["aud"] = audience
    return jwt.encode(claims, secret, algorithm=algorithm)


def checked_rights(rights: Iterable[str]) -> tuple[str, ...]:
    """Return `rights` once each.

    Raises:
        ValueError: names the right that does not exist and those that do.
    """
    once = tuple(dict.fromkeys(rights))
    for right in once:
        if right not in RIGHTS:
            raise ValueError(f"{right!r} is not a right; use {', '.join(RIGHTS)}")
    return once


def checked_grants(grants: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return rights by pattern as tokens and the engine write them.

    Raises:
        ValueError: on a pattern or a right that does not exist.
    """
    return {Pattern(pattern).text: list(checked_rights(rights)) for pattern, rights in grants.items()}
