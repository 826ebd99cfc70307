"""The composition root: an app, its settings and the engine become one running server.

`Control` is Python's half over any engine: it takes events in bounded batches, hands each to `routing` or, for those
who come and go, to `connections` and `presence`, and submits what was answered once at the end of the batch. It is the
only reader of events. Time is read once a batch. `Server` owns a real engine with its sockets and drains it in the
order that loses nothing; `testing` puts the same `Control` over an engine without sockets. `serve` adds the signals.

Invariants: an event that makes a handler, a hook or us fail never stops the batch; every command that is buffered is
submitted by the end of its batch or, outside of one, in the next turn of the loop. Called by `app` and `cli`.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from realtime import _engine
from realtime._engine import Commands, Engine
from realtime.auth import mint_token
from realtime.broadcaster import Broadcaster
from realtime.clock import Clock, SystemClock, Timer
from realtime.codes import CloseCode
from realtime.config import AuthSettings, Keys, Settings, keys_of
from realtime.connections import Connections, Session
from realtime.forwarding import Forwarding
from realtime.listening import Listeners
from realtime.messages import RESERVED_EVENTS, encode
from realtime.periodic import PeriodicJobs
from realtime.presence import Change, Notice, Presence
from realtime.routing import EventTuple, Router
from realtime.rules import Route, Rules
from realtime.upstream import Upstream

log = logging.getLogger("realtime")

BATCH_MAX: Final = 512
"""Events that one turn of the loop takes; the rest keeps the engine's descriptor readable."""
_BEHIND_S: Final = 0.002
_STOP_RESERVE: Final = 0.2
_DELIVERY_POLL_S: Final = 0.01
_STALLED_S: Final = 0.5
_CLEAN_UP_S: Final = 0.2
_FORWARDED_TTL_S: Final = 60


class Application(Protocol):
    """What a server needs to know of an app; `app.Realtime` is one."""

    def compile(self, settings: Settings) -> Rules:
        """Return everything that was registered, with what the settings decide filled in."""

    def running(self, control: "Control | None") -> None:
        """Take what publishes and finds sessions while the server runs, None after it."""

    def resources(self) -> AbstractAsyncContextManager[None]:
        """Return what the app opens before the first connection and closes after the last."""


