"""What does one message cost to encode, and to give to 1,000 connections, here and in the websockets library?

Unit: µs of CPU a message, of one thread with what the kernel does for it. Payloads are JSON of 131 and 730 bytes, the
sizes of W1 and W5; no two in a row are the same. `make bench-micro` prints a table for each question, with the ratio to
its cheapest row. Compare ratios of medians; changed means: by more than 3 IQR in 5 of 5 runs. Every frame is counted:
a benchmark that loses one fails.

- `noting` transports are two counters: what is left is the price of the code above the transport.
- `socket` transports are asyncio's over socket pairs: the kernel's price of a send is in it, for both alike.
"""

import asyncio
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from websockets.asyncio.connection import Connection, broadcast
from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from realtime import Fanout, FrameEncoder
from realtime.fanout import Transport

MEMBERS = 1_000
SIZES = (131, 730)


def events(size: int) -> Iterator[str]:
    """JSON of `size` bytes each, as chat and state have it: names that come again, numbers that do not. Without end."""
    random = Random(1)
    made = []
    for _ in range(64):
        fields = {f"field{number}": {"id": random.randrange(100_000), "ratio": random.random()} for number in range(40)}
        text = json.dumps(
            {"type": "state_changed", "timestamp": f"2026-11-26T04:05:06.{random.randrange(1000):03}Z"} | fields
        )
        made.append(text[: size - 1] + "}")
    return itertools.cycle(made)


def header_len(size: int) -> int:
    """Bytes before a payload of `size`, below 64 KiB."""
    return 2 if size < 126 else 4


def takeover() -> Extension:
    """Their compression as their server sets it up: a window of 4 KiB that is kept from message to message."""
    return PerMessageDeflate(False, False, 12, 12, {"memLevel": 5})


def alone() -> Extension:
    """Their compression on the terms of ours: each message by itself, level 1, 32 KiB."""
    return PerMessageDeflate(True, True, 15, 15, {"level": 1})


class Noting:
    """A transport that counts. The four methods that the fan-out wants and those that the websockets library wants."""

    def __init__(self) -> None:
        self.frames = self.bytes = 0

    def write(self, data: bytes) -> None:
        self.frames += 1
        self.bytes += len(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        raise AssertionError("nobody is slow here")

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, *_: object) -> None: ...


