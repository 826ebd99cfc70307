"""How long the worst message or request of each kind holds the event loop: `python -m tests.holds` prints a table.

A hold is the processor time that one callback of the loop takes on the loop's thread, so that a busy machine does not
change it. Requests go to the HTTP application as granian hands them over, commands to Python's half as the engine does.
docs/decisions/0052-no-body-holds-the-loop.md has the figures.
"""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final
from unittest.mock import patch

from realtime import Conversations, Realtime, Session, _engine
from realtime.base.config import LimitSettings
from tests.unit.api.asking import JSON, SERVICE_KEY, World
from tests.unit.engine import Half

MIB: Final = 1 << 20
SERVICE: Final = {**JSON, "authorization": f"Bearer {SERVICE_KEY}"}
MESSAGES: Final = "/api/conversations/7/messages"

# Values that are dear to decode: up to each limit, and above it.
LISTS: Final = b"[" + b",".join([b"[]"] * 19_000) + b"]"
MANY_LISTS: Final = b"[" + b",".join([b"[]"] * 330_000) + b"]"
FLOATS: Final = b"[" + b",".join([b"9007199254740993.0"] * 19_000) + b"]"
SLOW_FLOATS: Final = b"[" + b",".join([b"1.7976931348623157e308"] * 190) + b"]"
MANY_SLOW_FLOATS: Final = b"[" + b",".join([b"1.7976931348623157e308"] * 19_000) + b"]"
OBJECTS: Final = (
    b"["
    + b",".join(b"{" + b",".join(b'"%024d":0' % (n + 1000 * m) for n in range(1000)) + b"}" for m in range(18))
    + b"]"
)
DEEP: Final = b"[" + b",".join([b"[" * 60 + b"]" * 60] * 320) + b"]"


