"""Jobs: when they run, that they never overlap, and that they go on."""

# ruff: noqa: ARG005 -- what a job takes is its contract
# mypy: disable-error-code="unused-awaitable"

import asyncio
import threading
import time

import pytest

from realtime import Realtime, Refused
from realtime.base.config import HandlerSettings, Settings
from realtime.testing import TestApp


async def test_a_job_runs_every_period_by_the_app_s_clock() -> None:
    app, ran = Realtime(), list[int]()
    app.every(60)(lambda: ran.append(app.clock.now_ms()))
    async with TestApp(app, now_ms=1_000_000) as t:
        t.clock.advance(59.999)
        assert ran == []
        t.clock.advance(0.001)
        t.clock.advance(120)
        assert ran == [1_060_000, 1_120_000, 1_180_000]
    assert t._clock.next_ms() is None


async def test_a_job_may_run_at_the_start_too() -> None:
    app, ran = Realtime(), list[str]()

    @app.every(60, at_start=True)
    async def greet() -> None:
        ran.append("ran")

    async with TestApp(app) as t:
        await t.settle()
        assert ran == ["ran"]
        t.clock.advance(60)
        await t.settle()
        assert ran == ["ran", "ran"]


async def test_a_job_never_overlaps_itself_and_makes_up_for_nothing() -> None:
    app, gate, ran = Realtime(), asyncio.Event(), list[int]()

    @app.every(10)
    async def long() -> None:
        ran.append(app.clock.now_ms())
        await gate.wait()

    async with TestApp(app, now_ms=1_000_000) as t:
        t.clock.advance(10)
        await t.settle()
        t.clock.advance(35)
        await t.settle()
        assert ran == [1_010_000]
        gate.set()
        await t.settle()
        t.clock.advance(5)
        await t.settle()
        t.clock.advance(10)
        await t.settle()
        assert ran == [1_010_000, 1_050_000, 1_060_000]


@pytest.mark.parametrize("kind", ["plain", "async", "thread"])
async def test_a_job_that_fails_is_logged_and_goes_on(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    app, ran = Realtime(), list[str]()

    def fail() -> None:
        ran.append(threading.current_thread().name)
        raise Refused("internal", "nobody is asked here")

    async def fail_later() -> None:
        if ran:
            # As where something that it awaits was cancelled.
            fail_silently()
        fail()

    def fail_silently() -> None:
        ran.append("cancelled")
        raise asyncio.CancelledError

    app.every(1, thread=kind == "thread")(fail_later if kind == "async" else fail)
    async with TestApp(app) as t:
        for _ in range(3):
            t.clock.advance(1)
            await t.settle()
        assert len(ran) == 3
    assert caplog.text.count("failed; it goes on") == 3
    assert all(name.startswith("realtime-handler") for name in ran) == (kind == "thread")


async def test_a_plain_job_that_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()

    @app.every(1)
    def heavy() -> None:
        time.sleep(0.02)

    async with TestApp(app, Settings(handlers=HandlerSettings(slow_ms=5))) as t:
        t.clock.advance(1)
    assert "heavy held the event loop for" in caplog.text


async def test_the_drain_begins_no_job_and_waits_for_those_under_way() -> None:
    app, seen = Realtime(), list[str]()
    app.policy("ledger:*", durable=True)

    @app.every(1)
    async def work() -> None:
        seen.append("begun")
        await asyncio.sleep(0.01)
        await app.publish("ledger:1", "line", {})
        seen.append("stored")

    async with TestApp(app) as t:
        t.clock.advance(1)
        await asyncio.sleep(0)
    assert seen == ["begun", "stored"]


def test_what_cannot_be_a_job_is_refused_when_it_is_registered() -> None:
    app = Realtime()

    async def later() -> None: ...

    for seconds in (0, -1, float("nan"), float("inf"), 0.0001):
        with pytest.raises(ValueError, match=r"use a number of seconds from 0\.001"):
            app.every(seconds)
    with pytest.raises(TypeError, match="takes 1 arguments; it is called without any"):
        app.every(1)(lambda session: None)
    with pytest.raises(TypeError, match="is async and thread=True"):
        app.every(1, thread=True)(later)
