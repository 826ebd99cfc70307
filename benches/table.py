"""The table that a run ends with: the medians of all servers side by side, and ours to Bun's."""

from collections.abc import Iterator, Sequence

from benches.results import Results
from benches.workloads import Workload


def lines(results: Results, workloads: Sequence[Workload]) -> Iterator[str]:
    """The table, line by line."""
    servers = results.servers()
    yield f"{'workload':<22}{'figure':<27}" + "".join(f"{server:>12}" for server in servers) + f"{'ours/bun':>10}"
    for workload in workloads:
        title = workload.title
        for label, path in workload.figures:
            medians = [results.median(workload.name, server, path) for server in servers]
            if all(median is None for median in medians):
                continue
            scale = 1 / 1024**2 if "MiB" in label else 1
            cells = "".join(f"{'-' if median is None else plain(median * scale):>12}" for median in medians)
            server = "handler" if workload.beside else "ours"
            ratio = results.ratio(workload.name, path, server, workload.beside)
            yield f"{title:<22}{label:<27}{cells}{'' if ratio is None else f'{ratio:.2f}':>10}".rstrip()
            title = ""


def plain(value: float) -> str:
    """Three digits that count; whole numbers above 100."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
