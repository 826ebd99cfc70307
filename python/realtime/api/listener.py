"""The HTTP port: the engine's front before, granian behind it, the loop of the edge behind both.

The front takes connections, holds them to limits and passes whole requests on over a Unix socket, in a folder that only
this user may enter. granian, embedded, calls the application. What it does not do by itself is done here. It neither
tells when it listens nor that a worker died, so both are watched. Its `stop` waits for running requests without end
unless `workers_kill_timeout` is set, which its constructor does not take. Signals are the caller's: it installs none.

Called by `cli.serving`.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from realtime._engine import Commands, HttpFront
from realtime.api.peers import Peers
from realtime.base.config import ConfigError, Settings
from realtime.base.descriptors import HTTP_RESERVED, divided
from realtime.base.messages import encode

START_TIMEOUT_S = 15.0
RESERVED: Final = ("/health", "/ready", "/metrics")
"""Paths that are answered whatever fills the rest."""
_BACKLOG = 4096
_BUFFER_BYTES_MIN = 8192
_HEAD_MORE_BYTES: Final = 1024
"""What the front adds to a head."""
_FOLDER: Final = "realtime-http-"
_SOCKET: Final = "s"
_PATH_BYTES_MAX: Final = 100
"""A path of a Unix socket has room for somewhat more."""
_FOREVER_MS: Final = 24 * 3600 * 1000

_logger = logging.getLogger("realtime.api")


class HttpListener:
    """One listening address.

    Attributes:
        port: the one that it listens on, also where 0 was asked for.
    """

    def __init__(self, settings: Settings, *, stop_timeout_s: float = 2.0) -> None:
        """Listen, unless the engine does on the same port; connections wait until `start`.

        Args:
            settings: address, limits and times.
            stop_timeout_s: what running requests are given by `stop`.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self._settings = settings
        self._stop_timeout_s = stop_timeout_s
        self.port = settings.api.port
        self._descriptor: int | None = None
        self._close = None
        if not settings.one_port:
            listening = _listening(settings.api.host, settings.api.port)
            self.port = int(listening.getsockname()[1])
            # Closed with this object, where no start comes; the front's from its start on.
            self._descriptor = listening.detach()
            self._close = weakref.finalize(self, os.close, self._descriptor)
        self._folder: str | None = None
        self._front: HttpFront | None = None
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, application: Callable[..., Any], engine: Commands) -> None:
        """Serve; return when requests are answered. Once for each listener.

        Args:
            application: is called for each request.
            engine: is told where the front cannot go on, and tells what it counts.

        Raises:
            ConfigError: it did not come up.
        """
        _remove_left_over()
        self._folder = _new_folder()
        path = Path(self._folder, _SOCKET)
        api, limits, descriptors = self._settings.api, self._settings.limits, divided(self._settings)
        self._server = Server(
            Peers(application, (api.host, self.port), self._begun),
            uds=path,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                # The front ends what is slow or idle, and never leaves one of these connections unused for long.
                header_read_timeout=_FOREVER_MS,
                max_buffer_size=max(limits.head_bytes_max + _HEAD_MORE_BYTES, _BUFFER_BYTES_MIN),
            ),
            websockets=False,
            backlog=1024,
            # The front has no more at once, and some that it has just closed.
            backpressure=4 * (descriptors.http_requests + HTTP_RESERVED),
            log_level=LogLevels.error,
            log_dictconfig=_LOGGING,
        )
        # It waits by asyncio, so a float is right.
        self._server.workers_kill_timeout = self._stop_timeout_s  # type: ignore[assignment]
        self._task = asyncio.create_task(self._server.serve(), name="http")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _answers(path):
                    if self._task.done():
                        raise ConfigError(f"the HTTP listener on {api.host}:{self.port} did not start")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self.stop()
            raise ConfigError(f"the HTTP listener on {api.host}:{self.port} did not start in time") from None
        options = {
            "upstream": str(path),
            "head_bytes_max": limits.head_bytes_max,
            "connections_max": descriptors.http_connections,
            "requests_max": descriptors.http_requests,
            "bytes_max": api.bytes_max,
            "head_timeout_s": limits.handshake_timeout_s,
            "body_timeout_s": api.body_timeout_s,
            "answer_timeout_s": api.answer_timeout_s,
            "keep_alive_s": api.keep_alive_s,
            "wait_s": api.wait_s,
            "address_requests_per_s": limits.address_requests_per_s if limits.enabled else 0,
            "address_requests_burst": limits.address_requests_burst,
            "keeps_connections": not self._settings.one_port,
            "proxies": self._settings.server.proxies,
            "reserved": RESERVED,
        }
        if self._close is not None:
            self._close.detach()
        self._front = HttpFront(engine, encode(options), self._descriptor)

    def _begun(self, number: int) -> None:
        if self._front is not None:
            self._front.begun(number)

    async def ended(self) -> None:
        """Return when the listener has ended, by `stop` or because its worker died."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Take no more requests, give the running ones their time, and end."""
        if self._close is not None:
            self._close()
        front, self._front = self._front, None
        if front is not None:
            await asyncio.to_thread(front.stop, round(self._stop_timeout_s * 1000))
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]  # granian leaves it without types
        # A request that outlives its time shows as TimeoutError; there is nobody left who could be told.
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await task
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it on Linux: one call instead of one a connection.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.bind((_numeric(host), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"api.port = {port} on {host} cannot be listened on: {error.strerror}; set API_PORT to another port, or "
            "end the process that has it"
        ) from error
    return listener


def _numeric(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host.strip("[]")


def _new_folder() -> str:
    """Make a folder for the Unix socket, which nobody else may enter."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 -- as good as any, where TMPDIR is too long a path
        folder = tempfile.mkdtemp(prefix=_FOLDER, dir=parent)
        if len(os.fsencode(folder)) + 1 + len(_SOCKET) <= _PATH_BYTES_MAX:
            return folder
        Path(folder).rmdir()
    raise ConfigError("there is no folder for a socket: TMPDIR is too long a path, and /tmp cannot be used")


def _remove_left_over() -> None:
    """Remove folders of servers that were killed: nobody listens in them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        path = folder / _SOCKET
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            if folder.stat().st_uid == os.getuid() and path.is_socket() and not folder.is_symlink():
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    shutil.rmtree(folder, ignore_errors=True)


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


# Its own lines go where ours go, and only those that matter: it calls its embedding experimental at each start.
_LOGGING = {
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "propagate": True}, "granian.access": {"handlers": [], "propagate": True}},
}
