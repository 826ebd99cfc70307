"""Runs: one workload against one fresh server, and all workloads against all servers in turns."""

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import http.client
import json
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from benches import machine
from benches.machine import BENCHES, LOAD_CORE, family, pinned
from benches.scrape import scrape
from benches.servers import Server, WrongError, running, service_key, wait_for_http
from benches.workloads import Workload

NOT_STARTED = 2
"""The generator's exit code for a wrong call, or nobody there."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a whole run is made of."""

    generator: Path
    servers: Sequence[Server]
    workloads: Sequence[Workload]
    rounds: int = 3
    seconds: float = 5
    """Measured time of one run."""
    warmup: float = 1
    connections: int | None = None
    """In place of each workload's own number."""

    def turns(self) -> Iterator[tuple[int, Workload, Server]]:
        """All runs in their order: who comes second may find a warmer or a throttled machine, so they take turns."""
        for index in range(self.rounds):
            ordered = self.servers if index % 2 == 0 else tuple(reversed(self.servers))
            for workload in self.workloads:
                for server in ordered:
                    if workload.asks(server) and (server.rounds is None or index < server.rounds):
                        yield index + 1, workload, server


def measure(plan: Plan) -> tuple[list[dict[str, Any]], list[str]]:
    """Run everything; returns one entry a run, and what was wrong."""
    results: list[dict[str, Any]] = []
    wrong: list[str] = []
    for number, workload, server in plan.turns():
        print(f"round {number}/{plan.rounds}  {workload.title:<19} {server.title}", file=sys.stderr)
        run = {"round": number, "workload": workload.name, "server": server.name}
        try:
            results.append(run | {"figures": run_once(plan, server, workload)})
        except WrongError as fault:
            print(f"  WRONG: {fault}", file=sys.stderr)
            wrong.append(str(fault))
    return results, wrong


def run_once(plan: Plan, server: Server, workload: Workload) -> dict[str, Any]:
    """One workload against one fresh server; returns the load's figures.

    Raises:
        WrongError: the server crashed, or the load found a fault.
    """
    secret, sockets, loop = secrets.token_hex(32), Sockets(), Loop()
    users = plan.connections or workload.users
    seconds = workload.seconds or plan.seconds
    with tempfile.TemporaryDirectory(prefix="realtime-bench-") as name:
        directory = Path(name)
        tokens = directory / "tokens"
        # A user for each connection, so that every server keeps as many identities as it has sessions.
        tokens.write_text("\n".join(token(secret, f"u{index}") for index in range(users)))
        with running(server, directory, secret, compressed=workload.compressed) as (port, api_port, pid):
            if workload.idle:
                machine.wait_until_settled(pid)
            pids = [argument for each in family(pid) for argument in ("--pid", str(each))]
            url = f"ws://127.0.0.1:{port}/ws{server.query}"
            load = [str(plan.generator), "--url", url, "--dialect", server.dialect, "--tokens-file", str(tokens)]
            if workload.script is None:
                load += [*workload.arguments, *pids, "--connections", str(users)]
                load += ["--seconds", str(seconds), "--warmup", str(plan.warmup)]
                loop = Loop(api_port, service_key(secret), after_s=plan.warmup + 1) if workload.late else loop
                with sockets if workload.idle else contextlib.nullcontext(), loop:
                    stdout = loaded(load, workload, server)
            else:
                wait_for_http(api_port)
                script = [sys.executable, str(BENCHES / workload.script), *workload.arguments]
                script += ["--port", str(api_port), "--ws-port", str(port), "--key", service_key(secret)]
                script += ["--token", token(secret, "u0"), "--seconds", str(seconds)]
                if workload.script == "scrape.py":
                    idle = ["--workload", "idle", "--connections", str(users), "--seconds", "3600"]
                    with beside([*load, *idle]):
                        stdout = loaded([*script, "--connections", str(users)], workload, server)
                else:
                    stdout = loaded([*script, *pids], workload, server)
    figures: dict[str, Any] = json.loads(stdout)
    if loop.late_us:
        figures["loop_late_max_us"] = loop.late_us
    if sockets.bytes:
        # Both ends are on this machine, and one of them is the server's.
        figures["socket_bytes_per_connection"] = round(sockets.bytes / 2 / users)
    return figures


def loaded(command: Sequence[str], workload: Workload, server: Server) -> str:
    """Run a load on its core to the end; returns what it printed.

    Raises:
        WrongError: it found a fault.
    """
    with pinned(LOAD_CORE):
        load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = load.communicate()
    if load.returncode:
        lines = stderr.splitlines()
        faults = [line.removeprefix("WRONG: ") for line in lines if line.startswith("WRONG")]
        # A load that did not start says why in its first line, a script that failed in its last ones.
        faults = faults or (lines[:1] if load.returncode == NOT_STARTED else lines[-3:])
        raise WrongError(f"{workload.title} against {server.name}: {'; '.join(faults)}")
    return stdout


class Loop:
    """How late our event loop was at most while the body ran, but for its beginning: connections are opened there.

    The bound of the histogram's highest bucket that a look was in; two scrapes in all, so that they cost nothing.
    """

    def __init__(self, port: int = 0, key: str = "", after_s: float = 0) -> None:
        self.late_us: float | None = None
        self._port, self._key = port, key
        self._before: dict[float, float] = {}
        self._timer = threading.Timer(after_s, self._begin)

    def __enter__(self) -> Self:
        if self._port:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._before:
            counts = self._looks()
            seen = [bound for bound, count in counts.items() if count > self._before[bound]]
            # Cumulated: the lowest bucket that has all of them ends where the latest look was.
            most = max((counts[bound] - self._before[bound] for bound in seen), default=0)
            late_s = min((bound for bound in seen if counts[bound] - self._before[bound] == most), default=0.0)
            self.late_us = late_s * 1e6

    def _begin(self) -> None:
        self._before = self._looks()

    def _looks(self) -> dict[float, float]:
        begin = 'realtime_loop_lag_seconds_bucket{le="'
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        with contextlib.closing(connection):
            lines = [line for line in scrape(connection, self._key).splitlines() if line.startswith(begin)]
        pairs = (line.removeprefix(begin).split('"} ') for line in lines)
        return {float(bound): float(count) for bound, count in pairs}


class Sockets:
    """How much the kernel's memory for sockets grew while the body ran; it is looked at twice a second."""

    def __init__(self) -> None:
        self._looks: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._before = machine.socket_bytes() or 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self._looks.append((machine.socket_bytes() or 0) - self._before)

    @property
    def bytes(self) -> float:
        """While all connections were open; what others on the machine opened for a while does not count."""
        most = max(self._looks, default=0)
        return statistics.median([look for look in self._looks if look >= most / 2]) if most > 0 else 0


@contextlib.contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A load that goes on while something else is measured."""
    with pinned(LOAD_CORE):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def token(secret: str, user: str) -> str:
    """An HS256 token for one user, good for a day, with a grant for the channels of the fan-out."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    claims = {"sub": user, "exp": int(time.time()) + 86_400, "channels": {"bench:*": ["subscribe", "publish"]}}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()
