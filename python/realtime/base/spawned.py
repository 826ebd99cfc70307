"""Tasks that belong to a session: `session.spawn`.

A `Session` holds no task, so that an idle one stays small; the table is here and has an entry only for connections that
have a task. Tasks are cancelled when their connection closes, and awaited at the drain. Called by `connections`, on the
loop's thread.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from realtime.base.containment import contained
from realtime.base.errors import Refused

log = logging.getLogger("realtime")

T = TypeVar("T")


class SpawnedTasks:
    """Every task that a session has, by connection.

    Args:
        per_session_max: tasks of one connection at once.
    """

    def __init__(self, per_session_max: int) -> None:
        self._per_session_max = per_session_max
        self._by_conn: dict[int, set[asyncio.Task[Any]]] = {}
        # Those that were cancelled and clean up; their connection is gone.
        self._ending: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many are not done, those that clean up included."""
        return sum(map(len, self._by_conn.values())) + len(self._ending)

    def spawn(self, conn: int, work: Coroutine[Any, Any, T], about: str, *, is_open: bool) -> asyncio.Task[T]:
        """Run `work` until it ends or the connection closes; where that is closed already, it never begins.

        Args:
            conn: the connection.
            work: what runs.
            about: whose it is, for the log.
            is_open: whether the connection is.

        Raises:
            RuntimeError: on another thread than the loop's.
            Refused: `limit_reached`, where the connection has as many tasks as it may have.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            work.close()
            raise RuntimeError("spawn was called on a thread; call it on the event loop's") from None
        if len(self._by_conn.get(conn, ())) >= self._per_session_max:
            work.close()
            told = f"{self._per_session_max} tasks of this session are under way (handlers.tasks_per_session_max)"
            raise Refused("limit_reached", f"{told}; wait until one has ended")
        task = loop.create_task(contained(work))
        if is_open:
            self._by_conn.setdefault(conn, set()).add(task)
        else:
            self._end(task)
        task.add_done_callback(lambda done: self._done(conn, done, about))
        return task

    def closed(self, conn: int) -> None:
        """Cancel what the connection had under way."""
        for task in self._by_conn.pop(conn, ()):
            self._end(task)

    async def finish(self, timeout_s: float) -> int:
        """Cancel every task and wait until it has ended. Returns how many had not after `timeout_s`."""
        for conn in list(self._by_conn):
            self.closed(conn)
        if not self._ending:
            return 0
        _, left = await asyncio.wait(self._ending, timeout=timeout_s)
        return len(left)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._ending.add(task)
        task.cancel()

    def _done(self, conn: int, task: asyncio.Task[Any], about: str) -> None:
        self._ending.discard(task)
        tasks = self._by_conn.get(conn)
        if tasks is not None:
            tasks.discard(task)
            if not tasks:
                del self._by_conn[conn]
        if (error := _failure(task)) is not None:
            log.error("a task of %s failed", about, exc_info=error)


def _failure(task: asyncio.Task[Any]) -> BaseException | None:
    """Return what a task failed by; None where it ended well or was itself cancelled."""
    if not task.cancelled():
        return task.exception()
    if task.cancelling():
        return None
    try:
        task.result()
    except asyncio.CancelledError as error:
        # Something that it awaited was cancelled.
        return error
    return None
