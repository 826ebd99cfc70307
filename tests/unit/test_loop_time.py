"""A handler that sleeps costs a test no real time: what an app waits for falls due by the test's clock."""

# ruff: noqa: ARG001 -- what a handler takes is its contract
# mypy: disable-error-code="unused-awaitable"

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from realtime import Grant, Heard, Identity, Realtime, Session, UpgradeRequest
from realtime.base.config import HandlerSettings, Settings
from realtime.testing import Peer, TestApp

LONG_S = 600
PATIENT = Settings(handlers=HandlerSettings(timeout_s=LONG_S * 2))
REAL_S = 30.0
"""More than any of these takes, and less than any of them sleeps."""


@pytest.fixture(autouse=True)
def no_real_time() -> Iterator[None]:
    """Demand that the test has not slept."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < REAL_S


async def sleeps() -> None:
    await asyncio.sleep(LONG_S)


async def in_a_task() -> None:
    await asyncio.gather(asyncio.create_task(sleeps()), sleeps())


async def by_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(LONG_S):
            await asyncio.Event().wait()


async def by_wait_for() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), LONG_S)


async def by_the_loop() -> None:
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    loop.call_at(loop.time() + LONG_S, woken.set)
    await woken.wait()


def elapsed_s(t: TestApp, since_ms: int) -> float:
    return (t.clock.now_ms() - since_ms) / 1000


@pytest.mark.parametrize("wait", [sleeps, in_a_task, by_timeout, by_wait_for, by_the_loop])
async def test_a_command_whose_handler_waits_is_answered_at_once(wait: Callable[[], Any]) -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> str:
        await wait()
        return "done"

    async with TestApp(app, PATIENT) as t:
        alice = await t.connect(user="alice")
        began_ms = t.clock.now_ms()
        assert await alice.ack("go") == "done"
        assert LONG_S <= elapsed_s(t, began_ms) < LONG_S + 1


def answered(peer: Peer) -> bool:
    return any(frame.type == "ack" for frame in peer.frames)


async def test_a_handler_goes_on_when_the_clock_has_come_to_its_time() -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> None:
        await asyncio.sleep(5)

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.send_text('{"type":"go","id":1}')
        t.clock.advance(4.9)
        await t.settle()
        assert not answered(alice)
        t.clock.advance(0.2)
        await t.settle()
        assert answered(alice)


async def test_a_handler_over_its_time_is_answered_timeout_by_the_clock() -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> None:
        await sleeps()

    async with TestApp(app, Settings(handlers=HandlerSettings(timeout_s=20))) as t:
        alice = await t.connect(user="alice")
        began_ms = t.clock.now_ms()
        assert (await alice.command("go")).data["code"] == "timeout"
        assert 20 <= elapsed_s(t, began_ms) < 21


async def test_hooks_that_sleep_cost_no_real_time() -> None:
    app, ran = Realtime(), list[str]()

    @app.authenticate
    async def who(request: UpgradeRequest) -> Identity:
        await asyncio.sleep(5)
        return Identity(request.query["token"])

    @app.authorize("room:{name}")
    async def may(session: Session, name: str) -> Grant:
        await sleeps()
        return Grant("subscribe")

    async def hook() -> None:
        # Less than drain.grace_s, which would cut it off.
        await asyncio.sleep(6)
        ran.append("hook")

    app.on_open(hook)
    app.on_close(hook)
    app.on_drain(hook)
    async with TestApp(app, PATIENT) as t:
        alice = await t.connect(token="alice")
        assert (await alice.command("subscribe", channel="room:1")).type == "subscription_confirmed"
        assert ran == ["hook"]
    assert len(ran) == 3


async def test_listeners_and_jobs_sleep_by_the_clock() -> None:
    app, heard, ran = Realtime(), list[Any](), list[int]()

    @app.listen("room:*")
    async def listener(event: Heard[int]) -> None:
        await asyncio.sleep(5)
        heard.append(event.data)

    @app.every(60, at_start=True)
    async def job() -> None:
        await asyncio.sleep(5)
        ran.append(t.clock.now_ms())

    async with TestApp(app) as t:
        app.publish("room:1", "tick", 1)
        assert await t.until(lambda: heard == [1] and len(ran) == 1)
        t.clock.advance(60)
        assert await t.until(lambda: len(ran) == 2)
        assert ran[1] - ran[0] >= 60_000


async def test_a_task_of_a_session_ticks_by_the_clock() -> None:
    app = Realtime()

    async def tick(session: Session) -> None:
        while True:
            await asyncio.sleep(1)
            session.send({"type": "tick", "data": None})

    app.on("watch")(lambda session: session.spawn(tick(session)) and None)
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.ack("watch")
        for _ in range(3):
            alice.refute("tick")
            t.clock.advance(1)
            await t.settle()
            await alice.expect("tick")


async def test_a_task_of_the_lifespan_sleeps_by_the_clock_and_the_lifespan_itself_does_not() -> None:
    beats: list[int] = []

    @asynccontextmanager
    async def lifespan(app: Realtime) -> AsyncIterator[None]:
        async def beat() -> None:
            while True:
                await asyncio.sleep(30)
                beats.append(1)

        await asyncio.sleep(0.01)
        task = asyncio.create_task(beat())
        yield
        task.cancel()

    async with TestApp(Realtime(lifespan)) as t:
        await t.settle()
        for _ in range(2):
            t.clock.advance(30)
            await t.settle()
    assert len(beats) == 2


async def test_a_handler_that_never_ends_is_ended_by_the_clock_at_the_end() -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> None:
        await asyncio.Event().wait()

    async with TestApp(app) as t:
        await (await t.connect(user="alice")).send("go")


async def test_a_socket_and_a_thread_of_a_handler_are_given_real_time() -> None:
    app = Realtime()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        writer.write(b"hello\n")
        writer.close()

    @app.on("socket")
    async def ask(session: Session) -> str:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            line = await reader.readline()
            writer.close()
            return line.decode()

    @app.on("thread")
    async def threaded(session: Session) -> str:
        await asyncio.wait_for(asyncio.to_thread(time.sleep, 0.005), 5)
        return "done"

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack("socket") == "hello\n"
        assert await alice.ack("thread") == "done"


async def test_the_test_itself_keeps_real_time_and_the_loop_is_left_as_it_was() -> None:
    loop = asyncio.get_running_loop()
    before = loop.call_later
    async with TestApp(Realtime()) as t, TestApp(Realtime()):
        began_s = loop.time()
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        await asyncio.gather(asyncio.create_task(asyncio.sleep(0.01)))
        assert loop.time() - began_s < REAL_S
        assert t.clock.now_ms() == 1_767_268_800_000
        assert loop.call_later != before
    assert loop.call_later == before
    assert not {"time", "call_later", "call_at"} & set(vars(loop))


def test_it_holds_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> str:
        await sleeps()
        return "done"

    async def main() -> None:
        async with TestApp(app, PATIENT) as t:
            assert await (await t.connect(user="alice")).ack("go") == "done"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
