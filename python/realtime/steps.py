"""Looking at the clock around each step of a coroutine: what an `async` function does between two waits holds the loop.

A task shows nothing of that: it was the turn of some handler, and everybody else waited. `timed` drives a coroutine as
`await` does and names it in the log where one step took too long. Called by `routing` around handlers and hooks.
"""

import time
from collections.abc import Awaitable, Coroutine, Generator
from types import CoroutineType
from typing import Any, TypeVar

from realtime.logs import name_slow

T = TypeVar("T")


class _Timed:
    __slots__ = ("_coroutine", "_slow_s", "_what")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], what: str, slow_s: float) -> None:
        self._coroutine = coroutine
        self._what = what
        self._slow_s = slow_s

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, clock = self._coroutine, time.perf_counter
        failure: BaseException | None = None
        while True:
            started_s = clock()
            try:
                waited_for = coroutine.send(None) if failure is None else coroutine.throw(failure)
            except StopIteration as end:
                return end.value
            finally:
                failure = None
                if (took_s := clock() - started_s) > self._slow_s:
                    name_slow(self._what, took_s, "move what takes so long to a thread: asyncio.to_thread")
            try:
                # Tasks send nothing but None.
                yield waited_for
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 -- it belongs to the coroutine, cancellation too
                failure = error


def timed(awaitable: Awaitable[T], what: str, slow_s: float) -> Awaitable[T]:
    """Return what awaits `awaitable` and names it as `what` where a step of it holds the loop for over `slow_s`."""
    return _Timed(awaitable, what, slow_s) if isinstance(awaitable, CoroutineType) else awaitable
