"""The engine under another library's sockets, by a library of our own: what is sent, when, and never after the end."""

import ctypes
import json
from collections.abc import Iterator

import pytest

from realtime._engine import EngineError, LoopEngine

SOCKET = 0x5EED
FULL = 64 * 1024
HEAD = (
    b"GET /raw HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OPTIONS = json.dumps({"endpoints": [{"path": "/raw", "mode": "raw", "auth": "none"}]}).encode()

_SEND = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_bool,
    ctypes.c_bool,
)
_BUFFERED = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


class World:
    """An engine, the library under it, and one connection that is open."""

    def __init__(self) -> None:
        """Open one connection."""
        self.sent: list[tuple[int, bytes]] = []
        self.buffered = 0
        self._send = _SEND(self._sent)
        self._amount = _BUFFERED(lambda _, __: self.buffered)
        self.engine = LoopEngine(OPTIONS)
        address = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (self._send, self._amount)]
        self.engine.open(*address)
        conn = self.engine.request("127.0.0.1", HEAD)
        assert conn is not None
        self.conn = conn
        [(what, whose, answer)] = self.engine.step()[0]
        assert (what, whose) == ("answer", conn)
        assert answer.startswith(b"HTTP/1.1 101 ")
        self.engine.upgraded(conn, SOCKET)

    def _sent(self, _ssl: int, socket: int, data: int, size: int, opcode: int, _compress: bool, _fin: bool) -> int:
        assert socket == SOCKET
        self.sent.append((opcode, ctypes.string_at(data, size)))
        return 1

    def send(self, *texts: str) -> None:
        """Have the engine send these, and run it."""
        for text in texts:
            self.engine.send_text(self.conn, text)
        self.engine.submit()
        self.engine.step()


@pytest.fixture
def world() -> Iterator[World]:
    """One that is ended after the test."""
    made = World()
    yield made
    made.engine.stop(0)


def test_frames_leave_as_whole_messages(world: World) -> None:
    world.send("one", "two")
    assert world.sent == [(1, b"one"), (1, b"two")]


def test_what_is_over_64_kb_waits_for_the_library(world: World) -> None:
    world.buffered = FULL
    world.send("one", "two")
    assert world.sent == []
    assert world.engine.backlog(world.conn) > 0
    world.buffered = 0
    world.engine.writable(world.conn)
    world.engine.step()
    assert world.sent == [(1, b"one"), (1, b"two")]


def test_nothing_is_sent_to_a_socket_that_ended(world: World) -> None:
    world.engine.send_text(world.conn, "late")
    world.engine.submit()
    world.engine.closed(world.conn)
    world.engine.step()
    # The slot is taken again, by another generation; the old name means nothing.
    again = world.engine.request("127.0.0.1", HEAD)
    assert again != world.conn
    world.engine.step()
    world.engine.writable(world.conn)
    world.send("later")
    assert world.sent == []


def test_a_close_is_handed_out_and_nothing_follows_it(world: World) -> None:
    world.engine.close(world.conn, 4001, "enough")
    world.engine.submit()
    tasks, _ = world.engine.step()
    assert tasks == [("end", world.conn, (4001).to_bytes(2, "big") + b"enough")]
    world.send("late")
    assert world.sent == []


def test_it_is_opened_once_and_with_a_library(world: World) -> None:
    with pytest.raises(EngineError, match="make a new one"):
        world.engine.open(1, 1)
    with pytest.raises(EngineError, match="without a library"):
        LoopEngine(OPTIONS).open(0, 0)
