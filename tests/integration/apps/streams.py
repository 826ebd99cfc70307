"""A mounted app whose answers have no end."""

import asyncio
from collections.abc import Callable
from typing import Any

from realtime import Conversations, Realtime


async def streams(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Begin an answer and go on until the client has gone, or for ever."""
    if scope["type"] != "http":
        return
    word = scope["path"].rpartition("/")[2]
    kind = b"text/event-stream" if word == "events" else b"text/plain"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
    if word == "deaf":
        await asyncio.Event().wait()
    while (await receive())["type"] != "http.disconnect":
        pass
    print(f"{word} was told", flush=True)
    if word == "raises":
        raise OSError("the client has gone")


app = Realtime()
app.include(Conversations())
app.mount("/streams", streams)
