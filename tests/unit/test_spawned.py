"""Tasks of sessions: they live as long as the connection does."""


# mypy: disable-error-code="unused-awaitable"

import asyncio
from contextlib import suppress

import pytest

from realtime import Realtime, Session
from realtime.base.config.settings import HandlerSettings, Settings
from realtime.testing import TestApp


def ticking(ended: list[str]) -> Realtime:
    app = Realtime()

    async def tick(session: Session) -> None:
        try:
            session.send({"type": "tick", "data": 1, "timestamp": app.clock.timestamp()})
            await asyncio.Event().wait()
        finally:
            ended.append(session.user)

    @app.on("watch")
    def watch(session: Session) -> None:
        session.spawn(tick(session))

    return app


@pytest.mark.parametrize("how", ["closes", "drops"])
async def test_a_task_ends_when_its_connection_closes_and_others_go_on(how: str) -> None:
    ended: list[str] = []
    async with TestApp(ticking(ended)) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for peer in (alice, bob):
            await peer.ack("watch")
            await peer.expect("tick")
        if how == "closes":
            await alice.close()
        else:
            alice.drop()
        await t.settle()
        assert ended == ["alice"]
        assert len(t.control.connections.tasks) == 1
    assert ended == ["alice", "bob"]


async def test_a_session_has_so_many_tasks_and_not_one_more() -> None:
    ended: list[str] = []
    settings = Settings(handlers=HandlerSettings(tasks_per_session_max=2))
    async with TestApp(ticking(ended), settings) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        for _ in range(2):
            await alice.ack("watch")
        refused = await alice.command("watch")
        assert (refused.data["code"], "tasks_per_session_max" in refused.data["message"]) == ("limit_reached", True)
        await bob.ack("watch")
        assert len(t.control.connections.tasks) == 3


async def test_what_a_task_publishes_as_it_is_ended_is_stored_even_at_the_drain() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    stored: list[object] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stored.append(await app.publish("ledger:1", "ended", {}))

    @app.on("work")
    def begin(session: Session) -> None:
        session.spawn(work())

    async with TestApp(app) as t:
        await (await t.connect(user="alice")).ack("work")
    assert [publication.offset for publication in stored] == [1]  # type: ignore[attr-defined]


async def test_a_task_can_be_awaited_and_a_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()

    async def double(number: int) -> int:
        await asyncio.sleep(0)
        if not number:
            raise RuntimeError("nothing to double")
        return 2 * number

    @app.on("double")
    async def run(session: Session, number: int) -> int:
        with suppress(RuntimeError):
            return await session.spawn(double(number))
        return -1

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.send_text('{"type":"double","data":2,"id":1}')
        assert (await alice.expect("ack")).data == 4
        await alice.send_text('{"type":"double","data":0,"id":2}')
        assert (await alice.expect("ack")).data == -1
        assert len(t.control.connections.tasks) == 0
    assert caplog.text.count("failed") == 1
    assert "user='alice'" in caplog.text
    assert "nothing to double" in caplog.text


async def test_on_a_closed_session_nothing_begins() -> None:
    app, begun = Realtime(), list[str]()

    async def begin() -> None:
        begun.append("begun")

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        session = alice.session
        await alice.close()
        task = session.spawn(begin())
        await t.settle()
        assert task.cancelled()
    assert begun == []


async def test_a_thread_is_told_that_it_cannot_spawn() -> None:
    app = Realtime()

    async def work() -> None:
        pytest.fail("begun")

    async with TestApp(app) as t:
        session = (await t.connect(user="alice")).session
        with pytest.raises(RuntimeError, match="spawn was called on a thread"):
            await asyncio.to_thread(lambda: session.spawn(work()))
