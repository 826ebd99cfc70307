"""Who somebody is and what they may do, as plain data that the engine enforces.

`Pattern` is the one form of a set of channels: segments split at `:`, `*` for one of them, `**` at the end for the
rest, and `{name}` where an `authorize` hook wants to know what stood there. `Identity` and `Grant` are what hooks
return. `may` is the rule of rights for HTTP; which names are channels and what a grant covers it asks the engine.
Nothing here talks to a socket or reads configuration files.

Called by `identity`, `routing`, `broadcaster` and `api`.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import jwt
from msgspec import Struct

from realtime._engine import covers, is_name, named

RIGHTS: Final = ("subscribe", "publish", "presence", "history")
"""What a grant may name: receive a channel's events, publish volatile ones, see who is there, read what was."""

DEEDS: Final = {
    "subscribe": "subscribe",
    "publish": "publish",
    "presence": "see the presence",
    "history": "read the history",
}
"""What each right allows, in the words of the engine's `error`."""

OWN_CHANNELS: Final = "_realtime:"
"""How the names of channels begin that the server keeps for itself; the engine refuses them to clients, too."""

NAME_RULE: Final = "use 1 to 128 of A-Z a-z 0-9 _ . : @ -, the first a letter, digit or _"
"""What an error says of a name that is none."""

NAME_PATTERN: Final = "^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}$"
"""The grammar of names as JSON Schema has it; the engine's `is_name` is the rule."""

BEARER_PROTOCOL: Final = "bearer."
"""How the subprotocol that is a token begins."""
_NAMED = re.compile(r"\{([a-z_][a-z0-9_]*)\}\Z")


def is_channel(name: str) -> bool:
    """Whether `name` is the name of a channel of an app, by the engine's rule.

    Names that begin with `OWN_CHANNELS` are the server's own: no client, app or system can name one.
    """
    return named(name) == name and not name.startswith(OWN_CHANNELS)


def channel_named(name: str) -> str:
    """Return the channel that an app or a service names.

    A user's channel may be named by the raw id, such as `user:auth0|5f7c`; see `realtime.user_channel`.

    Raises:
        ValueError: there is no channel of this name.
    """
    channel = named(name)
    if channel is None:
        raise ValueError(f"{name[:140]!r} is not a channel; {NAME_RULE}")
    return channel


def checked_event(name: str) -> str:
    """Return the name of an event.

    Raises:
        ValueError: it does not follow the grammar of names.
    """
    if not is_name(name):
        raise ValueError(f"{name[:140]!r} is not the name of an event; {NAME_RULE}")
    return name


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
    """Who somebody is: what an `authenticate` hook returns, and what a token, a ticket or a service key says.

    Args:
        user: the user's id; one user may have many sessions. Empty for a service that acts for no user.
        grants: rights by pattern, as in a token's `channels`; None leaves what is open to everybody.
        expires_at: seconds since 1970 at which the session ends; None for never.
        service: another system, which may do over HTTP what is not one user's own.
        token_id: what `revoke(token_id=…)` goes by: a token's `jti`.
        issued_at_s: when what it came by was issued, seconds since 1970: what `revoke(user=…)` goes by; None counts
            as long ago.
        token: what it came by, where that was a token; never shown.
    """

    user: str
    grants: Mapping[str, Sequence[str]] | None = None
    expires_at: float | None = None
    service: bool = False
    token_id: str | None = None
    issued_at_s: int | None = None
    token: str | None = None

    def __repr__(self) -> str:
        """Leave the token out: this ends up in logs and tracebacks."""
        return f"Identity(user={self.user!r}, service={self.service}, expires_at={self.expires_at})"


