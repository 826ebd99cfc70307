"""The pictures of a run: CPU of each workload, memory of a connection, and latency against throughput."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benches.machine import ROOT
from benches.results import Results
from benches.svg import Picture
from benches.table import plain

IMAGES = ROOT / "docs" / "images"
CUT_AT = 3.0
"""A bar is drawn up to so many times Bun's, and cut there: else the slowest would hide what the others differ by."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One group of bars: a figure of a workload, for every server that has it."""

    title: str
    workload: str
    path: str

    def bars(self, results: Results) -> list[tuple[str, float]]:
        """Servers and medians, the smallest first; the handler's are those of its own workload."""
        found = []
        for server in results.servers():
            value = results.median(
                f"{self.workload}-handler" if server == "handler" else self.workload, server, self.path
            )
            if value is not None:
                found.append((server, value))
        return sorted(found, key=lambda bar: bar[1])


CPU = (
    Panel("W1: one event to 1,000, per delivery", "w1", "server_cpu_us_per_delivery"),
    Panel("W1b: 16 events under way, per delivery", "w1b", "server_cpu_us_per_delivery"),
    Panel("W2: 100 channels of 10, per message", "w2", "server_cpu_us_per_message"),
    Panel("W3: ping to pong, per ping", "w3", "server_cpu_us_per_message"),
    Panel("W4: connect with a token, per connection", "w4", "connect.server_cpu_us_per_connection"),
    Panel("W5: W1 compressed, 730 B, per delivery", "w5", "server_cpu_us_per_delivery"),
)
MEMORY = (Panel("W4: 10,000 authenticated, idle connections", "w4", "connect.pss_bytes_per_connection"),)
RATES = {"ours": "w6-", "handler": "w6-handler-", "bun": "w6-"}
"""Who is offered a rate, and how the workloads begin whose names end with it."""

LABEL, VALUE, ROW, HEAD = 170, 78, 20, 30


def all_pictures(results: Results) -> Mapping[str, Picture]:
    """The pictures for which the run has figures, by the name of their file."""
    where = f"{results.date}, {results.machine}"
    note = (f"Medians, {where}.", f"A shorter bar is better; one with a gap is longer than {CUT_AT:g} times Bun's.")
    cpu = bars(results, CPU, "CPU of the server, µs", note)
    memory = bars(results, MEMORY, "Memory of the server's process a connection, bytes", note)
    rates = latency(results, (f"Medians, {where}.", "From the schedule to each receiver; lower is better."))
    found = {"bench-cpu.svg": cpu, "bench-memory.svg": memory, "bench-latency.svg": rates}
    return {name: picture for name, picture in found.items() if picture is not None}


def write(results: Results, folder: Path = IMAGES) -> None:
    """Write the pictures; one for which there are no figures any more is taken away."""
    pictures = all_pictures(results)
    for name in ("bench-cpu.svg", "bench-memory.svg", "bench-latency.svg"):
        if name in pictures:
            (folder / name).write_text(str(pictures[name]), "utf-8")
        else:
            (folder / name).unlink(missing_ok=True)


# ---- bars ----


def bars(results: Results, panels: Sequence[Panel], title: str, note: Sequence[str]) -> Picture | None:
    """Panels of horizontal bars in two columns, or one where there is one panel."""
    filled = [(panel, panel.bars(results)) for panel in panels]
    filled = [(panel, values) for panel, values in filled if values]
    if not filled:
        return None
    columns = min(2, len(filled))
    width = 900.0
    each = (width - 20 * (columns + 1)) / columns
    rows = [filled[index : index + columns] for index in range(0, len(filled), columns)]
    heights = [HEAD + ROW * max(len(values) for _, values in row) + 14 for row in rows]
    picture = Picture(width, 62 + sum(heights) + 42, title, " ".join(note))
    picture.text(20, 30, title, "title")
    y = 46.0
    for row, height in zip(rows, heights, strict=True):
        for column, (panel, values) in enumerate(row):
            draw_bars(picture, (20 + column * (each + 20), y, each), results, panel, values)
        y += height
    footnote(picture, y + 18, note)
    return picture


