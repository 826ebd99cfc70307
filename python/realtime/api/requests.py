"""What holds for every request, around all routes: its id, a line in the log, and an answer whatever happens.

`X-Request-Id` is kept where the caller sent one of 1 to 128 printable ASCII characters, and made otherwise; it stands
in the answer, in the log's line and, as `requestId`, in the events that the request led to. While the server goes away
new requests are answered 503, but for those that ask how it is; those under way are counted, so that the end can wait.
"""

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any, Final

from litestar import Request
from litestar.types import ASGIApp, Receive, Send

from realtime.api.answers import answer, problem
from realtime.api.collecting import COMING_PART, Bodies
from realtime.api.edge import Edge
from realtime.base.containment import goes_on
from realtime.base.descriptors import divided
from realtime.base.logs import facts
from realtime.base.messages import new_id

_HEADER: Final = b"x-request-id"
_ID: Final = "realtime.request_id"
_CHARS_MAX: Final = 128
_PATH_CHARS_MAX: Final = 200
_ASKED_ALWAYS: Final = frozenset({"/health", "/ready", "/metrics"})
"""Paths that programs ask all the time: answered to the end, and no line of the log at `info`."""

log = logging.getLogger("realtime.api")


def request_id(request: Request[Any, Any, Any]) -> str:
    """Return the id of a request that came through `Requests`."""
    found: dict[str, Any] = request.scope  # type: ignore[assignment]  # a key of our own
    return str(found[_ID])


class Requests:
    """An ASGI application around another one."""

    def __init__(self, inner: ASGIApp, edge: Edge) -> None:
        self._inner = inner
        self._edge = edge
        limits = edge.settings.limits
        self._head_bytes_max = limits.head_bytes_max
        # Inside of another program that one's server has the connections.
        requests_max = divided(edge.settings).http_requests or edge.settings.api.in_flight_max
        places = max(1, requests_max // COMING_PART) if limits.enabled else sys.maxsize
        charges = edge.control.ledger.of("bodies")
        self._bodies = Bodies(charges, limits.message_values_max, places, edge.settings.api.body_timeout_s)
        self._under_way = 0
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()

    async def finished(self, timeout_s: float) -> int:
        """Wait until no request is under way. Returns how many still are after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._none_under_way.wait()
        return self._under_way

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP goes through as it is."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        self._under_way += 1
        self._none_under_way.clear()
        collecting = self._bodies.of(scope)
        try:
            await self._answered(scope, receive, send)
        finally:
            collecting.release()
            self._under_way -= 1
            if not self._under_way:
                self._none_under_way.set()

    async def _answered(self, scope: Any, receive: Receive, send: Send) -> None:
        id = _sent_id(scope) or new_id(self._edge.control.clock.now_ms())
        scope[_ID] = id
        began_s = time.perf_counter()
        status = 0

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                if all(name.lower() != _HEADER for name, _ in headers):
                    headers.append((_HEADER, id.encode()))
                message = {**message, "headers": headers}
            await send(message)

        path = scope["path"]
        try:
            if self._edge.is_draining() and path not in _ASKED_ALWAYS:
                refusal = problem(503, "draining", "the server goes away; another one may take this")
                await answer(sent, 503, *refusal, (b"retry-after", b"1"))
            elif _head_bytes(scope) > self._head_bytes_max:
                detail = f"the head has over {self._head_bytes_max} bytes (limits.head_bytes_max); send fewer cookies"
                await answer(sent, 431, *problem(431, "too_large", detail))
            elif not _is_utf8(scope["query_string"]):
                # Frameworks decode it where they please, and fail there.
                await answer(sent, 400, *problem(400, "invalid_message", "the query is not UTF-8"))
            else:
                await self._inner(scope, receive, sent)
        except BaseException as error:
            if goes_on(error):
                raise
            log.exception("%s %s failed", scope["method"], path[:_PATH_CHARS_MAX], extra=facts("failed", request=id))
            if status:
                # Half an answer cannot be taken back: the server cuts it off.
                raise
            await answer(sent, 500, *problem(500, "internal", "Internal error"))
        finally:
            level = logging.DEBUG if path in _ASKED_ALWAYS else logging.INFO
            if log.isEnabledFor(level):
                taken_ms = (time.perf_counter() - began_s) * 1000
                # The path alone: a query may hold a token.
                told = facts("request", status=status, ms=round(taken_ms, 1), request=id)
                log.log(level, "%s %s", scope["method"], path[:_PATH_CHARS_MAX], extra=told)


def _head_bytes(scope: Any) -> int:
    """Return the bytes of a request's head, as HTTP/1.1 writes it."""
    target = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    headers = sum(len(name) + len(value) + len(b": \r\n") for name, value in scope["headers"])
    return len(scope["method"]) + target + headers + len(b" ? HTTP/1.1\r\n\r\n")


def _is_utf8(query: bytes) -> bool:
    try:
        query.decode()
    except UnicodeDecodeError:
        return False
    return True


def _sent_id(scope: Any) -> str | None:
    for name, value in scope["headers"]:
        if name == _HEADER:
            text = value.decode("latin-1").strip()
            return text if 0 < len(text) <= _CHARS_MAX and text.isascii() and text.isprintable() else None
    return None
