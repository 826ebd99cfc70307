"""What do a delivery, a message and a connection cost, and how long do receivers wait, beside other servers?

Unit: µs of the server's CPU (all its threads), µs of latency, bytes of the server's memory; the ratio ours / Bun is
what can be compared between machines. Server on one core, load on another, a fresh server for every run, rounds
alternate in their order, the median of all rounds is shown. A time never fails the run; a delivery that is lost,
doubled or out of order does, and so does a server that crashes. How to read the table: benches/README.md.

Exit: 0 well, 1 a run was wrong, 2 something that is needed is missing.
"""

import argparse
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from benches import machine, readme, results, runs, servers, table
from benches.machine import ROOT
from benches.servers import MissingError, Server
from benches.workloads import WORKLOADS, Workload


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    options = command_line()
    if options.readme:
        readme.write(options.readme)
        return 0
    # 10,000 connections need as many descriptors at both ends, and children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if not machine.can_pin():
        print("benches: there are not two cores: server and load share one, so no figure here counts", file=sys.stderr)
    try:
        plan = planned(options)
    except MissingError as missing:
        print(f"benches: {missing}", file=sys.stderr)
        return 2
    rounds, wrong = runs.measure(plan)
    document = results.document(plan, rounds, wrong, engine_profile=options.engine_profile or "as installed")
    whole = not (options.quick or options.only or options.match)
    path = results.write(document, results.FOLDER if whole else results.LOCAL)
    print("\n".join(table.lines(results.Results(document), plan.workloads)))
    print(f"\nwritten: {path.relative_to(ROOT)}")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    outcome = f"{len(wrong)} wrong" if wrong else "every delivery came once and in order, and nothing crashed"
    print(f"bench: {len(rounds) + len(wrong)} runs against {len(plan.servers)} servers, {outcome}")
    return 1 if wrong else 0


def command_line() -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("ours", "handler", *servers.MAKERS)
    parser.add_argument("--quick", action="store_true", help="one short round; its file goes to benches/results/local")
    parser.add_argument("--full", action="store_true", help="W4b too: 18,000 connections held for ten minutes")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds of ours and Bun; the other rivals run in the first"
    )
    parser.add_argument("--seconds", type=float, default=5, help="measured time of one run (default 5)")
    parser.add_argument("--only", action="append", choices=names, help="this server alone; may be repeated")
    parser.add_argument(
        "--match", action="append", help="this workload alone, by its name (w2, w6-10000); may be repeated"
    )
    parser.add_argument("--connections", type=int, help="connections of every workload, in place of its own number")
    parser.add_argument("--ours-command", help="how to start our server, in place of .venv/bin/realtime serve …")
    parser.add_argument("--engine-profile", help="build the engine with this cargo profile first; `make bench`: dist")
    parser.add_argument("--load-profile", default="release", help="cargo profile of the generator (default release)")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="measure nothing: put a results file into the README"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 1)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    unknown = set(options.match or ()) - {workload.name for workload in WORKLOADS}
    if unknown:
        parser.error(f"--match {', '.join(sorted(unknown))}: must be {', '.join(each.name for each in WORKLOADS)}")
    return options


def planned(options: argparse.Namespace) -> runs.Plan:
    """Build what is needed and lay the runs out.

    Raises:
        MissingError: something is not there.
    """
    return runs.Plan(
        generator=servers.build_generator(options.load_profile),
        servers=built(options),
        workloads=[workload for workload in WORKLOADS if chosen(workload, options)],
        rounds=options.rounds,
        seconds=options.seconds,
        warmup=0.3 if options.quick else 1,
        connections=options.connections,
    )


def built(options: argparse.Namespace) -> Sequence[Server]:
    """The servers that take part; a quick run has ours and Bun, and does without Bun where there is no npm."""
    quick = ("ours", "handler", "bun")
    wanted = options.only or (quick if options.quick else ("ours", "handler", *servers.MAKERS))
    if options.engine_profile:
        servers.build_engine(options.engine_profile)
    found = [server for server in servers.ours(options.ours_command) if server.name in wanted]
    for name in servers.MAKERS:
        if name not in wanted:
            continue
        try:
            found.append(servers.beside(name))
        except MissingError as missing:
            if not options.quick:
                raise
            print(f"benches: without {name}: {missing}", file=sys.stderr)
    return found


def chosen(workload: Workload, options: argparse.Namespace) -> bool:
    """Whether a workload is part of this run."""
    if options.match:
        return workload.name in options.match
    return not (options.quick and workload.long) and (options.full or not workload.full)


if __name__ == "__main__":
    sys.exit(main())
