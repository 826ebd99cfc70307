"""The composition root: options, presence, batches, and the order of the drain."""

# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec.structs import replace
from websockets.sync.client import connect

from realtime import Realtime, Session, _engine
from realtime.base.config import (
    ApiSettings,
    AuthSettings,
    ConfigError,
    DrainSettings,
    Keys,
    LimitSettings,
    PresenceSettings,
    ServerSettings,
    Settings,
)
from realtime.control import control
from realtime.control.control import BATCH_MAX
from realtime.conversations import Conversations
from realtime.identity.auth import mint_token
from realtime.serving.options import engine_options
from realtime.serving.server import Server, serve
from tests.unit.engine import Half, RecordingEngine

SECRET = "s" * 32
OPENED = (_engine.OPEN, 1, "ann", 0, False, "", None, None, None, None, None)


def test_one_port_needs_the_engines_own_sockets() -> None:
    both = Settings(server=ServerSettings(port=4000), api=ApiSettings(port=4000, host="localhost"))
    assert both.one_port
    for other in (
        Settings(server=ServerSettings(port=0), api=ApiSettings(port=0)),
        Settings(server=ServerSettings(port=4000, host="0.0.0.0"), api=ApiSettings(port=4000)),  # noqa: S104
        Settings(server=ServerSettings(port=4000), api=ApiSettings(port=4000, enabled=False)),
    ):
        assert not other.one_port
    app = Realtime()
    engine_options(app.compile(both), both, Keys((SECRET,), generated=True))
    over = replace(both, engine=replace(both.engine, transport="socketify"))
    with pytest.raises(ConfigError, match=r"api\.port = server\.port = 4000 needs engine\.transport = native"):
        engine_options(app.compile(over), over, Keys((SECRET,), generated=True))


def test_the_options_are_the_rules_and_the_configuration_as_plain_data() -> None:
    app = Realtime()
    app.include(Conversations())
    app.authorize("poll:{poll}")(lambda session, poll: None)
    for pattern in ("poll:{poll}", "board:*", "poll:*"):
        app.listen(pattern)(lambda event: None)
    settings = Settings(
        data_dir="kept",
        server=ServerSettings(host="::1", port=0, shards=2),
        auth=AuthSettings(audience="chat", origins=("https://a.example",)),
        limits=LimitSettings(enabled=False),
    )
    options = json.loads(engine_options(app.compile(settings), settings, Keys((SECRET,), generated=True)))
    assert set(options) == {
        *(
            "host",
            "port",
            "shards",
            "flush",
            "compression",
            "data_dir",
            "limits",
            "proxies",
            "token",
            "origins",
            "endpoints",
            "routes",
        ),
        *("tell_tokens", "descriptors_kept"),
        *("relays", "policies", "open_grants", "authorize", "listen", "retention", "reserved_events", "dedupe_s"),
        *("idle_s", "revocations_bytes_max", "free_bytes_min"),
    }
    assert (options["host"], options["port"], options["shards"], options["data_dir"]) == ("::1", 0, 2, "kept")
    assert options["token"] == {
        "keys": [{"algorithm": "HS256", "key": SECRET}],
        "audience": "chat",
        "issuer": None,
        "user_claim": "sub",
        "require_exp": True,
        "leeway_s": 0,
        "clock_skew_s": 5,
        "expiry": "close",
        "ask": False,
    }
    endpoint = {"path": "/ws", "mode": "json", "auth": "token", "compression": True, "subprotocols": []}
    assert options["endpoints"] == [endpoint]
    assert options["routes"] == [
        {
            "type": "send_message",
            "right": "publish",
            "channel": "conversation:{data.conversationId}",
            "failure": "Failed to send message",
            "missing": "ConversationId and content are required",
        }
    ]
    assert options["policies"] == [
        {
            "pattern": "_realtime:**",
            "durable": True,
            "history": 0,
            "overflow": "drop_oldest",
            "keep_s": 30 * 86_400,
            "keep_events": None,
            "retain_latest": 0,
            "retain_latest_s": 3600,
        },
        {
            "pattern": "conversation:**",
            "durable": True,
            "history": 256,
            "overflow": "drop_oldest",
            "keep_s": None,
            "keep_events": None,
            "retain_latest": 0,
            "retain_latest_s": 3600,
        },
        {
            "pattern": "file:*",
            "durable": False,
            "history": 0,
            "overflow": "drop_oldest",
            "keep_s": None,
            "keep_events": None,
            "retain_latest": 1,
            "retain_latest_s": 86_400,
        },
    ]
    assert options["authorize"] == ["poll:*"]
    assert options["listen"] == ["poll:*", "board:*"]
    assert options["limits"]["enabled"] is False
    assert "new_message" in options["reserved_events"]


