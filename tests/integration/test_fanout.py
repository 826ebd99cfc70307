"""The fan-out over transports of asyncio and uvloop: a server of a few lines, clients that are not ours."""

import asyncio
import base64
import hashlib
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from realtime import Deflate, Fanout
from realtime.fanout import Member
from tests.kit import PATIENCE_S, RawSocket, eventually

Scenario = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Scenario:
    """Run a scenario on a loop of each make."""

    def on_its_loop(scenario: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(scenario, PATIENCE_S * 2))

    return on_its_loop


class Site:
    """A WebSocket server with nothing but upgrades and ends: a client's path is its channel, its first byte its end."""

    def __init__(self, fanout: Fanout) -> None:
        self.fanout = fanout
        self.members: list[Member] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path, _, rest = head.removeprefix("GET /").partition(" ")
        headers = dict(line.lower().split(": ", 1) for line in rest.split("\r\n")[1:] if line)
        key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key")).split(": ")[1]
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False).digest()
        agreed = Deflate.negotiate(headers.get("sec-websocket-extensions", ""))
        answer = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        )
        answer += base64.b64encode(digest).decode() + "\r\n"
        if agreed is not None:
            answer += f"Sec-WebSocket-Extensions: {agreed.response}\r\n"
        writer.write(f"{answer}\r\n".encode())
        with self.fanout.member(writer.transport, agreed and agreed.window_bits) as member:
            member.subscribe(path)
            self.members.append(member)
            await reader.read(1)
        if not writer.transport.is_closing():
            writer.write(b"\x88\x00")
            writer.close()


async def everything(client: ClientConnection, count: int) -> list[str | bytes]:
    return [await client.recv() for _ in range(count)]


async def _every_client_gets_every_message() -> None:
    windows = [ClientPerMessageDeflateFactory(server_max_window_bits=bits) for bits in (9, 11, 15)]
    async with Site(Fanout()) as site:
        url = f"ws://127.0.0.1:{site.port}/all"
        clients = [
            await connect(url, compression=None),
            await connect(url),
            *[await connect(url, compression=None, extensions=[window]) for window in windows],
        ]
        await eventually(lambda: site.fanout.members("all") == len(clients))
        messages: list[str | bytes] = []
        for number in range(200):
            text = f"{number}: " + "héllo wörld " * (number * number % 300)
            messages.append(text if number % 3 else text.encode())
        received = [asyncio.create_task(everything(client, len(messages))) for client in clients]
        for message in messages:
            assert site.fanout.publish("all", message) == len(clients)
            await asyncio.sleep(0)
        for task in received:
            assert await task == messages
        long = sum(len(each if isinstance(each, bytes) else each.encode()) >= 256 for each in messages)
        assert site.fanout.encoder.compressions == long, "once a message, for four clients"
        for client in clients:
            await client.close()
        await eventually(lambda: site.fanout.members("all") == 0)


def test_clients_with_each_kind_of_compression_get_every_message_once_and_in_order(run: Scenario) -> None:
    run(_every_client_gets_every_message())


async def _until_it_is_slow(site: Site, publish: Callable[[int], int]) -> int:
    """Publish numbers until the one who reads nothing gets one no more; return how many there were."""
    number = 0
    while publish(number) == len(site.members):
        number += 1
        await asyncio.sleep(0)
    return number + 1


async def _a_reader_that_stops_is_cut_off() -> None:
    async with Site(Fanout(backlog_bytes_max=200_000)) as site, await RawSocket.open(site.port) as slow:
        slow.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await slow.upgrade("/all")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with connect(f"ws://127.0.0.1:{site.port}/all", max_queue=None) as fast:
            await eventually(lambda: site.fanout.members("all") == 2)
            frames = [site.fanout.encode(f"{number} {'x' * 2_000}") for number in range(8)]
            count = await _until_it_is_slow(site, lambda number: site.fanout.publish("all", frames[number % 8]))
            assert (site.fanout.aborted, site.fanout.members("all")) == (1, 1)
            assert [str(each)[0] for each in await everything(fast, count)] == [str(at % 8) for at in range(count)]
            assert site.fanout.publish("all", "on it goes") == 1
            assert await fast.recv() == "on it goes"


def test_a_reader_that_stops_is_cut_off_and_the_others_miss_nothing(run: Scenario) -> None:
    run(_a_reader_that_stops_is_cut_off())


async def _a_reader_that_stops_misses_whole_frames() -> None:
    async with Site(Fanout(backlog_bytes_max=200_000, slow="skip")) as site, await RawSocket.open(site.port) as slow:
        await slow.upgrade("/all")
        await eventually(lambda: site.fanout.members("all") == 1)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]

        def publish(number: int) -> int:
            return site.fanout.publish("all", json.dumps([number, "x" * 2_000]))

        count = await _until_it_is_slow(site, publish)
        for _ in range(10):
            count += 1
            publish(count - 1)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        member = site.members[0]
        await eventually(lambda: member.transport.get_write_buffer_size() == 0)
        assert publish(count) == 1
        got: list[int] = []
        while not got or got[-1] != count:
            first, payload = await slow.frame()
            assert first == 0x81
            got.append(json.loads(payload)[0])
        assert got == sorted(set(got)), "in order, none twice, none cut"
        assert member.missed == site.fanout.skipped == count + 1 - len(got) > 0


def test_a_reader_that_stops_misses_whole_frames_and_each_is_counted(run: Scenario) -> None:
    run(_a_reader_that_stops_misses_whole_frames())
