"""Whatever an author's code raises ends where it was called: one error, one traceback, and the server lives."""

# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract
# mypy: disable-error-code="unused-awaitable"

import asyncio
import functools
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import pytest

from realtime import Call, Grant, Heard, Identity, Realtime, Session, UpgradeRequest
from realtime.base.config import HandlerSettings, Settings
from realtime.base.containment import goes_on
from realtime.testing import NotLetIn, TestApp


def exits() -> NoReturn:
    sys.exit(3)


def interrupts() -> NoReturn:
    raise KeyboardInterrupt


def closes() -> NoReturn:
    raise GeneratorExit


def cancels() -> NoReturn:
    raise asyncio.CancelledError


async def awaits_a_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    await task


PLAIN = [exits, interrupts, closes, cancels]
plain = pytest.mark.parametrize("fail", PLAIN)


async def fails(fail: Callable[[], Any]) -> None:
    await asyncio.sleep(0)
    result = fail()
    if result is not None:
        await result


later = pytest.mark.parametrize("fail", [*PLAIN, awaits_a_cancelled_task])


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def commanded(app: Realtime, caplog: pytest.LogCaptureFixture, types: tuple[str, ...] = ("go",)) -> None:
    """Send each command and demand one error, one traceback, and that others are served on."""
    async with TestApp(app) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for type in types:
            caplog.clear()
            answer = await alice.command(type)
            assert (answer.type, answer.data["code"]) == ("error", "internal"), type
            (record,) = errors(caplog)
            assert record.exc_info
            assert (await alice.command("ping")).type == "pong"
            assert (await bob.command("ping")).type == "pong"


