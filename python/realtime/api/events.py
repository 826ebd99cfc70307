"""`POST /api/events`: what other systems tell, to everybody, a channel, a conversation or a user.

A batch is checked as a whole before anything of it is published, so that a refused one can be mended and sent again.
An event with an `id` is published once within `ONCE_WITHIN_S`: on a channel that keeps its events by the log, which
also knows it after a restart; elsewhere by a table of ours, which forgets the oldest first above
`api.hook_ids_bytes_max`. What is stored is stored before the answer.

Some types are volatile by nature (`VOLATILE`): on a channel that keeps its events they go to the members of the moment
and are stored nowhere. Types that answer commands or belong to the connection are the engine's alone.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler
from msgspec import Meta, Raw, Struct

from realtime.api.bodies import ArrayBody
from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.api.requests import request_id
from realtime.base.charges import Charges
from realtime.base.clock import Clock
from realtime.base.config import Settings
from realtime.base.errors import Refused
from realtime.base.messages import RESERVED_EVENTS
from realtime.base.recent import Recent, key_of
from realtime.base.steps import Turn
from realtime.control.broadcaster import Broadcaster
from realtime.control.forwarding import Forwarding
from realtime.control.publishing import Publishing
from realtime.identity.auth import NAME_PATTERN, OWN_CHANNELS, channel_named

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
BATCH_MAX: Final = 10_000
ONCE_WITHIN_S: Final = 600

VOLATILE: Final = frozenset(
    {
        "analytics_update",
        "cursor_moved",
        "file_processing_update",
        "message_read",
        "message_stream",
        "typing_indicator",
        "user_presence",
    }
)
"""Types that say how something is just now: never stored, whatever the channel keeps."""

_STATES: Final = {
    "cursor_moved": "userId",
    "file_processing_update": "fileId",
    "message_read": "userId",
    "typing_indicator": "userId",
    "user_presence": "userId",
}
"""Which member of the data says whose state it is: a newer one takes its place for readers that are slow."""

RESERVED: Final = (
    frozenset(RESERVED_EVENTS)
    - VOLATILE
    - {
        "conversation_updated",
        "message_deleted",
        "message_updated",
        "new_message",
    }
)
"""Types that the engine says of itself: a client would take them for its own."""


class HookEvent(Struct, rename="camel", gc=False):
    """An event, with exactly one of `conversationId`, `userId`, `channel` and `all`."""

    type: Annotated[str, Meta(pattern=rf"{NAME_PATTERN}(?!\n)")]
    data: Raw
    id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    conversation_id: str | int | None = None
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    channel: str | None = None
    all: bool = False


class Accepted(Struct, rename="camel"):
    """How many events were published, and how many had been before."""

    accepted: int
    duplicates: int


_NULL: Final = Raw(b"null")
_MISSING: Final = "Object missing required field `data`"
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_name = msgspec.json.Decoder(str | int).decode

EVENTS: Final[ArrayBody[HookEvent]] = ArrayBody(HookEvent, BATCH_MAX)


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the route of event hooks."""
    control = edge.control
    hooks = EventHooks(
        control.broadcaster, control.clock, edge.settings, control.ledger.of("hook_ids"), control.forwarding
    )

    @post(
        "/api/events",
        status_code=200,
        opt={"body": EVENTS},
        tags=["Events"],
        request_max_body_size=BODY_BYTES_MAX,
        responses={200: ResponseSpec(Accepted)},
    )
    async def post_events(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Publish an event, or an array of up to 10,000. Needs a service key.

        One bad event refuses all of them, with its path. With an `id` each is published once within 10 minutes.
        """
        await guard.service(request)
        events, is_array = await EVENTS.read(request, edge.settings.limits.publication_bytes_max)
        accepted = await hooks.publish(events, request_id(request), single=not is_array)
        return Response(msgspec.json.encode(accepted), media_type="application/json")

    return [post_events]


class EventHooks:
    """Publishes what other systems tell. For the loop's thread."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        clock: Clock,
        settings: Settings,
        ids: Charges,
        forwarding: Forwarding | None = None,
    ) -> None:
        self._broadcaster = broadcaster
        # With `api.url` the answer to a message and a hook may tell the same one: it knows what was published.
        self._forwarding = forwarding
        self._bytes_max = settings.limits.publication_bytes_max
        self._seen: Recent[bool] = Recent(clock, ONCE_WITHIN_S, ids)

    async def publish(self, events: Sequence[HookEvent], request: str, *, single: bool) -> Accepted:
        """Check all events, publish them in their order, and return when what is stored is stored.

        Args:
            events: at most `BATCH_MAX`.
            request: the id of the request, for the events.
            single: whether there was no array around it, for the paths in errors.

        Raises:
            Refused: an event cannot be published; none was.
            PublishFailed: one was not stored; others may be. Sent again with their ids, each is published once.
        """
        turn = Turn()
        channels: list[str | None] = []
        for index, event in enumerate(events):
            channels.append(self._checked(event, None if single else index))
            if turn.is_over():
                await turn.give_way()
        await self._broadcaster.room()
        under_way: list[tuple[Publishing, bool]] = []
        duplicates = 0
        for event, channel in zip(events, channels, strict=True):
            if turn.is_over():
                await turn.give_way()
                await self._broadcaster.room()
            if channel is not None and event.type not in VOLATILE and self._broadcaster.is_durable(channel):
                publishing, again = self._stored(event, channel, request)
                publishing.expect()
                under_way.append((publishing, again))
            elif self._is_new(event, channel):
                self._told(event, channel, request)
            else:
                duplicates += 1
        # The last one first: once it is stored the others are as a rule, and nothing is waited for any more.
        for publishing, again in reversed(under_way):
            publication = await publishing
            duplicates += again or (publication is not None and publication.duplicate)
        return Accepted(len(events) - duplicates, duplicates)

    def _checked(self, event: HookEvent, place: int | None) -> str | None:
        """Return the channel of an event; None where it goes to a user or to everybody.

        Args:
            event: one of the batch.
            place: its place in the array; None where there was none.

        Raises:
            Refused: names what is wrong with it and where.
        """
        if event.type in RESERVED:
            raise Refused("forbidden", f"type {event.type!r} is the engine's own", path=_path(place, "type"))
        if event.data == _NULL:
            # As msgspec says it of one that is not there.
            raise Refused(
                "invalid_message",
                _MISSING + ("" if place is None else f" - at `$[{place}]`"),
                path=_path(place, "data"),
            )
        size = len(event.data)
        if size > self._bytes_max:
            detail = f"{size} bytes exceed limits.publication_bytes_max={self._bytes_max}"
            raise Refused("too_large", detail, path=_path(place, "data"))
        conversation, user, channel = event.conversation_id, event.user_id, event.channel
        if (conversation is not None) + (user is not None) + (channel is not None) + event.all != 1:
            raise Refused(
                "invalid_message",
                "name exactly one of conversationId, userId, channel and all",
                path=None if place is None else f"[{place}]",
            )
        if conversation is not None:
            if event.type == "new_message" and not bytes(event.data).startswith(b"{"):
                raise Refused("invalid_message", "a message is an object", path=_path(place, "data"))
            channel = f"conversation:{conversation}"
        if channel is not None:
            member = "channel" if conversation is None else "conversationId"
            if channel.startswith(OWN_CHANNELS):
                raise Refused("forbidden", "the server's own channel", path=_path(place, member))
            if conversation == "":
                raise Refused("invalid_message", "a conversation's id is not empty", path=_path(place, member))
            try:
                channel = channel_named(channel)
            except ValueError as error:
                raise Refused("invalid_message", str(error), path=_path(place, member)) from error
        return channel

    def _stored(self, event: HookEvent, channel: str, request: str) -> tuple[Publishing, bool]:
        """Publish an event that is kept; also tells whether it had been published before, as far as we know."""
        is_message = event.conversation_id is not None and event.type == "new_message"
        if is_message and self._forwarding is not None:
            members = _members(event.data)
            conversation_id = str(event.conversation_id)
            return self._forwarding.publish_once(
                conversation_id, members, user=None, dedupe=event.id, request_id=request
            )
        # The log knows the id for as long as it has the event, and for `log.dedupe_s`.
        publishing = self._broadcaster.publish(
            channel,
            event.type,
            event.data,
            dedupe=event.id,
            # One that the sender gave it stays what it is.
            number=is_message and "number" not in _members(event.data),
            request=request,
        )
        return publishing, False

    def _is_new(self, event: HookEvent, channel: str | None) -> bool:
        if event.id is None:
            return True
        key = key_of(channel, event.user_id, event.id)
        if self._seen.get(key):
            return False
        self._seen.put(key, value=True)
        return True

    def _told(self, event: HookEvent, channel: str | None, request: str) -> None:
        broadcaster, key = self._broadcaster, _state_key(event)
        if channel is not None:
            if broadcaster.is_durable(channel):
                broadcaster.to_members(channel, event.type, event.data, request=request, key=key)
            else:
                _ = broadcaster.publish(channel, event.type, event.data, request=request, key=key)
        elif event.user_id is not None:
            broadcaster.to_user(event.user_id, event.type, event.data, request=request, key=key)
        else:
            broadcaster.to_all(event.type, event.data, request=request, key=key)


def _state_key(event: HookEvent) -> str | None:
    """Return whose state an event tells; None for one that is no state, or does not say whose."""
    member = _STATES.get(event.type)
    if member is None or not bytes(event.data).startswith(b"{"):
        return None
    whose = _members(event.data).get(member)
    if whose is None:
        return None
    try:
        return str(_name(whose))
    except msgspec.ValidationError:
        return None


def _path(place: int | None, member: str) -> str:
    return member if place is None else f"[{place}].{member}"
