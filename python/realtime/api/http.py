"""The HTTP application: which routes there are, their headers, and how an error is told.

Everything it knows of the edge comes in as `Edge`. The playground's files are read once, so a path names one of them
or nothing; the page may load and call only its own server and the edge (content security policy). An error is JSON:
`{"message", "code"}` with a code of the wire protocol.
"""

import logging
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from realtime.api import dev
from realtime.api.mounts import GIVES_WAY
from realtime.config import Keys, Settings

BODY_BYTES_MAX = 64 * 1024

_MEDIA = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large"}

_logger = logging.getLogger("realtime.api")


class Edge(msgspec.Struct, frozen=True):
    """What the HTTP side asks of the edge.

    Args:
        url: the WebSocket endpoint as a browser on this machine reaches it.
        users: who is online now.
        healthy: whether the edge serves; false from the begin of a drain on.
    """

    url: str
    users: Callable[[], Iterable[str]]
    healthy: Callable[[], bool]


class Health(msgspec.Struct):
    """Whether the process serves: `ok` or `draining`."""

    status: str


def application(settings: Settings, keys: Keys, edge: Edge) -> Litestar:
    """Return the ASGI application of `settings`."""

    @get("/health", sync_to_thread=False)
    def health() -> Response[Health]:
        healthy = edge.healthy()
        return Response(Health("ok" if healthy else "draining"), status_code=200 if healthy else 503)

    handlers: list[ControllerRouterHandler] = [health, dev.routes(settings.auth, keys, edge.url, edge.users)]
    if keys.generated:
        handlers += _pages(edge.url)
    return Litestar(
        handlers,
        openapi_config=None,
        logging_config=None,
        exception_handlers={HTTPException: _told, msgspec.MsgspecError: _malformed, Exception: _broken},
        request_max_body_size=BODY_BYTES_MAX,
        response_headers={"x-content-type-options": "nosniff", "cache-control": "no-store"},
    )


def _pages(url: str) -> list[HTTPRouteHandler]:
    """Return the playground's routes: `/` and each file of `static/` by its name."""
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self' {url.removesuffix('/ws')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    files = {
        file.name: file.read_bytes()
        for file in resources.files("realtime.api").joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in _MEDIA
    }

    def page(name: str) -> HTTPRouteHandler:
        paths = ["/", f"/{name}"] if name == "index.html" else [f"/{name}"]

        @get(paths, guards=[dev.local_only], opt={GIVES_WAY: True}, sync_to_thread=False)
        def file() -> Response[bytes]:
            return Response(files[name], media_type=_MEDIA[name.rpartition(".")[2]], headers=headers)

        return file

    return [page(name) for name in files]


def _told(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    # Whatever else is the caller's fault is a request that we do not take: another method, another media type.
    other = "invalid_message" if error.status_code < 500 else "internal"
    body = {"message": error.detail, "code": _CODES.get(error.status_code, other)}
    return Response(body, status_code=error.status_code, headers=error.headers)


def _malformed(_: Request[Any, Any, Any], error: msgspec.MsgspecError) -> Response[dict[str, str]]:
    return Response({"message": str(error), "code": "invalid_message"}, status_code=400)


def _broken(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return Response({"message": "Internal error", "code": "internal"}, status_code=500)
