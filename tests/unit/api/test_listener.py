"""The HTTP port in this process: it listens, tells its port, refuses one in use, and ends when told."""

import asyncio
import contextlib
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar, Request, get

from realtime._engine import Engine
from realtime.api.listener import HttpListener
from realtime.base.config import ApiSettings, ConfigError, ServerSettings, Settings


@get("/slow")
async def slow() -> str:
    await asyncio.sleep(60)
    return "late"


@get("/", sync_to_thread=False)
def root() -> str:
    return "here"


@get("/who", sync_to_thread=False)
def who(request: Request[Any, Any, Any]) -> str:
    client = request.client
    ours = [name for name in request.headers if "realtime" in name]
    return f"{client.host if client else None} {request.scope['server']} {ours}"


def application() -> Litestar:
    return Litestar([root, slow, who], openapi_config=None, logging_config=None)


def at(host: str = "127.0.0.1", port: int = 0) -> Settings:
    return Settings(api=ApiSettings(host=host, port=port))


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


@contextlib.asynccontextmanager
async def listening(settings: Settings | None = None, *, stop_timeout_s: float = 2.0) -> AsyncIterator[HttpListener]:
    listener = HttpListener(settings or at(), stop_timeout_s=stop_timeout_s)
    await listener.start(application(), Engine(b"{}"))
    try:
        yield listener
    finally:
        await listener.stop()


async def fetch(port: int, path: str = "/", headers: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n".encode())
        return await reader.read()
    finally:
        writer.close()


async def test_it_serves_from_start_to_stop() -> None:
    async with listening() as listener:
        assert (await fetch(listener.port)).endswith(b"here")
    with pytest.raises(OSError, match="Connect call failed"):
        await fetch(listener.port)
    await listener.stop()


async def test_a_request_has_its_clients_address_and_nobody_else_says_it() -> None:
    async with listening() as listener:
        for headers in ("", "X-Realtime-Peer: 203.0.113.7:1\r\n", "x_realtime_peer: 203.0.113.7:1\r\n"):
            told = (await fetch(listener.port, "/who", headers)).rpartition(b"\r\n\r\n")[2].decode()
            assert told == f"127.0.0.1 ('127.0.0.1', {listener.port}) []"


async def test_behind_a_listed_proxy_a_request_is_its_clients() -> None:
    forwarded = "X-Forwarded-For: 6.6.6.6, 198.51.100.7\r\n"
    for proxies, client in (((), "127.0.0.1"), (("127.0.0.0/8",), "198.51.100.7")):
        settings = Settings(api=ApiSettings(host="127.0.0.1", port=0), server=ServerSettings(proxies=proxies))
        async with listening(settings) as listener:
            told = (await fetch(listener.port, "/who", forwarded)).rpartition(b"\r\n\r\n")[2].decode()
        assert told.split()[0] == client


async def test_the_way_to_the_loop_is_for_this_user_alone_and_goes_with_the_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left_over = tmp_path / "realtime-http-old"
    left_over.mkdir()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(left_over / "s"))
    async with listening():
        (name,) = names(tmp_path)
        assert name != left_over.name, "what a killed server left is removed"
        assert stat.S_IMODE((tmp_path / name).lstat().st_mode) == 0o700
        async with listening():
            assert len(names(tmp_path)) == 2, "that of a running one is not"
    assert not names(tmp_path)


async def test_a_long_path_of_temporary_files_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with listening() as listener:
        assert (await fetch(listener.port)).endswith(b"here")
    assert not names(folder)


@pytest.mark.parametrize("taken", ["by another server", "by itself"])
async def test_a_port_in_use_is_told_and_never_shared(taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with contextlib.AsyncExitStack() as stack:
            if taken == "by itself":
                port = (await stack.enter_async_context(listening())).port
            with pytest.raises(
                ConfigError, match=rf"api.port = {port} on 127.0.0.1 cannot be listened on.*set API_PORT"
            ):
                HttpListener(at(port=port))


async def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConfigError, match=r"api.port = 3001 on 203.0.113.1 cannot be listened on"):
        HttpListener(at("203.0.113.1", 3001))


async def test_a_request_without_end_does_not_hold_the_stop() -> None:
    async with listening(stop_timeout_s=0.1) as listener:
        hanging = asyncio.create_task(fetch(listener.port, "/slow"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await listener.stop()
        hanging.cancel()
        await asyncio.wait([hanging])


async def test_its_end_is_noticed() -> None:
    async with listening() as listener:
        noticed = asyncio.create_task(listener.ended())
        await asyncio.sleep(0.02)
        assert not noticed.done()
        assert listener._server is not None
        worker = listener._server.wrks[0]
        worker._sig.set()
        async with asyncio.timeout(5):
            await noticed
