"""The composition root: an app, its settings and the engine become one running server.

`Control` is Python's half over any engine: it takes events in bounded batches, hands each to `routing` or, for those
who come and go, to `connections` and `presence`, and submits what was answered once at the end of the batch. It is the
only reader of events. Time is read once a batch. `Server` owns a real engine with its sockets and drains it in the
order that loses nothing; `testing` puts the same `Control` over an engine without sockets. `serve` adds the signals.

Invariants: an event that makes a handler, a hook or us fail never stops the batch; every command that is buffered is
submitted by the end of its batch or, outside of one, in the next turn of the loop. Called by `app` and `cli`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Protocol, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from realtime import _engine, logs
from realtime._engine import Commands, Engine
from realtime.auth import OWN_CHANNELS, Pattern
from realtime.broadcaster import Broadcaster
from realtime.clock import Clock, SystemClock, Timer
from realtime.config import ConfigError, Keys, Settings, differing, keys_of, parse_retention
from realtime.connections import Connections, Session
from realtime.drain import Drain
from realtime.errors import Refused
from realtime.forwarding import Forwarding
from realtime.identity import Identities, token_rule
from realtime.listening import Listeners
from realtime.messages import RESERVED_EVENTS, encode
from realtime.metrics import Figures, LoopLag
from realtime.periodic import PeriodicJobs
from realtime.presence import Change, Notice, Presence
from realtime.routing import EventTuple, Router
from realtime.rules import Route, Rules
from realtime.upstream import Upstream

log = logging.getLogger("realtime")

BATCH_MAX: Final = 512
"""Events that one turn of the loop takes; the rest keeps the engine's descriptor readable."""
_BEHIND_S: Final = 0.002
_CLEAN_UP_S: Final = 0.2
_FORWARDED_TTL_S: Final = 60
_LOG_TRIAL_S: Final = 10.0
_SIGNALLED: Final = 128
_MESSAGE: Final = _engine.MESSAGE

_IDENTITY: Final = frozenset(
    f"auth.{name}"
    for name in (
        *("secrets", "public_keys", "jwks_url", "jwks_refresh_s", "algorithms", "audience", "issuer"),
        *("service_keys", "require_exp", "leeway_s", "user_claim"),
    )
)
REREAD: Final = frozenset({"log.level", "log.format", "log.connections_per_s", *_IDENTITY})
"""Keys that SIGHUP takes over."""
_KEY_FILES: Final = "the files of auth.public_keys"


class Application(Protocol):
    """What a server needs to know of an app; `app.Realtime` is one."""

    def compile(self, settings: Settings) -> Rules:
        """Return everything that was registered, with what the settings decide filled in."""

    def running(self, control: "Control | None") -> None:
        """Take what publishes and finds sessions while the server runs, None after it."""

    def resources(self) -> AbstractAsyncContextManager[None]:
        """Return what the app opens before the first connection and closes after the last."""


def _warn(event: EventTuple) -> None:
    log.warning("%s", event[1])


