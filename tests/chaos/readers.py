"""A well-behaved HTTP client: reads a page, says something, asks for `/health`; often on a new connection."""

import asyncio
import contextlib
import json
import random
import time
from typing import Any, Final

from tests.chaos.attacks.attack import http_request
from tests.chaos.recorder import Recorder
from tests.kit import token_for

PATIENCE_S: Final = 20.0


class Connection:
    """One connection to the HTTP port: a request, its whole answer, and so on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and the body of its answer."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")), None)
        if length is not None:
            return int(head.split()[1]), await self._reader.readexactly(length)
        assert "transfer-encoding: chunked" in head, head
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return int(head.split()[1]), body

    def close(self) -> None:
        """Cut it."""
        self._writer.transport.abort()


class Reader:
    """One good user of the HTTP API."""

    def __init__(self, port: int, name: str, conversation: str, recorder: Recorder, *, asks_every_s: float) -> None:
        self._port = port
        self._name = name
        self._conversation = conversation
        self._recorder = recorder
        self._asks_every_s = asks_every_s
        self._connection: Connection | None = None
        self.answers_ms: list[float] = []
        self.healths_ms: list[float] = []

    async def live(self, quiet: asyncio.Event) -> None:
        """Ask now and then until told to be quiet."""
        turn = random.randrange(4)
        while not quiet.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(quiet.wait(), self._asks_every_s * random.uniform(0.5, 1.5))
            if not quiet.is_set():
                turn += 1
                await self._turn(turn)
        self._close()

    async def _turn(self, turn: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                if turn % 2 == 0:
                    self._close()
                await (self._read, self._post, self._health)[turn % 3]()
        except (OSError, EOFError, TimeoutError) as error:
            self._recorder.fault("good request not answered", f"{self._name}: {error!r}")
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    async def _ask(self, method: str, path: str, content: object = None) -> tuple[int, Any, float]:
        began = time.monotonic()
        body = None if content is None else json.dumps(content).encode()
        request = http_request(method, path, body, f"Authorization: Bearer {token_for(self._name)}\r\n")
        status, answer = await self._answer(request)
        if status >= 400:
            self._recorder.fault("good request refused", f"{self._name} {method} {path}: {status} {answer[:200]!r}")
        return status, json.loads(answer), (time.monotonic() - began) * 1_000

    async def _answer(self, request: bytes) -> tuple[int, bytes]:
        # A server may close a connection between two requests whenever it likes: then it is a new one's turn
        # (RFC 9112 9.3.1).
        if self._connection is not None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                return await self._connection.ask(request)
            self._close()
        self._connection = await Connection.open(self._port)
        return await self._connection.ask(request)

    async def _read(self) -> None:
        _, _, took_ms = await self._ask("GET", f"/api/conversations/{self._conversation}/messages?limit=20")
        self.answers_ms.append(took_ms)

    async def _post(self) -> None:
        text = f"{self._name}:{random.getrandbits(60):x}"
        self._recorder.said.add(text)
        status, answer, took_ms = await self._ask(
            "POST", f"/api/conversations/{self._conversation}/messages", {"content": text}
        )
        self.answers_ms.append(took_ms)
        if status == 201:
            self._recorder.acknowledged(self._conversation, answer["number"], text)

    async def _health(self) -> None:
        _, _, took_ms = await self._ask("GET", "/health")
        self.healths_ms.append(took_ms)
