"""`/api/conversations` over the real hub and log: what is stored, told, paged, changed and erased, and who may."""

import asyncio
import json
from typing import Any

import pytest

from realtime.base.config import ConversationSettings, LimitSettings
from tests.unit.api.asking import World

MESSAGES = "/api/conversations/7/messages"
GUARDED = ConversationSettings(access="grants")


async def test_a_posted_message_is_stored_answered_and_told_with_the_id_of_the_request() -> None:
    async with World() as world:
        bob = await world.test.connect("bob")
        await bob.send("subscribe", channel="conversation:7")
        content = {"content": "hi", "metadata": {"tone": {"of": ["voice"]}}, "clientMessageId": "c1"}
        answer = await world.call("POST", MESSAGES, content, user="alice", headers={"x-request-id": "r-1"})
        stored = answer.json
        assert answer.status == 201
        assert answer.headers["x-request-id"] == "r-1"
        assert {name: stored[name] for name in ("number", "conversationId", "userId", "role", "content")} == {
            "number": 1,
            "conversationId": "7",
            "userId": "alice",
            "role": "user",
            "content": "hi",
        }
        assert stored["metadata"] == {"source": "http", "tone": {"of": ["voice"]}}
        event = await bob.expect("new_message", content="hi")
        assert event.data == stored
        assert '"requestId":"r-1"' in event.raw
        again = await world.call("POST", MESSAGES, content, user="alice")
        assert (again.status, again.json) == (200, stored)
        bob.refute("new_message")


async def test_pages_hold_messages_as_they_are_now_and_pass_over_what_else_was_stored() -> None:
    async with World() as world:
        for number in range(1, 6):
            assert (await world.call("POST", MESSAGES, {"content": f"m{number}"}, user="alice")).json[
                "number"
            ] == number
        await world.call("PATCH", f"{MESSAGES}/2", {"content": "changed", "metadata": {"a": 1}}, user="alice")
        assert (await world.call("DELETE", f"{MESSAGES}/3", user="alice")).status == 204
        await world.call("PATCH", "/api/conversations/7", {"title": "new"}, user="alice")
        await world.call("POST", MESSAGES, {"content": "m9"}, user="bob")
        page = (await world.call("GET", f"{MESSAGES}?limit=4", user="bob")).json
        assert [item["number"] for item in page["items"]] == [1, 2, 3, 4]
        assert (page["items"][1]["content"], page["items"][1]["metadata"]) == ("changed", {"a": 1})
        assert page["items"][1]["updatedAt"]
        assert set(page["items"][2]) == {"id", "number", "conversationId", "deletedAt"}
        page = (await world.call("GET", f"{MESSAGES}?after={page['next']}&limit=4", user="bob")).json
        assert [item["number"] for item in page["items"]] == [5, 9]
        assert page["next"] is None
        empty = (await world.call("GET", "/api/conversations/nobody/messages", user="bob")).json
        assert empty == {"items": [], "next": None}


async def test_what_was_deleted_is_nowhere_and_its_number_stays() -> None:
    async with World() as world:
        await world.call("POST", MESSAGES, {"content": "a secret"}, user="alice")
        await world.call("PATCH", f"{MESSAGES}/1", {"content": "a secret, too"}, user="alice")
        bob = await world.test.connect("bob")
        await bob.send("subscribe", channel="conversation:7")
        assert (await world.call("DELETE", f"{MESSAGES}/1", user="alice")).status == 204
        event = await bob.expect("message_deleted", number=1)
        assert (event.offset, event.user_id) == (3, "alice")
        past = await world.call("GET", "/api/channels/conversation:7/history?after=0", user="bob")
        assert b"secret" not in past.body
        assert [event["type"] for event in past.json["events"]] == ["new_message", "message_updated", "message_deleted"]
        # Again: the caller may not have had the first answer.
        assert (await world.call("DELETE", f"{MESSAGES}/1", user="alice")).status == 204
        assert (await world.call("PATCH", f"{MESSAGES}/1", {"content": "x"}, user="alice")).problem[:2] == (
            404,
            "not_found",
        )
        assert (await world.call("POST", MESSAGES, {"content": "next"}, user="alice")).json["number"] == 4


@pytest.mark.parametrize("deleted_at", [None, 5, "2026-01-01T00:00:00Z"])
async def test_what_others_say_of_a_deletion_keeps_nothing_from_being_erased(deleted_at: object) -> None:
    async with World() as world:
        told = {"id": "m", "content": "a secret", "deletedAt": deleted_at}
        event = {"type": "new_message", "data": told, "conversationId": "7"}
        assert (await world.call("POST", "/api/events", event, key=True)).status == 200
        assert (await world.call("PATCH", f"{MESSAGES}/1", {"metadata": {}}, key=True)).status == 200
        assert (await world.call("DELETE", f"{MESSAGES}/1", key=True)).status == 204
        past = await world.call("GET", "/api/channels/conversation:7/history?after=0", user="bob")
        assert b"secret" not in past.body


