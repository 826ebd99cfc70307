"""Whatever is sent to a route: an answer below 500, and a problem with its parts where it is none of success."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realtime.base.config import ApiSettings, LimitSettings
from tests.unit.api.asking import LOCAL, SERVICE_KEY, Answer, World

ROUTES = [
    ("POST", "/api/conversations/{}/messages"),
    ("GET", "/api/conversations/{}/messages"),
    ("PATCH", "/api/conversations/{}/messages/1"),
    ("PATCH", "/api/conversations/7/messages/{}"),
    ("DELETE", "/api/conversations/7/messages/{}"),
    ("PATCH", "/api/conversations/{}"),
    ("POST", "/api/events"),
    ("GET", "/api/presence/{}"),
    ("GET", "/api/channels/{}/history"),
    ("DELETE", "/api/channels/{}/users/alice"),
    ("DELETE", "/api/channels/conversation:7/users/{}"),
    ("GET", "/api/users/{}/sessions"),
    ("DELETE", "/api/users/{}/sessions"),
    ("PUT", "/api/{}"),
]
NAMES = ["content", "role", "metadata", "clientMessageId", "userId", "type", "data", "id", "channel", "all"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.sampled_from(["7", "told", "user", "\x00", "\ud83d", "x" * 5000, "../..", "_realtime:x"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*NAMES, "conversationId"]) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=12,
)
DEEP = [b"[" * depth + b"]" * depth for depth in (65, 900, 1100, 100_000)] + [b'{"a":' * 2000 + b"1" + b"}" * 2000]
BODIES = st.one_of(
    VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
    st.sampled_from(DEEP),
    st.sampled_from(DEEP).map(lambda deep: b'{"content":"x","metadata":{"a":' + deep + b'},"type":"t","all":true}'),
    st.sampled_from(DEEP).map(lambda deep: b'[{"type":"t","all":true,"data":' + deep + b"}]"),
    st.sampled_from(
        [b'{"content":"\\ud83d"}', b'{"content":"x","metadata":{"a":"\\ud83d"}}', b'{"content":1e999}', b"\xff"]
    ),
)
SEGMENTS = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=30
) | st.sampled_from(["0", "-1", "1e9", "9" * 400, "\x00", "٣", "conversation:7", "..", " ", "%", "a" * 9000])
QUERIES = st.dictionaries(st.sampled_from(["after", "limit", "x"]), SEGMENTS, max_size=3).map(
    lambda pairs: "&".join(f"{name}={quote(value)}" for name, value in pairs.items())
) | st.binary(max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "content-encoding", "x-request-id", "content-length", "accept"]),
    st.sampled_from(["application/json", "text/html", "gzip", "-1", "\xe9", "", "application/json; charset=x", "*/*"]),
    max_size=3,
)


@pytest.fixture(scope="module")
def asked() -> Iterator[Callable[..., Answer]]:
    """Ask one application that all examples share."""
    with asyncio.Runner() as runner:
        world = World(limits=LimitSettings(enabled=False))
        runner.run(world.__aenter__())
        yield lambda *sent, **options: runner.run(world.ask(*sent, **options))
        runner.run(world.__aexit__())


@pytest.mark.parametrize(("method", "path"), ROUTES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_nothing_that_is_sent_is_answered_as_our_failure(
    asked: Callable[..., Answer], method: str, path: str, data: Any
) -> None:
    segment, query = data.draw(SEGMENTS), data.draw(QUERIES)
    body, headers = data.draw(BODIES), data.draw(HEADERS)
    shown = data.draw(st.sampled_from([f"Bearer {SERVICE_KEY}"] * 4 + ["Bearer x", "Bearer \xff", "", "Basic eA=="]))
    sent = {"content-type": "application/json", **LOCAL, "authorization": shown, **headers}
    answer = asked(path.format(segment), sent, method, body, query=query)
    assert answer.status < 500, answer.body
    if answer.status >= 300:
        assert answer.problem[1]


async def test_a_body_that_does_not_come_is_not_waited_for_without_end() -> None:
    async with World(api=ApiSettings(body_timeout_s=0.01)) as world:
        never = asyncio.Event()

        async def receive() -> Any:
            await never.wait()

        answer = await world.call("POST", "/api/conversations/7/messages", user="ann", receive=receive)
    assert answer.problem == (400, "invalid_message", None)
    assert "did not come within" in answer.json["detail"]


async def test_a_body_that_comes_slowly_has_a_second_more_for_each_4_kib() -> None:
    chunks = [b'{"content":"' + b"x" * 8_000, b'"}']

    async with World(api=ApiSettings(body_timeout_s=0.1)) as world:

        async def receive() -> Any:
            if len(chunks) == 1:
                await asyncio.sleep(0.3)
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        answer = await world.call("POST", "/api/conversations/7/messages", user="ann", receive=receive)
    assert answer.status == 201
