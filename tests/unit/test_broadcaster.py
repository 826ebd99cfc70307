"""Publishing: the commands that it becomes, and what can be awaited."""

# mypy: disable-error-code="unused-awaitable"

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from realtime import Publication, PublishFailed, Publishing, Realtime, Refused, _engine
from realtime.base.config import LimitSettings, Settings
from realtime.control.broadcaster import History
from realtime.testing import TestApp
from tests.unit.engine import Half

PLAIN = (None, None, None, False)
"""No request, and nothing amended."""


def make_half() -> Half:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    app.policy("feed:*", history=10)
    return Half(app, Settings(limits=LimitSettings(publication_bytes_max=100)))


def outcome(ticket: int, offset: int = 1, data: bytes | None = b"{}", error: str | None = None) -> tuple[Any, ...]:
    return (_engine.PUBLISHED, ticket, offset, False, data, error)


async def test_a_volatile_publish_is_one_command_and_has_no_outcome() -> None:
    half = make_half()
    publishing = half.app.publish("feed:1", "tick", {"n": 1}, user="ann", key="k")
    assert half.engine.named("publish") == [("feed:1", "tick", b'{"n":1}', "ann", "k", None, False, False, *PLAIN)]
    assert await publishing is None
    assert publishing.result() is None
    assert half.control.broadcaster.waiting == 0


async def test_json_that_is_ready_is_passed_on_as_it_is() -> None:
    half = make_half()
    half.app.publish("feed:1", "tick", b"[1]")
    assert half.engine.named("publish")[0][2] == b"[1]"


@pytest.mark.parametrize("data", [b"", b"{not json", b"{} {}", b"[NaN]", b'"\xff"', b'"a\x01"'])
async def test_bytes_that_are_not_json_are_refused_before_anything_is_sent(data: bytes) -> None:
    half = make_half()
    with pytest.raises(ValueError, match="data is bytes that are not JSON"):
        half.app.publish("ledger:1", "tick", data)
    assert half.engine.named("publish") == []


async def test_a_durable_publish_gives_its_publication_when_it_is_committed() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {"n": 1}, dedupe="d", number=True)
    assert half.engine.named("publish") == [("ledger:1", "line", b'{"n":1}', None, None, "d", True, True, *PLAIN)]
    waiting = asyncio.ensure_future(_awaited(publishing))
    await half.settle()
    assert not waiting.done()
    half.take((_engine.PUBLISHED, 1, 42, True, b'{"n":1,"number":42}', None))
    publication = await waiting
    assert publication == Publication("ledger:1", 42, msgspec.Raw(b'{"n":1,"number":42}'), True)
    assert publication is not None
    assert publication.decode() == {"n": 1, "number": 42}
    assert await publishing == publication
    assert half.control.broadcaster.waiting == 0


async def _awaited(publishing: Publishing) -> Publication | None:
    return await publishing


async def test_a_publish_that_failed_raises_its_code() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {})
    waiting = asyncio.ensure_future(_awaited(publishing))
    await half.settle()
    half.take(outcome(1, error="unavailable"))
    with pytest.raises(PublishFailed, match="publish to ledger:1 failed: unavailable") as caught:
        await waiting
    assert (caught.value.code, caught.value.retryable) == ("unavailable", True)


async def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    half = make_half()
    half.app.publish("ledger:1", "line", {})
    half.take(outcome(1, error="unavailable"))
    assert "publish to ledger:1 failed: unavailable; nobody was waiting for it" in caplog.text


async def test_an_event_over_the_limit_is_refused_before_anything_is_sent() -> None:
    half = make_half()
    with pytest.raises(PublishFailed, match=r"too_large: 102 bytes exceed limits.publication_bytes_max=100"):
        half.app.publish("feed:1", "tick", "x" * 100)
    assert half.engine.calls == []


@pytest.mark.parametrize("channel", ["", "a b", "a" * 129, "*"])
async def test_what_is_no_channel_is_refused(channel: str) -> None:
    half = make_half()
    with pytest.raises(ValueError, match="is not a channel; use 1 to 128"):
        half.app.publish(channel, "tick", {})