def test_the_limits_have_the_engines_names() -> None:
    source = (Path(__file__).parents[2] / "rust/hub/src/options.rs").read_text("utf-8")
    body = source.partition("pub struct Limits {")[2].partition("\n}")[0]
    engine = {line.split()[1].rstrip(":") for line in body.splitlines() if line.strip().startswith("pub ")}
    # The HTTP port has limits of its own.
    front = (Path(__file__).parents[2] / "rust/front/src/options.rs").read_text("utf-8")
    ours = {field.name for field in msgspec.structs.fields(LimitSettings)}
    assert engine <= ours
    assert all(f"pub {name}:" in front for name in ours - engine)


def test_without_secrets_there_is_no_rule_of_tokens_and_in_memory_no_directory() -> None:
    settings = Settings()
    options = json.loads(
        engine_options(Realtime().compile(settings), settings, Keys((), generated=False), in_memory=True)
    )
    assert options["token"] is None
    assert options["data_dir"] is None


# Presence and sessions.


def told(half: Half) -> list[tuple[str, str]]:
    frames = [msgspec.json.decode(call[0]) for call in half.engine.named("send_all")]
    return [(frame["data"]["userId"], frame["data"]["status"]) for frame in frames]


async def test_presence_is_told_when_users_come_and_go() -> None:
    half = Half(Realtime())
    half.open(1, "ann")
    half.open(2, "ann")
    half.close(1)
    assert told(half) == [("ann", "online")]
    half.close(2, code=1006)
    half.clock.advance_to(half.clock.now_ms() + 4_999)
    assert told(half) == [("ann", "online")]
    half.clock.advance_to(half.clock.now_ms() + 1)
    assert told(half) == [("ann", "online"), ("ann", "offline")]
    assert half.clock.next_ms() is None
    await half.settle()
    assert half.engine.submitted > 4


async def test_the_time_of_each_grace_is_kept() -> None:
    half = Half(Realtime())
    for conn, user in enumerate(("ann", "bob"), 1):
        half.open(conn, user)
    half.close(1, code=1006)
    half.clock.advance_to(half.clock.now_ms() + 3_000)
    half.close(2, code=1006)
    half.clock.advance_to(half.clock.now_ms() + 2_000)
    assert told(half)[2:] == [("ann", "offline")]
    half.clock.advance_to(half.clock.now_ms() + 3_000)
    assert told(half)[3:] == [("bob", "offline")]


async def test_the_engine_is_told_who_is_told_of_whom() -> None:
    half = Half(Realtime(), Settings(presence=PresenceSettings(everyone_max=1)))
    half.control.start()
    half.open(1, "ann")
    # The change that clients who come later are told with the mode, just before the event.
    assert [call[0] for call in half.engine.calls][:3] == ["presence_mode", "presence_change", "send_all"]
    half.open(2, "bob")
    assert told(half) == [("ann", "online")]
    assert half.engine.named("presence_change") == [("ann", True)]
    assert half.engine.named("presence_mode") == [([],), (None,)]
    half.clock.advance_to(half.clock.now_ms() + 5000)
    assert half.engine.named("presence_mode")[2:] == [(None,)]
    assert half.engine.named("send_many")[0][0] == [2]
    half.close(2, channels=["a"])
    assert half.engine.named("publish_union")[0][0] == ["a"]


async def test_a_raw_session_says_nothing_of_presence() -> None:
    app = Realtime()
    app.raw("/echo")(lambda session, message: None)
    half = Half(app)
    half.open(1, "ann", endpoint=1)
    half.close(1)
    assert half.engine.calls == []


