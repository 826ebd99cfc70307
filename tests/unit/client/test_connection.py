"""The client against a server that is played by the `websockets` library, frame by frame."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from realtime.client import CommandFailed, ConnectionEnded, NotConnected, Position, connect
from tests.unit.client.peer import asked, played, silent, tell


async def test_it_brings_its_token_as_a_header_and_knows_itself() -> None:
    seen: list[Any] = []

    async def script(peer: ServerConnection) -> None:
        assert peer.request is not None
        seen.append((peer.request.path, peer.request.headers["Authorization"], peer.subprotocol))
        await peer.wait_closed()

    async with played(script, subprotocols=["realtime.v1"]) as url, connect(url, token="t0k3n") as client:
        assert (client.session_id, client.user) == ("s-1", "ann")
    assert seen == [("/ws", "Bearer t0k3n", "realtime.v1")]


async def test_replies_find_their_commands_whatever_their_order() -> None:
    async def script(peer: ServerConnection) -> None:
        one, two = await asked(peer), await asked(peer)
        await tell(peer, {"type": "ack", "data": two["data"]["n"], "id": two["id"]})
        await tell(peer, {"type": "new_message", "data": {}, "channel": "c", "offset": 1})
        await tell(peer, {"type": "ack", "data": one["data"]["n"], "id": one["id"]})
        await peer.wait_closed()

    async with played(script) as url, connect(url) as client:
        replies = await asyncio.gather(client.send("x", {"n": 1}), client.send("x", {"n": 2}))
        assert [reply.data for reply in replies] == [1, 2]
        event = await anext(client)
        assert (event.type, event.channel, event.offset) == ("new_message", "c", 1)


async def test_an_error_is_raised_with_its_facts() -> None:
    async def script(peer: ServerConnection) -> None:
        id_ = (await asked(peer))["id"]
        told = {"message": "Invalid message format", "code": "invalid_message", "retryable": False, "path": "data.x"}
        await tell(peer, {"type": "error", "data": told, "id": id_})
        await tell(peer, {"type": "error", "data": {"message": "m", "code": "unknown_type", "retryable": False}})
        await peer.wait_closed()

    async with played(script) as url, connect(url) as client:
        with pytest.raises(CommandFailed, match=r"Invalid message format \(invalid_message at data.x\)") as failed:
            await client.send("x")
        assert (failed.value.code, failed.value.retryable, failed.value.path) == ("invalid_message", False, "data.x")
        assert (await anext(client)).data["code"] == "unknown_type"


async def test_a_command_that_is_not_answered_times_out() -> None:
    async with played(silent) as url, connect(url) as client:
        with pytest.raises(CommandFailed, match=r"x was not answered in 0\.05 s") as failed:
            await client.send("x", timeout_s=0.05)
        assert failed.value.retryable


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({}, {"channel": "c:1"}),
        ({"last": 5}, {"channel": "c:1", "last": 5}),
        ({"position": Position(7, "e")}, {"channel": "c:1", "position": {"offset": 7, "epoch": "e"}}),
    ],
)
async def test_subscribe_says_what_is_wanted_and_reads_the_confirmation(
    options: dict[str, Any], sent: dict[str, Any]
) -> None:
    commands: list[Any] = []

    async def script(peer: ServerConnection) -> None:
        commands.append(await asked(peer))
        data = {"channel": "c:1", "position": {"offset": 9, "epoch": "e"}, "head": 11, "recovered": True, "replayed": 2}
        await tell(peer, {"type": "subscription_confirmed", "data": data, "id": commands[0]["id"]})
        await peer.wait_closed()

    async with played(script) as url, connect(url) as client:
        confirmed = await client.subscribe("c:1", **options)
    assert (commands[0]["type"], commands[0]["data"]) == ("subscribe", sent)
    assert (confirmed.position, confirmed.head) == (Position(9, "e"), 11)
    assert (confirmed.recovered, confirmed.replayed) == (True, 2)


async def test_events_before_the_end_are_kept_and_the_end_is_raised() -> None:
    async def script(peer: ServerConnection) -> None:
        for offset in (1, 2):
            await tell(peer, {"type": "new_message", "data": {}, "offset": offset})
        await peer.close(4000, "slow reader")

    async with played(script) as url, connect(url) as client:
        assert [(await anext(client)).offset for _ in range(2)] == [1, 2]
        with pytest.raises(ConnectionEnded, match="the connection ended with 4000 slow reader") as ended:
            await anext(client)
        assert ended.value.may_come_back
        with pytest.raises(ConnectionEnded):
            await client.send("x")
        with pytest.raises(ConnectionEnded):
            await client.tell("x")


async def test_events_come_in_order_before_the_end() -> None:
    async def script(peer: ServerConnection) -> None:
        for offset in range(100):
            await tell(peer, {"type": "new_message", "data": {}, "offset": offset})
        await peer.close()

    async with played(script) as url, connect(url) as client:
        assert [event.offset async for event in client] == list(range(100))


async def test_a_lost_socket_fails_what_waits() -> None:
    async def script(peer: ServerConnection) -> None:
        await peer.recv()
        peer.transport.abort()

    async with played(script) as url, connect(url) as client:
        with pytest.raises(ConnectionEnded) as ended:
            await client.send("x")
        assert (ended.value.code, ended.value.may_come_back) == (1006, True)


@pytest.mark.parametrize(
    ("code", "may"), [(1000, False), (1001, True), (1006, True), (1012, True), (4001, True), (4501, False)]
)
def test_the_range_of_a_code_says_whether_to_come_back(code: int, may: bool) -> None:
    assert ConnectionEnded(code, "").may_come_back is may


async def test_nothing_there_is_told_with_what_to_do() -> None:
    with pytest.raises(NotConnected, match=r"nothing answers at ws://127.0.0.1:9/ws .*start a server by") as refused:
        async with connect("ws://127.0.0.1:9/ws"):
            pass
    assert refused.value.status is None


@pytest.mark.parametrize("url", ["http://127.0.0.1/ws", "127.0.0.1:3002", ""])
async def test_what_is_no_url_of_an_endpoint_is_told(url: str) -> None:
    with pytest.raises(NotConnected, match="is not the URL of a WebSocket endpoint"):
        async with connect(url):
            pass


async def test_a_refused_upgrade_is_told_with_its_status() -> None:
    def refuse(_: ServerConnection, __: Request) -> Response:
        return Response(401, "Unauthorized", Headers({"Content-Length": "12"}), b"Unauthorized")

    async with played(silent, process_request=refuse) as url:
        with pytest.raises(NotConnected, match="answered 401 Unauthorized") as refused:
            async with connect(url):
                pass
    assert refused.value.status == 401


async def test_a_close_in_place_of_the_first_frame_is_a_refusal() -> None:
    async def script(peer: ServerConnection) -> None:
        await peer.close(4501, "unauthorized")

    async with played(script, first=False) as url:
        with pytest.raises(NotConnected, match="the server refused: 4501 unauthorized"):
            async with connect(url):
                pass


async def test_a_server_that_stays_silent_is_left() -> None:
    async with played(silent, first=False) as url:
        with pytest.raises(NotConnected, match=r"no first frame within 0\.05 s"):
            async with connect(url, open_timeout_s=0.05):
                pass


@pytest.mark.parametrize("text", ["[]", "nonsense", "3"])
async def test_what_is_no_frame_ends_the_connection(text: str) -> None:
    async def script(peer: ServerConnection) -> None:
        await peer.send(text)
        await peer.wait_closed()
        assert peer.close_code == 1007

    async with played(script) as url, connect(url) as client:
        with pytest.raises(ConnectionEnded) as ended:
            await anext(client)
        assert ended.value.code == 1007


async def test_a_program_that_reads_no_events_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.client.connection.EVENTS_WAITING_MAX", 10)

    async def script(peer: ServerConnection) -> None:
        for _ in range(20):
            await tell(peer, {"type": "tick", "data": None})
        await peer.wait_closed()
        assert (peer.close_code, peer.close_reason) == (1008, "events are not read")

    async with played(script) as url, connect(url) as client:
        await client._reader
        with pytest.raises(ConnectionEnded):
            async for _ in client:
                pass


async def test_it_knows_how_long_a_server_that_goes_away_asked_it_to_stay_away() -> None:
    async def script(peer: ServerConnection) -> None:
        await tell(peer, {"type": "draining", "data": {"reconnectInMs": 60_000}})
        await peer.close(1012)

    async with played(script) as url, connect(url) as client:
        assert (await anext(client)).type == "draining"
        assert client.reconnect_in_s is not None
        assert 50 < client.reconnect_in_s <= 60
