"""An app whose code raises what ends event loops, wherever the event loop of a server calls it."""

# ruff: noqa: ARG001 -- what a handler takes is its contract

import asyncio
import sys
from typing import Any, NoReturn

from realtime import Grant, Heard, Realtime, Session

app = Realtime()
app.allow("news:*", "subscribe", "publish")


def closes() -> NoReturn:
    raise GeneratorExit


def exits() -> NoReturn:
    sys.exit(3)


@app.on("plain")
def plain(session: Session) -> None:
    closes()


@app.on("next_of_nothing", thread=True)
def next_of_nothing(session: Session) -> Any:
    return next(iter(()))


@app.on("thread_closes", thread=True)
def thread_closes(session: Session) -> None:
    closes()


@app.on("future_closes")
async def future_closes(session: Session) -> None:
    await asyncio.to_thread(closes)


@app.on("task_exits")
async def task_exits(session: Session) -> None:
    async def work() -> None:
        exits()

    await asyncio.create_task(work())


@app.on("group_exits")
async def group_exits(session: Session) -> None:
    async def work() -> None:
        raise KeyboardInterrupt

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        await asyncio.sleep(60)


@app.on("callback_exits")
async def callback_exits(session: Session) -> None:
    asyncio.get_running_loop().call_soon(exits)
    await asyncio.sleep(0.01)


@app.on("echo")
async def echo(session: Session, said: str) -> str:
    await asyncio.sleep(0)
    return said


@app.authorize("closes:{name}")
def authorize_closes(session: Session, name: str) -> Grant | None:
    closes()


@app.authorize("true:{name}")
def authorize_true(session: Session, name: str) -> Any:
    return True


@app.authorize("later:{name}")
async def authorize_later(session: Session, name: str) -> Any:
    return "subscribe"


@app.on_close
def closed(session: Session) -> None:
    closes()


@app.listen("news:*")
def heard(event: Heard[Any]) -> None:
    closes()


@app.every(0.05)
def job() -> None:
    closes()
