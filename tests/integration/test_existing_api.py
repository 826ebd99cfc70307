"""`api.url`: messages go to a second server process, and what it answers goes to everybody; also when it fails."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kit import PATIENCE_S, Client, Server, clients, free_port, token_for

PROGRAM = Path(__file__).parent / "apps" / "existing_api.py"
KEY = "a-service-key-of-the-tests-only-0123456789"
FAILED = "Failed to send message"


def posted(address: str, body: object, key: str) -> Any:
    """Post JSON with a token or a key and return the answer's JSON."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.loads(response.read())


class ExistingApi:
    """The API of apps/existing_api.py as a process of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, first: int = 1001, env: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it answers; it numbers from `first`."""
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM, str(self.port), str(first)], env={**os.environ, **(env or {})}
        )
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.seen()
            except (OSError, urllib.error.URLError):
                assert time.monotonic() < deadline, "the existing API did not start"
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def seen(self) -> dict[str, Any]:
        """What was posted, and how much at once."""
        answer: dict[str, Any] = self._asked("/seen")
        return answer

    def posts(self) -> list[dict[str, Any]]:
        """What was posted."""
        posts: list[dict[str, Any]] = self.seen()["posts"]
        return posts

    def make_all(self, way: str) -> None:
        """Let every post go wrong in this way, or none."""
        self._asked(f"/all/{way.replace(' ', '%20')}")

    def _asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=PATIENCE_S) as response:
            return json.loads(response.read())


async def logged(server: Server, text: str) -> None:
    """Wait until the log has it: lines are written a moment after what they tell of."""
    deadline = time.monotonic() + PATIENCE_S
    while text not in server.output:
        assert time.monotonic() < deadline, f"{text!r} is not in the log"
        await asyncio.sleep(0.02)


@pytest.fixture
def existing() -> Iterator[ExistingApi]:
    """A running API."""
    api = ExistingApi()
    api.start()
    yield api
    api.stop()


@pytest.fixture
async def edge(serve: Callable[..., Server], existing: ExistingApi) -> AsyncIterator[Server]:
    """An edge that sends messages there."""
    async with serve(f"api.url={existing.url}", "api.timeout_s=1", "api.breaker_pause_s=0.5") as server:
        yield server


@pytest.fixture(scope="module")
def pair(shards: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ExistingApi]]:
    """An edge and an API that several tests use: each message that fails is followed by one that does not."""
    api = ExistingApi()
    api.start()
    sets = [f"server.shards={shards}", f"api.url={api.url}", "api.timeout_s=1"]
    server = Server(tmp_path_factory.mktemp(f"pair-{shards}"), sets=sets)
    server.start_now()
    yield server, api
    assert server.stop_now() == 0, server.output
    api.stop()


async def test_a_message_goes_to_the_api_and_its_answer_to_everybody(edge: Server, existing: ExistingApi) -> None:
    async with clients(edge, "alice", "bob") as (alice, bob):
        await alice.subscribe("conversation:42")
        await bob.subscribe("conversation:42")
        stored = await alice.say("42", "hi", metadata={"tone": "warm", "source": "forged"})
        assert stored == {
            "id": "m-1001",
            "number": 1001,
            "conversationId": "42",
            "by": "the existing API",
            "content": "hi",
            "role": "user",
            "metadata": {"tone": "warm", "source": "websocket"},
        }
        for peer in (alice, bob):
            event = await peer.expect("new_message")
            assert event["data"] == stored
            assert (event["offset"], event["userId"], event["conversationId"]) == (1, "alice", "42")
            assert event["requestId"] == existing.posts()[0]["headers"]["x-request-id"]
    (post,) = existing.posts()
    assert post["path"] == "/api/conversations/42/messages"
    assert {name: post[name] for name in ("content", "role", "metadata")} == {
        "content": "hi",
        "role": "user",
        "metadata": {"tone": "warm", "source": "websocket"},
    }
    assert post["headers"]["authorization"].startswith("Bearer ey")
    assert post["headers"]["content-type"] == "application/json"
    assert post["headers"]["idempotency-key"]


