"""`Realtime`, the app: what an author registers, and what handlers publish through.

Registering collects plain declarations; `compile` turns them, and those of the included modules, into the `Rules` that
the server and the engine work by. An app holds no sockets and no tasks. It can be compiled and served any number of
times, one after the other, so that each test gets a server of its own.

    app = Realtime()
    app.include(Conversations())

    @app.on("vote")
    async def vote(session: Session, vote: Vote) -> Tally: ...

    app.run()                                # or: realtime serve module:app, or: FastAPI(lifespan=app.lifespan)

Called by authors of apps, by `conversations`, `testing` and `cli`.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

from realtime._engine import EngineError
from realtime.app.declarations import Declarations
from realtime.app.misplaced import ONE_PROCESS, misplaced
from realtime.base.clock import Clock
from realtime.base.config import ConfigError, Settings, load, overlooked
from realtime.base.errors import NotRunning
from realtime.control.broadcaster import Broadcaster
from realtime.control.connections import Connections
from realtime.control.control import Control
from realtime.control.forwarding import Forwarding
from realtime.control.presence import Presence
from realtime.control.publishing import Publishing
from realtime.control.rules import Rules
from realtime.identity import Identities
from realtime.identity.auth import OWN_CHANNELS, Identity, UpgradeRequest
from realtime.serving.server import Server

log = logging.getLogger("realtime")

Lifespan = Callable[["Realtime"], AbstractAsyncContextManager[Mapping[str, object] | None]]


class Module(Protocol):
    """A part of an app, for `Realtime.include`; `Conversations` is one."""

    def register(self, app: "Realtime", settings: Settings) -> None:
        """Declare handlers, relays and policies on `app`, by its public methods."""


class Realtime(Declarations):
    """An app: handlers, relays, rules of channels, and who may connect.

    Args:
        lifespan: an async context manager around the serving, called with the app; a mapping that it yields becomes
            members of `state`.
        path: the path of the JSON endpoint.
        settings: a configuration; None loads `realtime.toml` and the environment when the app is started.

    Raises:
        ValueError: `path` is none that begins with `/`.
    """

    def __init__(
        self, lifespan: Lifespan | None = None, *, path: str = "/ws", settings: Settings | None = None
    ) -> None:
        super().__init__(path)
        self.state = SimpleNamespace()
        """Whatever the app wants its handlers to find."""
        self._lifespan = lifespan
        self._settings = settings
        self._modules: list[Module] = []
        self._control: Control | None = None
        self._server: Server | None = None

    def include(self, module: Module) -> None:
        """Add a part that registers itself on this app when it is compiled."""
        self._modules.append(module)

    # Publishing, and what is there while it runs.

    def publish(
        self,
        channel: str,
        event: str,
        data: object,
        *,
        user: str | None = None,
        key: str | None = None,
        dedupe: str | None = None,
        number: bool = False,
        request: str | None = None,
        amends: int | None = None,
        replacement: object = None,
        erases: bool = False,
    ) -> Publishing:
        """Publish an event to whoever is subscribed to `channel`. Safe from any thread.

        It is on its way when this returns, in the order of the calls. On a durable channel `await` gives the
        `Publication` once it is committed; a handler may return it instead, which is cheaper.

        Args:
            channel: its policy decides whether the event is stored or volatile. `user:` and a user's id is that user's
                own, whatever the id; see `realtime.user_channel`.
            event: the event's `type`; 1 to 128 of `A-Za-z0-9_.:@-`, the first a letter, digit or `_`.
            data: anything that msgspec encodes; `bytes` are taken for JSON.
            user: becomes the event's `userId`.
            key: a newer event of this type and key takes the place of this one for slow readers (volatile only).
            dedupe: a second event of this user with the same text is stored once (durable only): while that is stored,
                and at least for `log.dedupe_s`.
            number: the event's offset becomes the member `number` of its data, an object (durable only).
            request: becomes the event's `requestId`, also when it is replayed; at most 128 characters.
            amends: the offset of an earlier event of the channel that this one is about (durable only). Awaiting raises
                `PublishFailed` with the code `not_found` where it was never there or is kept no longer.
            replacement: what the data of the amended event becomes, together with this event, for whoever reads it from
                now on. Its offset stays.
            erases: with a replacement, all earlier events that amended the same one lose their data too: it becomes
                this event's. What was erased is also overwritten in the log's file.

        Raises:
            PublishFailed: `too_large`, before anything is sent.
            ValueError: not the name of a channel or of an event, or of a channel without a log where there is something
                to amend; bytes that are not JSON; `request` too long; `replacement` without `amends`, `erases` without
                `replacement`.
            NotRunning: the app is not served in this process; a forked child is another one.
        """
        if self._control is None:
            raise NotRunning
        if channel.startswith(OWN_CHANNELS):
            raise ValueError(f"{channel[:140]!r} is the server's own channel; use another name")
        return self._control.broadcaster.put(
            channel, event, data, user, key, dedupe, number, request, amends, replacement, erases
        )

    @property
    def connections(self) -> Connections:
        """Open sessions: all, by id, by user.

        Raises:
            NotRunning: the app is not served.
        """
        return self._running.connections

    @property
    def identities(self) -> Identities:
        """Who somebody is: tickets to be given out, tokens to be taken back.

        Raises:
            NotRunning: the app is not served.
        """
        return self._running.identities

    async def token_identity(self, request: UpgradeRequest) -> Identity:
        """Return who the token names that a request shows, by the built-in rule: for `authenticate` hooks.

        A hook that lets cookies in, say, returns this for requests without one.

        Raises:
            InvalidToken: it shows no token, two that differ, or one that is not accepted; a hook need not catch it.
            NotRunning: the app is not served.
        """
        return await self._running.identities.identify_shown(request)

    @property
    def broadcaster(self) -> Broadcaster:
        """What `publish` does, and events to users, sessions and everybody.

        Raises:
            NotRunning: the app is not served.
        """
        return self._running.broadcaster

    @property
    def presence(self) -> Presence:
        """Who is told of comings and goings.

        Raises:
            NotRunning: the app is not served.
        """
        return self._running.presence

    @property
    def forwarding(self) -> Forwarding:
        """The way of messages to the HTTP API of `api.url`.

        Raises:
            NotRunning: the app is not served, or `api.url` is not set.
        """
        if self._running.forwarding is None:
            raise NotRunning("api.url is not set, so messages are numbered here")
        return self._running.forwarding

    @property
    def clock(self) -> Clock:
        """The server's time: `now_ms()`, `timestamp()`, `call_later()`. In tests it is moved by hand.

        Raises:
            NotRunning: the app is not served.
        """
        return self._running.clock

    @property
    def _running(self) -> Control:
        if self._control is None:
            raise NotRunning
        return self._control

    # Serving.

    def run(self, settings: Settings | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then exit the process: 0, 1 if the engine failed, 2 if it could not start."""
        # The command line's part, loaded when it is asked for: who serves an app in some other way does without it.
        from realtime.cli.serving import run  # noqa: PLC0415

        try:
            _check_place()
            chosen = settings or self._settings
            code = run(self, chosen or load(), None if chosen else load)
        except (ConfigError, EngineError) as error:
            sys.stderr.write(f"realtime: {error}\n")
            code = 2
        sys.exit(code)

    def __call__(self, *arguments: Any) -> Any:
        """Tell a server of ASGI or WSGI applications (gunicorn, uvicorn) that this is none, and what to do."""
        return misplaced(*arguments)

    @cached_property
    def asgi(self) -> Callable[..., Any]:
        """The HTTP API as an ASGI app, for a host with the edge in its lifespan: `host.mount("/realtime", app.asgi)`.

        It answers 503 while the edge does not run. Where `run` or `realtime serve` serves, it has its own port instead.
        """
        # As in `run`: an app that does not ask for it needs no web framework.
        from realtime.api.embedded import Embedded  # noqa: PLC0415

        return Embedded(lambda: self._server)

    @asynccontextmanager
    async def lifespan(self, host: object = None) -> AsyncIterator[None]:
        """Serve inside of another program: `FastAPI(lifespan=app.lifespan)`, or `async with app.lifespan():`.

        The sockets have a port of their own, `server.port`. Where the engine cannot go on the process is sent SIGTERM,
        so that the host ends in its own way.

        Args:
            host: the other app, which frameworks hand over; not used.

        Raises:
            ConfigError, EngineError: it could not start; the text says what to do.
        """
        del host
        if self._settings is None:
            for line in overlooked():
                log.warning("%s", line)
        async with _one_of_many(Server(self, self._settings or load())) as server:
            if mounts := server.control.rules.mounts:
                paths = ", ".join(mount.path for mount in mounts)
                log.warning("mounted at %s, and not served: the host has the HTTP port; mount it there", paths)
            watch = asyncio.get_running_loop().create_task(_end_with(server))
            self._server = server
            try:
                yield
            finally:
                self._server = None
                watch.cancel()

    # For the server.

    def compile(self, settings: Settings) -> Rules:
        """Return everything that was registered, the included modules' part too, as the server works by it.

        Raises:
            ValueError: two parts register the same type.
        """
        own = self._declared
        self._declared = own.copy()
        try:
            for module in self._modules:
                module.register(self, settings)
            return self.rules(settings)
        finally:
            self._declared = own

    def running(self, control: Control | None) -> None:
        """Take the running server's half, None after it; `server` and `testing` call this.

        Raises:
            RuntimeError: the app is served already.
        """
        if control is not None and self._control is not None:
            raise RuntimeError("the app is served already; make another one for a second server")
        self._control = control
        if control is None:
            self._server = None

    @asynccontextmanager
    async def resources(self) -> AsyncIterator[None]:
        """Hold open what the author's `lifespan` opens."""
        if self._lifespan is None:
            yield
            return
        async with self._lifespan(self) as members:
            for name, value in (members or {}).items():
                setattr(self.state, name, value)
            yield


def _check_place() -> None:
    """Refuse to serve where signals cannot be handled or a loop runs already.

    Raises:
        ConfigError: says what to do.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("app.run() needs the main thread; on another one use `async with app.lifespan():`")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError("app.run() makes an event loop, and one runs already; use `async with app.lifespan():` within it")


@asynccontextmanager
async def _one_of_many(server: Server) -> AsyncIterator[Server]:
    """Serve, and tell a host's second worker why it cannot."""
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(server)
        except EngineError as error:
            if error.code not in {"data_dir_locked", "port_in_use"}:
                raise
            told = EngineError(f"{error.args[0]}; {ONE_PROCESS}")
            told.code = error.code
            raise told from None
        yield server


async def _end_with(server: Server) -> None:
    await server.ended()
    os.kill(os.getpid(), signal.SIGTERM)
