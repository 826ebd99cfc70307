"""Time as Python's half of the server sees it: the wall clock in ms, its text, and timers.

Everything that waits or stamps takes a `Clock`, so that `testing` can move time by hand. While a batch of events is
handled the clock is held: every frame of the batch carries one time, read once. Durations go by a monotonic clock that
counts suspends, so that a ticket is over when its time is; only what is shown to clients is wall time.

`SystemClock` is made by `server`, `ManualClock` by `testing`.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Final, Protocol

# Where it is not Linux it is macOS, whose monotonic clock goes on during sleep.
_MONOTONIC: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Timer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None:
        """Make the call not happen; harmless after it happened."""


class Clock(Protocol):
    """What the server needs to know of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC."""

    def monotonic_ms(self) -> int:
        """Milliseconds since some moment; never jumps, so deadlines go by it."""

    def timestamp(self) -> str:
        """`now_ms` as clients see it: ISO 8601 in UTC with milliseconds and `Z`."""

    def hold(self) -> None:
        """Let time stand until `release`."""

    def release(self) -> None:
        """Let time go on."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once after `delay_s` seconds."""


class _Stamp:
    """The text of the last millisecond that was asked for; the part up to the second is kept longer."""

    __slots__ = ("_ms", "_second", "_second_text", "_text")

    def __init__(self) -> None:
        self._ms = -1
        self._text = ""
        self._second = -1
        self._second_text = ""

    def text(self, now_ms: int) -> str:
        if now_ms != self._ms:
            second, ms = divmod(now_ms, 1000)
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._ms = now_ms
            self._text = f"{self._second_text}.{ms:03d}Z"
        return self._text


class SystemClock:
    """The clock of the machine and the timers of the running loop. For one thread, but for `now_ms`."""

    __slots__ = ("_held_ms", "_held_text", "_loop", "_stamp")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held_ms = 0
        self._held_text: str | None = None
        self._stamp = _Stamp()

    def now_ms(self) -> int:
        """See `Clock`."""
        return self._held_ms or time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """See `Clock`."""
        return time.clock_gettime_ns(_MONOTONIC) // 1_000_000

    def timestamp(self) -> str:
        """See `Clock`."""
        if self._held_text is not None:
            return self._held_text
        text = self._stamp.text(self.now_ms())
        if self._held_ms:
            self._held_text = text
        return text

    def hold(self) -> None:
        """See `Clock`."""
        self._held_ms = time.time_ns() // 1_000_000
        self._held_text = None

    def release(self) -> None:
        """See `Clock`."""
        self._held_ms = 0
        self._held_text = None

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """See `Clock`."""
        return self._loop.call_later(delay_s, callback)


class ManualTimer:
    """A call that a `ManualClock` owes."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """See `Timer`."""
        self.callback = None


class ManualClock:
    """A clock that stands until it is moved. `advance` makes the calls that fall due, in order of their times."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._due: list[tuple[int, int, ManualTimer]] = []
        self._order = itertools.count()
        self._stamp = _Stamp()

    def now_ms(self) -> int:
        """See `Clock`."""
        return self._now_ms

    def monotonic_ms(self) -> int:
        """See `Clock`."""
        return self._now_ms

    def timestamp(self) -> str:
        """See `Clock`."""
        return self._stamp.text(self._now_ms)

    def hold(self) -> None:
        """Nothing to do: it stands already."""

    def release(self) -> None:
        """Nothing to do: only `advance` moves it."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> ManualTimer:
        """See `Clock`."""
        timer = ManualTimer(callback)
        heapq.heappush(self._due, (self._now_ms + round(delay_s * 1000), next(self._order), timer))
        return timer

    def next_ms(self) -> int | None:
        """When the next call falls due; None where none is owed."""
        while self._due and self._due[0][2].callback is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance_to(self, target_ms: int) -> None:
        """Move to `target_ms` and make every call that is due by then."""
        while (due_ms := self.next_ms()) is not None and due_ms <= target_ms:
            self._now_ms = max(self._now_ms, due_ms)
            callback = heapq.heappop(self._due)[2].callback
            if callback is not None:
                callback()
        self._now_ms = max(self._now_ms, target_ms)
