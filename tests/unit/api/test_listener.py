"""granian in this process: it listens, tells its port, refuses one in use, and ends when told."""

import asyncio
import socket

import pytest
from litestar import Litestar, get

from realtime.api.listener import HttpListener
from realtime.config import ConfigError


@get("/slow")
async def slow() -> str:
    await asyncio.sleep(60)
    return "late"


@get("/", sync_to_thread=False)
def root() -> str:
    return "here"


def application() -> Litestar:
    return Litestar([root, slow], openapi_config=None, logging_config=None)


async def fetch(port: int, path: str = "/") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return await reader.read()
    finally:
        writer.close()


async def test_it_serves_from_start_to_stop() -> None:
    listener = HttpListener("127.0.0.1", 0)
    await listener.start(application())
    assert (await fetch(listener.port)).endswith(b"here")
    await listener.stop()
    with pytest.raises(OSError, match="Connect call failed"):
        await fetch(listener.port)
    await listener.stop()


@pytest.mark.parametrize("taken", ["by another server", "by itself"])
async def test_a_port_in_use_is_told_and_never_shared(taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listener = None
        if taken == "by itself":
            listener = HttpListener("127.0.0.1", 0)
            await listener.start(application())
            port = listener.port
        with pytest.raises(ConfigError, match=rf"api.port = {port} on 127.0.0.1 cannot be listened on.*set API_PORT"):
            HttpListener("127.0.0.1", port)
        if listener is not None:
            await listener.stop()


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConfigError, match=r"api.port = 3001 on 203.0.113.1 cannot be listened on"):
        HttpListener("203.0.113.1", 3001)


async def test_a_request_without_end_does_not_hold_the_stop() -> None:
    listener = HttpListener("127.0.0.1", 0, stop_timeout_s=0.1)
    await listener.start(application())
    hanging = asyncio.create_task(fetch(listener.port, "/slow"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await listener.stop()
    hanging.cancel()
    await asyncio.wait([hanging])


async def test_its_end_is_noticed() -> None:
    listener = HttpListener("127.0.0.1", 0)
    await listener.start(application())
    noticed = asyncio.create_task(listener.ended())
    await asyncio.sleep(0.02)
    assert not noticed.done()
    assert listener._server is not None
    worker = listener._server.wrks[0]
    worker._sig.set()
    async with asyncio.timeout(5):
        await noticed
    await listener.stop()
