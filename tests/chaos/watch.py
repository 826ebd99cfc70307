"""What a server process takes, looked at from outside several times a second: memory, descriptors, processor."""

import contextlib
import http.client
import os
import threading
import time
from pathlib import Path
from typing import Final, Self

from tests.kit import Server

EVERY_S: Final = 0.2
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Watch:
    """A thread that looks at a server from `__enter__` to `__exit__`; the peaks are those since `begin`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._end = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._look, self._probe)]
        self.faults: list[str] = []
        self.begin()

    def begin(self) -> None:
        """Forget the peaks."""
        self.memory_bytes = 0
        self.descriptors = 0
        self.health_s = 0.0
        self._began = time.monotonic()
        self._busy_before = self._busy()

    def busy(self) -> dict[str, float]:
        """Return the share of a core that each thread took since `begin`, by the thread's name."""
        passed = time.monotonic() - self._began
        shares: dict[str, float] = {}
        for thread, (name, ticks) in self._busy().items():
            before = self._busy_before.get(thread, (name, 0))[1]
            shares[name] = shares.get(name, 0.0) + (ticks - before) / TICKS / passed
        return {name: round(share, 3) for name, share in shares.items() if share >= 0.01}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10)

    def _look(self) -> None:
        while not self._end.wait(EVERY_S):
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{self._server.pid}/status").read_text()
                resident = status.partition("VmRSS:")[2].split()[0]
                self.memory_bytes = max(self.memory_bytes, int(resident) * 1_024)
                self.descriptors = max(self.descriptors, self._server.descriptors())

    def _probe(self) -> None:
        """Ask for /health on a new connection, again and again, as a load balancer does."""
        while not self._end.wait(EVERY_S):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._server.api_port, timeout=20)
            try:
                connection.request("GET", "/health")
                status = connection.getresponse().status
                if status != 200:
                    self.faults.append(f"/health answered {status}")
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"/health: {error!r} after {time.monotonic() - began:.1f} s")
            finally:
                connection.close()
            self.health_s = max(self.health_s, time.monotonic() - began)

    def _busy(self) -> dict[str, tuple[str, int]]:
        threads: dict[str, tuple[str, int]] = {}
        for folder in Path(f"/proc/{self._server.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                fields = rest.split()
                threads[folder.name] = (name, int(fields[11]) + int(fields[12]))
        return threads


def figures(server: Server, *prefixes: str) -> dict[str, float]:
    """Return what /metrics says of the families that begin so."""
    connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name.startswith(prefixes)
    }
