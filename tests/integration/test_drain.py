"""The end of the process, as clients, load balancers and operators see it."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.kit import Client, Server, clients, eventually

APPS = Path(__file__).parent / "apps"
ENDINGS = f"{APPS / 'endings.py'}:app"


async def test_each_client_is_told_its_own_delay_and_is_served_until_the_close(serve: Callable[..., Server]) -> None:
    async with serve("drain.notice_s=1", "drain.window_s=8") as server:
        users = [f"u{number}" for number in range(20)]
        async with clients(server, *users) as peers:
            ending = asyncio.create_task(server.stop())
            told = [(await peer.expect("draining"))["data"]["reconnectInMs"] for peer in peers]
            assert all(0 <= delay_ms <= 8000 for delay_ms in told)
            assert len(set(told)) > 15
            await peers[0].subscribe("conversation:1")
            assert (await peers[1].say("1", "said while it drains"))["content"] == "said while it drains"
            await peers[0].expect("new_message", content="said while it drains")
            assert await ending == 0
            assert {(await peer.closed())[0] for peer in peers} == {1012}


async def test_a_command_under_way_is_answered_and_others_are_served_meanwhile(serve: Callable[..., Server]) -> None:
    async with serve(app=ENDINGS) as server, clients(server, "alice", "bob") as (alice, bob):
        await alice.send("long", id=1)
        assert await bob.is_alive()
        ending = asyncio.create_task(server.stop())
        await bob.expect("draining")
        assert await bob.is_alive()
        assert (await alice.answer(1))["data"] == "done"
        assert await ending == 0
        assert (await alice.closed())[0] == (await bob.closed())[0] == 1012


async def test_nobody_new_is_taken_once_it_drains(serve: Callable[..., Server]) -> None:
    async with serve("drain.notice_s=1") as server, await server.connect("alice") as alice:
        ending = asyncio.create_task(server.stop())
        await alice.expect("draining")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.close()
            raise AssertionError("a connection was taken")
        except ConnectionRefusedError:
            pass
        assert await ending == 0


async def test_with_nobody_connected_the_end_does_not_wait_for_the_notice(serve: Callable[..., Server]) -> None:
    async with serve("drain.notice_s=8") as server:
        began_s = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began_s < 5


async def test_handlers_that_do_not_end_are_cut_off_within_the_grace(serve: Callable[..., Server]) -> None:
    async with serve("drain.grace_s=2", app=ENDINGS) as server, await server.connect("alice") as alice:
        await alice.send("endless", id=1)
        assert await alice.is_alive()
        began_s = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began_s < 4
        assert (await alice.answer(1))["data"]["code"] == "draining"
        assert (await alice.closed())[0] == 1012


async def test_with_a_successor_connections_end_one_by_one(serve: Callable[..., Server]) -> None:
    users = [f"u{number}" for number in range(10)]
    async with serve("drain.successor=true", "drain.window_s=2") as server, clients(server, *users) as peers:
        ended_s: list[float] = []

        async def ends(peer: Client) -> int:
            code, _ = await peer.closed()
            ended_s.append(time.monotonic())
            return code

        watching = [asyncio.create_task(ends(peer)) for peer in peers]
        assert await server.stop() == 0
        assert set(await asyncio.gather(*watching)) == {1012}
        assert max(ended_s) - min(ended_s) > 0.5


async def test_a_second_signal_ends_at_once_though_the_loop_is_held(serve: Callable[..., Server]) -> None:
    async with serve("drain.grace_s=30", app=ENDINGS) as server, await server.connect("alice") as alice:
        await alice.send("endless", id=1)
        assert await alice.is_alive()
        os.kill(server.pid, signal.SIGTERM)
        await alice.expect("draining")
        began_s = time.monotonic()
        assert await server.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - began_s < 3
        assert "ending at once" in server.output


async def test_a_request_under_way_is_answered_and_ready_says_draining(serve: Callable[..., Server]) -> None:
    async with serve("drain.notice_s=2", api=True) as server, await server.connect("alice") as alice:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)

        async def ask(path: str) -> tuple[int, str]:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)).decode().lower()
            size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split()[1]), (await reader.readexactly(size)).decode()

        assert (await ask("/ready"))[0] == 200
        os.kill(server.pid, signal.SIGTERM)
        await alice.expect("draining")
        status, body = await ask("/ready")
        assert (status, json.loads(body)["reasons"]) == (503, ["draining"])
        await eventually(lambda: not server.is_running(), what="the end")
        writer.close()