async def test_a_batch_is_bounded_and_submitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_HOLD_MAX_S", 60)
    app, seen = Realtime(), list[int]()
    app.on("count")(lambda session: seen.append(1))
    half = Half(app)
    half.open(1)
    # Had the open taken over 2 ms on a busy machine, the next batch would be a small one.
    half.control._most = BATCH_MAX
    submitted = half.engine.submitted
    half.engine.events.extend((_engine.MESSAGE, 1, 0, None, None, 0) for _ in range(BATCH_MAX + 1))
    assert half.control.turn() == BATCH_MAX
    assert (len(seen), half.engine.submitted) == (BATCH_MAX, submitted + 1)
    assert half.control.turn() == 1


async def test_a_batch_of_dear_events_is_put_down_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_HOLD_MAX_S", 0)
    app, seen = Realtime(), list[int]()

    @app.on("plain")
    def plain(session: Session, number: int) -> None:
        seen.append(number)

    @app.on("later")
    async def later(session: Session, number: int) -> None:
        seen.append(number)

    half = Half(app)
    half.open(1)
    half.open(2)
    half.engine.events.extend((_engine.MESSAGE, 1, 0, None, b"%d" % number, 0) for number in range(3))
    half.engine.events.append((_engine.MESSAGE, 2, 1, None, b"3", 0))
    assert (half.control.turn(), seen, half.control.has_left) == (1, [0], True)
    half.engine.events.append((_engine.MESSAGE, 1, 0, None, b"4", 0))
    while len(seen) < 5:
        # The loop goes on with the rest by itself; what the engine has next comes behind it.
        await asyncio.sleep(0)
        if not half.control.has_left:
            half.control.turn()
    assert seen[:3] == [0, 1, 2]
    assert sorted(seen[3:]) == [3, 4]


async def test_an_event_that_fails_on_our_side_does_not_stop_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    app, seen = Realtime(), list[int]()
    app.on("count")(lambda session: seen.append(1))
    half = Half(app)
    half.open(1)
    half.take((_engine.MESSAGE, 1), (99, "what a later engine may tell"), (_engine.MESSAGE, 1, 0, None, None, 0))
    assert seen == [1]
    assert "was lost to a bug of the server's" in caplog.text


# The server over an engine that notes what it is told.


class Socketless(RecordingEngine):
    """Stands for `_engine.Engine`."""

    port = 4711
    made: ClassVar["list[Socketless]"] = []

    def __init__(self, options: bytes) -> None:
        super().__init__()
        self.options = options
        self.made.append(self)
        self._readable, self._written = os.pipe()

    def history(self, *arguments: Any) -> int:
        """Answer that there is none: a server reads what was revoked before it lets anybody in."""
        ticket = super().history(*arguments)
        self.events.append((_engine.HISTORY, ticket, [], 0, "e", None))
        self.be_readable()
        return ticket

    def drain(self, most: int) -> list[tuple[Any, ...]]:
        batch = super().drain(most)
        if any(event[0] == _engine.HISTORY for event in batch):
            self.be_unreadable()
        return batch

    def fileno(self) -> int:
        return self._readable

    def be_readable(self) -> None:
        os.write(self._written, b"1")

    def be_unreadable(self) -> None:
        os.read(self._readable, 1)

    def flush_log(self, _timeout_ms: int) -> bool:
        self.calls.append(("flush_log",))
        return True

    def stop(self, _timeout_ms: int) -> None:
        self.calls.append(("stop",))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Socketless]:
    monkeypatch.setattr("realtime.serving.transports.Engine", Socketless)
    Socketless.made.clear()
    return Socketless.made


QUICK = Settings(auth=AuthSettings(secrets=(SECRET,)), drain=DrainSettings(grace_s=0.5))


