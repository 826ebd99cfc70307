"""The examples with a web framework, started by the two commands that stand in them, over real sockets."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.kit import PATIENCE_S, ROOT, SECRET, Server, free_port

EXAMPLES = ROOT / "examples"
GRANIAN = Path(sys.executable).with_name("granian")


class Hosted(Server):
    """A host app with the edge inside, served by granian's command line; the kit's clients connect to the edge."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self._arguments = [
            *(GRANIAN, "--interface", "asgi", "--port", str(self.api_port)),
            *("--working-dir", str(EXAMPLES), f"inside_{name}:site"),
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


@pytest.fixture(params=["fastapi", "litestar"])
def hosted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hosted]:
    """Each example with the edge inside."""
    host = Hosted(tmp_path, request.param)
    host.start_now()
    yield host
    if host.is_running():
        host.stop_now()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Server]:
    """The example with a site on the edge's port."""
    server = Server(tmp_path, app=str(EXAMPLES / "mount_fastapi.py"), api=True)
    server.start_now()
    yield server
    assert server.stop_now() == 0, server.output


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


def test_an_edge_that_cannot_start_keeps_its_host_from_starting(tmp_path: Path) -> None:
    """Where its data directory is gone the edge does not start, and neither does the host."""
    (tmp_path / "file").write_text("in the way")
    host = Hosted(tmp_path, "fastapi")
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
