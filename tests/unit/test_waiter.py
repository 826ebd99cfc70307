"""A wait on any loop ends by an outcome from any thread, and a loop that is gone holds up nobody."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from realtime import Publication, PublishFailed, Publishing, Realtime, Refused, Session
from realtime.base.waiter import Waiter
from realtime.control.broadcaster import History, Members
from realtime.testing import TestApp
from tests.unit.engine import Half
from tests.unit.test_broadcaster import make_half, outcome

T = TypeVar("T")


class OtherLoop:
    """An event loop of a thread of its own, which runs one coroutine."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.result: Any = None
        self._work = work
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        async def bounded() -> Any:
            return await asyncio.wait_for(self._work(), 10)

        try:
            self.result = asyncio.run(bounded())
        except Exception as error:  # noqa: BLE001 -- what came of it is looked at
            self.result = error

    async def end(self) -> Any:
        await asyncio.to_thread(self.thread.join)
        return self.result


async def waits(half: Half) -> None:
    """Wait until another thread's command is noted."""
    deadline_s = time.monotonic() + 5
    while half.control.broadcaster.waiting == 0:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.001)


async def test_a_publish_awaited_on_another_loop_wakes_that_loop() -> None:
    half = make_half()

    async def work() -> Publication | None:
        return await half.app.publish("ledger:1", "line", {})

    other = OtherLoop(work)
    await waits(half)
    began_s = time.monotonic()
    half.take(outcome(1, offset=9))
    publication = await other.end()
    assert isinstance(publication, Publication)
    assert publication.offset == 9
    assert time.monotonic() - began_s < 5


async def test_a_failed_publish_raises_on_the_loop_that_waits() -> None:
    half = make_half()

    async def work() -> Publication | None:
        return await half.app.publish("ledger:1", "line", {})

    other = OtherLoop(work)
    await waits(half)
    half.control.end()
    error = await other.end()
    assert isinstance(error, PublishFailed)
    assert error.code == "unavailable"


async def test_history_and_members_awaited_on_another_loop_wake_that_loop() -> None:
    app = ledgers()
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.command("subscribe", channel="ledger:1")
        await app.publish("ledger:1", "line", {})
        broadcaster = t.control.broadcaster

        async def work() -> tuple[History, Members, Publication | None]:
            publication = await app.publish("ledger:1", "line", {})
            return await broadcaster.history("ledger:1"), await broadcaster.members_of("ledger:1"), publication

        history, members, publication = await OtherLoop(work).end()
        assert (history.offset, members.conns, members.is_cut) == (2, [alice.session.conn], False)
        assert publication is not None
        assert publication.offset == 2


async def test_a_handler_in_a_thread_awaits_by_a_loop_of_its_own() -> None:
    app = ledgers()

    @app.on("write", thread=True)
    def write(session: Session) -> int:
        async def work() -> int:
            publication = await app.publish("ledger:1", "line", {"by": session.user})
            assert publication is not None
            return publication.offset

        return asyncio.run(asyncio.wait_for(work(), 10))

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert [await alice.ack("write") for _ in range(3)] == [1, 2, 3]


async def test_many_loops_and_the_servers_own_wait_for_the_same_publish() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {})

    async def work() -> Publication | None:
        return await publishing

    others = [OtherLoop(work) for _ in range(8)]
    own = asyncio.ensure_future(work())
    await half.settle()
    half.take(outcome(1, offset=3))
    for publication in (*[await other.end() for other in others], await own):
        assert publication.offset == 3


async def test_a_loop_that_gave_up_or_was_closed_holds_up_nobody() -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "line", {})

    async def work() -> Publication | None:
        return await asyncio.wait_for(_awaited(publishing), 0.01)

    assert isinstance(await OtherLoop(work).end(), TimeoutError)
    own = asyncio.ensure_future(_awaited(publishing))
    await half.settle()
    half.take(outcome(1, offset=3))
    publication = await own
    assert publication is not None
    assert publication.offset == 3


async def test_what_is_asked_of_a_server_that_has_ended_is_refused_at_once() -> None:
    half = make_half()
    app, broadcaster = half.app, half.control.broadcaster
    half.control.end()

    async def publish() -> Publication | None:
        return await app.publish("ledger:1", "line", {})

    failed = await OtherLoop(publish).end()
    assert isinstance(failed, PublishFailed)
    assert failed.code == "unavailable"
    for ask in (lambda: broadcaster.history("ledger:1"), lambda: broadcaster.members_of("ledger:1")):
        refused = await OtherLoop(ask).end()
        assert isinstance(refused, Refused)
        assert refused.code == "unavailable"


async def test_the_first_outcome_counts() -> None:
    waiter = Waiter[int]()
    waiter.settle(1)
    waiter.fail(ValueError("too late"))
    assert await waiter == 1


def ledgers() -> Realtime:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    app.allow("ledger:*", "subscribe")
    return app


async def _awaited(publishing: Publishing) -> Publication | None:
    return await publishing


async def test_an_outcome_that_comes_while_a_wait_begins_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    half = make_half()
    publishing = half.app.publish("ledger:1", "entry", {"n": 1})

    class Late(Waiter[T]):
        def __init__(self) -> None:
            super().__init__()
            # As another thread's does: behind the look at the outcome, before the wait is noted.
            publishing.settle(None, None)

    monkeypatch.setattr("realtime.control.publishing.Waiter", Late)
    assert await asyncio.wait_for(publishing, 1) is None