def escapes(size: int) -> bytes:
    """Return a text that is all escapes."""
    return b'"' + b"\\n" * (size // 2) + b'"'


class Holds:
    """The longest callback of a loop, but for those of the task that watches: it drives the engine and its log."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.what = ""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at each callback of all loops meanwhile."""
        run, driver = asyncio.Handle._run, asyncio.current_task()

        def timed(handle: asyncio.Handle) -> None:
            what, began_s = repr(handle), time.thread_time()
            is_driver = getattr(getattr(handle, "_callback", None), "__self__", None) is driver
            run(handle)
            took_s = time.thread_time() - began_s
            if took_s > self.longest_s and not is_driver:
                self.longest_s, self.what = took_s, what

        # As `realtime serve` does once it has started: what lives for long is not searched for garbage.
        gc.collect()
        gc.freeze()
        try:
            with patch.object(asyncio.Handle, "_run", timed):
                yield
        finally:
            gc.unfreeze()


def app() -> Realtime:
    """Return conversations, channels that keep their events, and handlers that take anything."""
    app = Realtime()
    app.include(Conversations())
    app.policy("kept:*", durable=True)
    app.allow("news:*", "subscribe")
    return app


def _batch(count: int, event: dict[str, object]) -> bytes:
    return b"[" + b",".join([json.dumps(event).encode()] * count) + b"]"


def bodies() -> Iterator[tuple[str, str, str, bytes]]:
    """Yield requests: what they are, method, path and body."""
    values = {
        "lists": LISTS, "too many lists": MANY_LISTS, "numbers": FLOATS, "slow numbers": SLOW_FLOATS,
        "too many slow numbers": MANY_SLOW_FLOATS, "objects": OBJECTS, "deep": DEEP, "escapes": escapes(MIB - 100),
        "nulls": b"[" + b",".join([b"null"] * 19_000) + b"]",
    }  # fmt: skip
    for name, value in values.items():
        yield f"message, {name} in metadata", "POST", MESSAGES, b'{"content":"x","metadata":{"a":' + value + b"}}"
        yield f"message, {name} as content", "POST", MESSAGES, b'{"role":null,"content":' + value + b"}"
        yield f"change, {name}", "PATCH", f"{MESSAGES}/1", b'{"metadata":{"a":' + value + b"}}"
        yield f"conversation, {name}", "PATCH", "/api/conversations/7", b'{"a":' + value + b"}"
        yield f"event, {name}", "POST", "/api/events", b'{"type":"t","channel":"kept:1","data":' + value + b"}"
        yield (
            f"state, {name}",
            "POST",
            "/api/events",
            (b'{"type":"typing_indicator","channel":"news:1","data":{"userId":' + value + b"}}"),
        )
    members = b",".join(b'"%d":1' % n for n in range(100))
    yield "message, 100 members", "POST", MESSAGES, b'{"content":"x","metadata":{' + members + b"}}"
    yield "10,000 stored events", "POST", "/api/events", _batch(10_000, {"type": "t", "channel": "kept:1", "data": 1})
    yield (
        "10,000 events of conversations",
        "POST",
        "/api/events",
        _batch(10_000, {"type": "new_message", "conversationId": "8", "data": {"content": "x"}}),
    )
    yield (
        "10,000 events for all",
        "POST",
        "/api/events",
        _batch(10_000, {"type": "t", "all": True, "data": 1, "id": "e"}),
    )
    yield "10,001 events", "POST", "/api/events", _batch(10_001, {"type": "t", "all": True, "data": 1})
    yield (
        "10,000 events, the last one wrong",
        "POST",
        "/api/events",
        (_batch(9_999, {"type": "t", "all": True, "data": 1})[:-1] + b',{"type":3}]'),
    )
    yield (
        "events of 16 MiB, one",
        "POST",
        "/api/events",
        (b'[{"type":"t","all":true,"data":' + escapes(16 * MIB - 100) + b"}]"),
    )
    yield (
        "events of 16 MiB, no array",
        "POST",
        "/api/events",
        (b'{"type":"t","all":true,"data":' + escapes(16 * MIB - 100) + b"}"),
    )
    megabyte = b'{"type":"t","channel":"kept:1","data":' + escapes(MIB - 200) + b"}"
    yield "events of 1 MiB, fifteen", "POST", "/api/events", b"[" + b",".join([megabyte] * 15) + b"]"
    yield "4,000,000 numbers", "POST", "/api/events", b"[" + b",".join([b"1"] * 4_000_000) + b"]"
    yield "500 KB of error", "POST", "/api/events", json.dumps({"type": "t", "all": " - at `$" * 60_000}).encode()


def pages() -> Iterator[tuple[str, str]]:
    """Yield paths that are read."""
    yield "history", "/api/channels/conversation:7/history?limit=1000"
    yield "messages", f"{MESSAGES}?limit=1000"
    yield "presence", "/api/presence/news:1"
    yield "metrics", "/metrics"
    yield "health", "/health"
    yield "the OpenAPI document", "/docs/openapi.json"
    yield "the document page", "/docs"
    yield "a long query", f"{MESSAGES}?" + "&".join(f"limit={n}" for n in range(5000))
    yield "a long number", f"{MESSAGES}?after=" + "9" * 5000
    yield "a long path", "/api/channels/" + "%61" * 15_000 + "/history"


async def requests(chosen: Callable[[str], bool]) -> AsyncIterator[tuple[str, int, Holds]]:
    """Yield each request, its status and what it held."""
    limits = LimitSettings(enabled=False)
    async with World(app(), limits=limits) as world:
        for _ in range(20):
            await world.call("POST", MESSAGES, {"content": "x" * 60_000, "userId": "ann"}, key=True)
        for _ in range(20):
            peer = await world.test.connect("ann")
            await peer.send("subscribe", channel="news:1")
        for name, method, path, body in bodies():
            if chosen(name):
                sent = body.replace(b'{"content"', b'{"userId":"ann","content"') if path == MESSAGES else body
                yield await _held(name, partial(world.ask, path, SERVICE, method, sent))
        for name, path in pages():
            if chosen(name):
                bare, _, query = path.partition("?")
                yield await _held(name, partial(world.ask, bare, SERVICE, query=query))
        if chosen("tiny chunks"):
            yield await _held("tiny chunks", lambda: world.ask(MESSAGES, SERVICE, "POST", receive=_bytewise()))


def _bytewise() -> Callable[[], Awaitable[Any]]:
    """Return what hands a body over byte by byte, as fast as it is asked for."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b" ", "more_body": True}

    return receive


async def _held(name: str, ask: Callable[[], Awaitable[Any]]) -> tuple[str, int, Holds]:
    holds = Holds()
    with holds.watched():
        answer = await ask()
    return name, answer.status, holds


async def commands(chosen: Callable[[str], bool]) -> AsyncIterator[tuple[str, int, Holds]]:
    """Yield batches of commands of 64 sessions, how many there were, and what they held; inside of the limits."""
    for route, kind in ((0, "plain"), (1, "async")):
        for name, data in {
            "lists": LISTS, "numbers": FLOATS, "slow numbers": SLOW_FLOATS, "objects": OBJECTS, "deep": DEEP,
            "escapes of 2 MiB": escapes(2 * MIB - 100),
        }.items():  # fmt: skip
            what = f"64 {kind} commands, {name}"
            if not chosen(what):
                continue
            only, seen = Realtime(), list[type]()
            _register(only, seen)
            half, holds = Half(only), Holds()
            for conn in range(8):
                half.open(conn)
            half.engine.events.extend((_engine.MESSAGE, n % 8, route, None, data, 0) for n in range(64))
            with holds.watched():
                asyncio.get_running_loop().call_soon(half.control.turn)
                while len(seen) < 64:
                    await asyncio.sleep(0)
                    if half.engine.events and not half.control.has_left:
                        asyncio.get_running_loop().call_soon(half.control.turn)
            yield what, 64, holds


def _register(app: Realtime, seen: list[type]) -> None:
    @app.on("plain")
    def plain(_: Session, payload: Any) -> None:
        seen.append(type(payload))

    @app.on("async")
    async def later(_: Session, payload: Any) -> None:
        seen.append(type(payload))


async def main() -> None:
    for found in (requests, commands):
        async for name, status, holds in found(lambda _: True):
            print(f"{holds.longest_s * 1000:8.1f} ms  {name:45} {status}  {holds.what[:90]}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
