"""The end of the process, as clients, load balancers and operators see it."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.integration.first_version import FirstVersionClient
from tests.kit import Client, RawSocket, Server, clients, eventually

APPS = Path(__file__).parent / "apps"
ENDINGS = f"{APPS / 'endings.py'}:app"
SLOW_SITE = f"{APPS / 'slow_site.py'}:app"

CROWD = 500


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
    async with (
        serve(app=ENDINGS, api=True) as server,
        clients(server, "alice", "bob") as (alice, bob),
        httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as web,
    ):
        await alice.send("long", id=1)
        assert await bob.is_alive()
        ending = asyncio.create_task(server.stop())
        await bob.expect("draining")
        assert await bob.is_alive()
        ready = await web.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
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


async def test_a_crowd_is_spread_served_to_the_end_and_closed(serve: Callable[..., Server]) -> None:
    users = [f"u{number}" for number in range(CROWD)]
    async with (
        serve("drain.notice_s=4", "drain.window_s=8", "presence.everyone_max=1") as server,
        clients(server, *users) as peers,
    ):
        await peers[0].subscribe("conversation:1")
        os.kill(server.pid, signal.SIGTERM)
        delays_ms = [(await peer.expect("draining"))["data"]["reconnectInMs"] for peer in peers]
        assert all(0 <= delay_ms <= 8000 for delay_ms in delays_ms)
        assert len(set(delays_ms)) > CROWD * 0.9
        # Even chances give each quarter of the window 125 of 500; below 70 is not met by chance.
        quarters = Counter(min(3, delay_ms // 2000) for delay_ms in delays_ms)
        assert min(quarters[quarter] for quarter in range(4)) > CROWD * 0.14, quarters
        said = await asyncio.gather(*(peer.say("1", f"by {user}") for user, peer in zip(users, peers, strict=True)))
        assert sorted(message["number"] for message in said) == list(range(1, CROWD + 1))
        heard = [(await peers[0].expect("new_message"))["data"]["number"] for _ in range(CROWD)]
        assert heard == list(range(1, CROWD + 1))
        await eventually(lambda: not server.is_running(), what="the end")
        assert await server.stop() == 0
        assert {(await peer.closed())[0] for peer in peers} == {1012}


async def test_a_crowd_leaves_for_a_successor_over_the_window(serve: Callable[..., Server]) -> None:
    users = [f"u{number}" for number in range(CROWD)]
    ended: list[tuple[float, int]] = []

    async def ends(peer: Client) -> None:
        code, _ = await peer.closed()
        ended.append((time.monotonic(), code))

    async with (
        serve("drain.successor=true", "drain.window_s=4", "presence.everyone_max=1") as server,
        clients(server, *users) as peers,
    ):
        watching = [asyncio.create_task(ends(peer)) for peer in peers]
        assert await server.stop() == 0
        await asyncio.gather(*watching)
    assert {code for _, code in ended} == {1012}
    # Half of them end within a half of the window that is not its first moment: they do not go all at once.
    times_s = sorted(at_s for at_s, _ in ended)
    assert times_s[CROWD * 3 // 4] - times_s[CROWD // 4] > 1


async def test_clients_of_the_first_version_are_closed_so_that_they_come_back(serve: Callable[..., Server]) -> None:
    async with serve() as server, FirstVersionClient(server, "old", "conversation:1", pace=0.5) as old:
        await old.is_back(1)
        assert await server.stop() == 0
        await eventually(lambda: [code for code, _ in old.closes] == [1012], what="the close")
        assert "draining" in old.ignored
        await server.start()
        await old.is_back(2)


async def test_a_second_signal_ends_at_once(serve: Callable[..., Server]) -> None:
    async with serve("drain.grace_s=30", app=ENDINGS) as server, await server.connect("alice") as alice:
        await alice.send("endless", id=1)
        assert await alice.is_alive()
        os.kill(server.pid, signal.SIGTERM)
        await alice.expect("draining")
        # Signals within a second are one wish to end.
        await asyncio.sleep(1.1)
        began_s = time.monotonic()
        assert await server.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - began_s < 3
        assert "ending at once" in server.output


@pytest.mark.parametrize("handler", ["asleep", "busy"])
async def test_a_second_signal_ends_at_once_though_a_handler_holds_the_loop(
    serve: Callable[..., Server], handler: str
) -> None:
    async with serve(app=ENDINGS) as server, await server.connect("alice") as alice:
        await alice.send(handler)
        await eventually(lambda: "the loop is held" in server.output, what="the handler")
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.sleep(1.1)
        began_s = time.monotonic()
        assert await server.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - began_s < 5
        assert "ending at once" in server.output


async def test_requests_under_way_are_answered_whole_and_new_ones_503(serve: Callable[..., Server]) -> None:
    async with (
        serve(app=SLOW_SITE, api=True) as server,
        await RawSocket.open(server.api_port) as upload,
        await RawSocket.open(server.api_port) as stream,
        httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as web,
        await server.connect("alice") as alice,
    ):
        await upload.send(b"POST /slow/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"1" * 50_000)
        await stream.send(b"GET /slow/stream HTTP/1.0\r\nHost: x\r\n\r\n")
        await eventually(lambda: server.output.count("has begun") == 2, what="both requests")
        assert (await web.get("/ready")).status_code == 200
        os.kill(server.pid, signal.SIGTERM)
        await alice.expect("draining")
        ready = await web.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
        refused = await web.get("/slow/upload")
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        assert (await stream.rest()).partition(b"\r\n\r\n")[2] == b"x" * 100_000 + b"0"
        # The upload goes on, and so does everything else, for as long as this takes.
        assert await alice.is_alive()
        assert (await web.get("/ready")).status_code == 503
        await upload.send(b"1" * 50_000)
        assert (await upload.rest()).endswith(b"\r\n\r\n100000")
        await eventually(lambda: not server.is_running(), what="the end")
        assert await server.stop() == 0
        assert (await alice.closed())[0] == 1012


async def test_a_request_that_does_not_end_is_cut_off_within_the_grace(serve: Callable[..., Server]) -> None:
    async with (
        serve("drain.grace_s=3", app=SLOW_SITE, api=True) as server,
        await RawSocket.open(server.api_port) as endless,
        await server.connect("alice") as alice,
    ):
        await endless.send(b"GET /slow/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: "has begun" in server.output, what="the request")
        began_s = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began_s < 5
        assert (await alice.closed())[0] == 1012
        assert "1 HTTP requests were cut off at the end" in server.output
