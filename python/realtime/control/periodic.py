"""What an app does every so often: `@app.every(seconds)`.

A job that is due runs once and is due again at the next whole period after it has ended: it never overlaps itself, and
what was missed meanwhile is not made up for. A failure is logged and the job goes on. Time is `Clock`'s, so tests drive
jobs by hand. Jobs run from the moment the app is served to the beginning of the drain, which waits for those under way.

Called by `control`, on the loop's thread.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal

from msgspec import Struct

from realtime.base.clock import Clock, Timer
from realtime.base.containment import goes_on
from realtime.base.logs import name_slow
from realtime.control.signatures import is_async, name_of, positional

log = logging.getLogger("realtime")

_PERIOD_MIN_S = 0.001


class Job(Struct, frozen=True, eq=False):
    """Something to be done every `period_s` seconds."""

    call: Callable[..., Any]
    period_s: float
    runs: Literal["inline", "task", "thread"]
    at_start: bool


def bind(job: Callable[..., Any], seconds: float, *, at_start: bool, thread: bool) -> Job:
    """Find out what must be known of a job.

    Raises:
        TypeError: it takes arguments; `thread=True` on an `async def`.
    """
    takes = positional(job)
    if takes:
        raise TypeError(f"job {name_of(job)} takes {len(takes)} arguments; it is called without any")
    if thread and is_async(job):
        raise TypeError(f"job {name_of(job)} is async and thread=True; use one of the two")
    if thread:
        return Job(job, seconds, "thread", at_start)
    return Job(job, seconds, "task" if is_async(job) else "inline", at_start)


def checked_period_s(seconds: float) -> float:
    """Return `seconds` if a job may have that period.

    Raises:
        ValueError: less than a millisecond, or no number.
    """
    if not _PERIOD_MIN_S <= seconds < float("inf"):
        raise ValueError(f"every {seconds} s; use a number of seconds from {_PERIOD_MIN_S}")
    return seconds


class PeriodicJobs:
    """The jobs of a served app.

    Args:
        jobs: what was registered.
        clock: what they go by.
        slow_s: who holds the loop for longer is named in the log.
        spawn: runs a coroutine as a task that the drain waits for.
        in_thread: runs a function with arguments in a thread.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        clock: Clock,
        slow_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        in_thread: Callable[[Callable[..., Any], tuple[Any, ...]], Awaitable[Any]],
    ) -> None:
        self._jobs = tuple(jobs)
        self._clock = clock
        self._slow_s = slow_s
        self._spawn = spawn
        self._in_thread = in_thread
        self._timers: dict[Job, Timer] = {}
        self._ended = False

    def start(self) -> None:
        """Begin: what is wanted at the start is run now, everything else after its period."""
        for job in self._jobs:
            now_ms = self._clock.monotonic_ms()
            if job.at_start:
                self._run(job, now_ms)
            else:
                self._arm(job, now_ms + _ms(job.period_s))

    def stop(self) -> None:
        """Run nothing more; what is under way goes on."""
        self._ended = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _arm(self, job: Job, due_ms: int) -> None:
        delay_s = max(0, due_ms - self._clock.monotonic_ms()) / 1000
        self._timers[job] = self._clock.call_later(delay_s, lambda: self._run(job, due_ms))

    def _run(self, job: Job, due_ms: int) -> None:
        if job.runs != "inline":
            self._spawn(self._run_later(job, due_ms))
            return
        started_s = time.perf_counter()
        try:
            job.call()
        except BaseException as error:
            if goes_on(error, awaited=False):
                raise
            log.exception("job %s failed; it goes on", name_of(job.call))
        if (took_s := time.perf_counter() - started_s) > self._slow_s:
            name_slow(f"job {name_of(job.call)}", took_s)
        self._again(job, due_ms)

    async def _run_later(self, job: Job, due_ms: int) -> None:
        try:
            await (self._in_thread(job.call, ()) if job.runs == "thread" else job.call())
        except BaseException as error:
            if goes_on(error):
                raise
            log.exception("job %s failed; it goes on", name_of(job.call))
        finally:
            # In every case: a job that awaited something that was cancelled is not over for that.
            self._again(job, due_ms)

    def _again(self, job: Job, due_ms: int) -> None:
        if self._ended:
            return
        period_ms = _ms(job.period_s)
        behind_ms = max(0, self._clock.monotonic_ms() - due_ms)
        self._arm(job, due_ms + (behind_ms // period_ms + 1) * period_ms)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
