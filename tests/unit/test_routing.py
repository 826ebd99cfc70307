"""From an event to a handler and back: answers, order, limits, failures. One credit comes back for each command."""

# ruff: noqa: ARG001, ARG002, ARG005 -- what a handler takes is its contract

import asyncio
import time
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from realtime import Grant, Identity, Publication, Publishing, Realtime, Refused, Session, UpgradeRequest, _engine
from realtime.config import HandlerSettings, Settings
from tests.unit.engine import Half

STAMP = "1970-01-01T00:16:40.000Z"
QUICK = Settings(handlers=HandlerSettings(timeout_s=2, slow_ms=5, threads=2))


class Vote(Struct):
    poll: str
    choice: int = 0


def decoded(half: Half, conn: int = 1) -> list[Any]:
    return [msgspec.json.decode(text) for text in half.texts(conn)]


def error(code: str, message: str, *, retryable: bool = False, id: object = 1, **more: object) -> dict[str, object]:
    data = {"message": message, "code": code, "retryable": retryable, **more}
    frame: dict[str, object] = {"type": "error", "data": data, "timestamp": STAMP}
    return frame if id is None else {**frame, "id": id}


def ack(data: object, id: object = 1) -> dict[str, object]:
    return {"type": "ack", "data": data, "timestamp": STAMP, "id": id}


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
    assert "handler of 'vote' failed; session s1 of user 'alice'" in caplog.text
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
    assert "handler of 'slow' took longer than 2 s; session s1" in caplog.text


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
    assert decoded(half) == [ack(None)]
    assert half.engine.named("reply_with") == []


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
    half.open(1)
    half.command(1)
    await half.settle()
    assert half.texts(1) == []
    half.take((_engine.PUBLISHED, 1, 5, False, b'{"number":5}', None))
    await half.settle()
    assert decoded(half) == [ack({"offset": 5} if returns == "something else" else {"number": 5})]
    assert half.credits(1) == 1


async def test_a_publish_that_fails_answers_with_its_code() -> None:
    app = ledger()

    @app.on("write")
    async def write(session: Session) -> Publication | None:
        return await app.publish("ledger:1", "line", {})

    half = Half(app)
    half.open(1)
    half.command(1)
    await half.settle()
    half.take((_engine.PUBLISHED, 1, 0, False, None, "unavailable"))
    await half.settle()
    assert decoded(half) == [error("unavailable", "Publish failed", retryable=True)]


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


# Rights.


RAW = b'{"type":"subscribe","data":{}}'


def carried(conn: int = 1, *, goes_on: bool = False) -> tuple[Any, ...]:
    return (_engine.CARRIED, conn, goes_on)


def asks(channel: str, right: str = "subscribe", conn: int = 1, rule: int = 0) -> tuple[Any, ...]:
    return (_engine.AUTHORIZE, conn, rule, channel, right, b"1", RAW)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_hook_grants_rights_on_one_channel_and_the_command_goes_on(is_async: bool) -> None:
    app, asked = Realtime(), list[tuple[str, str]]()

    def decide(session: Session, poll: str) -> Grant | None:
        asked.append((session.user, poll))
        return Grant("subscribe", "history") if poll == "1" else None

    async def decide_later(session: Session, poll: str) -> Grant | None:
        await asyncio.sleep(0)
        return decide(session, poll)

    app.authorize("poll:{poll}")(decide_later if is_async else decide)
    half = Half(app)
    half.open(1)
    half.take(asks("poll:1"), asks("poll:2"), asks("poll:1", "publish"))
    await half.settle()
    half.take(carried())
    for _ in range(3):
        await half.settle()
    assert asked == [("alice", "1"), ("alice", "2"), ("alice", "1")]
    assert half.engine.named("grant") == [(1, "poll:1", ["subscribe", "history"], RAW)]
    assert decoded(half) == [
        error("forbidden", "Not allowed to subscribe on this channel", channel="poll:2"),
        error("forbidden", "Not allowed to publish on this channel", channel="poll:1"),
    ]
    assert half.credits(1) == 3


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_hook_that_fails_answers_internal_and_one_that_refuses_its_code(is_async: bool) -> None:
    app = Realtime()

    def decide(session: Session, poll: str) -> Grant | None:
        if poll == "closed":
            raise Refused("not_found", "closed")
        raise RuntimeError

    async def decide_later(session: Session, poll: str) -> Grant | None:
        await asyncio.sleep(0)
        return decide(session, poll)

    app.authorize("poll:{poll}")(decide_later if is_async else decide)
    half = Half(app)
    half.open(1)
    half.take(asks("poll:closed"), asks("poll:bug"))
    await half.settle()
    assert decoded(half) == [
        error("not_found", "closed", channel="poll:closed"),
        error("internal", "Internal error", retryable=True, channel="poll:bug"),
    ]
    assert half.credits(1) == 2


