"""Standard input, output and error of a serving process, whatever it was started with.

A process that was started with one of them closed (`>&-`) would get sockets under their numbers: what is printed would
go to a peer, and the engine ends a process in which its descriptors are not its own. Called before anything is opened.
"""

import contextlib
import io
import os
import sys


def reserve() -> None:
    """Put the null device in the place of each closed descriptor of the three, so that no socket gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Those below are open, so it gets this number.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number, inheritable=True)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def prepare() -> None:
    """Reserve the descriptors, and show as escapes what the encoding of stdout does not have."""
    reserve()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write(text: str) -> str | None:
    """Write to stdout, flushed: it may be a pipe. Return why that failed; nothing more is then written there."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        silence()
        return str(error)
    return None


def silence() -> None:
    """Let what is still written to stdout go nowhere: a pipe that nobody reads fails again at the exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
