"""The engine over uWebSockets' sockets, by socketify's C library, on the event loop's thread.

The same names as `_engine.Engine`. This loads the library and tells it whom to call; from then on the engine and the
library call each other by address, and no Python runs for a message. libuv, which uWebSockets runs on, is driven by its
backend descriptor, so that an idle server sleeps. Called by `server`.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Final

from realtime._engine import EngineError, UwsEngine

_TICK_S: Final = 0.25
_MISSING: Final = "engine.transport = socketify needs"


def _load() -> tuple[Any, Any, str]:
    """Return socketify's cffi, its library, and where that is.

    Raises:
        EngineError: it, or libuv, is not there.
    """
    try:
        import cffi  # noqa: PLC0415 -- an extra

        cffi.FFI().dlopen("libuv.so.1")
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
    return native.ffi, native.lib, native.library_path


def _addresses(path: str, names: Iterable[str]) -> dict[str, int]:
    """Return where the functions of these names are, in the library at `path` or in libuv."""
    import cffi  # noqa: PLC0415 -- an extra

    ffi = cffi.FFI()
    # Only their addresses are taken: any prototype does.
    ffi.cdef("".join(f"void {name}(void);" for name in names))
    libraries = {"uv": ffi.dlopen("libuv.so.1"), "us": ffi.dlopen(path), "uws": ffi.dlopen(path)}

    def address(name: str) -> int:
        try:
            return int(ffi.cast("uintptr_t", ffi.addressof(libraries[name.partition("_")[0]], name)))
        except AttributeError as error:
            raise EngineError(f"{_MISSING} another version of socketify: this one has no {name}") from error

    return {name: address(name) for name in names}


class SocketifyEngine(UwsEngine):
    """Listener, one shard on the loop's thread, and the log's thread."""

    def __init__(self, options: bytes) -> None:
        """Load the library.

        Raises:
            EngineError: it, or libuv, is not there.
        """
        self._ffi, self._lib, path = _load()
        self._functions = _addresses(path, [*self.functions(), "uv_backend_fd"])
        given = json.loads(options)
        self._host, self._asked_port = given["host"], given["port"]
        self._message_bytes_max = given["limits"]["message_bytes_max"]
        self._port = 0
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
        ffi, lib = self._ffi, self._lib
        # Both live as long as the process: the library keeps one loop for each thread.
        self._uv_loop = lib.socketify_get_native_loop(lib.socketify_create_loop())
        us_loop = lib.uws_get_loop_with_native(self._uv_loop)
        self._app = lib.uws_create_app(0, ffi.new("struct us_socket_context_options_t *")[0])
        self._serve(self.open(self._functions, self._address(self._uv_loop), self._address(us_loop)))
        backend_fd = ffi.cast("int(*)(void *)", self._functions["uv_backend_fd"])
        self._uv_fd = int(backend_fd(self._uv_loop))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.wake_fileno(), self._turn)
        self._loop.add_reader(self._uv_fd, self._turn)
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
        # Called before the function returns.
        listens = ffi.callback("uws_listen_handler", self._listens)
        lib.uws_app_listen_with_config(0, self._app, config[0], listens, ffi.NULL)
        if not self._listening:
            raise EngineError(
                f"cannot listen on {self._host}:{self._asked_port}; stop the program that uses it, or choose another "
                "server.port"
            )
        self._port = lib.us_socket_local_port(0, self._listening)
        self._turn()

    def stop_accepting(self) -> None:
        """Close the listening socket."""
        if self._listening is not None:
            self._lib.us_listen_socket_close(0, self._listening)
            self._listening = None
            self._turn()

    def stop(self, timeout_ms: int) -> None:
        """Wait for the connections, then let go; from another thread than the loop's."""
        super().stop(timeout_ms)
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        self._loop.remove_reader(self.wake_fileno())
        self._loop.remove_reader(self._uv_fd)
        self.let_go()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._turn()

    def _again(self) -> None:
        self._soon = False
        self._turn()

    def _turn(self) -> None:
        if not self._ended and self.turn() and not self._soon:
            self._soon = True
            self._loop.call_soon(self._again)

    def _serve(self, callbacks: dict[str, int]) -> None:
        """Tell the library whom to call."""
        ffi, lib = self._ffi, self._lib
        behavior = ffi.new("uws_socket_behavior_t *")
        # No compression, no pings, no time-outs and no limit of its own: those are the hub's.
        behavior.compression = behavior.idleTimeout = behavior.maxBackpressure = 0
        behavior.maxPayloadLength = self._message_bytes_max
        for name in ("upgrade", "open", "message", "drain", "ping", "pong", "close"):
            setattr(behavior, name, ffi.cast(ffi.typeof(getattr(behavior, name)), callbacks[name]))
        context = ffi.cast("void *", callbacks["context"])
        lib.uws_ws(0, self._app, b"/*", behavior[0], context)
        lib.uws_app_any(0, self._app, b"/*", ffi.cast("uws_method_handler", callbacks["request"]), context)

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))

    def _listens(self, socket: Any, _config: Any, _: Any) -> None:
        self._listening = socket or None