@dataclass
class Receivers:
    """Transports, and a way to know what arrived."""

    transports: list[Any]
    arrived: Callable[[], int]
    """Takes what came since the last call: bytes, of all together."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs only where a benchmark says so."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(params=["noting", "socket"])
def receivers(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Receivers]:
    """A thousand of each kind."""
    if request.param == "noting":
        transports = [Noting() for _ in range(MEMBERS)]
        seen = 0

        def counted() -> int:
            nonlocal seen
            total = sum(each.bytes for each in transports)
            new, seen = total - seen, total
            return new

        yield Receivers(transports, counted)
        return
    pairs = [socket.socketpair() for _ in range(MEMBERS)]

    async def opened() -> list[asyncio.Transport]:
        made = [await loop.create_connection(asyncio.Protocol, sock=near) for near, _ in pairs]
        return [transport for transport, _ in made]

    def read() -> int:
        return sum(len(far.recv(1 << 20)) for _, far in pairs)

    transports_over_sockets = loop.run_until_complete(opened())
    yield Receivers(transports_over_sockets, read)
    for transport in transports_over_sockets:
        transport.abort()
    for _, far in pairs:
        far.close()
    loop.run_until_complete(asyncio.sleep(0))


def counted(
    benchmark: BenchmarkFixture,
    receivers: Receivers,
    texts: Iterator[str],
    publish: Callable[[str], object],
    size_of: Callable[[str], int],
) -> None:
    """Measure `publish` of one text after the other; what `size_of` says of each must have come to every receiver."""
    expected = 0

    def check() -> None:
        assert expected == 0 or receivers.arrived() == expected * MEMBERS, "bytes were lost"

    def text() -> tuple[tuple[str], dict[str, object]]:
        nonlocal expected
        check()
        text = next(texts)
        expected = size_of(text)
        return (text,), {}

    benchmark.pedantic(publish, setup=text, rounds=60, warmup_rounds=3)  # type: ignore[no-untyped-call]
    check()


@pytest.mark.parametrize("size", SIZES)
class TestEncode:
    """One frame, made anew each time."""

    def test_plain_ours(self, benchmark: BenchmarkFixture, size: int) -> None:
        benchmark.group = f"encode plain, {size} B"
        texts, encoder = events(size), FrameEncoder()
        assert len(benchmark(lambda: encoder.text(next(texts)).plain)) == size + header_len(size)

    def test_plain_theirs(self, benchmark: BenchmarkFixture, size: int) -> None:
        benchmark.group = f"encode plain, {size} B"
        texts = events(size)
        made = benchmark(lambda: TheirFrame(Opcode.TEXT, next(texts).encode()).serialize(mask=False))
        assert len(made) == size + header_len(size)

    @pytest.mark.parametrize("level", [1, 6])
    def test_deflated_ours(self, benchmark: BenchmarkFixture, size: int, level: int) -> None:
        benchmark.group = f"encode deflated, {size} B"
        texts, encoder = events(size), FrameEncoder(level=level, threshold_bytes=0)
        benchmark.extra_info["bytes"] = len(benchmark(lambda: encoder.text(next(texts)).wire(15)))

    @pytest.mark.parametrize("extension", [alone, takeover])
    def test_deflated_theirs(self, benchmark: BenchmarkFixture, size: int, extension: Callable[[], Extension]) -> None:
        benchmark.group = f"encode deflated, {size} B"
        texts, extensions = events(size), [extension()]

        def make() -> bytes:
            return TheirFrame(Opcode.TEXT, next(texts).encode()).serialize(mask=False, extensions=extensions)

        benchmark.extra_info["bytes"] = len(benchmark(make))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflated"])
class TestFanout:
    """One message from text to the transports of 1,000 connections."""

    def test_ours(
        self,
        benchmark: BenchmarkFixture,
        request: pytest.FixtureRequest,
        receivers: Receivers,
        size: int,
        *,
        deflate: bool,
    ) -> None:
        benchmark.group = group(request, size, deflate=deflate)
        fanout = Fanout(FrameEncoder(threshold_bytes=0))
        for transport in receivers.transports:
            checked: Transport = transport
            fanout.member(checked, 15 if deflate else None).subscribe("all")
        sizes = FrameEncoder(threshold_bytes=0)

        def size_of(text: str) -> int:
            return len(sizes.text(text).wire(15 if deflate else None))

        counted(benchmark, receivers, events(size), lambda text: fanout.publish("all", text), size_of)

    def test_theirs(
        self, benchmark: BenchmarkFixture, request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop,
        receivers: Receivers, size: int, *, deflate: bool,
    ) -> None:  # fmt: skip
        benchmark.group = group(request, size, deflate=deflate)

        async def opened() -> list[Connection]:
            made = []
            for transport in receivers.transports:
                protocol = ServerProtocol(state=State.OPEN)
                protocol.extensions = [takeover()] if deflate else []
                made.append(Connection(protocol))
                made[-1].connection_made(transport)
            return made

        connections = loop.run_until_complete(opened())
        # What each of their compressors makes depends on what it made before; one more of them tells how much it was.
        twin = [takeover()] if deflate else []

        def size_of(text: str) -> int:
            return len(TheirFrame(Opcode.TEXT, text.encode()).serialize(mask=False, extensions=twin))

        counted(benchmark, receivers, events(size), lambda text: broadcast(connections, text), size_of)


def group(request: pytest.FixtureRequest, size: int, *, deflate: bool) -> str:
    """The name of a table."""
    kind = request.node.callspec.params["receivers"]
    return f"fan-out {'deflated' if deflate else 'plain'}, {size} B to {MEMBERS} {kind} transports"
