"""The engine under another library's sockets, by a library of our own: what is called, when, never after the end."""

import ctypes
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from realtime._engine import RAW, EngineError, UwsEngine

SOCKET = 0x5EED
RESPONSE, CONTEXT, LOOP = 0xA5, 0xC0, 0x10
FULL = 64 * 1024
TEXT, NO_FRAME, WENT_AWAY = 1, 1006, 1001
READABLE = 1
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = (
    (b"host", b"x"),
    (b"upgrade", b"websocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-extensions", b"permessage-deflate"),
)
OPTIONS = json.dumps({"endpoints": [{"path": "/raw", "mode": "raw", "auth": "none"}]}).encode()

_int, _size, _bool, _pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_bool, ctypes.c_void_p
_texts = ctypes.POINTER(ctypes.c_void_p)
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "uv_run": (_int, _pointer, _int),
    "us_poll_events": (_int, _pointer),
    "us_poll_change": (None, _pointer, _pointer, _int),
    "uws_req_get_full_url": (_size, _pointer, _texts),
    "uws_req_get_case_sensitive_method": (_size, _pointer, _texts),
    "uws_req_for_each_header": (None, _pointer, _pointer, _pointer),
    "uws_res_get_remote_address": (_size, _int, _pointer, _texts),
    "uws_res_on_aborted": (None, _int, _pointer, _pointer, _pointer),
    "uws_res_upgrade": (None, _int, _pointer, _pointer, *(_pointer, _size) * 3, _pointer),
    "uws_res_write_status": (None, _int, _pointer, _pointer, _size),
    "uws_res_write_header": (None, _int, _pointer, *(_pointer, _size) * 2),
    "uws_res_end": (None, _int, _pointer, _pointer, _size, _bool),
    "uws_res_close": (None, _int, _pointer),
    "uws_ws_get_user_data": (_pointer, _int, _pointer),
    "uws_ws_cork": (None, _int, _pointer, _pointer, _pointer),
    "uws_ws_send_with_options": (_int, _int, _pointer, _pointer, _size, _int, _bool, _bool),
    "uws_ws_get_buffered_amount": (_int, _int, _pointer),
    "uws_ws_end": (None, _int, _pointer, _int, _pointer, _size),
    "uws_ws_close": (None, _int, _pointer),
}


