"""Other ASGI apps on our HTTP port: whose request is it, and their lifespan.

`Mounts` stands before Litestar, so that a mounted app is called as a server would call it: the scope untouched but for
`root_path` (where it is mounted; `path` stays whole, as ASGI 3 says), the body and the answer streamed as they come.
Our own routes win, each by its exact path and not by a prefix, so an app at `/` keeps its own `/api/…`. Where one is at
`/`, the playground moves to `/playground/`.

An app that raises is answered by 500 for that request, and by a line in the log. At the drain a request that is open is
told `http.disconnect`, as where its client has gone. WebSockets belong to the edge's own
port: a mounted app is never asked for one. `Lifespan` runs what an app opens before the first request and closes after
the last; an app that knows no lifespan does without.

Called by `cli.serving`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

from realtime.api.answers import answer, problem
from realtime.api.development import ROOT
from realtime.api.peers import tell_known
from realtime.api.routes import Routes
from realtime.base.config import ConfigError
from realtime.base.containment import contained, goes_on
from realtime.control.rules import Mount

ASIDE: Final = "/playground"
"""Where our routes that give way are where an app is mounted at `/`."""
_SHUTDOWN_S: Final = 5.0
_EVENT_STREAM: Final = b"text/event-stream"

Scope = Any
Receive = Callable[[], Any]
Send = Callable[[Any], Any]

log = logging.getLogger("realtime.api")


class Mounts:
    """Our own application and those mounted beside it, as one ASGI application."""

    def __init__(self, own: Routes, mounts: Iterable[Mount]) -> None:
        self._own = own
        # The longest path first: whatever is below it is its own.
        self._mounts = sorted(mounts, key=lambda mount: len(mount.path), reverse=True)
        self._has_site = any(mount.path == "/" for mount in self._mounts)
        self._aside = self._has_site and own.has_page
        self._states: dict[str, dict[str, Any]] = {}
        self._under_way: set[_Request] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold open what the mounted apps open.

        Raises:
            ConfigError: one of them did not start.
        """
        async with AsyncExitStack() as stack:
            for mount in self._mounts:
                self._states[mount.path] = (await stack.enter_async_context(Lifespan(mount))).state
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        if self._own.takes(scope, has_site=self._has_site):
            await self._own(scope, receive, send)
            return
        if self._aside and path == ASIDE:
            await answer(send, 308, b"", (b"location", ASIDE.encode() + b"/"))
            return
        if self._aside and path.startswith(f"{ASIDE}/"):
            await self._own({**scope, "path": path.removeprefix(ASIDE), ROOT: ASIDE}, receive, send)
            return
        for mount in self._mounts:
            if mount.path in {"/", path} or path.startswith(f"{mount.path}/"):
                await self._pass_on(mount, scope, receive, send)
                return
        await self._own(scope, receive, send)

    def tell(self, *, event_streams: bool) -> None:
        """Tell requests under way `http.disconnect`: those that answer with an event stream, or all."""
        for request in self._under_way:
            if request.is_event_stream or not event_streams:
                request.tell()

    def cut(self) -> None:
        """Cancel what is still under way."""
        for request in self._under_way:
            request.tell()
            if request.task is not None:
                request.task.cancel()

    async def _pass_on(self, mount: Mount, scope: Scope, receive: Receive, send: Send) -> None:
        # Whose its requests are, and how many, is the app's own matter.
        tell_known(scope)
        request = _Request(receive, send)
        inner = {
            **scope,
            "root_path": "" if mount.path == "/" else mount.path,
            "state": self._states.get(mount.path, {}).copy(),
        }
        self._under_way.add(request)
        try:
            await mount.app(inner, request.receive, request.send)
        except BaseException as error:
            if request.is_told:
                # An end of that kind was asked for. What of the answer is missing shows as a connection that is cut.
                log.debug("the app mounted at %s was ended: %s %s", mount.path, scope["method"], scope["path"])
                return
            if goes_on(error):
                raise
            log.exception("the app mounted at %s failed: %s %s", mount.path, scope["method"], scope["path"])
            if request.begun:
                # Half an answer cannot be taken back: the server cuts it off.
                raise ConnectionAbortedError("the answer was cut off") from error
            await answer(send, 500, *problem(500, "internal", "Internal error"))
        finally:
            self._under_way.discard(request)


class _Request:
    """One request of a mounted app: what it has answered so far, and whether it was told to end."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.current_task()
        self.begun = False
        self.is_event_stream = False

    @property
    def is_told(self) -> bool:
        """Whether `tell` was called."""
        return self._told.done()

    def tell(self) -> None:
        """Let `receive` return `http.disconnect` from now on, as where the client has gone."""
        if not self._told.done():
            self._told.set_result(None)

    async def receive(self) -> Any:
        """See ASGI."""
        if self.is_told:
            return {"type": "http.disconnect"}
        came = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((came, self._told), return_when=asyncio.FIRST_COMPLETED)
            return came.result() if came.done() else {"type": "http.disconnect"}
        finally:
            came.cancel()

    async def send(self, message: Any) -> None:
        """See ASGI."""
        self.begun = True
        if message["type"] == "http.response.start":
            self.is_event_stream = any(
                name.lower() == b"content-type" and value.startswith(_EVENT_STREAM)
                for name, value in message.get("headers", ())
            )
        await self._send(message)


class Lifespan:
    """The lifespan of one mounted app (ASGI's lifespan protocol), as a block.

    Attributes:
        state: what the app wants each of its requests to find.
    """

    def __init__(self, mount: Mount) -> None:
        self.state: dict[str, Any] = {}
        self._mount = mount
        self._orders: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._task = asyncio.ensure_future(contained(self._mount.app(scope, self._orders.get, self._said.put)))
        told = await self._ordered("lifespan.startup", self._task)
        if told == "lifespan.startup.failed":
            await asyncio.wait([self._task], timeout=1)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)
            error = None if self._task.cancelled() or not self._task.done() else self._task.exception()
            raise ConfigError(f"the app mounted at {self._mount.path} did not start; see the log") from error
        if told is None:
            # It ended without a word, or raised: it knows no lifespan, which is allowed.
            log.debug("the app mounted at %s has no lifespan", self._mount.path, exc_info=self._task.exception())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._task
        if task is None or task.done():
            return
        try:
            async with asyncio.timeout(_SHUTDOWN_S):
                if await self._ordered("lifespan.shutdown", task) != "lifespan.shutdown.complete":
                    log.error("the app mounted at %s did not end cleanly", self._mount.path)
                await asyncio.wait([task])
        except TimeoutError:
            log.error("the app mounted at %s did not end within %g s", self._mount.path, _SHUTDOWN_S)
            task.cancel()
            await asyncio.wait([task], timeout=1)

    async def _ordered(self, order: str, task: asyncio.Future[None]) -> str | None:
        """Give an order and return what was said to it; None where the app has ended without a word."""
        self._orders.put_nowait({"type": order})
        said: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(self._said.get())
        await asyncio.wait((said, task), return_when=asyncio.FIRST_COMPLETED)
        if not said.done():
            said.cancel()
            return None
        message = said.result()
        if text := message.get("message"):
            log.error("the app mounted at %s: %s", self._mount.path, text)
        return str(message["type"])
