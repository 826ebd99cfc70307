"""The process of the good clients: `python -m tests.chaos.crowd`.

One line of JSON on stdin begins it. Then each line `phase NAME` begins a phase, whose latencies are kept apart, and
`end` ends it: the clients fall silent, get what they are owed, and the report is printed as JSON.
"""

import asyncio
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.members import Member
from tests.chaos.readers import Reader
from tests.chaos.recorder import Recorder

SETTLED_S = 10.0
"""How long a message that was acknowledged last may take to reach its last member, on a machine under load."""


@dataclass(frozen=True)
class Orders:
    """How many good clients there are, and how lively."""

    port: int
    api_port: int
    members: int
    readers: int
    says_every_s: float
    twin_port: int
    """Of a second server, which nobody attacks: half as many members live there, and say what the machine costs."""

    stays_s: float
    """A fifth of the members leaves and comes back by position as often."""

    def line(self) -> bytes:
        """Return the line that the process reads."""
        return json.dumps(asdict(self)).encode() + b"\n"


class Crowd:
    """All good clients and what they measured, phase by phase."""

    def __init__(self, orders: Orders) -> None:
        self.recorder = Recorder()
        rooms = max(1, orders.members // 16)

        def members(port: int, count: int, recorder: Recorder) -> list[Member]:
            return [
                Member(
                    port,
                    f"good-{number}",
                    f"good-{number % rooms}",
                    recorder,
                    says_every_s=orders.says_every_s,
                    stays_s=orders.stays_s if number % 5 == 0 else 3_600,
                )
                for number in range(count)
            ]

        self.members = members(orders.port, orders.members, self.recorder)
        self.twins = members(orders.twin_port, orders.members // 2, Recorder())
        self.readers = [
            Reader(orders.api_port, f"reader-{number}", f"good-{number % rooms}", self.recorder, asks_every_s=1.0)
            for number in range(orders.readers)
        ]
        self.phases: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.faults: dict[str, dict[str, int]] = {}
        self._before: dict[str, int] = {}

    def end_phase(self, name: str) -> None:
        """Keep what was measured since the last phase as that of `name`."""
        kept = self.phases[name]
        for client in self.twins:
            kept["twins"] += client.acks_ms
            client.acks_ms = []
        for client in self.members:
            kept["acks"] += client.acks_ms
            kept["connects"] += client.connects_ms
            client.acks_ms, client.connects_ms = [], []
        for reader in self.readers:
            kept["answers"] += reader.answers_ms
            kept["healths"] += reader.healths_ms
            reader.answers_ms, reader.healths_ms = [], []
        counted = dict(self.recorder.faults)
        for kind, count in counted.items():
            if new := count - self._before.get(kind, 0):
                of_phase = self.faults.setdefault(name, {})
                of_phase[kind] = of_phase.get(kind, 0) + new
        self._before = counted

    def report(self) -> dict[str, Any]:
        """Return the latencies in ms by phase and kind, sorted, and the faults."""
        phases = {name: {kind: sorted(values) for kind, values in kept.items()} for name, kept in self.phases.items()}
        return {"phases": phases, "faults": self.faults, "examples": self.recorder.examples}


async def run(orders: Orders) -> dict[str, Any]:
    """Let the clients live until stdin says `end`; return the report."""
    crowd = Crowd(orders)
    quiet, stop = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(member.live(quiet, stop)) for member in crowd.members + crowd.twins]
    tasks += [asyncio.create_task(reader.live(quiet)) for reader in crowd.readers]
    phase = "before"
    while (line := (await asyncio.to_thread(sys.stdin.readline)).strip()) not in {"end", ""}:
        crowd.end_phase(phase)
        phase = line.removeprefix("phase ")
    quiet.set()
    for _ in range(int(SETTLED_S / 0.05)):
        if not any(member.seen.owed() for member in crowd.members):
            break
        await asyncio.sleep(0.05)
    for member in crowd.members:
        if owed := member.seen.owed():
            crowd.recorder.fault("acknowledged and not delivered", f"{member.seen.conversation}: {owed[:5]}")
    stop.set()
    await asyncio.wait(tasks, timeout=30)
    crowd.end_phase(phase)
    return crowd.report()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Orders(**json.loads(sys.stdin.readline()))))), flush=True)
