"""Lanes: the steps of a session one after the other, those of several sessions beside each other.

A step that is over when it returns needs none. One that returns work (a coroutine) opens the session's lane, where what
comes for the session meanwhile waits; the lane is gone when it is worked off.

Work is begun in the tasks of a batch: one task takes lane after lane for as long as none of them has to wait. Before it
begins one, and others are left, it has the next task made, which goes on with them if this one waits. So a hundred
handlers that never wait cost two tasks, and a hundred that do about as many as themselves. Each handler still runs in a
task that is its own while it runs; `routing` gives each the context of its own that a task of its own would have had.

Invariants: a session's steps are begun in the order they came; a task that holds the loop for `_HOLD_S` lets others
run before the next lane. Called by `routing` alone, on the loop's thread.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Final, TypeAlias

from realtime.control.connections import Session

Work: TypeAlias = Coroutine[Any, Any, None]
Step: TypeAlias = Callable[[Session, Any], Work | None]
Lane: TypeAlias = deque[tuple[Step, Any]]

_HOLD_S: Final = 0.002


class Lanes:
    """Every session that has something under way.

    Args:
        wake: called when what a lane has buffered is to be submitted.
        left: told of each step that is left over where a lane's task was cut off: only at the end of the server.
    """

    def __init__(self, wake: Callable[[], None], left: Callable[[Session, Step, Any], None]) -> None:
        self._wake = wake
        self._left = left
        self._by_conn: dict[int, Lane] = {}
        self.find = self._by_conn.get
        """Return the lane of a connection; None where nothing is under way."""
        self._begun: deque[tuple[Session, Lane, Work]] = deque()
        self._is_coming = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> int:
        """How many tasks are under way."""
        return len(self._tasks)

    def take(self, session: Session, step: Step, subject: Any) -> None:
        """Call a step, at once or when its turn comes."""
        lane = self.find(session.conn)
        if lane is not None:
            lane.append((step, subject))
            return
        work = step(session, subject)
        if work is not None:
            self.open(session, work)

    def open(self, session: Session, work: Work) -> None:
        """Begin what a step has returned; until it is done the session's next steps wait."""
        lane: Lane = deque()
        self._by_conn[session.conn] = lane
        self._begun.append((session, lane, work))
        self._see_to_it()

    def spawn(self, work: Work) -> None:
        """Run `work` as a task that `finish` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self, timeout_s: float) -> None:
        """Wait until what is under way now has ended, at most `timeout_s`. Steps that come meanwhile are begun."""
        if tasks := set(self._tasks):
            await asyncio.wait(tasks, timeout=timeout_s)

    async def finish(self, timeout_s: float) -> int:
        """Wait until nothing is under way; after `timeout_s` cancel the rest.

        Returns:
            How many tasks were cancelled.
        """
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + timeout_s
        while self._tasks and (left_s := deadline_s - now_s()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        cancelled = list(self._tasks)
        for task in cancelled:
            task.cancel()
        if cancelled:
            await asyncio.wait(cancelled, timeout=1)
        while self._begun:
            # Whose task was cancelled before it began.
            self._begun.popleft()[2].close()
        return len(cancelled)

    def _see_to_it(self) -> None:
        if not self._is_coming:
            self._is_coming = True
            self.spawn(self._work_off_begun())

    async def _work_off_begun(self) -> None:
        self._is_coming = False
        begun = self._begun
        until_s = perf_counter() + _HOLD_S
        while begun:
            session, lane, work = begun.popleft()
            if begun:
                self._see_to_it()
            try:
                await self._work_off(session, lane, work)
            except GeneratorExit:
                if asyncio.current_task() is None:
                    raise
                self._see_to_it()
            if perf_counter() > until_s:
                # It has waited, or has held the loop: the next task has the rest.
                return

    async def _work_off(self, session: Session, lane: Lane, work: Work) -> None:
        waiting: Work | None = work
        goes_on = False
        until_s = perf_counter() + _HOLD_S
        try:
            while waiting is not None:
                await waiting
                waiting = None
                while lane and waiting is None:
                    if perf_counter() > until_s:
                        # Commands that never wait may be dear: others take their turn in between.
                        self._wake()
                        await asyncio.sleep(0)
                        until_s = perf_counter() + _HOLD_S
                    step, subject = lane.popleft()
                    waiting = step(session, subject)
                # Here and not at the end: what is waited for next may be the engine's answer to what was just buffered.
                self._wake()
        except GeneratorExit:
            # A future that a step awaited raised it: Python then closes everything up to the task. The step has
            # answered by now; what waits behind it is the task's to go on with.
            goes_on = asyncio.current_task() is not None
            raise
        finally:
            self._wake()
            if goes_on:
                self._begun.appendleft((session, lane, _nothing()))
            else:
                del self._by_conn[session.conn]
                for step, subject in lane:
                    self._left(session, step, subject)


async def _nothing() -> None:
    """Return at once."""
