"""Handlers that take their time, for tests of the end of a server and of what its log says."""

# ruff: noqa: ARG001, ASYNC251 -- what a handler takes is its contract, and one holds the loop on purpose

import asyncio
import time

from realtime import Realtime, Session

app = Realtime()


@app.on("long")
async def long(session: Session) -> str:
    """Still under way when the end is asked for."""
    await asyncio.sleep(1)
    return "done"


@app.on("endless")
async def endless(session: Session) -> None:
    """Never through by itself."""
    await asyncio.Event().wait()


@app.on("stuck")
def stuck(session: Session) -> None:
    """Holds the loop, as code that knows nothing of it does."""
    time.sleep(2)


@app.on("asleep")
def asleep(session: Session) -> None:
    """Holds the loop for longer than anybody waits, in one call."""
    print("the loop is held", flush=True)
    time.sleep(60)


@app.on("busy")
def busy(session: Session) -> None:
    """Holds the loop likewise, in the interpreter."""
    print("the loop is held", flush=True)
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        pass


@app.on("stuck_inside")
async def stuck_inside(session: Session) -> str:
    """Async, but holds the loop between two waits."""
    await asyncio.sleep(0)
    time.sleep(0.3)
    await asyncio.sleep(0)
    return "done"


@app.on("broken")
def broken(session: Session) -> None:
    """Fails, with a line break in what it says."""
    raise RuntimeError("no\nluck")
