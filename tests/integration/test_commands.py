"""Both tables of the protocol: every command with its reply, every wrong input with its answer, letter by letter."""

import asyncio
import json
import re
from typing import Any

import pytest

from tests.kit import Client, Frame, Server, clients

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def answer_to(client: Client, payload: str | bytes) -> Frame:
    """Send a message as it is and return the error that it is answered with."""
    await client.socket.send(payload)
    frame = await client.expect("error")
    assert TIMESTAMP.fullmatch(frame["timestamp"]), frame
    return frame


INVALID_JSON = {
    "nothing": "",
    "a word": "hello",
    "null": "null",
    "an array": '[{"type":"ping"}]',
    "a string": '"ping"',
    "a number": "1",
    "true": "true",
    "half an object": '{"type":"ping"',
    "two objects": '{"type":"ping"}{"type":"ping"}',
    "a comma too many": '{"type":"ping",}',
    "single quotes": "{'type':'ping'}",
    "a comment": '{"type":"ping"/**/}',
    "nesting over 64": '{"type":"ping","data":' + "[" * 70 + "]" * 70 + "}",
    "a duplicate key": '{"type":"ping","type":"subscribe"}',
    "a duplicate key further in": '{"type":"ping","data":{"a":1,"a":2}}',
    "a duplicate key that is escaped": '{"type":"ping","data":{"a":1,"\\u0061":2}}',
    "NaN": '{"type":"ping","data":NaN}',
    "Infinity": '{"type":"ping","data":-Infinity}',
    "a number over every double": '{"type":"ping","data":1e400}',
    "an integer over 2^53": '{"type":"ping","data":9007199254740993}',
    "a byte order mark": '\ufeff{"type":"ping"}',
    "a control byte in a string": '{"type":"ping","data":"a\x01b"}',
    "a leading zero": '{"type":"ping","data":01}',
    "a bad escape": '{"type":"ping","data":"\\x41"}',
    "more than 1,024 keys": json.dumps({"type": "ping", "data": {str(n): n for n in range(1_100)}}),
}


@pytest.mark.parametrize("kind", INVALID_JSON)
async def test_what_is_not_a_json_object_is_answered_invalid_message_format(server: Server, kind: str) -> None:
    async with await server.connect() as alice:
        frame = await answer_to(alice, INVALID_JSON[kind])
        assert frame["data"]["message"] == "Invalid message format"
        assert frame["data"]["code"] == "invalid_message"
        assert frame["data"]["retryable"] is False
        assert "id" not in frame
        assert await alice.is_alive()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{}", "Unknown message type: undefined"),
        ('{"data":{}}', "Unknown message type: undefined"),
        ('{"type":"nope"}', "Unknown message type: nope"),
        ('{"type":"Ping"}', "Unknown message type: Ping"),
        ('{"type":""}', "Unknown message type: "),
        ('{"type":"%s"}' % ("x" * 100), "Unknown message type: " + "x" * 64),
        ('{"type":"connection_established"}', "Unknown message type: connection_established"),
    ],
)
async def test_unknown_type_is_answered_with_its_name(server: Server, payload: str, message: str) -> None:
    async with await server.connect() as alice:
        frame = await answer_to(alice, payload)
        assert frame["data"]["message"] == message
        assert frame["data"]["code"] == "unknown_type"
        assert await alice.is_alive()


async def test_control_bytes_of_an_unknown_type_are_not_repeated(server: Server) -> None:
    async with await server.connect() as alice:
        frame = await answer_to(alice, '{"type":"a\\u0007\\nb"}')
        assert frame["data"]["message"].startswith("Unknown message type: a")
        assert frame["data"]["message"].isprintable()


@pytest.mark.parametrize("data", [None, {}, {"channel": ""}, {"channel": None}])
async def test_subscribe_without_a_channel_is_answered_as_the_first_version_did(server: Server, data: object) -> None:
    async with await server.connect() as alice:
        frame = await alice.ask("subscribe", data, id="s")
        assert frame["type"] == "error"
        assert frame["data"]["message"] == "Channel is required for subscription"
        assert frame["data"]["code"] == "invalid_message"


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"content": "hi"},
        {"conversationId": "c"},
        {"conversationId": "", "content": "hi"},
        {"conversationId": "c", "content": ""},
        {"conversationId": None, "content": "hi"},
        {"conversationId": "c", "content": None},
    ],
)
async def test_send_message_without_its_fields_is_answered_as_the_first_version_did(
    server: Server, data: object
) -> None:
    async with await server.connect() as alice:
        with_id = await alice.ask("send_message", data)
        await alice.send("send_message", data)
        without_id = await alice.expect("error")
        for frame in (with_id, without_id):
            assert frame["data"]["message"] == "ConversationId and content are required"
            assert frame["data"]["code"] == "invalid_message"


