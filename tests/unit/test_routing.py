"""From a command to a handler and back: answers, order, limits, failures. One credit comes back for each command."""

# ruff: noqa: ARG001, ARG002, ARG005 -- what a handler takes is its contract

import asyncio
import time
from contextvars import ContextVar
from typing import Any

import pytest
from msgspec import Struct

from realtime import Publication, Publishing, Realtime, Refused, Session, _engine
from realtime.base.config import HandlerSettings, Settings
from tests.unit.engine import Half, ack, decoded, error, lines

QUICK = Settings(handlers=HandlerSettings(timeout_s=2, slow_ms=5, threads=2))


class Vote(Struct):
    poll: str
    choice: int = 0


async def test_a_plain_handler_answers_in_the_same_turn() -> None:
    app = Realtime()

    @app.on("vote")
    def vote(session: Session, vote: Vote) -> dict[str, object]:
        return {"user": session.user, "poll": vote.poll}

    half = Half(app)
    half.open(1)
    before = half.engine.submitted
    half.command(1, id=b'"a1"', data=b'{"poll":"p"}')
    assert decoded(half) == [ack({"user": "alice", "poll": "p"}, "a1")]
    assert half.credits(1) == 1
    assert half.control.router.busy == 0
    assert half.engine.submitted == before + 1


async def test_a_command_without_an_id_is_not_acknowledged() -> None:
    app, seen = Realtime(), list[str]()
    app.on("vote")(lambda session: seen.append(session.user))
    half = Half(app)
    half.open(1)
    half.command(1, id=None, data=None)
    assert (seen, half.texts(1), half.credits(1)) == (["alice"], [], 1)


@pytest.mark.parametrize("data", [None, b"null", b"{}"])
async def test_data_that_is_missing_is_an_empty_object(data: bytes | None) -> None:
    app = Realtime()

    @app.on("vote")
    def vote(session: Session, vote: Vote) -> None:
        pytest.fail("called")

    half = Half(app)
    half.open(1)
    half.command(1, data=data)
    assert decoded(half) == [error("invalid_message", "Invalid message format", path="data.poll")]


async def test_a_wrong_field_is_answered_with_its_path_and_the_session_goes_on() -> None:
    app = Realtime()

    @app.on("vote")
    def vote(session: Session, vote: Vote) -> str:
        return vote.poll

    half = Half(app)
    half.open(1)
    half.command(1, data=b'{"poll":"p","choice":"x"}')
    half.command(1, id=b"2", data=b'{"poll":"p"}')
    assert decoded(half) == [
        error("invalid_message", "Invalid message format", path="data.choice"),
        ack("p", 2),
    ]
    assert half.credits(1) == 2


