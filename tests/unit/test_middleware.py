"""Middleware: what runs around handlers, in which order, and how the whole then runs."""

# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract
# mypy: disable-error-code="unused-awaitable"

import asyncio
import inspect
import threading
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from realtime import Call, Proceed, Publishing, Realtime, Refused, Session
from realtime.base.config import HandlerSettings, Settings
from realtime.testing import TestApp
from tests.unit.engine import Half


class Vote(Struct):
    poll: str
    choice: int = 0


def app_of_each_kind() -> tuple[Realtime, list[str]]:
    app, threads = Realtime(), list[str]()

    @app.on("plain")
    def plain(session: Session, vote: Vote) -> str:
        return f"plain {vote.poll}"

    @app.on("later")
    async def later(session: Session, vote: Vote) -> str:
        await asyncio.sleep(0)
        return f"later {vote.poll}"

    @app.on("thread", thread=True)
    def thread(session: Session, vote: Vote) -> str:
        threads.append(threading.current_thread().name)
        return f"thread {vote.poll}"

    @app.on("bare")
    def bare(session: Session) -> str:
        return "bare"

    return app, threads


KINDS = ("plain", "later", "thread")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_async_middleware_sees_the_call_and_changes_the_result_of_every_kind_of_handler(kind: str) -> None:
    app, threads = app_of_each_kind()
    seen: list[tuple[str, str, object]] = []

    @app.middleware
    async def loud(call: Call, proceed: Proceed) -> Any:
        seen.append((call.session.user, call.type, call.payload))
        assert threading.current_thread() is threading.main_thread()
        return (await proceed(call)).upper()

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack(kind, poll="p") == f"{kind} p".upper()
    assert seen == [("alice", kind, Vote("p"))]
    assert all(name.startswith("realtime-handler") for name in threads)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plain_middleware_may_return_what_next_gave_it_around_every_kind_of_handler(kind: str) -> None:
    app, _ = app_of_each_kind()
    given: list[object] = []

    @app.middleware
    def look(call: Call, proceed: Proceed) -> Any:
        given.append(proceed(call))
        return given[-1]

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack(kind, poll="p") == f"{kind} p"
        assert await alice.ack("bare") == "bare"
    assert inspect.isawaitable(given[0]) == (kind != "plain")


async def test_with_plain_middleware_alone_a_plain_handler_stays_on_the_loop_without_a_task() -> None:
    app, _ = app_of_each_kind()
    app.middleware(lambda call, proceed: proceed(call))
    app.middleware(lambda call, proceed: f"{proceed(call)}!")
    half = Half(app)
    half.open(1)
    half.command(1, 0, data=b'{"poll":"p"}')
    assert half.control.router.busy == 0
    assert b'"plain p!"' in half.texts(1)[0]


async def test_the_first_that_is_registered_is_the_outermost() -> None:
    app, order = Realtime(), list[str]()

    def note(name: str, is_async: bool) -> None:
        async def later(call: Call, proceed: Proceed) -> Any:
            order.append(f"{name} in")
            result = await proceed(call)
            order.append(f"{name} out")
            return [name, result]

        def plain(call: Call, proceed: Proceed) -> Any:
            order.append(f"{name} in")
            return proceed(call)

        app.middleware(later if is_async else plain)

    for name, is_async in (("a", True), ("b", False), ("c", True)):
        note(name, is_async)
    app.on("plain")(lambda session: order.append("handler"))
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack("plain") == ["a", ["c", None]]
    assert order == ["a in", "b in", "c in", "handler", "c out", "a out"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_middleware_may_refuse_answer_itself_or_hand_on_another_payload(kind: str, is_async: bool) -> None:
    app, _ = app_of_each_kind()

    def judge(call: Call, proceed: Proceed) -> Any:
        if call.payload.poll == "closed":
            raise Refused("forbidden", "this poll is closed", path="data.poll")
        if call.payload.poll == "known":
            return "known already"
        return proceed(msgspec.structs.replace(call, payload=Vote(call.payload.poll * 2)))

    async def judge_later(call: Call, proceed: Proceed) -> Any:
        result = judge(call, proceed)
        return await result if inspect.isawaitable(result) else result

    app.middleware(judge_later if is_async else judge)
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        refused = await alice.command(kind, poll="closed")
        assert (refused.type, refused.data["code"], refused.data["path"]) == ("error", "forbidden", "data.poll")
        assert await alice.ack(kind, poll="known") == "known already"
        assert await alice.ack(kind, poll="p") == f"{kind} pp"


async def test_a_payload_that_does_not_fit_never_comes_to_a_middleware() -> None:
    app, _ = app_of_each_kind()
    app.middleware(lambda call, proceed: pytest.fail("called"))
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert (await alice.command("plain", poll=5)).data["path"] == "data.poll"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_publish_that_a_handler_returns_is_a_result_and_is_answered_when_it_is_stored(is_async: bool) -> None:
    app, results = Realtime(), list[object]()
    app.policy("ledger:*", durable=True)

    @app.on("write")
    def write(session: Session) -> Publishing:
        return app.publish("ledger:1", "line", {"text": "x"}, number=True)

    async def look_later(call: Call, proceed: Proceed) -> Any:
        results.append(await proceed(call))
        return results[-1]

    def look(call: Call, proceed: Proceed) -> Any:
        results.append(proceed(call))
        return results[-1]

    app.middleware(look_later if is_async else look)
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack("write") == {"text": "x", "number": 1}
    assert isinstance(results[0], Publishing)


async def test_what_a_middleware_raises_is_our_own_failure_and_its_time_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, _ = app_of_each_kind()

    @app.middleware
    async def odd(call: Call, proceed: Proceed) -> Any:
        if call.payload.poll == "bug":
            raise KeyError("a secret")
        await asyncio.Event().wait()

    async with TestApp(app, Settings(handlers=HandlerSettings(timeout_s=2))) as t:
        alice = await t.connect(user="alice")
        assert (await alice.command("plain", poll="bug")).data["message"] == "Internal error"
        await alice.send_text('{"type":"plain","data":{"poll":"p"},"id":7}')
        t.clock.advance(2)
        await alice.expect("error", code="timeout")
    assert "a secret" in caplog.text


def test_a_middleware_takes_a_call_and_what_hands_it_on() -> None:
    with pytest.raises(TypeError, match=r"takes 1 arguments; use \(call, proceed\)"):
        Realtime().middleware(lambda call: None)
