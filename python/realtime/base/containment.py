"""Which exceptions of an author's code end where it was called: the one rule for handlers, hooks, listeners and jobs.

A library may call `sys.exit`, raise `KeyboardInterrupt` or `GeneratorExit`, or await a task that another one cancelled.
All of that is a failure of the code that was called: one `error`, one traceback, and the server lives. `goes_on` names
the exceptions that are not: the cancellation of the task itself (by a deadline or the drain), a coroutine that is
closed, and what a signal handler raised, such as Ctrl-C. What a task or a callback raises that an author made without
us comes out of the event loop; `run` goes on with that.

Called where an author's code is called: `routing`, `listening`, `periodic`, `spawned`, `control`, the HTTP side, and
`cli.serving`, which runs the loop.
"""

import asyncio
import functools
import inspect
import logging
import signal
import traceback
from collections.abc import Callable, Coroutine
from types import CodeType
from typing import Any, TypeVar

from realtime.base import forks

log = logging.getLogger("realtime")

T = TypeVar("T")


def goes_on(error: BaseException, *, awaited: bool = True) -> bool:
    """Whether `error`, which came out of an author's code, is to be raised again. In a forked child: end that child.

    Args:
        error: what came.
        awaited: False where the code was called and not awaited: then no coroutine of ours can have been closed.
    """
    if forks.is_child():
        forks.end(error)
    match error:
        case asyncio.CancelledError():
            task = _task()
            return task is not None and task.cancelling() > 0
        case GeneratorExit():
            # Only outside of every task is a coroutine closed; within one somebody raised it.
            return awaited and _task() is None
        case SystemExit() | KeyboardInterrupt():
            return _is_of_signal(error)
        case _:
            return False


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, whatever is raised beside it.

    Tasks and callbacks hand `SystemExit` and `KeyboardInterrupt` on to whoever runs the loop. Whoever awaits such a
    task gets the exception from it as well.
    """
    task = loop.create_task(work)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done() or goes_on(error):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown"
            log.error("a task or a callback raised %r (%s); the server goes on", error, where)


def in_thread(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Call a function of an author's in a thread, for a future that a coroutine awaits.

    Raises:
        RuntimeError: for what no future can carry: `StopIteration`, as `next` without a default raises it, and
            `GeneratorExit`, which would close whatever awaits it.
    """
    try:
        return forks.called(function, arguments)
    except (StopIteration, GeneratorExit) as error:
        raise RuntimeError(f"a function in a thread raised {error!r}") from error


def contained(work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """Return `work` as a coroutine for a task of its own, which ends by exceptions alone that end no event loop.

    A task hands `SystemExit` and `KeyboardInterrupt` on to whoever runs the loop; here they become a `RuntimeError`
    with the original as its cause.
    """
    return _Contained(work)


class _Contained(Coroutine[Any, Any, T]):
    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self.__name__ = getattr(work, "__name__", type(work).__name__)
        self.__qualname__ = getattr(work, "__qualname__", self.__name__)

    def __await__(self) -> Any:
        return self._work.__await__()

    def __repr__(self) -> str:
        return repr(self._work)

    def send(self, value: Any) -> Any:
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._work.throw, *error)

    def close(self) -> None:
        self._work.close()

    def _step(self, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            if goes_on(error):
                raise
            raise RuntimeError(f"a task raised {error!r}; raise another exception to end it") from error


def _task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _is_of_signal(error: BaseException) -> bool:
    """Whether a signal handler raised it: the interpreter's own leaves no frame, others are in the traceback."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        return True
    handlers = set(filter(None, map(_code_of, map(signal.getsignal, signal.valid_signals()))))
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = inspect.unwrap(handler) if callable(handler) else handler
    code: CodeType | None = getattr(handler, "__code__", None)
    return code
