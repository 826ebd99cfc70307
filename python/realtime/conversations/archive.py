"""What was said: messages of a conversation composed, stored, read page by page, changed and erased.

The one place for it, called by the socket's `send_message` (`messages`) and by the HTTP routes (`api`). A conversation
is the durable channel `conversation:{id}`; a message is the data of a `new_message` event, and its `number` is that
event's offset. A change is an event of its own (`message_updated`, `message_deleted`) that replaces the data of the
message's event in the log, so whoever reads the past finds what holds now, and what was deleted is nowhere.

Invariant: changes of one message come one after the other, each on top of the one before. They are serialised here,
since all of a conversation's changes pass through this process.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from realtime.base.clock import Clock
from realtime.base.errors import Refused
from realtime.base.messages import encode, new_id
from realtime.control.broadcaster import PAGE_BYTES_MAX, Broadcaster
from realtime.control.publishing import Publication, Publishing

PAGE_MAX: Final = 1000
_READS_MAX: Final = 8
"""Pages of the log that one page of messages may take: a long run of other events ends it early."""
_MESSAGE: Final = "new_message"
_LEFT: Final = frozenset({"id", "number", "conversationId", "deletedAt"})
"""The members of a message that was deleted."""
_GONE: Final = "There is no such message"


class Message(Struct, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """A message as it is stored; the engine adds `number`."""

    id: str
    conversation_id: str
    user_id: str
    role: str
    content: str
    metadata: dict[str, Any]
    client_message_id: str | None = None
    created_at: str


class MessagePage(Struct, rename="camel"):
    """Messages in the order of their numbers; `next` is the number to go on from, None at the end."""

    items: list[Raw]
    next: int | None


class _Frame(Struct, rename="camel"):
    """What is looked at of a stored event."""

    type: str
    offset: int
    data: Raw
    user_id: str | None = None


_frame = msgspec.json.Decoder(_Frame).decode
_members = msgspec.json.Decoder(dict[str, Raw]).decode


def channel_of(conversation_id: str) -> str:
    """Return the channel of a conversation."""
    return f"conversation:{conversation_id}"


def compose(
    clock: Clock,
    *,
    conversation_id: str,
    user: str,
    content: str,
    metadata: dict[str, Any],
    role: str = "user",
    client_message_id: str | None = None,
) -> Message:
    """Return a new message, with an id and the time of its own."""
    return Message(
        id=new_id(clock.now_ms()),
        conversation_id=conversation_id,
        user_id=user,
        role=role,
        content=content,
        metadata=metadata,
        client_message_id=client_message_id or None,
        created_at=clock.timestamp(),
    )


def post(broadcaster: Broadcaster, message: Message, *, request: str | None = None) -> Publishing:
    """Store a message and tell its conversation; the same `client_message_id` of the same user is stored once.

    Raises:
        PublishFailed: `too_large`, before anything is sent.
        ValueError: the conversation's id is no part of a channel's name.
    """
    channel, dedupe = channel_of(message.conversation_id), message.client_message_id
    return broadcaster.put(channel, _MESSAGE, message, message.user_id, None, dedupe, True, request, None, None, False)


class Archive:
    """The messages of all conversations, by number. For the loop's thread."""

    def __init__(self, broadcaster: Broadcaster, clock: Clock) -> None:
        self._broadcaster = broadcaster
        self._clock = clock
        self._changing: dict[tuple[str, int], tuple[asyncio.Lock, int]] = {}

    async def page(self, conversation_id: str, *, after: int, limit: int, user: str | None = None) -> MessagePage:
        """Return messages with a higher number, oldest first, as they are now.

        Changes and other events have numbers too and are passed over, so a page may hold fewer than `limit`, or none,
        and yet not be the last.

        Args:
            conversation_id: which conversation; one that nobody wrote in has no messages.
            after: numbers above this one; 0 for all.
            limit: at most this many, 1 to `PAGE_MAX`; a page has at most 1 MiB, but one message at least.
            user: who asks; users take turns where the log has to read.

        Raises:
            Refused: `unavailable`, where the log cannot be read; `overloaded`, where too many pages wait to be read.
            ValueError: not a conversation's id.
        """
        items: list[Raw] = []
        size = 0
        for _ in range(_READS_MAX):
            found = await self._broadcaster.history(channel_of(conversation_id), after=after, limit=PAGE_MAX, user=user)
            for event in found.events:
                frame = _frame(event)
                if _is_message(frame):
                    size += len(frame.data)
                    if items and size > PAGE_BYTES_MAX:
                        return MessagePage(items, after)
                    items.append(_numbered(frame))
                after = frame.offset
                if len(items) == limit:
                    return MessagePage(items, after if after < found.offset else None)
            if not found.events or after >= found.offset:
                return MessagePage(items, None)
        return MessagePage(items, after)

    async def edit(
        self,
        conversation_id: str,
        number: int,
        *,
        content: str | None,
        metadata: dict[str, Raw] | None,
        by: str | None,
        request: str | None = None,
    ) -> Raw:
        """Change a message and tell its conversation; return the whole of it as it is now.

        Args:
            conversation_id: which conversation.
            number: of the message.
            content: what it says now; None leaves it.
            metadata: takes the place of what there was; None leaves it.
            by: who must have written it; None for a service, which may change any.
            request: the id of the request, for the event.

        Raises:
            Refused: `not_found`, `forbidden` for somebody else's, `unavailable`.
            PublishFailed: it was not stored.
        """
        async with self._alone(conversation_id, number):
            frame = await self._message(conversation_id, number, by)
            if _is_deleted(frame):
                raise Refused("not_found", _GONE)
            members = _members(_numbered(frame))
            if content is not None:
                members["content"] = Raw(encode(content))
            if metadata is not None:
                members["metadata"] = Raw(encode(metadata))
            members["updatedAt"] = Raw(encode(self._clock.timestamp()))
            changed = encode(members)
            await self._amend(frame, conversation_id, "message_updated", changed, by=by, request=request)
            return Raw(changed)

    async def delete(self, conversation_id: str, number: int, *, by: str | None, request: str | None = None) -> None:
        """Erase what a message said and tell its conversation; the number stays. A second time nothing happens.

        Arguments and errors as for `edit`.
        """
        async with self._alone(conversation_id, number):
            frame = await self._message(conversation_id, number, by)
            if _is_deleted(frame):
                return
            kept = {
                "id": _members(frame.data).get("id"),
                "number": number,
                "conversationId": conversation_id,
                "deletedAt": self._clock.timestamp(),
            }
            await self._amend(
                frame, conversation_id, "message_deleted", encode(kept), by=by, request=request, erases=True
            )

    async def update(
        self, conversation_id: str, changes: dict[str, Raw], *, user: str | None, request: str | None = None
    ) -> Raw:
        """Store that a conversation changed and tell its members; return the changes as stored.

        Raises:
            PublishFailed: it was not stored.
            ValueError: not a conversation's id.
        """
        stored = encode({**changes, "conversationId": conversation_id})
        channel = channel_of(conversation_id)
        await self._broadcaster.publish(channel, "conversation_updated", stored, user=user, request=request)
        return Raw(stored)

    async def _message(self, conversation_id: str, number: int, by: str | None) -> _Frame:
        found = await self._broadcaster.history(channel_of(conversation_id), after=number - 1, limit=1, user=by)
        frame = _frame(found.events[0]) if found.events else None
        if frame is None or frame.offset != number or not _is_message(frame):
            raise Refused("not_found", _GONE)
        if by is not None and frame.user_id != by:
            raise Refused("forbidden", "Only its author may change a message")
        return frame

    async def _amend(
        self,
        message: _Frame,
        conversation_id: str,
        event: str,
        data: bytes,
        *,
        by: str | None,
        request: str | None,
        erases: bool = False,
    ) -> Publication | None:
        return await self._broadcaster.publish(
            channel_of(conversation_id),
            event,
            data,
            user=by,
            request=request,
            amends=message.offset,
            replacement=data,
            erases=erases,
        )

    @asynccontextmanager
    async def _alone(self, conversation_id: str, number: int) -> AsyncIterator[None]:
        """Let one change of a message at a time through, in the order they came."""
        key = (conversation_id, number)
        lock, users = self._changing.get(key) or (asyncio.Lock(), 0)
        self._changing[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._changing[key]
            if users == 1:
                del self._changing[key]
            else:
                self._changing[key] = (lock, users - 1)


def _is_message(frame: _Frame) -> bool:
    # An app may publish whatever it likes under the name; without members there is nothing to number or to change.
    return frame.type == _MESSAGE and bytes(frame.data).startswith(b"{")


def _is_deleted(frame: _Frame) -> bool:
    # By all that is left: what others tell of a message may have a `deletedAt` of its own, and must be erasable.
    members = _members(frame.data)
    return "deletedAt" in members and members.keys() <= _LEFT


def _numbered(frame: _Frame) -> Raw:
    """Return the message with its place in the conversation as `number`; the engine has put it there as a rule."""
    members = _members(frame.data)
    number = Raw(b"%d" % frame.offset)
    if members.get("number") == number:
        return frame.data
    return Raw(encode({**members, "number": number}))
