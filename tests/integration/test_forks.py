"""A process that a handler forks: it has nothing of the server, ends like any child, and the server does not notice."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.kit import PATIENCE_S, Client, Server, clients, eventually

APP = f"{Path(__file__).parent / 'apps' / 'forking.py'}:app"


@pytest.fixture
async def server(serve: Callable[..., Server]) -> AsyncIterator[Server]:
    """A server whose handlers fork."""
    async with serve(app=APP, api=True) as server:
        yield server
        assert await server.stop() == 0, server.output


async def data_of(peer: Client, type: str, data: object = None) -> object:
    answer = await peer.ask(type, data)
    assert answer["type"] == "ack", answer
    return answer["data"]


async def serves_on(server: Server, peer: Client) -> None:
    """Demand that open connections, new ones and HTTP are served."""
    assert await peer.is_alive()
    async with await server.connect("carol") as carol:
        await carol.subscribe("ledger:2")
        await peer.ask("publish", {"channel": "ledger:2", "event": "x", "data": {}})
    async with httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as web:
        assert (await web.get("/ready")).status_code == 200


async def test_a_child_publishes_nothing_and_is_told_how_it_could(server: Server) -> None:
    async with await server.connect("alice") as alice:
        await alice.subscribe("ledger:1")
        told = await data_of(alice, "publish_there")
        assert isinstance(told, list)
        assert len(told) == 6
        assert all("POST /api/events" in text for text in told), told
        assert (await data_of(alice, "run_anew")) is True
        await serves_on(server, alice)
        assert not [frame for frame in alice.inbox if frame["type"] == "from_child"]


async def test_a_child_has_no_socket_ring_file_lock_thread_or_signal_handler_of_the_server(server: Server) -> None:
    async with clients(server, *(f"u{number}" for number in range(20))) as peers:
        found = await data_of(peers[0], "inherited", [server.port, server.api_port])
        assert found == {"held": [], "defaults": True, "threads": 1, "wakeup": -1}
        for peer in peers:
            await serves_on(server, peer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_a_child_ends_by_a_signal(server: Server, number: signal.Signals) -> None:
    async with await server.connect("alice") as alice:
        assert await data_of(alice, "terminate", number) == -number
        await serves_on(server, alice)


@pytest.mark.parametrize("where", ["exit", "exit_later", "exit_in_thread"])
async def test_a_child_exits_with_its_code(server: Server, where: str) -> None:
    async with await server.connect("alice") as alice:
        for code in (0, 5):
            assert await data_of(alice, where, code) == code
        await serves_on(server, alice)


@pytest.mark.parametrize("where", ["return", "return_in_thread"])
async def test_a_child_that_comes_back_from_its_handler_ends_there(server: Server, where: str) -> None:
    async with await server.connect("alice") as alice:
        assert await data_of(alice, where) in {0, 1}
        await serves_on(server, alice)


async def test_what_a_child_logs_is_written(server: Server) -> None:
    async with await server.connect("alice") as alice:
        await data_of(alice, "log")
        await eventually(lambda: "a line of the child" in server.output)


async def test_the_end_waits_for_no_daemon_child_and_frees_the_port(serve: Callable[..., Server]) -> None:
    async with serve("drain.grace_s=4", app=APP) as server:
        async with await server.connect("alice") as alice:
            await data_of(alice, "daemon")
        began_s = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began_s < PATIENCE_S
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_child_that_outlives_a_killed_server_holds_neither_its_port_nor_its_log(
    serve: Callable[..., Server],
) -> None:
    async with serve(app=APP, api=True) as server:
        async with await server.connect("alice") as alice:
            pid = await data_of(alice, "daemon")
            assert isinstance(pid, int)
            server.kill()
            try:
                # An end of the connection: the child holds no copy of it.
                await asyncio.wait_for(alice.socket.wait_closed(), PATIENCE_S)
                await server.start()
                async with await server.connect("bob") as bob:
                    await serves_on(server, bob)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert await server.stop() == 0