def _ignore(_: EventTuple) -> None:
    """Take an event that asks for nothing."""


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
        self.figures = Figures()
        self._lines = logs.ConnectionLines(settings.log.connections_per_s)
        raw = frozenset(index for index, endpoint in enumerate(rules.endpoints) if endpoint.mode == "raw")
        self.connections = Connections(commands, raw, self.wake)
        limits = settings.limits
        self.broadcaster = Broadcaster(commands, self.connections, rules.policies, clock, limits.publication_bytes_max)
        self.identities = Identities(settings, keys, commands, self.broadcaster, clock, authenticate=rules.authenticate)
        self.forwarding: Forwarding | None = None
        if settings.api.url is not None:
            upstream = Upstream(
                settings.api,
                limits.publication_bytes_max,
                partial(self.identities.signed, ttl_s=_FORWARDED_TTL_S),
            )
            self.forwarding = Forwarding(upstream, self.broadcaster, clock)
        self.presence = Presence(round(settings.presence.grace_s * 1000), settings.presence.everyone_max)
        self.router = Router(
            rules,
            self.connections,
            self.broadcaster,
            clock,
            settings.handlers,
            identities=self.identities,
            handshake_timeout_s=limits.handshake_timeout_s,
            figures=self.figures,
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
            _engine.DRAINED: _ignore,
            _engine.RAW: self.router.raw,
            _engine.UPGRADE: self.router.upgrade,
            _engine.AUTHORIZE: self.router.authorize,
            _engine.DEFERRED: self.router.deferred,
            _engine.CARRIED: self.router.carried,
            _engine.REFRESH: self.router.refresh,
            _engine.RENEWED: self._renewed,
            _engine.PUBLISHED: self.broadcaster.published,
            _engine.HISTORY: self.broadcaster.read,
            _engine.HEARD: self.listeners.heard,
            _engine.MEMBERS: self.broadcaster.told,
            _engine.WARNED: _warn,
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

    def stats(self) -> bytes:
        """Return the engine's counters; see `Commands.stats`."""
        return self._commands.stats()

    def turn(self) -> int:
        """Take one batch of events and submit what it led to. Returns how many there were."""
        self._submit_due = True
        self.clock.hold()
        try:
            events: list[Any] = self._commands.drain(BATCH_MAX)
            message, mark, takers = self.router.message, self.router.mark, self._takers
            mark()
            for event in events:
                kind = event[0]
                try:
                    if kind == _MESSAGE:
                        message(event)
                        continue
                    takers[kind](event)
                except Exception:
                    log.exception("event %d was lost to a bug of the server's", kind)
                mark()
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
        _, conn, user, endpoint, first_version, peer, token, expires_at_ms, _, _ = event
        session = Session(conn, user, endpoint, self.connections, expires_at_ms)
        first = self.connections.add(session)
        self.connections.note_token(conn, token)
        if self._lines.due():
            told = {"endpoint": self.rules.endpoints[endpoint].path, "peer": peer, "first_version": first_version}
            log.info("connection opened", extra=logs.facts("opened", session=session.id, user=user, **told))
        if self.connections.is_json(session):
            self._tell(self.presence.opened(user, first=first, sessions=self.connections.json_count))
        self.router.opened(session)

    def _close(self, event: EventTuple) -> None:
        _, conn, code, channels, open_ms = event
        session = self.connections.by_conn(conn)
        if session is None:
            return
        last = self.connections.remove(session)
        if self._lines.due():
            told = {"code": code, "duration_s": open_ms / 1000}
            log.info("connection closed", extra=logs.facts("closed", session=session.id, user=session.user, **told))
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

    def _renewed(self, event: EventTuple) -> None:
        _, conn, expires_at_ms, token, _, _ = event
        session = self.connections.by_conn(conn)
        if session is not None:
            session.expires_at_ms = expires_at_ms
            self.connections.note_token(conn, token)

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
        await self.identities.close()
        self.end()

    def end(self) -> None:
        """Do what of `close` needs no loop."""
        if self._presence_timer is not None:
            self._presence_timer.cancel()
        self.router.stop()
        self.broadcaster.abandon()
        self.connections.clear()


def engine_options(rules: Rules, settings: Settings, keys: Keys, *, in_memory: bool = False) -> bytes:
    """Return the engine's options as JSON: the app's rules and the configuration as plain data."""
    auth = settings.auth
    return encode(
        {
            "host": settings.server.host,
            "port": settings.server.port,
            "shards": settings.server.shards,
            "flush": settings.engine.flush,
            "data_dir": None if in_memory else str(Path(settings.data_dir)),
            "compression": settings.compression,
            "limits": settings.limits,
            "proxies": settings.server.proxies,
            "token": token_rule(auth, keys).document(),
            "tell_tokens": settings.api.url is not None,
            "origins": auth.origins,
            "endpoints": [
                {
                    "path": endpoint.path,
                    "mode": endpoint.mode,
                    "auth": endpoint.auth,
                    "compression": endpoint.compression,
                }
                for endpoint in rules.endpoints
            ],
            "routes": [_route_option(route) for route in rules.routes],
            "relays": rules.relays,
            "policies": [
                {
                    "pattern": policy.pattern.text,
                    "durable": policy.durable,
                    "history": policy.history,
                    "overflow": policy.overflow,
                    "keep_s": policy.keep_s,
                    "keep_events": policy.keep_events,
                }
                for policy in rules.policies
            ],
            "retention": [
                # First, so that no pattern of an operator's forgets what was revoked.
                {"pattern": f"{OWN_CHANNELS}**", "keep_s": auth.revocations_keep_s, "keep_events": None},
                *map(_retention_option, settings.history.retention),
            ],
            "open_grants": [{"pattern": pattern, "rights": rights} for pattern, rights in rules.open_grants],
            "authorize": [authorization.pattern.text for authorization in rules.authorize],
            "listen": list(dict.fromkeys(listener.pattern.text for listener in rules.listeners)),
            "reserved_events": RESERVED_EVENTS,
        }
    )


def _retention_option(text: str) -> object:
    retention = parse_retention(text)
    try:
        Pattern(retention.pattern)
    except ValueError as error:
        raise ConfigError(f"history.retention = {text!r}: {error}") from error
    return retention


def _route_option(route: Route) -> object:
    if route.guard is None:
        return route.type
    right, channel = route.guard
    return {"type": route.type, "right": right, "channel": channel, "failure": route.failure}


class _Queues(Struct):
    events: int = 0


class _Stats(Struct):
    queues: _Queues
    log_failures: int = 0
    log_commits: int = 0
    log_error: str | None = None


class _LogWatch:
    """Tells a log that fails now from one that has failed: by what changed since it was last looked at.

    A failure counts until a commit succeeds, at most for `_LOG_TRIAL_S`: a server that gets no clients because it is
    not ready would never find out that there is room again.
    """

    def __init__(self) -> None:
        self._failures = self._commits = 0
        self._failed_s: float | None = None

    def error(self, now: _Stats) -> str | None:
        """Return what the log said, if it fails now."""
        if now.log_failures > self._failures:
            self._failed_s = time.monotonic()
        elif now.log_commits > self._commits:
            self._failed_s = None
        self._failures, self._commits = now.log_failures, now.log_commits
        if self._failed_s is None or time.monotonic() - self._failed_s > _LOG_TRIAL_S:
            return None
        return now.log_error or "it failed"


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
        self._drainer: Drain | None = None
        self._log_watch = _LogWatch()
        self._retry: asyncio.TimerHandle | None = None

    @property
    def control(self) -> Control:
        """Python's half: connections, broadcaster, presence."""
        if self._control is None:
            raise RuntimeError("the server has not started; use async with")
        return self._control

    @property
    def identities(self) -> Identities:
        """Who somebody is, for HTTP; tickets and revocations."""
        return self.control.identities

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._engine.port

    @property
    def flush(self) -> str:
        """How sends reach the kernel: `uring` (batches), `send` (one by one), `mixed` where rings have failed."""
        return self._engine.flush

    @property
    def failure(self) -> str | None:
        """Why the engine could not go on; None while it can."""
        return None if self._control is None else self._control.failure

    def readiness(self) -> list[str]:
        """Return why no new client should be sent here, a line a reason; empty where all is well."""
        if self._control is None:
            return ["starting"]
        reasons = ["draining"] if self.draining else []
        if self.failure is not None:
            reasons.append(f"the engine cannot go on: {self.failure}")
        stats = msgspec.json.decode(self._engine.stats(), type=_Stats)
        if error := self._log_watch.error(stats):
            reasons.append(f"the log cannot be written: {error}")
        events_max = self.settings.limits.events_waiting_max
        # Half: where the engine, having stopped to read, begins again. Between the two it is behind all the time.
        if stats.queues.events > events_max // 2:
            waiting = f"{stats.queues.events} events wait for Python"
            reasons.append(f"{waiting}, and nothing is read from limits.events_waiting_max = {events_max} on")
        if self._engine.overloaded():
            reasons.append("commands wait for the engine above limits.commands_waiting_bytes_max")
        return reasons + self._control.identities.reasons()

    @property
    def draining(self) -> bool:
        """Whether the end was asked for."""
        return self._ended.is_set()

    @property
    def grace_left_s(self) -> float:
        """Seconds that what is under way has until it is cut off: those of the drain, less what is kept for closing."""
        return self.settings.drain.grace_s if self._drainer is None else self._drainer.left_s()

    def reread(self, load: Callable[[], Settings] | None) -> None:
        """Take over what a running server can from the configuration as it is now; the log says what it cannot.

        Args:
            load: reads it; a ConfigError changes nothing. None where the settings were given by a program.
        """
        if load is None:
            log.warning("SIGHUP: the settings were given by the program; there is nothing to read again")
            return
        try:
            settings = load()
            changed = differing(self.settings, settings)
            taken = [path for path in changed if path in REREAD]
            merged = self._with(settings, taken)
            # Where no key has changed, too: the files that they name may have.
            if self.identities.reload(merged) and not _IDENTITY.intersection(taken):
                taken.append(_KEY_FILES)
        except ConfigError as error:
            log.error("SIGHUP: nothing changed: %s", error)
            return
        left = [path for path in changed if path not in REREAD]
        logs.adjust(settings.log)
        if taken:
            log.info("SIGHUP: took over %s", ", ".join(taken))
        if left:
            log.warning("SIGHUP: %s changed; restart the server for that", ", ".join(left))
        if not taken and not left:
            log.info("SIGHUP: nothing changed")
        self.settings = merged

    def _with(self, settings: Settings, taken: Iterable[str]) -> Settings:
        """Return the settings in force with these keys of other ones."""
        sections: dict[str, Any] = {}
        for path in taken:
            section, _, name = path.partition(".")
            before = sections.get(section, getattr(self.settings, section))
            sections[section] = replace(before, **{name: getattr(getattr(settings, section), name)})
        return replace(self.settings, **sections)

    def end(self) -> None:
        """Ask for the end; `ended` returns, and `readiness` says so at once."""
        self._ended.set()

    async def ended(self) -> None:
        """Return when the end was asked for or the engine cannot go on."""
        await self._ended.wait()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.resources())
            self._engine.start(accepting=False)
            control = Control(self._rules, self.settings, self.keys, self._engine, SystemClock(loop))
            control.on_fatal(lambda _: self.end())
            self._control = control
            self._drainer = Drain(control, self._engine, self.settings.drain)
            self._app.running(control)
            lag = LoopLag(control.figures, loop)
            stack.callback(lag.stop)
            loop.add_reader(self._engine.fileno(), self._readable)
            stack.push_async_callback(self._drain)
            await self._let_in(control)
            control.jobs.start()
            for mount in self._mounts:
                await stack.enter_async_context(mount(self))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        try:
            if self._drainer is not None:
                await self._drainer.serve_on()
        finally:
            await self._stack.__aexit__(kind, error, traceback)

    async def _let_in(self, control: Control) -> None:
        """Take connections, but not before it is known who must not come back."""
        try:
            await control.identities.start()
        except Refused as refusal:
            raise ConfigError(
                f"data_dir = {self.settings.data_dir!r}: what was revoked could not be read back; see "
                "that the log in it can be read"
            ) from refusal
        self._engine.start_accepting()

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
        """Carry out, store and tell what was taken, close every connection, let go of the engine."""
        if self._drainer is not None:
            await self._drainer.finish()
        loop = asyncio.get_running_loop()
        if self._retry is not None:
            self._retry.cancel()
        loop.remove_reader(self._engine.fileno())
        self._app.running(None)
        await self.control.close()


