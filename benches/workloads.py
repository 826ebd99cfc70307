"""What is asked: the workloads, what the generator is told for each, who takes part, and which figures are shown."""

import dataclasses
from collections.abc import Sequence

from benches.servers import Server

Figures = tuple[tuple[str, str], ...]
"""Pairs of a label with its unit and the dotted path of a figure in what the load prints."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row group of the table."""

    name: str
    title: str
    arguments: tuple[str, ...]
    figures: Figures
    servers: tuple[str, ...] | None = ("ours", "bun")
    """Who takes part; None for every server that speaks the bare protocol."""
    beside: str | None = None
    """The workload of Bun's that this one is compared with, where it is another one."""
    users: int = 1_000
    seconds: float | None = None
    """Measured time where it is not that of the whole run."""
    compressed: bool = False
    late: bool = False
    """The event loop is asked how late it was at most."""
    idle: bool = False
    """Its connections do nothing, so that the kernel's memory for their sockets can be told."""
    long: bool = False
    """Left out of a quick run."""
    full: bool = False
    """Only in a full run."""
    script: str | None = None
    """A client of the HTTP side, in place of the generator; `scrape.py` has idle connections beside it."""

    def asks(self, server: Server) -> bool:
        """Whether a server takes part."""
        if self.compressed and not server.compresses:
            return False
        if server.asked is not None and self.name not in server.asked:
            return False
        if self.servers is None:
            return server.name != "handler"
        return server.name in self.servers


LATENCY = (("p50, µs", "latency_us.p50"), ("p99, µs", "latency_us.p99"))
BUSY = (("generator's core", "generator_cpu_share"),)
LATE = (("generator late p99, µs", "generator_late_us.p99"),)
PER_DELIVERY = (("CPU a delivery, µs", "server_cpu_us_per_delivery"), *LATENCY, *BUSY)
PER_MESSAGE = (("CPU a message, µs", "server_cpu_us_per_message"), *LATENCY)
PER_PING = (("CPU a ping, µs", "server_cpu_us_per_message"), *LATENCY)
LOOP = (("loop late, below, µs", "loop_late_max_us"),)
RATE = (("messages a second", "messages_per_s"),)
ACK = (("ack p50, µs", "ack_latency_us.p50"), ("ack p99, µs", "ack_latency_us.p99"))
CONNECT = (
    ("CPU a connect, µs", "connect.server_cpu_us_per_connection"),
    ("memory a connection, B", "connect.pss_bytes_per_connection"),
    ("its socket's, B", "socket_bytes_per_connection"),
)
HOOKS = (
    ("events a second", "events_per_s"),
    ("CPU an event, µs", "server_cpu_us_per_event"),
    ("batch p50, µs", "latency_us.p50"),
    ("batch p99, µs", "latency_us.p99"),
    *BUSY,
)
SCRAPE = (
    ("scrape p50, µs", "scrape_us.p50"),
    ("scrape max, µs", "scrape_us.max"),
    ("ack p99 without, µs", "ack_alone_us.p99"),
    ("ack p99 beside, µs", "ack_beside_us.p99"),
)
CHURN = (
    ("RSS closed, cycle 2, MiB", "cycles.1.rss_closed_bytes"),
    ("RSS closed, cycle 10, MiB", "cycles.9.rss_closed_bytes"),
    ("RSS open, cycle 2, MiB", "cycles.1.rss_after_bytes"),
    ("RSS open, cycle 10, MiB", "cycles.9.rss_after_bytes"),
)

# A short name outside of the conversations, whose events carry their id too, leaves room for the 131 B of all rivals.
BENCH = ("--prefix", "bench:")
SAY = ("--type", "say")
"""The command of apps/handler.py."""
OURS = ("ours",)
W2 = (*RATE, *PER_MESSAGE, *BUSY)
HANDLED = (*W2, *LOOP)
QUICK_RATE = 10_000


def offered(rate: int, *, handled: bool = False) -> Workload:
    """W6 at one rate, by the relay or by the handler; a quick run asks for the lowest alone."""
    arguments = ("--workload", "w6", "--rate", str(rate), *BENCH)
    figures, long = (*PER_MESSAGE, *LATE), rate > QUICK_RATE
    if not handled:
        return Workload(f"w6-{rate}", f"W6   {rate:,}/s", arguments, figures, long=long)
    name, title = f"w6-handler-{rate}", f"W6   {rate:,}/s handled"
    said = (*arguments, *SAY)
    return Workload(name, title, said, (*figures, *LOOP), ("handler",), beside=f"w6-{rate}", late=True, long=long)


HELD = Workload(
    "w4b",
    "W4b  held 10 min",
    ("--workload", "idle", "--timeout", "120"),
    (*CONNECT, ("RSS opened, MiB", "connect.rss_after_bytes"), ("RSS at the end, MiB", "memory.-1.rss_bytes")),
    OURS,
    users=18_000,
    idle=True,
    seconds=600,
    full=True,
)

WORKLOADS: Sequence[Workload] = (
    Workload("w1", "W1   1 x 1,000", ("--workload", "w1", *BENCH), PER_DELIVERY, None),
    Workload("w1b", "W1b  16 in flight", ("--workload", "w1b", *BENCH), PER_DELIVERY, None),
    Workload("w2", "W2   100 x 10", ("--workload", "w2", *BENCH), W2, None),
    Workload(
        "w2-handler", "W2   handled", ("--workload", "w2", *BENCH, *SAY), HANDLED, ("handler",), beside="w2", late=True
    ),
    Workload("w3", "W3   ping", ("--workload", "w3"), (*RATE, *PER_PING, *BUSY), None, users=200),
    Workload("w4", "W4   idle", ("--workload", "idle"), CONNECT, None, users=10_000, idle=True),
    HELD,
    Workload("w5", "W5   compressed", ("--workload", "w5", *BENCH), PER_DELIVERY, None, compressed=True),
    Workload("w5-plain", "W5   as it is", ("--workload", "w1", "--payload", "730", *BENCH), PER_DELIVERY, long=True),
    *(offered(rate) for rate in (10_000, 30_000, 60_000)),
    *(offered(rate, handled=True) for rate in (10_000, 30_000)),
    Workload("w7", "W7   stored", ("--workload", "send"), (*RATE, *PER_MESSAGE, *ACK, *BUSY), OURS),
    Workload("w7-10000", "W7   10,000/s", ("--workload", "send", "--rate", "10000"), (*PER_MESSAGE, *ACK, *LATE), OURS),
    Workload("hooks", "hooks volatile", (), HOOKS, OURS, script="hooks.py"),
    Workload("hooks-50000", "hooks at 50,000/s", ("--rate", "50000"), HOOKS, OURS, script="hooks.py", long=True),
    Workload("hooks-stored", "hooks stored", ("--target", "conversation"), HOOKS, OURS, script="hooks.py"),
    Workload("scrape", "scrape 10,000", (), SCRAPE, OURS, users=10_000, script="scrape.py"),
    Workload("churn", "churn 10 cycles", ("--workload", "churn"), CHURN, users=10_000, long=True),
)