class World:
    """An engine, the library under it, and one connection that is open. What happens in the library is a queue."""

    def __init__(self) -> None:
        """Open one connection."""
        self.calls: list[tuple[Any, ...]] = []
        self.buffered = 0
        self.polled = READABLE
        self.name = -1
        self.path = b"/raw"
        self.queue: list[Callable[[], None]] = []
        self._texts: list[Any] = []
        self._functions = {
            name: ctypes.CFUNCTYPE(*prototype)(getattr(self, name)) for name, prototype in _PROTOTYPES.items()
        }
        self.addresses = {name: ctypes.cast(made, _pointer).value or 0 for name, made in self._functions.items()}
        self.engine = UwsEngine(OPTIONS)
        self.callbacks = self.engine.open(self.addresses, LOOP, LOOP)
        self.happens("upgrade", RESPONSE, 1, CONTEXT)

    def happens(self, name: str, *arguments: Any) -> None:
        """Have the library call back at its next run, and let the engine have a turn."""
        self.queue.append(lambda: self.call(name, *arguments))
        self.engine.turn()

    def call(self, name: str, *arguments: Any) -> None:
        """Call the engine as the library does."""
        types = [_pointer if isinstance(each, bytes) or each > 2**16 else _size for each in arguments]
        given = [ctypes.cast(ctypes.c_char_p(a), _pointer) if isinstance(a, bytes) else a for a in arguments]
        callback = ctypes.CFUNCTYPE(None, *types, _pointer)(self.callbacks[name])
        callback(*given, self.callbacks["context"])

    def message(self, text: bytes) -> None:
        """Have a message come."""
        self.happens("message", SOCKET, text, len(text), TEXT)

    def send(self, *texts: str) -> None:
        """Have the engine send these, and run it."""
        for text in texts:
            self.engine.send_text(self.name, text)
        self.engine.submit()
        self.engine.turn()

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        """The calls of these functions, in order."""
        return [call for call in self.calls if call[0] in names]

    @property
    def sent(self) -> list[tuple[Any, ...]]:
        """What went out, and how it was gathered."""
        return self.named("send", "cork", "uncork")

    def raw(self) -> list[object]:
        """The messages that the app has got since it was asked last."""
        return [event[2] for event in self.engine.drain(100) if event[0] == RAW]

    # ---- the library

    def uv_run(self, loop: int, mode: int) -> int:
        assert (loop, mode) == (LOOP, 2)
        queue, self.queue = self.queue, []
        for happens in queue:
            happens()
        return 0

    def us_poll_events(self, socket: int) -> int:
        assert socket == SOCKET
        return self.polled

    def us_poll_change(self, socket: int, loop: int, events: int) -> None:
        assert (socket, loop) == (SOCKET, LOOP)
        self.polled = events

    def _text(self, text: bytes, into: Any) -> int:
        self._texts.append(ctypes.create_string_buffer(text))
        into[0] = ctypes.cast(self._texts[-1], _pointer).value
        return len(text)

    def uws_req_get_full_url(self, _: int, into: Any) -> int:
        return self._text(self.path, into)

    def uws_req_get_case_sensitive_method(self, _: int, into: Any) -> int:
        return self._text(b"GET", into)

    def uws_req_for_each_header(self, _: int, handler: int, headers: int) -> None:
        each = ctypes.CFUNCTYPE(None, ctypes.c_char_p, _size, ctypes.c_char_p, _size, _pointer)(handler)
        for name, value in HEADERS:
            each(name, len(name), value, len(value), headers)

    def uws_res_get_remote_address(self, _ssl: int, _: int, into: Any) -> int:
        return self._text(bytes([127, 0, 0, 1]), into)

    def uws_res_on_aborted(self, *_: int) -> None:
        raise AssertionError("every answer here is given at once")

    def uws_res_upgrade(self, _ssl: int, response: int, name: int, key: int, key_size: int, *rest: int) -> None:
        assert (response, ctypes.string_at(key, key_size), rest[-1]) == (RESPONSE, KEY, CONTEXT)
        # The first name is 0, which ctypes takes for no pointer.
        self.name = name or 0
        self.call("open", SOCKET)

    def uws_res_write_status(self, _ssl: int, _: int, status: int, size: int) -> None:
        self.calls.append(("status", ctypes.string_at(status, size)))

    def uws_res_write_header(self, *_: int) -> None:
        """Nothing looks at them here."""

    def uws_res_end(self, _ssl: int, _: int, body: int, size: int, closes: bool) -> None:
        self.calls.append(("response", ctypes.string_at(body, size), closes))

    def uws_res_close(self, *_: int) -> None:
        self.calls.append(("close response",))

    def uws_ws_get_user_data(self, _ssl: int, socket: int) -> int:
        assert socket == SOCKET
        return self.name

    def uws_ws_cork(self, _ssl: int, socket: int, handler: int, data: int) -> None:
        assert socket == SOCKET
        self.calls.append(("cork",))
        ctypes.CFUNCTYPE(None, _pointer)(handler)(data)
        self.calls.append(("uncork",))

    def uws_ws_send_with_options(self, _ssl: int, socket: int, data: int, size: int, opcode: int, *_: bool) -> int:
        assert socket == SOCKET
        self.calls.append(("send", opcode, ctypes.string_at(data, size)))
        return 1

    def uws_ws_get_buffered_amount(self, _ssl: int, socket: int) -> int:
        assert socket == SOCKET
        return self.buffered

    def uws_ws_end(self, _ssl: int, socket: int, code: int, reason: int, size: int) -> None:
        assert socket == SOCKET
        self.calls.append(("end", code, ctypes.string_at(reason, size) if size else b""))
        # The library tells of the end before it returns.
        self.call("close", SOCKET, code, b"", 0)

    def uws_ws_close(self, _ssl: int, socket: int) -> None:
        assert socket == SOCKET
        self.calls.append(("close",))
        self.call("close", SOCKET, NO_FRAME, b"", 0)


@pytest.fixture
def world() -> Iterator[World]:
    """One that is ended after the test."""
    made = World()
    yield made
    made.engine.stop(0)


