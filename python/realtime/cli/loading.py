"""`realtime bench`: load a server with the compiled generator, show how it goes, and say what came of it.

The generator counts every delivery at every receiver and runs without the GIL; here are only the options, one line of
progress on a terminal, and the report. Ctrl-C ends a load early with a report of what was measured; a second one ends
it at once. Called by the command line.
"""

import math
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import msgspec

from realtime._engine import EngineError, load

STOPPED = 130
USERS = 1_000
"""Who the connections are, in turn: enough that a user has fewer sessions than a server allows by default."""


class Teller(Protocol):
    """What is told of a load while it runs; a false answer ends it early."""

    def __call__(self, progress: str, /) -> bool:
        """Take what the generator says, as JSON; return whether to go on."""
        ...


def run(arguments: list[str], tokens: list[str], *, as_json: bool) -> int:
    """Run one load and print its report; return the exit code: 0, 1 where something was wrong, 130 after Ctrl-C.

    Raises:
        EngineError: an option is wrong, or nobody is there.
    """
    with _interrupts() as interrupts:
        try:
            report = load(arguments, tokens, _line(interrupts))
        except EngineError as error:
            if interrupts and error.code == "io":
                return STOPPED
            raise
        finally:
            _clear()
    figures = msgspec.json.decode(report)
    sys.stdout.write(report + "\n" if as_json else text_of(figures))
    if not figures["ok"]:
        return 1
    return STOPPED if figures["stopped"] else 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT: the first is noted, a second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _line(interrupts: list[int]) -> Teller:
    shows = sys.stderr.isatty()

    def tell(progress: str, /) -> bool:
        if shows:
            width = shutil.get_terminal_size().columns
            sys.stderr.write(f"\r\x1b[K{progress_of(msgspec.json.decode(progress))[: width - 1]}")
            sys.stderr.flush()
        return not interrupts

    return tell


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def progress_of(now: dict[str, Any]) -> str:
    """One line for people of what the generator tells while it runs."""
    parts = [f"{now['phase']} {now['elapsed_s']:.1f} s" if now["elapsed_s"] else now["phase"]]
    parts.append(f"{now['connections']:,} open")
    if now["messages"]:
        parts.append(f"{now['messages_per_s']:,.0f} messages/s")
        parts.append(f"{now['deliveries_per_s']:,.0f} deliveries/s")
        parts.append(f"p50 {_time(now['p50_us'])}  p99 {_time(now['p99_us'])}")
    parts.append(f"{now['faults']:,} faults")
    return "  ".join(parts)


def text_of(figures: dict[str, Any]) -> str:
    """The report for people."""
    rows = [*_rows(figures)]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {value}\n" for name, value in rows)


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    channels = figures["channels"]
    shape = f", {channels:,} channels" if channels > 1 else ", 1 channel" if channels else ""
    yield "load", f"{figures['workload']}: {figures['connections']:,} connections{shape}{_pace(figures)}"
    if connect := figures.get("connect"):
        opened = f"{figures['connections']:,} in {connect['seconds']:.2f} s ({connect['connections_per_s']:,.0f}/s)"
        yield "connects", f"{opened}, each {_percentiles(figures['connect_us'])}"
    if "messages_per_s" in figures:
        yield "messages", f"{figures['messages']:,} in {figures['seconds']:.2f} s ({figures['messages_per_s']:,.0f}/s)"
        each = f"{figures['event_bytes']:.0f} B each"
        if "compressed_messages" in figures:
            each += f", {figures['compressed_messages']:,} of them compressed"
        yield "deliveries", f"{figures['deliveries']:,} ({figures['deliveries_per_s']:,.0f}/s), {each}"
        yield "latency", _percentiles(figures["latency_us"])
    if "ack_latency_us" in figures:
        yield "acks", _percentiles(figures["ack_latency_us"])
    if "received_bytes" in figures:
        yield "bytes", f"{_size(figures['received_bytes'])} received, {_size(figures['sent_bytes'])} sent"
        late = f", late p99 {_time(figures['generator_late_us']['p99'])}" if "generator_late_us" in figures else ""
        yield "generator", f"{figures['generator_cpu_share']:.0%} of a core{late}"
    if "back_us" in figures:
        yield "reconnects", _percentiles(figures["reconnect_us"])
        yield "all back", f"{_percentiles(figures['back_us'])}, from the cut to the last missed event"
        yield "replayed", f"{figures['replayed']:,} of {figures['deliveries']:,} deliveries"
    if "held_seconds" in figures:
        yield "held", f"{figures['held_seconds']:.0f} s, {figures['pings_answered']:,} pings answered"
    yield from _server(figures)
    if figures["stopped"]:
        yield "stopped", "before its end; the figures are of the time until then"
    if figures["ok"]:
        yield "faults", "none"
    for sentence in figures["wrong"]:
        yield "WRONG", sentence
    if any("rate_limited" in sentence or "limit_reached" in sentence for sentence in figures["wrong"]):
        yield "", "the server's limits are in force; to measure it without, serve with --set limits.enabled=false"


def _pace(figures: dict[str, Any]) -> str:
    if "offered_per_s" in figures:
        return f", {figures['offered_per_s']:,.0f} messages/s offered"
    if "in_flight_per_channel" in figures:
        return f", {figures['in_flight_per_channel']:,} in flight each"
    return ""


def _server(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    connect = figures.get("connect", {})
    if not connect.get("rss_after_bytes"):
        return
    if "messages_per_s" in figures:
        delivery, message = figures["server_cpu_us_per_delivery"], figures["server_cpu_us_per_message"]
        share = f"{figures['server_cpu_share']:.0%} of a core"
        yield "server CPU", f"{delivery:.2f} µs a delivery, {message:.2f} µs a message, {share}"
    memory = f"{_size(connect['rss_after_bytes'])}, {connect['rss_bytes_per_connection']:,.0f} B a connection"
    yield "server", f"{memory}, {connect['server_cpu_us_per_connection']:.0f} µs of CPU a connect"


def _percentiles(us: dict[str, float]) -> str:
    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
    return "  ".join(f"{shown} {_time(us[name])}" for name, shown in names.items())


def _time(us: float) -> str:
    return f"{us:.0f} µs" if us < 1_000 else f"{us / 1e3:.2f} ms" if us < 1e6 else f"{us / 1e6:.2f} s"


def _size(octets: float) -> str:
    units = ("B", "KiB", "MiB", "GiB")
    power = min(int(math.log(max(octets, 1), 1024)), len(units) - 1)
    return f"{octets / 1024**power:,.{1 if power else 0}f} {units[power]}"
