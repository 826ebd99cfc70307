"""Who asks, and whether they may: the caller of a request, rights on channels, rates, and what is for operators alone.

A caller is a user or a service, as `Identities` says: by a token or a service key in `Authorization: Bearer …`, or by
the app's `authenticate` hook. A user's rights
are those of a session: what the app leaves open and what the token grants. An `authorize` hook is not asked here, since
it decides about a session. `/docs` and `/metrics` are for programs of this machine that mean this server, and for
services.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard as RouteGuard
from msgspec import Struct

from realtime._engine import covers, named, named_by_client
from realtime.api.collecting import USER, Collecting
from realtime.api.edge import Edge
from realtime.api.local import is_local
from realtime.api.peers import tell_known
from realtime.api.problems import RefusedToken
from realtime.base.errors import Refused
from realtime.control.broadcaster import PAGE_BYTES_MAX
from realtime.identity.auth import NAME_RULE, OWN_CHANNELS, Identity, InvalidToken, bearer_of, may

_ROLES: Final = "role"
_ITEM_BYTES_ASSUMED: Final = 4096


class Caller(Struct, frozen=True):
    """Who asks: `identity` is None for a service; `peer` is the address that it asks from."""

    identity: Identity | None
    peer: str = ""

    @property
    def is_service(self) -> bool:
        """Whether it showed a service key, and so acts for no single user."""
        return self.identity is None

    @property
    def user(self) -> str | None:
        """The user; None for a service."""
        return None if self.identity is None else self.identity.user


class Page:
    """A page that a caller gets: `bytes` is how long it has become, as far as that is known."""

    bytes = 0


class Guard:
    """Knows callers by what they show, and takes what they ask for from the buckets of the same users' sockets."""

    def __init__(self, edge: Edge) -> None:
        self._control = edge.control
        self._identities = edge.control.identities
        self._open_grants = edge.control.rules.open_grants

    async def caller(self, request: Request[Any, Any, Any]) -> Caller:
        """Return who asks; a user's request costs a command, a service's nothing.

        Raises:
            Refused: `unauthorized` or `rate_limited`.
        """
        query = request.scope["query_string"].decode("latin-1")
        peer = request.client.host if request.client is not None else ""
        try:
            identity = await self._identities.identify_request(
                request.url.path, query, request.headers.multi_items(), peer
            )
        except InvalidToken as error:
            # Who shows nothing good is known by the address, so that trying costs as much as asking.
            self._control.charge("", peer)
            raise _refusal(error) from None
        collecting = Collecting.of(request.scope)
        if identity.service:
            collecting.caller = "service"
            tell_known(request.scope)
            return Caller(None, peer)
        collecting.caller = f"{USER}{identity.user}"
        self._control.charge(identity.user, peer)
        # Not before: who is over the rate of a user is one of many of its address.
        tell_known(request.scope)
        return Caller(identity, peer)

    @contextlib.contextmanager
    def page(self, caller: Caller, items: int) -> Iterator[Page]:
        """Take what a page of at most `items` costs: something before it is read, the rest by its bytes.

        Raises:
            Refused: `rate_limited`, before anything is read.
        """
        page = Page()
        if caller.identity is None:
            yield page
            return
        user, reserved = caller.identity.user, min(items * _ITEM_BYTES_ASSUMED, PAGE_BYTES_MAX)
        self._control.charge(user, caller.peer, commands=0, page_bytes=reserved)
        try:
            yield page
        finally:
            self._control.settle(user, caller.peer, reserved, page.bytes)

    async def user(self, request: Request[Any, Any, Any]) -> Identity:
        """Return the user who asks.

        Raises:
            Refused: as for `caller`; a service is refused too.
        """
        caller = await self.caller(request)
        if caller.identity is None:
            raise Refused("forbidden", "this is for users: send a user's token")
        return caller.identity

    async def service(self, request: Request[Any, Any, Any]) -> Caller:
        """Let services through.

        Raises:
            Refused: nothing good was shown, or a user's token.
        """
        caller = await self.caller(request)
        if not caller.is_service:
            raise Refused("forbidden", "this needs a service key")
        return caller

    def is_operator(self, connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
        """Whether a request is one of this machine's, or of a service."""
        if is_local(connection.scope):
            return True
        shown = shown_by(connection)
        return shown is not None and self._identities.is_service_key(shown)

    @property
    def operators_only(self) -> RouteGuard:
        """What refuses whoever is neither, for routes; a function, since Litestar copies what guards a router."""

        def operators_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
            if not self.is_operator(connection):
                raise Refused("unauthorized", "only from this machine itself, or with a service key")

        return operators_only

    def channel(self, caller: Caller, right: str, name: str, path: str = "channel") -> str:
        """Return the channel that a caller names, on which it has the right; a service has every right.

        Args:
            caller: who asks. A user names its own channel as a socket's client does, a service that of any user by
                `user:` and the raw id.
            right: one of `RIGHTS`.
            name: as the caller wrote it.
            path: where, for the error.

        Raises:
            Refused: `invalid_message` where there is no such channel, `forbidden`.
        """
        identity = caller.identity
        channel = named(name) if identity is None else named_by_client(name, identity.user)
        if channel is None or channel.startswith(OWN_CHANNELS):
            raise Refused("invalid_message", f"not a channel; {NAME_RULE}", path=path)
        if identity is not None and not self.may(identity, right, channel):
            raise Refused("forbidden", f"{identity.user!r} may not {right} on {channel}"[:300])
        return channel

    def may(self, identity: Identity, right: str, channel: str) -> bool:
        """Whether a user has a right on a channel, by the rule that the engine has for sessions."""
        return may(identity, right, channel, self._open_grants)

    def may_speak_as(self, caller: Caller, role: str) -> bool:
        """Whether a caller may post with a role: `user` is everybody's.

        Another one is for services, and for users whose token grants `publish` on `role:{role}` by a pattern that
        begins with `role:`; a pattern for channels of every kind (`**`) does not mean roles.
        """
        if role == "user" or caller.identity is None:
            return True
        return any(
            "publish" in rights
            and pattern.split(":")[0] == _ROLES
            and covers(pattern, f"{_ROLES}:{role}", caller.identity.user)
            for pattern, rights in (caller.identity.grants or {}).items()
        )


def shown_by(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    """Return what a request shows as `Authorization: Bearer`, a token or a key; None where it shows nothing or two."""
    sent = connection.headers.getall("authorization", [])
    return bearer_of(sent[0]) if len(sent) == 1 else None


def _refusal(error: InvalidToken) -> Refused:
    """Return what a caller is told whose token is refused: whether a new one helps, and not what is wrong with it."""
    if error.reason == "missing":
        return Refused("unauthorized", "send Authorization: Bearer with a token or a service key")
    if error.retry_after_ms is not None:
        told = "the key of the token is not known yet"
        return Refused("unavailable", told, retry_after_ms=error.retry_after_ms)
    if error.reason == "expired":
        return RefusedToken("token_expired", "the token has expired; fetch a new one")
    return RefusedToken("unauthorized", "the token is not accepted")
