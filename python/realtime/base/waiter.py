"""A wait of some event loop for an outcome that the server's loop, or the end of it, brings.

Apps may wait on loops of their own: `asyncio.run` in a handler's thread, a framework's portal. A future may be settled
on its own loop's thread alone, so each wait knows its loop, which is woken the way that loops allow from outside. A
loop that has been closed meanwhile waits for nothing, and one that gave up (a cancel, a time-out) takes no outcome.
Called by `broadcaster` alone.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import suppress
from threading import get_ident
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """One wait, made on the loop that waits; it is settled from any thread, and the first outcome counts."""

    __slots__ = ("_future", "_loop", "_thread")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._future: asyncio.Future[T] = self._loop.create_future()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the outcome."""
        return self._future.__await__()

    def settle(self, outcome: T) -> None:
        """End the wait with an outcome."""
        self._on_its_loop(self._future.set_result, outcome)

    def fail(self, error: BaseException) -> None:
        """End the wait with an exception."""
        self._on_its_loop(self._future.set_exception, error)

    def _on_its_loop(self, put: Callable[[Any], None], outcome: object) -> None:
        if get_ident() == self._thread:
            self._put(put, outcome)
            return
        # Closed: whoever waited has gone with the loop.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put, put, outcome)

    def _put(self, put: Callable[[Any], None], outcome: object) -> None:
        if not self._future.done():
            put(outcome)
