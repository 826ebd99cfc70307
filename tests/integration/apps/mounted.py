"""An app with two others on its HTTP port: a plain ASGI one at /shop, and a FastAPI one at /."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request

from realtime import Conversations, Realtime


async def shop(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Answer with what it was given, in pieces, or not at all."""
    if scope["type"] == "lifespan":
        await receive()
        scope["state"]["goods"] = 3
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("the shop is closed", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return

    async def piece(body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    word = scope["path"].rpartition("/")[2]
    if word == "raise":
        raise RuntimeError("a secret of the shop")
    if word == "exit":
        sys.exit(3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if word == "half":
        await piece(b"the first half")
        raise RuntimeError("a secret of the shop")
    if word == "stream":
        for number in range(3):
            await piece(b"%d" % number)
            await asyncio.sleep(0.3)
    if word == "count":
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await piece(b"%d" % size)
    if word == "scope":
        kept = {name: scope[name] for name in ("path", "root_path", "state")}
        await piece(json.dumps(kept | {"query": scope["query_string"].decode()}).encode())
    await piece(b"", more=False)


async def never(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """Refuse to start."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})


@asynccontextmanager
async def opened(_: FastAPI) -> AsyncIterator[dict[str, str]]:
    """Stand for what a site opens."""
    yield {"open": "yes"}
    print("the site is closed", flush=True)


site = FastAPI(lifespan=opened)


@site.get("/")
def home(request: Request) -> dict[str, str]:
    """Tell what the lifespan left."""
    return {"open": request.state.open}


@site.get("/api/items/{item}")
def item(item: str, request: Request) -> dict[str, str]:
    """Tell what was asked for, below a prefix of ours that is not ours."""
    return {"item": item, "url": str(request.url_for("item", item=item))}


@site.get("/health")
def health() -> str:
    """Never be seen: the route is ours."""
    return "not ours"


@site.post("/tell")
async def tell() -> dict[str, int]:
    """Publish from a route."""
    publication = await app.publish("conversation:7", "told", {"from": "the site"})
    return {"number": publication.offset if publication else 0}


app = Realtime()
app.include(Conversations())
app.mount("/", site)
app.mount("/shop", shop)

broken = Realtime()
broken.mount("/never", never)