Mount = Callable[[Server], AbstractAsyncContextManager[object]]
"""Something served beside the sockets, for as long as they are."""


async def serve(
    app: Application,
    settings: Settings,
    mounts: Iterable[Mount] = (),
    ready: Callable[[Server], None] | None = None,
    reread: Callable[[], Settings] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain. A second one ends the process at once, with 128 and its number.

    Args:
        app: what is served.
        settings: a loaded configuration.
        mounts: as of `Server`.
        ready: called once everything listens.
        reread: loads the configuration again, at SIGHUP.

    Returns:
        The exit code: 0 after a signal, 1 where the engine could not go on (the log says why).

    Raises:
        ConfigError, EngineError: as `Server`, before anything listens.
    """
    server = Server(app, settings, mounts)
    # Before anything listens: whoever sees the port open may already ask for the end.
    with _signals(server, reread):
        async with server:
            if ready is not None:
                ready(server)
            await server.ended()
            log.info("draining: at most %g s", settings.drain.grace_s)
    return 0 if server.failure is None else 1


@contextlib.contextmanager
def _signals(server: Server, reread: Callable[[], Settings] | None) -> Iterator[None]:
    """Let signals reach the server for the time of the block.

    The interpreter's own handlers and not the loop's: the second signal must end a process whose loop is held by a
    handler, too.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            os.write(2, f"realtime: {signal.Signals(number).name} again: ending at once\n".encode())
            # The log is safe at any moment, as after a kill.
            os._exit(_SIGNALLED + number)
        asked = True
        loop.call_soon_threadsafe(server.end)

    def again(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(server.reread, reread)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, again)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
