"""Time: its text, and timers that are moved by hand."""

import asyncio

import pytest

from realtime.base.clock import ManualClock, SystemClock


@pytest.mark.parametrize(
    ("now_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_400_007, "2000-02-29T00:00:00.007Z"),
        (1_767_268_800_999, "2026-01-01T12:00:00.999Z"),
    ],
)
def test_a_timestamp_is_what_javascript_writes(now_ms: int, text: str) -> None:
    assert ManualClock(now_ms).timestamp() == text


def test_timers_run_in_the_order_of_their_times() -> None:
    clock, seen = ManualClock(0), []
    clock.call_later(2, lambda: seen.append(("b", clock.now_ms())))
    clock.call_later(1, lambda: seen.append(("a", clock.now_ms())))
    clock.advance_to(1_999)
    assert seen == [("a", 1_000)]
    clock.advance_to(5_000)
    assert seen == [("a", 1_000), ("b", 2_000)]
    assert clock.now_ms() == 5_000


def test_a_cancelled_timer_does_not_run_and_is_not_waited_for() -> None:
    clock, seen = ManualClock(0), list[int]()
    clock.call_later(1, lambda: seen.append(1)).cancel()
    assert clock.next_ms() is None
    clock.advance_to(2_000)
    assert seen == []


def test_a_timer_that_sets_another_is_followed() -> None:
    clock, seen = ManualClock(0), list[int]()

    def again() -> None:
        clock.call_later(1, lambda: seen.append(clock.now_ms()))

    clock.call_later(1, again)
    clock.advance_to(3_000)
    assert seen == [2_000]


async def test_the_system_clock_stands_while_a_batch_is_handled() -> None:
    clock = SystemClock(asyncio.get_running_loop())
    clock.hold()
    before = clock.now_ms()
    await asyncio.sleep(0.005)
    assert clock.now_ms() == before
    clock.release()
    assert clock.now_ms() > before
