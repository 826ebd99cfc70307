"""An engine that notes what it is told and hands out the events that a test gives it.

It has no logic of its own, so that a test sees exactly which commands Python's half makes. Tests of the whole use
`realtime.testing.TestApp`, over the real hub.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest

from realtime import Realtime, _engine
from realtime.base.clock import ManualClock
from realtime.base.config import Keys, Settings
from realtime.base.logs import TextLines
from realtime.control.control import Control

STAMP: Final = "1970-01-01T00:16:40.000Z"
"""What the clock of a `Half` shows."""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, as it is written for people, without the time."""
    return [TextLines().format(record).partition(" ")[2] for record in caplog.records]


class RecordingEngine:
    """Stands for `_engine.Commands`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.submitted = 0
        self.takes_replies = True
        self.behind = False
        self.backlogs: list[int] = []
        self._ticket = 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: self.calls.append((name, *arguments, *named.values()))

    def publish(self, *arguments: Any) -> int:
        self._ticket += 1
        self.calls.append(("publish", *arguments))
        return self._ticket

    def history(self, *arguments: Any) -> int:
        self._ticket += 1
        self.calls.append(("history", *arguments))
        return self._ticket

    def members_of(self, channel: str) -> int:
        self._ticket += 1
        self.calls.append(("members_of", channel))
        return self._ticket

    def reply_with(self, ticket: int, conn: int, id: bytes | None, failure: str | None) -> bool:
        self.calls.append(("reply_with", ticket, conn, id, failure))
        return self.takes_replies

    def charge(self, *_: Any) -> int | None:
        return None

    def submit(self) -> None:
        self.submitted += 1

    def drain(self, most: int) -> list[tuple[Any, ...]]:
        batch, self.events = self.events[:most], self.events[most:]
        return batch

    def session_id(self, conn: int) -> str:
        return f"s{conn}"

    def conn_of(self, session_id: str) -> int | None:
        return int(session_id[1:]) if session_id[1:].isdigit() else None

    def overloaded(self) -> bool:
        return self.behind

    def backlog(self, _conn: int) -> int:
        return self.backlogs.pop(0) if self.backlogs else 0

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a name."""
        return [call[1:] for call in self.calls if call[0] == name]


class Half:
    """Python's half of a server over a `RecordingEngine`, with a clock that is moved by hand."""

    def __init__(self, app: Realtime, settings: Settings | None = None) -> None:
        self.app = app
        self.engine = RecordingEngine()
        self.clock = ManualClock(1_000_000)
        self.settings = settings or Settings()
        rules = app.compile(self.settings)
        engine: Any = self.engine
        self.control = Control(rules, self.settings, Keys(("s" * 32,), generated=True), engine, self.clock)
        app.running(self.control)

    def take(self, *events: tuple[Any, ...]) -> None:
        """Hand events over and take the turns that they cause: more than one where the machine is busy."""
        self.engine.events.extend(events)
        self.control.turn()
        while self.control.has_left or self.engine.events:
            self.control.turn()

    def open(self, conn: int, user: str = "alice", endpoint: int = 0) -> None:
        self.take((_engine.OPEN, conn, user, endpoint, False, "127.0.0.1:1", None, None, None, None, None))

    def close(self, conn: int, code: int = 1000, channels: list[str] | None = None) -> None:
        self.take((_engine.CLOSE, conn, code, channels or [], 0))

    def command(self, conn: int, route: int = 0, id: bytes | None = b"1", data: bytes | None = b"{}") -> None:
        self.take((_engine.MESSAGE, conn, route, id, data, 0))

    def texts(self, conn: int) -> list[bytes]:
        """What one connection was sent."""
        return [call[1] for call in self.engine.named("send_text") if call[0] == conn]

    def credits(self, conn: int) -> int:
        """How many credits a connection got back."""
        by_text: int = sum(call[2] for call in self.engine.named("send_text") if call[0] == conn and len(call) > 2)
        by_reply = sum(1 for call in self.engine.named("reply_with") if call[1] == conn and self.engine.takes_replies)
        resumed: int = sum(1 for name in ("grant", "resume") for call in self.engine.named(name) if call[0] == conn)
        return by_text + by_reply + resumed + sum(1 for call in self.engine.named("done") if call[0] == conn)

    async def settle(self) -> None:
        """Let tasks run until they wait for something that a test must do."""
        for _ in range(10):
            await asyncio.sleep(0)


def decoded(half: Half, conn: int = 1) -> list[Any]:
    """What one connection was sent, as Python values."""
    return [msgspec.json.decode(text) for text in half.texts(conn)]


def error(code: str, message: str, *, retryable: bool = False, id: object = 1, **more: object) -> dict[str, object]:
    """An `error` event as a client gets it."""
    data = {"message": message, "code": code, "retryable": retryable, **more}
    frame: dict[str, object] = {"type": "error", "data": data, "timestamp": STAMP}
    return frame if id is None else {**frame, "id": id}


def ack(data: object, id: object = 1) -> dict[str, object]:
    """An `ack` event as a client gets it."""
    return {"type": "ack", "data": data, "timestamp": STAMP, "id": id}
