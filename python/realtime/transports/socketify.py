"""The engine over uWebSockets' sockets, by socketify's C library, on the event loop's thread.

The same names as `_engine.Engine`. uWebSockets does the framing; everything else stays in the hub. libuv, which
uWebSockets runs on, is driven by its backend descriptor, so that an idle server sleeps. What the library calls back
with is kept until its loop has run, since no call of the engine may be made within one of the library's, and a socket
is looked up by its connection before each use. Called by `server`.
"""

import asyncio
import json
import logging
import resource
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from realtime._engine import EngineError, LoopEngine

_log = logging.getLogger("realtime")

_DESCRIPTORS_KEPT: Final = 64
_TICK_S: Final = 0.25
_PONG: Final = 10
_NOWAIT: Final = 2
_NO_CODE: Final = 1005
_ABNORMAL: Final = 1006
_MISSING: Final = "engine.transport = socketify needs"


def _load() -> tuple[Any, Any, Any]:
    """Return socketify's cffi, its library and libuv."""
    try:
        import cffi  # noqa: PLC0415 -- an extra

        uv_ffi = cffi.FFI()
        uv_ffi.cdef("int uv_backend_fd(void *); int uv_run(void *, int);")
        uv = uv_ffi.dlopen("libuv.so.1")
    except ImportError as error:
        raise EngineError(f"{_MISSING} the extra: pip install 'realtime-edge[socketify]'") from error
    except OSError as error:
        raise EngineError(f"{_MISSING} the system's libuv: apt-get install libuv1") from error
    try:
        from socketify import native  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise EngineError(f"{_MISSING} the extra: pip install 'realtime-edge[socketify]'") from error
    except OSError as error:
        raise EngineError(f"{_MISSING} a machine that its library was built for, Linux on x86-64: {error}") from error
    return native.ffi, native.lib, uv


class _Peer:
    """A request, and the socket that it becomes."""

    def __init__(self, response: Any, context: Any, key: bytes) -> None:
        self.conn = -1  # until it is handed in
        self.response, self.context, self.key = response, context, key
        self.socket: Any = None
        self.handle: Any = None