class UpgradeRequest(Struct, frozen=True):
    """What a caller sent, for an `authenticate` hook: before there is a connection, or with an HTTP request."""

    path: str
    query: dict[str, str]
    """Decoded; the first value where a name stands twice."""
    headers: dict[str, str]
    """Names in lower case; values of a header that stands twice are joined by a comma, cookies by a semicolon."""
    peer: str

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, as sent but for quotes around a value; the first where a name stands twice."""
        found: dict[str, str] = {}
        for pair in self.headers.get("cookie", "").split(";"):
            name, has_value, value = pair.strip().partition("=")
            if has_value and name:
                value = value.strip()
                is_quoted = len(value) > 1 and value[0] == value[-1] == '"'
                found.setdefault(name.strip(), value[1:-1] if is_quoted else value)
        return found

    @property
    def token(self) -> str | None:
        """The token that the request shows: as `?token=`, as `Authorization: Bearer` or as subprotocol; None without.

        Raises:
            InvalidToken: two that differ.
        """
        shown = {self.query.get("token"), bearer_of(self.headers.get("authorization", ""))}
        offered = (entry.strip() for entry in self.headers.get("sec-websocket-protocol", "").split(","))
        shown.update(entry.removeprefix(BEARER_PROTOCOL) for entry in offered if entry.startswith(BEARER_PROTOCOL))
        shown -= {None, ""}
        if len(shown) > 1:
            raise InvalidToken("the request shows two tokens that differ; send one", "ambiguous")
        return next(iter(shown), None)


class InvalidToken(Exception):  # noqa: N818 -- it is the token that is wrong
    """A token that does not say who somebody is; the text is for logs and is never shown to the caller.

    Args:
        text: one sentence.
        reason: its name in the log and in `realtime_token_refusals_total`, such as `expired`.
        retry_after_ms: after how long the same token may be good, where its key may have been published meanwhile;
            None where it never will be.
    """

    def __init__(self, text: str, reason: str, *, retry_after_ms: int | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after_ms = retry_after_ms


def bearer_of(authorization: str) -> str | None:
    """Return what an `Authorization` header shows as `Bearer`, a token or a key; None where it shows nothing."""
    scheme, _, shown = authorization.partition(" ")
    # Only spaces and tabs, as the engine has it: any other white space is part of the token, which is then none.
    return shown.strip(" \t") or None if scheme.lower() == "bearer" else None


def mint_token(
    secret: str,
    user: str,
    channels: Mapping[str, Sequence[str]] | Iterable[str] | None = None,
    ttl_s: float = 3600,
    *,
    audience: str | None = None,
    issuer: str | None = None,
    user_claim: str = "sub",
    algorithm: str = "HS256",
    now_s: float | None = None,
) -> str:
    """Return a token that says its bearer is `user` for `ttl_s` seconds.

    Args:
        secret: what it is signed with; the first of `auth.secrets`.
        user: the user's id.
        channels: rights by pattern, or patterns alone for every right; None leaves what is open to everybody.
        ttl_s: seconds from now until it expires.
        audience: the `aud` claim.
        user_claim: the claim that names the user.
        issuer: the `iss` claim.
        algorithm: HS256, HS384 or HS512.
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
    if issuer is not None:
        claims["iss"] = issuer
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
    return {_pattern_text(pattern): list(checked_rights(rights)) for pattern, rights in grants.items()}


def _pattern_text(pattern: str) -> str:
    is_wild = any("*" in part or "{" in part for part in pattern.split(":"))
    channel = None if is_wild else named(pattern)
    # A user's channel by a raw id that is no part of a name.
    return Pattern(pattern).text if channel in (None, pattern) else str(channel)


def may(identity: Identity, right: str, channel: str, open_grants: Iterable[tuple[str, Sequence[str]]]) -> bool:
    """Whether somebody has a right on a channel, by the engine's rule of what grants cover.

    What an `authorize` hook would say is not asked: it decides about sessions. A service is asked about like anybody.

    Args:
        identity: whose grants count.
        right: one of `RIGHTS`.
        channel: the whole name, as `channel_named` or the engine's `named_by_client` returns it.
        open_grants: what everybody may, by pattern: `Rules.open_grants`.
    """
    if not is_channel(channel):
        return False
    own = () if identity.grants is None else identity.grants.items()
    return any(right in rights and covers(pattern, channel, identity.user) for pattern, rights in (*own, *open_grants))
