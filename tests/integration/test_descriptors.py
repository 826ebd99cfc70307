"""What becomes of newcomers where an app leaves no descriptors."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.kit import REALTIME, RawSocket, Server

APP = f"{Path(__file__).parent / 'apps' / 'hoarding.py'}:app"
HEALTH = b"GET /health HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n"


def processor_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(("count", "left"), [(1, 8), (1, 4), (2, 4)])
async def test_where_descriptors_run_out_those_who_ask_for_nothing_go_and_nothing_spins(
    tmp_path: Path, count: int, left: int
) -> None:
    limited = ("prlimit", "--nofile=600", REALTIME)
    server = Server(tmp_path / "server", app=APP, api=True, sets=[f"server.shards={count}"], command=limited)
    async with server, contextlib.AsyncExitStack() as stack:
        alice = await stack.enter_async_context(await server.connect())
        assert (await alice.ask("hoard", {"left": left}))["data"] > 100
        for _ in range(10):
            for port in (server.port, server.api_port):
                await stack.enter_async_context(await RawSocket.open(port))
        for number in range(3):
            async with await server.connect(f"bob{number}") as bob:
                assert await bob.is_alive()
            async with await RawSocket.open(server.api_port) as peer:
                await peer.send(HEALTH)
                status, _, _ = await peer.response()
                assert status == 200
        before_s, until_s = processor_s(server.pid), time.monotonic() + 1
        while time.monotonic() < until_s:
            assert await alice.is_alive()
            await asyncio.sleep(0.05)
        assert processor_s(server.pid) - before_s < 0.5
        assert server.is_running()
