"""One reader in a hundred sips 1 KB/s.

The others get every event, memory stays in its budget, and the slow one gets the newest state, or a clean close and
everything when it comes back. Never half a frame.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest

from tests.integration.test_metrics import scrape
from tests.kit import PATIENCE_S, Client, Frame, Server, client_frame, eventually, token_for, upgrade_request

pytestmark = pytest.mark.alone

QUICK = 99
EVENTS = 200
KEYS = 4
BUDGET_BYTES = 2_000_000
GRANTS = {"board:*": ["subscribe", "publish"]}
TEXT = "y" * 30_000
STEP = 10
"""Events after which everybody has to have everything, so that no quick reader is slow by accident."""


class Sipper:
    """A client with the smallest of buffers that takes 1 KB a second until it is told to hurry; keeps every byte."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._hurries = asyncio.Event()
        self.taken = bytearray()
        self.has_ended = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, server: Server, user: str, channel: str, headers: str = "") -> Self:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", server.port))
        token = token_for(user, channels=GRANTS)
        await loop.sock_sendall(connection, upgrade_request(f"/ws?token={token}", headers))
        self = cls(connection)
        # RFC 6455 §4.1: a client sends nothing before it has the answer.
        await eventually(lambda: b"\r\n\r\n" in self.taken, what="the 101")
        await self.send({"type": "subscribe", "data": {"channel": channel}})
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._socket.close()

    async def send(self, command: Frame) -> None:
        frame = client_frame(0x81, json.dumps(command).encode())
        await asyncio.get_running_loop().sock_sendall(self._socket, frame)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                part = await loop.sock_recv(self._socket, 65_536 if self._hurries.is_set() else 1_024)
            except ConnectionResetError:
                part = b""
            if not part:
                self.has_ended = True
                return
            self.taken += part
            if len(self.taken) > 4_096:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurries.wait(), 1)

    def hurry(self) -> None:
        self._hurries.set()

    def frames(self) -> tuple[list[Frame], int | None, bytes]:
        """What came as JSON, the close code if one came, and what is left over: the part of a frame."""
        rest = bytes(self.taken)[self.taken.index(b"\r\n\r\n") + 4 :]
        found: list[Frame] = []
        while len(rest) >= 2:
            length, start = rest[1], 2
            if length >= 126:
                start = 4 if length == 126 else 10
                length = int.from_bytes(rest[2:start], "big")
            if len(rest) < start + length:
                break
            payload = rest[start : start + length]
            if rest[0] == 0x88:
                assert len(rest) == start + length, "nothing follows a Close"
                return found, int.from_bytes(payload[:2], "big"), b""
            if rest[0] == 0x81:
                found.append(json.loads(payload))
            else:
                assert rest[0] == 0x89, "text, ping or close, each a whole frame"
            rest = rest[start + length :]
        return found, None, rest

    async def until(self, seen: Callable[[list[Frame]], bool]) -> list[Frame]:
        """Wait for frames of a kind; parsing is dear, so it is done again only when more has come."""
        async with asyncio.timeout(4 * PATIENCE_S):
            known = -1
            while True:
                if len(self.taken) != known and b"\r\n\r\n" in self.taken:
                    known = len(self.taken)
                    frames, _, _ = self.frames()
                    if seen(frames):
                        return frames
                assert not self.has_ended, self.frames()[1:]
                await asyncio.sleep(0.05)


def is_of(frames: list[Frame], type: str) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == type]


@contextlib.asynccontextmanager
async def quick_readers(server: Server, channel: str) -> AsyncIterator[list[Client]]:
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for number in range(QUICK):
            reader = await server.connect(f"q{number}", about="nobody", channels=GRANTS)
            await stack.enter_async_context(reader)
            await reader.subscribe(channel)
            readers.append(reader)
        yield readers


