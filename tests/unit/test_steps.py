"""Coroutines whose steps are timed: nothing of what they do changes, and the step that holds the loop is named."""

import asyncio
import time

import pytest

from realtime.base.steps import timed


async def test_a_step_that_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def heavy() -> str:
        await asyncio.sleep(0)
        time.sleep(0.03)  # noqa: ASYNC251 -- on purpose
        await asyncio.sleep(0)
        return "done"

    assert await timed(heavy(), "handler of 'heavy'", 0.02) == "done"
    assert caplog.text.count("handler of 'heavy' held the event loop for") == 1


async def test_waiting_is_not_holding(caplog: pytest.LogCaptureFixture) -> None:
    await timed(asyncio.sleep(0.03), "sleep", 0.02)
    assert caplog.text == ""


async def test_what_is_raised_inside_and_outside_goes_its_way() -> None:
    seen = list[str]()

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        await timed(fails(), "fails", 1)

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def outer() -> None:
        await timed(waits(), "waits", 1)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_a_time_limit_inside_is_caught_inside() -> None:
    async def patient() -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            await asyncio.sleep(0)
            return "gave up"
        return ""

    assert await timed(patient(), "patient", 1) == "gave up"


async def test_what_is_no_coroutine_is_awaited_as_it_is() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(1)
    assert timed(future, "future", 1) is future
