"""`python -m tests.chaos`: attack a server for a minute beside 200 good clients, and say whether it held.

Exit code 0 where it held, 1 where it did not. `--each` runs the attacks one by one, on a new server each.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.chaos.attacks import ATTACKS
from tests.chaos.scene import Outcome, Plan, play
from tests.chaos.verdict import objections, ratio, summary


def main() -> int:
    """Parse the arguments, play, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each turn of calm and of attack")
    parser.add_argument("--rounds", type=int, default=1, help="turns of calm and attack")
    parser.add_argument("--only", default="", help="names of attacks, separated by commas")
    parser.add_argument("--without", default="", help="names of attacks to leave out")
    parser.add_argument("--each", action="store_true", help="one attack after the other, each on its own server")
    parser.add_argument("--signed-in", type=int, default=64, help="sockets of the one user")
    parser.add_argument("--anonymous", type=int, default=3_000, help="sockets without a token")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for realtime serve")
    parser.add_argument("--descriptors", type=int, default=0, help="limit of the server's descriptors (RLIMIT_NOFILE)")
    parser.add_argument("--folder", help="where the log is; one in memory leaves the disk out of it")
    parser.add_argument("--list", action="store_true", help="print the names of the attacks")
    chosen = parser.parse_args()
    without = set(filter(None, chosen.without.split(",")))
    names = [name for name in chosen.only.split(",") if name] or [name for name in ATTACKS if name not in without]
    if unknown := sorted({*names, *without} - set(ATTACKS)):
        parser.error(f"no such attack: {', '.join(unknown)}; --list names them")
    if chosen.list:
        for name in names:
            print(f"{name:20} {(ATTACKS[name].__doc__ or '').splitlines()[0]}")
        return 0
    held = True
    for group in [[name] for name in names] if chosen.each else [names]:
        plan = Plan(
            group,
            chosen.seconds,
            chosen.rounds,
            chosen.signed_in,
            chosen.anonymous,
            sets=tuple(chosen.set),
            descriptors=chosen.descriptors,
        )
        with tempfile.TemporaryDirectory(prefix="chaos-", dir=chosen.folder) as folder:
            held &= _told(group, play(plan, Path(folder) / "server"))
    return 0 if held else 1


def _told(names: list[str], outcome: Outcome) -> bool:
    found = objections(outcome)
    title = names[0] if len(names) == 1 else f"{len(names)} attacks"
    memory = max(outcome.memory_bytes.values()) / 1e6
    print(f"{'held' if not found else 'FELL':5} {title:20} RSS {memory:.0f} MB, ack p99 ratio {ratio(outcome):.2f}")
    print(summary(outcome))
    for line in found:
        print(f"  - {line[:400]}")
    sys.stdout.flush()
    return not found


if __name__ == "__main__":
    sys.exit(main())
