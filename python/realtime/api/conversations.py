"""`/api/conversations`: messages posted, read page by page, changed and deleted; a conversation changed.

Each change is a durable event of the conversation, so whoever is subscribed hears of it, and is stored when the answer
says so. What it means is in `realtime.conversations.archive`; here is who may, and what a request looks like.
"""

from typing import Annotated, Any, Final

from litestar import Request, Response, delete, get, patch, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import PathParameter, QueryParameter
from litestar.types import ControllerRouterHandler
from msgspec import Meta, Raw, Struct

from realtime.api.bodies import Body
from realtime.api.edge import Edge
from realtime.api.guards import Caller, Guard, shown_by
from realtime.api.requests import request_id
from realtime.base.errors import Refused
from realtime.base.messages import encode
from realtime.control.upstream import Outgoing
from realtime.conversations import archive as conversations
from realtime.conversations.archive import PAGE_MAX, MessagePage

_NUMBER_MAX: Final = 2**53
_PATH: Final = "/api/conversations/{conversation_id:str}"
_MEMBERS_MAX: Final = 100

Id = Annotated[str, PathParameter(description="The conversation's id: what follows `conversation:` in its channel.")]
Number = Annotated[int, PathParameter(ge=1, le=_NUMBER_MAX, description="The message's number in its conversation.")]
Metadata = Annotated[dict[str, Raw], Meta(max_length=_MEMBERS_MAX)]


class NewMessage(Struct, rename="camel"):
    """A message to post.

    `role` other than `user` needs a service key, or a token that grants `publish` on `role:{role}`. `userId` says who
    speaks where a service posts. The same `clientMessageId` of the same user is stored once.
    """

    content: Annotated[str, Meta(min_length=1)]
    role: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$(?!\n)")] = "user"
    metadata: Metadata | None = None
    client_message_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    user_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class Change(Struct):
    """What becomes of a message; what is left out stays."""

    content: Annotated[str, Meta(min_length=1)] | None = None
    metadata: Metadata | None = None


class StoredMessage(Struct, rename="camel", kw_only=True):
    """A message as it stands in its conversation.

    Of a deleted one `id`, `number`, `conversationId` and `deletedAt` are left; of one that retention has
    deleted `id` and `number`.
    """

    id: str
    number: int
    conversation_id: str | None = None
    user_id: str | None = None
    role: str | None = None
    content: str | None = None
    metadata: dict[str, Any] | None = None
    client_message_id: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    deleted_at: str | None = None


class RepeatedMessage(Struct, rename="camel"):
    """A message that was sent before: all its members while it is stored, then these alone."""

    number: int
    id: str | None = None


