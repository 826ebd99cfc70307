"""`realtime serve`: an app, the edge and the HTTP side in one process, until a signal.

The HTTP side is a mount of the server: it comes up after the edge. At the end it answers what is under way, and new
requests with 503, and goes down before the sockets are closed. At start one block
on stdout says where everything listens; a development token and the playground stand there only where the secret is
the generated one, which keeps both on loopback. Called by the command line.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import metadata
from pathlib import Path

from realtime.api.development import DevelopmentAccess, access_to
from realtime.api.edge import edge_of
from realtime.api.http import application
from realtime.api.listener import HttpListener
from realtime.api.mounts import ASIDE, Mounts
from realtime.api.requests import Requests
from realtime.app.app import Realtime
from realtime.base import containment, logs
from realtime.base.config import Settings, bracketed, is_loopback, overlooked
from realtime.identity import token_for
from realtime.serving import allocator, stdio
from realtime.serving.server import Mount, Server, serve

DEVELOPMENT_USER = "dev"
DEVELOPMENT_TTL_S = 12 * 3600

_WRITTEN_S = 2.0
_CUT_S = 0.2

_new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    import uvloop
except ImportError:  # not for every system; plain asyncio works too, slower
    _new_event_loop = asyncio.new_event_loop
else:
    _new_event_loop = uvloop.new_event_loop

_log = logging.getLogger("realtime")


def run(app: Realtime, settings: Settings, reread: Callable[[], Settings] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, with `reread` at SIGHUP; return the exit code."""
    stdio.prepare()
    allocator.settle()
    with logs.written(settings.log):
        if reread is not None:
            for line in overlooked():
                _log.warning("%s", line)
        return _run(app, settings, reread)


def _run(app: Realtime, settings: Settings, reread: Callable[[], Settings] | None) -> int:
    # Its port is tried before anything starts, so that one in use refuses the start and not a running server.
    side = _HttpSide(settings) if settings.api.enabled else None
    mounts: list[Mount] = [_giving_back]
    if side is not None:
        mounts.append(side.mounted)
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        served = serve(app, settings, mounts, lambda server: _announce(server, side), reread)
        code = containment.run(runner.get_loop(), served)
    return 1 if side is not None and side.failed else code


def _giving_back(server: Server) -> AbstractAsyncContextManager[None]:
    return allocator.giving_back(lambda: server.control.memory().held_bytes)


class _HttpSide:
    """The HTTP listener as a mount of the server.

    Attributes:
        port: the one that it listens on.
        failed: whether it ended without having been asked to.
        development: who may use the playground; None with a configured secret, and before `mounted`.
    """

    def __init__(self, settings: Settings) -> None:
        """Try the port.

        Raises:
            ConfigError: it cannot be listened on.
        """
        # Requests have ended by then, or are given up; what is left is to write answers out.
        stop_timeout_s = min(_WRITTEN_S, settings.drain.grace_s / 10)
        self._listener = HttpListener(settings, stop_timeout_s=stop_timeout_s)
        self.port = self._listener.port
        self.failed = False
        self.development: DevelopmentAccess | None = None

    @asynccontextmanager
    async def mounted(self, server: Server) -> AsyncIterator[None]:
        """Listen for the time of the block."""
        self.development = access_to(server)
        edge = edge_of(server, self.development)
        listener = self._listener
        mounts = Mounts(application(edge), server.control.rules.mounts)
        requests = Requests(mounts, edge)
        async with mounts.running():
            server.http_port = listener.port
            await listener.start(requests, server.engine)
            watch = asyncio.create_task(self._watch(listener, server), name="http watch")
            try:
                yield
            finally:
                # Requests and commands that are under way have half of what is left: the other half is for what came
                # since. Meanwhile /ready says why, and new requests are answered 503, which a closed port could not.
                left_s = 0.0 if self.failed else server.grace_left_s / 2
                left, _ = await asyncio.gather(
                    _requests_ended(requests, mounts, left_s), server.control.router.settled(left_s)
                )
                if left:
                    _log.warning("%d HTTP requests were cut off at the end", left)
                watch.cancel()
                await listener.stop()

    async def _watch(self, listener: HttpListener, server: Server) -> None:
        await listener.ended()
        self.failed = True
        _log.critical("the HTTP listener on port %d ended by itself; ending the process", listener.port)
        server.end()


async def _requests_ended(requests: Requests, mounts: Mounts, left_s: float) -> int:
    """Let requests end within `left_s`. Returns how many were cut off.

    Event streams, which have no end, are told at once that it has come, the other open answers of mounted apps after
    half of the time.
    """
    mounts.tell(event_streams=True)
    if await requests.finished(left_s / 2):
        mounts.tell(event_streams=False)
    left = await requests.finished(left_s / 2)
    if left:
        mounts.cut()
        await requests.finished(_CUT_S)
    return left


def _announce(server: Server, side: _HttpSide | None) -> None:
    # What was imported and made so far stays: a full collection, which a long message may set off, passes over it.
    gc.freeze()
    settings = server.settings
    if settings.conversations.access == "open" and not is_loopback(settings.server.host):
        _log.warning(
            "conversations.access = open on %s: whoever has a token takes part in every conversation; "
            "set it to grants to go by the tokens",
            settings.server.host,
        )
    _log.info("sends go through %s", server.flush)
    mounts = [mount.path for mount in server.control.rules.mounts]
    if mounts and side is None:
        _log.warning("api.enabled = false: nothing is served of what is mounted at %s", ", ".join(mounts))
    lines = [
        f"realtime {metadata.version('realtime-edge')}, data in {Path(settings.data_dir).resolve()}",
        f"  WebSocket   {server.url}",
    ]
    if side is not None:
        address = f"http://{bracketed(settings.api.host)}:{side.port}"
        lines.append(f"  HTTP        {address}/health")
        if side.development is not None:
            link = side.development.link(f"{address}{ASIDE if '/' in mounts else ''}")
            lines.append(f"  Playground  {link}")
            lines.append("              (works once; each use prints the link for the next browser)")
    if server.keys.generated:
        token = token_for(DEVELOPMENT_USER, settings.auth, server.keys, ttl_s=DEVELOPMENT_TTL_S)
        lines.append(f"  Token       {token}")
        lines.append(f'              (user "{DEVELOPMENT_USER}", 12 hours; more by: realtime token --user NAME)')
    if error := stdio.write("\n".join(lines) + "\n"):
        _log.warning("stdout cannot be written: %s; the server goes on", error)
