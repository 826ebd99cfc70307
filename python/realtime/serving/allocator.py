"""The C library's allocator, told to give memory back that is not in use.

glibc keeps what is freed: a block below its threshold stays in the thread's heap, and the threshold rises up to 32 MiB
with what is freed. So a process that once held 256 MiB for others keeps them, and what is resident says nothing of
what is held. `settle` fixes the threshold, so that large blocks go back as they are freed. `giving_back` looks every
`_LOOK_S` whether much more is resident than is held, and has the heaps trimmed then, on a thread. Elsewhere than with
glibc both do nothing. Called by `cli.serving`, since a process that is not ours is not ours to set up.
"""

import asyncio
import ctypes
import logging
import resource
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("realtime")

LARGE_BYTES: Final = 1024 * 1024
"""Blocks of this size and above are mapped for themselves."""
UNUSED_BYTES_MAX: Final = 64 * 1024 * 1024
_LOOK_S: Final = 10.0
_LOOKS_MAX: Final = 6
"""Looks from one trim to the next where the one before could not give back enough."""
_M_MMAP_THRESHOLD: Final = -3


def settle() -> None:
    """Have blocks from `LARGE_BYTES` on given back when they are freed."""
    if (library := _glibc()) is not None:
        library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


@asynccontextmanager
async def giving_back(held_bytes: Callable[[], int], look_s: float = _LOOK_S) -> AsyncIterator[None]:
    """Trim the heaps when much more is resident than is held, for the time of the block.

    Args:
        held_bytes: what is held for clients.
        look_s: seconds between two looks.
    """
    library = _glibc()
    task = None if library is None else asyncio.create_task(_watch(library, held_bytes, look_s), name="allocator")
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _watch(library: Any, held_bytes: Callable[[], int], look_s: float) -> None:
    # What is resident besides: the interpreter and its libraries, and what the last trim could not give back.
    least = besides = resident_bytes() - held_bytes()
    looks = 0
    while True:
        await asyncio.sleep(look_s)
        unused = resident_bytes() - held_bytes()
        looks += 1
        # What could not be given back may have been in use without being counted: now and then it is tried again.
        besides = min(besides, unused) if looks < _LOOKS_MAX else least
        if unused - besides < UNUSED_BYTES_MAX:
            continue
        before, began_s = resident_bytes(), time.perf_counter()
        await asyncio.to_thread(library.malloc_trim, 0)
        after = resident_bytes()
        log.debug("trimmed %d MiB in %.0f ms", (before - after) >> 20, (time.perf_counter() - began_s) * 1000)
        besides, looks = max(least, after - held_bytes()), 0


def _glibc() -> Any:
    """Return the C library where it is glibc; None elsewhere."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 -- whether it is there
        return library
    return None
