"""Who may have how many of the process' descriptors: the one place where they are divided.

A connection of a WebSocket takes one. One of the HTTP listener takes one, and a request under way two more: the ends of
its way to the loop. The HTTP listener is given an eighth where descriptors are few. What is left when 64 are kept for
the log, listeners, key sets and the app's own is for WebSockets. Called by `options`, `memory`, `api.listener` and
`cli.check`.
"""

import resource
from typing import Final

from msgspec import Struct

from realtime.base.config import Settings

KEPT: Final = 64
"""Descriptors that are for no connection."""
HTTP_RESERVED: Final = 8
"""Requests of `/health`, `/ready` and `/metrics` that are answered beside all others; the front's `RESERVED`."""
_HTTP_PART: Final = 8
_OF_REQUEST: Final = 2
_CONNECTIONS_A_REQUEST: Final = 6


class Descriptors(Struct, frozen=True):
    """How they are divided.

    Args:
        all: what the process may have.
        kept: what is not for WebSockets.
        sockets: WebSocket connections at once.
        http_connections: connections of the HTTP listener at once.
        http_requests: requests that are answered at once.
    """

    all: int
    kept: int
    sockets: int
    http_connections: int
    http_requests: int


def divided(settings: Settings) -> Descriptors:
    """Return how the descriptors are divided under a configuration."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return of_limit(settings, hard)


def of_limit(settings: Settings, limit: int) -> Descriptors:
    """Return how so many descriptors are divided."""
    api = settings.api
    connections = requests = http = 0
    if api.enabled:
        part = limit // _HTTP_PART
        # Fewer than connections, so that somebody may always go for somebody new.
        most = api.connections_max - HTTP_RESERVED - 1
        requests = max(1, min(api.in_flight_max, part // _CONNECTIONS_A_REQUEST, most))
        both_ends = _OF_REQUEST * (requests + HTTP_RESERVED)
        connections = max(requests + HTTP_RESERVED + 1, min(api.connections_max, part - both_ends))
        http = connections + both_ends
    sockets = settings.limits.connections_max or max(0, limit - KEPT - http)
    return Descriptors(limit, KEPT + http, sockets, connections, requests)
