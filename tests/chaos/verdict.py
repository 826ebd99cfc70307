"""Whether the server held: what the budget, the good clients and `/health` say of an outcome."""

import statistics
from typing import Final

from tests.chaos.scene import Outcome

FACTOR: Final = 2.0
"""The good clients' ack p99 under attack, over that of the same run's calm."""

SLICE_MS: Final = 10.0
"""A calm p99 below this counts as this: on a machine with more busy threads than cores a thread waits two or three
turns of the scheduler (3 to 4 ms each), whatever the server does."""

HEALTH_S: Final = 1.0

ACCEPTOR_SHARE: Final = 0.5
"""Of a core: an acceptor that spins takes all of one."""


def ratio(outcome: Outcome) -> float:
    """Return the ack p99 under attack over that of the calm before it, the median of the rounds.

    Where the twin, which nobody attacks, took longer meanwhile, that counts: the attackers share the machine.
    """
    rounds = [phase.removeprefix("attack") for phase in outcome.latencies if phase.startswith("attack")]
    found = []
    for number in rounds:
        calm = outcome.quantile_ms(f"calm{number}", "acks", 0.99)
        machine = outcome.quantile_ms(f"attack{number}", "twins", 0.99)
        found.append(outcome.quantile_ms(f"attack{number}", "acks", 0.99) / max(SLICE_MS, calm, machine))
    return statistics.median(found)


def objections(outcome: Outcome) -> list[str]:
    """Return what did not hold, a line each."""
    found = [
        f"{phase}: {kind} ({count} times; {outcome.examples.get(kind, '')})"
        for phase, faults in outcome.faults.items()
        for kind, count in faults.items()
    ]
    memory = max(outcome.memory_bytes.values())
    if not memory:
        found.append("memory was never read")
    if memory > outcome.budget_bytes:
        found.append(f"memory: {memory / 1e6:.0f} MB, the budget is {outcome.budget_bytes / 1e6:.0f} MB")
    if ratio(outcome) > FACTOR:
        calm, attack = (outcome.quantile_ms(phase, "acks", 0.99) for phase in ("calm", "attack"))
        other = outcome.quantile_ms("attack", "twins", 0.99)
        found.append(f"ack p99: {attack:.1f} ms under attack, {calm:.1f} ms in calm, {other:.1f} ms by the twin")
    if (slowest := max(outcome.health_s.values())) > HEALTH_S:
        found.append(f"/health took {slowest:.2f} s")
    for thread, share in outcome.busy["attack"].items():
        if "accept" in thread and share > ACCEPTOR_SHARE:
            found.append(f"{thread} took {share:.2f} of a core")
    return found


def summary(outcome: Outcome) -> str:
    """Return the figures of an outcome as lines to read."""
    lines = []
    for kind in ("acks", "twins", "connects", "answers", "healths"):
        shown = []
        for phase in ("calm", "attack"):
            half, most = (outcome.quantile_ms(phase, kind, share) for share in (0.5, 0.99))
            count = len(outcome.values_ms(phase, kind))
            shown.append(f"{phase} p50 {half:.1f} p99 {most:.1f} ms of {count}")
        lines.append(f"  {kind:9} {' | '.join(shown)}")
    lines.extend(
        f"  {phase:9} RSS {outcome.memory_bytes[phase] / 1e6:.0f} MB, {outcome.descriptors[phase]} descriptors,"
        f" /health {outcome.health_s[phase] * 1e3:.0f} ms, busy {outcome.busy.get(phase)}"
        for phase in outcome.memory_bytes
    )
    lines.append(f"  loop lag at most {outcome.lag_max_s * 1e3:.0f} ms; attackers {outcome.attackers}")
    if outcome.purposes:
        largest = sorted(outcome.purposes.items(), key=lambda item: -item[1])
        lines.append("  " + ", ".join(f"{name} {value / 1e6:.1f} MB" for name, value in largest if value >= 100_000))
    return "\n".join(lines)
