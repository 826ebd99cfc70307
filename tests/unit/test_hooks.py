"""Hooks: who comes in, who may do what on a channel, and what is told of comings, goings and the drain."""

# ruff: noqa: ARG001, ARG005 -- what a hook takes is its contract

import asyncio
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from msgspec import Meta

from realtime import Grant, Identity, Realtime, Refused, Session, UpgradeRequest, _engine
from tests.unit.engine import Half, decoded, error, lines

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


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, {"7": 7, "-1": -1, "0": 0}, ["x", "1.0", "1e3", "01", "-0", "9" * 30 + "x"]),
        (UUID, {str(UUID(int=5)): UUID(int=5)}, ["5", "x"]),
        (Literal["a", "b"], {"a": "a"}, ["c", "A"]),
        (Literal[1, 2], {"2": 2}, ["3", "2.0"]),
        (Colour, {"red": Colour.RED}, ["RED", "blue"]),
        (Annotated[int, Meta(ge=1)], {"1": 1}, ["0"]),
        (bool, {"true": True}, ["yes"]),
        (str, {"7": "7", "null": "null"}, []),
        (Any, {"7": "7"}, []),
    ],
)
async def test_the_parts_of_a_channel_are_of_the_hooks_types_and_what_is_not_is_forbidden(
    annotation: Any, good: dict[str, Any], bad: list[str]
) -> None:
    app, seen = Realtime(), list[Any]()

    def decide(session: Session, poll: Any, page: Any) -> Grant:
        seen.append(poll)
        assert page == "p"
        return Grant()

    decide.__annotations__ = {"session": "NotThere", "poll": annotation}
    app.authorize("poll:{poll}:{page}")(decide)
    half = Half(app)
    half.open(1)
    for text in bad:
        half.take(asks(f"poll:{text}:p"))
    assert seen == []
    assert decoded(half) == [
        error("forbidden", "Not allowed to subscribe on this channel", channel=f"poll:{text}:p") for text in bad
    ]
    assert half.credits(1) == len(bad)
    for text in good:
        half.take(asks(f"poll:{text}:p"), carried())
        await half.settle()
    assert [(type(value), value) for value in seen] == [(type(value), value) for value in good.values()]


@pytest.mark.parametrize("annotation", [bytes, list[int], dict[str, int], Session, "NotThere", int | Session])
def test_a_hooks_argument_that_a_text_cannot_be_is_refused_where_it_is_registered(annotation: Any) -> None:
    def decide(session: Session, poll: Any) -> None:
        return None

    decide.__annotations__["poll"] = annotation
    with pytest.raises(TypeError, match="poll"):
        Realtime().authorize("poll:{poll}")(decide)


async def test_what_is_forbidden_is_said_in_the_words_of_the_engine() -> None:
    app = Realtime()
    app.authorize("poll:{poll}")(lambda session, poll: None)
    half = Half(app)
    half.open(1)
    half.take(*(asks("poll:1", right) for right in ("history", "presence")))
    assert decoded(half) == [
        error("forbidden", f"Not allowed to {deed} on this channel", channel="poll:1")
        for deed in ("read the history", "see the presence")
    ]


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
        return Identity("ann", grants={"poll:{x}": ["subscribe"]}, expires_at=2000.5, issued_at_s=7, token_id="t1")

    half = Half(app)
    half.take(knocks(headers=[("cookie", "a"), ("x", "1"), ("x", "2")], query="a=%20b&a=c&d="))
    await half.settle()
    assert asked == [UpgradeRequest("/ws", {"a": " b", "d": ""}, {"cookie": "a", "x": "1, 2"}, "127.0.0.1:1")]
    assert half.engine.named("accept") == [(9, "ann", b'{"poll:*":["subscribe"]}', 2_000_500, 7, "t1")]
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


# Comings, goings and the drain.


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
    assert "\n".join(lines(caplog)).count('failed session="s1" user="alice"') == 2


async def test_drain_hooks_are_awaited() -> None:
    app, seen = Realtime(), list[str]()

    @app.on_drain
    async def draining() -> None:
        await asyncio.sleep(0)
        seen.append("draining")

    half = Half(app)
    await half.control.router.draining()
    assert seen == ["draining"]