def draw_bars(
    picture: Picture,
    place: tuple[float, float, float],
    results: Results,
    panel: Panel,
    values: Sequence[tuple[str, float]],
) -> None:
    """One panel, its corner and its width given by `place`."""
    x, y, width = place
    picture.text(x, y + 18, panel.title, "head")
    longest = max(value for _, value in values)
    limit = min(longest, CUT_AT * dict(values).get("bun", longest))
    room = width - LABEL - VALUE
    for index, (server, value) in enumerate(values):
        top = y + HEAD + index * ROW
        picture.text(x + LABEL - 8, top + 13, results.title(server), "end")
        length = max(1.0, room * min(value, limit) / limit)
        picture.box(x + LABEL, top + 2, length, ROW - 6, f"bar-{kind(server)}")
        if value > limit:
            cut = x + LABEL + length - 14
            picture.line([(cut, top + ROW - 2), (cut + 6, top)], "cut")
        picture.text(x + LABEL + length + 6, top + 13, plain(value))


def footnote(picture: Picture, y: float, lines: Sequence[str]) -> None:
    """Small lines below everything."""
    for index, words in enumerate(lines):
        picture.text(20, y + 18 * index, words, "note")


def kind(server: str) -> str:
    """Whose colour a server has."""
    return server if server in {"ours", "handler", "bun"} else "other"


# ---- lines ----


def latency(results: Results, note: Sequence[str]) -> Picture | None:
    """p99 and p50 by offered rate, on a logarithmic scale; None where nobody was offered two rates."""
    series = {server: list(points(results, server)) for server in RATES}
    series = {server: found for server, found in series.items() if found}
    if not any(len(found) > 1 for found in series.values()):
        return None
    left, top, right, bottom = 80.0, 92.0, 870.0, 410.0
    most = max(rate for found in series.values() for rate, _, _ in found)
    figures = [value for found in series.values() for _, p50, p99 in found for value in (p50, p99)]
    low, high = math.floor(math.log10(min(figures))), math.ceil(math.log10(max(figures)))
    high = max(high, low + 1)

    def place(rate: float, value: float) -> tuple[float, float]:
        share = (math.log10(value) - low) / (high - low)
        return left + (right - left) * rate / (most * 1.05), bottom - (bottom - top) * share

    picture = Picture(900, 512, "Latency against throughput", " ".join(note))
    picture.text(20, 30, "Latency against throughput: 100 channels of 10, each message delivered to 10", "title")
    picture.text(20, 56, "p99 (line) and p50 (dashed), ms, logarithmic", "note")
    for power in range(low, high + 1):
        _, y = place(0, 10.0**power)
        picture.line([(left, y), (right, y)], "grid")
        picture.text(left - 8, y + 4, f"{10.0 ** (power - 3):g}", "end note")
    for rate in sorted({rate for found in series.values() for rate, _, _ in found}):
        x, _ = place(rate, 10.0**low)
        picture.line([(x, bottom), (x, bottom + 5)], "axis")
        picture.text(x, bottom + 20, f"{rate:,.0f}", "middle note")
    picture.line([(left, bottom), (right, bottom)], "axis")
    picture.text((left + right) / 2, bottom + 40, "messages a second, offered", "middle note")
    for index, (server, found) in enumerate(series.items()):
        style = kind(server)
        picture.line([place(rate, p50) for rate, p50, _ in found], f"line dashed line-{style}")
        picture.line([place(rate, p99) for rate, _, p99 in found], f"line line-{style}")
        for rate, _, p99 in found:
            picture.dot(*place(rate, p99), f"bar-{style}")
        picture.box(380 + index * 190, 45, 14, 14, f"bar-{style}")
        picture.text(400 + index * 190, 57, results.title(server))
    footnote(picture, 476, note)
    return picture


def points(results: Results, server: str) -> Iterator[tuple[float, float, float]]:
    """Rate, p50 and p99 in µs of a server, the lowest rate first."""
    begin = RATES[server]
    named = {run["workload"] for run in results.rounds if run["server"] == server}
    rates = sorted(int(name.removeprefix(begin)) for name in named if name.removeprefix(begin).isdecimal())
    for rate in rates:
        p50, p99 = (results.median(f"{begin}{rate}", server, f"latency_us.{name}") for name in ("p50", "p99"))
        if p50 and p99:
            yield float(rate), p50, p99
