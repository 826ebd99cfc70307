"""What `realtime serve` says at start, and the HTTP side that runs beside the edge."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest

from realtime import Realtime
from realtime._engine import Engine
from realtime.api.development import DevelopmentAccess
from realtime.base.config import ApiSettings, AuthSettings, ConfigError, ServerSettings, Settings, keys_of
from realtime.cli import serving
from realtime.control.rules import Mount
from realtime.testing import TestApp

SECRET = "s" * 40
PATIENCE_S = 30
"""For what ends by threads of others, on a machine that has other things to do."""


class Standing:
    """What the HTTP side and the announcement ask of a server."""

    def __init__(self, settings: Settings, control: Any = None) -> None:
        self.settings = settings
        self.keys = keys_of(settings)
        self.port = 3002
        self.url = "ws://[::1]:3002/ws" if settings.server.host == "::1" else "ws://127.0.0.1:3002/ws"
        self.flush = "send"
        self.failure: str | None = None
        self.draining = False
        self.grace_left_s = 5.0
        self.engine = Engine(b"{}")
        self.control = control or SimpleNamespace(rules=SimpleNamespace(mounts=()))
        self.ended = asyncio.Event()

    def end(self) -> None:
        self.ended.set()

    def readiness(self) -> list[str]:
        return [self.failure] if self.failure else []


def settings(tmp_path: Path, **sections: Any) -> Settings:
    return Settings(data_dir=str(tmp_path), api=ApiSettings(port=0), **sections)


async def fetch(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).decode()
    finally:
        writer.close()


def said(server: Standing, capsys: pytest.CaptureFixture[str], http_port: int | None = 3001) -> str:
    side = None
    if http_port is not None:
        keys = server.keys
        development = DevelopmentAccess(keys.secrets[0], lambda: True, print) if keys.generated else None
        side = SimpleNamespace(port=http_port, development=development)
    serving._announce(server, side)  # type: ignore[arg-type]
    return capsys.readouterr().out


async def test_with_its_own_secret_it_tells_a_token_and_the_playground(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Standing(settings(tmp_path))
    out = said(server, capsys)
    assert f"data in {tmp_path}" in out
    assert "ws://127.0.0.1:3002/ws" in out
    assert re.search(r"Playground  http://127\.0\.0\.1:3001/\?key=[\w-]{43}\n", out)
    assert "works once" in out
    tokens = [word for word in out.split() if word.startswith("ey")]
    assert [jwt.decode(token, server.keys.secrets[0], ["HS256"])["sub"] for token in tokens] == ["dev"]
    assert server.keys.secrets[0] not in out


async def test_what_is_mounted_moves_the_playground_or_is_not_served_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = Standing(settings(tmp_path))
    server.control.rules = SimpleNamespace(mounts=(Mount("/", print), Mount("/shop", print)))
    assert "Playground  http://127.0.0.1:3001/playground/?key=" in said(server, capsys)
    assert not caplog.records
    said(server, capsys, None)
    assert "api.enabled = false: nothing is served of what is mounted at /, /shop" in caplog.text


async def test_with_a_configured_secret_it_tells_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured = settings(tmp_path, auth=AuthSettings(secrets=(SECRET,)), server=ServerSettings(host="::1"))
    out = said(Standing(configured), capsys)
    assert "ws://[::1]:3002/ws" in out
    assert "http://127.0.0.1:3001/health" in out
    for absent in ("Playground", "Token", "eyJ", SECRET):
        assert absent not in out
    assert "http://" not in said(Standing(configured), capsys, None)


async def test_open_access_from_outside_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = ServerSettings(host="0.0.0.0")  # noqa: S104
    auth = AuthSettings(secrets=(SECRET,))
    serving._announce(Standing(settings(tmp_path, auth=auth)), None)  # type: ignore[arg-type]
    assert caplog.text == ""
    serving._announce(Standing(settings(tmp_path, auth=auth, server=outside)), None)  # type: ignore[arg-type]
    assert "conversations.access = open on 0.0.0.0" in caplog.text


@pytest.fixture
async def world() -> AsyncIterator[TestApp]:
    """What is served beside the HTTP side."""
    async with TestApp(Realtime()) as made:
        yield made


async def test_the_http_side_serves_while_it_is_mounted(tmp_path: Path, world: TestApp) -> None:
    chosen = settings(tmp_path)
    side = serving._HttpSide(chosen)
    server = Standing(chosen, world.control)
    async with side.mounted(server):  # type: ignore[arg-type]
        assert '{"status":"ok"}' in await fetch(side.port, "/health")
        server.failure = "the log is gone"
        assert '{"status":"draining"}' in await fetch(side.port, "/health")
        assert '{"status":"not_ready","reasons":["the log is gone"],' in await fetch(side.port, "/ready")
    with pytest.raises(OSError, match="Connect call failed"):
        await fetch(side.port, "/health")
    assert not side.failed
    assert not server.ended.is_set()


async def test_an_http_side_that_dies_ends_the_process_as_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, world: TestApp
) -> None:
    chosen = settings(tmp_path)
    side = serving._HttpSide(chosen)
    server = Standing(chosen, world.control)
    async with side.mounted(server):  # type: ignore[arg-type]
        # The kernel takes connections before the worker does; what is answered is served by it.
        assert '{"status":"ok"}' in await fetch(side.port, "/health")
        granian = side._listener._server
        assert granian is not None
        granian.wrks[0]._sig.set()
        async with asyncio.timeout(PATIENCE_S):
            await server.ended.wait()
    assert side.failed
    assert "ended by itself; ending the process" in caplog.text


async def test_its_port_is_tried_before_anything_starts(tmp_path: Path, world: TestApp) -> None:
    first = serving._HttpSide(settings(tmp_path))
    async with first.mounted(Standing(settings(tmp_path), world.control)):  # type: ignore[arg-type]
        taken = Settings(data_dir=str(tmp_path), api=ApiSettings(port=first.port))
        with pytest.raises(ConfigError, match="cannot be listened on: Address already in use"):
            serving._HttpSide(taken)
