"""A process of attackers: `python -m tests.chaos.attackers`, told what to do by one line of JSON on stdin.

It attacks for as long as it is told, then prints what it counted, as JSON. The process gets what the others leave of
the processor.
"""

import json
import random
import resource
import sys
from dataclasses import asdict, dataclass

from tests.chaos.attacks import ATTACKS
from tests.chaos.attacks.attack import Target
from tests.chaos.swarm import Peer, Swarm, step_back


@dataclass(frozen=True)
class Orders:
    """What one process of attackers does."""

    address: str
    """Theirs: another loopback address than that of the good clients."""

    names: tuple[str, ...]
    """Attacks; the sockets are dealt out to them in turn."""

    sockets: int
    seconds: float
    steps_per_s: int
    bytes_per_s: int
    port: int
    api_port: int
    token: str
    crowd: tuple[str, ...]
    seed: int = 0

    def line(self) -> bytes:
        """Return the line that the process reads."""
        return json.dumps(asdict(self)).encode() + b"\n"


def attack(orders: Orders) -> dict[str, int]:
    """Attack for as long as it says and return what was counted."""
    swarm = Swarm(orders.address, steps_per_s=orders.steps_per_s, bytes_per_s=orders.bytes_per_s, seed=orders.seed)
    target = Target(orders.port, orders.api_port, orders.token, tuple(orders.crowd))
    randomness = random.Random(orders.seed)
    kinds = [ATTACKS[name](target, randomness) for name in orders.names]
    for number in range(orders.sockets):
        kind = kinds[number % len(kinds)]
        swarm.add(Peer(kind.script, number, kind.pause_s, kind.reads), within_s=min(2.0, orders.seconds / 8))
    swarm.run(orders.seconds)
    return dict(swarm.counts)


def main() -> None:
    """Read the orders, attack, print."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    step_back()
    print(json.dumps(attack(Orders(**json.loads(sys.stdin.readline())))), flush=True)


if __name__ == "__main__":
    main()
