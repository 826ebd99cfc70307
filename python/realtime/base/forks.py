"""A forked child of a serving process: it has nothing of the server, and ends like any child.

`os.fork`, and `multiprocessing` by it, copy a server into a child that has none of its threads. Each part that holds
something of the process (an app, a server, the signal handlers, the process log) registers by `severed` what the child
has to do about it. A child that comes back from an author's code to the server's own ends there, by `end`: the event
loop, its epoll descriptor and all sockets behind it are the parent's.

Invariants: nothing here writes to, shuts down or unregisters what the parent uses; a child closes its copies of
descriptors and forgets the rest. Called by `app`, `server`, `logs` and `containment`.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_severing: list[Callable[[], None]] = []
_is_child = False


@contextlib.contextmanager
def severed(by: Callable[[], None]) -> Iterator[None]:
    """Have a child that is forked within the block call `by` before anything else runs in it."""
    _severing.append(by)
    try:
        yield
    finally:
        # In a child the list is empty.
        with contextlib.suppress(ValueError):
            _severing.remove(by)


def is_child() -> bool:
    """Whether this process was forked from one that served, and serves nothing itself."""
    return _is_child


def serves() -> None:
    """Note that this process serves an app of its own from now on, forked or not."""
    global _is_child  # noqa: PLW0603 -- a process is one or the other
    _is_child = False


def end(error: BaseException | None = None) -> NoReturn:
    """End a child whose code came back to the server's, as the interpreter would.

    Args:
        error: what it raised. `SystemExit` gives the exit code, another one its traceback and 1, None 0.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    # Neither the loop nor destructors may run: they would reach for the parent's descriptors and for missing threads.
    os._exit(code & 0xFF)


def called(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Call a function of an author's in a thread; a child that it forked ends with it.

    The pool's thread would wait in the child for work that nobody can give it.
    """
    try:
        result = function(*arguments)
    except BaseException as error:
        if _is_child:
            end(error)
        raise
    if _is_child:
        end()
    return result


def _after_in_child() -> None:
    global _is_child  # noqa: PLW0603 -- as in `serves`
    if not _severing:
        return
    _is_child = True
    calls = _severing[:]
    _severing.clear()
    for call in calls:
        try:
            call()
        except Exception:  # noqa: BLE001 -- the child goes on with what is left of it
            traceback.print_exc()


os.register_at_fork(after_in_child=_after_in_child)
