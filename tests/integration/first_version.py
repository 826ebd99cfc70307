"""A client of the first version of the protocol, as browsers still hold it: it knows nothing that came later.

It offers no subprotocol, sends no `id`, subscribes once a connection and never with a position, reads `type` and `data`
alone and passes over types that it does not know. It comes back after every close but 1000, after 1, 2, 4, 8 and 16 s,
and then gives up; a connection that opens begins the count anew.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.kit import PATIENCE_S, Server, eventually, token_for

DELAYS_S: Final = (1, 2, 4, 8, 16)
KNOWN: Final = frozenset(
    {
        "connection_established",
        "conversation_updated",
        "error",
        "file_processing_update",
        "new_message",
        "pong",
        "subscription_confirmed",
        "typing_indicator",
        "unsubscription_confirmed",
        "user_presence",
    }
)


class FirstVersionClient:
    """One browser tab. `async with` opens it and leaves it for good.

    Args:
        server: where it connects.
        user: who it is.
        channels: what it subscribes to whenever it has connected.
        token: in place of a new one of `user`.
        origin: the page that it stands on.
        pace: by how much its delays are shortened; 1 is as in life.
    """

    def __init__(
        self,
        server: Server,
        user: str,
        *channels: str,
        token: str | None = None,
        origin: str | None = None,
        pace: float = 0.05,
    ) -> None:
        self.seen: list[tuple[str, Any]] = []
        """Type and data of what it knew, in order."""
        self.ignored: list[str] = []
        """Types that it did not know."""
        self.opened = 0
        self.refused: list[int] = []
        """HTTP statuses of connections that did not open; 0 where nobody answered."""
        self.closes: list[tuple[int, str]] = []
        self.reading = asyncio.Event()
        """Cleared, it takes nothing from its socket."""
        self.reading.set()
        self._url = f"{server.url}?token={token or token_for(user)}"
        self._channels = channels
        self._options: dict[str, Any] = {"proxy": None, "max_size": None, "max_queue": 1, "open_timeout": PATIENCE_S}
        if origin is not None:
            self._options["origin"] = origin
        self._pace = pace
        self._socket: ClientConnection | None = None
        self._life: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to connect, without waiting for it."""
        self._life = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close the tab."""
        assert self._life is not None
        self._life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._life
        if self._socket is not None:
            await self._socket.close()

    @property
    def has_stopped(self) -> bool:
        """Whether it does not try to come back any more."""
        return self._life is not None and self._life.done()

    async def send(self, type: str, data: Mapping[str, object] | None = None) -> None:
        """Send a command; it is lost where there is no connection."""
        assert self._socket is not None
        await self._socket.send(json.dumps({"type": type} if data is None else {"type": type, "data": data}))

    async def sees(self, type: str, /, timeout_s: float = PATIENCE_S, **data: object) -> Any:
        """Take the first event of a type whose data has these members and return the data."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for index, (found, members) in enumerate(self.seen):
                if found == type and all(members.get(name) == value for name, value in data.items()):
                    return self.seen.pop(index)[1]
            assert time.monotonic() < deadline_s, f"no {type} {data}; the last: {self.seen[-5:]} {self.closes}"
            await asyncio.sleep(0.005)

    async def is_back(self, opened: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has opened so many connections and is subscribed."""
        await eventually(lambda: self.opened >= opened, timeout_s=timeout_s, what=f"connection {opened}")
        for channel in self._channels:
            await self.sees("subscription_confirmed", channel=channel)

    async def _live(self) -> None:
        attempt = 0
        while True:
            try:
                self._socket = await connect(self._url, **self._options)
            except InvalidStatus as refusal:
                self.refused.append(refusal.response.status_code)
            except (OSError, EOFError):
                self.refused.append(0)
            else:
                attempt = 0
                self.opened += 1
                if await self._stay(self._socket) == 1000:
                    return
            if attempt == len(DELAYS_S):
                return
            await asyncio.sleep(DELAYS_S[attempt] * self._pace)
            attempt += 1

    async def _stay(self, socket: ClientConnection) -> int:
        with contextlib.suppress(ConnectionClosed):
            for channel in self._channels:
                await socket.send(json.dumps({"type": "subscribe", "data": {"channel": channel}}))
            while True:
                await self.reading.wait()
                frame = json.loads(await socket.recv())
                if frame["type"] in KNOWN:
                    self.seen.append((frame["type"], frame.get("data")))
                else:
                    self.ignored.append(frame["type"])
        self.closes.append((socket.close_code or 1006, socket.close_reason or ""))
        return self.closes[-1][0]
