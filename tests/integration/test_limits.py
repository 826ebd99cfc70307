"""What one connection, one user and one address may ask for, over real sockets; and an end that is told ahead."""

import asyncio
import contextlib
import json
from collections.abc import Callable

import pytest

from tests.kit import RawSocket, Server, clients, eventually, token_for, upgrade_request

V1 = "Sec-WebSocket-Protocol: realtime.v1\r\n"


async def status(server: Server, user: str, headers: str = "") -> tuple[int, dict[str, str], str]:
    async with await RawSocket.open(server.port) as peer:
        await peer.send(upgrade_request(f"/ws?token={token_for(user)}", headers))
        return await peer.response()


async def test_all_connections_of_a_user_share_its_commands(serve: Callable[..., Server]) -> None:
    # At one token a second no machine is so slow that half of the burst comes back meanwhile.
    server = serve("limits.user_commands_per_s=1", "limits.user_commands_burst=100")
    async with server, clients(server, "alice", "alice", "bob") as (one, other, bob):
        for number in range(100):
            await one.send("ping", id=number)
            await other.send("ping", id=number)
        answers = [await peer.answer(number) for peer in (one, other) for number in range(100)]
        errors = [frame["data"] for frame in answers if frame["type"] == "error"]
        assert 50 <= len(errors) <= 100
        assert {error["code"] for error in errors} == {"rate_limited"}
        assert all(0 < error["retryAfterMs"] <= 1000 and error["retryable"] for error in errors)
        assert await bob.is_alive()
        await asyncio.sleep(max(error["retryAfterMs"] for error in errors) / 1000)
        await one.send("ping", id="later")
        assert (await one.answer("later"))["type"] == "pong"


async def test_who_goes_on_after_refusals_is_closed_4003_and_may_come_back(serve: Callable[..., Server]) -> None:
    server = serve("limits.commands_per_s=1", "limits.commands_burst=100", "limits.refusals_max=50")
    async with server, await server.connect("bob") as bob:
        async with await server.raw("alice") as peer:
            with contextlib.suppress(ConnectionError):
                for _ in range(300):
                    await peer.text('{"type":"ping","id":1}')
            assert await peer.close_frame() == (4003, "too many commands for too long")
        # Until it has ended, on its shard, the next one is a second connection.
        await eventually(lambda: 'user="alice" code=4003' in server.output)
        # It is let in, with what the one before has left: a token for each second that has passed, and no new burst.
        async with await server.connect("alice") as again:
            for _ in range(99):
                answer = await again.ask("ping")
                if answer["type"] == "error":
                    assert answer["data"]["code"] == "rate_limited"
                    break
            else:
                pytest.fail("it has a new burst")
        assert await bob.is_alive()


async def test_a_session_too_many_is_refused_and_let_in_when_another_ends(serve: Callable[..., Server]) -> None:
    async with serve("limits.sessions_per_user_max=3") as server, contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(await server.connect("alice")) for _ in range(3)]
        code, headers, body = await status(server, "alice")
        assert (code, body) == (429, "Too Many Requests")
        assert 1 <= int(headers["retry-after"]) <= 5
        async with await RawSocket.open(server.port) as peer:
            await peer.upgrade(f"/ws?token={token_for('alice')}", V1)
            close, wait_ms = await peer.close_frame()
            assert close == 4005
            assert 1000 <= int(wait_ms) <= 5000
        async with await server.connect("bob") as bob:
            assert await bob.is_alive()
        await sessions[0].socket.close()
        # The closing handshake is over for both ends, so the place is free.
        async with await server.connect("alice") as again:
            assert await again.is_alive()