async def test_an_awaiter_that_was_cancelled_does_not_stop_the_others() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {})
    one, other = (asyncio.ensure_future(_awaited(publishing)) for _ in range(2))
    await half.settle()
    one.cancel()
    await half.settle()
    half.take(outcome(1))
    assert (await other) is not None


async def test_a_thread_publishes_submits_at_once_and_waits_for_the_outcome() -> None:
    half = make_half()
    results: list[object] = []

    def work() -> None:
        publishing = half.app.publish("ledger:1", "line", {})
        results.append(half.engine.submitted)
        results.append(publishing.result(timeout_s=5))

    thread = threading.Thread(target=work)
    thread.start()
    while half.control.broadcaster.waiting == 0:  # noqa: ASYNC110 -- a thread does it
        await asyncio.sleep(0.001)
    half.take(outcome(1, offset=9))
    await asyncio.to_thread(thread.join)
    publication = results[1]
    assert results[0] == 1
    assert isinstance(publication, Publication)
    assert publication.offset == 9


async def test_a_thread_that_waits_too_long_is_told() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {})
    with pytest.raises(TimeoutError, match=r"not committed after 0.01 s"):
        await asyncio.to_thread(publishing.result, 0.01)


async def test_the_loops_thread_cannot_wait_for_itself() -> None:
    half = make_half()
    with pytest.raises(RuntimeError, match="await the publish instead"):
        half.app.publish("ledger:1", "line", {}).result()


async def test_a_volatile_publish_waits_for_room_in_the_engine() -> None:
    half = make_half()
    half.engine.behind = True
    waiting = asyncio.ensure_future(_awaited(half.app.publish("feed:1", "tick", {})))
    await half.settle()
    assert not waiting.done()
    half.engine.behind = False
    assert await waiting is None


async def test_what_has_no_outcome_at_the_end_fails() -> None:
    half = make_half()
    waiting = asyncio.ensure_future(_awaited(half.app.publish("ledger:1", "line", {})))
    await half.settle()
    half.control.end()
    with pytest.raises(PublishFailed, match="unavailable"):
        await waiting


async def test_commands_outside_of_a_batch_are_submitted_once_in_the_next_turn() -> None:
    half = make_half()
    half.app.publish("feed:1", "tick", {})
    half.app.publish("feed:2", "tick", {})
    assert half.engine.submitted == 0
    await half.settle()
    assert half.engine.submitted == 1


def frames(half: Half, name: str) -> list[Any]:
    def read(value: Any) -> Any:
        return msgspec.json.decode(value) if isinstance(value, bytes) else value

    # A key that is not given is left out.
    return [tuple(read(value) for value in call if value is not None) for call in half.engine.named(name)]


STAMP = "1970-01-01T00:16:40.000Z"


async def test_everybody_a_user_and_a_session_can_be_told() -> None:
    half = make_half()
    half.open(1, "ann")
    half.open(2, "ann")
    half.engine.calls.clear()
    broadcaster = half.app.broadcaster
    broadcaster.to_all("news", {"a": 1})
    assert broadcaster.to_user("ann", "news", 2) == 2
    assert broadcaster.to_user("nobody", "news", 3) == 0
    broadcaster.to_session(half.app.connections.by_user("ann")[0], "news", 4)
    broadcaster.to_channels(["a", "b"], "news", 5)
    assert frames(half, "send_all") == [({"type": "news", "data": {"a": 1}, "timestamp": STAMP},)]
    assert frames(half, "send_many") == [([1, 2], {"type": "news", "data": 2, "timestamp": STAMP})]
    assert frames(half, "send_text") == [(1, {"type": "news", "data": 4, "timestamp": STAMP})]
    assert frames(half, "publish_union") == [(["a", "b"], {"type": "news", "data": 5, "timestamp": STAMP})]


