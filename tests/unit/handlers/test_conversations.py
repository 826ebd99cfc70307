"""The built-in app over the real hub and log: every row of `send_message`, typing and presence, letter by letter."""

from typing import Any

import pytest

from realtime import Conversations, Grant, Realtime, Session
from realtime.base.config import ApiSettings, ConversationSettings, LimitSettings, Settings, TypingSettings
from realtime.testing import TestApp

STAMP = "2026-01-01T12:00:00.000Z"


def conversations(**settings: Any) -> TestApp:
    app = Realtime()
    app.include(Conversations())
    return TestApp(app, Settings(**settings))


async def test_a_message_is_stored_acknowledged_and_comes_to_all_subscribers() -> None:
    async with conversations() as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for peer in (alice, bob):
            await peer.send("subscribe", channel="conversation:7")
        stored = await alice.ack(
            "send_message",
            conversation_id="7",
            content="hi",
            metadata={"tone": "warm", "source": "forged"},
            client_message_id="c1",
        )
        identifier = stored.pop("id")
        assert len(identifier) == 36
        assert stored == {
            "number": 1,
            "conversationId": "7",
            "userId": "alice",
            "role": "user",
            "content": "hi",
            "metadata": {"tone": "warm", "source": "websocket"},
            "clientMessageId": "c1",
            "createdAt": STAMP,
        }
        for peer in (alice, bob):
            event = await peer.expect("new_message", id=identifier)
            assert event.data == {"id": identifier, **stored}
            assert (event.channel, event.conversation_id, event.user_id) == ("conversation:7", "7", "alice")
            assert (event.offset, event.timestamp) == (1, STAMP)
            peer.refute("new_message")


async def test_a_command_without_an_id_stores_the_message_and_is_not_acknowledged() -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        await alice.send("subscribe", channel="conversation:7")
        await alice.send("send_message", conversation_id="7", content="hi")
        await alice.expect("new_message", content="hi", metadata={"source": "websocket"})
        alice.refute("ack")


async def test_the_same_client_message_id_is_stored_once_and_acknowledged_again() -> None:
    async with conversations() as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        await bob.send("subscribe", channel="conversation:7")
        first = await alice.ack("send_message", conversation_id="7", content="hi", client_message_id="c1")
        again = await alice.ack("send_message", conversation_id="7", content="changed", client_message_id="c1")
        assert again == first
        other = await bob.ack("send_message", conversation_id="7", content="mine", client_message_id="c1")
        assert other["number"] == 2
        await bob.expect("new_message", content="hi")
        await bob.expect("new_message", content="mine")
        bob.refute("new_message")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"content": "hi"},
        {"conversation_id": "7"},
        {"conversation_id": "", "content": "hi"},
        {"conversation_id": "7", "content": ""},
        {"conversation_id": None, "content": "hi"},
        {"conversation_id": "7", "content": None},
    ],
)
async def test_a_message_without_a_conversation_or_content_is_refused(data: dict[str, Any]) -> None:
    path = {} if data.get("conversation_id") else {"path": "data.conversationId"}
    async with conversations() as t:
        alice = await t.connect(user="alice")
        answer = await alice.command("send_message", **data)
        assert answer.type == "error"
        assert answer.data == {
            "message": "ConversationId and content are required",
            "code": "invalid_message",
            "retryable": False,
            **path,
        }


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"conversation_id": "7", "content": 5}, "data.content"),
        ({"conversation_id": "7", "content": {"text": "hi"}}, "data.content"),
        ({"conversation_id": True, "content": "hi"}, "data.conversationId"),
        ({"conversation_id": ["7"], "content": "hi"}, "data.conversationId"),
        ({"conversation_id": "a b", "content": "hi"}, "data.conversationId"),
        ({"conversation_id": 1e21, "content": "hi"}, "data.conversationId"),
        ({"conversation_id": "7", "content": "hi", "metadata": "x"}, "data.metadata"),
        ({"conversation_id": "7", "content": "hi", "client_message_id": 5}, "data.clientMessageId"),
        ({"conversation_id": "7", "content": "hi", "client_message_id": "x" * 65}, "data.clientMessageId"),
    ],
)
async def test_a_field_of_another_type_is_named(data: dict[str, Any], path: str) -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        answer = await alice.command("send_message", **data)
        assert answer.data == {
            "message": "Invalid message format",
            "code": "invalid_message",
            "retryable": False,
            "path": path,
        }


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (42, "42"),
        (42.0, "42"),
        (1.5, "1.5"),
        (0, "0"),
        (-0.0, "0"),
        (0.000025, "0.000025"),
        (12345678901234567890.0, "12345678901234567000"),
        (249330714442686.625, "249330714442686.62"),
    ],
)
async def test_a_number_as_a_conversation_is_read_as_its_decimal_string(number: float, text: str) -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        await alice.send("subscribe", channel=f"conversation:{text}")
        stored = await alice.ack("send_message", conversation_id=number, content="hi")
        assert stored["conversationId"] == text
        await alice.expect("new_message", conversation_id=text)


