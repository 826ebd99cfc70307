"""What an author registers, what it compiles to, and what is refused at once."""

# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract
# mypy: disable-error-code="unused-awaitable"

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import Struct

from realtime import NotRunning, Realtime, Session, UpgradeRequest
from realtime.base.config import Settings
from tests.unit.engine import Half


class Snake(Struct):
    poll_id: str


@dataclass
class SnakeResult:
    poll_id: str


def nothing(session: Session) -> None:
    """Do nothing."""


def test_an_app_compiles_to_rules_in_the_order_of_registering() -> None:
    app = Realtime()
    app.on("a")(nothing)
    app.on("b", thread=True)(nothing)
    app.policy("x:*", durable=True, history=5, overflow="close")
    app.allow("x:{session.user}", "subscribe")
    app.allow("y:**")
    app.raw("/open", auth=False)(lambda session, message: None)
    app.raw("/closed")(lambda session, message: None)
    rules = app.compile(Settings())
    assert [(route.type, route.runs) for route in rules.routes] == [("a", "inline"), ("b", "thread")]
    assert [(e.path, e.mode, e.auth) for e in rules.endpoints] == [
        ("/ws", "json", "token"),
        ("/open", "raw", "none"),
        ("/closed", "raw", "token"),
    ]
    assert rules.open_grants == (
        ("x:{session.user}", ("subscribe",)),
        ("y:**", ("subscribe", "publish", "presence", "history")),
        ("user:{session.user}", ("subscribe", "history")),
    )


def test_an_authenticate_hook_takes_the_place_of_tokens_everywhere() -> None:
    app = Realtime(path="/edge")
    app.raw("/closed")(lambda session, message: None)
    app.raw("/open", auth=False)(lambda session, message: None)

    @app.authenticate
    def authenticate(request: UpgradeRequest) -> None:
        return None

    rules = app.compile(Settings())
    assert [(e.path, e.auth) for e in rules.endpoints] == [("/edge", "hook"), ("/closed", "hook"), ("/open", "none")]
    with pytest.raises(ValueError, match="authenticate is taken"):
        app.authenticate(authenticate)


def test_a_relay_is_data() -> None:
    app = Realtime()
    app.relay(
        "cursor", channel="doc:{data.doc}", event="cursor_moved", data={"x": "{data.x}"}, latest_by="{session.user}"
    )
    app.relay("start", channel="a", event="b", data={}, ends_after_s=0.5, undo={"on": False})
    app.relay("stop", channel="a", event="b", data={}, ends="start")
    cursor, start, stop = app.compile(Settings()).relays
    assert cursor == {
        "type": "cursor",
        "channel": "doc:{data.doc}",
        "event": "cursor_moved",
        "data": {"x": "{data.x}"},
        "latest_by": "{session.user}",
        "ends_after_ms": None,
        "undo": None,
        "ends": None,
    }
    assert (start["ends_after_ms"], start["undo"], stop["ends"]) == (500, {"on": False}, "start")


def test_a_module_registers_at_each_compile_and_leaves_the_app_as_it_was() -> None:
    class Part:
        def register(self, app: Realtime, settings: Settings) -> None:
            app.on("part")(nothing)
            app.policy(f"{settings.data_dir}:*", durable=True)

    app = Realtime()
    app.include(Part())
    for _ in range(2):
        rules = app.compile(Settings(data_dir="somewhere"))
        assert [route.type for route in rules.routes] == ["part"]
        assert [policy.pattern.text for policy in rules.policies] == ["_realtime:**", "somewhere:*", "file:*"]
    app.on("part")(nothing)
    with pytest.raises(ValueError, match="'part' has a handler or a relay already"):
        app.compile(Settings())


@pytest.mark.parametrize("type", ["subscribe", "unsubscribe", "ping", "publish", "history"])
def test_the_engines_commands_cannot_be_taken(type: str) -> None:
    with pytest.raises(ValueError, match="carried out by the engine; use another type"):
        Realtime().on(type)(nothing)
    with pytest.raises(ValueError, match="carried out by the engine; use another type"):
        Realtime().relay(type, channel="a", event="b", data={})


def test_a_type_has_one_handler() -> None:
    app = Realtime()
    app.relay("a", channel="a", event="b", data={})
    with pytest.raises(ValueError, match="'a' has a handler or a relay already; use another type"):
        app.on("a")(nothing)


async def coroutine(session: Session) -> None:
    """Do nothing, later."""


def snake(session: Session, data: Snake) -> None:
    """Take what cannot be on the wire."""


def snake_result(session: Session) -> SnakeResult:
    """Return what cannot be on the wire."""
    return SnakeResult("a")


