"""`--reload`: serve in a child process and start it anew when a source changes.

A fresh process is the only reload that leaves nothing of the old code behind. The child is asked to end as any server
is, so clients see a restart and come back. One that does not start stays down until the next change. Changes are found
by looking at modification times twice a second, which needs no library and works on every file system.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

_INTERVAL_S = 0.5
_SUFFIXES = (".py", ".toml")
_PASSED_OVER = frozenset({"node_modules", "__pycache__", "target", "venv", "site-packages"})


def supervise(command: Sequence[str], directory: Path) -> int:
    """Run `command`, again after each change below `directory`, until SIGTERM or SIGINT; return the exit code."""
    ending = _on_signals()
    # Before the child starts: it may read a source that changes a moment later.
    seen = snapshot(directory)
    child = _start(command)
    try:
        while not ending:
            time.sleep(_INTERVAL_S)
            now = snapshot(directory)
            if now == seen:
                continue
            sys.stderr.write(f"realtime: {_changed(seen, now)} changed, starting anew\n")
            seen = now
            _end(child)
            child = _start(command)
    finally:
        _end(child)
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
    # A group of its own: Ctrl-C must reach the child once, by us, and not a second time from the terminal.
    return subprocess.Popen(command, start_new_session=True)  # noqa: S603 -- our own interpreter and arguments


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        child.wait()


def _on_signals() -> list[int]:
    """Return a list that holds a signal once the process was asked to end."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return asked
