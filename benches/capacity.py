"""What many idle connections take, computed from the ones that W4b held: the figures of docs/topics/capacity.md."""

from collections.abc import Iterator
from pathlib import Path

from benches.results import Results

MANY = 1_000_000


def lines(results: Results, path: Path) -> Iterator[str]:
    """Two tables, what was measured and what follows; nothing where W4b was not run."""

    def found(figure: str, workload: str = "w4b") -> float:
        return results.median(workload, "ours", figure) or 0.0

    held = found("connections")
    if not held:
        return
    process, kernel = found("connect.pss_bytes_per_connection"), found("socket_bytes_per_connection")
    grown = (found("memory.-1.rss_bytes") - found("connect.rss_after_bytes")) / held
    cpu_ms = found("server_cpu_ms_per_second")
    yield f"Measured with {held:,.0f} connections held for {found('held_seconds'):,.0f} s in one process:"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| a connection, in the process | {process:,.0f} B |"
    yield f"| the same at the end of the time | {grown:+,.0f} B |"
    yield f"| a connection, in the kernel | {kernel:,.0f} B |"
    yield f"| a connect, its token verified | {found('connect.server_cpu_us_per_connection'):,.0f} µs of one core |"
    yield f"| heartbeats of all of them | {cpu_ms:,.1f} ms of one core a second |"
    yield ""
    yield f"So {MANY:,} of them would take:"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| memory of the processes | {process * MANY / 1e9:,.1f} GB |"
    yield f"| memory of the kernel | {kernel * MANY / 1e9:,.1f} GB |"
    yield f"| heartbeats | {cpu_ms / 1e3 * MANY / held:,.2f} cores |"
    for rate in (1_000, 10_000):
        seconds = found("connect.server_cpu_us_per_connection") / 1e6 * rate
        yield f"| {rate:,} of them coming back a second | {seconds:,.2f} cores |"
    delivery_us = found("server_cpu_us_per_message", "w2") / 10
    if delivery_us:
        yield f"| each of them getting one event a second, in channels of ten | {delivery_us * MANY / 1e6:,.1f} cores |"
    yield ""
    yield f"{results.date}, {results.machine}: [{path.name}](../../{path})."