class Watch:
    """Looks at the memory that waits for slow readers, whenever everybody has everything."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.most_bytes = 0.0

    async def figures(self) -> dict[str, float]:
        _, figures = await asyncio.to_thread(scrape, self._server)
        held = figures["realtime_queue_outbox_bytes"]
        assert held <= BUDGET_BYTES
        self.most_bytes = max(self.most_bytes, held)
        return figures


async def everybody_gets(readers: list[Client], type: str, numbers: range, number: Callable[[Frame], Any]) -> None:
    for reader in readers:
        for expected in numbers:
            frame = await reader.receive()
            assert (frame["type"], number(frame)) == (type, expected)


def serving(serve: Callable[..., Server]) -> Server:
    # A Close waits behind what is partly sent, so who reads as slowly as this needs time to come to it.
    sets = (f"limits.outboxes_bytes_max={BUDGET_BYTES}", "limits.close_timeout_s=120", "presence.grace_s=0.1")
    return serve("limits.enabled=false", *sets, api=True)


async def test_a_slow_reader_of_states_gets_the_newest_of_each_and_the_others_get_all(
    serve: Callable[..., Server],
) -> None:
    channel = "board:1"
    async with serving(serve) as server, quick_readers(server, channel) as readers:
        watch = Watch(server)
        async with (
            await server.connect("writer", channels=GRANTS) as writer,
            await Sipper.open(server, "slow", channel) as slow,
        ):
            await slow.until(lambda frames: bool(is_of(frames, "subscription_confirmed")))
            for first in range(0, EVENTS, STEP):
                for number in range(first, first + STEP):
                    data = {"n": number, "text": TEXT}
                    moved = {"channel": channel, "event": "moved", "key": str(number % KEYS), "data": data}
                    await writer.send("publish", moved)
                numbers = range(first, first + STEP)
                await everybody_gets(readers, "moved", numbers, lambda frame: frame["data"]["n"])
                await watch.figures()
            figures = await watch.figures()
            assert figures['realtime_drops_total{reason="conflated"}'] > 0
            assert watch.most_bytes > 64 * 1024
            slow.hurry()
            newest = set(range(EVENTS - KEYS, EVENTS))
            frames = await slow.until(lambda frames: newest <= {f["data"]["n"] for f in is_of(frames, "moved")})
            assert not is_of(frames, "lag")
            got = [frame["data"]["n"] for frame in is_of(frames, "moved")]
            for key in range(KEYS):
                states = [number for number in got if number % KEYS == key]
                assert states == sorted(set(states)), "never an older state behind a newer one"
            assert len(got) < EVENTS
            await slow.send({"type": "ping", "id": 1})
            await slow.until(lambda frames: bool(is_of(frames, "pong")))
            assert slow.frames()[1:] == (None, b"")
            assert (await watch.figures())["realtime_queue_outbox_bytes"] == 0


async def test_a_slow_reader_of_stored_events_is_closed_and_gets_the_rest_when_it_is_back(
    serve: Callable[..., Server],
) -> None:
    channel = "conversation:1"
    version_1 = "Sec-WebSocket-Protocol: realtime.v1\r\n"
    async with serving(serve) as server, quick_readers(server, channel) as readers:
        watch = Watch(server)
        async with (
            await server.connect("writer") as writer,
            await Sipper.open(server, "slow", channel, version_1) as slow,
        ):
            confirmed = await slow.until(lambda frames: bool(is_of(frames, "subscription_confirmed")))
            epoch = is_of(confirmed, "subscription_confirmed")[0]["data"]["position"]["epoch"]
            for first in range(0, EVENTS, STEP):
                for _ in range(STEP):
                    await writer.send("send_message", {"conversationId": "1", "content": TEXT})
                numbers = range(first + 1, first + 1 + STEP)
                await everybody_gets(readers, "new_message", numbers, lambda frame: frame["offset"])
                await watch.figures()
            slow.hurry()
            # The server ends the connection when our Close comes, which we never say.
            await eventually(lambda: slow.frames()[1] is not None, timeout_s=2 * PATIENCE_S, what="the server's Close")
            frames, code, rest = slow.frames()
            assert (code, rest) == (4000, b"")
            offsets = [frame["offset"] for frame in is_of(frames, "new_message")]
            assert offsets == [*range(1, len(offsets) + 1)]
            assert len(offsets) < EVENTS
        async with await server.connect("slow", about="nobody", subprotocols=["realtime.v1"]) as again:
            await again.expect("presence_mode")
            position = {"offset": len(offsets), "epoch": epoch}
            confirmed_again = await again.subscribe(channel, position=position)
            assert confirmed_again["recovered"] is True
            rest_of_all = range(len(offsets) + 1, EVENTS + 1)
            await everybody_gets([again], "new_message", rest_of_all, lambda frame: frame["offset"])