async def test_sessions_are_counted_exactly_however_many_come_at_once(serve: Callable[..., Server]) -> None:
    async with serve("limits.sessions_per_user_max=5") as server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(await RawSocket.open(server.port)) for _ in range(40)]
        request = upgrade_request(f"/ws?token={token_for('alice')}")
        await asyncio.gather(*(peer.send(request) for peer in peers))
        lines = [await asyncio.wait_for(peer.reader.readline(), 15) for peer in peers]
        codes = [int(line.split()[1]) for line in lines]
        assert (codes.count(101), codes.count(429)) == (5, 35)


async def test_the_oldest_session_is_closed_4504_where_that_is_configured(serve: Callable[..., Server]) -> None:
    server = serve("limits.sessions_per_user_max=2", "limits.sessions_per_user_over=close_oldest")
    async with server, contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(await server.raw("alice", headers=V1)) for _ in range(4)]
        for peer in peers[:2]:
            assert await peer.close_frame() == (4504, "a newer session took its place")
        for peer in peers[2:]:
            await peer.text('{"type":"ping","id":1}')
            assert (await peer.until("pong"))["id"] == 1


async def test_a_flood_of_handshakes_is_answered_429(serve: Callable[..., Server]) -> None:
    async with serve("limits.address_handshakes_per_s=1", "limits.address_handshakes_burst=10") as server:
        answers = [await status(server, "alice", "Sec-WebSocket-Version: 8\r\n") for _ in range(9)]
        assert [code for code, _, _ in answers] == [400] * 9
        # One more comes back each second, which a slow machine may use up on its way.
        while (answer := await status(server, "alice", "Sec-WebSocket-Version: 8\r\n"))[0] != 429:
            assert answer[0] == 400
        assert int(answer[1]["retry-after"]) >= 1

        async def close_code() -> int:
            async with await RawSocket.open(server.port) as peer:
                await peer.upgrade("/ws?token=nobody-looks-at-it", V1)
                return (await peer.close_frame())[0]

        while (code := await close_code()) != 4005:
            assert code == 4501


async def test_only_a_listed_proxy_is_believed(serve: Callable[..., Server]) -> None:
    limits = ("limits.connections_per_address_max=1",)

    async def of(server: Server, stack: contextlib.AsyncExitStack, forwarded: str) -> int:
        peer = await stack.enter_async_context(await RawSocket.open(server.port))
        await peer.send(upgrade_request(f"/ws?token={token_for('alice')}", f"X-Forwarded-For: {forwarded}\r\n"))
        return int((await asyncio.wait_for(peer.reader.readline(), 15)).split()[1])

    async with serve(*limits, "server.proxies=127.0.0.0/8,::1") as server, contextlib.AsyncExitStack() as stack:
        assert await of(server, stack, "6.6.6.6, 203.0.113.1") == 101
        assert await of(server, stack, "7.7.7.7, 203.0.113.1") == 429
        assert await of(server, stack, "203.0.113.2") == 101
    async with serve(*limits) as server, contextlib.AsyncExitStack() as stack:
        assert await of(server, stack, "203.0.113.1") == 101
        assert await of(server, stack, "203.0.113.2") == 429


async def test_a_proxy_that_is_no_address_refuses_the_start(serve: Callable[..., Server]) -> None:
    server = serve("server.proxies=proxy.example")
    with pytest.raises(AssertionError, match=r"ended with [12]"):
        await server.start()
    assert "server.proxies" in server.output
    assert "proxy.example" in server.output
    assert "Traceback" not in server.output


async def test_what_nobody_can_read_is_limited_too(serve: Callable[..., Server]) -> None:
    async with (
        serve("limits.commands_per_s=1", "limits.commands_burst=100") as server,
        await server.raw("alice") as peer,
    ):
        for _ in range(200):
            await peer.text("{not json")
        codes: list[str] = []
        while len(codes) < 200:
            _, payload = await peer.frame()
            frame = json.loads(payload)
            if frame["type"] == "error":
                codes.append(frame["data"]["code"])
        assert codes.count("invalid_message") <= 150
        assert set(codes) == {"invalid_message", "rate_limited"}
