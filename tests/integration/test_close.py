"""The end of a connection: the closing handshake, silence, slow readers, and what is given back."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import pytest

from tests.kit import Server, client_frame, clients, eventually

CLOSE = 0x88


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999])
async def test_valid_close_is_answered_with_its_own_code(server: Server, code: int) -> None:
    async with await server.raw() as peer:
        await peer.send(client_frame(CLOSE, code.to_bytes(2, "big") + "bye \u2615".encode()))
        assert (await peer.close_frame())[0] == code


async def test_close_without_a_code_is_answered_without_one(server: Server) -> None:
    async with await server.raw() as peer:
        await peer.send(client_frame(CLOSE, b""))
        assert (await peer.close_frame())[0] in {1000, 1005}


async def test_silent_peer_is_pinged_and_closed_4001_after_two_unanswered(serve: Callable[..., Server]) -> None:
    async with serve("limits.heartbeat_interval_s=1") as server, await server.raw() as peer:
        started = time.monotonic()
        pings = 0
        while (frame := await peer.frame())[0] != CLOSE:
            pings += frame[0] == 0x89
        assert pings == 2
        assert int.from_bytes(frame[1][:2], "big") == 4001
        assert 2 < time.monotonic() - started < 8


async def test_peer_that_answers_pings_stays(serve: Callable[..., Server]) -> None:
    async with serve("limits.heartbeat_interval_s=1") as server, await server.connect("alice") as alice:
        await alice.refute("error", within_s=4)
        assert await alice.is_alive()


async def test_idle_peer_is_closed_where_heartbeats_are_off(serve: Callable[..., Server]) -> None:
    async with serve("limits.heartbeats=false", "limits.idle_timeout_s=1") as server, await server.raw() as peer:
        started = time.monotonic()
        for _ in range(4):
            await asyncio.sleep(0.5)
            await peer.send(client_frame(0x8A, b""))  # any frame resets it, a pong too
        while (await peer.frame())[0] != CLOSE:
            pass
        assert 2.5 < time.monotonic() - started < 8


async def test_peer_that_does_not_answer_a_close_is_cut(serve: Callable[..., Server]) -> None:
    async with serve("limits.close_timeout_s=1") as server, await server.raw() as peer:
        started = time.monotonic()
        await peer.send(client_frame(0x83, b""))
        while (await peer.frame())[0] != CLOSE:
            pass
        await peer.rest()
        assert time.monotonic() - started < 5


async def test_slow_reader_loses_volatile_events_with_a_lag_and_others_are_not_held_up(
    serve: Callable[..., Server],
) -> None:
    server = serve("limits.enabled=false", "limits.outbox_hard_bytes=200000", "limits.outbox_soft_bytes=50000")
    async with server, clients(server, "alice", "bob") as (alice, bob), await server.raw("sleeper") as sleeper:
        await sleeper.text('{"type":"subscribe","data":{"channel":"conversation:1"}}')
        await sleeper.until("subscription_confirmed")
        sleeper.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await bob.subscribe("conversation:1")
        body = {"x": "y" * 20_000}
        for number in range(600):
            await alice.send("publish", {"channel": "conversation:1", "event": "bulk", "data": body | {"n": number}})
            await bob.expect("bulk", n=number)
        sleeper.reader._transport.resume_reading()  # type: ignore[attr-defined]
        lag = await sleeper.until("lag")
        assert lag["data"]["channel"] == "conversation:1"
        assert lag["data"]["skipped"] > 0


async def test_slow_reader_of_durable_events_is_closed_4000_and_resumes(serve: Callable[..., Server]) -> None:
    server = serve("limits.enabled=false", "limits.outbox_hard_bytes=200000", "limits.outbox_soft_bytes=50000")
    async with server, clients(server, "alice", "bob") as (alice, bob):
        sleeper = await server.raw("sleeper", headers="Sec-WebSocket-Protocol: realtime.v1\r\n")
        await sleeper.text('{"type":"subscribe","data":{"channel":"conversation:1"}}')
        position = (await sleeper.until("subscription_confirmed"))["data"]["position"]
        sleeper.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await bob.subscribe("conversation:1")
        for number in range(1, 601):
            await alice.send("send_message", {"conversationId": "1", "content": "y" * 20_000})
            assert (await bob.expect("new_message"))["offset"] == number
        sleeper.reader._transport.resume_reading()  # type: ignore[attr-defined]
        async with sleeper:
            assert (await sleeper.close_frame())[0] == 4000
        async with await server.connect("sleeper", subprotocols=["realtime.v1"]) as again:
            confirmed = await again.subscribe("conversation:1", position=position)
            assert (confirmed["recovered"], confirmed["replayed"]) == (True, 600)
            assert [(await again.expect("new_message"))["offset"] for _ in range(600)] == [*range(1, 601)]


async def test_descriptors_of_closed_connections_are_given_back(serve: Callable[..., Server]) -> None:
    async with serve("limits.close_timeout_s=1") as server:
        before = server.descriptors()
        for _ in range(3):
            async with contextlib.AsyncExitStack() as stack:
                for number in range(50):
                    await stack.enter_async_context(await server.connect(f"u{number}"))
                assert server.descriptors() > before + 45  # the kit's own first look may still have counted
        await eventually(lambda: server.descriptors() <= before, what="the end of every connection")
