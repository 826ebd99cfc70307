"""A well-behaved WebSocket client: it subscribes, says something now and then, and comes back by position."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable
from typing import Any, Final

from tests.chaos.recorder import Recorder, Seen
from tests.kit import client_frame, token_for, upgrade_request

PATIENCE_S: Final = 20.0
_MASK: Final = b"\x37\xfa\x21\x3d"
_ids = itertools.count(1)


class Wire(asyncio.Protocol):
    """The bytes of one connection: an upgrade, then frames, whole and unmasked as a server sends them."""

    def __init__(self, on_text: Callable[[bytes], None], request: bytes) -> None:
        self._on_text = on_text
        self._request = request
        self._buffer = bytearray()
        self._open = False
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"cut ({exc!r})" if exc else "ended without a Close")

    def _end(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result(why)
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(why))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._end(head.partition(b"\r\n")[0].decode(errors="replace"))
                return
            self._open = True
            self._buffer = bytearray(rest)
        self._frames()

    def _frames(self) -> None:
        buffer, place = self._buffer, 0
        while len(buffer) - place >= 2:
            size, start = buffer[place + 1], place + 2
            if size >= 126:
                start += 2 if size == 126 else 8
                if len(buffer) < start:
                    break
                size = int.from_bytes(buffer[place + 2 : start], "big")
            if len(buffer) < start + size:
                break
            self._frame(buffer[place] & 15, bytes(buffer[start : start + size]))
            place = start + size
        del buffer[:place]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            if not self.opened.done():
                self.opened.set_result(None)
            self._on_text(payload)
        elif opcode == 9:
            self.send(payload, first=0x8A)
        elif opcode == 8:
            self._end(f"closed {int.from_bytes(payload[:2], 'big')} {payload[2:].decode(errors='replace')}")

    def send(self, payload: bytes, first: int = 0x81) -> None:
        """Send one frame."""
        if self.transport is not None:
            self.transport.write(client_frame(first, payload, mask=_MASK))


class Member:
    """One good user. `live` until it is stopped; whatever the server does wrong is told to the recorder."""

    def __init__(
        self, port: int, name: str, conversation: str, recorder: Recorder, *, says_every_s: float, stays_s: float
    ) -> None:
        self._port = port
        self._name = name
        self._recorder = recorder
        self._says_every_s = says_every_s
        self._stays_s = stays_s
        self._channel = f"conversation:{conversation}"
        self._position: dict[str, Any] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.seen = Seen(recorder, conversation)
        self.acks_ms: list[float] = []
        self.connects_ms: list[float] = []

    async def live(self, quiet: asyncio.Event, stop: asyncio.Event) -> None:
        """Connect, subscribe, talk until told to be quiet, and come back after each stay until told to stop."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(PATIENCE_S):
                    wire = await self._connect()
            except (OSError, TimeoutError) as error:
                self._recorder.fault("good client not let in", f"{self._name}: {error!r}")
                await asyncio.sleep(0.5)
                continue
            try:
                await self._stay(wire, quiet, stop)
            except TimeoutError:
                self._recorder.fault("no answer", f"{self._name}: none within {PATIENCE_S} s")
            except ConnectionError as error:
                self._recorder.fault("good client closed", f"{self._name}: {error}")
            finally:
                self._leave(wire)

    async def _connect(self) -> Wire:
        began = time.monotonic()
        request = upgrade_request(f"/ws?token={token_for(self._name)}", "Sec-WebSocket-Protocol: realtime.v1\r\n")
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: Wire(self._heard, request), "127.0.0.1", self._port
        )
        await wire.opened
        data: dict[str, Any] = {"channel": self._channel}
        if self._position is not None:
            data["position"] = self._position
        confirmed = await self._ask(wire, "subscribe", data)
        if confirmed["type"] != "subscription_confirmed":
            raise ConnectionError(f"subscribe was answered {confirmed}")
        self.connects_ms.append((time.monotonic() - began) * 1_000)
        return wire

    def _confirmed(self, data: dict[str, Any]) -> None:
        position = data["position"]
        if self._position is None:
            self.seen.first = self.seen.last = position["offset"]
        elif not data.get("recovered"):
            self._recorder.fault("not recovered", f"{self._name}: {data}")
            self.seen.first = self.seen.last = position["offset"]
        self._position = position

    async def _stay(self, wire: Wire, quiet: asyncio.Event, stop: asyncio.Event) -> None:
        leaves = time.monotonic() + self._stays_s * random.uniform(0.5, 1.5)
        while not stop.is_set() and time.monotonic() < leaves:
            pause = min(self._says_every_s * random.uniform(0.5, 1.5), max(0.0, leaves - time.monotonic()))
            done, _ = await asyncio.wait({wire.ended}, timeout=0.1 if quiet.is_set() else pause)
            if done:
                raise ConnectionError(wire.ended.result())
            if not quiet.is_set():
                await self._say(wire)

    async def _say(self, wire: Wire) -> None:
        text = f"{self._name}:{next(_ids)}:{'t' * random.randrange(20, 200)}"
        self._recorder.said.add(text)
        began = time.monotonic()
        answer = await self._ask(
            wire,
            "send_message",
            {"conversationId": self.seen.conversation, "content": text, "clientMessageId": text[:40]},
        )
        self.acks_ms.append((time.monotonic() - began) * 1_000)
        if answer["type"] == "ack":
            self._recorder.acknowledged(self.seen.conversation, answer["data"]["number"], text)
        else:
            self._recorder.fault("good client refused", f"{self._name}: {answer}")

    async def _ask(self, wire: Wire, type: str, data: dict[str, Any]) -> dict[str, Any]:
        id = next(_ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        waited: list[asyncio.Future[Any]] = [answer, wire.ended]
        self._answers[id] = answer
        wire.send(json.dumps({"type": type, "id": id, "data": data}).encode())
        try:
            async with asyncio.timeout(PATIENCE_S):
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answers.pop(id, None)
        if answer in done:
            return answer.result()
        raise ConnectionError(wire.ended.result())

    def _heard(self, payload: bytes) -> None:
        frame = json.loads(payload)
        type = frame["type"]
        if type == "new_message":
            self.seen.event(frame["offset"], frame["data"]["content"])
            if self._position is not None:
                self._position = {"offset": frame["offset"], "epoch": self._position["epoch"]}
        elif type == "subscription_confirmed":
            self._confirmed(frame["data"])
        elif type in {"lag", "position_reset", "unsubscribed"}:
            self._recorder.fault("told of a loss", f"{self._name}: {frame}")
        answer = self._answers.get(frame.get("id"))
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def _leave(self, wire: Wire) -> None:
        if wire.transport is not None:
            with contextlib.suppress(OSError):
                wire.send((1000).to_bytes(2, "big"), first=0x88)
            wire.transport.close()
