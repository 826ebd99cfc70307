"""Messages of a conversation where `api.url` names who numbers them: out to that API, and its answer back to everybody.

The answer is published as it came, as `new_message` on the conversation, whose log gives it an offset as to any other
event. Two members are added where the answer has none: `number`, the offset (an API's own `number` stays what it is,
payload), and `clientMessageId`, by which the sender knows its message again. The command is acknowledged once that is
stored. With `api.broadcast = hook` the API tells what it stored by `POST /api/events`, so nothing is published here.

The same message may be told twice: by the answer and by a hook, by a hook that is repeated, or because a client sends
again what it was not answered. By `id` it is published once within 10 minutes, whoever tells it; by `clientMessageId`
it is sent once within that time, unless it failed. What is remembered for that is bounded in bytes, for each user and
in all: of what was published the offset, of what was sent the answer. Beyond the bound the oldest is forgotten sooner;
the API then knows a repeat by its `Idempotency-Key`, and the log by its `clientMessageId`.

Made by `control`; called by the handler of `send_message` and by the HTTP routes, on the loop's thread.
"""

import asyncio
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw, Struct

from realtime.base.charges import Charges
from realtime.base.clock import Clock
from realtime.base.errors import Refused
from realtime.base.messages import INVALID, encode, new_id
from realtime.base.recent import Recent, key_of
from realtime.control.broadcaster import Broadcaster
from realtime.control.publishing import Publication, Publishing
from realtime.control.upstream import Outgoing, Upstream, UpstreamFailed, idempotency_key
from realtime.identity.auth import is_channel

ONCE_WITHIN_S: Final = 600
_ANSWER_BYTES: Final = 512
"""What a remembered answer takes beside its text: the future and its key; 400 were measured."""


