"""An app with a site at /slow whose requests take their time, for tests of the end of a server."""

import asyncio
from collections.abc import Callable
from typing import Any

from realtime import Realtime

PIECES, PIECE = 20, b"x" * 5_000


async def site(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Stream an answer over two seconds, take an upload however long it takes, or never end."""
    if scope["type"] == "lifespan":
        return
    print(f"{scope['path']} has begun", flush=True)
    word = scope["path"].rpartition("/")[2]
    size, more = 0, word == "upload"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if word == "stream":
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0.1)
    if word == "endless":
        await asyncio.Event().wait()
    await send({"type": "http.response.body", "body": b"%d" % size, "more_body": False})


app = Realtime()
app.mount("/slow", site)
