"""Channels: who gets what is published, rights, positions, history, and every event's members."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.kit import Server, clients

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def test_message_comes_to_all_subscribers_the_sender_too(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob", "carol", about=tag) as (alice, bob, carol):
        await alice.subscribe(f"conversation:{tag}")
        await bob.subscribe(f"conversation:{tag}")
        await alice.say(tag, "hello", metadata={"mood": "good"}, clientMessageId="c-1")
        for member in (alice, bob):
            frame = await member.expect("new_message")
            assert TIMESTAMP.fullmatch(frame["timestamp"])
            assert (frame["channel"], frame["conversationId"], frame["offset"]) == (f"conversation:{tag}", tag, 1)
            data = frame["data"]
            assert data["content"] == "hello"
            assert (data["conversationId"], data["userId"], data["role"], data["number"]) == (tag, "alice", "user", 1)
            assert data["metadata"] == {"mood": "good", "source": "websocket"}
            assert data["clientMessageId"] == "c-1"
            assert isinstance(data["id"], str)
            assert TIMESTAMP.fullmatch(data["createdAt"])
            assert frame["userId"] == "alice"
        await carol.refute("new_message")


async def test_acknowledgement_carries_the_stored_message(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        await alice.subscribe(f"conversation:{tag}")
        stored = await alice.say(tag, "hello")
        frame = await alice.expect("new_message")
        assert frame["data"] == stored
        assert "clientMessageId" not in stored
        assert stored["metadata"] == {"source": "websocket"}


async def test_no_member_of_a_payload_overrides_what_the_server_knows(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        claims: dict[str, Any] = {"userId": "root", "role": "system", "id": "mine", "number": 99, "createdAt": "then"}
        stored = await alice.say(tag, "hello", metadata={"source": "api", "userId": "root"}, **claims)
        data = (await bob.expect("new_message"))["data"]
        assert data == stored
        assert (data["userId"], data["role"], data["number"]) == ("alice", "user", 1)
        assert data["id"] != "mine"
        assert data["createdAt"] != "then"
        assert data["metadata"]["source"] == "websocket"
        await alice.send("typing_start", {"conversationId": tag, "userId": "root", "isTyping": False})
        assert (await bob.expect("typing_indicator"))["data"] == {"userId": "alice", "isTyping": True}


async def test_second_subscribe_is_confirmed_and_replays_nothing(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        await alice.say(tag, "one")
        await alice.subscribe(f"conversation:{tag}")
        again = await alice.subscribe(f"conversation:{tag}", last=10)
        assert again["channel"] == f"conversation:{tag}"
        await alice.refute("new_message")
        await alice.say(tag, "two")
        await alice.expect("new_message", content="two")
        await alice.refute("new_message")


async def test_unsubscribed_channel_is_silent(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        frame = await bob.ask("unsubscribe", {"channel": f"conversation:{tag}"})
        assert (frame["type"], frame["data"]) == ("unsubscription_confirmed", {"channel": f"conversation:{tag}"})
        await alice.say(tag, "hello")
        await bob.refute("new_message")


async def test_unsubscribe_without_a_channel_is_confirmed(server: Server) -> None:
    async with await server.connect() as alice:
        await alice.send("unsubscribe", {})
        assert (await alice.expect("unsubscription_confirmed"))["type"] == "unsubscription_confirmed"
        await alice.send("unsubscribe")
        await alice.expect("unsubscription_confirmed")
        await alice.send("unsubscribe", {"channel": "conversation:never"})
        frame = await alice.expect("unsubscription_confirmed")
        assert frame["data"]["channel"] == "conversation:never"


async def test_confirmation_carries_the_position(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        empty = await alice.subscribe(f"conversation:{tag}")
        assert empty["position"]["offset"] == 0
        assert empty["position"]["epoch"]
        await alice.say(tag, "one")
        await alice.send("unsubscribe", {"channel": f"conversation:{tag}"})
        later = await alice.subscribe(f"conversation:{tag}")
        assert later["position"] == {"offset": 1, "epoch": empty["position"]["epoch"]}


async def test_published_event_comes_to_subscribers_and_is_not_numbered(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        event = {"channel": f"conversation:{tag}", "event": "wave", "data": {"hand": "left", "n": [1, None, 2.5]}}
        assert (await alice.ask("publish", event))["type"] == "ack"
        frame = await bob.expect("wave")
        assert frame["data"] == {"hand": "left", "n": [1, None, 2.5]}
        assert frame["channel"] == f"conversation:{tag}"
        assert TIMESTAMP.fullmatch(frame["timestamp"])


@pytest.mark.parametrize(
    "event",
    [
        "new_message", "user_presence", "typing_indicator", "connection_established", "error", "ack", "pong",
        "subscription_confirmed", "conversation_updated", "file_processing_update",
    ],
)  # fmt: skip
async def test_event_names_of_the_protocol_are_reserved(server: Server, tag: str, event: str) -> None:
    async with clients(server, "alice", "bob", about=tag) as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        frame = await alice.ask("publish", {"channel": f"conversation:{tag}", "event": event, "data": {}})
        assert (frame["type"], frame["data"]["code"]) == ("error", "forbidden")
        await bob.refute(event, within_s=0.1)


@pytest.mark.parametrize(
    "channel", ["file:1", "job:1", "analytics:x", "document:d", "presence:x", "user:bob", "anything"]
)
async def test_channel_that_nothing_grants_is_refused(server: Server, channel: str) -> None:
    async with await server.connect() as alice:
        for type_, data in (
            ("subscribe", {"channel": channel}),
            ("publish", {"channel": channel, "event": "e", "data": {}}),
            ("history", {"channel": channel}),
        ):
            frame = await alice.ask(type_, data)
            assert (frame["type"], frame["data"]["code"]) == ("error", "forbidden"), (type_, frame)
        await alice.send("subscribe", {"channel": channel})
        assert (await alice.expect("error"))["data"]["channel"] == channel


async def test_channel_of_a_user_is_that_user_s_own(server: Server, tag: str) -> None:
    async with clients(server, f"{tag}a", f"{tag}b") as (alice, bob):
        await alice.subscribe(f"user:{tag}a")
        frame = await bob.ask("subscribe", {"channel": f"user:{tag}a"})
        assert frame["data"]["code"] == "forbidden"


async def test_grants_of_a_token_open_what_they_name(server: Server, tag: str) -> None:
    granted = {
        f"poll:{tag}": ["subscribe"],
        "file:*": ["subscribe", "publish"],
    }
    async with await server.connect("alice", channels=granted) as alice:
        await alice.subscribe(f"poll:{tag}")
        await alice.subscribe("file:7")
        ack = await alice.ask("publish", {"channel": "file:7", "event": "seen", "data": {}})
        assert ack["type"] == "ack"
        for type_, data in (
            ("publish", {"channel": f"poll:{tag}", "event": "e", "data": {}}),
            ("history", {"channel": f"poll:{tag}"}),
            ("subscribe", {"channel": f"poll:{tag}x"}),
            ("subscribe", {"channel": "file:7:parts"}),
        ):
            frame = await alice.ask(type_, data)
            assert frame["data"].get("code") == "forbidden", (type_, data, frame)


async def test_more_channels_than_a_session_may_have_are_limit_reached(serve: Callable[..., Server]) -> None:
    async with serve("limits.channels_per_session_max=3") as server, await server.connect() as alice:
        for number in range(3):
            await alice.subscribe(f"conversation:{number}")
        frame = await alice.ask("subscribe", {"channel": "conversation:3"})
        assert (frame["type"], frame["data"]["code"]) == ("error", "limit_reached")
        await alice.ask("unsubscribe", {"channel": "conversation:0"})
        await alice.subscribe("conversation:3")


async def test_publication_over_the_limit_is_too_large(serve: Callable[..., Server]) -> None:
    async with serve("limits.publication_bytes_max=10000") as server, await server.connect() as alice:
        await alice.subscribe("conversation:1")
        event = {"channel": "conversation:1", "event": "big", "data": {"x": "y" * 20_000}}
        frame = await alice.ask("publish", event)
        assert (frame["type"], frame["data"]["code"]) == ("error", "too_large")
        frame = await alice.ask("send_message", {"conversationId": "1", "content": "y" * 20_000})
        assert frame["type"] == "error"
        assert (frame["data"]["message"], frame["data"]["code"]) == ("Failed to send message", "too_large")
        await alice.refute("new_message")


async def test_conversations_by_grants_need_the_right(serve: Callable[..., Server]) -> None:
    async with serve("conversations.access=grants") as server:
        rights = {"conversation:1": ["subscribe", "publish"], "conversation:2": ["subscribe"]}
        async with await server.connect("alice", channels=rights) as alice, await server.connect("eve") as eve:
            await alice.subscribe("conversation:1")
            await alice.subscribe("conversation:2")
            await alice.say("1", "allowed")
            await alice.expect("new_message", content="allowed")
            for client, conversation in ((alice, "2"), (alice, "3"), (eve, "1")):
                frame = await client.ask("send_message", {"conversationId": conversation, "content": "no"})
                assert frame["data"]["message"] == "Failed to send message", frame
                assert frame["data"]["code"] == "forbidden"
            for type_, data in (
                ("subscribe", {"channel": "conversation:1"}),
                ("history", {"channel": "conversation:1"}),
                ("typing_start", {"conversationId": "1"}),
            ):
                frame = await eve.ask(type_, data)
                assert (frame["type"], frame["data"]["code"]) == ("error", "forbidden"), type_
            await alice.refute("typing_indicator")


async def test_events_of_different_channels_do_not_mix(server: Server, tag: str) -> None:
    async with clients(server, *[f"{tag}{n}" for n in range(6)], about="-") as members:
        for number, member in enumerate(members):
            await member.subscribe(f"conversation:{tag}{number % 3}")
        for number in range(30):
            await members[0].say(f"{tag}{number % 3}", str(number))
        for number, member in enumerate(members):
            for expected in range(number % 3, 30, 3):
                frame = await member.expect("new_message")
                assert frame["data"]["content"] == str(expected)
            assert not member.inbox


async def test_large_event_passes_whole(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        content = "".join(chr(0x4E00 + n % 5_000) for n in range(250_000))
        await alice.say(tag, content)
        assert (await bob.expect("new_message"))["data"]["content"] == content
