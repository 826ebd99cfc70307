"""Fixtures of all tests. The server of the integration tests is one process a worker and number of shards."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Server

FLUSH = {1: "send", 2: "auto"}
"""How the servers of each number of shards send, so that both ways to the kernel are tested where there are two."""

_tests = itertools.count(1)


@pytest.fixture(params=[1, 2], ids=["1-shard", "2-shards"], scope="session")
def shards(request: pytest.FixtureRequest) -> int:
    """The number of shard threads: every test that uses a server runs with each."""
    return int(request.param)


@pytest.fixture(scope="session")
def _shared(shards: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp(f"shared-{shards}"),
        sets=[f"server.shards={shards}", f"engine.flush={FLUSH[shards]}", "presence.grace_s=0.3"],
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
async def serve(shards: int, tmp_path: Path) -> AsyncIterator[Callable[..., Server]]:
    """Make servers of a test's own, with the number of shards of this run; what still runs at the end is killed."""
    made: list[Server] = []

    def make(*sets: str, **options: Any) -> Server:
        folder = tmp_path / f"server-{len(made)}"
        made.append(Server(folder, sets=[f"server.shards={shards}", f"engine.flush={FLUSH[shards]}", *sets], **options))
        return made[-1]

    yield make
    for each in made:
        if each.is_running():
            each.kill()


@pytest.fixture
def tag() -> str:
    """A word that no other test has: for names of users and channels on the shared server."""
    return f"t{next(_tests)}x"
