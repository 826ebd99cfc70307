"""An app that is handed to a server of ASGI or WSGI applications: one line that says what to do instead.

A `Realtime` app has sockets and a log of its own and is one process: gunicorn and uvicorn cannot serve it, nor run it
in several workers. An ASGI server that asks for the lifespan is refused at its start; others get 503 for each request.
Called by `app.Realtime.__call__`.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

log = logging.getLogger("realtime")

ONE_PROCESS: Final = (
    "an app is served by one process: run the host with one worker (gunicorn -w 1), or `realtime serve` beside it and "
    "publish by POST /api/events"
)
"""What to do where a host has several workers."""

_LINE: Final = (
    "a Realtime app is no ASGI or WSGI application; run `realtime serve module:app`, or give a host of your own "
    "lifespan=app.lifespan and mount app.asgi, with one worker (gunicorn -w 1)"
)
_STATUS: Final = "503 Service Unavailable"
_HEADERS: Final = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(_LINE)))]


def misplaced(*arguments: Any) -> Any:
    """Answer what a server calls an application with: ASGI 3 (scope, receive, send), ASGI 2 (scope) or WSGI."""
    match arguments:
        case (scope,):
            return partial(_refuse, scope)
        case (_, start_response):
            return _answer(start_response)
        case _:
            return _refuse(*arguments)


def _answer(start_response: Callable[..., object]) -> list[bytes]:
    log.error(_LINE)
    start_response(_STATUS, _HEADERS)
    return [_LINE.encode()]


async def _refuse(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    match scope["type"]:
        case "lifespan":
            await receive()
            await send({"type": "lifespan.startup.failed", "message": _LINE})
        case "websocket":
            await send({"type": "websocket.close", "code": 1008})
        case _:
            log.error(_LINE)
            headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _LINE.encode()})