@pytest.mark.parametrize("number", [43, 43.0, 42.5, 0.000025])
async def test_a_number_names_the_same_conversation_to_the_grant_and_to_the_message(number: float) -> None:
    async with conversations(conversations=ConversationSettings(access="grants")) as t:
        alice = await t.connect(user="alice", grants={"conversation:42": ["publish"]})
        answer = await alice.command("send_message", conversation_id=number, content="hi")
        assert (answer.data["message"], answer.data["code"]) == ("Failed to send message", "forbidden")
        stored = await alice.ack("send_message", conversation_id=42.0, content="hi")
        assert stored["conversationId"] == "42"


async def test_a_message_over_the_limit_fails_with_the_code_that_says_why() -> None:
    async with conversations(limits=LimitSettings(publication_bytes_max=300)) as t:
        alice = await t.connect(user="alice")
        answer = await alice.command("send_message", conversation_id="7", content="x" * 300)
        assert answer.data["message"] == "Failed to send message"
        assert answer.data["code"] == "too_large"


async def test_messages_of_one_session_are_numbered_in_the_order_they_came() -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        await alice.send("subscribe", channel="conversation:7")
        for number in range(50):
            await alice.send("send_message", conversation_id="7", content=str(number))
        for number in range(50):
            event = await alice.expect("new_message")
            assert (event.data["content"], event.offset) == (str(number), number + 1)


async def test_a_late_subscriber_gets_the_last_ones_and_history_the_rest() -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        for number in range(5):
            await alice.ack("send_message", conversation_id="7", content=str(number))
        bob = await t.connect(user="bob")
        confirmed = await bob.command("subscribe", channel="conversation:7", last=2)
        assert (confirmed.data["position"]["offset"], confirmed.data["head"], confirmed.data["replayed"]) == (3, 5, 2)
        assert [(await bob.expect("new_message")).offset for _ in range(2)] == [4, 5]
        bob.refute("new_message")
        history = await bob.command("history", channel="conversation:7", last=3)
        assert [event["data"]["content"] for event in history.data["events"]] == ["2", "3", "4"]


async def test_a_returning_client_gets_exactly_what_it_missed() -> None:
    async with conversations() as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        position = (await bob.command("subscribe", channel="conversation:7")).data["position"]
        bob.drop()
        for number in range(3):
            await alice.ack("send_message", conversation_id="7", content=str(number))
        bob = await t.connect(user="bob")
        confirmed = await bob.command("subscribe", channel="conversation:7", position=position)
        assert (confirmed.data["recovered"], confirmed.data["replayed"]) == (True, 3)
        assert [(await bob.expect("new_message")).data["content"] for _ in range(3)] == ["0", "1", "2"]
        bob.refute("new_message")


# Rights.


async def test_with_grants_nobody_takes_part_without_one() -> None:
    settings = ConversationSettings(access="grants")
    async with conversations(conversations=settings) as t:
        stranger = await t.connect(user="stranger")
        reader = await t.connect(user="reader", grants={"conversation:7": ["subscribe"]})
        writer = await t.connect(user="writer", grants={"conversation:*": ["subscribe", "publish"]})
        assert (await stranger.command("subscribe", channel="conversation:7")).data["code"] == "forbidden"
        assert (await reader.command("subscribe", channel="conversation:7")).type == "subscription_confirmed"
        for peer in (stranger, reader):
            answer = await peer.command("send_message", conversation_id="7", content="hi")
            assert (answer.data["message"], answer.data["code"]) == ("Failed to send message", "forbidden")
        await writer.ack("send_message", conversation_id="7", content="hi")
        await reader.expect("new_message", content="hi")
        answer = await stranger.command("send_message", conversation_id="7")
        assert answer.data["code"] in {"forbidden", "invalid_message"}
        assert (await writer.command("send_message", content="hi")).data["message"] == (
            "ConversationId and content are required"
        )


