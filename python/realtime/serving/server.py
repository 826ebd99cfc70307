"""The composition root: an app, its settings and the engine become one running server.

`Server` owns a real engine with its sockets, calls `Control` when there are events, says whether it is ready, and
drains in the order that loses nothing. `serve` adds the signals. Called by `app` and `cli`.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from realtime import _engine
from realtime.base import forks, logs
from realtime.base.clock import SystemClock
from realtime.base.config import ConfigError, Settings, bracketed, differing, keys_of
from realtime.base.errors import Refused
from realtime.base.metrics import LoopLag
from realtime.control.control import Control
from realtime.control.rules import Rules
from realtime.identity import Identities
from realtime.serving import signals, stdio, transports
from realtime.serving.drain import Drain
from realtime.serving.options import engine_options
from realtime.serving.transports import AnyEngine

log = logging.getLogger("realtime")

_BEHIND_S: Final = 0.002

_IDENTITY: Final = frozenset(
    f"auth.{name}"
    for name in (
        *("secrets", "public_keys", "jwks_url", "jwks_refresh_s", "algorithms", "audience", "issuer"),
        *("service_keys", "require_exp", "leeway_s", "clock_skew_s", "user_claim"),
    )
)
REREAD: Final = frozenset({"log.level", "log.format", "log.connections_per_s", *_IDENTITY})
"""Keys that SIGHUP takes over."""
_KEY_FILES: Final = "the files of auth.public_keys"


class Application(Protocol):
    """What a server needs to know of an app; `app.Realtime` is one."""

    def compile(self, settings: Settings) -> Rules:
        """Return everything that was registered, with what the settings decide filled in."""

    def running(self, control: Control | None) -> None:
        """Take what publishes and finds sessions while the server runs, None after it."""

    def resources(self) -> AbstractAsyncContextManager[None]:
        """Return what the app opens before the first connection and closes after the last."""


class _Queues(Struct):
    events: int = 0
    commands_bytes: int = 0


class _Stats(Struct):
    queues: _Queues
    log_error: str | None = None


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
        # A host may have been started with one of them closed.
        stdio.reserve()
        self.settings = settings
        self.keys = keys_of(settings)
        self._app = app
        self._mounts = tuple(mounts)
        self._stack = AsyncExitStack()
        self._ended: asyncio.Event = asyncio.Event()
        self._rules = app.compile(settings)
        self._engine = transports.engine(settings.engine.transport, engine_options(self._rules, settings, self.keys))
        self._control: Control | None = None
        self._drainer: Drain | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.http_port = 0
        """Where a mount serves HTTP; 0 where none does."""
        # Canonical now: the working directory and links may be other ones at a fork.
        self._folder = str(Path(settings.data_dir).resolve())
        self._severed = False

    @property
    def control(self) -> Control:
        """Python's half: connections, broadcaster, presence."""
        if self._control is None:
            raise RuntimeError("the server has not started; use async with")
        return self._control

    @property
    def engine(self) -> AnyEngine:
        """The engine, for mounts that stand beside it."""
        return self._engine

    @property
    def identities(self) -> Identities:
        """Who somebody is, for HTTP; tickets and revocations."""
        return self.control.identities

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._engine.port

    @property
    def url(self) -> str:
        """The WebSocket endpoint of the app, by the address that it listens on."""
        return f"ws://{bracketed(self.settings.server.host)}:{self.port}{self._rules.path}"

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
        if stats.log_error is not None:
            reasons.append(f"the log cannot be written: {stats.log_error}")
        events_max = self.settings.limits.events_waiting_max
        # Half: where the engine, having stopped to read, begins again. Between the two it is behind all the time.
        if stats.queues.events > events_max // 2:
            waiting = f"{stats.queues.events} events wait for Python"
            reasons.append(f"{waiting}, and nothing is read from limits.events_waiting_max = {events_max} on")
        # Not `overloaded`: events for a shard pass their mark for one of its turns, and often.
        if stats.queues.commands_bytes > self.settings.limits.commands_waiting_bytes_max:
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
        self._loop = loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._app.resources())
            forks.serves()
            stack.enter_context(forks.severed(self._sever))
            self._engine.start(accepting=False)
            control = Control(self._rules, self.settings, self.keys, self._engine, SystemClock(loop))
            control.on_fatal(lambda _: self.end())
            self._control = control
            shares_port = self.settings.one_port and bool(self._mounts)
            self._drainer = Drain(control, self._engine, self.settings.drain, shares_port=shares_port)
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
        if self._severed:
            forks.end(error)
        self.end()
        try:
            if self._drainer is not None:
                await self._drainer.serve_on()
        finally:
            await self._stack.__aexit__(kind, error, traceback)

    def _sever(self) -> None:
        """Let go of everything in a forked child; the parent serves on."""
        self._severed = True
        self._app.running(None)
        if self._control is not None:
            self._control.sever()
        ports = [port for port in (self._engine.port, self.http_port) if port]
        _engine.close_inherited(self._engine, ports, self._folder)
        # A signal of the child's would reach the parent's loop by it.
        signal.set_wakeup_fd(-1)
        # A child that comes back from a handler goes no further. A loop in debug mode looks at the thread.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon(forks.end)

    async def _let_in(self, control: Control) -> None:
        """Take connections, but not before it is known who must not come back."""
        try:
            await control.identities.start()
        except Refused as refusal:
            raise ConfigError(
                f"data_dir = {self.settings.data_dir!r}: what was revoked could not be read back; see "
                "that the log in it can be read"
            ) from refusal
        control.start()
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
    """Serve until SIGTERM or SIGINT, then drain.

    A second one, a second or more after the first, ends the process at once, with 128 and its number.

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
    with signals.handled(server.end, lambda: server.reread(reread)):
        async with server:
            if ready is not None:
                ready(server)
            await server.ended()
            log.info("draining: at most %g s", settings.drain.grace_s)
    return 0 if server.failure is None else 1
