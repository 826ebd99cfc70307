"""Sockets of attackers, thousands to a process: each follows a script of its own, and one epoll moves them all.

A script is a generator that yields steps (`Open`, `Send`, `Pause`, `Receive`, `Hold`). When it ends, or the server ends
its connection, the socket is cut and the script begins anew after the attack's pause. A swarm makes at most so many
steps and sends at most so many bytes a second: the attackers share the machine with the server, and must not win by
taking its processor.
"""

import contextlib
import errno
import heapq
import itertools
import os
import random
import select
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT (linux/in.h): the port is chosen at the connect, so that one address has 28,000 a server."""

_RESET = struct.pack("ii", 1, 0)
_PIECE = 262_144


@dataclass(frozen=True, slots=True)
class Open:
    """Connect to a port of the server; goes on once the kernel has connected."""

    port: int
    receive_buffer: int = 0


@dataclass(frozen=True, slots=True)
class Send:
    """Send bytes; goes on once the kernel has taken all of them."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Go on after some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Receive:
    """Go on with the next bytes that come."""


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Close the sending side (FIN)."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Go on never: the connection stays until the server ends it."""


Step = Open | Send | Pause | Receive | HalfClose | Hold
Script = Generator[Step, bytes, None]


@dataclass(slots=True, eq=False)
class Peer:
    """One socket and where its script is."""

    begin: Callable[["Peer"], Script]
    number: int
    pause_s: float
    reads: bool
    script: Script | None = None
    connection: socket.socket | None = None
    left: memoryview = field(default_factory=lambda: memoryview(b""))
    receives: bool = False
    connecting: bool = False
    turn: int = 0
    """Counts the lives of the socket: a timer of an earlier one is late."""


class Swarm:
    """All sockets of a process of attackers, from one address."""

    def __init__(self, address: str, *, steps_per_s: int, bytes_per_s: int, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.random = random.Random(seed)
        self._address = address
        self._rates = (steps_per_s, bytes_per_s)
        self._poller = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._ready: deque[tuple[Peer, int, bytes]] = deque()
        self._timers: list[tuple[float, int, Peer, int]] = []
        self._serial = itertools.count()
        self._scratch = bytearray(_PIECE)

    def add(self, peer: Peer, *, within_s: float) -> None:
        """Let a peer begin at a random moment within some seconds."""
        self._later(peer, self.random.uniform(0, within_s))

    def run(self, seconds: float) -> None:
        """Move all sockets for some seconds, then cut them."""
        steps_per_s, bytes_per_s = self._rates
        began = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            passed = now - began + 0.05
            self._wake(now)
            self._poll(0.0 if self._ready else self._sleep(now, began + seconds))
            while (
                self._ready
                and self.counts["steps"] < steps_per_s * passed
                and self.counts["sent"] < bytes_per_s * passed
            ):
                peer, turn, content = self._ready.popleft()
                if peer.turn == turn:
                    self._go_on(peer, content)
            if self._ready:
                time.sleep(0.002)
        for peer in list(self._peers.values()):
            self._cut(peer)
        self._poller.close()

    def _sleep(self, now: float, end: float) -> float:
        first = self._timers[0][0] if self._timers else end
        return max(0.0, min(first, end, now + 0.1) - now)

    def _later(self, peer: Peer, seconds: float) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), peer, peer.turn))

    def _wake(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, peer, turn = heapq.heappop(self._timers)
            self._ready.append((peer, turn, b""))

    def _poll(self, timeout_s: float) -> None:
        for descriptor, events in self._poller.poll(timeout_s, 512):
            peer = self._peers.get(descriptor)
            if peer is None:
                continue
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._end(peer, "refused" if peer.connecting else "ended")
            elif events & select.EPOLLOUT:
                peer.connecting = False
                self._write(peer)
            elif events & select.EPOLLIN:
                self._read(peer)
            elif events & select.EPOLLRDHUP and not peer.reads:
                self._end(peer, "ended")

    def _read(self, peer: Peer) -> None:
        assert peer.connection is not None
        try:
            count = peer.connection.recv_into(self._scratch)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._end(peer, "ended")
            return
        self.counts["received"] += count
        if peer.receives:
            peer.receives = False
            self._watch(peer)
            self._ready.append((peer, peer.turn, bytes(self._scratch[:count])))

    def _watch(self, peer: Peer) -> None:
        assert peer.connection is not None
        wanted = select.EPOLLRDHUP
        if peer.left or peer.connecting:
            wanted |= select.EPOLLOUT
        elif peer.reads or peer.receives:
            wanted |= select.EPOLLIN
        self._poller.modify(peer.connection.fileno(), wanted)

    def _go_on(self, peer: Peer, content: bytes) -> None:
        self.counts["steps"] += 1
        try:
            if peer.script is None:
                peer.script = peer.begin(peer)
                step = next(peer.script)
            else:
                step = peer.script.send(content)
        except StopIteration:
            self._end(peer, "rounds")
            return
        match step:
            case Open():
                self._open(peer, step)
            case Send(content=content):
                peer.left = memoryview(content)
                self._write(peer)
            case Pause(seconds=seconds):
                self._later(peer, seconds)
            case Receive():
                peer.receives = True
                self._watch(peer)
            case HalfClose():
                assert peer.connection is not None
                with contextlib.suppress(OSError):
                    peer.connection.shutdown(socket.SHUT_WR)
                self._ready.append((peer, peer.turn, b""))
            case Hold():
                pass

    def _open(self, peer: Peer, step: Open) -> None:
        if peer.connection is not None:
            self._cut(peer)
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if step.receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, step.receive_buffer)
        peer.connection, peer.connecting = connection, True
        try:
            connection.bind((self._address, 0))
            code = connection.connect_ex(("127.0.0.1", step.port))
        except OSError as error:
            code = error.errno or errno.EIO
        self._peers[connection.fileno()] = peer
        self._poller.register(connection.fileno(), select.EPOLLRDHUP | select.EPOLLOUT)
        self.counts["opened"] += 1
        if code not in {0, errno.EINPROGRESS}:
            self._end(peer, "refused")

    def _write(self, peer: Peer) -> None:
        assert peer.connection is not None
        try:
            while peer.left:
                count = peer.connection.send(peer.left[:_PIECE])
                self.counts["sent"] += count
                peer.left = peer.left[count:]
        except BlockingIOError:
            self._watch(peer)
            return
        except OSError:
            self._end(peer, "ended")
            return
        self._watch(peer)
        self._ready.append((peer, peer.turn, b""))

    def _end(self, peer: Peer, why: str) -> None:
        self.counts[why] += 1
        self._cut(peer)
        peer.turn += 1
        self._later(peer, peer.pause_s * self.random.uniform(0.5, 1.5))

    def _cut(self, peer: Peer) -> None:
        if peer.script is not None:
            peer.script.close()
        if peer.connection is not None:
            self._peers.pop(peer.connection.fileno(), None)
            peer.connection.close()
        peer.script = peer.connection = None
        peer.left, peer.receives, peer.connecting = memoryview(b""), False, False


def step_back() -> None:
    """Give this process what the others leave of the processor: attackers are other machines."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(19)