@pytest.mark.parametrize(
    ("type_", "data", "path"),
    [
        ("subscribe", {"channel": 7}, "data.channel"),
        ("subscribe", {"channel": ["a"]}, "data.channel"),
        ("subscribe", {"channel": "conversation:1", "last": "many"}, "data.last"),
        ("subscribe", {"channel": "conversation:1", "position": 5}, "data.position"),
        ("send_message", {"conversationId": "c", "content": 5}, "data.content"),
        ("send_message", {"conversationId": "c", "content": ["hi"]}, "data.content"),
        ("send_message", {"conversationId": ["c"], "content": "hi"}, "data.conversationId"),
        ("send_message", {"conversationId": "c", "content": "hi", "metadata": 5}, "data.metadata"),
        ("send_message", {"conversationId": "c", "content": "hi", "clientMessageId": {}}, "data.clientMessageId"),
        ("send_message", {"conversationId": "c", "content": "hi", "clientMessageId": "x" * 65}, "data.clientMessageId"),
        ("send_message", "hello", "data"),
    ],
)
async def test_field_of_another_type_is_answered_with_its_path(
    server: Server, type_: str, data: Any, path: str
) -> None:
    async with await server.connect() as alice:
        frame = await alice.ask(type_, data)
        assert frame["type"] == "error", frame
        assert frame["data"]["message"] == "Invalid message format"
        assert frame["data"]["code"] == "invalid_message"
        assert frame["data"]["path"] == path
        assert await alice.is_alive()


@pytest.mark.parametrize("channel", ["with space", ":a", "-a", ".a", "a/b", "a*", "ä", "a\nb", "x" * 129, "a\u0000"])
async def test_channel_name_outside_the_rule_is_answered_with_its_path(server: Server, channel: str) -> None:
    async with await server.connect() as alice:
        for type_, data in (
            ("subscribe", {"channel": channel}),
            ("publish", {"channel": channel, "event": "e", "data": {}}),
            ("history", {"channel": channel}),
        ):
            frame = await alice.ask(type_, data)
            assert (frame["type"], frame["data"]["code"]) == ("error", "invalid_message"), (type_, frame)
            assert frame["data"]["path"] == "data.channel"


async def test_number_as_conversation_id_is_read_as_its_decimal_string(server: Server) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:42")
        stored = await alice.ask("send_message", {"conversationId": 42, "content": "by number"})
        assert stored["data"]["conversationId"] == "42"
        frame = await bob.expect("new_message", content="by number")
        assert (frame["conversationId"], frame["channel"]) == ("42", "conversation:42")


async def test_number_as_conversation_id_of_typing_is_read_as_its_decimal_string(server: Server) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:43")
        await alice.send("typing_start", {"conversationId": 43})
        assert (await bob.expect("typing_indicator"))["channel"] == "conversation:43"


async def test_binary_frame_with_json_is_read_as_text(server: Server) -> None:
    async with await server.connect() as alice:
        await alice.socket.send(b'{"type":"ping"}')
        await alice.expect("pong")


