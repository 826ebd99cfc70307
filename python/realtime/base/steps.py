"""Looking at the clock around each step of a coroutine: what an `async` function does between two waits holds the loop.

A task shows nothing of that: it was the turn of some handler, and everybody else waited. `timed` drives a coroutine as
`await` does and names it in the log where one step took too long; `rest_of` does so from the second step on. Called by
`routing` around handlers and hooks. `Turn` is for work of our own that has many parts: it gives way between them.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from time import perf_counter
from types import CoroutineType
from typing import Any, Final, TypeVar

from realtime.base.logs import name_slow

T = TypeVar("T")
_NOTHING: Final = object()
_HOLD_S: Final = 0.005


class Turn:
    """Work on the event loop that lets others in between its parts."""

    __slots__ = ("_until_s",)

    def __init__(self) -> None:
        self._until_s = perf_counter() + _HOLD_S

    def is_over(self) -> bool:
        """Whether this has held the loop for 5 ms, so that it should `give_way`. A coroutine a part would cost more."""
        return perf_counter() >= self._until_s

    async def give_way(self) -> None:
        """Let others in."""
        await asyncio.sleep(0)
        self._until_s = perf_counter() + _HOLD_S


class _Timed:
    __slots__ = ("_context", "_coroutine", "_slow_s", "_waits_for", "_what")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], waits_for: object, context: Context | None, what: str, slow_s: float
    ) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for
        self._context = context
        self._what = what
        self._slow_s = slow_s

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, context, waits_for = self._coroutine, self._context, self._waits_for
        failure: BaseException | None = None
        while True:
            if waits_for is not _NOTHING:
                try:
                    # Tasks send nothing but None.
                    yield waits_for
                except GeneratorExit:
                    _run(context, coroutine.close)
                    raise
                except BaseException as error:  # noqa: BLE001 -- it belongs to the coroutine, cancellation too
                    failure = error
            started_s = perf_counter()
            try:
                if failure is None:
                    waits_for = _run(context, coroutine.send, None)
                else:
                    waits_for = _run(context, coroutine.throw, failure)
            except StopIteration as end:
                return end.value
            finally:
                failure = None
                if (took_s := perf_counter() - started_s) > self._slow_s:
                    name_step(self._what, took_s)


def _run(context: Context | None, step: Any, *arguments: object) -> Any:
    return step(*arguments) if context is None else context.run(step, *arguments)


def timed(awaitable: Awaitable[T], what: str, slow_s: float) -> Awaitable[T]:
    """Return what awaits `awaitable` and names it as `what` where a step of it holds the loop for over `slow_s`."""
    return _Timed(awaitable, _NOTHING, None, what, slow_s) if isinstance(awaitable, CoroutineType) else awaitable


def rest_of(
    coroutine: Coroutine[Any, Any, T], waits_for: object, context: Context, what: str, slow_s: float
) -> Awaitable[T]:
    """Return what awaits the rest of a coroutine whose first step was made by hand, in the task that awaits it.

    Args:
        coroutine: what is under way.
        waits_for: what its first step has given to its task.
        context: where its steps run.
        what: as of `timed`.
        slow_s: as of `timed`.
    """
    return _Timed(coroutine, waits_for, context, what, slow_s)


def name_step(what: str, took_s: float) -> None:
    """Say that a step of a coroutine held the loop."""
    name_slow(what, took_s, "move what takes so long to a thread: asyncio.to_thread")
