"""An app that keeps descriptors, as one that forgets to close its files does."""

import os
from contextlib import suppress

from msgspec import Struct

from realtime import Realtime, Session

app = Realtime()
_kept: list[int] = []


class Hoard(Struct):
    """How many descriptors to leave to everybody else."""

    left: int


@app.on("hoard")
def hoard(session: Session, hoard: Hoard) -> int:  # noqa: ARG001 -- a handler's parameters are its contract
    """Take every descriptor that there is, but for some."""
    with suppress(OSError):
        while True:
            _kept.append(os.open("/dev/null", os.O_RDONLY))
    for fd in (_kept.pop() for _ in range(hoard.left)):
        os.close(fd)
    return len(_kept)
