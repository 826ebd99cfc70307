"""The HTTP API inside of another ASGI app's server: `host.mount("/realtime", app.asgi)`.

For an edge that runs in a host's lifespan, which has an HTTP server already. The routes are those of our own port,
below wherever the host mounts them. Of the host's scope only what ASGI itself says is passed on, with the path below
the mount: frameworks leave their own marks in it, and some mount with the whole path, some with the rest.

Called by `app.Realtime.asgi`.
"""

from collections.abc import Callable
from typing import Any, Final

from realtime.api.answers import answer, problem
from realtime.api.development import ROOT, DevelopmentAccess, access_to, address_of, print_link
from realtime.api.edge import edge_of
from realtime.api.http import application
from realtime.api.requests import Requests
from realtime.serving.server import Server

_PASSED_ON: Final = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "raw_path",
    "query_string",
    "headers",
    "client",
    "server",
    "extensions",
)


class Embedded:
    """An ASGI application that is our HTTP API while the edge runs, and says 503 before and after.

    Args:
        server: the running edge; None where there is none.
    """

    def __init__(self, server: Callable[[], Server | None]) -> None:
        self._server = server
        self._built: tuple[Server, Any] | None = None
        self._untold: DevelopmentAccess | None = None

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        server = self._server()
        if server is None:
            detail = "the edge does not run; give the host lifespan=app.lifespan"
            await answer(send, 503, *problem(503, "unavailable", detail))
            return
        if self._built is None or self._built[0] is not server:
            self._untold = development = access_to(server)
            self._built = (server, _application(server, development))
        inner = {name: scope[name] for name in _PASSED_ON if name in scope}
        root, path = scope.get("root_path", ""), scope["path"]
        inner["path"] = (path[len(root) :] if path == root or path.startswith(f"{root}/") else path) or "/"
        inner["root_path"] = ""
        inner[ROOT] = root
        inner["state"] = {}
        if self._untold is not None and self._untold.knows(inner):
            # Only now is it known where the host has mounted this.
            print_link(self._untold.link(address_of(inner)))
            self._untold = None
        await self._built[1](inner, receive, send)


def _application(server: Server, development: DevelopmentAccess | None) -> Any:
    edge = edge_of(server, development)
    return Requests(application(edge), edge)
