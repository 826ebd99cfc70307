"""An app with things beside its handlers: jobs, tasks of sessions, middleware, and handlers that block."""

import asyncio
import time
from typing import Any

from msgspec import Struct

from realtime import Call, Heard, Proceed, Publishing, Realtime, Refused, Session

app = Realtime()
app.allow("beats")
app.allow("ledger:*")
app.policy("ledger:*", durable=True)


class Block(Struct):
    """How long to take."""

    seconds: float


@app.on("block")
def block(session: Session, block: Block) -> str:  # noqa: ARG001 -- a handler's parameters are its contract
    """Hold the event loop, as nobody should, and say so first: two sessions have no order."""
    print("the loop is held from here", flush=True)
    time.sleep(block.seconds)
    return "blocked"


@app.on("block_thread", thread=True)
def block_thread(session: Session, block: Block) -> str:  # noqa: ARG001
    """Block a thread."""
    time.sleep(block.seconds)
    return "blocked a thread"


@app.on("wait")
async def wait(session: Session, block: Block) -> str:  # noqa: ARG001
    """Wait without holding anybody up."""
    await asyncio.sleep(block.seconds)
    return "waited"


@app.on("whoami")
def whoami(session: Session) -> str:
    """Say whose session it is."""
    return session.user


@app.on("watch")
def watch(session: Session) -> None:
    """Send a tick every now and then for as long as the session is there; note the end of it."""

    async def ticks() -> None:
        try:
            while True:
                session.send({"type": "tick", "data": None, "timestamp": app.clock.timestamp()})
                await asyncio.sleep(0.05)
        finally:
            await app.publish("ledger:watchers", "unwatched", {"user": session.user})

    _ = session.spawn(ticks())


heard: list[tuple[str, int | None]] = []


@app.listen("ledger:*", "line")
async def slow_listener(event: Heard[dict[str, int]]) -> None:
    """Be slower than the events."""
    await asyncio.sleep(0.0005)
    heard.append((event.channel, event.offset))
    if event.data["n"] < 0:
        await app.publish("ledger:replies", "reply", {"to": event.data["n"]})


@app.listen("ledger:*", "line")
def failing_listener(event: Heard[dict[str, int]]) -> None:
    """Fail, now and then."""
    if event.data["n"] == 7:
        raise RuntimeError("seven is too many")


class Line(Struct):
    """A line of a ledger."""

    ledger: str
    n: int


@app.on("line")
def line(session: Session, line: Line) -> Publishing:
    """Store a line."""
    return app.publish(f"ledger:{line.ledger}", "line", {"n": line.n}, user=session.user)


@app.on("heard")
def what_was_heard(session: Session, ledger: str) -> list[int | None]:  # noqa: ARG001
    """Say what the slow listener has heard of a ledger."""
    return [offset for channel, offset in heard if channel == f"ledger:{ledger}"]


@app.middleware
def only_named(call: Call, proceed: Proceed) -> Any:
    """Let nobody in whose name is unknown."""
    if call.session.user.startswith("nobody"):
        raise Refused("forbidden", f"{call.type} is not for you")
    return proceed(call)


@app.every(0.1)
async def beat() -> None:
    """Tell everybody that time goes on."""
    await app.publish("beats", "beat", {})


@app.every(0.1, thread=True)
def fail() -> None:
    """Fail, every time."""
    raise RuntimeError("this job always fails")
