"""The HTTP application: which families of routes there are, and what holds for all of them.

Everything it knows of the edge comes in as `Edge`. A family is a file that makes its routes over it. What goes wrong is
answered by `problems`, what holds for each request is in `requests`. Where `auth.origins` is set pages of those origins
may call the API (CORS), otherwise those of none.
"""

from typing import Any

import msgspec
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException
from litestar.types import ControllerRouterHandler

from realtime.api import (
    channels,
    conversations,
    dev,
    documents,
    events,
    health,
    metrics,
    paths,
    playground,
    problems,
    tickets,
    users,
)
from realtime.api.edge import Edge
from realtime.api.guards import Guard
from realtime.errors import Refused

BODY_BYTES_MAX = 1024 * 1024


class Routes(Litestar):
    """The routes; a percent-encoded slash in a path is part of its segment."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            scope = {**scope, "path": paths.path_of(scope)}
        await super().__call__(scope, receive, send)


def application(edge: Edge) -> Litestar:
    """Return the routes over an edge; `requests.Requests` goes around them."""
    settings, keys = edge.settings, edge.keys
    guard = Guard(edge)
    connections = edge.control.connections
    handlers: list[ControllerRouterHandler] = [
        *health.routes(edge),
        *conversations.routes(edge, guard),
        *events.routes(edge, guard),
        *channels.routes(edge, guard),
        *users.routes(edge, guard),
        *tickets.routes(edge, guard),
        *metrics.routes(edge, guard),
        dev.routes(
            settings.auth, keys, edge.url, lambda: sorted({session.user for session in connections if session.user})
        ),
    ]
    if keys.generated:
        handlers += playground.routes(edge.url)
    return Routes(
        handlers,
        middleware=[paths.Parameters],
        openapi_config=documents.openapi(guard.operators_only),
        cors_config=_cors(settings.auth.origins),
        logging_config=None,
        exception_handlers={
            Refused: problems.refused,
            HTTPException: problems.told,
            msgspec.MsgspecError: problems.malformed,
            Exception: problems.broken,
        },
        request_max_body_size=BODY_BYTES_MAX,
        response_headers={"x-content-type-options": "nosniff", "cache-control": "no-store"},
    )


def _cors(origins: tuple[str, ...] | None) -> CORSConfig | None:
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
