"""What happens over socketify where the transport cannot do what our own sockets do: docs/topics/uwebsockets.md."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit import Client, RawSocket, Server, client_frame, eventually, token_for, upgrade_request

TEXT, CLOSE = 0x81, 0x88
PING = client_frame(TEXT, b'{"type":"ping"}')


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Server]:
    """A server over socketify."""
    async with Server(tmp_path, sets=["engine.transport=socketify"]) as server:
        yield server


@pytest.fixture
async def watcher(edge: Server) -> AsyncIterator[Client]:
    """Somebody whom nothing of this concerns."""
    async with await edge.connect("watcher") as client:
        yield client


async def answers(client: Client) -> None:
    """See that the server is there for others."""
    await client.send("ping")
    await client.expect("pong")


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        ("RSV1 that was not negotiated", client_frame(TEXT | 0x40, b"{}")),
        ("text that is no UTF-8", client_frame(TEXT, b"\xff")),
        ("a length over the limit", client_frame(TEXT, b"", size=17 << 20)),
    ],
)
async def test_who_breaks_the_protocol_is_cut_without_a_close_frame(
    edge: Server, watcher: Client, kind: str, frame: bytes
) -> None:
    async with await edge.raw() as peer:
        await peer.send(frame)
        # What others do may come before the end; no byte of it is that of a Close frame.
        assert CLOSE not in await peer.rest(), kind
    await answers(watcher)


async def test_compression_is_not_agreed_on(edge: Server) -> None:
    async with await RawSocket.open(edge.port) as peer:
        head = await peer.upgrade(f"/ws?token={token_for('alice')}", "Sec-WebSocket-Extensions: permessage-deflate\r\n")
    assert "permessage-deflate" not in head


async def test_an_upgrade_in_two_segments_is_dropped(edge: Server, watcher: Client) -> None:
    request = upgrade_request(f"/ws?token={token_for('alice')}")
    async with await RawSocket.open(edge.port) as peer:
        await peer.send(request[:40])
        # The other half must not come in the same segment: the server has read the first when it answers another.
        await answers(watcher)
        await peer.send(request[40:])
        assert b"HTTP/1.1 101 " not in await peer.rest()
    await answers(watcher)


async def test_frames_in_the_segment_of_the_upgrade_are_lost_and_later_ones_are_read(edge: Server) -> None:
    async with await RawSocket.open(edge.port) as peer:
        await peer.send(upgrade_request(f"/ws?token={token_for('alice')}") + client_frame(TEXT, b'{"type":"lost"}'))
        await peer.reader.readuntil(b"\r\n\r\n")
        assert json.loads((await peer.frame())[1])["type"] == "connection_established"
        await peer.send(PING)
        await peer.until("pong")


@pytest.mark.parametrize(("told", "answered"), [(1000, 1000), (1011, 1011), (1012, 1005), (3999, 1005), (4000, 4000)])
async def test_a_close_code_that_uwebsockets_does_not_know_counts_as_none(
    edge: Server, told: int, answered: int
) -> None:
    async with await edge.raw() as peer:
        await peer.send(client_frame(CLOSE, told.to_bytes(2, "big")))
        assert (await peer.close_frame())[0] == answered


async def test_a_second_server_on_the_port_is_told_so(edge: Server, tmp_path: Path) -> None:
    other = Server(tmp_path / "other", sets=["engine.transport=socketify"])
    other.port = edge.port
    other._env["WS_PORT"] = str(edge.port)
    other.start_silently()
    await eventually(lambda: not other.is_running(), what="the end of the second server")
    assert f"cannot listen on 127.0.0.1:{edge.port}; stop the program that uses it" in other.output