async def test_the_drain_loses_nothing_by_its_order(engines: list[Socketless]) -> None:
    app = Realtime()
    order = list[str]()

    @app.on("slow")
    async def slow(session: Session) -> str:
        await asyncio.sleep(0.01)
        return "done"

    @app.on_drain
    def draining() -> None:
        order.append("draining")

    async with Server(app, QUICK) as server:
        assert server.port == 4711
        engine = engines[0]
        engine.events = [OPENED, (_engine.MESSAGE, 1, 0, b"1", None, 0)]
        server.control.turn()
        engine.calls.clear()
        engine.events = [(_engine.MESSAGE, 1, 0, b"2", None, 0)]
    names = [call[0] for call in engine.calls]
    assert order == ["draining"]
    assert names[:2] == ["stop_accepting", "announce_drain"]
    assert names[2:] == ["send_text", "stop_reading", "send_text", "flush_log", "close_all", "stop"]
    assert engine.named("close_all") == [(1012, "server restarting")]
    assert not hasattr(app, "_control") or app._control is None


async def test_the_last_answers_are_delivered_before_the_close(engines: list[Socketless]) -> None:
    async with Server(Realtime(), QUICK) as server:
        engines[0].events = [OPENED]
        server.control.turn()
        engines[0].backlogs = [900, 500, 100]
    assert engines[0].backlogs == []
    assert engines[0].named("close_all") == [(1012, "server restarting")]


async def test_a_reader_that_stands_still_does_not_hold_the_end_up_beyond_the_grace(engines: list[Socketless]) -> None:
    loop = asyncio.get_running_loop()
    async with Server(Realtime(), QUICK) as server:
        engines[0].events = [OPENED]
        server.control.turn()
        engines[0].backlogs = [900] * 1000
        began_s = loop.time()
    assert loop.time() - began_s < 1


async def test_handlers_that_do_not_end_are_cut_off_within_the_grace(engines: list[Socketless]) -> None:
    app = Realtime()

    @app.on("stuck")
    async def stuck(session: Session) -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with Server(app, QUICK) as server:
        engines[0].events = [OPENED, (_engine.MESSAGE, 1, 0, b"1", None, 0)]
        server.control.turn()
        began_s = loop.time()
    assert loop.time() - began_s < 1
    assert b'"draining"' in engines[0].named("send_text")[0][1]


async def test_a_signal_ends_the_server_with_code_0_and_a_fatal_event_with_1(engines: list[Socketless]) -> None:
    served = asyncio.ensure_future(serve(Realtime(), QUICK, ready=lambda server: signal.raise_signal(signal.SIGTERM)))
    assert await served == 0

    def fail(server: Server) -> None:
        engines[1].events = [(_engine.FATAL, "the log cannot be written: disk full; free some")]
        server.control.turn()

    assert await serve(Realtime(), QUICK, ready=fail) == 1


