"""A client of the first version goes on working unchanged: docs/topics/legacy-clients.md, row by row."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration.first_version import DELAYS_S, FirstVersionClient
from tests.kit import PATIENCE_S, Server, clients, eventually, token_for

VOTES = f"{Path(__file__).parent / 'apps' / 'votes.py'}:app"


REQUIRED = "ConversationId and content are required"


async def test_conversation_without_ids_is_as_it_was(server: Server, tag: str) -> None:
    channel = f"conversation:{tag}"
    async with (
        FirstVersionClient(server, f"{tag}a", channel) as ann,
        FirstVersionClient(server, f"{tag}b", channel) as bob,
    ):
        for client in (ann, bob):
            assert (await client.sees("connection_established"))["sessionId"]
            await client.is_back(1)
        await ann.sees("user_presence", userId=f"{tag}b", status="online")
        await ann.send("send_message", {"conversationId": tag, "content": "hello"})
        for client in (ann, bob):
            message = await client.sees("new_message", content="hello")
            assert (message["conversationId"], message["userId"], message["role"]) == (tag, f"{tag}a", "user")
            assert message["metadata"] == {"source": "websocket"}
        await bob.send("typing_start", {"conversationId": tag})
        await ann.sees("typing_indicator", userId=f"{tag}b", isTyping=True)
        await bob.send("typing_stop", {"conversationId": tag})
        await ann.sees("typing_indicator", userId=f"{tag}b", isTyping=False)
        await ann.send("ping")
        assert (await ann.sees("pong"))["timestamp"].endswith("Z")
        await ann.send("unsubscribe")
        await ann.send("unsubscribe", {"channel": channel})
        await ann.sees("unsubscription_confirmed", channel=channel)
        # It sent no id, so nothing that it does not know came.
        assert "ack" not in ann.ignored + bob.ignored


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("nonsense", "Invalid message format"),
        ("null", "Invalid message format"),
        ("[]", "Invalid message format"),
        ("{}", "Unknown message type: undefined"),
        ('{"type":"dance"}', "Unknown message type: dance"),
        ('{"type":"subscribe","data":{}}', "Channel is required for subscription"),
        ('{"type":"send_message","data":{"content":"x"}}', "ConversationId and content are required"),
        (
            '{"type":"send_message","data":{"conversationId":"1","content":""}}',
            "ConversationId and content are required",
        ),
    ],
)
async def test_errors_say_what_they_said(server: Server, tag: str, sent: str, message: str) -> None:
    async with FirstVersionClient(server, tag) as ann:
        await ann.sees("connection_established")
        assert ann._socket is not None
        await ann._socket.send(sent)
        await ann.sees("error", message=message)
        assert ann.closes == []


async def test_page_of_a_foreign_origin_connects_unless_origins_are_named(serve: Callable[..., Server]) -> None:
    origin = "https://app.elsewhere.example"
    async with serve() as server, FirstVersionClient(server, "ann", "conversation:1", origin=origin) as ann:
        await ann.is_back(1)
    async with serve('auth.origins=["https://app.example.org"]') as server:
        async with FirstVersionClient(server, "ann", origin=origin, pace=0.001) as ann:
            await eventually(lambda: ann.has_stopped)
            assert ann.refused == [403] * 6
        named = FirstVersionClient(server, "ann", "conversation:1", origin="https://app.example.org")
        async with named as ann:
            await ann.is_back(1)


@pytest.mark.parametrize(("written", "read"), [(42, "42"), (43.0, "43"), (-7, "-7")])
async def test_conversation_whose_id_is_a_number_is_the_one_of_its_decimal_text(
    server: Server, tag: str, written: float, read: str
) -> None:
    async with FirstVersionClient(server, tag, f"conversation:{read}") as ann:
        await ann.is_back(1)
        await ann.send("send_message", {"conversationId": written, "content": tag})
        assert (await ann.sees("new_message", content=tag))["conversationId"] == read
        await ann.send("typing_start", {"conversationId": written})
        await ann.sees("typing_indicator", userId=tag, isTyping=True)


async def test_connection_outlives_its_token_where_expiry_is_checked_at_connect(serve: Callable[..., Server]) -> None:
    async with serve("auth.expiry=connect") as server:
        token = token_for("ann", ttl_s=2)
        expires_s = time.time() + 2
        async with FirstVersionClient(server, "ann", "conversation:1", token=token) as ann:
            await ann.is_back(1)
            await eventually(lambda: time.time() > expires_s + 1)
            await ann.send("send_message", {"conversationId": "1", "content": "still here"})
            await ann.sees("new_message", content="still here")
            assert (ann.opened, ann.closes) == (1, [])


async def test_connection_ends_with_its_token_by_default_and_the_client_is_refused_until_it_has_another(
    serve: Callable[..., Server],
) -> None:
    async with serve() as server:
        token = token_for("ann", ttl_s=2)
        async with FirstVersionClient(server, "ann", token=token, pace=0.01) as ann:
            await eventually(lambda: ann.has_stopped)
            assert [code for code, _ in ann.closes] == [4002]
            assert ann.refused == [401] * 5
            assert "token_expiring" in ann.ignored


async def test_slow_reader_misses_messages_and_stays(serve: Callable[..., Server]) -> None:
    server = serve("limits.enabled=false", "limits.outbox_hard_bytes=200000", "limits.outbox_soft_bytes=50000")
    channel = "conversation:1"
    async with (
        server,
        clients(server, "alice", "bob") as (alice, bob),
        FirstVersionClient(server, "ann", channel) as ann,
    ):
        await ann.is_back(1)
        await bob.subscribe(channel)
        ann.reading.clear()
        for _ in range(600):
            # Text that compression makes little shorter, so that it is too much for the kernel's buffers.
            await alice.send("send_message", {"conversationId": "1", "content": secrets.token_urlsafe(15_000)})
            await bob.expect("new_message")
        ann.reading.set()
        await alice.say("1", "the last")
        await ann.sees("new_message", content="the last")
        numbers = [data["number"] for type_, data in ann.seen if type_ == "new_message"]
        assert numbers == sorted(set(numbers)), "what it did get came once and in order"
        assert len(numbers) < 600
        assert "lag" in ann.ignored
        assert (ann.opened, ann.closes) == (1, [])


async def test_close_by_the_server_for_good_is_1000_with_the_reason_and_the_client_stops(
    serve: Callable[..., Server],
) -> None:
    async with serve(app=VOTES) as server, FirstVersionClient(server, "ann") as ann:
        await ann.sees("connection_established")
        await ann.send("goodbye")
        await eventually(lambda: ann.has_stopped)
        assert (ann.opened, ann.closes) == (1, [(1000, "removed by the operator")])


async def test_client_that_sends_too_much_is_told_then_closed_and_comes_back(serve: Callable[..., Server]) -> None:
    # It comes back to an empty bucket, and is subscribed all the same.
    limits = ("limits.commands_per_s=1", "limits.commands_burst=5", "limits.refusals_max=20")
    async with (
        serve(*limits) as server,
        FirstVersionClient(server, "ann", "conversation:1") as ann,
    ):
        await ann.is_back(1)
        with contextlib.suppress(ConnectionClosed):
            for number in range(200):
                await ann.send("send_message", {"conversationId": "1", "content": str(number)})
        await ann.is_back(2)
        assert [code for code, _ in ann.closes] == [4003]
        refusal = await ann.sees("error", code="rate_limited")
        assert refusal["retryAfterMs"] > 0
        async with await server.connect("bob") as bob:
            await bob.say("1", "again")
        await ann.sees("new_message", content="again")


async def test_tab_that_another_takes_the_place_of_stops(serve: Callable[..., Server]) -> None:
    async with serve("limits.sessions_per_user_max=1", "limits.sessions_per_user_over=close_oldest") as server:
        tabs = [FirstVersionClient(server, "ann", "conversation:1") for _ in range(2)]
        async with tabs[0] as older:
            await older.is_back(1)
            async with tabs[1] as newer:
                await newer.is_back(1)
                await eventually(lambda: older.has_stopped)
                assert [code for code, _ in older.closes] == [1000]
                assert newer.closes == []


async def test_orderly_restart_is_a_close_that_the_client_comes_back_from(serve: Callable[..., Server]) -> None:
    async with serve() as server, FirstVersionClient(server, "ann", "conversation:1", pace=0.5) as ann:
        await ann.is_back(1)
        assert await server.stop() == 0
        await server.start()
        await ann.is_back(2, timeout_s=sum(DELAYS_S))
        assert [code for code, _ in ann.closes] == [1012]
        await ann.send("send_message", {"conversationId": "1", "content": "again"})
        assert (await ann.sees("new_message", content="again"))["number"] == 1


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_restart_of_fifteen_seconds_is_survived_by_the_client_s_own_schedule(tmp_path: Path) -> None:
    async def restart(server: Server, *, killed: bool) -> None:
        tabs = [FirstVersionClient(server, user, "conversation:1", pace=1) for user in ("ann", "bob")]
        async with server, tabs[0] as ann, tabs[1] as bob:
            for tab in tabs:
                await tab.is_back(1)
            await ann.send("send_message", {"conversationId": "1", "content": "before"})
            await bob.sees("new_message", content="before")
            if killed:
                server.kill()
            else:
                assert await server.stop() == 0, server.output
            await asyncio.sleep(15)
            await server.start()
            for tab in tabs:
                await tab.is_back(2, timeout_s=sum(DELAYS_S) + PATIENCE_S)
                assert set(tab.refused) == {0}, "nobody answered while it was down"
                assert tab.closes[0][0] == (1006 if killed else 1012)
            await ann.send("send_message", {"conversationId": "1", "content": "after"})
            assert (await bob.sees("new_message", content="after"))["number"] == 2

    one, two = (Server(tmp_path / str(shards), sets=[f"server.shards={shards}"]) for shards in (1, 2))
    await asyncio.gather(restart(one, killed=False), restart(two, killed=True))
