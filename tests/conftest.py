"""Fixtures of all tests. The server of the integration tests is one process a worker and number of shards."""

import importlib.util
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Server

SETS = {
    "1-shard": ("server.shards=1", "engine.flush=send"),
    "2-shards": ("server.shards=2", "engine.flush=auto"),
    "socketify": ("engine.transport=socketify",),
}
"""What every test over sockets runs with: both ways to the kernel, and the second transport where it is installed."""

_tests = itertools.count(1)


@pytest.fixture(params=SETS, scope="session")
def variant(request: pytest.FixtureRequest) -> str:
    """A key of `SETS`: every test that uses a server runs with each."""
    if request.param == "socketify" and importlib.util.find_spec("socketify") is None:
        pytest.skip("socketify is not installed")
    return str(request.param)


@pytest.fixture(scope="session")
def shards(variant: str) -> int:
    """The number of shards; for tests that make an engine of their own, which is the native one."""
    return 2 if variant == "2-shards" else 1


@pytest.fixture(scope="session")
def _shared(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp(f"shared-{variant}"),
        sets=[*SETS[variant], "presence.grace_s=0.3"],
    )
    server.start_now()
    yield server
    if server.is_running():
        assert server.stop_now() == 0, server.output


@pytest.fixture
def server(_shared: Server) -> Iterator[Server]:
    """A running server with the built-in app that other tests use too: whoever kills it makes its own by `serve`."""
    pid = _shared.pid
    yield _shared
    assert _shared.is_running(), f"the server did not survive the test:\n{_shared.output}"
    assert _shared.pid == pid


@pytest.fixture
async def serve(variant: str, tmp_path: Path) -> AsyncIterator[Callable[..., Server]]:
    """Make servers of a test's own, with the settings of this run; what still runs at the end is killed."""
    made: list[Server] = []

    def make(*sets: str, **options: Any) -> Server:
        folder = tmp_path / f"server-{len(made)}"
        made.append(Server(folder, sets=[*SETS[variant], *sets], **options))
        return made[-1]

    yield make
    for each in made:
        if each.is_running():
            each.kill()


@pytest.fixture
def tag() -> str:
    """A word that no other test has: for names of users and channels on the shared server."""
    return f"t{next(_tests)}x"
