"""The file of a run: every figure of every round as the load told it, with the machine; and what is computed from it.

`rounds` is a list of `{round, workload, server, figures}`; workloads and servers are named as in their modules.
"""

import datetime as dt
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benches import machine
from benches.machine import BENCHES, output_of
from benches.runs import Plan

FOLDER = BENCHES / "results"
LOCAL = FOLDER / "local"
"""For the files of quick runs, which stay out of the repository."""


class Results:
    """A run that was written."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.rounds: Sequence[Mapping[str, Any]] = document["rounds"]

    @property
    def date(self) -> str:
        """The day, as 2026-11-05."""
        return str(self.document["date"])[:10]

    @property
    def machine(self) -> str:
        """One line about the machine, with what somebody noted and whether server and load had to share a core."""
        told = self.document["machine"]
        shared = "" if told["pinned"] else ", NOT TWO CORES: server and load shared one"
        note = f" ({self.document['note']})" if "note" in self.document else ""
        return f"{told['cores']} cores of {told['cpu']}, {told['system']}{shared}{note}"

    def rounds_each(self, server: str) -> int:
        """How many rounds a server took part in."""
        return max((run["round"] for run in self.rounds if run["server"] == server), default=0)

    def values(self, workload: str, server: str, path: str) -> list[float]:
        """One figure of each round in which the server took part."""
        runs = [run for run in self.rounds if (run["workload"], run["server"]) == (workload, server)]
        found = [figure(run["figures"], path) for run in runs]
        return [value for value in found if value is not None]

    def median(self, workload: str, server: str, path: str) -> float | None:
        """The median over all rounds; None if the server did not take part."""
        values = self.values(workload, server, path)
        return statistics.median(values) if values else None

    def ratio(self, workload: str, path: str, server: str = "ours", beside: str | None = None) -> float | None:
        """The median of a server's figure over that of Bun's; None where there is nothing to divide.

        Args:
            workload: what the server was asked.
            path: the figure.
            server: ours, or ours with a handler.
            beside: what Bun was asked, where it is another workload.
        """
        value, other = self.median(workload, server, path), self.median(beside or workload, "bun", path)
        return value / other if value is not None and other else None

    def servers(self) -> list[str]:
        """Who took part, in the order of their first runs."""
        return list(dict.fromkeys(run["server"] for run in self.rounds))

    def title(self, server: str) -> str:
        """How a server is called in a table."""
        described = self.document.get("servers", {}).get(server, {})
        return str(described.get("title", TITLES.get(server, server)))


TITLES = {"ours": "this server", "bun": "Bun"}
"""For files that were written before they named their servers."""


def figure(figures: Mapping[str, Any], path: str) -> float | None:
    """A figure by its dotted path, for example `latency_us.p99`; None where the run has none."""
    value: Any = figures
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError):
            return None
    return float(value)


def read(path: Path) -> Results:
    """A results file."""
    return Results(json.loads(path.read_text("utf-8")))


def document(
    plan: Plan, rounds: Sequence[Mapping[str, Any]], wrong: Sequence[str], *, engine_profile: str
) -> dict[str, Any]:
    """What a results file says of a run, what was wrong with it included."""
    return {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "revision": output_of("git", "rev-parse", "--short=12", "HEAD"),
        "changed": bool(output_of("git", "status", "--porcelain", "--untracked-files=no")),
        "engine_profile": engine_profile,
        "machine": machine.description(),
        "python": platform.python_version(),
        "seconds": plan.seconds,
        "servers": {server.name: {"title": server.title, "version": server.version} for server in plan.servers},
        "wrong": list(wrong),
        "rounds": rounds,
    }


def write(written: Mapping[str, Any], folder: Path) -> Path:
    """Write a results file named by its date; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = str(written["date"]).replace("T", "-").replace(":", "").removesuffix("Z")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path
