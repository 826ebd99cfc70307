"""Messages of a conversation: `send_message` stores one, and its `new_message` goes to all subscribers.

The handler checks, builds the message and returns the publish without awaiting it: the engine stores it, splices its
`number` in, publishes it and then acknowledges the command with the stored message. The same `clientMessageId` of the
same user is stored once and acknowledged again with the first result. Where `api.url` is set another handler, which
waits for that API, takes its place; this one stays plain, so that it costs no task. Called by `Conversations`.
"""

from decimal import Decimal
from typing import Annotated, Any, Final

from msgspec import Meta, Raw, Struct

from realtime import Publishing, Realtime, Refused, Session
from realtime.base.messages import INVALID
from realtime.control.upstream import FAILED, Outgoing
from realtime.conversations.archive import compose, post

REQUIRED: Final = "ConversationId and content are required"
_PLAIN_MIN: Final = 1e-6
_PLAIN_END: Final = 1e21


class SendMessage(Struct, rename="camel", gc=False):
    """The data of `send_message`. What must be there is optional here: the protocol names it in its own words."""

    conversation_id: str | int | float | None = None
    content: str | None = None
    metadata: dict[str, Raw] | None = None
    client_message_id: Annotated[str, Meta(max_length=64)] | None = None


class Messages:
    """The family of `send_message`.

    Args:
        app: what it registers on and publishes through.
        forwards: whether messages go to the API of `api.url` instead of being numbered here.
    """

    def __init__(self, app: Realtime, *, forwards: bool) -> None:
        self._app = app
        self._forwards = forwards

    def register(self) -> None:
        """Declare the command, with the right that it needs also where everybody has it."""
        handler = self.forward if self._forwards else self.send
        self._app.on(
            "send_message",
            right="publish",
            channel="conversation:{data.conversationId}",
            failure=FAILED,
            missing=REQUIRED,
        )(handler)

    def send(self, session: Session, message: SendMessage) -> Publishing:
        """Store a message; the engine answers when it is committed.

        Raises:
            Refused: a field is missing or wrong.
            PublishFailed: the message is too large; the command is answered with `FAILED`.
        """
        conversation_id, content = _required(message)
        app = self._app
        stored = compose(
            app.clock,
            conversation_id=conversation_id,
            user=session.user,
            content=content,
            metadata=_metadata(message),
            client_message_id=message.client_message_id,
        )
        try:
            return post(app.broadcaster, stored)
        except ValueError as error:
            raise Refused("invalid_message", INVALID, path="data.conversationId") from error

    async def forward(self, session: Session, message: SendMessage) -> Raw:
        """Send a message to the API of `api.url` and return what was stored of its answer.

        Raises:
            Refused: a field is missing or wrong, or the API did not take it.
            PublishFailed: it took it, and our log did not; the command is answered with `FAILED`.
        """
        conversation_id, content = _required(message)
        return await self._app.forwarding.send(
            conversation_id,
            Outgoing(content, "user", _metadata(message)),
            user=session.user,
            token=self._app.connections.token_of(session),
            client_message_id=message.client_message_id or None,
        )


def _required(message: SendMessage) -> tuple[str, str]:
    """Return the conversation and the content.

    Raises:
        Refused: one of them is missing.
    """
    conversation_id = _id(message.conversation_id)
    if not conversation_id or not message.content:
        raise Refused("invalid_message", REQUIRED)
    return conversation_id, message.content


def _metadata(message: SendMessage) -> dict[str, Any]:
    return {**(message.metadata or {}), "source": "websocket"}


def _id(conversation_id: str | float | None) -> str | None:
    """Return an id as text; a number as the decimal text that JavaScript makes of it.

    The engine reads numbers by the same rule where it looks at the sender's right, so that both name one channel.

    Raises:
        Refused: a number that JavaScript would write with an exponent.
    """
    if conversation_id is None or isinstance(conversation_id, str):
        return conversation_id
    if conversation_id == 0:
        return "0"
    if not _PLAIN_MIN <= abs(conversation_id) < _PLAIN_END:
        raise Refused("invalid_message", INVALID, path="data.conversationId")
    return format(Decimal(repr(conversation_id)), "f").removesuffix(".0")