async def test_lone_surrogate_becomes_the_replacement_character(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        for escaped, expected in ((r"a\ud83d", "a\ufffd"), (r"\ude00b", "\ufffdb"), (r"\ud83d\ude00", "\U0001f600")):
            await alice.socket.send(
                f'{{"type":"send_message","data":{{"conversationId":"{tag}","content":"{escaped}"}}}}'
            )
            await bob.expect("new_message", content=expected)


async def test_ping_is_answered_with_the_time_whatever_it_carries(server: Server) -> None:
    async with await server.connect() as alice:
        anything: list[object] = [None, {}, [], "x", 5, {"deep": {"er": [1, 2, {"x": None}]}}]
        for data in anything:
            await alice.send("ping", data)
            frame = await alice.expect("pong")
            assert TIMESTAMP.fullmatch(frame["data"]["timestamp"])
            assert TIMESTAMP.fullmatch(frame["timestamp"])
            assert "id" not in frame


@pytest.mark.parametrize("id_", ["a", "x" * 64, "ü", 0, -5, 2**53, -(2**53), 'quo"te'])
async def test_id_is_answered_as_it_came(server: Server, id_: object) -> None:
    async with await server.connect() as alice:
        assert (await alice.ask("ping", id=id_))["id"] == id_
        assert (await alice.ask("nope", id=id_))["id"] == id_


@pytest.mark.parametrize("id_", ['"%s"' % ("x" * 65), "1.5", "true", "[]", "{}", "9007199254740993"])
async def test_id_that_is_no_id_is_invalid(server: Server, id_: str) -> None:
    async with await server.connect() as alice:
        frame = await answer_to(alice, f'{{"type":"ping","id":{id_}}}')
        assert frame["data"]["code"] == "invalid_message"


async def test_every_command_with_an_id_is_answered_exactly_once(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        commands: list[tuple[str, object, str]] = [
            ("subscribe", {"channel": f"conversation:{tag}"}, "subscription_confirmed"),
            ("subscribe", {"channel": f"conversation:{tag}"}, "subscription_confirmed"),
            ("send_message", {"conversationId": tag, "content": "hi"}, "ack"),
            ("typing_start", {"conversationId": tag}, "ack"),
            ("typing_stop", {"conversationId": tag}, "ack"),
            ("ping", {}, "pong"),
            ("publish", {"channel": f"conversation:{tag}", "event": "wave", "data": {}}, "ack"),
            ("history", {"channel": f"conversation:{tag}", "last": 5}, "history"),
            ("unsubscribe", {"channel": f"conversation:{tag}"}, "unsubscription_confirmed"),
            ("unsubscribe", {}, "unsubscription_confirmed"),
            ("unsubscribe", {"channel": "conversation:never"}, "unsubscription_confirmed"),
            ("nope", {}, "error"),
        ]
        for number, (type_, data, _) in enumerate(commands):
            await alice.send(type_, data, id=number)
        for number, (_, _, reply) in enumerate(commands):
            assert (await alice.answer(number))["type"] == reply
        await asyncio.sleep(0.2)
        assert await alice.is_alive()
        assert not [frame for frame in alice.inbox if "id" in frame]


async def test_without_an_id_only_what_the_first_version_answered_is_answered(server: Server, tag: str) -> None:
    async with await server.connect(about=tag) as alice:
        await alice.send("send_message", {"conversationId": tag, "content": "hi"})
        await alice.send("typing_start", {"conversationId": tag})
        await alice.send("typing_stop", {"conversationId": tag})
        await alice.send("publish", {"channel": f"conversation:{tag}", "event": "wave", "data": {}})
        await alice.refute("ack")
        assert alice.inbox == []


async def test_one_session_s_commands_take_effect_in_the_order_they_came(server: Server, tag: str) -> None:
    """A message sent right behind a subscribe, without waiting, reaches its own sender."""
    async with await server.connect(f"{tag}alice") as alice:
        for number in range(50):
            await alice.send("subscribe", {"channel": f"conversation:{tag}{number}"})
            await alice.send("send_message", {"conversationId": f"{tag}{number}", "content": "first"})
            await alice.send("unsubscribe", {"channel": f"conversation:{tag}{number}"})
            await alice.send("send_message", {"conversationId": f"{tag}{number}", "content": "second"}, id=number)
        for number in range(50):
            assert (await alice.answer(number))["type"] == "ack"
        contents = [frame["data"]["content"] for frame in alice.inbox if frame["type"] == "new_message"]
        assert "second" not in contents
        assert contents.count("first") <= 50


async def test_commands_over_the_rate_are_answered_rate_limited_and_the_rest_go_on(server: Server, tag: str) -> None:
    async with clients(server, f"{tag}a", f"{tag}b", about=tag) as (alice, bob):
        for number in range(600):
            await alice.send("ping", id=number)
        codes = [(await alice.answer(number)) for number in range(600)]
        refused = [frame for frame in codes if frame["type"] == "error"]
        assert refused, "600 commands at once pass a burst of 300"
        assert {frame["data"]["code"] for frame in refused} == {"rate_limited"}
        assert all(frame["data"]["retryable"] is True and frame["data"]["retryAfterMs"] > 0 for frame in refused)
        assert await bob.is_alive()
