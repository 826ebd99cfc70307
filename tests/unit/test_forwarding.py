"""What is remembered of messages to an existing API: once each, in bounded memory."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec
import pytest
from msgspec import Raw

from realtime import Realtime
from realtime.base.charges import Charges
from realtime.base.config.settings import ApiSettings, Settings
from realtime.base.memory import Ledger
from realtime.control.forwarding import Forwarding
from realtime.control.upstream import Outgoing
from realtime.conversations import Conversations
from realtime.testing import TestApp

T = TypeVar("T")

MESSAGE = Outgoing("hi", "user", {})


class Api:
    """An API that numbers what it is sent, and answers as long as it is told."""

    def __init__(self, answer_bytes: int = 10) -> None:
        self.asked: list[str] = []
        self.broadcasts = True
        self._text = "x" * answer_bytes

    async def post(self, *_: object, **sent: Any) -> dict[str, Raw]:
        """Answer with an id of its own for each call."""
        self.asked.append(sent["idempotency_key"])
        return {"id": Raw(b'"m%d"' % len(self.asked)), "content": Raw(f'"{self._text}"'.encode())}


def forwarding(t: TestApp, api: Any, answers: Charges, ids: Charges | None = None) -> Forwarding:
    return Forwarding(api, t.control.broadcaster, t.control.clock, ids or Charges(1 << 20, 1 << 20), answers)


def conversations() -> Realtime:
    app = Realtime()
    app.include(Conversations())
    return app


async def done(t: TestApp, work: Awaitable[T]) -> T:
    """Return what `work` comes to while the engine takes its turns."""
    task = asyncio.ensure_future(_awaited(work))
    await t.settle()
    return task.result()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def send(t: TestApp, forward: Forwarding, id: str, user: str = "ann") -> bytes:
    work = forward.send("7", MESSAGE, user=user, client_message_id=id)
    return bytes(await done(t, work))


async def test_a_repeat_is_answered_from_memory_up_to_the_bound_and_asked_again_above() -> None:
    async with TestApp(conversations()) as t:
        api, answers = Api(answer_bytes=10_000), Charges(1 << 20, 50_000)
        forward = forwarding(t, api, answers)
        first = await send(t, forward, "c0")
        assert await send(t, forward, "c0") == first
        assert len(api.asked) == 1
        for number in range(1, 6):
            await send(t, forward, f"c{number}")
        assert (answers.of("ann") <= 50_000, answers.refused) == (True, 2)
        # Forgotten: the API knows the message by its key, and the log by the client's id.
        again = await send(t, forward, "c0")
        assert api.asked[0] == api.asked[-1]
        assert len(api.asked) == 7
        history = await done(t, t.control.broadcaster.history("conversation:7"))
        assert (len(history.events), again) == (6, first)


async def test_one_users_answers_push_out_nobody_elses() -> None:
    async with TestApp(conversations()) as t:
        api, answers = Api(answer_bytes=1_000), Charges(1 << 20, 10_000)
        forward = forwarding(t, api, answers)
        await send(t, forward, "of-bob", user="bob")
        for number in range(50):
            await send(t, forward, f"c{number}")
        asked = len(api.asked)
        await send(t, forward, "of-bob", user="bob")
        assert len(api.asked) == asked
        assert answers.bytes < 12_000


async def test_of_a_message_that_is_stored_only_its_place_is_kept() -> None:
    async with TestApp(conversations()) as t:
        ids = Charges(1 << 20, 1 << 20)
        forward = forwarding(t, Api(), Charges(1 << 20, 1 << 20), ids)
        told = {"id": Raw(b'"m1"'), "content": Raw(b'"%s"' % (b"x" * 100_000))}
        publishing, again = forward.publish_once("7", dict(told), user=None)
        await done(t, publishing)
        before, is_known = forward.publish_once("7", dict(told), user=None)
        assert (again, is_known) == (False, True)
        publication = await done(t, before)
        assert publication is not None
        assert (publication.offset, publication.decode()) == (1, {"number": 1})
        assert ids.bytes < 1_000


@pytest.mark.parametrize("is_hook_first", [True, False])
async def test_an_answer_and_a_hook_that_tell_the_same_message_are_one_event(is_hook_first: bool) -> None:
    async with TestApp(conversations()) as t:
        forward = forwarding(t, Api(), Charges(1 << 20, 1 << 20))
        told = {"id": Raw(b'"m1"'), "content": Raw(b'"xxxxxxxxxx"')}
        if is_hook_first:
            await done(t, forward.publish_once("7", dict(told), user=None)[0])
        answer = await send(t, forward, "c1")
        await done(t, forward.publish_once("7", dict(told), user=None)[0])
        assert (b'"number":1' in answer, b'"clientMessageId":"c1"' in answer) == (True, not is_hook_first)
        assert len((await done(t, t.control.broadcaster.history("conversation:7"))).events) == 1


@pytest.mark.parametrize(
    ("key", "purpose"), [("answers_bytes_max", "answers"), ("message_ids_bytes_max", "message_ids")]
)
async def test_what_is_remembered_of_an_api_reaches_its_key_and_above_it_the_oldest_goes(
    key: str, purpose: str
) -> None:
    async with TestApp(conversations()) as t:

        async def remembered(bytes_max: int, *users: str) -> Charges:
            ledger = Ledger(
                Settings(api=msgspec.structs.replace(ApiSettings(url="http://api.example"), **{key: bytes_max}))
            )
            forward = forwarding(t, Api(answer_bytes=100), ledger.of("answers"), ledger.of("message_ids"))
            for user in users:
                await send(t, forward, "c1", user=user)
            return ledger.of(purpose)

        size = (await remembered(1 << 20, "ann")).bytes
        kept = await remembered(2 * size, "ann", "bob")
        assert (kept.bytes, kept.refused) == (2 * size, 0)
        kept = await remembered(2 * size, "ann", "bob", "cyd")
        assert (kept.of("ann"), kept.bytes, kept.refused) == (0, 2 * size, 1)
        kept = await remembered(2 * size - 1, "ann", "bob")
        assert (kept.of("ann"), kept.bytes, kept.refused) == (0, size, 1)