@pytest.mark.parametrize("runs", ["inline", "task", "thread"])
async def test_what_a_handler_raises_is_an_error_event(runs: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()

    def refuse(session: Session, vote: Vote) -> None:
        if vote.poll == "refused":
            raise Refused("not_found", "no such choice", path="data.choice", retry_after_ms=5)
        raise KeyError(f"the secret of {session.user}")

    async def refuse_later(session: Session, vote: Vote) -> None:
        await asyncio.sleep(0)
        refuse(session, vote)

    app.on("vote", thread=runs == "thread")(refuse_later if runs == "task" else refuse)
    half = Half(app)
    half.open(1)
    half.command(1, data=b'{"poll":"refused"}')
    await _idle(half)
    assert caplog.text == ""
    half.command(1, id=None, data=b'{"poll":"bug"}')
    await _idle(half)
    assert decoded(half) == [
        error("not_found", "no such choice", path="data.choice", retryAfterMs=5),
        error("internal", "Internal error", retryable=True, id=None),
    ]
    assert half.credits(1) == 2
    assert """handler of 'vote' failed session="s1" user="alice" type="vote\"""" in lines(caplog)[0]
    assert "the secret of alice" in caplog.text


async def _idle(half: Half) -> None:
    deadline_s = time.monotonic() + 5
    await half.settle()
    while half.control.router.busy and time.monotonic() < deadline_s:  # noqa: ASYNC110 -- of the server's own
        await asyncio.sleep(0.001)
    await half.settle()


async def test_a_result_that_cannot_be_encoded_is_our_own_failure() -> None:
    app = Realtime()
    app.on("vote")(lambda session: object())
    half = Half(app)
    half.open(1)
    half.command(1)
    assert decoded(half) == [error("internal", "Internal error", retryable=True)]
    assert half.credits(1) == 1


async def test_commands_of_a_session_keep_their_order_and_others_do_not_wait() -> None:
    app, seen = Realtime(), list[str]()
    gates = {name: asyncio.Event() for name in ("a", "b")}

    @app.on("slow")
    async def slow(session: Session, vote: Vote) -> None:
        seen.append(f"{session.user} begins {vote.poll}")
        await gates[vote.poll].wait()
        seen.append(f"{session.user} ends {vote.poll}")

    @app.on("fast")
    def fast(session: Session, vote: Vote) -> None:
        seen.append(f"{session.user} {vote.poll}")

    half = Half(app)
    half.open(1, "ann")
    half.open(2, "bob")
    half.command(1, 0, data=b'{"poll":"a"}')
    half.command(1, 1, data=b'{"poll":"1"}')
    half.command(1, 0, data=b'{"poll":"b"}')
    half.command(1, 1, data=b'{"poll":"2"}')
    half.command(2, 1, data=b'{"poll":"3"}')
    await half.settle()
    assert seen == ["bob 3", "ann begins a"]
    gates["a"].set()
    await half.settle()
    assert seen[2:] == ["ann ends a", "ann 1", "ann begins b"]
    gates["b"].set()
    await half.settle()
    assert seen[5:] == ["ann ends b", "ann 2"]
    assert half.control.router.busy == 0
    assert half.credits(1) == 4


async def test_a_busy_stretch_is_one_task_and_its_answers_are_submitted() -> None:
    app = Realtime()

    @app.on("slow")
    async def slow(session: Session) -> int:
        await asyncio.sleep(0)
        return 1

    half = Half(app)
    half.open(1)
    for number in range(20):
        half.command(1, id=str(number).encode())
    assert half.control.router.busy == 1
    for _ in range(10):
        await half.settle()
    assert [frame["id"] for frame in decoded(half)] == list(range(20))
    assert half.credits(1) == 20
    submitted = half.engine.submitted
    half.engine.calls.clear()
    await half.settle()
    assert half.engine.submitted == submitted


async def test_a_command_that_takes_too_long_answers_timeout_and_the_next_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Realtime()

    @app.on("slow")
    async def slow(session: Session) -> None:
        await asyncio.Event().wait()

    @app.on("fast")
    def fast(session: Session) -> str:
        return "ran"

    half = Half(app, QUICK)
    half.open(1)
    half.command(1, 0)
    half.command(1, 1, id=b"2")
    await half.settle()
    half.clock.advance_to(half.clock.now_ms() + 1_999)
    await half.settle()
    assert half.texts(1) == []
    half.clock.advance_to(half.clock.now_ms() + 1)
    await half.settle()
    frames = decoded(half)
    assert [frame["type"] for frame in frames] == ["error", "ack"]
    assert frames[0]["data"] == {"message": "Timed out", "code": "timeout", "retryable": True}
    assert frames[1]["data"] == "ran"
    assert half.credits(1) == 2
    assert """handler of 'slow' took longer than 2 s session="s1" user="alice" type="slow\"""" in lines(caplog)[0]


async def test_a_handler_that_is_quick_leaves_no_timer() -> None:
    app = Realtime()

    @app.on("quick")
    async def quick(session: Session) -> None:
        await asyncio.sleep(0)

    half = Half(app)
    half.open(1)
    half.command(1)
    await half.settle()
    assert half.clock.next_ms() is None


async def test_a_handler_that_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    app = Realtime()
    app.on("heavy")(lambda session: time.sleep(0.02))
    half = Half(app, QUICK)
    half.open(1)
    half.command(1)
    assert "handler of 'heavy' held the event loop for" in caplog.text


async def test_a_handler_in_a_thread_does_not_hold_the_loop() -> None:
    app = Realtime()

    @app.on("block", thread=True)
    def block(session: Session, vote: Vote) -> str:
        time.sleep(0.02)
        return vote.poll

    half = Half(app)
    half.open(1)
    half.command(1, data=b'{"poll":"p"}')
    await half.settle()
    assert half.control.router.threads_busy == 1
    await _idle(half)
    assert decoded(half) == [ack("p")]
    half.control.end()


# Publishing from handlers.


def ledger() -> Realtime:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    return app


async def test_a_publish_that_is_returned_is_answered_by_the_engine() -> None:
    app = ledger()

    @app.on("write", failure="Cannot write")
    def write(session: Session) -> Publishing:
        return app.publish("ledger:1", "line", {})

    half = Half(app)
    half.open(1)
    half.command(1, id=b"7")
    assert half.engine.named("reply_with") == [(1, 1, b"7", "Cannot write")]
    assert half.texts(1) == []
    assert half.credits(1) == 1
    assert half.control.broadcaster.waiting == 0


async def test_a_volatile_publish_that_is_returned_is_acknowledged_at_once() -> None:
    app = Realtime()

    @app.on("tick")
    def tick(session: Session) -> Publishing:
        return app.publish("feed:1", "tick", {})

    half = Half(app)
    half.open(1)
    half.command(1)
    assert (half.engine.named("reply_with"), decoded(half), half.credits(1)) == ([(1, 1, b"1", None)], [], 1)
    half.engine.takes_replies = False
    half.command(1)
    assert decoded(half) == [ack(None)], "it was submitted before"
    assert half.credits(1) == 1


@pytest.mark.parametrize("returns", ["publishing", "publication", "something else"])
async def test_an_async_handler_may_return_a_publish_or_await_it(returns: str) -> None:
    app = ledger()

    @app.on("write")
    async def write(session: Session) -> Any:
        publishing = app.publish("ledger:1", "line", {})
        if returns == "publishing":
            return publishing
        publication = await publishing
        return publication if returns == "publication" else {"offset": publication.offset if publication else 0}

    half = Half(app)
    half.engine.takes_replies = False
    half.open(1)
    half.command(1)
    await half.settle()
    assert half.texts(1) == []
    half.take((_engine.PUBLISHED, 1, 5, False, b'{"number":5}', None))
    await half.settle()
    assert decoded(half) == [ack({"offset": 5} if returns == "something else" else {"number": 5})]
    assert half.credits(1) == 1


async def test_a_publish_that_an_async_handler_returns_is_answered_by_the_engine_where_it_still_can() -> None:
    app = ledger()

    @app.on("write")
    async def write(session: Session) -> Publishing:
        return app.publish("ledger:1", "line", {})

    half = Half(app)
    half.open(1)
    half.command(1)
    await half.settle()
    assert half.engine.named("reply_with") == [(1, 1, b"1", None)]
    assert (half.texts(1), half.credits(1), half.control.router.busy) == ([], 1, 0)
    assert half.control.broadcaster.waiting == 0


async def test_async_handlers_that_never_wait_share_tasks_and_nothing_else() -> None:
    app, seen = Realtime(), list[tuple[str, str]]()
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")
    tasks = set[Any]()

    @app.on("say")
    async def say(session: Session) -> None:
        seen.append((session.user, whose.get()))
        whose.set(session.user)
        tasks.add(asyncio.current_task())

    half = Half(app)
    users = [f"u{number}" for number in range(1, 51)]
    for conn, user in enumerate(users, 1):
        half.open(conn, user)
    half.take(*((_engine.MESSAGE, conn, 0, b"1", None, 0) for conn in range(1, 51)))
    await half.settle()
    assert seen == [(user, "nobody's") for user in users]
    assert len(tasks) < 5
    assert all(half.credits(conn) == 1 for conn in range(1, 51))


async def test_one_async_handler_that_waits_keeps_nobody_behind_it() -> None:
    app, seen = Realtime(), list[str]()
    gate = asyncio.Event()
    whose: ContextVar[str] = ContextVar("whose", default="nobody's")

    @app.on("say")
    async def say(session: Session) -> str:
        task = asyncio.current_task()
        whose.set(session.user)
        if session.user in {"u1", "u3"}:
            await gate.wait()
        assert asyncio.current_task() is task
        seen.append(session.user)
        return whose.get()

    half = Half(app)
    for conn in range(1, 5):
        half.open(conn, f"u{conn}")
    half.take(*((_engine.MESSAGE, conn, 0, b"1", None, 0) for conn in (1, 1, 2, 3, 4)))
    await half.settle()
    assert seen == ["u2", "u4"]
    gate.set()
    await half.settle()
    assert sorted(seen) == ["u1", "u1", "u2", "u3", "u4"]
    assert [decoded(half, conn) for conn in range(1, 5)] == [
        [ack("u1"), ack("u1")],
        *([ack(f"u{conn}")] for conn in range(2, 5)),
    ]
    assert half.control.router.busy == 0


async def test_a_time_limit_ends_the_handler_that_waits_and_no_other_one() -> None:
    app = Realtime()

    @app.on("say")
    async def say(session: Session) -> str:
        if session.user == "slow":
            await asyncio.Event().wait()
        return "said"

    half = Half(app, QUICK)
    half.open(1, "slow")
    half.open(2, "quick")
    half.take(*((_engine.MESSAGE, conn, 0, b"1", None, 0) for conn in (1, 2, 1)))
    await half.settle()
    assert decoded(half, 2) == [ack("said")]
    for answered in (1, 2):
        half.clock.advance_to(half.clock.now_ms() + 2_000)
        await half.settle()
        assert [frame["data"]["code"] for frame in decoded(half)] == ["timeout"] * answered
    assert half.control.router.busy == 0


async def test_a_handler_that_waits_and_then_returns_a_publish_has_one_time_limit_and_leaves_none() -> None:
    app, gates = ledger(), [asyncio.Event(), asyncio.Event()]

    @app.on("write")
    async def write(session: Session) -> Publishing:
        publishing = app.publish("ledger:1", "line", {})
        await gates[0].wait()
        return publishing

    @app.on("wait")
    async def wait(session: Session) -> str:
        await gates[1].wait()
        return "waited"

    half = Half(app, QUICK)
    half.engine.takes_replies = False
    half.open(1)
    half.take((_engine.MESSAGE, 1, 0, b"1", None, 0), (_engine.MESSAGE, 1, 1, b"2", None, 0))
    await half.settle()
    half.clock.advance_to(half.clock.now_ms() + 500)
    gates[0].set()
    await half.settle()
    half.take((_engine.PUBLISHED, 1, 5, False, b'{"number":5}', None))
    await half.settle()
    # The first command's time is over now; the second one, in the same task, has a limit of its own.
    half.clock.advance_to(half.clock.now_ms() + 1_700)
    gates[1].set()
    await half.settle()
    assert [(frame["type"], frame["id"]) for frame in decoded(half)] == [("ack", 1), ("ack", 2)]


@pytest.mark.parametrize(
    ("code", "message", "more"),
    [
        ("unavailable", "Publish failed: the log cannot store now; try again later", {}),
        (
            "overloaded",
            "Publish failed: too much waits for the log or is held in memory; try again later",
            {"retryAfterMs": 1_000},
        ),
    ],
)
async def test_a_publish_that_fails_answers_with_its_code_and_what_to_do(
    code: str, message: str, more: dict[str, int]
) -> None:
    app = ledger()

    @app.on("write")
    async def write(session: Session) -> Publication | None:
        return await app.publish("ledger:1", "line", {})

    half = Half(app)
    half.open(1)
    half.command(1)
    await half.settle()
    half.take((_engine.PUBLISHED, 1, 0, False, None, code))
    await half.settle()
    (told,) = decoded(half)
    assert told["data"] == {"message": message, "code": code, "retryable": True, **more}


async def test_a_publish_that_was_submitted_before_it_is_returned_is_waited_for() -> None:
    app = ledger()
    early = list[Publishing]()

    @app.on("write")
    def write(session: Session) -> Publishing:
        return early[0]

    half = Half(app)
    half.open(1)
    early.append(app.publish("ledger:1", "line", {}))
    half.engine.takes_replies = False
    half.command(1)
    await half.settle()
    assert half.texts(1) == []
    half.take((_engine.PUBLISHED, 1, 5, False, b'{"number":5}', None))
    await half.settle()
    assert decoded(half) == [ack({"number": 5})]
    half.command(1, id=b"2")
    await half.settle()
    assert decoded(half)[1:] == [ack({"number": 5}, 2)]


class Door:
    """A handler with a state of its own."""

    async def __call__(self, session: Session, vote: Vote) -> str:
        await asyncio.sleep(0)
        return vote.poll


async def test_an_object_may_be_a_handler() -> None:
    app = Realtime()
    app.on("knock")(Door())
    half = Half(app)
    half.open(1)
    half.command(1, data=b'{"poll":"p"}')
    await half.settle()
    assert decoded(half) == [ack("p")]


async def test_a_payload_that_fails_in_its_own_code_is_our_own_failure(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Struct):
        number: int

        def __post_init__(self) -> None:
            raise KeyError(self.number)

    app = Realtime()

    @app.on("odd")
    def odd(session: Session, odd: Odd) -> None:
        pytest.fail("called")

    half = Half(app)
    half.open(1)
    half.command(1, data=b'{"number":1}')
    assert decoded(half) == [error("internal", "Internal error", retryable=True)]
    assert half.credits(1) == 1
    assert "handler of 'odd' failed" in caplog.text


# Raw endpoints.


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_raw_endpoint_takes_messages_as_they_come(is_async: bool) -> None:
    app = Realtime()

    def echo(session: Session, message: str | bytes) -> None:
        if message == "bug":
            raise RuntimeError
        session.send(message)

    async def echo_later(session: Session, message: str | bytes) -> None:
        await asyncio.sleep(0)
        echo(session, message)

    app.raw("/echo", auth=False)(echo_later if is_async else echo)
    half = Half(app)
    half.open(1, "", endpoint=1)
    half.take((_engine.RAW, 1, "text"), (_engine.RAW, 1, "bug"), (_engine.RAW, 1, b"\x00"))
    for _ in range(3):
        await half.settle()
    assert half.engine.named("send_text") == [(1, "text")]
    assert half.engine.named("send_binary") == [(1, b"\x00")]
    assert half.credits(1) == 3


# The end.


async def test_at_the_end_handlers_are_awaited_and_then_cut_off() -> None:
    app = Realtime()

    @app.on("slow")
    async def slow(session: Session, vote: Vote) -> str:
        await asyncio.sleep(vote.choice)
        return "done"

    half = Half(app)
    half.open(1)
    half.open(2)
    half.command(1, data=b'{"poll":"p","choice":0}')
    half.command(2, data=b'{"poll":"p","choice":3600}')
    half.command(2, id=b"2", data=b'{"poll":"p","choice":0}')
    assert await half.control.router.finish(0.05) == 1
    assert decoded(half, 1) == [ack("done")]
    assert decoded(half, 2) == [
        error("draining", "Server is going away", retryable=True),
        error("draining", "Server is going away", retryable=True, id=2),
    ]
    assert half.control.router.busy == 0


async def test_a_command_with_words_for_its_failure_says_them_whatever_the_reason() -> None:
    app = Realtime()

    @app.on("write", failure="Cannot write")
    async def write(session: Session, vote: Vote) -> None:
        if vote.choice == 0:
            raise RuntimeError("a bug")
        if vote.choice == 1:
            raise Refused("not_found", "no such poll")
        await asyncio.sleep(3600)

    half = Half(app, QUICK)
    half.open(1)
    for choice in (0, 1, 2):
        half.command(1, data=b'{"poll":"p","choice":%d}' % choice)
    await half.settle()
    half.clock.advance_to(half.clock.now_ms() + 2_000)
    await half.settle()
    half.command(1, data=b'{"poll":"p","choice":3}')
    half.command(1, data=b'{"poll":"p","choice":4}')
    assert await half.control.router.finish(0.05) == 1
    told = [(frame["data"]["code"], frame["data"]["message"]) for frame in decoded(half, 1)]
    assert told == [
        ("internal", "Cannot write"),
        ("not_found", "no such poll"),
        ("timeout", "Cannot write"),
        ("draining", "Cannot write"),
        ("draining", "Cannot write"),
    ]


async def test_events_of_a_connection_that_is_gone_are_passed_over() -> None:
    app = Realtime()
    app.on("vote")(lambda session: pytest.fail("called"))
    half = Half(app)
    half.command(5)
    half.take(
        (_engine.AUTHORIZE, 5, 0, "poll:1", "subscribe", b"1", b"{}"),
        (_engine.RAW, 5, "x"),
        (_engine.DEFERRED, 5, b"x"),
        (_engine.CLOSE, 5, 1000, [], 0),
    )
    assert half.texts(5) == []