@pytest.mark.parametrize(
    ("handler", "thread", "message"),
    [
        (lambda: None, False, r"takes 0 arguments; use \(session\) or \(session, payload\)"),
        (lambda a, b, c: None, False, "takes 3 arguments"),
        (coroutine, True, "is async and thread=True; use one of the two"),
        (snake, False, 'add rename="camel"'),
        (snake_result, False, "make it a Struct"),
    ],
)
def test_a_handler_that_cannot_be_used_is_refused_when_it_is_registered(
    handler: Any, thread: bool, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        Realtime().on("a", thread=thread)(handler)


def test_a_hook_of_rights_takes_the_named_parts() -> None:
    app = Realtime()
    with pytest.raises(TypeError, match=r"takes \['id'\]; use the session and \['poll'\]"):
        app.authorize("poll:{poll}")(lambda session, id: None)
    with pytest.raises(ValueError, match="is not a pattern"):
        app.authorize("poll:{poll")
    app.authorize("doc:{owner}:{page}")(lambda session, page, owner: None)


def test_a_right_and_its_channel_go_together() -> None:
    app = Realtime()
    with pytest.raises(ValueError, match="right and channel go together"):
        app.on("a", right="publish")
    with pytest.raises(ValueError, match="'fly' is not a right"):
        app.on("a", right="fly", channel="a")
    app.on("a", right="publish", channel="x:{data.x}", failure="no")(nothing)
    assert app.compile(Settings()).routes[0].guard == ("publish", "x:{data.x}")


@pytest.mark.parametrize("path", ["live", "", "/live?a=1", "/live#a", "/two words", "/é"])
def test_the_path_of_an_app_must_be_one(path: str) -> None:
    with pytest.raises(ValueError, match="is no path of an endpoint; write one that begins with /"):
        Realtime(path=path)


@pytest.mark.parametrize("path", ["echo", "/ws", "/echo?a=1"])
def test_a_raw_path_must_be_free_and_a_path(path: str) -> None:
    with pytest.raises(ValueError, match="is taken or no path"):
        Realtime().raw(path)


def test_hooks_take_no_more_than_they_are_given() -> None:
    app = Realtime()
    app.on_close(lambda session: None)
    app.on_close(lambda session, code: None)
    app.on_drain(lambda: None)
    with pytest.raises(TypeError, match="takes 1 arguments; it is given 0"):
        app.on_drain(lambda session: None)


@pytest.mark.parametrize("pattern", ["a b", "a:", "{session.name}"])
def test_rights_for_everybody_need_a_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        Realtime().allow(pattern)


def test_an_app_that_is_not_served_says_so() -> None:
    app = Realtime()
    with pytest.raises(NotRunning, match="publish from a handler, or inside of its lifespan"):
        app.publish("a", "b", {})
    for name in ("connections", "broadcaster", "presence", "clock"):
        with pytest.raises(NotRunning):
            getattr(app, name)


async def test_an_app_is_served_once_at_a_time() -> None:
    app = Realtime()
    half = Half(app)
    with pytest.raises(RuntimeError, match="is served already"):
        app.running(half.control)
    app.running(None)
    app.running(half.control)


async def test_what_the_lifespan_yields_is_found_in_the_state() -> None:
    seen = list[str]()

    @contextlib.asynccontextmanager
    async def lifespan(app: Realtime) -> AsyncIterator[dict[str, object]]:
        app.state.direct = 1
        yield {"database": "open"}
        seen.append("closed")

    app = Realtime(lifespan=lifespan)
    async with app.resources():
        assert app.state.database == "open"
        assert app.state.direct == 1
        assert seen == []
    assert seen == ["closed"]


@pytest.mark.parametrize("path", ["", "shop", "/shop/", "//", "/a//b"])
def test_a_mount_needs_a_path(path: str) -> None:
    with pytest.raises(ValueError, match="no path to mount at"):
        Realtime().mount(path, print)


def test_a_path_has_one_mounted_app_and_it_can_be_called() -> None:
    app = Realtime()
    app.mount("/shop", print)
    with pytest.raises(ValueError, match="has an app already"):
        app.mount("/shop", print)
    not_an_app: Any = "module:app"
    with pytest.raises(TypeError, match="is no ASGI app"):
        app.mount("/", not_an_app)
    assert [mount.path for mount in app.compile(Settings()).mounts] == ["/shop"]


async def test_the_http_api_of_an_app_that_does_not_run_says_so() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await Realtime().asgi({"type": "http", "path": "/health"}, None, send)
    assert sent[0]["status"] == 503
    assert b"give the host lifespan=app.lifespan" in sent[1]["body"]
    await Realtime().asgi({"type": "websocket", "path": "/ws"}, None, send)
    assert sent[2] == {"type": "websocket.close", "code": 1008}
