"""What differs for a client that offers `realtime.v1`: it is told by close codes what a browser cannot see in HTTP."""

import json
from collections.abc import Callable

import pytest

from tests.kit import RawSocket, Server, token_for, upgrade_request

V1 = "Sec-WebSocket-Protocol: realtime.v1\r\n"


async def close_after_101(server: Server, target: str, headers: str = V1) -> tuple[int, str]:
    """Send an upgrade that is accepted and closed at once; return the code and the reason."""
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(target, headers)
        assert "Sec-WebSocket-Protocol: realtime.v1" in head.split("\r\n")
        first, payload = await peer.frame()
        assert first == 0x88, "the close is the first frame"
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()


async def test_offered_protocol_is_chosen(server: Server) -> None:
    async with await server.connect("alice", subprotocols=["realtime.v1"]) as alice:
        assert alice.socket.subprotocol == "realtime.v1"
        assert await alice.is_alive()


@pytest.mark.parametrize("offered", ["realtime.v1, realtime.v0", "other, realtime.v1", "realtime.v7, realtime.v1"])
async def test_highest_version_that_the_server_speaks_is_chosen(server: Server, offered: str) -> None:
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(f"/ws?token={token_for('alice')}", f"Sec-WebSocket-Protocol: {offered}\r\n")
    assert "Sec-WebSocket-Protocol: realtime.v1" in head.split("\r\n")


async def test_protocol_that_the_server_does_not_speak_is_not_echoed(server: Server) -> None:
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(f"/ws?token={token_for('alice')}", "Sec-WebSocket-Protocol: graphql-ws\r\n")
        _, payload = await peer.frame()
    assert "sec-websocket-protocol" not in head.lower()
    assert json.loads(payload)["type"] == "connection_established"


@pytest.mark.parametrize("query", ["", "?token=wrong"])
async def test_bad_token_is_close_4501(server: Server, query: str) -> None:
    code, _ = await close_after_101(server, f"/ws{query}")
    assert code == 4501


async def test_expired_token_is_close_4002(server: Server) -> None:
    code, _ = await close_after_101(server, f"/ws?token={token_for('alice', ttl_s=-10)}")
    assert code == 4002


async def test_forbidden_origin_is_close_4502(serve: Callable[..., Server]) -> None:
    async with serve('auth.origins=["https://example.org"]') as server:
        target = f"/ws?token={token_for('alice')}"
        code, _ = await close_after_101(server, target, V1 + "Origin: https://example.com\r\n")
    assert code == 4502


async def test_full_server_is_close_4005_with_the_milliseconds_to_wait(serve: Callable[..., Server]) -> None:
    async with serve("limits.connections_max=1") as server, await server.connect("a"):
        code, reason = await close_after_101(server, f"/ws?token={token_for('alice')}")
    assert code == 4005
    assert int(reason) >= 1


async def test_wrong_path_and_bad_upgrade_stay_http(server: Server) -> None:
    bad_version = upgrade_request(f"/ws?token={token_for('alice')}", V1).replace(b"-Version: 13", b"-Version: 8")
    for request, expected in ((upgrade_request("/other", V1), 404), (bad_version, 426)):
        async with await RawSocket.open(server.port) as peer:
            await peer.send(request)
            assert (await peer.response())[0] == expected


async def test_token_that_expires_closes_4002(serve: Callable[..., Server]) -> None:
    async with serve() as server:
        alice = await server.connect(token=token_for("alice", ttl_s=2), subprotocols=["realtime.v1"])
        assert (await alice.closed())[0] == 4002


async def test_expired_token_lives_on_where_expiry_is_checked_at_connect_only(serve: Callable[..., Server]) -> None:
    async with serve("auth.expiry=connect") as server:
        alice = await server.connect(token=token_for("alice", ttl_s=1))
        await alice.refute("error", within_s=2.5)
        assert await alice.is_alive()


async def test_a_token_alone_is_closed_with_a_reason_that_a_browser_sees(server: Server) -> None:
    offered = f"bearer.{token_for('zoe')}"
    async with await server.connect("bob", about="zoe") as bob, await RawSocket.open(server.port) as peer:
        head = await peer.upgrade("/ws", f"Sec-WebSocket-Protocol: {offered}\r\n")
        assert f"Sec-WebSocket-Protocol: {offered}" in head.split("\r\n")
        first, payload = await peer.frame()
        assert (first, int.from_bytes(payload[:2], "big")) == (0x88, 4501)
        assert payload[2:].decode() == "offer the subprotocol realtime.v1 beside bearer.<token>"
        await bob.refute("user_presence")
