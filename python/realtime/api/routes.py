"""`Routes`: our own routes, and what HTTP asks of each of them beyond its handler.

A percent-encoded slash in a path is part of its segment. HEAD is answered as GET without the body. OPTIONS names every
method of a path. Development routes exist only for requests that `development` admits: to all others their paths are as
unknown as any other, whatever the method.

Made by `http`; asked by `mounts` whether a path is ours.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, Final

from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.routes import HTTPRoute
from msgspec import Struct

from realtime.api.answers import answer, problem
from realtime.api.development import ADMITTED, DevelopmentAccess
from realtime.api.paths import is_utf8, path_of

DEVELOPMENT: Final = "development"
"""The `opt` of routes that exist only for admitted requests."""
GIVES_WAY: Final = "gives_way"
"""The `opt` of routes that move where an app is mounted at `/`."""
_NOWHERE: Final = "/.nowhere"
_HINT: Final = "open the link with ?key= that the server printed; it works once, and each use prints the next"


class _Known(Struct, frozen=True):
    """A path of ours."""

    components: Sequence[Any]
    methods: frozenset[str]
    is_development: bool
    gives_way: bool


class Routes(Litestar):
    """Our own application.

    Args:
        handlers: as of Litestar.
        development: admits to the routes that are marked with `DEVELOPMENT`; None where there are none.
        options: as of Litestar.
    """

    def __init__(self, handlers: Sequence[Any], development: DevelopmentAccess | None, **options: Any) -> None:
        super().__init__(handlers, **options)
        self._development = development
        self._known = [_known(route) for route in self.routes if isinstance(route, HTTPRoute)]

    @property
    def has_page(self) -> bool:
        """Whether there are routes that give way."""
        return any(known.gives_way for known in self._known)

    def takes(self, scope: Any, *, has_site: bool = False) -> bool:
        """Whether a request is for one of our paths.

        Args:
            scope: of the request.
            has_site: an app is mounted at `/`: our routes that give way are elsewhere.
        """
        scope = {**scope, "path": path_of(scope)}
        return bool(self._methods(scope, has_site=has_site)) or (not has_site and self._offers_key(scope))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request; anything but HTTP is Litestar's."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if not is_utf8(scope):
            await answer(send, 400, *problem(400, "invalid_message", "the path is not UTF-8"))
            return
        scope = {**scope, "path": path_of(scope)}
        if self._development is not None and self._offers_key(scope):
            await self._development.exchange(scope, send)
            return
        methods = self._methods(scope)
        method = scope["method"]
        if not methods:
            if self._development is not None and self._hides(scope) and self._development.knows(scope):
                await answer(send, 404, *problem(404, "not_found", _HINT))
                return
            # Of a path that is hidden nothing is told that is not told of any other.
            scope = {**scope, "path": _NOWHERE, "raw_path": _NOWHERE.encode()}
        elif method == "OPTIONS" and not _is_preflight(scope):
            allow = (b"allow", ", ".join(sorted(methods)).encode())
            await send({"type": "http.response.start", "status": 204, "headers": [allow]})
            await send({"type": "http.response.body", "body": b""})
            return
        elif method == "HEAD" and "GET" in methods:
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        if self._development is not None and self._development.admits(scope):
            scope = {**scope, ADMITTED: True}
        await super().__call__(scope, receive, send)

    def _methods(self, scope: Any, *, has_site: bool = False) -> frozenset[str]:
        """Return the methods of a path, none where it is not ours."""
        found: frozenset[str] = frozenset()
        for known in self._matching(scope):
            if (known.gives_way and has_site) or (known.is_development and not self._admits(scope)):
                continue
            found |= known.methods
        return found

    def _matching(self, scope: Any) -> list[_Known]:
        parts = [part for part in scope["path"].split("/") if part]
        return [known for known in self._known if _matches(known.components, parts)]

    def _hides(self, scope: Any) -> bool:
        return any(known.is_development for known in self._matching(scope))

    def _admits(self, scope: Any) -> bool:
        return self._development is not None and self._development.admits(scope)

    def _offers_key(self, scope: Any) -> bool:
        return self._development is not None and self._development.offers(scope)


def admitted_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse what `Routes` has not admitted: a guard of the development routes, beside the table.

    Raises:
        NotFoundException: 404.
    """
    if not connection.scope.get(ADMITTED):
        raise NotFoundException


def _known(route: HTTPRoute) -> _Known:
    methods = {str(method) for handler in route.route_handlers for method in handler.http_methods}
    methods |= {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    opts = [handler.opt for handler in route.route_handlers]
    return _Known(
        route.path_components,
        frozenset(methods),
        any(opt.get(DEVELOPMENT) for opt in opts),
        any(opt.get(GIVES_WAY) for opt in opts),
    )


def _matches(components: Sequence[Any], parts: Sequence[str]) -> bool:
    """Whether a path is of a route of Litestar's: names as they stand, anything at the place of a parameter."""
    for index, component in enumerate(components):
        if not isinstance(component, str) and issubclass(component.type, PurePath):
            return len(parts) > index
        if index >= len(parts) or (isinstance(component, str) and component != parts[index]):
            return False
    return len(components) == len(parts)


def _is_preflight(scope: Any) -> bool:
    """Whether a browser asks before it sends a request to another origin (CORS)."""
    return any(name.lower() == b"access-control-request-method" for name, _ in scope["headers"])


def _without_body(send: Any) -> Any:
    """Return a `send` that passes on everything but the bytes of the body."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.body":
            if message.get("more_body", False):
                return
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return sent
