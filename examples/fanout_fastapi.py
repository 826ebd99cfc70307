"""A FastAPI app and a server of the websockets library in one process; only the fan-out is ours.

    pip install fastapi
    granian --interface asgi --port 8000 --working-dir examples fanout_fastapi:site

Then, with `websocat ws://127.0.0.1:8001/today` in as many terminals as you like,
`curl -X POST 'http://127.0.0.1:8000/news/today?title=Hello'`. The path of the WebSocket is the channel.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.protocol import State

from realtime import Fanout

PORT = int(os.environ.get("WS_PORT", "8001"))

fanout = Fanout()


class Connection:
    """A connection as the fan-out wants it: closing as soon as its closing handshake has begun (RFC 6455 5.5.1)."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.write = connection.transport.write
        self.get_write_buffer_size = connection.transport.get_write_buffer_size
        self.abort = connection.transport.abort

    def is_closing(self) -> bool:
        return self.connection.state is not State.OPEN


def window_bits(connection: ServerConnection) -> int | None:
    """The window for what this server sends; None where the client did not offer to inflate."""
    agreed = (each for each in connection.protocol.extensions if isinstance(each, PerMessageDeflate))
    return next((each.local_max_window_bits for each in agreed), None)


async def read(connection: ServerConnection) -> None:
    channel = connection.request.path.removeprefix("/") if connection.request else ""
    with fanout.member(Connection(connection), window_bits(connection)) as member:
        member.subscribe(channel)
        async for _ in connection:
            pass  # what clients say is nobody's business here


@asynccontextmanager
async def websockets(_: FastAPI) -> AsyncIterator[None]:
    # One frame serves all only if none refers to the messages before it: no context takeover.
    deflate = ServerPerMessageDeflateFactory(server_no_context_takeover=True)
    async with serve(read, "127.0.0.1", PORT, compression=None, extensions=[deflate]):
        yield


site = FastAPI(lifespan=websockets)


@site.get("/news/{channel}")
def readers(channel: str) -> dict[str, int]:
    return {"readers": fanout.members(channel)}


@site.post("/news/{channel}")
async def publish(channel: str, title: str) -> dict[str, int]:
    return {"receivers": fanout.publish(channel, json.dumps({"title": title}))}