async def test_a_hook_may_decide_on_conversations_and_its_refusal_has_the_commands_words() -> None:
    app = Realtime()
    app.include(Conversations())

    @app.authorize("conversation:{conversation}")
    def may_take_part(session: Session, conversation: str) -> Grant | None:
        return Grant("subscribe", "publish") if conversation == session.user else None

    async with TestApp(app, Settings(conversations=ConversationSettings(access="grants"))) as t:
        alice = await t.connect(user="alice")
        await alice.ack("send_message", conversation_id="alice", content="hi")
        refused = await alice.command("send_message", conversation_id="bob", content="hi")
        assert (refused.data["message"], refused.data["code"]) == ("Failed to send message", "forbidden")
        refused = await alice.command("subscribe", channel="conversation:bob")
        assert refused.data["message"] == "Not allowed to subscribe on this channel"


async def test_a_token_carries_the_grants() -> None:
    async with conversations(conversations=ConversationSettings(access="grants")) as t:
        token = t.token("writer", {"conversation:7": ["publish"]})
        writer = await t.connect(token=token)
        assert writer.session.user == "writer"
        await writer.ack("send_message", conversation_id="7", content="hi")
        assert (await writer.command("send_message", conversation_id="8", content="hi")).data["code"] == "forbidden"


async def test_events_of_the_protocol_cannot_be_forged_by_publish() -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        answer = await alice.command("publish", channel="conversation:7", event="new_message", data={})
        assert (answer.type, answer.data["code"]) == ("error", "forbidden")


# Typing.


async def test_typing_is_relayed_to_all_and_ends_by_itself() -> None:
    async with conversations(typing=TypingSettings(timeout_s=10)) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for peer in (alice, bob):
            await peer.send("subscribe", channel="conversation:7")
        await alice.send("typing_start", conversation_id="7")
        for peer in (alice, bob):
            event = await peer.expect("typing_indicator", user_id="alice", is_typing=True)
            assert (event.conversation_id, event.user_id, event.offset) == ("7", "alice", None)
        t.clock.advance(9)
        await alice.send("typing_start", conversation_id="7")
        await bob.expect("typing_indicator", is_typing=True)
        t.clock.advance(9)
        bob.refute("typing_indicator")
        t.clock.advance(1.5)
        await bob.expect("typing_indicator", user_id="alice", is_typing=False)
        t.clock.advance(30)
        bob.refute("typing_indicator")


@pytest.mark.parametrize("end", ["stop", "unsubscribe", "close", "drop"])
async def test_typing_ends_with_a_stop_an_unsubscribe_or_a_close(end: str) -> None:
    async with conversations() as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for peer in (alice, bob):
            await peer.send("subscribe", channel="conversation:7")
        await alice.send("typing_start", conversation_id="7")
        await bob.expect("typing_indicator", is_typing=True)
        if end == "stop":
            await alice.send("typing_stop", conversation_id="7")
        elif end == "unsubscribe":
            await alice.send("unsubscribe", channel="conversation:7")
        elif end == "close":
            await alice.close()
        else:
            alice.drop()
        await bob.expect("typing_indicator", user_id="alice", is_typing=False)
        t.clock.advance(60)
        bob.refute("typing_indicator")


# Presence.


async def test_presence_is_told_to_oneself_too_and_a_blip_tells_nothing() -> None:
    async with conversations() as t:
        alice = await t.connect(user="alice")
        event = await alice.expect("user_presence", user_id="alice", status="online")
        assert event.user_id == "alice"
        bob = await t.connect(user="bob")
        await alice.expect("user_presence", user_id="bob", status="online")
        bob.drop()
        t.clock.advance(4)
        bob = await t.connect(user="bob")
        t.clock.advance(60)
        alice.refute("user_presence")
        bob.drop()
        t.clock.advance(5.5)
        await alice.expect("user_presence", user_id="bob", status="offline")
        bob = await t.connect(user="bob")
        await alice.expect("user_presence", user_id="bob", status="online")
        await bob.close(1000)
        await alice.expect("user_presence", user_id="bob", status="offline")


@pytest.mark.parametrize(("url", "runs"), [(None, "inline"), ("http://127.0.0.1:3001", "task")])
def test_only_an_existing_api_is_waited_for(url: str | None, runs: str) -> None:
    app = Realtime()
    app.include(Conversations())
    rules = app.compile(Settings(api=ApiSettings(url=url)))
    assert {route.type: route.runs for route in rules.routes}["send_message"] == runs
