"""A real server as a process, and clients that are not ours: what the tests over sockets are written with.

`Server` is `realtime serve` started as a user starts it, with its own ports, data directory and secret. It is ready
when its port takes a connection and says so by condition, never by a sleep. `Client` speaks JSON over the `websockets`
library. `RawSocket` speaks bytes, for what no library would send. Nothing here imports `realtime`: the tests see the
server from outside. Used by tests/integration, tests/conformance, tests/node and tests/browser.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

ROOT = Path(__file__).resolve().parent.parent
REALTIME = Path(sys.executable).with_name("realtime")
SECRET = "a-secret-of-the-tests-only-0123456789abcdef"
PATIENCE_S = 15.0
"""How long a test waits for what must come: long enough for a loaded machine, and a failure anyway."""

QUIET_S = 0.3
"""How long a test listens for what must not come."""

Frame = dict[str, Any]

_PORTS_FIRST, _PORTS_PAST_LAST = 11_000, 32_000
"""Ports that tests use: below those which the kernel takes for clients (from 32,768)."""

_PORTS_EACH = 500
"""Ports of one process of tests."""


@functools.cache
def _ports() -> Iterator[int]:
    """Ports of this process alone, round and round.

    A process claims a range by a name in the abstract namespace, which the kernel frees with the process. So workers of
    pytest-xdist, and further runs on the same machine, never try the same port: between the look at a port and the
    server's own bind another run's server would take it, and answer in place of ours.
    """
    for first in range(_PORTS_FIRST, _PORTS_PAST_LAST, _PORTS_EACH):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0realtime-edge-tests-ports-{first}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return itertools.cycle(range(first, first + _PORTS_EACH))
    raise RuntimeError(f"other runs of the tests have all ports from {_PORTS_FIRST} to {_PORTS_PAST_LAST - 1}")


_claims: list[socket.socket] = []
"""Open for as long as the process lives."""


def free_port() -> int:
    """Return a port that nobody listens on and that no other process of tests will try."""
    for port in itertools.islice(_ports(), _PORTS_EACH):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"all {_PORTS_EACH} ports of this process are taken")


def answers_on(port: int) -> bool:
    """Whether a port of this machine takes connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def mint(claims: Mapping[str, object], *, secret: str = SECRET, header: Mapping[str, object] | None = None) -> str:
    """Return a token signed with HMAC-SHA256 by the standard library alone (RFC 7515, RFC 7519)."""

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    head = part(json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode())
    signed = f"{head}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest())}"


def token_for(user: str, *, ttl_s: float = 3600, secret: str = SECRET, **claims: object) -> str:
    """Return a token of `user` that is good for `ttl_s`; further claims as they are."""
    return mint({"sub": user, "exp": int(time.time() + ttl_s), **claims}, secret=secret)


class Listening(Protocol):
    """What a client connects to."""

    @property
    def port(self) -> int:
        """The WebSocket port on this machine."""


