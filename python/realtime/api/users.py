"""`/api/users/{id}/sessions`: the open sessions of a user, listed and closed."""

from typing import Any

from litestar import Request, Response, delete, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.api.paths import User
from realtime.base.codes import CloseCode
from realtime.base.errors import Refused
from realtime.base.messages import encode
from realtime.base.steps import Turn
from realtime.control.broadcaster import PAGE_BYTES_MAX


class UserSession(Struct, rename="camel"):
    """An open session: its id and the path that it came in by."""

    session_id: str
    path: str


class Sessions(Struct, rename="camel"):
    """The open sessions of a user, in the order they opened.

    With over 1 MiB of them `items` leaves the newest out, and `truncated` is true.
    """

    user_id: str
    items: list[UserSession]
    truncated: bool


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the routes of users."""
    connections = edge.control.connections
    endpoints = edge.control.rules.endpoints

    async def own_or_service(request: Request[Any, Any, Any], user: str) -> None:
        caller = await guard.caller(request)
        if not caller.is_service and caller.user != user:
            raise Refused("forbidden", "another user's sessions need a service key")

    @get("/api/users/{user:str}/sessions", tags=["Users"], responses={200: ResponseSpec(Sessions)})
    async def sessions(request: Request[Any, Any, Any], user: User) -> Response[bytes]:
        """Return the open sessions of a user on this node. For the user, and for services."""
        await own_or_service(request, user)
        items, size, is_cut, turn = list[UserSession](), 0, False, Turn()
        for session in connections.by_user(user):
            item = UserSession(session.id, endpoints[session.endpoint].path)
            size += len(encode(item)) + 1
            if size > PAGE_BYTES_MAX:
                is_cut = True
                break
            items.append(item)
            if turn.is_over():
                await turn.give_way()
        return Response(encode(Sessions(user, items, is_cut)), media_type="application/json")

    @delete("/api/users/{user:str}/sessions", tags=["Users"])
    async def close_sessions(request: Request[Any, Any, Any], user: User) -> None:
        """Close the sessions of a user, who is told not to come back. For the user, and for services.

        Tokens that were issued before now are refused from now on, the caller's own too.
        """
        await own_or_service(request, user)
        await edge.control.identities.revoke(user=user)
        # Those whose token is of this very second are not revoked, but end all the same.
        for session in connections.by_user(user):
            session.close(CloseCode.REMOVED, "removed by the operator")

    return [sessions, close_sessions]