async def test_commands_wait_for_a_hook_and_deferred_ones_take_their_turn() -> None:
    app = Realtime()
    gate = asyncio.Event()

    @app.authorize("poll:{poll}")
    async def decide(session: Session, poll: str) -> Grant | None:
        await gate.wait()
        return Grant()

    @app.on("vote")
    def vote(session: Session) -> None:
        return None

    half = Half(app)
    half.open(1)
    half.take(asks("poll:1"), (_engine.DEFERRED, 1, b"{later}"), (_engine.MESSAGE, 1, 0, b"2", None, 0))
    await half.settle()
    half.engine.calls.clear()
    gate.set()
    for commands in (["grant"], ["grant", "resume"], ["grant", "resume", "send_text"]):
        await half.settle()
        assert [call[0] for call in half.engine.calls] == commands
        half.take(carried())
    assert half.control.router.busy == 0


async def test_a_command_that_comes_up_again_keeps_its_place() -> None:
    app, seen = Realtime(), list[str]()

    @app.authorize("conversation:{conversation}")
    def decide(session: Session, conversation: str) -> Grant | None:
        return Grant("publish")

    app.on("guarded", right="publish", channel="conversation:{data.conversation}")(
        lambda session: seen.append("guarded")
    )
    app.on("plain")(lambda session: seen.append("plain"))
    half = Half(app)
    half.open(1)
    half.take(asks("conversation:1", "publish"), (_engine.MESSAGE, 1, 1, b"2", None, 0))
    assert seen == []
    half.take((_engine.MESSAGE, 1, 0, b"1", None, 0), carried(goes_on=True))
    await half.settle()
    assert seen == ["guarded", "plain"]


async def test_a_connection_that_is_gone_carries_nothing_out_and_holds_nothing_up() -> None:
    app, closed = Realtime(), list[int]()
    app.on_close(lambda session, code: closed.append(code))
    half = Half(app)
    half.open(1)
    half.take((_engine.DEFERRED, 1, b"{later}"), (_engine.DEFERRED, 1, b"{later}"))
    half.close(1, 1006)
    await half.settle()
    assert closed == [1006]
    assert half.control.router.busy == 0


async def test_a_deferred_command_that_need_not_wait_is_handed_back_at_once() -> None:
    half = Half(Realtime())
    half.open(1)
    half.take((_engine.DEFERRED, 1, b"{later}"))
    assert half.engine.named("resume") == [(1, b"{later}")]


# Who comes in.


def knocks(conn: int = 9, headers: list[tuple[str, str]] | None = None, query: str = "") -> tuple[Any, ...]:
    return (_engine.UPGRADE, conn, 0, "/ws", query, headers or [], "127.0.0.1:1")