@pytest.mark.parametrize("whose", ["caller", "minted"])
async def test_the_api_gets_the_callers_own_token_or_one_that_is_made(
    serve: Callable[..., Server], existing: ExistingApi, whose: str
) -> None:
    async with serve(f"api.url={existing.url}", f"api.token={whose}") as edge:
        first, second = token_for("alice", ttl_s=100), token_for("alice", ttl_s=200)
        async with await Client.open(edge, token=first) as alice:
            await alice.say("7", "one")
            await alice.ask("refresh", {"token": second})
            await alice.say("7", "two")
    shown = [post["headers"]["authorization"].removeprefix("Bearer ") for post in existing.posts()]
    if whose == "caller":
        assert shown == [first, second]
    else:
        claims = [json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")) for token in shown]
        assert [each["sub"] for each in claims] == ["alice", "alice"]
        assert all(each["exp"] - each["iat"] == 60 for each in claims)


async def test_what_the_api_leaves_out_is_added(edge: Server, existing: ExistingApi) -> None:
    async with clients(edge, "alice") as (alice,):
        await alice.subscribe("conversation:7")
        await alice.say("7", "hi")
        stored = await alice.say("7", "unnumbered", clientMessageId="c1")
        assert (stored["number"], stored["clientMessageId"]) == (2, "c1")
        assert (await alice.expect("new_message", content="unnumbered"))["data"] == stored
    assert "clientMessageId" not in existing.posts()[1]


async def test_what_was_said_is_recovered_by_who_comes_later(edge: Server) -> None:
    async with clients(edge, "alice", "bob") as (alice, bob):
        for number in range(20):
            await alice.say("past", f"message {number}")
        await bob.subscribe("conversation:past", last=20)
        assert [(await bob.expect("new_message"))["data"]["content"] for _ in range(20)] == [
            f"message {number}" for number in range(20)
        ]


async def test_the_same_client_message_id_is_sent_once_and_acknowledged_again(
    edge: Server, existing: ExistingApi
) -> None:
    async with clients(edge, "alice", "alice") as (one, two):
        await one.subscribe("conversation:7")
        message = {"conversationId": "7", "content": "slow 0.4", "clientMessageId": "c1"}
        said = [peer.ask("send_message", message) for peer in (one, two)]
        answers = [*await asyncio.gather(*said), await one.ask("send_message", message)]
        assert [frame["data"]["id"] for frame in answers] == ["m-1001"] * 3
        await one.expect("new_message")
        await one.refute("new_message")
    assert len(existing.posts()) == 1


async def test_a_message_that_failed_is_sent_again_under_the_same_key(edge: Server, existing: ExistingApi) -> None:
    async with clients(edge, "alice", "bob") as (alice, bob):
        message = {"conversationId": "7", "content": "hi", "clientMessageId": "c1"}
        existing.make_all("status 503")
        assert (await alice.ask("send_message", message))["type"] == "error"
        existing.make_all("")
        assert (await alice.ask("send_message", message))["type"] == "ack"
        assert (await bob.ask("send_message", message))["type"] == "ack"
    keys = [post["headers"]["idempotency-key"] for post in existing.posts()]
    assert keys[0] == keys[1] != keys[2]


async def test_a_message_that_the_api_tells_twice_is_published_once(edge: Server) -> None:
    async with clients(edge, "alice") as (alice,):
        await alice.subscribe("conversation:7")
        first = await alice.say("7", "same m-1")
        again = await alice.say("7", "same m-1")
        assert again == first
        await alice.expect("new_message", id="m-1")
        await alice.refute("new_message")
        # The id of a message is the API's own in each conversation.
        assert (await alice.say("8", "same m-1"))["conversationId"] == "8"


@pytest.mark.parametrize(
    ("content", "retryable"),
    [
        ("status 500", True),
        ("status 503", True),
        ("status 404", False),
        ("status 400", False),
        ("status 401", False),
        ("status 403", False),
        ("status 429", True),
        ("slow 3", True),
        ("garbage", True),
        ("list", True),
        ("deep", True),
        ("surrogate", True),
        ("packed", True),
        ("empty", True),
        ("truncated", True),
        ("reset", True),
        ("big", False),
        ("redirect", False),
    ],
)
async def test_failures_are_told_and_publish_nothing(
    pair: tuple[Server, ExistingApi], tag: str, content: str, retryable: bool
) -> None:
    edge, existing = pair
    posted = len(existing.posts())
    async with clients(edge, tag, about=tag) as (alice,):
        await alice.subscribe(f"conversation:{tag}")
        frame = await alice.ask("send_message", {"conversationId": tag, "content": content})
        assert frame["type"] == "error"
        data = frame["data"]
        assert (data["message"], data["code"], data["retryable"]) == (FAILED, "upstream_failed", retryable)
        assert data.get("retryAfterMs") == (7000 if content == "status 429" else None)
        await alice.say(tag, "fine")
        event = await alice.expect("new_message")
        assert (event["data"]["content"], event["offset"]) == ("fine", 1)
        await alice.refute("new_message", within_s=0.1)
    assert len(existing.posts()) == posted + 2
    await logged(edge, "a message was not taken by")


@pytest.mark.parametrize("conversation", ["..", ".", "a/b", "a b", "x" * 200])
async def test_an_id_that_would_lead_elsewhere_is_not_sent(pair: tuple[Server, ExistingApi], conversation: str) -> None:
    edge, existing = pair
    posted = len(existing.posts())
    async with clients(edge, "alice") as (alice,):
        frame = await alice.ask("send_message", {"conversationId": conversation, "content": "hi"})
        assert (frame["data"]["code"], frame["data"]["path"]) == ("invalid_message", "data.conversationId")
    assert len(existing.posts()) == posted


async def test_one_session_keeps_its_order_and_another_does_not_wait(edge: Server) -> None:
    async with clients(edge, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:7")
        for content in ("slow 0.6", "second", "slow 0.1", "fourth"):
            await alice.send("send_message", {"conversationId": "7", "content": content})
        await bob.say("7", "of bob")
        contents = [(await bob.expect("new_message"))["data"]["content"] for _ in range(5)]
        assert contents == ["of bob", "slow 0.6", "second", "slow 0.1", "fourth"]


async def test_of_an_unreliable_api_each_message_is_published_once(
    serve: Callable[..., Server], existing: ExistingApi
) -> None:
    """Each client sends each of its messages until it is acknowledged, so some are stored there more than once."""
    sets = [f"api.url={existing.url}", "api.timeout_s=0.3", "api.breaker_pause_s=0.1"]

    async def all_said(peer: Client, user: str) -> list[str]:
        acknowledged = []
        for number in range(15):
            message = {"conversationId": "7", "content": "mixed", "clientMessageId": f"{user}-{number}"}
            while (frame := await peer.ask("send_message", message))["type"] != "ack":
                assert frame["data"]["retryable"]
                await asyncio.sleep(frame["data"].get("retryAfterMs", 10) / 1000)
            acknowledged.append(frame["data"]["clientMessageId"])
        return acknowledged

    users = [f"user{number}" for number in range(6)]
    async with serve(*sets) as edge, clients(edge, "watcher", *users) as (watcher, *peers):
        await watcher.subscribe("conversation:7")
        said = await asyncio.gather(*(all_said(peer, user) for peer, user in zip(peers, users, strict=True)))
        wanted = [identifier for each in said for identifier in each]
        events = [await watcher.expect("new_message", timeout_s=30) for _ in wanted]
        await watcher.refute("new_message")
    assert [event["offset"] for event in events] == list(range(1, len(wanted) + 1))
    told = [event["data"]["clientMessageId"] for event in events]
    assert sorted(told) == sorted(wanted)
    for user in users:
        assert [name for name in told if name.startswith(f"{user}-")] == [f"{user}-{number}" for number in range(15)]
    assert len(existing.posts()) > len(wanted)


async def test_no_more_requests_are_under_way_than_allowed(serve: Callable[..., Server], existing: ExistingApi) -> None:
    sets = ["api.requests_max=4", "api.requests_waiting_max=4", "api.timeout_s=10"]
    async with serve(f"api.url={existing.url}", *sets) as edge, clients(edge, *["user"] * 12) as peers:
        said = [peer.ask("send_message", {"conversationId": "7", "content": "slow 0.5"}) for peer in peers]
        answers = await asyncio.gather(*said)
    types = [frame["type"] for frame in answers]
    assert (types.count("ack"), types.count("error")) == (8, 4)
    assert {frame["data"]["code"] for frame in answers if frame["type"] == "error"} == {"upstream_failed"}
    seen = existing.seen()
    assert seen["most"] == 4
    assert len(seen["posts"]) == 8


async def test_an_api_that_is_down_is_left_alone_and_found_again(
    serve: Callable[..., Server], existing: ExistingApi
) -> None:
    # The pause is longer than a busy machine needs for two commands.
    sets = (f"api.url={existing.url}", "api.timeout_s=1", "api.breaker_pause_s=3")
    async with serve(*sets) as edge, clients(edge, "alice") as (alice,):
        await alice.subscribe("conversation:7")
        await alice.say("7", "before")
        existing.stop()
        message = {"conversationId": "7", "content": "into the void"}
        for _ in range(5):
            assert (await alice.ask("send_message", message))["data"]["code"] == "upstream_failed"
        refused = (await alice.ask("send_message", message))["data"]
        assert refused["retryable"]
        assert 0 < refused["retryAfterMs"] <= 3000
        # Half open: one try, which fails, and the others are refused again.
        await asyncio.sleep(refused["retryAfterMs"] / 1000 + 0.1)
        assert "retryAfterMs" not in (await alice.ask("send_message", message))["data"]
        assert "retryAfterMs" in (await alice.ask("send_message", message))["data"]
        existing.start(first=2001)
        deadline = time.monotonic() + PATIENCE_S
        while (await alice.ask("send_message", {"conversationId": "7", "content": "after"}))["type"] != "ack":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert len(existing.posts()) == 1
        assert (await alice.expect("new_message"))["data"]["content"] == "before"
        assert (await alice.expect("new_message"))["data"]["content"] == "after"
        await alice.refute("new_message", within_s=0.1)
        await logged(edge, "failed 5 times in a row")
        await logged(edge, "answers again")


async def test_a_message_under_way_is_finished_before_the_end(
    serve: Callable[..., Server], existing: ExistingApi
) -> None:
    async with serve(f"api.url={existing.url}") as edge, await edge.connect() as alice:
        await alice.send("send_message", {"conversationId": "7", "content": "slow 0.7"}, id="last")
        while not existing.posts():  # noqa: ASYNC110 -- another process is asked
            await asyncio.sleep(0.02)
        stopped = asyncio.create_task(edge.stop())
        assert (await alice.answer("last"))["type"] == "ack"
        assert await stopped == 0, edge.output


async def test_an_api_that_tells_by_hooks_is_only_asked(serve: Callable[..., Server], existing: ExistingApi) -> None:
    async with serve(f"api.url={existing.url}", "api.broadcast=hook") as edge, await edge.connect() as alice:
        await alice.subscribe("conversation:7")
        assert (await alice.say("7", "hi"))["id"] == "m-1001"
        assert (await alice.ask("send_message", {"conversationId": "7", "content": "empty"}))["data"] is None
        await alice.refute("new_message")


@pytest.mark.parametrize("broadcast", ["response", "hook"])
async def test_what_an_answer_and_hooks_tell_is_published_once(serve: Callable[..., Server], broadcast: str) -> None:
    api = ExistingApi()
    edge = serve(f"api.url={api.url}", f"api.broadcast={broadcast}", api=True, env={"REALTIME_SERVICE_KEY": KEY})
    api.start(env={"HOOK_URL": f"{edge.api_url}/api/events", "HOOK_KEY": KEY})
    try:
        async with edge, clients(edge, "alice", "bob") as (alice, bob):
            await bob.subscribe("conversation:7")
            for number in range(10):
                stored = await alice.say("7", f"hook {number}", clientMessageId=f"c{number}")
                # The hook comes before the answer, and by itself once more.
                hooked = {"type": "new_message", "conversationId": "7", "data": {"id": stored["id"], "number": 5}}
                assert posted(f"{edge.api_url}/api/events", hooked, KEY) == {"accepted": 0, "duplicates": 1}
            events = [await bob.expect("new_message") for _ in range(10)]
            assert [event["data"]["content"] for event in events] == [f"hook {number}" for number in range(10)]
            assert [event["data"]["number"] for event in events] == list(range(1001, 1011))
            assert [event["offset"] for event in events] == list(range(1, 11))
            await bob.refute("new_message")
    finally:
        api.stop()


async def test_a_message_over_http_goes_to_the_api_too(serve: Callable[..., Server], existing: ExistingApi) -> None:
    edge = serve(f"api.url={existing.url}", "api.timeout_s=1", api=True, env={"REALTIME_SERVICE_KEY": KEY})
    async with edge, await edge.connect("bob") as bob:
        await bob.subscribe("conversation:7")
        address = f"{edge.api_url}/api/conversations/7/messages"
        token = token_for("alice")
        stored = posted(address, {"content": "hi", "clientMessageId": "c1"}, token)
        assert (stored["id"], stored["clientMessageId"]) == ("m-1001", "c1")
        event = await bob.expect("new_message", content="hi")
        assert (event["data"], event["userId"]) == (stored, "alice")
        spoken = posted(address, {"content": "beep", "role": "assistant", "userId": "robot"}, KEY)
        assert spoken["role"] == "assistant"
        with pytest.raises(urllib.error.HTTPError) as failed:
            posted(address, {"content": "status 500"}, token)
        problem = json.loads(failed.value.read())
        assert (failed.value.code, problem["code"], problem["detail"]) == (502, "upstream_failed", FAILED)
        failed.value.close()
    by_alice, by_robot, _ = existing.posts()
    assert by_alice["headers"]["authorization"] == f"Bearer {token}"
    assert by_alice["metadata"] == {"source": "http"}
    assert KEY not in by_robot["headers"]["authorization"]
    assert (by_robot["role"], by_robot["content"]) == ("assistant", "beep")


async def test_no_token_and_no_text_gets_into_the_log(serve: Callable[..., Server], existing: ExistingApi) -> None:
    async with serve(f"api.url={existing.url}", "log.level=debug") as edge, await edge.connect() as alice:
        await alice.say("7", "a word of mine")
        await alice.ask("send_message", {"conversationId": "7", "content": "status 500 a word of mine"})
        token = existing.posts()[0]["headers"]["authorization"].removeprefix("Bearer ")
        await logged(edge, "a message was not taken by")
        assert token not in edge.output
        assert "a word of mine" not in edge.output
