"""The signals of a serving process: SIGTERM and SIGINT end it in order, a second one at once, SIGHUP reads anew.

The interpreter's own handlers and not the loop's: the second signal must end a process whose loop is held by a handler,
too. npm, make, compose and `tini -g` pass Ctrl-C on twice, so signals within `REPEAT_S` of the first are one wish. A
forked child gets back what was there before. Called by `server.serve`.
"""

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from realtime.base import forks

REPEAT_S: Final = 1.0
"""From so long after the first on, a signal is a second one."""
_SIGNALLED: Final = 128


@contextlib.contextmanager
def handled(end: Callable[[], None], reread: Callable[[], None]) -> Iterator[None]:
    """Handle signals for the time of the block, on the main thread and within the event loop.

    Args:
        end: called on the loop at the first SIGTERM or SIGINT.
        reread: called on the loop at SIGHUP.
    """
    loop = asyncio.get_running_loop()
    asked_s: float | None = None

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked_s
        if asked_s is None:
            asked_s = time.monotonic()
            loop.call_soon_threadsafe(end)
        elif time.monotonic() - asked_s >= REPEAT_S:
            with contextlib.suppress(OSError):
                os.write(2, f"realtime: {signal.Signals(number).name} again: ending at once\n".encode())
            # The log is safe at any moment, as after a kill.
            os._exit(_SIGNALLED + number)

    def again(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(reread)

    ours = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGHUP: again}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}

    def sever() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is ours[number]:
                signal.signal(number, signal.default_int_handler if _is_of_runner(handler) else handler)

    try:
        with forks.severed(sever):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_of_runner(handler: Any) -> bool:
    """Whether `asyncio.Runner` put it in the place of the interpreter's: it would cancel a task of the parent's."""
    owner = getattr(handler.func, "__self__", None) if isinstance(handler, functools.partial) else None
    return isinstance(owner, asyncio.Runner)
