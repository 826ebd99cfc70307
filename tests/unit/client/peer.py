"""A server for clients to speak to, played by the `websockets` library as a script says."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

Script = Callable[[ServerConnection], Awaitable[None]]
FIRST = {"type": "connection_established", "data": {"sessionId": "s-1", "userId": "ann", "protocol": 1}}


@asynccontextmanager
async def played(script: Script, *, first: bool = True, **options: Any) -> AsyncIterator[str]:
    async def handler(peer: ServerConnection) -> None:
        if first:
            await tell(peer, FIRST)
        await script(peer)

    async with serve(handler, "127.0.0.1", 0, **options) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"


async def tell(peer: ServerConnection, frame: dict[str, Any]) -> None:
    await peer.send(json.dumps(frame))


async def asked(peer: ServerConnection) -> Any:
    return json.loads(await peer.recv())


async def silent(peer: ServerConnection) -> None:
    await peer.wait_closed()