async def test_the_protocols_own_events_have_their_shapes() -> None:
    half = make_half()
    half.open(1, "ann")
    half.engine.calls.clear()
    broadcaster = half.app.broadcaster
    broadcaster.new_message("7", {"content": "hi"}, user="ann", dedupe="c1")
    broadcaster.conversation_updated("7", {"title": "x"})
    broadcaster.to_conversation("7", "poll_opened", {})
    broadcaster.to_channel("feed:1", "tick", {}, user="ann")
    broadcaster.file_processing("ann", "f1", 50, "scanning")
    file = b'{"fileId":"f1","progress":50,"status":"scanning"}'
    assert half.engine.named("publish") == [
        ("conversation:7", "new_message", b'{"content":"hi"}', "ann", None, "c1", True, False, *PLAIN),
        ("conversation:7", "conversation_updated", b'{"title":"x"}', None, None, None, False, False, *PLAIN),
        ("conversation:7", "poll_opened", b"{}", None, None, None, False, False, *PLAIN),
        ("feed:1", "tick", b"{}", "ann", None, None, False, False, *PLAIN),
        ("file:f1", "file_processing_update", file, None, "f1", None, False, False, *PLAIN),
    ]
    (_, copy, key), *_ = frames(half, "send_many")
    assert (copy["type"], key) == ("file_processing_update", ("file_processing_update", "f1"))
    broadcaster.typing("7", "ann", is_typing=True)
    assert frames(half, "publish_union") == [
        (
            ["conversation:7"],
            {
                "type": "typing_indicator",
                "data": {"userId": "ann", "isTyping": True},
                "timestamp": STAMP,
                "conversationId": "7",
                "userId": "ann",
                "channel": "conversation:7",
            },
            ("typing_indicator", "ann"),
        )
    ]


async def test_presence_is_told_to_everybody_or_to_channels_and_the_user() -> None:
    half = make_half()
    half.open(1, "ann")
    half.engine.calls.clear()
    half.app.broadcaster.user_presence("bob", "online")
    half.app.broadcaster.user_presence("ann", "offline", ["a"])
    frame = {
        "type": "user_presence",
        "data": {"userId": "bob", "status": "online"},
        "timestamp": STAMP,
        "userId": "bob",
    }
    assert frames(half, "send_all") == [(frame, ("user_presence", "bob"))]
    assert [call[-1] for call in half.engine.calls[1:]] == [("user_presence", "ann")] * 2
    assert [call[0] for call in half.engine.calls] == ["send_all", "publish_union", "send_many"]


async def test_the_past_of_a_channel_is_read_as_its_subscribers_got_it() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    app.policy("feed:*", history=10)

    async with TestApp(app) as world:

        async def page(channel: str, after: int | None, limit: int) -> History:
            reading = asyncio.ensure_future(app.broadcaster.history(channel, after=after, limit=limit))
            await world.settle()
            return await reading

        for channel in ("ledger:1", "feed:1"):
            for number in range(3):
                app.publish(channel, "line", {"n": number})
            found = await page(channel, 1, 1)
            event = msgspec.json.decode(found.events[0])
            assert (event["channel"], event["offset"], event["data"]) == (channel, 2, {"n": 1})
            assert (len(found.events), found.offset) == (1, 3)
        assert (await page("nothing:1", None, 10)).events == []
        for channel, limit in (("feed:1", 0), ("feed:1", 1001), ("", 1)):
            with pytest.raises(ValueError, match="use 1 to"):
                await page(channel, None, limit)


async def test_a_past_that_cannot_be_read_is_refused_with_its_code() -> None:
    half = make_half()
    reading = asyncio.ensure_future(half.control.broadcaster.history("ledger:1"))
    await half.settle()
    half.take((_engine.HISTORY, 1, [], 0, "", "unavailable"))
    with pytest.raises(Refused, match="unavailable"):
        await reading