async def test_only_the_author_and_services_change_a_message() -> None:
    async with World() as world:
        await world.call("POST", MESSAGES, {"content": "mine"}, user="alice")
        for method, content in (("PATCH", {"content": "yours"}), ("DELETE", None)):
            assert (await world.call(method, f"{MESSAGES}/1", content, user="bob")).problem[:2] == (403, "forbidden")
        changed = await world.call("PATCH", f"{MESSAGES}/1", {"content": "ours"}, key=True)
        assert (changed.status, changed.json["content"], changed.json["userId"]) == (200, "ours", "alice")
        for number in (2, 3, 2**53):
            assert (await world.call("DELETE", f"{MESSAGES}/{number}", key=True)).problem[:2] == (404, "not_found")


async def test_changes_at_once_are_all_there_at_the_end() -> None:
    async with World() as world:
        await world.call("POST", MESSAGES, {"content": "first"}, user="alice")
        both = [{"content": "second"}, {"metadata": {"a": 1}}] * 5
        calls = [world.call("PATCH", f"{MESSAGES}/1", change, user="alice") for change in both]
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        item = (await world.call("GET", MESSAGES, user="alice")).json["items"][0]
        assert (item["content"], item["metadata"]) == ("second", {"a": 1})


async def test_a_service_speaks_for_whom_it_names() -> None:
    async with World() as world:
        told = {"content": "hi", "role": "assistant", "userId": "robot"}
        stored = (await world.call("POST", MESSAGES, told, key=True)).json
        assert (stored["role"], stored["userId"]) == ("assistant", "robot")
        assert (await world.call("POST", MESSAGES, {"content": "hi"}, key=True)).problem == (
            403,
            "forbidden",
            "userId",
        )
        assert (await world.call("POST", MESSAGES, {"content": "hi", "userId": "bob"}, user="alice")).problem == (
            403,
            "forbidden",
            "userId",
        )


@pytest.mark.parametrize(
    ("channels", "status"),
    [
        (None, 403),
        ({"**": ["publish"]}, 403),
        ({"*:*": ["publish"]}, 403),
        ({"role:user": ["publish"]}, 403),
        ({"role:assistant": ["subscribe"]}, 403),
        ({"role:assistant": ["publish"]}, 201),
        ({"role:*": ["publish"]}, 201),
    ],
)
async def test_a_role_needs_a_grant_that_means_roles(channels: Any, status: int) -> None:
    async with World() as world:
        claims = {} if channels is None else {"channels": channels}
        told = {"content": "hi", "role": "assistant"}
        assert (await world.call("POST", MESSAGES, told, user="alice", claims=claims)).status == status


async def test_grants_decide_where_access_goes_by_them() -> None:
    async with World(conversations=GUARDED) as world:
        reads = {"channels": {"conversation:7": ["history"]}}
        writes = {"channels": {"conversation:*": ["publish"], "not a pattern": ["history"]}}
        for claims, read, written in (({}, 403, 403), (reads, 200, 403), (writes, 403, 201)):
            assert (await world.call("GET", MESSAGES, user="alice", claims=claims)).status == read
            posted = await world.call("POST", MESSAGES, {"content": "hi"}, user="alice", claims=claims)
            assert posted.status == written


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": 7}, "content"),
        ({"content": "x", "metadata": []}, "metadata"),
        ({"content": "x", "metadata": {"a": json.loads("[" * 70 + "]" * 70)}}, "metadata.a"),
        ({"content": "x", "role": "SYSTEM"}, "role"),
        ({"content": "x", "clientMessageId": "c" * 65}, "clientMessageId"),
        ([], None),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(content: object, path: str | None) -> None:
    async with World() as world:
        assert (await world.call("POST", MESSAGES, content, user="alice")).problem == (400, "invalid_message", path)


