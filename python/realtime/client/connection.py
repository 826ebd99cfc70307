"""One connection: it reads frames, gives replies to who waits for them and everything else to who iterates.

A command carries an `id`, and the frame with that `id` answers it: its own reply, `ack`, or `error`, which raises.
Events wait in a bounded queue; a program that neither iterates nor leaves is disconnected rather than left to grow.
After the end of the connection, events that came before it can still be iterated, then `ConnectionEnded` is raised.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from realtime.client.errors import CommandFailed, ConnectionEnded, NotConnected
from realtime.client.events import Event, Position, Subscription

OPEN_TIMEOUT_S: Final = 10.0
REPLY_TIMEOUT_S: Final = 10.0
EVENTS_WAITING_MAX: Final = 10_000
MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024


@asynccontextmanager
async def connect(
    url: str, *, token: str | None = None, open_timeout_s: float = OPEN_TIMEOUT_S
) -> AsyncIterator["Client"]:
    """Connect, and close at the end of the block.

    Args:
        url: of the endpoint, such as `ws://127.0.0.1:3002/ws`.
        token: who this is; sent as a header, so that it stands in no log of URLs.
        open_timeout_s: from the first packet to the server's first frame.

    Raises:
        NotConnected: nothing answers there, or the server refused.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        websocket = await open_websocket(
            url,
            additional_headers=headers,
            subprotocols=[Subprotocol("realtime.v1")],
            open_timeout=open_timeout_s,
            max_size=MESSAGE_BYTES_MAX,
            proxy=None,
        )
    except InvalidStatus as error:
        body = (error.response.body or b"").decode("utf-8", "replace").strip()
        status = error.response.status_code
        raise NotConnected(f"{url} answered {status}{f' {body}' if body else ''}", status) from error
    except InvalidURI as error:
        raise NotConnected(f"{url} is not the URL of a WebSocket endpoint; write ws://host:port/ws") from error
    except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
        raise NotConnected(
            f"nothing answers at {url} ({str(error) or type(error).__name__}); start a server by: realtime serve"
        ) from error
    client = Client(websocket)
    try:
        await client.established(open_timeout_s)
        yield client
    finally:
        await client.close()