@plain
async def test_a_plain_handler_and_one_in_a_thread_answer_internal(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    app.on("go")(lambda session: fail())
    app.on("thread", thread=True)(lambda session: fail())
    await commanded(app, caplog, ("go", "thread"))


@later
async def test_an_async_handler_answers_internal(fail: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> None:
        await fails(fail)

    @app.on("at_once")
    async def at_once(session: Session) -> None:
        result = fail()
        if result is not None:
            await result

    await commanded(app, caplog, ("go", "at_once"))


@later
async def test_a_middleware_that_fails_answers_internal(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    app.on("go")(lambda session: 1)

    @app.middleware
    async def around(call: Call, proceed: Callable[[Call], Any]) -> Any:
        await fails(fail)

    await commanded(app, caplog)


async def test_what_comes_behind_a_command_that_failed_is_carried_out(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()
    app.on("next")(lambda session: "done")

    @app.on("go")
    async def go(session: Session) -> None:
        await awaits_a_cancelled_task()

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        for number, type in enumerate(("go", "next", "go", "next")):
            t.engine.client_send(alice._link, f'{{"type":"{type}","id":{number}}}')
        await t.settle()
        answers = [(frame.id, frame.type) for frame in alice.frames if frame.id is not None]
        assert answers == [(0, "error"), (1, "ack"), (2, "error"), (3, "ack")]


@later
@pytest.mark.parametrize("is_async", [False, True])
async def test_an_authorize_hook_that_fails_answers_internal(
    fail: Callable[[], Any], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    if is_async or fail is awaits_a_cancelled_task:

        @app.authorize("room:{name}")
        async def hook(session: Session, name: str) -> Grant | None:
            await fails(fail)
            return None
    else:

        @app.authorize("room:{name}")
        def plain_hook(session: Session, name: str) -> Grant | None:
            fail()
            return None

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        answer = await alice.command("subscribe", channel="room:1")
        assert (answer.type, answer.data["code"]) == ("error", "internal")
        assert len(errors(caplog)) == 1
        assert (await alice.command("ping")).type == "pong"


@later
async def test_an_authenticate_hook_that_fails_lets_nobody_in(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()

    @app.authenticate
    async def who(request: UpgradeRequest) -> Identity | None:
        if request.query.get("token") == "good":
            return Identity("alice")
        await fails(fail)
        return None

    async with TestApp(app) as t:
        with pytest.raises(NotLetIn):
            await t.connect(token="bad")
        assert len(errors(caplog)) == 1
        assert (await (await t.connect(token="good")).command("ping")).type == "pong"


@later
@pytest.mark.parametrize("is_async", [False, True])
async def test_hooks_that_fail_are_told_once_each_and_the_next_hook_runs(
    fail: Callable[[], Any], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    ran: list[str] = []
    hook = functools.partial(fails, fail) if is_async else fail

    app.on_open(hook)
    app.on_close(hook)
    app.on_drain(hook)
    app.on_open(lambda: ran.append("open"))
    app.on_close(lambda: ran.append("close"))
    app.on_drain(lambda: ran.append("drain"))
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert (await alice.command("ping")).type == "pong"
        await alice.close()
        assert (await (await t.connect(user="bob")).command("ping")).type == "pong"
    assert ran == ["open", "close", "open", "drain", "close"]
    assert len(errors(caplog)) == len(ran)


@later
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_fails_hears_the_next_event(
    fail: Callable[[], Any], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    heard: list[Any] = []
    if is_async or fail is awaits_a_cancelled_task:

        @app.listen("room:*")
        async def listener(event: Heard[int]) -> None:
            heard.append(event.data)
            await fails(fail)
    else:

        @app.listen("room:*")
        def plain_listener(event: Heard[int]) -> None:
            heard.append(event.data)
            fail()

    async with TestApp(app) as t:
        for number in (1, 2):
            app.publish("room:1", "tick", number)
            await t.settle()
    assert heard == [1, 2]
    assert len(errors(caplog)) == 2


@later
@pytest.mark.parametrize("runs", ["inline", "task", "thread"])
async def test_a_job_that_fails_runs_again(
    fail: Callable[[], Any], runs: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    runs_of_it = 0

    def begin() -> None:
        nonlocal runs_of_it
        runs_of_it += 1

    if runs == "task" or fail is awaits_a_cancelled_task:

        @app.every(10)
        async def job() -> None:
            begin()
            await fails(fail)
    else:

        @app.every(10, thread=runs == "thread")
        def plain_job() -> None:
            begin()
            fail()

    async with TestApp(app) as t:
        for number in (1, 2):
            t.clock.advance(10)
            assert await t.until(lambda number=number: runs_of_it == number and len(errors(caplog)) == number)


@later
async def test_a_task_of_a_session_that_fails_is_told_once(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()
    app.on("go")(lambda session: session.spawn(fails(fail)) and None)
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.ack("go")
        await t.settle()
        assert len(errors(caplog)) == 1
        assert (await alice.command("ping")).type == "pong"


async def test_a_task_of_a_session_that_its_author_cancels_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()
    app.on("go")(lambda session: session.spawn(asyncio.Event().wait()).cancel() and None)
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.ack("go")
        await t.settle()
        assert not errors(caplog)


@later
async def test_a_raw_handler_that_fails_gets_the_next_message(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = Realtime()

    @app.raw("/raw")
    async def raw(session: Session, message: str | bytes) -> None:
        if message == "fail":
            await fails(fail)
        session.send(message)

    async with TestApp(app) as t:
        alice = await t.connect(user="alice", path="/raw")
        await alice.send_text("fail")
        await alice.send_text("next")
        await alice.expect_message("next")
        assert len(errors(caplog)) == 1


async def test_a_handler_that_the_drain_cuts_off_answers_draining(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()

    @app.on("go")
    async def go(session: Session) -> None:
        await asyncio.Event().wait()

    async with TestApp(app, Settings(handlers=HandlerSettings(timeout_s=60))) as t:
        alice = await t.connect(user="alice")
        t.engine.client_send(alice._link, '{"type":"go","id":1}')
        t.pump()
        await asyncio.sleep(0)
        await t.control.finish(0)
        t.pump()
        assert [frame.data["code"] for frame in alice.frames if frame.id == 1] == ["draining"]
        assert not errors(caplog)


def test_what_a_signal_handler_raises_goes_on() -> None:
    def handler(number: int, _: FrameType | None, *, code: int) -> None:
        sys.exit(code)

    before = signal.signal(signal.SIGUSR1, functools.partial(handler, code=4))
    try:
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGUSR1)
        assert goes_on(caught.value)
        with pytest.raises(SystemExit) as other:
            exits()
        assert not goes_on(other.value)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_ctrl_c_goes_on_where_the_interpreter_raises_it() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert goes_on(caught.value)
        signal.signal(signal.SIGINT, lambda *_: None)
        assert not goes_on(caught.value)
    finally:
        signal.signal(signal.SIGINT, before)
