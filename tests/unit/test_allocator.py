"""Memory that is let go of goes back to the system."""

import asyncio
import ctypes

import pytest

from realtime.serving import allocator

_MIB = 1024 * 1024


async def test_freed_memory_that_the_heap_keeps_is_given_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    held = 0
    async with allocator.giving_back(lambda: held, look_s=0.01):
        await asyncio.sleep(0)
        before = allocator.resident_bytes()
        # Of a size that the heap keeps, with one left at its end.
        blocks = [library.malloc(16 * 1024) for _ in range(12_000)]
        for block in blocks:
            ctypes.memset(block, 1, 16 * 1024)
        held = 12_000 * 16 * 1024
        *freed, last = blocks
        for block in freed:
            library.free(block)
        kept = allocator.resident_bytes()
        held = 0
        async with asyncio.timeout(20):
            while allocator.resident_bytes() > before + 32 * _MIB:  # noqa: ASYNC110 -- the kernel tells nobody
                await asyncio.sleep(0.01)
    assert kept > before + 128 * _MIB
    library.free(last)


async def test_nothing_is_trimmed_while_what_is_resident_is_held() -> None:
    trimmed: list[int] = []

    class Library:
        @staticmethod
        def malloc_trim(_: int) -> None:
            trimmed.append(1)

    held = allocator.resident_bytes()
    task = asyncio.create_task(allocator._watch(Library(), lambda: held, 0.001))
    await asyncio.sleep(0.05)
    assert trimmed == []
    held -= allocator.UNUSED_BYTES_MAX
    async with asyncio.timeout(5):
        while not trimmed:  # noqa: ASYNC110 -- a timer of its own
            await asyncio.sleep(0.001)
    task.cancel()


async def test_what_could_not_be_given_back_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = 100 * _MIB
    trimmed: list[int] = []

    class Library:
        @staticmethod
        def malloc_trim(_: int) -> None:
            trimmed.append(resident)

    monkeypatch.setattr(allocator, "resident_bytes", lambda: resident)
    task = asyncio.create_task(allocator._watch(Library(), lambda: 0, 0.001))
    await asyncio.sleep(0)
    resident = 600 * _MIB
    async with asyncio.timeout(5):
        while len(trimmed) < 3:  # noqa: ASYNC110 -- a timer of its own
            await asyncio.sleep(0.001)
    task.cancel()