def test_an_upgrade_is_made_within_the_call_that_asks_for_it(world: World) -> None:
    assert world.name >= 0
    assert world.engine.backlog(world.name) == 0


def test_a_refusal_is_an_answer_of_the_librarys_own(world: World) -> None:
    world.path = b"/nowhere"
    world.happens("upgrade", RESPONSE, 1, CONTEXT)
    assert world.named("status", "response") == [
        ("status", b"404 Not Found"),
        ("response", b"WebSocket endpoint not found", True),
    ]


def test_a_message_is_sent_as_it_is_and_several_leave_in_one_write(world: World) -> None:
    world.send("alone")
    assert world.sent == [("send", TEXT, b"alone")]
    world.calls.clear()
    world.send("one", "two")
    assert world.sent == [("cork",), ("send", TEXT, b"one"), ("send", TEXT, b"two"), ("uncork",)]


def test_a_message_comes_up_whole(world: World) -> None:
    world.message(b"hello")
    world.message(b"x" * 70_000)
    assert world.raw() == ["hello", "x" * 70_000]


def test_what_is_over_64_kb_waits_for_the_library(world: World) -> None:
    world.buffered = FULL
    world.send("one", "two")
    assert world.sent == []
    assert world.engine.backlog(world.name) > 0
    world.buffered = 0
    world.happens("drain", SOCKET)
    assert [call for call in world.sent if call[0] == "send"] == [("send", TEXT, b"one"), ("send", TEXT, b"two")]


def test_a_sender_that_is_not_read_waits_in_the_kernel_and_goes_on_in_order(world: World) -> None:
    # Over the soft limit of the outbox nothing is read.
    world.buffered = FULL
    world.send("x" * 2_000_000)
    world.message(b"first")
    assert world.polled & READABLE == 0
    # What the library had read before it was stopped.
    world.message(b"second")
    assert world.raw() == []
    world.buffered = 0
    world.happens("drain", SOCKET)
    world.engine.turn()
    assert world.raw() == ["first", "second"]
    assert world.polled & READABLE


def test_who_makes_the_library_read_on_all_the_same_is_cut(world: World) -> None:
    world.buffered = FULL
    world.send("x" * 2_000_000)
    for _ in range(17):
        world.message(b"x" * 1_000_000)
    world.engine.turn()
    assert world.named("close") == [], "a message and 1 MiB may wait"
    world.message(b"x" * 1_000_000)
    world.engine.turn()
    assert world.named("close") == [("close",)]


def test_nothing_is_sent_to_a_socket_that_ended(world: World) -> None:
    first = world.name
    world.engine.send_text(first, "late")
    world.engine.submit()
    world.happens("close", SOCKET, WENT_AWAY, b"bye", 3)
    # The slot is taken again, by another generation; the old name means nothing.
    world.happens("upgrade", RESPONSE, 1, CONTEXT)
    assert world.name not in {-1, first}
    world.engine.send_text(first, "later")
    world.engine.submit()
    world.engine.turn()
    assert world.sent == []


def test_a_close_is_handed_out_and_nothing_follows_it(world: World) -> None:
    world.send("before")
    world.engine.close(world.name, 4001, "enough")
    world.send("late")
    assert world.named("send", "end", "close") == [("send", TEXT, b"before"), ("end", 4001, b"enough")]


def test_what_is_left_at_the_end_is_closed(world: World) -> None:
    world.engine.stop(0)
    world.engine.let_go()
    assert world.named("close") == [("close",)]


def test_a_socket_that_ended_after_the_stop_is_not_closed_again(world: World) -> None:
    world.engine.stop(0)
    world.happens("close", SOCKET, WENT_AWAY, b"bye", 3)
    world.engine.let_go()
    assert world.named("close") == []


def test_it_is_opened_once_and_with_a_whole_library(world: World) -> None:
    assert set(world.addresses) == set(UwsEngine.functions())
    with pytest.raises(EngineError, match="make a new one"):
        world.engine.open(world.addresses, LOOP, LOOP)
    with pytest.raises(EngineError, match="no function uws_ws_end"):
        UwsEngine(OPTIONS).open(world.addresses | {"uws_ws_end": 0}, LOOP, LOOP)