async def test_whoever_is_not_known_is_told_so() -> None:
    async with World() as world:
        for headers in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer x"}, {"authorization": "Bearer"}):
            answer = await world.call("GET", MESSAGES, headers=headers)
            assert answer.problem[:2] == (401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith('Bearer realm="realtime"')
            is_shown = headers.get("authorization") == "Bearer x"
            assert ('error="invalid_token"' in answer.headers["www-authenticate"]) is is_shown, "RFC 6750 3.1"
        old = await world.call("GET", MESSAGES, user="alice", claims={"exp": 1_000_000})
        assert old.problem[:2] == (401, "token_expired"), "a new token helps"
        assert old.headers["www-authenticate"] == (
            'Bearer realm="realtime", error="invalid_token", error_description="the token has expired; fetch a new one"'
        )


async def test_who_asks_too_much_is_told_when_to_come_back() -> None:
    limits = LimitSettings(user_commands_per_s=10, user_commands_burst=3)
    async with World(limits=limits) as world:
        answers = [await world.call("GET", MESSAGES, user="alice") for _ in range(5)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
        assert answers[3].problem[1] == "rate_limited"
        assert answers[3].headers["retry-after"] == "1"
        assert 0 < answers[3].json["retryAfterMs"] <= 101
        assert (await world.call("GET", MESSAGES, user="bob")).status == 200
        assert (await world.call("GET", MESSAGES, key=True)).status == 200
        world.test.clock.advance(0.2)
        assert (await world.call("GET", MESSAGES, user="alice")).status == 200


async def test_http_and_sockets_share_the_commands_of_a_user() -> None:
    limits = LimitSettings(user_commands_per_s=1, user_commands_burst=4)
    async with World(limits=limits) as world:
        alice = await world.test.connect(user="alice")
        assert [(await world.call("GET", MESSAGES, user="alice")).status for _ in range(2)] == [200, 200]
        assert [(await alice.command("ping")).type for _ in range(3)] == ["pong", "pong", "error"]
        refused = await world.call("POST", "/api/tickets", user="alice")
        assert refused.problem[:2] == (429, "rate_limited")
        assert refused.headers["retry-after"] == "1"
        assert (await world.call("GET", MESSAGES, key=True)).status == 200, "services have no rate"
        world.test.clock.advance(1)
        assert (await world.call("POST", "/api/tickets", user="alice")).status == 201


async def test_who_shows_nothing_good_is_held_back_by_the_address() -> None:
    async with World(limits=LimitSettings(user_commands_per_s=1, user_commands_burst=3)) as world:
        answers = [await world.call("GET", MESSAGES, client="192.0.2.1") for _ in range(4)]
        assert [answer.status for answer in answers] == [401, 401, 401, 429]
        assert (await world.call("GET", MESSAGES, client="192.0.2.2")).status == 401
        assert (await world.call("GET", MESSAGES, user="alice", client="192.0.2.1")).status == 200


async def test_pages_cost_by_their_bytes() -> None:
    limits = LimitSettings(user_commands_per_s=1, user_commands_burst=10)
    async with World(limits=limits) as world:
        for _ in range(6):
            posted = await world.call("POST", MESSAGES, {"content": "x" * 100_000, "userId": "bob"}, key=True)
            assert posted.status == 201
        for path, user in (
            (MESSAGES, "alice"),
            ("/api/channels/conversation:7/history", "carol"),
        ):
            page = await world.call("GET", path, user=user)
            assert page.status == 200
            refused = await world.call("GET", path, user=user)
            assert refused.problem[:2] == (429, "rate_limited"), "1 and 9.3 of 10 are gone"
            assert (await world.call("GET", path, key=True)).status == 200
        world.test.clock.advance(10)
        assert (await world.call("GET", MESSAGES, user="alice")).status == 200


async def test_history_of_a_position_is_of_this_history_or_not_recoverable() -> None:
    path = "/api/channels/conversation:7/history"
    async with World() as world:
        for number in range(3):
            await world.call("POST", MESSAGES, {"content": str(number)}, user="alice")
        page = (await world.call("GET", f"{path}?after=0&limit=2", user="alice")).json
        epoch = page["position"]["epoch"]
        assert (page["next"], page["position"]["offset"]) == (2, 3)
        page = (await world.call("GET", f"{path}?after={page['next']}&epoch={epoch}", user="alice")).json
        assert ([event["offset"] for event in page["events"]], page["next"]) == ([3], None)
        for query in ("after=2&epoch=another", f"after=4&epoch={epoch}"):
            answer = await world.call("GET", f"{path}?{query}", user="alice")
            assert answer.problem[:2] == (410, "not_recoverable"), query
        answer = await world.call("GET", f"{path}?epoch={epoch}", user="alice")
        assert answer.problem[:2] == (400, "invalid_message")


async def test_pages_of_messages_and_of_history_are_bounded_in_bytes() -> None:
    async with World() as world:
        for _ in range(5):
            sent = await world.call("POST", MESSAGES, {"content": "x" * 400_000}, user="alice")
            assert sent.status == 201
        numbers: list[int] = []
        after: int | None = 0
        while after is not None:
            page = await world.call("GET", f"{MESSAGES}?limit=1000&after={after}", user="alice")
            assert len(page.body) < 1024 * 1024 + 4096
            numbers += [item["number"] for item in page.json["items"]]
            after = page.json["next"]
        assert numbers == [1, 2, 3, 4, 5]
        path = "/api/channels/conversation:7/history?limit=1000&after=0"
        history = await world.call("GET", path, user="alice")
        assert len(history.body) < 1024 * 1024 + 4096
        assert history.json["next"] == 2
