"""The time limit of what a task awaits; `asyncio.timeout` would not follow our clock.

It is armed when there is something to wait for, so that a coroutine that never waits costs no timer. Called by
`routing`, within the task that it may cancel.
"""

import asyncio

from realtime.base.clock import Clock, Timer


class Deadline:
    """Cancels the current task `timeout_s` after `arm`, unless it has ended by then.

    `cut` tells its cancellation from another one.
    """

    __slots__ = ("_clock", "_task", "_timeout_s", "_timer", "passed")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._task: asyncio.Task[object] | None = None
        self._timer: Timer | None = None
        self.passed = False

    def arm(self) -> "Deadline":
        """Let the time run from now on, unless it runs already: one limit holds for all that is waited for."""
        if self._timer is not None:
            return self
        self._task = asyncio.current_task()
        self._timer = self._clock.call_later(self._timeout_s, self._expire)
        return self

    def cut(self, error: BaseException) -> bool:
        """Whether `error` is this deadline's cancellation."""
        return self.passed and isinstance(error, asyncio.CancelledError)

    def end(self) -> None:
        """Let go of the timer; what was cancelled by it is no longer."""
        if self._timer is not None:
            self._timer.cancel()
        if self.passed and self._task is not None:
            self._task.uncancel()

    def _expire(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()
