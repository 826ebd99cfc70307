"""granian, embedded: the HTTP listener in the process and the loop of the edge.

What it does not do by itself is done here. It shares a port in use with another process instead of refusing it, so the
port is tried first. It neither tells when it listens nor that a worker died, so both are watched. Its `stop` waits for
running requests without end unless `workers_kill_timeout` is set, which its constructor does not take. Signals are
the caller's: it installs none.

Called by `cli.serving`.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from realtime.config import ConfigError

START_TIMEOUT_S = 15.0
CONNECTIONS_MAX = 4096
_BACKLOG = 1024
_BUFFER_BYTES_MIN = 8192

_logger = logging.getLogger("realtime.api")


class HttpListener:
    """One listening address.

    Attributes:
        port: the one that it listens on, also where 0 was asked for.
    """

    def __init__(self, host: str, port: int, *, head_bytes_max: int = 64 * 1024, stop_timeout_s: float = 2.0) -> None:
        """Try the port.

        Args:
            host: address to listen on.
            port: of it; 0 takes a free one.
            head_bytes_max: bytes of a request's head that are kept; from about there on it is answered 431.
            stop_timeout_s: what running requests are given by `stop`.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        self.port = _free_port(host, port)
        self._host = _numeric(host)
        self._head_bytes_max = head_bytes_max
        self._stop_timeout_s = stop_timeout_s
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, application: Callable[..., Any]) -> None:
        """Listen; return when connections are taken. Once for each listener.

        Raises:
            ConfigError: it did not come up.
        """
        self._server = Server(
            application,
            address=self._host,
            port=self.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(max_buffer_size=max(self._head_bytes_max, _BUFFER_BYTES_MIN)),
            websockets=False,
            backlog=_BACKLOG,
            # Above it nobody is answered, not even at /health, until somebody else hangs up; idle ones count too.
            backpressure=CONNECTIONS_MAX,
            log_level=LogLevels.error,
            log_dictconfig=_LOGGING,
        )
        # It waits by asyncio, so a float is right.
        self._server.workers_kill_timeout = self._stop_timeout_s  # type: ignore[assignment]
        self._task = asyncio.create_task(self._server.serve(), name="http")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._answers():
                    if self._task.done():
                        raise ConfigError(f"the HTTP listener on {self._host}:{self.port} did not start")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self.stop()
            raise ConfigError(f"the HTTP listener on {self._host}:{self.port} did not start in time") from None

    async def ended(self) -> None:
        """Return when the listener has ended, by `stop` or because its worker died."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        """Take no more requests, give the running ones their time, and end."""
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._server.stop()  # type: ignore[no-untyped-call]  # granian leaves it without types
        # A request that outlives its time shows as TimeoutError; there is nobody left who could be told.
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await task

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self._host, self.port)
        except OSError:
            return False
        writer.close()
        return True


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0, after having listened on it for a moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    host = _numeric(host)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
            trial.listen(1)
            return int(trial.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"api.port = {port} on {host} cannot be listened on: {error.strerror}; set API_PORT to another port, or "
            "end the process that has it"
        ) from error


def _numeric(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host.strip("[]")


# Its own lines go where ours go, and only those that matter: it calls its embedding experimental at each start.
_LOGGING = {
    "handlers": {},
    "loggers": {"_granian": {"handlers": [], "propagate": True}, "granian.access": {"handlers": [], "propagate": True}},
}