class SocketifyEngine(LoopEngine):
    """Listener, one shard on the loop's thread, and the log's thread."""

    def __init__(self, options: bytes) -> None:
        """Load the library.

        Raises:
            EngineError: it, or libuv, is not there.
        """
        self._ffi, self._lib, self._uv = _load()
        given = json.loads(options)
        self._host, self._asked_port = given["host"], given["port"]
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # What limits.connections_max says is for the hub; this keeps descriptors for everything else.
        self._sockets_max = max(1, descriptors - _DESCRIPTORS_KEPT)
        self._message_bytes_max = given["limits"]["message_bytes_max"]
        self._port = 0
        self._peers: dict[int, _Peer] = {}
        self._arrived: deque[tuple[str, _Peer, int, bytes]] = deque()
        self._heads: list[tuple[_Peer, str, bytes]] = []
        # Whose handles the library holds.
        self._pending: set[_Peer] = set()
        self._kept: list[Any] = []
        self._listening: Any = None
        self._soon = False
        self._ended = False

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def flush(self) -> str:
        """How sends reach the kernel."""
        return "socketify"

    def start(self, accepting: bool = True) -> None:
        """Open the log and make uWebSockets' app; on the loop's thread."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        ffi, lib = self._ffi, self._lib
        address = {
            name: int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))
            for name in ("uws_ws_send_with_options", "uws_ws_get_buffered_amount")
        }
        self._loop = asyncio.get_running_loop()
        self._uv_owner = lib.socketify_create_loop()
        self._uv_loop = lib.socketify_get_native_loop(self._uv_owner)
        lib.uws_get_loop_with_native(self._uv_loop)
        self._app = lib.uws_create_app(0, ffi.new("struct us_socket_context_options_t *")[0])
        self._serve()
        self.open(address["uws_ws_send_with_options"], address["uws_ws_get_buffered_amount"])
        self._loop.add_reader(self.wake_fileno(), self._turn)
        self._loop.add_reader(self._uv_fd(), self._turn)
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        if accepting:
            self.start_accepting()

    def start_accepting(self) -> None:
        """Listen.

        Raises:
            EngineError: the port cannot be had.
        """
        if self._listening:
            return
        ffi, lib = self._ffi, self._lib
        host = ffi.new("char[]", self._host.encode())
        config = ffi.new("uws_app_listen_config_t *", {"port": self._asked_port, "host": host, "options": 1})
        lib.uws_app_listen_with_config(0, self._app, config[0], self._on_listening, ffi.NULL)
        if not self._listening:
            raise EngineError(f"port {self._asked_port} on {self._host} cannot be listened on; set another server.port")
        self._port = lib.us_socket_local_port(0, self._listening)
        self._turn()

    def stop_accepting(self) -> None:
        """Close the listening socket."""
        if self._listening is not None:
            self._lib.us_listen_socket_close(0, self._listening)
            self._listening = None
            self._run_uv()

    def stop(self, timeout_ms: int) -> None:
        """Wait for the connections, then let go; from another thread than the loop's."""
        super().stop(timeout_ms)
        self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        self._loop.remove_reader(self.wake_fileno())
        for peer in list(self._peers.values()):
            self._close(peer)
        self._run_uv()
        self._loop.remove_reader(self._uv_fd())

    def _uv_fd(self) -> int:
        return int(self._uv.uv_backend_fd(self._uv_pointer()))

    def _uv_pointer(self) -> Any:
        return self._ffi.cast("void *", self._uv_loop)

    def _run_uv(self) -> None:
        self._uv.uv_run(self._uv_pointer(), _NOWAIT)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._turn()

    def _again(self) -> None:
        self._soon = False
        self._turn()

    def _turn(self) -> None:
        """Hear the library, run the engine, do what it asks; then let libuv take note of what that changed."""
        if self._ended:
            return
        self._run_uv()
        self._hand_in()
        tasks, more = self.step()
        for what, conn, payload in tasks:
            if (peer := self._peers.get(conn)) is not None:
                self._do(what, peer, payload)
        self._run_uv()
        if (more or self._arrived or self._heads or tasks) and not self._soon:
            self._soon = True
            self._loop.call_soon(self._again)

    def _hand_in(self) -> None:
        heads, self._heads = self._heads, []
        for peer, address, head in heads:
            if peer.response is not None and (conn := self.request(address, head)) is not None:
                peer.conn = conn
                self._peers[conn] = peer
        # Until nothing is left: what is handed in may close a socket, and the engine must know before it sends.
        while self._arrived:
            what, peer, number, payload = self._arrived.popleft()
            if what == "message":
                if not self._taken(peer.conn, number, payload):
                    self._close(peer)
            elif what == "drain":
                self.writable(peer.conn)
            elif self._peers.pop(peer.conn, None) is not None:
                self.closed(peer.conn, _close_payload(number, payload))

    def _taken(self, conn: int, opcode: int, payload: bytes) -> bool:
        try:
            return self.message(conn, opcode, payload)
        except EngineError as error:
            # A panic ends one connection, as it does over our own sockets.
            _log.error("a message could not be handled: %s; its connection was cut", error)
            return False

    def _do(self, what: str, peer: _Peer, payload: bytes) -> None:
        lib = self._lib
        if what == "answer" and peer.response is not None:
            self._answer(peer, payload)
        elif what == "end" and peer.socket is not None:
            code = int.from_bytes(payload[:2], "big") if payload else 0
            lib.uws_ws_end(0, peer.socket, code, payload[2:], max(0, len(payload) - 2))
        elif what == "close":
            self._peers.pop(peer.conn, None)
            self._close(peer)

    def _close(self, peer: _Peer) -> None:
        if peer.socket is not None:
            self._lib.uws_ws_close(0, peer.socket)
        elif peer.response is not None:
            self._refuse(peer.response)
            peer.response = None
            self._pending.discard(peer)

    def _refuse(self, response: Any) -> None:
        """Answer 503, where the engine has not been asked or does not say."""
        lib, status, body = self._lib, b"503 Service Unavailable", b"Service Unavailable"
        lib.uws_res_write_status(0, response, status, len(status))
        lib.uws_res_write_header(0, response, b"Retry-After", 11, b"1", 1)
        lib.uws_res_end(0, response, body, len(body), True)

    def _answer(self, peer: _Peer, answer: bytes) -> None:
        ffi, lib, response = self._ffi, self._lib, peer.response
        head, _, body = answer.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        pairs = [(name, value.strip()) for name, _, value in (header.partition(b":") for header in headers)]
        status = line.partition(b" ")[2]
        peer.response = None
        if status.startswith(b"101"):
            protocol = next((value for name, value in pairs if name.lower() == b"sec-websocket-protocol"), b"")
            key = peer.key
            lib.uws_res_upgrade(0, response, peer.handle, key, len(key), protocol, len(protocol), b"", 0, peer.context)
            if peer.socket is not None:
                self.upgraded(peer.conn, int(ffi.cast("uintptr_t", peer.socket)))
            return
        lib.uws_res_write_status(0, response, status, len(status))
        for name, value in pairs:
            if name.lower() not in {b"content-length", b"connection"}:
                lib.uws_res_write_header(0, response, name, len(name), value, len(value))
        lib.uws_res_end(0, response, body, len(body), True)
        self._pending.discard(peer)
        self._arrived.append(("closed", peer, _ABNORMAL, b""))

    def _serve(self) -> None:
        """Tell the library of every callback; they are kept for as long as it may call them."""
        ffi, lib = self._ffi, self._lib
        behavior = ffi.new("uws_socket_behavior_t *")
        # No compression, no pings, no time-outs and no limit of its own: those are the hub's.
        behavior.compression = behavior.idleTimeout = behavior.maxBackpressure = 0
        behavior.maxPayloadLength = self._message_bytes_max
        behavior.upgrade = self._callback("uws_websocket_upgrade_handler", self._asked)
        behavior.open = self._callback("uws_websocket_handler", self._opened)
        behavior.message = self._callback("uws_websocket_message_handler", self._received)
        behavior.drain = self._callback("uws_websocket_handler", self._drained)
        behavior.ping = behavior.pong = self._callback("uws_websocket_ping_pong_handler", self._beaten)
        behavior.close = self._callback("uws_websocket_close_handler", self._closed)
        self._on_listening = self._callback("uws_listen_handler", self._listens)
        self._on_header = self._callback("uws_get_headers_server_handler", self._header)
        self._on_aborted = self._callback("void(uws_res_t *, void *)", self._aborted)
        other = self._callback(
            "uws_method_handler", lambda response, request, _: self._asked(response, request, None, _)
        )
        lib.uws_ws(0, self._app, b"/*", behavior[0], ffi.NULL)
        lib.uws_app_any(0, self._app, b"/*", other, ffi.NULL)

    def _callback(self, kind: str, function: Callable[..., None]) -> Any:
        callback = self._ffi.callback(kind, function)
        self._kept.append(callback)
        return callback

    def _peer_of(self, socket: Any) -> _Peer:
        peer: _Peer = self._ffi.from_handle(self._lib.uws_ws_get_user_data(0, socket))
        return peer

    def _bytes(self, address: Any, size: int) -> bytes:
        return bytes(self._ffi.buffer(address, size)) if size else b""

    def _asked(self, response: Any, request: Any, context: Any, _: Any) -> None:
        """Take a request over: it is gone when this returns, the response is not."""
        ffi, lib = self._ffi, self._lib
        if len(self._pending) >= self._sockets_max:
            self._refuse(response)
            return
        text = ffi.new("const char **")
        size = lib.uws_req_get_full_url(request, text)
        target = self._bytes(text[0], size)
        size = lib.uws_req_get_case_sensitive_method(request, text)
        method = self._bytes(text[0], size)
        size = lib.uws_res_get_remote_address_as_text(0, response, text)
        address = self._bytes(text[0], size).decode()
        headers: list[tuple[bytes, bytes]] = []
        handle = ffi.new_handle(headers)
        lib.uws_req_for_each_header(request, self._on_header, handle)
        # Not offered to the hub: the library would compress once for each receiver.
        kept = [b"%s: %s" % pair for pair in headers if pair[0] != b"sec-websocket-extensions"]
        head = b"\r\n".join([b"%s %s HTTP/1.1" % (method, target), *kept, b"", b""])
        key = next((value for name, value in headers if name == b"sec-websocket-key"), b"")
        peer = _Peer(response, context, key)
        peer.handle = ffi.new_handle(peer)
        self._pending.add(peer)
        lib.uws_res_on_aborted(0, response, self._on_aborted, peer.handle)
        self._heads.append((peer, address, head))

    def _header(self, name: Any, name_size: int, value: Any, value_size: int, headers: Any) -> None:
        pair = self._bytes(name, name_size), self._bytes(value, value_size)
        self._ffi.from_handle(headers).append(pair)

    def _aborted(self, _: Any, handle: Any) -> None:
        peer: _Peer = self._ffi.from_handle(handle)
        if peer.socket is None and peer.response is not None:
            peer.response = None
            self._pending.discard(peer)
            self._arrived.append(("closed", peer, _ABNORMAL, b""))

    def _opened(self, socket: Any, _: Any) -> None:
        self._peer_of(socket).socket = socket

    def _received(self, socket: Any, message: Any, size: int, opcode: int, _: Any) -> None:
        self._arrived.append(("message", self._peer_of(socket), opcode, self._bytes(message, size)))

    def _beaten(self, socket: Any, _message: Any, _size: int, _: Any) -> None:
        # A ping is answered by the library; to the hub either one is a sign of life.
        self._arrived.append(("message", self._peer_of(socket), _PONG, b""))

    def _drained(self, socket: Any, _: Any) -> None:
        self._arrived.append(("drain", self._peer_of(socket), 0, b""))

    def _closed(self, socket: Any, code: int, message: Any, size: int, _: Any) -> None:
        peer = self._peer_of(socket)
        peer.socket = None
        self._pending.discard(peer)
        self._arrived.append(("closed", peer, code, self._bytes(message, size)))

    def _listens(self, socket: Any, _config: Any, _: Any) -> None:
        self._listening = socket or None


def _close_payload(code: int, reason: bytes) -> bytes | None:
    """What a close frame with this carries; None where there was none."""
    if code == _ABNORMAL:
        return None
    return b"" if code in {0, _NO_CODE} else code.to_bytes(2, "big") + reason
