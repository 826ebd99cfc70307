"""`POST /api/events` over the real hub and log: whom it reaches, what is stored, what is refused and where."""

import json
from typing import Any

import pytest

from realtime import Conversations, Realtime
from realtime.base.config import LimitSettings
from tests.unit.api.asking import World

EVENTS = "/api/events"


def app() -> Realtime:
    made = Realtime()
    made.include(Conversations())
    made.allow("news:*", "subscribe")
    return made


async def test_each_target_reaches_whom_it_names() -> None:
    async with World(app()) as world:
        alice, bob = await world.test.connect("alice"), await world.test.connect("bob")
        await alice.send("subscribe", channel="conversation:7")
        await alice.send("subscribe", channel="news:a")
        batch: list[dict[str, Any]] = [
            {"type": "told", "data": 1, "all": True},
            {"type": "told", "data": 2, "userId": "alice"},
            {"type": "told", "data": 3, "channel": "news:a"},
            {"type": "told", "data": 4, "conversationId": "7"},
            {"type": "told", "data": 5, "conversationId": 7},
            {"type": "told", "data": 6, "userId": "nobody"},
        ]
        answer = await world.call("POST", EVENTS, batch, key=True, headers={"x-request-id": "r-1"})
        assert (answer.status, answer.json) == (200, {"accepted": 6, "duplicates": 0})
        frames = [await alice.expect("told") for _ in range(5)]
        assert [frame.data for frame in frames] == [1, 2, 3, 4, 5]
        assert all('"requestId":"r-1"' in frame.raw for frame in frames)
        assert [frame.channel for frame in frames] == [None, None, "news:a", "conversation:7", "conversation:7"]
        assert [frame.offset for frame in frames] == [None, None, None, 1, 2]
        assert (await bob.expect("told")).data == 1
        bob.refute("told")


async def test_a_message_of_another_system_gets_its_number_and_is_paged() -> None:
    async with World() as world:
        event = {"type": "new_message", "conversationId": "7", "data": {"id": "m1", "content": "hi"}, "id": "m1"}
        assert (await world.call("POST", EVENTS, event, key=True)).json == {"accepted": 1, "duplicates": 0}
        assert (await world.call("POST", EVENTS, [event, event], key=True)).json == {"accepted": 0, "duplicates": 2}
        page = (await world.call("GET", "/api/conversations/7/messages", user="alice")).json
        assert page == {"items": [{"number": 1, "id": "m1", "content": "hi"}], "next": None}


async def test_an_id_is_published_once_for_ten_minutes_where_nothing_is_stored() -> None:
    async with World(app()) as world:
        alice = await world.test.connect("alice")
        await alice.send("subscribe", channel="news:a")
        batch = [
            {"type": "told", "data": index, "id": "once", **target}
            for index, target in enumerate([{"userId": "alice"}, {"userId": "alice"}, {"channel": "news:a"}])
        ]
        assert (await world.call("POST", EVENTS, batch, key=True)).json == {"accepted": 2, "duplicates": 1}
        assert [(await alice.expect("told")).data for _ in range(2)] == [0, 2]
        world.test.clock.advance(599)
        assert (await world.call("POST", EVENTS, batch, key=True)).json == {"accepted": 0, "duplicates": 3}
        world.test.clock.advance(2)
        assert (await world.call("POST", EVENTS, batch, key=True)).json == {"accepted": 2, "duplicates": 1}


async def test_what_is_volatile_by_nature_is_told_and_not_stored() -> None:
    async with World() as world:
        alice = await world.test.connect("alice")
        await alice.send("subscribe", channel="conversation:7")
        event = {"type": "typing_indicator", "conversationId": "7", "data": {"userId": "bot", "isTyping": True}}
        assert (await world.call("POST", EVENTS, event, key=True)).status == 200
        frame = await alice.expect("typing_indicator")
        assert (frame.channel, frame.conversation_id, frame.offset) == ("conversation:7", "7", None)
        past = (await world.call("GET", "/api/channels/conversation:7/history", key=True)).json
        assert (past["events"], past["position"]["offset"]) == ([], 0)


@pytest.mark.parametrize(
    ("event", "status", "path"),
    [
        ({"data": 1, "all": True}, 400, "type"),
        ({"type": "", "data": 1, "all": True}, 400, "type"),
        ({"type": "two words", "data": 1, "all": True}, 400, "type"),
        ({"type": "ack\n", "data": 1, "all": True}, 400, "type"),
        ({"type": "told", "all": True}, 400, "data"),
        ({"type": "told", "data": 1}, 400, ""),
        ({"type": "told", "data": 1, "all": True, "userId": "a"}, 400, ""),
        ({"type": "told", "data": 1, "channel": "a", "userId": "a"}, 400, ""),
        ({"type": "told", "data": 1, "channel": "not a channel"}, 400, "channel"),
        ({"type": "told", "data": 1, "channel": "_realtime:revocations"}, 403, "channel"),
        ({"type": "told", "data": 1, "conversationId": "x" * 200}, 400, "conversationId"),
        ({"type": "told", "data": 1, "conversationId": 1.5}, 400, "conversationId"),
        ({"type": "told", "data": 1, "userId": 7}, 400, "userId"),
        ({"type": "told", "data": 1, "userId": ""}, 400, "userId"),
        ({"type": "told", "data": 1, "userId": "a", "id": ""}, 400, "id"),
        ({"type": "ack", "data": 1, "userId": "a"}, 403, "type"),
        ({"type": "new_message", "data": [1], "conversationId": "7"}, 400, "data"),
        ({"type": "told", "data": json.loads("[" * 66 + "]" * 66), "all": True}, 400, "data"),
        ({"type": "told", "data": "x" * 2000, "all": True}, 413, "data"),
        (None, 400, ""),
        (7, 400, ""),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_one_bad_event_refuses_all_with_its_path(event: object, status: int, path: str) -> None:
    async with World(limits=LimitSettings(publication_bytes_max=1000)) as world:
        alice = await world.test.connect("alice")
        good = {"type": "told", "data": 1, "all": True}
        code = {400: "invalid_message", 403: "forbidden", 413: "too_large"}[status]
        answer = await world.call("POST", EVENTS, [good, event], key=True)
        assert answer.problem == (status, code, f"[1].{path}" if path else "[1]")
        alice.refute("told")
        if isinstance(event, dict):
            assert (await world.call("POST", EVENTS, event, key=True)).problem == (status, code, path or None)


async def test_only_services_may() -> None:
    async with World() as world:
        event = {"type": "told", "data": 1, "all": True}
        assert (await world.call("POST", EVENTS, event)).problem[:2] == (401, "unauthorized")
        assert (await world.call("POST", EVENTS, event, user="alice")).problem[:2] == (403, "forbidden")


async def test_a_batch_has_a_bound() -> None:
    async with World() as world:
        event = {"type": "told", "data": 1, "userId": "nobody"}
        assert (await world.call("POST", EVENTS, [event] * 10_000, key=True)).json["accepted"] == 10_000
        assert (await world.call("POST", EVENTS, [event] * 10_001, key=True)).problem[:2] == (400, "invalid_message")
        assert (await world.call("POST", EVENTS, [], key=True)).json == {"accepted": 0, "duplicates": 0}
