"""A server, its good clients and its attackers, in turns of calm and attack; what came of it."""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chaos import attackers, crowd
from tests.chaos.attacks import ATTACKS
from tests.chaos.watch import Watch, figures
from tests.kit import REALTIME, ROOT, Server, token_for

ATTACKERS: Final = "127.0.0.2"
"""The address of the attackers; the good clients have 127.0.0.1."""

APP: Final = Path(__file__).with_name("app.py")


@dataclass(frozen=True)
class Plan:
    """Who attacks whom, and for how long."""

    names: Sequence[str]
    seconds: float = 60.0
    rounds: int = 1
    """Turns of calm and attack, each of `seconds`."""

    signed_in: int = 64
    anonymous: int = 3_000
    members: int = 160
    readers: int = 40
    says_every_s: float = 2.0
    stays_s: float = 5.0
    steps_per_s: int = 20_000
    bytes_per_s: int = 400_000_000
    """At most as much for each of the two processes of attackers: they share the machine with the server."""

    sets: Sequence[str] = ()
    descriptors: int = 0
    """Limit of the attacked server; 0 leaves it as it is here."""


@dataclass
class Outcome:
    """What was measured. Latencies are in ms, sorted, by phase (`calm 0`, `attack 0`, `calm 1`, …) and kind."""

    budget_bytes: int
    memory_bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    descriptors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    health_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    busy: dict[str, dict[str, float]] = field(default_factory=dict)
    purposes: dict[str, float] = field(default_factory=dict)
    """The highest of `realtime_memory_bytes` by purpose."""

    lag_max_s: float = 0.0
    latencies: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    faults: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    attackers: list[dict[str, int]] = field(default_factory=list)

    def values_ms(self, turn: str, kind: str) -> list[float]:
        """Return what was measured in the phases that begin with `turn`, sorted."""
        found = [kinds.get(kind, []) for phase, kinds in self.latencies.items() if phase.startswith(turn)]
        return sorted(itertools.chain.from_iterable(found))

    def quantile_ms(self, turn: str, kind: str, share: float) -> float:
        """Return a quantile of these, 0 where there are none."""
        values = self.values_ms(turn, kind)
        return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def play(plan: Plan, folder: Path) -> Outcome:
    """Start a server and its twin, let good clients live on both, attack the one in turns; return what came of it."""
    limited = ("prlimit", f"--nofile={plan.descriptors}") if plan.descriptors else ()
    server = Server(folder / "attacked", app=str(APP), api=True, sets=plan.sets, command=(*limited, REALTIME))
    twin = Server(folder / "twin", app=str(APP), sets=plan.sets)
    outcome = Outcome(budget_bytes=budget_bytes(plan.sets))
    try:
        for each in (server, twin):
            each.start_now()
        with Watch(server) as watch, _good(plan, server, twin) as good:
            for number in range(plan.rounds):
                for turn in ("calm", "attack"):
                    _tell(good, f"phase {turn} {number}")
                    _turn(plan, server, watch, outcome, turn)
            _tell(good, "end")
            report = json.loads(good.stdout.readline()) if good.stdout else {}
        outcome.latencies, outcome.faults, outcome.examples = report["phases"], report["faults"], report["examples"]
        for fault in watch.faults:
            outcome.faults.setdefault("attack", {}).setdefault(fault, 1)
        if not server.is_running():
            outcome.faults.setdefault("attack", {})["the server ended"] = 1
    finally:
        for each in (server, twin):
            if each.is_running():
                each.kill()
    return outcome


def budget_bytes(sets: Sequence[str]) -> int:
    """Return the memory that `realtime check` says this configuration may take."""
    command = [str(REALTIME), "check", "--json"]
    for item in ("server.port=0", "api.port=0", *sets):
        command += ["--set", item]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT / "tests").stdout
    return sum(json.loads(printed)["memory"].values())


def _turn(plan: Plan, server: Server, watch: Watch, outcome: Outcome, turn: str) -> None:
    watch.begin()
    processes = _attackers(plan, server) if turn == "attack" else []
    try:
        deadline = time.monotonic() + plan.seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            with contextlib.suppress(OSError, ValueError):
                for name, value in figures(server, "realtime_memory_bytes").items():
                    outcome.purposes[name] = max(outcome.purposes.get(name, 0.0), value)
        outcome.memory_bytes[turn] = max(outcome.memory_bytes[turn], watch.memory_bytes)
        outcome.descriptors[turn] = max(outcome.descriptors[turn], watch.descriptors)
        outcome.health_s[turn] = max(outcome.health_s[turn], watch.health_s)
        outcome.busy[turn] = watch.busy()
        with contextlib.suppress(OSError, ValueError):
            outcome.lag_max_s = max(outcome.lag_max_s, *figures(server, "realtime_loop_lag_max_seconds").values())
        for process in processes:
            printed, _ = process.communicate(timeout=30)
            counts = json.loads(printed or "{}")
            outcome.attackers.append(counts)
            if process.returncode or not counts.get("opened"):
                outcome.faults.setdefault("attack", {})["the attackers did not attack"] = 1
    finally:
        for process in processes:
            _end(process)


def _attackers(plan: Plan, server: Server) -> list[subprocess.Popen[str]]:
    token, crowd_tokens = token_for("mallory"), tuple(token_for(f"mallory-{n}") for n in range(50))
    started = []
    for sockets, signed_in in ((plan.signed_in, True), (plan.anonymous, False)):
        names = tuple(name for name in plan.names if ATTACKS[name].signed_in is signed_in)
        if not names:
            continue
        orders = attackers.Orders(
            address=ATTACKERS,
            names=names,
            sockets=sockets,
            seconds=plan.seconds,
            steps_per_s=plan.steps_per_s,
            bytes_per_s=plan.bytes_per_s,
            port=server.port,
            api_port=server.api_port,
            token=token,
            crowd=crowd_tokens,
        )
        started.append(_start("tests.chaos.attackers", orders.line()))
    return started


@contextlib.contextmanager
def _good(plan: Plan, server: Server, twin: Server) -> Iterator[subprocess.Popen[str]]:
    orders = crowd.Orders(
        port=server.port,
        api_port=server.api_port,
        members=plan.members,
        readers=plan.readers,
        says_every_s=plan.says_every_s,
        stays_s=plan.stays_s,
        twin_port=twin.port,
    )
    process = _start("tests.chaos.crowd", orders.line())
    try:
        time.sleep(2)
        yield process
    finally:
        _end(process)


def _start(module: str, line: bytes) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(line.decode())
    process.stdin.flush()
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with process:
        pass


def _tell(process: subprocess.Popen[Any], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
