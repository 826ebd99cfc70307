"""What runs beside handlers, and handlers that take their time: whom they hold up, and how they end."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.kit import PATIENCE_S, Server, clients, eventually

APP = f"{Path(__file__).parent / 'apps' / 'background.py'}:app"


@pytest.fixture
async def background(serve: Callable[..., Server]) -> AsyncIterator[Server]:
    """The app of apps/background.py, served."""
    async with serve(app=APP) as server:
        yield server


@pytest.mark.parametrize("type_", ["wait", "block_thread"])
async def test_async_or_thread_handler_that_takes_two_seconds_delays_its_own_session_alone(
    background: Server, type_: str
) -> None:
    async with clients(background, "alice", "bob") as (alice, bob):
        await alice.send(type_, {"seconds": 2}, id=1)
        await alice.send("whoami", id=2)
        for _ in range(20):
            assert (await bob.ask("whoami"))["data"] == "bob"
        assert alice.answers() == [], "bob was served while alice's commands waited"
        assert (await alice.answer(2))["data"] == "alice"
        assert (await alice.answer(1))["type"] == "ack"
    assert "held the event loop" not in background.output


async def test_plain_handler_that_blocks_two_seconds_is_named_and_the_engine_goes_on(background: Server) -> None:
    async with clients(background, "alice", "bob", "carol") as (alice, bob, carol):
        await alice.send("block", {"seconds": 2}, id=1)
        await eventually(lambda: "the loop is held from here" in background.output)
        await bob.send("whoami", id=2)
        # What needs no handler is served by the shards meanwhile.
        await carol.subscribe("ledger:1")
        for _ in range(20):
            assert await carol.is_alive()
        assert alice.answers() == bob.answers() == []
        assert (await alice.answer(1))["data"] == "blocked"
        assert (await bob.answer(2))["data"] == "bob"
        await eventually(lambda: "handler of 'block' held the event loop for 2" in background.output)
    assert "make it async, or thread=True" in background.output


async def test_job_runs_again_and_again_and_one_that_fails_goes_on(background: Server) -> None:
    async with await background.connect() as alice:
        await alice.subscribe("beats")
        for _ in range(3):
            await alice.expect("beat")
    await eventually(lambda: background.output.count("job fail failed; it goes on") >= 3)
    assert await background.stop() == 0


async def test_task_of_a_session_ends_with_it(background: Server) -> None:
    async with clients(background, "bob") as (bob,):
        await bob.subscribe("ledger:watchers")
        for leave in ("close", "drop"):
            alice = await background.connect("alice")
            await alice.ask("watch")
            for _ in range(3):
                await alice.expect("tick")
            if leave == "close":
                await alice.socket.close()
            else:
                alice.drop()
            await bob.expect("unwatched", user="alice")


async def test_tasks_of_sessions_are_awaited_at_the_drain_and_what_they_publish_is_stored(background: Server) -> None:
    users = [f"user{number}" for number in range(5)]
    async with clients(background, *users) as watchers:
        for watcher in watchers:
            await watcher.ask("watch")
        assert await background.stop() == 0, background.output
    await background.start()
    async with await background.connect() as alice:
        assert (await alice.subscribe("ledger:watchers", last=10))["replayed"] == 5
        found = [(await alice.expect("unwatched"))["data"]["user"] for _ in users]
    assert sorted(found) == users


async def test_middleware_refuses_for_every_handler(background: Server) -> None:
    async with clients(background, "alice", "nobody1") as (alice, nobody):
        assert (await alice.ask("whoami"))["data"] == "alice"
        for type_, data in (("whoami", None), ("wait", {"seconds": 0}), ("block_thread", {"seconds": 0})):
            frame = await nobody.ask(type_, data)
            assert (frame["data"]["code"], frame["data"]["message"]) == ("forbidden", f"{type_} is not for you")
        assert await nobody.is_alive()


async def test_slow_listener_hears_every_stored_event_once_and_in_order(serve: Callable[..., Server]) -> None:
    server = serve("limits.enabled=false", "handlers.listener_events_max=10", app=APP)
    async with server, clients(server, "alice", "bob") as writers:
        for number in range(300):
            for writer, ledger in zip(writers, ("a", "b"), strict=True):
                await writer.send("line", {"ledger": ledger, "n": number})
        for writer, ledger in zip(writers, ("a", "b"), strict=True):
            await writer.ask("line", {"ledger": ledger, "n": 300})
            deadline_s = time.monotonic() + PATIENCE_S
            while (found := (await writer.ask("heard", ledger))["data"]) != [*range(1, 302)]:
                assert time.monotonic() < deadline_s, found
        assert await server.stop() == 0
    assert "listener slow_listener is behind" in server.output
    assert "were not kept" not in server.output
    assert server.output.count("listener failing_listener failed on line of ledger:") == 2


async def test_what_a_listener_publishes_at_the_drain_is_stored(background: Server) -> None:
    async with await background.connect() as alice:
        for number in range(50):
            await alice.send("line", {"ledger": "c", "n": -1 - number})
        assert await background.stop() == 0, background.output
    await background.start()
    async with await background.connect() as alice:
        # Every line that was read before the end was heard, and was answered in the log.
        lines = (await alice.subscribe("ledger:c", last=100))["replayed"]
        assert (await alice.subscribe("ledger:replies", last=100))["replayed"] == lines