class Control:
    """Python's half of a server, over an engine that somebody else drives. For one event loop and thread."""

    def __init__(self, rules: Rules, settings: Settings, keys: Keys, commands: Commands, clock: Clock) -> None:
        self.rules = rules
        self.settings = settings
        self.failure: str | None = None
        self._commands = commands
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._submit_due = False
        self._presence_timer: Timer | None = None
        raw = frozenset(index for index, endpoint in enumerate(rules.endpoints) if endpoint.mode == "raw")
        self.connections = Connections(commands, raw, self.wake)
        limits = settings.limits
        self.broadcaster = Broadcaster(commands, self.connections, rules.policies, clock, limits.publication_bytes_max)
        self.forwarding: Forwarding | None = None
        if settings.api.url is not None:
            upstream = Upstream(settings.api, limits.publication_bytes_max, partial(_signed, settings.auth, keys))
            self.forwarding = Forwarding(upstream, self.broadcaster, clock)
        self.presence = Presence(round(settings.presence.grace_s * 1000), settings.presence.everyone_max)
        self.router = Router(
            rules,
            self.connections,
            self.broadcaster,
            clock,
            settings.handlers,
            handshake_timeout_s=limits.handshake_timeout_s,
        )
        slow_s, spawn = settings.handlers.slow_ms / 1000, self.router.spawn
        self.jobs = PeriodicJobs(rules.jobs, clock, slow_s, spawn, self.router.in_thread)
        self.listeners = Listeners(
            rules.listeners, settings.handlers.listener_events_max, self.broadcaster.history, slow_s, spawn
        )
        self._fatal: Callable[[str], None] = lambda _: None
        self._takers: dict[int, Callable[[EventTuple], None]] = {
            _engine.OPEN: self._open,
            _engine.CLOSE: self._close,
            _engine.MESSAGE: self.router.message,
            _engine.RAW: self.router.raw,
            _engine.UPGRADE: self.router.upgrade,
            _engine.AUTHORIZE: self.router.authorize,
            _engine.DEFERRED: self.router.deferred,
            _engine.CARRIED: self.router.carried,
            _engine.REFRESH: self.router.refresh,
            _engine.PUBLISHED: self.broadcaster.published,
            _engine.HISTORY: self.broadcaster.read,
            _engine.HEARD: self.listeners.heard,
            _engine.FATAL: self._fail,
        }

    def on_fatal(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with one line when the engine cannot go on."""
        self._fatal = callback

    async def draining(self) -> None:
        """Begin the end: run no more jobs, call the `on_drain` hooks."""
        self.jobs.stop()
        await self.router.draining()

    async def finish(self, timeout_s: float) -> int:
        """Wait until no handler, listener or job is under way, then end the tasks of sessions.

        Returns:
            How many were cut off after `timeout_s`; the tasks of sessions always are, and count where they do not end.
        """
        deadline_s = time.monotonic() + timeout_s
        cut_off = await self.router.finish(timeout_s)
        return cut_off + await self.connections.tasks.finish(max(_CLEAN_UP_S, deadline_s - time.monotonic()))

    def turn(self) -> int:
        """Take one batch of events and submit what it led to. Returns how many there were."""
        self._submit_due = True
        self.clock.hold()
        try:
            events: list[Any] = self._commands.drain(BATCH_MAX)
            for event in events:
                taker = self._takers.get(event[0])
                if taker is None:
                    continue
                try:
                    taker(event)
                except Exception:
                    log.exception("event %d was lost to a bug of the server's", event[0])
        finally:
            self.clock.release()
            self.submit()
        return len(events)

    def wake(self) -> None:
        """See to it that what was just buffered is submitted soon. Safe from any thread."""
        if self._submit_due:
            # The loop's thread clears this before it submits, so whatever was buffered before this look goes along.
            return
        if threading.get_ident() == self._thread:
            self._submit_due = True
            self._loop.call_soon(self.submit)
        else:
            self._commands.submit()

    def submit(self) -> None:
        """Hand over what is buffered."""
        self._submit_due = False
        self._commands.submit()

    def _open(self, event: EventTuple) -> None:
        _, conn, user, endpoint, *_ = event
        session = Session(conn, user, endpoint, self.connections)
        first = self.connections.add(session)
        if self.connections.is_json(session):
            self._tell(self.presence.opened(user, first=first, sessions=self.connections.json_count))
        self.router.opened(session)

    def _close(self, event: EventTuple) -> None:
        _, conn, code, channels = event
        session = self.connections.by_conn(conn)
        if session is None:
            return
        last = self.connections.remove(session)
        if self.connections.is_json(session):
            notices = self.presence.closed(
                session.user,
                last=last,
                code=code,
                channels=channels,
                sessions=self.connections.json_count,
                now_ms=self.clock.monotonic_ms(),
            )
            self._tell(notices)
            self._arm_presence()
        self.router.closed(session, code)

    def _tell(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Change):
                self.broadcaster.user_presence(notice.user, notice.status, notice.channels)
            else:
                self.broadcaster.to_all("presence_mode", {"mode": notice.mode})

    def _arm_presence(self) -> None:
        next_ms = self.presence.next_ms()
        if self._presence_timer is None and next_ms is not None:
            delay_s = max(0, next_ms - self.clock.monotonic_ms()) / 1000
            self._presence_timer = self.clock.call_later(delay_s, self._presence_due)

    def _presence_due(self) -> None:
        self._presence_timer = None
        self._tell(self.presence.due(self.clock.monotonic_ms()))
        self._arm_presence()

    def _fail(self, event: EventTuple) -> None:
        self.failure = str(event[1])
        log.critical("%s", self.failure)
        self._fatal(self.failure)

    async def close(self) -> None:
        """Let go of everything; the engine has stopped."""
        if self.forwarding is not None:
            await self.forwarding.close()
        self.end()

    def end(self) -> None:
        """Do what of `close` needs no loop."""
        if self._presence_timer is not None:
            self._presence_timer.cancel()
        self.router.stop()
        self.broadcaster.abandon()
        self.connections.clear()


def _signed(auth: AuthSettings, keys: Keys, user: str) -> str:
    """Return a token for `user` that is good for one request to `api.url`."""
    return mint_token(
        keys.secrets[0],
        user,
        ttl_s=_FORWARDED_TTL_S,
        audience=auth.audience,
        user_claim=auth.user_claim,
        algorithm=auth.algorithm,
    )


def engine_options(rules: Rules, settings: Settings, keys: Keys, *, in_memory: bool = False) -> bytes:
    """Return the engine's options as JSON: the app's rules and the configuration as plain data."""
    auth = settings.auth
    token = {
        "keys": [{"algorithm": auth.algorithm, "key": secret} for secret in keys.secrets],
        "audience": auth.audience,
        "user_claim": auth.user_claim,
        "require_exp": auth.require_exp,
        "leeway_s": auth.leeway_s,
        "expiry": auth.expiry,
    }
    return encode(
        {
            "host": settings.server.host,
            "port": settings.server.port,
            "shards": settings.server.shards,
            "data_dir": None if in_memory else str(Path(settings.data_dir)),
            "limits": settings.limits,
            "proxies": settings.server.proxies,
            "token": token if keys.secrets else None,
            "origins": auth.origins,
            "endpoints": [
                {"path": endpoint.path, "mode": endpoint.mode, "auth": endpoint.auth} for endpoint in rules.endpoints
            ],
            "routes": [_route_option(route) for route in rules.routes],
            "relays": rules.relays,
            "policies": [
                {
                    "pattern": policy.pattern.text,
                    "durable": policy.durable,
                    "history": policy.history,
                    "overflow": policy.overflow,
                }
                for policy in rules.policies
            ],
            "open_grants": [{"pattern": pattern, "rights": rights} for pattern, rights in rules.open_grants],
            "authorize": [authorization.pattern.text for authorization in rules.authorize],
            "listen": list(dict.fromkeys(listener.pattern.text for listener in rules.listeners)),
            "reserved_events": RESERVED_EVENTS,
        }
    )


def _route_option(route: Route) -> object:
    if route.guard is None:
        return route.type
    right, channel = route.guard
    return {"type": route.type, "right": right, "channel": channel, "failure": route.failure}


class Server:
    """An app that is served: `async with Server(app, settings) as server`.

    Entering opens the app's resources, the log and the port, in this order; leaving drains. Use one once.

    Args:
        app: what is served.
        settings: a loaded configuration.
        mounts: further things to serve beside it, such as the HTTP API; entered after the port is open, left before
            the drain, so that what their last requests publish is stored.

    Raises:
        ConfigError: the settings do not go together.
        EngineError: the port, the data directory or the log cannot be used; `args[0]` says what to do.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        mounts: Iterable[Callable[["Server"], AbstractAsyncContextManager[object]]] = (),
    ) -> None:
        self.settings = settings
        self.keys = keys_of(settings)
        self._app = app
        self._mounts = tuple(mounts)
        self._stack = AsyncExitStack()
        self._ended: asyncio.Event = asyncio.Event()
        self._rules = app.compile(settings)
        self._engine = Engine(engine_options(self._rules, settings, self.keys))
        self._control: Control | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def control(self) -> Control:
        """Python's half: connections, broadcaster, presence."""
        if self._control is None:
            raise RuntimeError("the server has not started; use async with")
        return self._control

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._engine.port

    @property
    def failure(self) -> str | None:
        """Why the engine could not go on; None while it can."""
        return None if self._control is None else self._control.failure

    def end(self) -> None:
        """Ask for the end; `ended` returns."""
        self._ended.set()

    async def ended(self) -> None:
        """Return when the end was asked for or the engine cannot go on."""
        await self._ended.wait()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.resources())
            self._engine.start()
            control = Control(self._rules, self.settings, self.keys, self._engine, SystemClock(loop))
            control.on_fatal(lambda _: self.end())
            self._control = control
            self._app.running(control)
            control.jobs.start()
            loop.add_reader(self._engine.fileno(), self._readable)
            stack.push_async_callback(self._drain)
            for mount in self._mounts:
                await stack.enter_async_context(mount(self))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    def _readable(self) -> None:
        control = self.control
        if self._engine.overloaded():
            # The shards are behind with what they were told: more events would only lead to more commands.
            if self._retry is None:
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._engine.fileno())
                self._retry = loop.call_later(_BEHIND_S, self._read_again)
            return
        control.turn()

    def _read_again(self) -> None:
        self._retry = None
        asyncio.get_running_loop().add_reader(self._engine.fileno(), self._readable)

    async def _drain(self) -> None:
        """Stop accepting; stop reading; await handlers; commit, publish and acknowledge; close; end."""
        control, engine = self.control, self._engine
        grace_s = self.settings.drain.grace_s
        deadline_s = time.monotonic() + grace_s
        engine.stop_accepting()
        await control.draining()
        engine.stop_reading()
        await _take_all(control)
        cancelled = await control.finish(max(0.0, deadline_s - time.monotonic() - grace_s * _STOP_RESERVE))
        if cancelled:
            log.warning("%d handlers or tasks were cut off after drain.grace_s=%g", cancelled, grace_s)
        control.submit()
        left_ms = max(100, round((deadline_s - time.monotonic()) * 500))
        if not await asyncio.to_thread(engine.flush_log, left_ms):
            log.error("the log was not flushed within %d ms; what it had not acknowledged may be lost", left_ms)
        await _take_all(control)
        control.submit()
        await self._delivered(deadline_s - grace_s * _STOP_RESERVE)
        engine.close_all(CloseCode.SERVICE_RESTART, "server restarting")
        left_ms = max(100, round((deadline_s - time.monotonic()) * 1000))
        await asyncio.to_thread(engine.stop, left_ms)
        await _take_all(control)
        await control.finish(max(0.0, deadline_s - time.monotonic()))
        loop = asyncio.get_running_loop()
        if self._retry is not None:
            self._retry.cancel()
        loop.remove_reader(engine.fileno())
        self._app.running(None)
        await control.close()

    async def _delivered(self, deadline_s: float) -> None:
        """Give outboxes time to empty, for as long as they do: a close drops what waits in them, the last acks too."""
        before, changed_s = -1, time.monotonic()
        while (now_s := time.monotonic()) < deadline_s:
            queued = sum(self._engine.backlog(session.conn) for session in self.control.connections)
            if queued == 0 or now_s - changed_s > _STALLED_S:
                return
            if queued != before:
                before, changed_s = queued, now_s
            await asyncio.sleep(_DELIVERY_POLL_S)


async def _take_all(control: Control) -> None:
    """Take every event that waits, and let the loop go round between batches."""
    while control.turn():  # noqa: ASYNC110 -- it gives way to the tasks that a batch began
        await asyncio.sleep(0)


Mount = Callable[[Server], AbstractAsyncContextManager[object]]
"""Something served beside the sockets, for as long as they are."""


async def serve(
    app: Application, settings: Settings, mounts: Iterable[Mount] = (), ready: Callable[[Server], None] | None = None
) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        app: what is served.
        settings: a loaded configuration.
        mounts: as of `Server`.
        ready: called once everything listens.

    Returns:
        The exit code: 0 after a signal, 1 where the engine could not go on (the log says why).

    Raises:
        ConfigError, EngineError: as `Server`, before anything listens.
    """
    loop = asyncio.get_running_loop()
    server = Server(app, settings, mounts)
    # Before anything listens: whoever sees the port open may already ask for the end.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    try:
        async with server:
            if ready is not None:
                ready(server)
            await server.ended()
            log.info("draining: at most %g s", settings.drain.grace_s)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0 if server.failure is None else 1
