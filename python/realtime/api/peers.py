"""`Peers`: whose a request is, as the front says it.

Requests come over a Unix socket, on which every client looks the same. The front names the client's address in a header
of its own, which it lets through from nobody else: the peer's, or behind a proxy of `server.proxies` the one that
`X-Forwarded-For` names. Here it becomes the `client` of the scope, and nothing behind sees
the header. A request without exactly one has no address: whoever asks for a right by address gets none.

The front takes each request from the rate of its address. `guards` and `mounts` say by `tell_known` that other limits
hold its caller; then the answer says so to the front, which gives it back.

Called by `listener`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

HEADER: Final = b"x-realtime-peer"
NUMBER: Final = b"x-realtime-request"
KNOWN: Final = b"x-realtime-known"
_TELL: Final = "realtime.tell_known"
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
        is_known = False

        def tell() -> None:
            nonlocal is_known
            is_known = True

        async def sent(message: Any) -> None:
            if is_known and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (KNOWN, b"1")]}
            await send(message)

        scope[_TELL] = tell
        await self._inner(scope, receive, sent)


def tell_known(scope: Mapping[str, Any]) -> None:
    """Say before the answer that the caller of a request is held by other limits than those of its address."""
    if (tell := scope.get(_TELL)) is not None:
        tell()


def _address(text: bytes) -> tuple[str, int] | None:
    host, _, port = text.decode("latin-1").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isascii() and port.isdigit() else None