class Server:
    """One `realtime serve` process. `async with Server(...)` starts it; it is ended and its output kept at the end."""

    def __init__(
        self,
        folder: Path,
        *,
        app: str | None = None,
        sets: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        secret: str | None = SECRET,
        api: bool = False,
        command: Sequence[str | Path] = (REALTIME,),
    ) -> None:
        """Describe a server; nothing is started yet.

        Args:
            folder: an empty folder; it gets the data directory and the output.
            app: what follows `serve`; None for the built-in app.
            sets: `section.key=value` each, as for `--set`.
            env: further environment variables.
            secret: the configured secret; None lets the server make its own.
            api: whether the HTTP side is started too.
            command: the program, in place of the one beside this Python.
        """
        self.folder = folder
        self.data_dir = folder / "data"
        self.output_path = folder / "output.txt"
        self.port = free_port()
        self.api_port = free_port()
        self._arguments = [*command, "serve", *([app] if app else [])]
        for item in (*([] if api else ["api.enabled=false"]), *sets):
            self._arguments += ["--set", item]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REALTIME_", "WS_", "API_"))}
        self._env = kept | {
            "WS_PORT": str(self.port),
            "API_PORT": str(self.api_port),
            "REALTIME_DATA_DIR": str(self.data_dir),
            **({"REALTIME_JWT_SECRET": secret} if secret else {}),
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def share_port(self) -> None:
        """Have HTTP and WebSockets served on one port, before the start."""
        self.api_port = self.port
        self._env["API_PORT"] = str(self.port)

    @property
    def url(self) -> str:
        """The WebSocket endpoint, without a token."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def api_url(self) -> str:
        """The HTTP side, without a slash at the end."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def link(self) -> str:
        """The newest link to the playground that the server printed; it works once."""
        return str(re.findall(r"Playground  (\S+)", self.output)[-1])

    async def dev_cookie(self) -> str:
        """Open the link as a browser does and return the cookie that comes back."""
        return await asyncio.to_thread(self._dev_cookie)

    def _dev_cookie(self) -> str:
        link = urlsplit(self.link)
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", f"{link.path}?{link.query}")
            answer = connection.getresponse()
            answer.read()
            return str(answer.headers["set-cookie"]).partition(";")[0]

    @property
    def pid(self) -> int:
        """The process, which must be running."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What the process wrote so far to both of its outputs."""
        return self.output_path.read_text(errors="replace") if self.output_path.exists() else ""

    async def __aenter__(self) -> Self:
        """Start it and wait until it takes connections."""
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End it; a server that a test killed or stopped itself is left as it is."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    async def start(self) -> None:
        """Start the process, again after `kill` or `stop` with the same ports and data."""
        await asyncio.to_thread(self.start_now)

    def start_now(self) -> None:
        """Start the process and block until it takes connections."""
        written = self.output_path.stat().st_size if self.output_path.exists() else 0
        self.start_silently()
        self._answers(self.port)
        if "api.enabled=false" not in self._arguments:
            self._answers(self.api_port)
        # Another program may have answered on a port that ours could not have, so the word of ours counts: it comes
        # when all of it listens.
        deadline = time.monotonic() + 60
        while f":{self.port}/".encode() not in self.output_path.read_bytes()[written:]:
            self._must_run()
            assert time.monotonic() < deadline, f"the server did not say within 60 s that it serves:\n{self.output}"
            time.sleep(0.02)

    def start_silently(self, stdout: int | None = None) -> subprocess.Popen[bytes]:
        """Start the process and wait for nothing; `stdout` is a descriptor in place of the output's file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output_path.open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output,
            )
        return self._process

    def is_listening(self) -> bool:
        """Whether its ports take connections."""
        ports = [self.port] if "api.enabled=false" in self._arguments else [self.port, self.api_port]
        try:
            for port in ports:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True

    def _answers(self, port: int) -> None:
        deadline = time.monotonic() + 60
        while True:
            self._must_run()
            if answers_on(port):
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing answered on port {port} within 60 s:\n{self.output}")
            time.sleep(0.02)

    def _must_run(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended with {self._process.returncode}:\n{self.output}")

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    async def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask the process to end and return its exit code."""
        return await asyncio.to_thread(self.stop_now, signum)

    def stop_now(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Ask the process to end, block until it has, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signum)
        return self._process.wait(60)

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def descriptors(self) -> int:
        """How many files and sockets the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def memory_bytes(self) -> int:
        """Resident memory of the process that it shares with nobody."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))

    async def connect(self, user: str = "alice", **options: Any) -> "Client":
        """Return a client that is signed in as `user` and has got its first frame. Options as for `Client.open`."""
        return await Client.open(self, user, **options)

    async def raw(self, user: str = "alice", *, path: str = "/ws", headers: str = "") -> "RawSocket":
        """Return a socket after a hand-made upgrade as `user` whose first frame has been read."""
        async with contextlib.AsyncExitStack() as stack:
            peer = await stack.enter_async_context(await RawSocket.open(self.port))
            await peer.upgrade(f"{path}?token={token_for(user)}", headers)
            opcode, payload = await peer.frame()
            assert (opcode, json.loads(payload)["type"]) == (0x81, "connection_established")
            stack.pop_all()
        return peer


class Client:
    """A signed-in WebSocket of the `websockets` library.

    A task reads it all the time: an answer goes to who waits for its id, everything else into `inbox`, from which the
    expectations take. Frames that an expectation passes over stay there for later.
    """

    def __init__(self, socket: ClientConnection, about: str = "") -> None:
        """Wrap an open connection; tests use `Server.connect`.

        Args:
            socket: the connection.
            about: presence of users whose name does not begin with this is not shown, so that tests that share a
                server do not meet.
        """
        self.socket = socket
        self.inbox: list[Frame] = []
        self._about = about
        self._answers: dict[object, asyncio.Future[Frame]] = {}
        self._arrived = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(
        cls,
        server: Listening,
        user: str = "alice",
        *,
        about: str = "",
        path: str = "/ws",
        token: str | None = None,
        channels: Mapping[str, Sequence[str]] | None = None,
        subprotocols: Sequence[str] = (),
        established: bool = True,
        **options: Any,
    ) -> "Client":
        """Connect with `token`, or with a new one of `user` that grants `channels`; read `connection_established`."""
        if token is None:
            claims: dict[str, Any] = {} if channels is None else {"channels": channels}
            token = token_for(user, **claims)
        address = f"ws://127.0.0.1:{server.port}{path}"
        options = {"compression": None, "max_size": None, "proxy": None, "open_timeout": PATIENCE_S} | options
        names = [Subprotocol(name) for name in subprotocols] or None
        client = cls(await connect(f"{address}?token={token}", subprotocols=names, **options), about)
        if established:
            await client.expect("connection_established")
        return client

    async def __aenter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close with 1000."""
        await self.socket.close()
        await self._reader

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.socket:
                frame: Frame = json.loads(message)
                answer = self._answers.pop(frame.get("id"), None) if "id" in frame else None
                if answer is not None and not answer.done():
                    answer.set_result(frame)
                elif frame["type"] != "user_presence" or str(frame["data"]["userId"]).startswith(self._about):
                    self.inbox.append(frame)
                    self._arrived.set()
        self._arrived.set()

    async def send(self, type: str, data: object = None, *, id: object = None) -> None:
        """Send one command; `data` and `id` are left out where they are None. With an id, `answer` gives its answer."""
        if id is not None:
            self._answers[id] = asyncio.get_running_loop().create_future()
            self._answers[("kept", id)] = self._answers[id]
        frame = {"type": type, "data": data, "id": id}
        await self.socket.send(json.dumps({name: value for name, value in frame.items() if value is not None}))

    async def ask(self, type: str, data: object = None, *, id: object = None) -> Frame:
        """Send a command with an id and return its one answer."""
        id = next(_ids) if id is None else id
        await self.send(type, data, id=id)
        return await self.answer(id)

    async def answer(self, id: object) -> Frame:
        """Return the answer to the command that was sent with `id`."""
        answer = self._answers.pop(("kept", id))
        try:
            return await asyncio.wait_for(answer, PATIENCE_S)
        except TimeoutError:
            raise AssertionError(f"no answer to command {id!r}; {self._kept()}") from None

    def answers(self) -> list[Frame]:
        """Return the answers that came and that nobody has taken by `answer`."""
        return [answer.result() for answer in set(self._answers.values()) if answer.done()]

    async def _next(self, timeout_s: float) -> None:
        """Wait until something arrives behind what the inbox holds."""
        self._arrived.clear()
        if self._reader.done():
            raise TimeoutError("the connection has ended")
        await asyncio.wait_for(self._arrived.wait(), timeout_s)

    def _kept(self) -> str:
        ended = f" (closed {self.socket.close_code} {self.socket.close_reason!r})" if self._reader.done() else ""
        return f"the last that came{ended}:\n  " + "\n  ".join(json.dumps(frame)[:2_000] for frame in self.inbox[-10:])

    async def receive(self) -> Frame:
        """Return the next frame, the kept ones first."""
        while not self.inbox:
            await self._next(PATIENCE_S)
        return self.inbox.pop(0)

    async def expect(self, type: str, *, timeout_s: float = PATIENCE_S, **data: object) -> Frame:
        """Return the first frame of `type` whose data has these members; others that come before it are kept."""
        deadline = time.monotonic() + timeout_s
        looked_at = 0
        while True:
            for index in range(looked_at, len(self.inbox)):
                if _matches(self.inbox[index], type, data):
                    return self.inbox.pop(index)
            looked_at = len(self.inbox)
            try:
                await self._next(max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"no {type} with {data} within {timeout_s} s; {self._kept()}") from None

    async def refute(self, type: str, *, within_s: float = QUIET_S, **data: object) -> None:
        """Assert that no such frame is kept or comes within `within_s`."""
        await asyncio.sleep(within_s)
        found = [frame for frame in self.inbox if _matches(frame, type, data)]
        assert not found, f"{type} came though it must not: {found}"

    async def subscribe(self, channel: str, **options: object) -> Frame:
        """Subscribe and return the data of the confirmation."""
        frame = await self.ask("subscribe", {"channel": channel, **options})
        assert frame["type"] == "subscription_confirmed", frame
        return dict(frame["data"])

    async def say(self, conversation: str, content: str, **options: object) -> Frame:
        """Send a message and return the stored one from its acknowledgement."""
        frame = await self.ask("send_message", {"conversationId": conversation, "content": content, **options})
        assert frame["type"] == "ack", frame
        return dict(frame["data"])

    async def closed(self, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
        """Wait for the end of the connection; return its close code (1006 without one) and reason."""
        await asyncio.wait_for(asyncio.shield(self._reader), timeout_s)
        return self.socket.close_code or 1006, self.socket.close_reason or ""

    async def is_alive(self) -> bool:
        """Whether a ping is answered."""
        return bool((await self.ask("ping"))["type"] == "pong")

    def drop(self) -> None:
        """Cut the connection without a closing handshake, as a lost network does."""
        self.socket.transport.abort()


_ids = itertools.count(1_000_000)


def _matches(frame: Frame, type: str, data: Mapping[str, object]) -> bool:
    inner = frame.get("data")
    if frame.get("type") != type:
        return False
    return not data or (isinstance(inner, dict) and all(inner.get(name) == value for name, value in data.items()))


class RawSocket:
    """A TCP connection that sends exactly the bytes it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wrap an open connection; tests use `open`."""
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 26))

    async def __aenter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Cut it."""
        self.writer.transport.abort()

    async def send(self, payload: bytes) -> None:
        """Send bytes as they are; a peer that has gone is found out by reading."""
        self.writer.write(payload)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def send_apart(self, payload: bytes) -> None:
        """Send bytes and wait until the server has read them, so that none that follow come with the same read."""
        await self.send(payload)
        await eventually(self._is_read, what="that the server reads")

    def _is_read(self) -> bool:
        """Whether the server's kernel has all that was sent and its process has taken it, or has closed."""
        names = (self.writer.get_extra_info(name) for name in ("sockname", "peername"))
        here, there = (f":{port:04X}" for _, port in names)
        # Of each end in /proc/net/tcp: its address, the other's, the state (01 is established), bytes that wait out and
        # in, and the inode, which is 0 until the connection is accepted.
        ends = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, state, queues, _, _, _, _, inode, *_ = line.split()
            ends[local[-5:], remote[-5:]] = (state, inode, [int(size, 16) for size in queues.split(":")])
        state, _, (unacknowledged, _) = ends.get((here, there), ("07", "0", [0, 0]))
        if state != "01":
            return True
        _, inode, (_, unread) = ends.get((there, here), ("07", "0", [0, 0]))
        return unacknowledged == 0 and inode != "0" and unread == 0

    async def upgrade(self, target: str, headers: str = "") -> str:
        """Send a good upgrade request for `target` with further header lines and return the head of the 101."""
        await self.send(upgrade_request(target, headers))
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return head.decode()

    async def response(self) -> tuple[int, dict[str, str], str]:
        """Read an HTTP answer up to the end of the connection: status, headers in lower case, body."""
        content = await self.rest()
        head, _, body = content.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert headers.get("connection", "").lower() == "close", content
        return int(status_line.split()[1]), headers, body.decode()

    async def rest(self, timeout_s: float = PATIENCE_S) -> bytes:
        """Read to the end of the connection; a reset ends it too."""
        content = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(65_536), timeout_s):
                content += piece
        return bytes(content)

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame: its first byte (FIN, RSV and opcode) and its payload, which must not be masked."""
        first, second = await asyncio.wait_for(self.reader.readexactly(2), PATIENCE_S)
        assert not second & 0x80, "a server masks nothing (RFC 6455 5.1)"
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        return first, await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)

    async def close_frame(self) -> tuple[int, str]:
        """Read up to the Close frame and to the end of the connection; return its code and reason."""
        while True:
            first, payload = await self.frame()
            if first == 0x88:
                break
        assert await self.rest() == b"", "nothing follows a Close frame (RFC 6455 5.5.1)"
        return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (1005, "")

    async def text(self, payload: str | bytes) -> None:
        """Send one masked text frame."""
        await self.send(client_frame(0x81, payload.encode() if isinstance(payload, str) else payload))

    async def until(self, type: str) -> Frame:
        """Read text frames up to one of `type` and return it."""
        while True:
            _, payload = await self.frame()
            frame = json.loads(payload)
            if frame["type"] == type:
                return dict(frame)


def upgrade_request(target: str, headers: str = "") -> bytes:
    """Return a good upgrade request (RFC 6455 4.1); `headers` are further lines, each with its CRLF."""
    return (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    ).encode()


def client_frame(
    first: int, payload: bytes, *, mask: bytes | None = b"\x37\xfa\x21\x3d", size: int | None = None
) -> bytes:
    """Return one frame with `first` as its first byte (FIN, RSV, opcode).

    Args:
        mask: the masking key; None leaves the frame unmasked, which a server must refuse.
        size: the length that the header announces, where it is to differ from that of `payload`.
    """
    size = len(payload) if size is None else size
    bit = 0x80 if mask else 0
    if size < 126:
        header = bytes([first, bit | size])
    elif size < 65_536:
        header = bytes([first, bit | 126]) + size.to_bytes(2, "big")
    else:
        header = bytes([first, bit | 127]) + size.to_bytes(8, "big")
    if not mask:
        return header + payload
    key = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return header + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(len(payload), "big")


async def eventually(condition: Any, *, timeout_s: float = PATIENCE_S, what: str = "the condition") -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s} s"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def clients(server: Server, *users: str, about: str = "") -> AsyncIterator[list[Client]]:
    """Open one client a user and close them all at the end."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await server.connect(user, about=about)) for user in users]
