"""The examples with a web framework, started by the two commands that stand in them, over real sockets."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.kit import PATIENCE_S, ROOT, SECRET, RawSocket, Server, free_port

EXAMPLES = ROOT / "examples"
GRANIAN = Path(sys.executable).with_name("granian")


class Hosted(Server):
    """A host app with a WebSocket port of its own, served by granian's command line."""

    def __init__(self, folder: Path, module: str) -> None:
        super().__init__(folder)
        self._arguments = [
            *(GRANIAN, "--interface", "asgi", "--port", str(self.api_port)),
            *("--working-dir", str(EXAMPLES), f"{module}:site"),
        ]

    def start_now(self) -> None:
        """Start it and wait for both ports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments, cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._answers(self.api_port)
        self._answers(self.port)


@pytest.fixture(params=["inside_fastapi", "inside_litestar"])
def hosted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosted]:
    """Each example with the edge inside."""
    host = Hosted(tmp_path, request.param)
    host.start_now()
    yield host
    if host.is_running():
        host.stop_now()


@pytest.fixture
def fanned(tmp_path: Path) -> Iterator[Hosted]:
    """The example with the fan-out over the transports of another WebSocket server."""
    host = Hosted(tmp_path, "fanout_fastapi")
    host.start_now()
    yield host
    assert host.stop_now() == 0, host.output


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Server]:
    """The example with a site on the edge's port."""
    server = Server(tmp_path, app=str(EXAMPLES / "mount_fastapi.py"), api=True)
    server.start_now()
    yield server
    assert server.stop_now() == 0, server.output


def inflated(first: int, payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") if first & 0x40 else payload


async def goes_to_whoever_is_connected(server: Server) -> None:
    async with await server.connect("alice") as alice, httpx2.AsyncClient(base_url=server.api_url) as web:
        await alice.subscribe("news:today")
        assert (await web.get("/")).json() == {"online": 1}
        assert (await web.post("/articles", params={"title": "Hello"})).json() == {"number": 1}
        event = await alice.expect("article")
        assert (event["data"], event["offset"]) == ({"title": "Hello"}, 1)


async def test_a_site_on_the_port_of_the_edge(mounted: Server) -> None:
    await goes_to_whoever_is_connected(mounted)
    assert httpx2.get(f"{mounted.api_url}/health").json() == {"status": "ok"}


async def test_the_edge_inside_of_a_site(hosted: Hosted) -> None:
    await goes_to_whoever_is_connected(hosted)
    async with httpx2.AsyncClient(base_url=hosted.api_url) as web:
        assert (await web.get("/realtime/health")).json() == {"status": "ok"}
        # Whatever is below the mount is ours, and told in our words.
        missing = await web.get("/realtime/nothing")
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert (await web.get("/health")).status_code == 404


async def test_the_edge_ends_with_its_host(hosted: Hosted) -> None:
    async with await hosted.connect("alice") as alice:
        await alice.say("7", "hi")
        stopped = hosted.stop(signal.SIGTERM)
        assert await stopped == 0, hosted.output
        assert (await alice.closed())[0] == 1012


async def test_the_fan_out_over_another_server_reaches_the_readers_of_a_channel_in_order(fanned: Hosted) -> None:
    url = f"ws://127.0.0.1:{fanned.port}"
    async with (
        httpx2.AsyncClient(base_url=fanned.api_url) as web,
        connect(f"{url}/today") as first,
        connect(f"{url}/today", compression=None) as second,
        connect(f"{url}/other") as other,
        await RawSocket.open(fanned.port) as raw,
    ):
        head = await raw.upgrade("/today", "Sec-WebSocket-Extensions: permessage-deflate\r\n")
        assert "permessage-deflate; server_no_context_takeover" in head

        async def readers(channel: str) -> int:
            return int((await web.get(f"/news/{channel}")).json()["readers"])

        async def are(channel: str, count: int) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while await readers(channel) != count:  # noqa: ASYNC110 -- it is another process
                    await asyncio.sleep(0.01)

        await are("today", 3)
        await are("other", 1)
        titles = [f"{number} {'é' * size}" for number, size in enumerate((0, 20, 200, 2_000))]
        for title in titles:
            answer = await web.post("/news/today", params={"title": title})
            assert answer.json() == {"receivers": 3}
        for reader in (first, second):
            assert [json.loads(await reader.recv())["title"] for _ in titles] == titles
        frames = [await raw.frame() for _ in titles]
        assert [byte for byte, _ in frames] == [0x81, 0x81, 0xC1, 0xC1], "short ones plain, long ones deflated"
        assert [json.loads(inflated(*frame))["title"] for frame in frames] == titles
        await first.close()
        await are("today", 2)
        assert (await web.post("/news/other", params={"title": "x"})).json() == {"receivers": 1}
        assert json.loads(await other.recv()) == {"title": "x"}


def test_an_edge_that_cannot_start_keeps_its_host_from_starting(tmp_path: Path) -> None:
    """Where its data directory is gone the edge does not start, and neither does the host."""
    (tmp_path / "file").write_text("in the way")
    host = Hosted(tmp_path, "inside_fastapi")
    env = {**os.environ, "WS_PORT": str(free_port()), "REALTIME_DATA_DIR": str(tmp_path / "file" / "data")}
    done = subprocess.Popen(host._arguments, env=env | {"REALTIME_JWT_SECRET": SECRET}, stderr=subprocess.PIPE)
    assert done.stderr is not None
    deadline = time.monotonic() + PATIENCE_S
    try:
        while done.poll() is None:
            assert time.monotonic() < deadline, "the host goes on without its edge"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            done.kill()
        done.stderr.close()
    assert done.returncode != 0
