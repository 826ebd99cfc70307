"""The HTTP application: which families of routes there are, and what holds for all of them.

Everything it knows of the edge comes in as `Edge`. A family is a file that makes its routes over it. What goes wrong is
answered by `problems`, what holds for each request is in `requests`. Where `auth.origins` is set pages of those origins
may call the API (CORS), otherwise those of none.
"""

import msgspec
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
from realtime.api.routes import Routes
from realtime.base.errors import Refused

BODY_BYTES_MAX = 1024 * 1024


def application(edge: Edge) -> Routes:
    """Return the routes over an edge; `requests.Requests` goes around them."""
    settings = edge.settings
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
    ]
    if edge.development is not None:
        handlers.append(
            dev.routes(
                edge.control.identities.signed,
                edge.url,
                lambda: sorted({session.user for session in connections if session.user}),
            )
        )
        handlers += playground.routes(edge.url)
    return Routes(
        handlers,
        edge.development,
        middleware=[paths.Parameters],
        openapi_config=documents.openapi(guard.operators_only),
        cors_config=_Pages(edge) if settings.auth.origins else None,
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


class _Pages(CORSConfig):
    """Which pages may read answers, by the rule of the sockets; with cookies where a hook reads them."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(
            allow_origins=[],
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
            allow_credentials=edge.control.rules.authenticate is not None,
        )
        self._identities = edge.control.identities

    def is_origin_allowed(self, origin: str) -> bool:
        """Whether a page may read what it is answered."""
        return self._identities.lists(origin)