class Client:
    """A connection that is open, made by `connect`.

    Attributes:
        session_id: this connection's name on the server.
        user: who the server says this is.
    """

    def __init__(self, websocket: ClientConnection) -> None:
        self.session_id = ""
        self.user = ""
        self._websocket = websocket
        self._ids = itertools.count(1)
        self._replies: dict[str | int, asyncio.Future[Event]] = {}
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._first: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._end: ConnectionEnded | None = None
        self._come_back_s: float | None = None
        self._reader = asyncio.create_task(self._read(), name="client reader")

    @property
    def reconnect_in_s(self) -> float | None:
        """How long to stay away, as a server that goes away told by `draining`, less what has passed; else None.

        Whoever connects again after the end waits that long, so that a server's clients do not come back all at once.
        """
        return None if self._come_back_s is None else max(0.0, self._come_back_s - time.monotonic())

    async def established(self, timeout_s: float) -> None:
        """Wait for the server's first frame. `connect` does."""
        try:
            async with asyncio.timeout(timeout_s):
                first = await self._first
        except TimeoutError:
            raise NotConnected(f"no first frame within {timeout_s:g} s") from None
        except ConnectionEnded as end:
            raise NotConnected(f"the server refused: {end.code} {end.reason}".rstrip()) from end
        self.session_id = str(first.data.get("sessionId", ""))
        self.user = str(first.data.get("userId", ""))

    async def send(
        self, command: str, data: Mapping[str, Any] | None = None, *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> Event:
        """Send a command and return what answers it.

        Raises:
            CommandFailed: the server answered by `error`, or not in time.
            ConnectionEnded: the connection is over; whether the command was carried out is not known.
        """
        id_ = next(self._ids)
        reply: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._replies[id_] = reply
        try:
            async with asyncio.timeout(timeout_s):
                await self._transmit({"type": command, "data": data or {}, "id": id_})
                event = await reply
        except TimeoutError:
            raise CommandFailed("timeout", f"{command} was not answered in {timeout_s:g} s", retryable=True) from None
        finally:
            self._replies.pop(id_, None)
        if event.type == "error":
            told = event.data
            raise CommandFailed(
                told["code"], told["message"], retryable=told.get("retryable", False), path=told.get("path")
            )
        return event

    async def tell(self, command: str, data: Mapping[str, Any] | None = None) -> None:
        """Send a command that nobody waits for, such as `typing_start`.

        Raises:
            ConnectionEnded: the connection is over.
        """
        await self._transmit({"type": command, "data": data or {}})

    async def subscribe(
        self, channel: str, *, last: int | None = None, position: Position | None = None
    ) -> Subscription:
        """Become a member of a channel; its events are iterated with all others.

        Args:
            channel: the whole name, such as `conversation:42`.
            last: how many events of the past to get first, at most 1000.
            position: where an earlier subscription ended; what came after it follows, if the server still has it.
        """
        wanted: dict[str, object] = {"channel": channel}
        if last is not None:
            wanted["last"] = last
        if position is not None:
            wanted["position"] = position.as_data()
        return Subscription.of((await self.send("subscribe", wanted)).data)

    async def unsubscribe(self, channel: str) -> None:
        """Leave a channel."""
        await self.send("unsubscribe", {"channel": channel})

    async def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> None:
        """Publish an event of one's own to a channel that the token or a rule grants `publish` for."""
        wanted = {"channel": channel, "event": event, "data": data}
        await self.send("publish", wanted if key is None else {**wanted, "key": key})

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over events as they come; ends when this side closes, raises ConnectionEnded when the other does."""
        return self

    async def __anext__(self) -> Event:
        event = await self._events.get()
        if event is not None:
            return event
        self._events.put_nowait(None)
        if self._end is None or self._end.code == 1000:
            raise StopAsyncIteration
        raise self._end

    async def close(self) -> None:
        """Say goodbye and wait until the connection is over. Safe to call twice."""
        await self._websocket.close()
        await asyncio.wait([self._reader])
        if self._first.done() and not self._first.cancelled():
            self._first.exception()

    async def _transmit(self, command: Mapping[str, object]) -> None:
        if self._end is not None:
            raise self._end
        with contextlib.suppress(ConnectionClosed):
            await self._websocket.send(json.dumps(command, ensure_ascii=False, separators=(",", ":")))
            return
        await asyncio.wait([self._reader])
        raise ConnectionEnded(self._websocket.close_code or 1006, self._websocket.close_reason or "")

    async def _read(self) -> None:
        try:
            async for message in self._websocket:
                self._received(Event.decode(message))
                if self._events.qsize() > EVENTS_WAITING_MAX:
                    await self._websocket.close(1008, "events are not read")
                    break
        except ConnectionClosed:
            pass
        except ValueError:
            await self._websocket.close(1007, "not a frame of the protocol")
        self._ended(ConnectionEnded(self._websocket.close_code or 1006, self._websocket.close_reason or ""))

    def _received(self, event: Event) -> None:
        if not self._first.done():
            self._first.set_result(event)
            return
        if event.type == "draining" and isinstance(event.data, dict):
            self._come_back_s = time.monotonic() + event.data.get("reconnectInMs", 0) / 1000
        reply = None if event.id is None else self._replies.pop(event.id, None)
        if reply is None:
            self._events.put_nowait(event)
        elif not reply.done():
            reply.set_result(event)

    def _ended(self, end: ConnectionEnded) -> None:
        self._end = end
        for waiting in [*self._replies.values(), self._first]:
            if not waiting.done():
                waiting.set_exception(end)
        self._replies.clear()
        self._events.put_nowait(None)