async def test_a_hook_says_who_a_caller_is() -> None:
    app, asked = Realtime(), list[UpgradeRequest]()

    @app.authenticate
    async def authenticate(request: UpgradeRequest) -> Identity | None:
        asked.append(request)
        return Identity("ann", grants={"poll:{x}": ["subscribe"]}, expires_at=2.5)

    half = Half(app)
    half.take(knocks(headers=[("cookie", "a"), ("x", "1"), ("x", "2")], query="a=%20b&a=c&d="))
    await half.settle()
    assert asked == [UpgradeRequest("/ws", {"a": " b", "d": ""}, {"cookie": "a", "x": "1, 2"}, "127.0.0.1:1")]
    assert half.engine.named("accept") == [(9, "ann", b'{"poll:*":["subscribe"]}', 2500)]
    assert half.engine.submitted > 1


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (None, 401, "Unauthorized"),
        (Identity(""), 401, "Unauthorized"),
        (Refused("unauthorized", "x"), 401, "Unauthorized"),
        (Refused("forbidden", "x"), 403, "Forbidden"),
        (Refused("rate_limited", "x"), 429, "Too Many Requests"),
        (Refused("unavailable", "x"), 503, "Service Unavailable"),
        (RuntimeError("x"), 503, "Service Unavailable"),
        (Identity("ann", grants={"a": ["fly"]}), 503, "Service Unavailable"),
    ],
)
async def test_who_is_not_let_in_is_told_by_a_status(answer: Any, status: int, body: str) -> None:
    app = Realtime()

    @app.authenticate
    def authenticate(request: UpgradeRequest) -> Identity | None:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    half = Half(app)
    half.take(knocks())
    await half.settle()
    assert half.engine.named("reject") == [(9, status, body)]
    assert half.engine.named("accept") == []


async def test_a_hook_that_takes_too_long_is_given_up() -> None:
    app = Realtime()

    @app.authenticate
    async def authenticate(request: UpgradeRequest) -> Identity | None:
        await asyncio.Event().wait()
        return None

    half = Half(app)
    half.take(knocks())
    await half.settle()
    half.clock.advance_to(half.clock.now_ms() + 10_000)
    await half.settle()
    assert half.engine.named("reject") == [(9, 503, "Service Unavailable")]


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


# Hooks.


async def test_commands_wait_until_on_open_is_through_and_on_close_comes_after_them() -> None:
    app, seen = Realtime(), list[str]()
    gate = asyncio.Event()

    @app.on_open
    async def opened(session: Session) -> None:
        await gate.wait()
        seen.append("opened")

    @app.on("vote")
    def vote(session: Session) -> None:
        seen.append("voted")

    @app.on_close
    def closed(session: Session, code: int) -> None:
        seen.append(f"closed {code}")

    half = Half(app)
    half.open(1)
    half.command(1)
    half.close(1, 1006)
    await half.settle()
    assert seen == []
    assert half.app.connections.by_conn(1) is None
    gate.set()
    await half.settle()
    assert seen == ["opened", "voted", "closed 1006"]


async def test_every_hook_runs_though_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    app, seen = Realtime(), list[str]()

    @app.on_open
    def first(session: Session) -> None:
        raise RuntimeError

    @app.on_open
    async def second(session: Session) -> None:
        await asyncio.sleep(0)
        seen.append("second")
        raise RuntimeError

    @app.on_open
    def third(session: Session) -> None:
        seen.append("third")

    half = Half(app)
    half.open(1)
    await half.settle()
    assert seen == ["second", "third"]
    assert caplog.text.count("failed; session s1 of user 'alice'") == 2


async def test_drain_hooks_are_awaited() -> None:
    app, seen = Realtime(), list[str]()

    @app.on_drain
    async def draining() -> None:
        await asyncio.sleep(0)
        seen.append("draining")

    half = Half(app)
    await half.control.router.draining()
    assert seen == ["draining"]


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


async def test_events_of_a_connection_that_is_gone_are_passed_over() -> None:
    app = Realtime()
    app.on("vote")(lambda session: pytest.fail("called"))
    half = Half(app)
    half.command(5)
    half.take(asks("poll:1", conn=5), (_engine.RAW, 5, "x"), (_engine.DEFERRED, 5, b"x"), (_engine.CLOSE, 5, 1000, []))
    assert half.texts(5) == []
