"""`POST /api/tickets`: what opens one connection within a minute, so that a long-lived token stays out of addresses."""

from typing import Any

from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.types import ControllerRouterHandler

from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.base.messages import encode
from realtime.identity import Ticket


def routes(edge: Edge, guard: Guard) -> list[ControllerRouterHandler]:
    """Return the route of tickets."""
    identities = edge.control.identities

    @post("/api/tickets", tags=["Users"], responses={201: ResponseSpec(Ticket)})
    async def ticket(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return a ticket for the user who asks: `GET /ws?ticket=…` once, within a minute, with the same rights."""
        issued = identities.issue_ticket(await guard.user(request))
        return Response(encode(issued), status_code=201, media_type="application/json")

    return [ticket]
