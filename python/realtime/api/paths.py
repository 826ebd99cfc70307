"""Paths of requests: parameters that several families of routes have, and what their text may be.

A parameter is one segment of the path as it was sent, so a user's id or a channel may hold a slash: `%2F`. Servers hand
over a path that is decoded as a whole, in which that slash looks like any other; `path_of` finds it again in the raw
path and puts `SLASH` in its place, and `Parameters` puts the slash back once the route is found.
"""

from typing import Annotated, Any, Final
from urllib.parse import unquote, unquote_to_bytes

from litestar.exceptions import NotFoundException
from litestar.params import PathParameter
from litestar.types import ASGIApp, Receive, Scope, Send

User = Annotated[
    str, PathParameter(min_length=1, max_length=256, description="The user's id, percent-encoded; a slash is `%2F`.")
]

SLASH: Final = "\udc2f"
"""Half a surrogate pair, which no decoded path can hold."""


def path_of(scope: Any) -> str:
    """Return the path of a request, with `SLASH` for each slash that was percent-encoded."""
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower():
        return path
    segments = [unquote(segment) for segment in raw.partition(b"?")[0].decode(errors="replace").split("/")]
    whole = "/".join(segments)
    # Where we are mounted below a path, the raw one may begin with that.
    if not whole.endswith(path):
        return path
    marked = "/".join(segment.replace("/", SLASH) for segment in segments)
    return marked[len(whole) - len(path) :]


def is_utf8(scope: Any) -> bool:
    """Whether the path of a request is UTF-8 behind its percent signs: what is not, servers decode to another name."""
    raw: bytes = scope.get("raw_path") or b""
    try:
        unquote_to_bytes(raw.partition(b"?")[0]).decode()
    except UnicodeDecodeError:
        return False
    return True


class Parameters:
    """Around each route: its parameters as they were sent, and numbers of nothing but ASCII digits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose route is found.

        Raises:
            NotFoundException: what stands in the place of a number is none, though Python reads it as one.
        """
        found: dict[str, Any] = scope["path_params"]
        if found:
            segments = [segment for segment in scope["path"].split("/") if segment]
            names = [segment for segment in scope["path_template"].split("/") if segment]
            for name, segment in zip(names, segments, strict=False):
                number = found.get(name.strip("{}").partition(":")[0])
                if isinstance(number, int) and not (segment.isascii() and segment.isdigit()):
                    raise NotFoundException
            scope["path_params"] = {
                name: value.replace(SLASH, "/") if isinstance(value, str) else value for name, value in found.items()
            }
            scope["path"] = scope["path"].replace(SLASH, "/")
        await self._app(scope, receive, send)
