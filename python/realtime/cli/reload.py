"""`--reload`: serve in a child process and start it anew when a source changes.

A fresh process is the only reload that leaves nothing of the old code behind. The child is asked to end as any server
is, so clients see a restart and come back. One that does not start stays down until the next change. Changes are found
by looking at modification times twice a second, which needs no library and works on every file system.

The child ends with its parent, however that ends: a signal is passed on, and on Linux the kernel sends one where the
parent is killed. SIGHUP, which a terminal sends that closes, ends both.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from realtime.serving.signals import REPEAT_S

_INTERVAL_S = 0.5
_WAIT_S = 0.1
_PR_SET_PDEATHSIG = 1
_SUFFIXES = (".py", ".toml")
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "target", "venv", "site-packages"})


def supervise(command: Sequence[str], directory: Path) -> int:
    """Run `command`, again after each change below `directory`, until a signal; return the exit code.

    A second signal, a second or more after the first, kills the child.
    """
    ending = _on_signals()
    # Before the child starts: it may read a source that changes a moment later.
    seen = snapshot(directory)
    child = _start(command)
    try:
        while not ending:
            time.sleep(_INTERVAL_S)
            if ending:
                break
            now = snapshot(directory)
            if now == seen:
                continue
            sys.stderr.write(f"realtime: {_changed(seen, now)} changed, starting anew\n")
            seen = now
            _end(child, ending)
            child = _start(command)
    finally:
        _end(child, ending)
    return 0


def snapshot(directory: Path) -> dict[str, int]:
    """Return the modification time, in ns, of every source below `directory`."""
    return dict(_times(directory))


def _times(directory: Path) -> Iterator[tuple[str, int]]:
    for root, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name not in _PASSED_OVER and not name.startswith(".")]
        for name in files:
            if name.endswith(_SUFFIXES):
                path = Path(root, name)
                try:
                    yield str(path), path.stat().st_mtime_ns
                except FileNotFoundError:
                    continue


def _changed(before: dict[str, int], after: dict[str, int]) -> str:
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    return Path(paths[0]).name if paths else "a source"


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                # It was killed before that took effect.
                os._exit(1)

    # A group of its own: Ctrl-C must reach the child once, by us, and not a second time from the terminal. This process
    # has one thread, so that code may run between fork and exec.
    return subprocess.Popen(  # noqa: S603 -- our own interpreter and arguments
        command,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )


def _end(child: subprocess.Popen[bytes], asked: Sequence[float]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    while child.returncode is None:
        try:
            child.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            if asked and asked[-1] - asked[0] >= REPEAT_S:
                child.kill()


def _on_signals() -> list[float]:
    """Return a list of the times at which the process was asked to end."""
    asked: list[float] = []

    def note(_: int, __: FrameType | None) -> None:
        asked.append(time.monotonic())

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # As nohup leaves it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)
    return asked