NEW: Final[Body[NewMessage]] = Body(NewMessage)
CHANGE: Final[Body[Change]] = Body(Change)
UPDATE: Final[Body[dict[str, Raw]]] = Body(Annotated[dict[str, Raw], Meta(min_length=1, max_length=_MEMBERS_MAX)])


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the routes of conversations."""
    control, archive = edge.control, edge.archive
    broadcaster = control.broadcaster

    async def entered(request: Request[Any, Any, Any], right: str, conversation_id: str) -> Caller:
        """Return the caller, who has the right on a conversation that there can be."""
        caller = await guard.caller(request)
        channel = guard.channel(caller, right, conversations.channel_of(conversation_id), "conversationId")
        if not broadcaster.is_durable(channel):
            raise Refused("not_found", "this server keeps no conversations")
        return caller

    @post(
        f"{_PATH}/messages",
        opt={"body": NEW},
        tags=["Conversations"],
        responses={
            201: ResponseSpec(StoredMessage, description="Stored, and told to whoever is subscribed."),
            200: ResponseSpec(RepeatedMessage, description="Stored before under this `clientMessageId`."),
        },
    )
    async def post_message(request: Request[Any, Any, Any], conversation_id: Id) -> Response[bytes]:
        """Post a message. Needs the right `publish`. With `api.url` it goes there, and its answer is what is stored."""
        caller = await entered(request, "publish", conversation_id)
        new = await NEW.read(request)
        metadata: dict[str, Any] = dict(new.metadata or {})
        if not guard.may_speak_as(caller, new.role):
            raise Refused("forbidden", f"role {new.role!r} needs a service key or a grant", path="role")
        user, metadata = _speaker(caller, new), {"source": "http", **metadata}
        if control.forwarding is not None:
            stored = await control.forwarding.send(
                conversation_id,
                Outgoing(new.content, new.role, metadata),
                user=user,
                token=None if caller.is_service else shown_by(request),
                client_message_id=new.client_message_id,
                request_id=request_id(request),
            )
            return _json(stored, 201)
        message = conversations.compose(
            control.clock,
            conversation_id=conversation_id,
            user=user,
            role=new.role,
            content=new.content,
            metadata=metadata,
            client_message_id=new.client_message_id,
        )
        publication = await conversations.post(broadcaster, message, request=request_id(request))
        if publication is None:
            raise Refused("unavailable", "the message was not stored")
        return _json(publication.data, 200 if publication.duplicate else 201)

    @get(f"{_PATH}/messages", tags=["Conversations"], responses={200: ResponseSpec(MessagePage)})
    async def list_messages(
        request: Request[Any, Any, Any],
        conversation_id: Id,
        after: Annotated[int, QueryParameter(ge=0, le=_NUMBER_MAX, description="Numbers above this one.")] = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_MAX, description="At most this many.")] = 100,
    ) -> Response[bytes]:
        """Return messages in the order of their numbers, as they are now. Needs the right `history`.

        `next` is the `after` to go on with, null at the end. A page may be short, or empty, and yet not be the last.
        """
        caller = await entered(request, "history", conversation_id)
        with guard.page(caller, limit) as page:
            answer = encode(await archive.page(conversation_id, after=after, limit=limit, user=caller.user))
            page.bytes = len(answer)
        return _json(answer)

    @patch(
        f"{_PATH}/messages/{{number:int}}",
        opt={"body": CHANGE},
        tags=["Conversations"],
        responses={200: ResponseSpec(StoredMessage)},
    )
    async def change_message(request: Request[Any, Any, Any], conversation_id: Id, number: Number) -> Response[bytes]:
        """Change a message: its author may, and a service. Subscribers get `message_updated` with the whole of it."""
        caller = await entered(request, "publish", conversation_id)
        change = await CHANGE.read(request)
        if change.content is None and change.metadata is None:
            raise Refused("invalid_message", "nothing to change: send content, metadata or both")
        changed = await archive.edit(
            conversation_id,
            number,
            content=change.content,
            metadata=change.metadata,
            by=caller.user,
            request=request_id(request),
        )
        return _json(changed)

    @delete(f"{_PATH}/messages/{{number:int}}", tags=["Conversations"])
    async def delete_message(request: Request[Any, Any, Any], conversation_id: Id, number: Number) -> None:
        """Delete a message: its author may, and a service. What it said is erased; a second time is no error."""
        caller = await entered(request, "publish", conversation_id)
        await archive.delete(conversation_id, number, by=caller.user, request=request_id(request))

    @patch(_PATH, opt={"body": UPDATE}, tags=["Conversations"], responses={200: ResponseSpec(dict[str, Any])})
    async def change_conversation(request: Request[Any, Any, Any], conversation_id: Id) -> Response[bytes]:
        """Tell that a conversation changed: its members get what was sent as `conversation_updated`.

        Needs a service key, or the right `publish`. Nothing is kept of a conversation but its events.
        """
        caller = await entered(request, "publish", conversation_id)
        changes = await UPDATE.read(request)
        stored = await archive.update(conversation_id, changes, user=caller.user, request=request_id(request))
        return _json(stored)

    return [post_message, list_messages, change_message, delete_message, change_conversation]


def _speaker(caller: Caller, new: NewMessage) -> str:
    """Return whose message it is: the user's own, or whom a service names."""
    if caller.user is None:
        if new.user_id is None:
            raise Refused("forbidden", "a service key names no user; send userId", path="userId")
        return new.user_id
    if new.user_id not in (None, caller.user):
        raise Refused("forbidden", "only a service may speak for somebody else", path="userId")
    return caller.user


def _json(content: bytes | Raw, status: int = 200) -> Response[bytes]:
    return Response(bytes(content), status_code=status, media_type="application/json")