async def test_what_the_engine_warns_of_is_a_line_of_the_log(
    engines: list[Socketless], caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(Realtime(), QUICK) as server:
        engines[0].events = [(_engine.WARNED, "io_uring of shard 1 failed: no memory; its sends go one by one now")]
        server.control.turn()
    told = [record for record in caplog.records if "io_uring of shard 1" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]


async def test_mounts_are_left_once_everybody_was_told_and_before_reading_stops(engines: list[Socketless]) -> None:
    order = list[Any]()

    @contextlib.asynccontextmanager
    async def mount(server: Server) -> AsyncIterator[None]:
        order.append(server.port)
        yield
        order.append([call[0] for call in engines[0].calls])

    async with Server(Realtime(), QUICK, [mount]):
        pass
    assert order == [4711, ["start", "history", "presence_mode", "start_accepting", "stop_accepting", "announce_drain"]]


async def test_an_app_is_served_inside_of_another_by_its_lifespan(engines: list[Socketless]) -> None:
    app = Realtime(settings=QUICK)
    async with app.lifespan(object()):
        assert [call[0] for call in engines[0].calls] == ["start", "history", "presence_mode", "start_accepting"]
        await app.publish("feed:1", "tick", {})
    assert engines[0].named("stop") == [()]


async def test_an_app_inside_of_another_ends_it_where_the_engine_cannot_go_on(engines: list[Socketless]) -> None:
    app, ended = Realtime(settings=QUICK), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with app.lifespan():
        engines[0].events = [(_engine.FATAL, "the log cannot be written")]
        app._running.turn()
        await asyncio.wait_for(ended.wait(), 5)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_what_was_opened_is_closed_where_the_start_fails(engines: list[Socketless]) -> None:
    closed = list[str]()

    @contextlib.asynccontextmanager
    async def lifespan(app: Realtime) -> AsyncIterator[None]:
        try:
            yield
        finally:
            closed.append("database")

    @contextlib.asynccontextmanager
    async def mount(server: Server) -> AsyncIterator[None]:
        if server.port:
            raise OSError("port in use")
        yield

    with pytest.raises(OSError, match="port in use"):
        async with Server(Realtime(lifespan=lifespan), QUICK, [mount]):
            pass
    assert closed == ["database"]
    assert [call[0] for call in engines[0].calls][-1] == "stop"


async def test_events_wait_while_the_engine_is_behind_with_what_it_was_told(engines: list[Socketless]) -> None:
    app, seen = Realtime(), list[int]()
    app.on("count")(lambda session: seen.append(1))
    async with Server(app, QUICK) as server:
        engine = engines[0]
        engine.events = [OPENED]
        server.control.turn()
        engine.behind = True
        engine.events = [(_engine.MESSAGE, 1, 0, None, None, 0)]
        engine.be_readable()
        await asyncio.sleep(0.02)
        assert seen == []
        engine.behind = False
        await asyncio.sleep(0.02)
        assert seen == [1]
        engine.be_unreadable()


async def test_a_loop_that_does_not_keep_up_is_not_ready(tmp_path: Path) -> None:
    app = Realtime()
    taken: list[Session] = []

    @app.on("note")
    def note(session: Session) -> None:
        taken.append(session)

    settings = Settings(
        data_dir=str(tmp_path),
        server=ServerSettings(port=0),
        auth=AuthSettings(secrets=(SECRET,)),
        limits=LimitSettings(events_waiting_max=10),
    )
    async with Server(app, settings) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?token={mint_token(SECRET, 'ann')}"
        with await asyncio.to_thread(connect, url, proxy=None) as socket:
            assert server.readiness() == []
            # From here on this test holds the loop, as a handler may.
            for _ in range(20):
                socket.send('{"type":"note"}')
            until_s = time.monotonic() + 30
            while not (reasons := server.readiness()) and time.monotonic() < until_s:
                time.sleep(0.01)  # noqa: ASYNC251 -- on purpose
            assert reasons[0].endswith("nothing is read from limits.events_waiting_max = 10 on")
            while len(taken) < 20 and time.monotonic() < until_s:  # noqa: ASYNC110 -- what it waits for is no task
                await asyncio.sleep(0.01)
            assert server.readiness() == []
    assert server.readiness() == ["draining"]


async def test_keys_that_were_never_fetched_are_why_a_server_is_not_ready(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=str(tmp_path),
        server=ServerSettings(port=0),
        auth=AuthSettings(algorithms=("RS256",), jwks_url="http://127.0.0.1:9/keys"),
    )
    server = Server(Realtime(), settings)
    assert server.readiness() == ["starting"]
    async with server:
        assert [reason.partition(":")[0] for reason in server.readiness()] == ["auth.jwks_url"]


async def test_a_batch_is_as_large_as_its_events_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Realtime()
    now_s = 0.0
    costs_s = 0.0015

    @app.on("tick")
    def tick(session: Session) -> None:
        nonlocal now_s
        now_s += costs_s

    monkeypatch.setattr("realtime.control.control.perf_counter", lambda: now_s)
    monkeypatch.setattr("realtime.control.routing.perf_counter", lambda: now_s)
    half = Half(app)
    half.open(1)
    half.engine.events = [(_engine.MESSAGE, 1, 0, None, None, 0)] * 10_000
    assert [half.control.turn() for _ in range(3)] == [3, 3, 3], "at most 4 ms, and the event that passes them"
    costs_s = 0.000001
    assert half.control.turn() == BATCH_MAX - 9, "the rest of the first batch"
    assert [half.control.turn() for _ in range(6)] == [32, 64, 128, 256, 512, 512]
    costs_s = 0.00001
    assert half.control.turn() + half.control.turn() == BATCH_MAX
    assert all(100 <= half.control.turn() <= 200 for _ in range(5)), "at most 2 ms of 10 µs each"
