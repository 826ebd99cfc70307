"""`Peers`: whose a request is, as the front says it.

Requests come over a Unix socket, on which every client looks the same. The front names the client's address in a header
of its own, which it lets through from nobody else: the peer's, or behind a proxy of `server.proxies` the one that
`X-Forwarded-For` names. Here it becomes the `client` of the scope, and nothing behind sees
the header. A request without exactly one has no address: whoever asks for a right by address gets none.

Called by `listener`.
"""

from collections.abc import Callable
from typing import Any, Final

HEADER: Final = b"x-realtime-peer"
NUMBER: Final = b"x-realtime-request"
_OURS: Final = frozenset({HEADER, NUMBER})


class Peers:
    """An ASGI application around another one.

    Args:
        inner: the application.
        server: the address that the HTTP port listens on.
        begun: is called with the number of a request that begins, so that the front gives another one.
    """

    def __init__(self, inner: Callable[..., Any], server: tuple[str, int], begun: Callable[[int], None]) -> None:
        self._inner = inner
        self._server = server
        self._begun = begun

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Serve one request of the front's."""
        headers = scope["headers"]
        named = [value for name, value in headers if name == HEADER]
        for name, value in headers:
            if name == NUMBER:
                self._begun(int(value))
        scope["headers"] = [header for header in headers if header[0] not in _OURS]
        scope["client"] = _address(named[0]) if len(named) == 1 else None
        scope["server"] = self._server
        await self._inner(scope, receive, send)


def _address(text: bytes) -> tuple[str, int] | None:
    host, _, port = text.decode("latin-1").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isascii() and port.isdigit() else None
