"""Handlers that fork, as libraries for pools and workers do."""

# mypy: disable-error-code="unused-awaitable"
# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract

import concurrent.futures
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realtime import NotRunning, Realtime, Session

fork = multiprocessing.get_context("fork")

app = Realtime()
app.policy("ledger:*", durable=True)
app.allow("ledger:*")
app.allow("room:*")


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` gives in a forked child, by a pipe."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, json.dumps(work()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        value = json.load(pipe)
    os.waitpid(pid, 0)
    return value


def exit_of(pid: int) -> int:
    """Wait for a child and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def publish() -> str:
    """Publish, as a task of a worker would, and tell how that was refused."""
    try:
        app.publish("ledger:1", "from_child", {})
    except NotRunning as error:
        return str(error)
    return "taken"


@app.on("publish_there", thread=True)
def publish_in_child(session: Session) -> list[str]:
    """By fork, from pools by fork and by spawn."""

    def publish_and_send() -> list[str]:
        told = [publish()]
        for ask in (lambda: session.send({"type": "x"}), lambda: app.connections, lambda: app.broadcaster):
            try:
                ask()
            except NotRunning as error:
                told.append(str(error))
        return told

    told: list[str] = in_child(publish_and_send)
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            told.append(pool.submit(publish).result(30))
    return told


@app.on("terminate", thread=True)
def terminate(session: Session, number: int) -> int | None:
    """Send a signal to a child that sleeps and return its exit code."""
    child = fork.Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(0.1)
    os.kill(child.pid or 0, number)
    child.join(5)
    if child.is_alive():
        child.kill()
        return None
    return child.exitcode


@app.on("daemon", thread=True)
def daemon(session: Session) -> int | None:
    """Leave a child behind that nobody waits for."""
    child = fork.Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    return child.pid


@app.on("inherited", thread=True)
def inherited(session: Session, ports: list[int]) -> dict[str, Any]:
    """Look at what a child has of the server."""
    return dict(in_child(lambda: _inherited(ports)))


def _inherited(ports: list[int]) -> dict[str, Any]:
    held: list[str] = []
    for path in list(Path("/proc/self/fd").iterdir()):
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            with contextlib.suppress(OSError):
                one = socket.socket(fileno=os.dup(int(path.name)))
                address = one.getsockname()
                one.close()
                if isinstance(address, bytes) or (isinstance(address, tuple) and address[1] in ports):
                    held.append(str(address))
        elif "realtime.sqlite3" in target or target.endswith("/lock") or "io_uring" in target:
            held.append(target)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    threads = len(list(Path("/proc/self/task").iterdir()))
    defaults = handlers == [signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL]
    return {"held": held, "defaults": defaults, "threads": threads, "wakeup": signal.set_wakeup_fd(-1)}


@app.on("log", thread=True)
def log_in_child(session: Session) -> None:
    """Write a line of the log in a child."""
    in_child(lambda: logging.getLogger("app").warning("a line of the child"))


@app.on("exit_in_thread", thread=True)
def exit_in_thread(session: Session, code: int) -> int:
    """Exit a child where libraries do: by sys.exit, below a handler."""
    pid = os.fork()
    if pid == 0:
        sys.exit(code)
    return exit_of(pid)


@app.on("exit")
def exit_on_the_loop(session: Session, code: int) -> int:
    """Exit, from the thread of the event loop."""
    pid = os.fork()
    if pid == 0:
        sys.exit(code)
    return exit_of(pid)


@app.on("exit_later")
async def exit_later(session: Session, code: int) -> int:
    """Exit, within a task."""
    pid = os.fork()
    if pid == 0:
        sys.exit(code)
    return exit_of(pid)


@app.on("return")
async def return_in_child(session: Session) -> int:
    """Come back from the handler in the child, too."""
    pid = os.fork()
    if pid == 0:
        return 0
    return exit_of(pid)


@app.on("return_in_thread", thread=True)
def return_in_thread(session: Session) -> int:
    """Come back from the handler in the child, too, in a thread."""
    pid = os.fork()
    if pid == 0:
        return 0
    return exit_of(pid)


@app.on("run_anew", thread=True)
def run_anew(session: Session) -> bool:
    """Serve another app in a child."""

    def serve() -> bool:
        import asyncio  # noqa: PLC0415 -- as in a program of its own

        from realtime.testing import TestApp  # noqa: PLC0415

        async def answer() -> bool:
            other = Realtime()
            other.on("go")(lambda session: other.publish("room:1", "x", {}))
            async with TestApp(other) as t:
                peer = await t.connect(user="alice")
                return await peer.ack("go") is None

        return asyncio.run(answer())

    return bool(in_child(serve))