async def test_an_event_may_amend_an_earlier_one() -> None:
    half = make_half()
    edit: dict[str, Any] = {"request": "r-1", "amends": 7, "replacement": {"n": 2}, "erases": True}
    half.app.publish("ledger:1", "line_gone", {"number": 7}, **edit)
    call = ("ledger:1", "line_gone", b'{"number":7}', None, None, None, False, True, "r-1", 7, b'{"n":2}', True)
    assert half.engine.named("publish") == [call]


@pytest.mark.parametrize(
    ("channel", "options", "says"),
    [
        ("feed:1", {"amends": 1}, "events of feed:1 are not stored"),
        ("ledger:1", {"amends": 0}, "amends=0; use an offset, from 1"),
        ("ledger:1", {"replacement": {}}, "a replacement without amends"),
        ("ledger:1", {"amends": 1, "erases": True}, "erases without a replacement"),
        ("ledger:1", {"amends": 1, "replacement": b"{"}, "not JSON"),
        ("feed:1", {"request": "r" * 129}, "request of 129 characters exceeds 128"),
    ],
)
async def test_what_cannot_be_amended_is_said_before_anything_is_sent(
    channel: str, options: dict[str, Any], says: str
) -> None:
    half = make_half()
    with pytest.raises(ValueError, match=says):
        half.app.publish(channel, "line", {}, **options)
    with pytest.raises(PublishFailed, match="too_large"):
        half.app.publish("ledger:1", "line", {}, amends=1, replacement={"text": "x" * 100})
    assert half.engine.named("publish") == []


async def test_amending_and_erasing_over_the_real_engine() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True, history=8)
    app.allow("ledger:*")
    async with TestApp(app) as world:
        ann = await world.connect(user="ann")
        await ann.command("subscribe", channel="ledger:1")
        app.publish("ledger:1", "line", {"text": "secret"}, request="r-1")
        gone = app.publish("ledger:1", "line_gone", {}, amends=1, replacement={}, erases=True)
        missed = app.publish("ledger:1", "line_gone", {}, amends=9)
        reading = asyncio.ensure_future(app.broadcaster.history("ledger:1"))
        await world.settle()
        publication = await gone
        assert publication is not None
        assert publication.offset == 2
        with pytest.raises(PublishFailed, match="not_found"):
            await missed
        events = [msgspec.json.decode(event) for event in (await reading).events]
        found = [(event["offset"], event["data"], event.get("requestId")) for event in events]
        assert found == [(1, {}, "r-1"), (2, {}, None)]
        await ann.expect("line", text="secret")
        await ann.expect("line_gone")


async def test_what_is_too_old_or_too_much_goes() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True, history=8, keep_s=3600, keep_events=2)
    app.policy("feed:*", history=8, keep_s=60)
    async with TestApp(app) as world:

        async def kept(channel: str) -> list[int]:
            reading = asyncio.ensure_future(app.broadcaster.history(channel))
            await world.settle()
            return [msgspec.json.decode(event)["offset"] for event in (await reading).events]

        for number in range(5):
            app.publish("ledger:1", "line", {"n": number})
            app.publish("feed:1", "tick", {"n": number})
        await world.settle()
        world.clock.advance(59)
        assert await kept("feed:1") == [1, 2, 3, 4, 5]
        world.clock.advance(61)
        assert await kept("ledger:1") == [4, 5]
        assert await kept("feed:1") == []
        app.publish("ledger:1", "line", {})
        await world.settle()
        world.clock.advance(3661)
        assert await kept("ledger:1") == []
        app.publish("ledger:1", "line", {})
        assert await kept("ledger:1") == [7]


async def test_a_list_of_members_says_if_it_is_cut() -> None:
    half = make_half()
    answer = asyncio.ensure_future(half.control.broadcaster.members_of("news:1"))
    await half.settle()
    half.take((_engine.MEMBERS, 1, [1, 2], 2, 2), (_engine.MEMBERS, 1, [3], 10_001, 2))
    members = await answer
    assert (members.conns, members.total, members.is_cut) == ([1, 2, 3], 10_003, True)
