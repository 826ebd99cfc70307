"""The pages' figures: tables and pictures between two markers, made of one results file and of nothing else."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from benches import capacity, plots
from benches.machine import ROOT
from benches.plots import CPU, MEMORY
from benches.results import Results, read
from benches.table import plain

README, CAPACITY = ROOT / "README.md", ROOT / "docs" / "topics" / "capacity.md"
BLOCK = re.compile(r"<!-- figures of (?P<file>\S+) -->\n.*?<!-- end of figures -->", re.DOTALL)
PICTURES = {
    "bench-latency.svg": "Latency against throughput",
    "bench-cpu.svg": "CPU of the server by workload and server",
    "bench-memory.svg": "Memory of a connection by server",
}

CLOSED = {"w1", "w1b", "w2", "w3", "w5"}
"""The loops in which a generator that is full sets the pace."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: what was asked and the figures that answer, the second after a slash."""

    label: str
    workload: str
    paths: tuple[str, ...]
    unit: str
    server: str = "ours"
    rival: str | None = None
    """The workload that Bun was asked, where it is another one."""


P50_P99 = ("latency_us.p50", "latency_us.p99")
ACKS = ("ack_latency_us.p50", "ack_latency_us.p99")
DELIVERY, MESSAGE = ("server_cpu_us_per_delivery",), ("server_cpu_us_per_message",)
CONNECT, MEMORY_EACH = ("connect.server_cpu_us_per_connection",), ("connect.pss_bytes_per_connection",)
ROWS = (
    Row("one channel of 1,000, one event at a time: CPU per delivery", "w1", DELIVERY, "µs"),
    Row("the same with 16 events under way", "w1b", DELIVERY, "µs"),
    Row("the first with 730 B events, compressed", "w5", DELIVERY, "µs"),
    Row("100 channels of 10, relayed: CPU per message, with its 10 deliveries", "w2", MESSAGE, "µs"),
    Row("the same through a Python handler", "w2-handler", MESSAGE, "µs", "handler", "w2"),
    Row("its event loop meanwhile: late by less than", "w2-handler", ("loop_late_max_us",), "µs", "handler"),
    Row("the same, relayed, most messages a second", "w2", ("messages_per_s",), ""),
    Row("the same at 10,000 a second: latency p50 / p99", "w6-10000", P50_P99, "µs"),
    Row("at 30,000 a second", "w6-30000", P50_P99, "µs"),
    Row("at 30,000 a second through a Python handler", "w6-handler-30000", P50_P99, "µs", "handler", "w6-30000"),
    Row("`ping` to `pong`: CPU per ping", "w3", MESSAGE, "µs"),
    Row("a connect, its token verified: CPU", "w4", CONNECT, "µs"),
    Row("an idle connection: memory of the process", "w4", MEMORY_EACH, "B"),
    Row("`send_message`: stored, acknowledged and delivered to 10, messages a second", "w7", ("messages_per_s",), ""),
    Row("the same at 10,000 a second: acknowledgement p50 / p99", "w7-10000", ACKS, "µs"),
    Row("`POST /api/events` in batches of 1,000, stored: events a second", "hooks-stored", ("events_per_s",), ""),
    Row(
        "a scrape of `/metrics` with 10,000 connections: p50 / most", "scrape", ("scrape_us.p50", "scrape_us.max"), "µs"
    ),
)


def write(path: Path) -> None:
    """Put the figures of a results file into the pages that it has some for, and its pictures into docs/images.

    Raises:
        ValueError: a page has no markers.
    """
    results, named = read(path), path.resolve().relative_to(ROOT)
    for page, lines in PAGES.items():
        made = "\n".join(lines(results, named))
        if not made:
            continue
        text = page.read_text("utf-8")
        found = BLOCK.search(text)
        if found is None:
            raise ValueError(f"{page.name} has no line <!-- figures of … --> with <!-- end of figures --> after it")
        page.write_text(text[: found.start()] + marked(named, made) + text[found.end() :], "utf-8")
    if results.median("w1", "ours", DELIVERY[0]):
        plots.write(results)


def marked(path: Path, made: str) -> str:
    """What stands between the markers, with them."""
    return f"<!-- figures of {path} -->\n{made}\n<!-- end of figures -->"


def lines(results: Results, path: Path) -> Iterator[str]:
    """The README's part: the tables, the pictures, where it is from; nothing of a file without W1."""
    if results.median("w1", "ours", DELIVERY[0]) is None:
        return
    yield from main_table(results)
    if len(rivals(results)) > 1:
        yield ""
        yield from others_table(results)
    pictures = plots.all_pictures(results)
    for name, words in PICTURES.items():
        if name in pictures:
            yield ""
            yield f"![{words}](docs/images/{name})"
    yield ""
    yield source(results, path)


PAGES = {README: lines, CAPACITY: capacity.lines}
"""The pages with figures, and what makes them."""


def source(results: Results, path: Path) -> str:
    """Where and when the figures were taken, and the file that has them all."""
    profile, rounds = results.document["engine_profile"], results.rounds_each("ours")
    medians = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    shares = [
        run["figures"]["generator_cpu_share"]
        for run in results.rounds
        if run["server"] in {"ours", "bun"} and run["workload"] in CLOSED
    ]
    busy = f", the generator busy for {min(shares):.0%} to {max(shares):.0%} of its core" if shares else ""
    return f"{results.date}, {results.machine}, engine profile `{profile}`, {medians}{busy}: [{path.name}]({path})."


def rivals(results: Results) -> list[str]:
    """Everybody else of a run."""
    return [server for server in results.servers() if server not in {"ours", "handler", "bare"}]


def main_table(results: Results) -> Iterator[str]:
    """Ours beside Bun."""
    yield "| | here | Bun | ratio | the kernel alone |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        here = [results.median(row.workload, row.server, path) for path in row.paths]
        if None in here:
            continue
        bun = [results.median(row.rival or row.workload, "bun", path) for path in row.paths]
        ratios = [mine / theirs for mine, theirs in zip(here, bun, strict=True) if mine is not None and theirs]
        cells = [
            " / ".join(written(value, row.unit) for value in values if value is not None) for values in (here, bun)
        ]
        cells.append(" / ".join(f"{ratio:.2f}" for ratio in ratios))
        # No program can cost less than what it asks of the kernel.
        asked = row.rival or row.workload
        floor = results.median(asked, "bare", row.paths[0]) if row.paths in (DELIVERY, MESSAGE) else None
        cells.append("" if floor is None else written(floor, row.unit))
        yield " ".join(["|", row.label, *(f"| {cell}" if cell else "|" for cell in cells), "|"])


def others_table(results: Results) -> Iterator[str]:
    """All servers beside each other: CPU in µs, and bytes of a connection."""
    servers = ["ours", *rivals(results)]
    yield f"| CPU in µs | {' | '.join('here' if server == 'ours' else results.title(server) for server in servers)} |"
    yield "|---" * (len(servers) + 1) + "|"
    for panel in (*CPU, *MEMORY):
        found = {server: results.median(panel.workload, server, panel.path) for server in servers}
        if found["ours"] is None:
            continue
        title = panel.title + (", B each" if panel in MEMORY else "")
        yield f"| {title} | {' | '.join('' if value is None else plain(value) for value in found.values())} |"


def written(value: float, unit: str) -> str:
    """A figure with its unit; from 1,000 µs on in ms."""
    if unit == "µs":
        return f"{digits(value / 1_000)} ms" if value >= 1_000 else f"{digits(value)} µs"
    return f"{value:,.0f} {unit}".strip()


def digits(value: float) -> str:
    """Three digits that count, and no fraction from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"