class Forwarding:
    """Sends messages to an API and publishes what it says of them.

    Args:
        upstream: the API.
        broadcaster: publishes.
        clock: tells how long ago something was.
        ids: bounds what is known of published messages.
        answers: bounds the answers that are remembered.
    """

    def __init__(
        self, upstream: Upstream, broadcaster: Broadcaster, clock: Clock, ids: Charges, answers: Charges
    ) -> None:
        self._upstream = upstream
        self._broadcaster = broadcaster
        self._clock = clock
        self._published: Recent[Publishing] = Recent(clock, ONCE_WITHIN_S, ids)
        self._sent: Recent[asyncio.Future[Raw]] = Recent(clock, ONCE_WITHIN_S, answers)

    async def close(self) -> None:
        """Let the connections to the API go."""
        await self._upstream.close()

    async def send(
        self,
        conversation_id: str,
        message: Outgoing,
        *,
        user: str,
        token: str | None = None,
        client_message_id: str | None = None,
        request_id: str | None = None,
    ) -> Raw:
        """Send a message and return its JSON as it is stored; without `api.broadcast = response`, as it was answered.

        Args:
            conversation_id: as it stands in the channel's name.
            message: what was said.
            user: who said it.
            token: the caller's own, where it has one.
            client_message_id: the same for each try of one message of this user.
            request_id: for the logs of both sides; None makes one.

        Raises:
            Refused: `upstream_failed`; or `invalid_message`, for an id that the API cannot be asked by.
            PublishFailed: the API has taken the message, our log has not.
        """
        if not is_channel(f"conversation:{conversation_id}"):
            raise Refused("invalid_message", INVALID, path="data.conversationId")
        request_id = request_id or new_id(self._clock.now_ms())
        ask = partial(self._upstream.post, conversation_id, message, user=user, token=token, request_id=request_id)
        if client_message_id is None:
            answer = await ask(idempotency_key=new_id(self._clock.now_ms()))
            return await self._stored(conversation_id, answer, user, None, request_id)
        key = idempotency_key(user, conversation_id, client_message_id)
        before = self._sent.get(key)
        if before is not None:
            return await asyncio.shield(before)
        outcome: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._sent.put(key, outcome, user=user, size=_ANSWER_BYTES)
        try:
            answer = await ask(idempotency_key=key)
            stored = await self._stored(conversation_id, answer, user, client_message_id, request_id)
        except BaseException as error:
            self._sent.discard(key, outcome)
            outcome.set_exception(error if isinstance(error, Exception) else UpstreamFailed("cut off"))
            # Looked at, so that nobody complains where only this caller waited.
            outcome.exception()
            raise
        outcome.set_result(stored)
        self._sent.grow(key, outcome, len(stored))
        return stored

    def publish_once(
        self,
        conversation_id: str,
        message: dict[str, Raw],
        *,
        user: str | None,
        dedupe: str | None = None,
        request_id: str | None = None,
    ) -> tuple[Publishing, bool]:
        """Publish a `new_message` unless one with its `id` was published within 10 minutes.

        Args:
            conversation_id: as it stands in the channel's name.
            message: its members as JSON; without an `id` it is always a new one.
            user: becomes the event's `userId`.
            dedupe: as of `Broadcaster.publish`.
            request_id: what it goes back to.

        Returns:
            The publish, which may be the earlier one, and whether it is that.

        Raises:
            PublishFailed, ValueError: as `Broadcaster.publish`.
        """
        identifier = message.get("id")
        key = None if identifier is None else _id_key(conversation_id, identifier)
        if key is not None:
            before = self._published.get(key)
            if before is not None and not before.is_failed:
                return before, True
        publishing = self._broadcaster.publish(
            f"conversation:{conversation_id}",
            "new_message",
            encode(message),
            user=user,
            dedupe=dedupe,
            number="number" not in message,
            request=request_id,
        )
        if key is not None:
            self._published.put(key, publishing, user=user)
            publishing.notify(partial(self._keep_offset, key, publishing))
        return publishing, False

    def _keep_offset(self, key: bytes, publishing: Publishing) -> None:
        """Keep of a message that is stored where it is: its data may be a thousand times as large."""
        if publishing.is_failed:
            self._published.discard(key, publishing)
        elif (publication := publishing.publication) is not None:
            self._published.replace(key, publishing, publishing.settled_as(_placed(publication)))

    async def _stored(
        self,
        conversation_id: str,
        answer: dict[str, Raw] | None,
        user: str,
        client_message_id: str | None,
        request_id: str,
    ) -> Raw:
        if answer is not None and client_message_id is not None:
            answer.setdefault("clientMessageId", Raw(encode(client_message_id)))
        if answer is None or not self._upstream.broadcasts:
            return Raw(encode(answer))
        publishing, again = self.publish_once(
            conversation_id, answer, user=user, dedupe=client_message_id, request_id=request_id
        )
        publication = await publishing
        if publication is None:
            return Raw(encode(answer))
        if again:
            return await self._read(publication) or Raw(encode(answer))
        return publication.data

    async def _read(self, publication: Publication) -> Raw | None:
        """Return what a message says that was published before; None where it is kept no longer, or not readable."""
        try:
            found = await self._broadcaster.history(publication.channel, after=publication.offset - 1, limit=1)
        except Refused:
            return None
        frame = _frame(found.events[0]) if found.events else None
        return frame.data if frame is not None and frame.offset == publication.offset else None


class _Frame(Struct):
    """What is looked at of a stored event."""

    offset: int
    data: Raw


_frame: Final = msgspec.json.Decoder(_Frame).decode


def _id_key(conversation_id: str, identifier: Raw) -> bytes:
    """Return what a message is known by; an API may give an id as a text or as a number."""
    return key_of(conversation_id, str(msgspec.json.decode(identifier)))


def _placed(publication: Publication) -> Publication:
    """Return a publication that says of its data no more than its number."""
    number = Raw(b'{"number":%d}' % publication.offset)
    return Publication(publication.channel, publication.offset, number, duplicate=True)
