"""`/docs`: the routes as an OpenAPI page, with `/docs/openapi.json`. For this machine, and with a service key.

Litestar writes the document from the routes. Bodies are decoded by ours (`bodies`), so their schemas are put in here,
from the same types. The page is Swagger UI, whose files come from its package: nothing is loaded from elsewhere, which
the page's content security policy makes sure of.
"""

import asyncio
from importlib import metadata, resources
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar._openapi.plugin import OpenAPIPlugin
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import Guard as RouteGuard

from realtime.api.bodies import ArrayBody, Body
from realtime.api.problems import MEDIA_TYPE, Problem
from realtime.api.schemas import complete

_FILES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>realtime: HTTP API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<div id="page"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</html>
"""
_SCRIPT: Final = b"""// No validator: it is a server of somebody else's.
SwaggerUIBundle({ url: "/docs/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null });
"""
# Swagger UI sets styles by script and has its pictures as data.
_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_MADE: Final = "openapi"
_MAKING: Final = "openapi_making"
_SCHEMAS: Final = "#/components/schemas/{name}"
_TEXT: Final = "Real-time events, conversations and sessions over HTTP. Errors are problem details (RFC 9457)."


def openapi(guard: RouteGuard) -> OpenAPIConfig:
    """Return how Litestar serves its document; `guard` refuses whoever may not see it."""
    return OpenAPIConfig(
        title="realtime",
        version=metadata.version("realtime-edge"),
        description=_TEXT,
        use_handler_docstrings=True,
        components=Components(security_schemes={"bearer": SecurityScheme(type="http", scheme="bearer")}),
        security=[{"bearer": []}],
        openapi_router=Router(
            "/docs", route_handlers=_files(), guards=[guard], include_in_schema=False, before_request=_made
        ),
        render_plugins=[_Page(path="/"), _Document(path="/openapi.json", media_type="application/json")],  # type: ignore[arg-type]
    )


def _files() -> list[HTTPRouteHandler]:
    static = resources.files("swagger_ui").joinpath("static")

    def file(name: str, media_type: str, content: bytes) -> HTTPRouteHandler:
        @get(f"/{name}", sync_to_thread=False, include_in_schema=False)
        def serve() -> Response[bytes]:
            return Response(content, media_type=media_type, headers={"cache-control": "max-age=3600"})

        return serve

    found = [file(name, media_type, static.joinpath(name).read_bytes()) for name, media_type in _FILES.items()]
    return [*found, file("page.js", "text/javascript", _SCRIPT)]


class _Page(OpenAPIRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> Any:
        del request, openapi_schema
        return Response(_PAGE, media_type="text/html", headers={"content-security-policy": _POLICY})


class _Document(OpenAPIRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> Any:
        del openapi_schema
        return Response(request.app.state[_MADE], media_type="application/json")


async def _made(request: Request[Any, Any, Any]) -> None:
    """Make the document before the first request for it goes on, by a thread: it takes a tenth of a second.

    Once: those that come meanwhile wait for the same. Each by itself they would be so many threads, which take the
    interpreter from the loop in turns.
    """
    state = request.app.state
    if _MADE in state:
        return
    if (making := state.get(_MAKING)) is None:
        making = state[_MAKING] = asyncio.ensure_future(asyncio.to_thread(_content, request.app))
    try:
        # Whoever goes away takes it from nobody else.
        state[_MADE] = await asyncio.shield(making)
    finally:
        if making.done():
            state.pop(_MAKING, None)


def _content(app: Litestar) -> bytes:
    # What Litestar's own handler asks for: made here, it is there when that one asks on the loop.
    schema = app.plugins.get(OpenAPIPlugin).provide_openapi_schema()
    return msgspec.json.encode(with_bodies(app, schema))


def with_bodies(app: Litestar, document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the schemas of what our decoders read, and of errors."""
    document = msgspec.json.decode(msgspec.json.encode(document))
    bodies: dict[tuple[str, str], Body[Any] | ArrayBody[Any]] = {}
    for route in app.routes:
        for handler in getattr(route, "route_handlers", ()):
            if isinstance(body := handler.opt.get("body"), Body | ArrayBody):
                bodies |= {(route.path_format, method.lower()): body for method in handler.http_methods}
    (problem, *schemas), components = msgspec.json.schema_components(
        [Problem, *(body.type for body in bodies.values())], ref_template=_SCHEMAS
    )
    for (path, method), schema in zip(bodies, schemas, strict=True):
        document["paths"][path][method]["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("400", None)
            responses["default"] = {"description": "A problem", "content": {MEDIA_TYPE: {"schema": problem}}}
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    complete(document)
    return document
