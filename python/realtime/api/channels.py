"""`/api/presence` and `/api/channels`: who is subscribed to a channel, what was said on it, and taking somebody out."""

from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, delete, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Raw, Struct

from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.api.paths import User
from realtime.base.errors import Refused
from realtime.base.messages import encode
from realtime.base.steps import Turn
from realtime.control.broadcaster import PAGE_BYTES_MAX

_OFFSET_MAX: Final = 2**53
_LIMIT_MAX: Final = 1000
_MEMBERS_ASSUMED: Final = 10
_USERS_MAX: Final = 10_000
_MEMBER_BYTES: Final = 40

Channel = Annotated[str, PathParameter(description="A channel, such as `conversation:7`.")]


class Member(Struct, rename="camel"):
    """A user and the number of sessions that are subscribed."""

    user_id: str
    sessions: int


class ChannelPresence(Struct, rename="camel"):
    """The users that are subscribed to a channel now.

    `connections` counts all subscribed connections. With more than 10,000 on a shard, more than 10,000 users or
    over 1 MiB of them `users` leaves some out, and `truncated` is true.
    """

    channel: str
    users: list[Member]
    connections: int
    truncated: bool


class Position(Struct):
    """The newest offset of a channel and the epoch that it counts in."""

    offset: int
    epoch: str


class Past(Struct, rename="camel"):
    """Events of a channel as subscribers got them; `next` is the `after` to go on with, None at the end."""

    channel: str
    events: list[Raw]
    position: Position
    next: int | None


class _Placed(Struct):
    """What is looked at of an event."""

    offset: int


_placed = msgspec.json.Decoder(_Placed).decode


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the routes of channels."""
    control = edge.control
    broadcaster, connections = control.broadcaster, control.connections

    @get("/api/presence/{channel:str}", tags=["Channels"], responses={200: ResponseSpec(ChannelPresence)})
    async def presence(request: Request[Any, Any, Any], channel: Channel) -> Response[bytes]:
        """Return who is subscribed to a channel now, on this node. Needs the right `presence`."""
        caller = await guard.caller(request)
        channel = guard.channel(caller, "presence", channel)
        counts: dict[str, int] = {}
        with guard.page(caller, _MEMBERS_ASSUMED) as page:
            found = await broadcaster.members_of(channel)
            turn, is_cut = Turn(), found.is_cut
            for conn in found.conns:
                session = connections.by_conn(conn)
                if session is not None and session.user:
                    if session.user in counts or len(counts) < _USERS_MAX:
                        counts[session.user] = counts.get(session.user, 0) + 1
                    else:
                        is_cut = True
                if turn.is_over():
                    await turn.give_way()
            users, size = list[Member](), 0
            for user, count in sorted(counts.items()):
                size += len(encode(user)) + _MEMBER_BYTES
                if size > PAGE_BYTES_MAX:
                    is_cut = True
                    break
                users.append(Member(user, count))
            answer = encode(ChannelPresence(channel, users, found.total, is_cut))
            page.bytes = len(answer)
        return _json(answer)

    @get("/api/channels/{channel:str}/history", tags=["Channels"], responses={200: ResponseSpec(Past)})
    async def history(
        request: Request[Any, Any, Any],
        channel: Channel,
        after: Annotated[
            int | None,
            QueryParameter(ge=0, le=_OFFSET_MAX, description="Offsets above this one; without, the last ones."),
        ] = None,
        epoch: Annotated[
            str | None,
            QueryParameter(description="Of the position that `after` is the offset of: 410 where it is none any more."),
        ] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=_LIMIT_MAX, description="At most this many.")] = 100,
    ) -> Response[bytes]:
        """Return events of a channel that keeps them, oldest first, at most 1 MiB. Needs the right `history`."""
        caller = await guard.caller(request)
        channel = guard.channel(caller, "history", channel)
        if epoch is not None and after is None:
            raise Refused("invalid_message", "epoch is given without after; give both or neither", path="after")
        with guard.page(caller, limit) as page:
            found = await broadcaster.history(channel, after=after, epoch=epoch, limit=limit, user=caller.user)
            page.bytes = sum(map(len, found.events))
        last = _placed(found.events[-1]).offset if found.events else found.offset
        position = Position(found.offset, found.epoch)
        return _json(encode(Past(channel, found.events, position, last if last < found.offset else None)))

    @delete("/api/channels/{channel:str}/users/{user:str}", tags=["Channels"])
    async def take_out(request: Request[Any, Any, Any], channel: Channel, user: User) -> None:
        """Take a user's subscriptions to a channel away. Needs a service key.

        The user's sessions get `unsubscribed` with the code `forbidden`, and lose what an `authorize` hook had granted
        them on the channel. Whoever is granted it by a token may subscribe again.
        """
        caller = await guard.service(request)
        connections.take_out(connections.by_user(user), guard.channel(caller, "subscribe", channel))

    return [presence, history, take_out]


def _json(content: bytes) -> Response[bytes]:
    return Response(content, media_type="application/json")
