"""The event loop's timers by the clock of a test, for what the tested app runs and for nothing else.

`asyncio.sleep(5)` in a handler asks the loop for a timer, and so do `asyncio.timeout` and the time limits of libraries.
While a test is under way the loop gives those of the app's tasks by the test's `ManualClock`: they fall due when it is
moved. The test's own code, in the task that opened it or in tasks that it made, keeps real time. A context variable
tells the two apart: tasks inherit it from where they were made.

Invariant: a loop is left as it was found when the last test on it ends. Called by `testing`, on the loop's thread.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import Any, Final

from realtime.base.clock import ManualClock

_TIMERS: Final = ("time", "call_later", "call_at")
_current: ContextVar["LoopTime | None"] = ContextVar("realtime_loop_time", default=None)
_users: dict[int, int] = {}
"""Tests under way on a loop, by its id."""


class LoopTime:
    """The timers of one test's app.

    Args:
        clock: what they go by.
    """

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._inside = 0
        self._timers: dict[int, _Timer] = {}

    def begin(self) -> None:
        """Give the running loop's timers by the clock, to the app's tasks."""
        self._loop = loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        _users[id(loop)] = _users.get(id(loop), 0) + 1
        if _users[id(loop)] == 1:
            _patch(loop)

    def end(self) -> None:
        """Leave the loop as it was."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        _users[id(loop)] -= 1
        if not _users[id(loop)]:
            del _users[id(loop)]
            for name in _TIMERS:
                delattr(loop, name)

    @contextlib.contextmanager
    def of_app(self, *, runs: bool = True) -> Iterator[None]:
        """Take what the block runs, if it `runs` anything of the app's, and the tasks that it makes for the app's."""
        token = _current.set(self)
        self._inside += runs
        try:
            yield
        finally:
            self._inside -= runs
            _current.reset(token)

    def applies(self) -> bool:
        """Whether the caller is code of the app."""
        return self._inside > 0 or asyncio.current_task() is not self._owner

    @property
    def is_waited_for(self) -> bool:
        """Whether something of the app waits for a timer."""
        return bool(self._timers)

    def now_s(self) -> float:
        """Return the loop's time as the app sees it."""
        return self._clock.monotonic_ms() / 1000

    def arm(
        self, when_s: float, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context | None
    ) -> "asyncio.TimerHandle":
        """Call `callback` when the clock has come to `when_s`."""
        loop = asyncio.get_running_loop()
        timer = _Timer(when_s, callback, arguments, loop, context)
        timer.timers = self._timers
        self._timers[id(timer)] = timer
        # Whole milliseconds, and never at once: a loop of short sleeps moves on.
        delay_ms = max(1, math.ceil(round((when_s - self.now_s()) * 1000, 3)))
        self._clock.call_later(delay_ms / 1000, lambda: timer.fall_due(loop))
        return timer

    def is_alone(self) -> bool:
        """Whether nothing but timers can wake the loop: no socket of the app's and no thread. False where unknown."""
        selector = getattr(self._loop, "_selector", None)
        threads = getattr(self._loop, "_default_executor", None)
        # The one descriptor is the loop's own.
        return selector is not None and threads is None and len(selector.get_map() or ()) <= 1


class _Timer(asyncio.TimerHandle):
    timers: "dict[int, _Timer]"

    def cancel(self) -> None:
        self.timers.pop(id(self), None)
        # Not the timer's: the loop does not know of this one.
        asyncio.Handle.cancel(self)

    def fall_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timers.pop(id(self), None)
        if not self.cancelled() and not loop.is_closed():
            loop.call_soon(self._run)


def _patch(loop: asyncio.AbstractEventLoop) -> None:
    real_time, real_later, real_at = loop.time, loop.call_later, loop.call_at

    def test() -> LoopTime | None:
        current = _current.get()
        return current if current is not None and current.applies() else None

    def time() -> float:
        current = test()
        return real_time() if current is None else current.now_s()

    def call_later(
        delay: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        current = test()
        if current is None:
            return real_later(delay, callback, *arguments, context=context)
        return current.arm(current.now_s() + delay, callback, arguments, context)

    def call_at(
        when: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        current = test()
        if current is None:
            return real_at(when, callback, *arguments, context=context)
        return current.arm(when, callback, arguments, context)

    for name, function in zip(_TIMERS, (time, call_later, call_at), strict=True):
        setattr(loop, name, function)
