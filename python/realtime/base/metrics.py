"""Figures for those who watch the server: what Python counts by itself, and all of it as families of Prometheus.

`Figures` is what Python adds to with each command: lists of counts, no locks and nothing of prometheus_client, since
it stands on the way of messages. `Families` makes the families when somebody asks: from `Commands.stats()`, which sums
the engine's counters, and from `Figures`. Nothing walks over connections, so a scrape costs the same with many.

Labels are lists that the code knows (codes, reasons, types of commands, shards): no peer makes a new one.
Called by `routing` (Figures), `server` (LoopLag) and `api.metrics` (Families).
"""

import asyncio
import platform
import resource
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from realtime.base import logs
from realtime.base.config import Settings
from realtime.base.memory import Ledger, Usage, budget, summed, usages

SECONDS: Final = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Upper bounds of the histograms of what Python does."""

_LAG_INTERVAL_S: Final = 0.1
_LAG_NAMED_S: Final = 0.25
_LAG_AGAIN_S: Final = 10.0
_WINDOW_S: Final = 60.0


class Histogram:
    """How many values fell below each bound: one count more than bounds, not cumulated."""

    __slots__ = ("_first", "bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self._first = bounds[0]
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        # Most are below the first bound.
        self.counts[bisect_left(self.bounds, value) if value > self._first else 0] += 1
        self.sum += value


class Highest:
    """The highest value of the last one to two minutes; looking changes nothing, so any number may look.

    Args:
        clock: tells seconds that never jump.
    """

    __slots__ = ("_before", "_clock", "_now", "_since_s")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = clock()
        self._now = self._before = 0.0

    def observe(self, value: float) -> None:
        """Take one value in."""
        self._age()
        self._now = max(self._now, value)

    def value(self) -> float:
        """Return the highest; 0 where there was none."""
        self._age()
        return max(self._now, self._before)

    def _age(self) -> None:
        now_s = self._clock()
        if (over_s := now_s - self._since_s) < _WINDOW_S:
            return
        self._before = self._now if over_s < 2 * _WINDOW_S else 0.0
        self._now = 0.0
        self._since_s = now_s


class Figures:
    """What Python's half counts. For the loop's thread."""

    def __init__(self) -> None:
        self.handler_s: dict[str, Histogram] = {}
        """How long a command of each type took, its waits included."""
        self.errors: dict[str, int] = {}
        """`error` events by their code, those that Python answered."""
        self.tokens_refused: dict[str, int] = {}
        """Tokens by why Python refused them."""
        self.presence_held = 0
        """Changes of users that were not told at once, over `presence.changes_per_s`."""
        self.presence_switches = 0
        """Switches between everybody and those who share a channel as those who are told."""
        self.lag_s = Histogram()
        self.lag_last_s = 0.0
        self.lag_max_s = Highest()
        self.turn_s = Histogram()
        """How long one batch of events held the loop."""

    def token_refused(self, reason: str) -> None:
        """Count a token that Python refused. Reasons are the engine's (`TokenCheck.reasons`)."""
        self.tokens_refused[reason] = self.tokens_refused.get(reason, 0) + 1

    def handler(self, type: str) -> Histogram:
        """Return the histogram of a type of command."""
        return self.handler_s.setdefault(type, Histogram())

    def error(self, code: str) -> None:
        """Count an `error` event. An app's own codes count as `other`."""
        code = code if code in _CODES else "other"
        self.errors[code] = self.errors.get(code, 0) + 1


_CODES: Final = frozenset(
    (
        *("invalid_message", "unknown_type", "unauthorized", "forbidden", "not_found", "not_subscribed"),
        *("rate_limited", "limit_reached", "too_large", "not_recoverable", "upstream_failed", "timeout"),
        *("unavailable", "overloaded", "draining", "internal"),
    )
)


class LoopLag:
    """A timer of the event loop that measures how late it comes: that late is every command then.

    What held the loop longer than a quarter of a second and was not named meanwhile, as handlers are, is told in the
    log, at most every ten seconds.
    """

    def __init__(self, figures: Figures, loop: asyncio.AbstractEventLoop) -> None:
        self._figures = figures
        self._loop = loop
        self._due_s = loop.time() + _LAG_INTERVAL_S
        self._told_s = -_LAG_AGAIN_S
        self._timer = loop.call_at(self._due_s, self._look)

    def stop(self) -> None:
        """Measure no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        lag_s = max(0.0, now_s - self._due_s)
        self._figures.lag_last_s = lag_s
        self._figures.lag_s.observe(lag_s)
        self._figures.lag_max_s.observe(lag_s)
        if lag_s > _LAG_NAMED_S and now_s - self._told_s > _LAG_AGAIN_S and not logs.named_within(lag_s + 1):
            self._told_s = now_s
            logs.name_slow("something that is no handler", lag_s, "look at tasks, mounted apps and callbacks")
        self._due_s = now_s + _LAG_INTERVAL_S
        self._timer = self._loop.call_at(self._due_s, self._look)


class _Histogram(Struct):
    bounds: list[float]
    counts: list[int]
    sum: float


class _Shard(Struct):
    busy_ns: int
    connections: int


class _Http(Struct):
    """What the HTTP port counts; nothing where there is none."""

    connections: int = 0
    accepted: int = 0
    accept_errors: int = 0
    requests: int = 0
    in_flight: int = 0
    waiting: int = 0
    panics: int = 0
    bytes: dict[str, int] = {}
    ended: dict[str, int] = {}
    refused: dict[str, int] = {}


class _Stats(Struct):
    """What `Commands.stats()` tells, as far as it is shown."""

    accepted: int
    connections: int
    opened: int
    handshakes_pending: int
    heads_bytes: int
    authenticating: int
    authenticating_refused: int
    messages_in: int
    bytes_in: int
    bytes_out: int
    sends: int
    deliveries: int
    compressions: int
    compressed_bytes_in: int
    compressed_bytes_out: int
    inflations: int
    inflated_bytes: int
    publications: int
    log_events: int
    accept_errors: int
    unfinished_bytes: int
    messages_late: int
    events_bytes: int
    events_pauses: int
    user_pauses: int
    events_refused: int
    retained: int
    retained_bytes: int
    retained_refused: int
    pages_refused: int
    panics: int
    refused_by_connection: int
    refused_by_user: int
    refused_by_address: int
    stored_refused: int
    reads: int
    read_bytes: int
    reads_refused: int
    reads_waiting: int
    flush_ring_failures: int
    log_gaps: int = 0
    log_failures: int = 0
    log_failing: int = 0
    flush: str = "none"
    closed_by_code: dict[str, int] = {}
    errors_by_code: dict[str, int] = {}
    refused_by_status: dict[str, int] = {}
    tokens_refused: dict[str, int] = {}
    evicted_by_reason: dict[str, int] = {}
    dropped_by_reason: dict[str, int] = {}
    histograms: dict[str, _Histogram] = {}
    shards: list[_Shard] = []
    queues: dict[str, int] = {}
    http: _Http = msgspec.field(default_factory=_Http)


_COUNTERS: Final = (
    ("opened", "connections_opened", "Connections that were opened."),
    ("accepted", "sockets_accepted", "Sockets that were taken, before their upgrade."),
    ("accept_errors", "accept_errors", "Sockets that could not be taken."),
    (
        "authenticating_refused",
        "authenticating_refused",
        "Upgrades refused over `limits.authenticating_max`, of all clients or of one address.",
    ),
    ("messages_in", "messages_received", "Messages from clients."),
    ("bytes_in", "received_bytes", "Bytes from clients."),
    ("bytes_out", "sent_bytes", "Bytes that the kernel took."),
    ("sends", "sends", "Calls of the kernel that sent something."),
    ("deliveries", "deliveries", "Frames queued for connections."),
    ("compressions", "compressions", "Messages that were compressed, once each for all who get them."),
    ("compressed_bytes_in", "compression_in_bytes", "What these messages were before."),
    ("compressed_bytes_out", "compression_out_bytes", "What came of them."),
    ("inflations", "inflations", "Compressed messages from clients."),
    ("inflated_bytes", "inflated_bytes", "What these messages were, inflated."),
    ("publications", "publications", "Events of channels that have members or a past in memory."),
    ("log_events", "log_events", "Events that the log stored."),
    ("log_failures", "log_failures", "Batches and reads that the log could not do."),
    ("log_gaps", "log_gaps", "Events that the log numbered otherwise than their channel counted."),
    (
        "retained_refused",
        "states_refused",
        "States that were not retained and relays that were refused, over `limits.retained_bytes_max` or too large.",
    ),
    ("events_pauses", "events_pauses", "Times that reading stopped since Python had too many bytes of commands."),
    (
        "user_pauses",
        "user_pauses",
        "Times that a connection was not read since its user had too many bytes of commands in Python.",
    ),
    (
        "pages_refused",
        "pages_refused",
        "Questions for a history that were refused since pages wait above `limits.commands_waiting_bytes_max`.",
    ),
    (
        "events_refused",
        "commands_refused",
        "Large commands that were refused since Python had too many bytes of all users.",
    ),
    ("messages_late", "messages_late", "Connections closed because a message was not complete in time."),
    (
        "stored_refused",
        "log_events_rate_limited",
        "Durable events that were not stored, over `limits.user_stored_bytes_per_s` of their user.",
    ),
    ("reads", "log_pages", "Pages of the log that were read."),
    ("read_bytes", "log_pages_bytes", "Bytes of payload in them."),
    (
        "reads_refused",
        "log_pages_refused",
        "Pages that were not read, over `limits.reads_waiting_max` or `limits.user_reads_waiting_max`.",
    ),
    ("panics", "panics", "Connections that ended by a fault of the engine's."),
    ("flush_ring_failures", "flush_ring_failures", "Shards whose io_uring failed: they send one by one."),
)
_GAUGES: Final = (
    ("connections", "connections", "Connections that are open now."),
    ("handshakes_pending", "handshakes_pending", "Upgrades under way."),
    ("heads_bytes", "heads_bytes", "Bytes held of request heads that are not complete."),
    ("authenticating", "authenticating", "Upgrades that wait for `authenticate`, a ticket or a key."),
    ("unfinished_bytes", "unfinished_bytes", "Bytes held of messages that are not complete."),
    ("events_bytes", "events_bytes", "Bytes of commands and upgrades that Python has not done with."),
    ("log_failing", "log_failing", "1 while the log cannot store; the process log says why."),
    ("reads_waiting", "queue_log_pages", "Pages that wait to be read from the log."),
    ("retained", "states", "States that channels retain for late subscribers."),
    ("retained_bytes", "states_bytes", "Bytes of these states and of relays that last, their keys and places."),
)
_LABELLED: Final = (
    ("closed_by_code", "connections_closed", "code", "Connections that ended, by their close code."),
    ("refused_by_status", "handshakes_refused", "status", "Upgrades that were refused, by their HTTP status."),
    (
        "evicted_by_reason",
        "handshakes_evicted",
        "reason",
        "Connections without a session that were closed to make room, by what there was too much of.",
    ),
    ("dropped_by_reason", "drops", "reason", "Events that slow readers did not get, by why."),
)
_QUEUES: Final = (
    ("events", "queue_events", "Events that wait for Python."),
    ("commands_bytes", "queue_commands_bytes", "Bytes of commands that wait for a shard."),
    ("log", "queue_log_events", "Appends that wait for the log."),
    ("outbox_bytes", "queue_outbox_bytes", "Bytes that wait for slow readers: shared ones once."),
)
_HTTP: Final = (
    (GaugeMetricFamily, "connections", "connections", "Connections of the HTTP port that are open now."),
    (GaugeMetricFamily, "in_flight", "requests_in_flight", "HTTP requests that are answered now."),
    (GaugeMetricFamily, "waiting", "requests_waiting", "HTTP requests that wait for their turn."),
    (CounterMetricFamily, "accepted", "connections_accepted", "Connections that the HTTP port took."),
    (CounterMetricFamily, "accept_errors", "accept_errors", "Connections that it could not take."),
    (CounterMetricFamily, "requests", "requests", "HTTP requests whose head was whole and good."),
    (CounterMetricFamily, "panics", "panics", "Connections of the HTTP port that ended by a fault of its own."),
)
_HISTOGRAMS: Final = (
    ("connection_s", "connection_duration_seconds", "How long connections lasted."),
    ("delivery_s", "delivery_seconds", "From the read of a message to the last send of its fan-out, on each shard."),
    ("log_commit_s", "log_commit_seconds", "How long a commit of the log takes."),
    ("log_batch", "log_batch_events", "Events of one commit of the log."),
)


class Families(Collector):
    """The families of one server, made anew for each scrape.

    Args:
        stats: `Commands.stats`.
        figures: what Python counts.
        ledger: the bytes that Python holds.
        settings: the configuration, for what memory may be held.
        users: how many users are online.
        ready: whether new clients may be sent here.
    """

    def __init__(
        self,
        stats: Callable[[], bytes],
        figures: Figures,
        ledger: Ledger,
        settings: Settings,
        *,
        users: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        self._stats = stats
        self._figures = figures
        self._ledger = ledger
        self._settings = settings
        self._users = users
        self._ready = ready
        self._decoder = msgspec.json.Decoder(_Stats)
        # Read once: it is a file, which is parsed like a mail.
        self._version = metadata.version("realtime-edge")

    def text(self) -> bytes:
        """Return the families in Prometheus' text format."""
        return text_of(self.collect())

    def describe(self) -> list[Metric]:
        """See `Collector`; nothing to check for doubles, this is the only one."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        told = self._stats()
        stats = self._decoder.decode(told)
        build = {
            "version": self._version,
            "python": platform.python_version(),
            "flush": stats.flush,
        }
        yield _labelled(GaugeMetricFamily, "build_info", "What runs here.", build, 1)
        yield _gauge("ready", "1 where new clients may be sent here.", int(self._ready()))
        yield _gauge("users_online", "Users with a connection.", self._users())
        for name, family, text in _GAUGES:
            yield _gauge(family, text, getattr(stats, name))
        for name, family, text in _COUNTERS:
            yield CounterMetricFamily(f"realtime_{family}", text, value=getattr(stats, name))
        for name, family, label, text in _LABELLED:
            yield _by_label(family, text, label, getattr(stats, name))
        refused = Counter(stats.tokens_refused) + Counter(self._figures.tokens_refused)
        text = "Tokens refused at connect, refresh and over HTTP, by reason."
        yield _by_label("token_refusals", text, "reason", refused)
        buckets = ("connection", "user", "address")
        empty = {bucket: getattr(stats, f"refused_by_{bucket}") for bucket in buckets}
        yield _by_label("rate_refusals", "What was over a rate, by whose bucket was empty.", "bucket", empty)
        text = "Changes of users that were not told at once, over `presence.changes_per_s`."
        yield CounterMetricFamily("realtime_presence_held", text, value=self._figures.presence_held)
        text = "Switches between everybody and those who share a channel as those who are told of presence."
        yield CounterMetricFamily("realtime_presence_switches", text, value=self._figures.presence_switches)
        errors = CounterMetricFamily(
            "realtime_errors", "Errors told to clients, and by whom.", labels=["source", "code"]
        )
        for source, counts in (("engine", stats.errors_by_code), ("python", self._figures.errors)):
            for code, count in counts.items():
                errors.add_metric([source, code], count)
        yield errors
        for name, family, text in _QUEUES:
            yield _gauge(family, text, stats.queues.get(name, 0))
        yield from _of_http(stats.http)
        yield from _of_memory(usages(told, self._ledger, self._settings), sum(budget(self._settings).values()))
        for name, family, text in _HISTOGRAMS:
            if (histogram := stats.histograms.get(name)) is not None:
                yield _histogram(family, text, {"": histogram})
        yield from self._of_shards(stats.shards)
        yield from self._of_python()
        yield from _of_process()

    def _of_shards(self, shards: list[_Shard]) -> Iterator[Metric]:
        busy = CounterMetricFamily(
            "realtime_shard_busy_seconds",
            "Time that a shard did not sleep: its rate is the share.",
            labels=["shard"],
        )
        connections = GaugeMetricFamily("realtime_shard_connections", "Connections of a shard.", labels=["shard"])
        for number, shard in enumerate(shards):
            busy.add_metric([str(number)], shard.busy_ns / 1e9)
            connections.add_metric([str(number)], shard.connections)
        yield busy
        yield connections

    def _of_python(self) -> Iterator[Metric]:
        figures = self._figures
        told = "How long a command took in its handler, its waits included."
        yield _histogram("handler_seconds", told, figures.handler_s, label="type")
        yield _histogram("loop_lag_seconds", "How late Python's event loop is.", {"": figures.lag_s})
        yield _gauge("loop_lag_last_seconds", "How late it was when it was last measured.", figures.lag_last_s)
        told = "The latest that it was within the last one to two minutes."
        yield _gauge("loop_lag_max_seconds", told, figures.lag_max_s.value())
        yield _histogram("loop_turn_seconds", "How long a batch of events held the loop.", {"": figures.turn_s})


def _of_http(http: _Http) -> Iterator[Metric]:
    for kind, name, family, text in _HTTP:
        yield kind(f"realtime_http_{family}", text, value=getattr(http, name))
    held = GaugeMetricFamily("realtime_http_held_bytes", "Bytes that the HTTP port holds, by part.", labels=["part"])
    for part, count in http.bytes.items():
        held.add_metric([part.removeprefix("http_")], count)
    yield held
    text = "Connections that the HTTP port ended, by why."
    yield _by_label("http_connections_ended", text, "reason", http.ended)
    text = "HTTP requests that were refused before Python saw them, by status."
    yield _by_label("http_refused", text, "status", http.refused)


def _of_memory(found: list[Usage], budget_bytes: int) -> Iterator[Metric]:
    held = GaugeMetricFamily("realtime_memory_bytes", "Bytes held for clients, by purpose.", labels=["purpose"])
    most = GaugeMetricFamily("realtime_memory_limit_bytes", "Bytes that may be held, by purpose.", labels=["purpose"])
    text = "What a bound on memory refused, closed, dropped or held back, by purpose."
    refused = CounterMetricFamily("realtime_bound_refusals", text, labels=["bound"])
    for usage in found:
        held.add_metric([usage.purpose], usage.bytes)
        most.add_metric([usage.purpose], usage.bytes_max)
        refused.add_metric([usage.purpose], usage.refused)
    yield from (held, most, refused)
    yield _gauge("memory_held_bytes", "Bytes held for clients, all purposes together.", summed(found).held_bytes)
    text = "Bytes that the process may need by its configuration; `realtime check` prints the parts."
    yield _gauge("memory_budget_bytes", text, budget_bytes)


def _of_process() -> Iterator[Metric]:
    """Yield what Prometheus' own client libraries call by these names."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    memory = pages * resource.getpagesize()
    yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", value=memory)
    yield CounterMetricFamily("process_cpu_seconds", "Processor time, user and system.", value=time.process_time())
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield GaugeMetricFamily("process_max_fds", "Descriptors that the process may have.", value=soft)
    yield GaugeMetricFamily("process_threads", "Threads.", value=sum(1 for _ in Path("/proc/self/task").iterdir()))


def text_of(families: Iterable[Metric]) -> bytes:
    """Return families in the text format 0.0.4, as `generate_latest` of prometheus_client writes them.

    That one checks each name and tries each escape for every sample. The loop serves sockets meanwhile, so this one
    is written for what we make: gauges, counters and histograms under plain names.
    """
    lines = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {told}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            labels = ",".join([f'{label}="{_escaped(value)}"' for label, value in sorted(sample.labels.items())])
            lines.append(f"{sample.name}{{{labels}}} " if labels else f"{sample.name} ")
            value = floatToGoString(sample.value)  # type: ignore[no-untyped-call]  # the library leaves it without
            lines.append(f"{value}\n")
    return "".join(lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"realtime_{name}", text, value=value)


def _labelled(kind: Any, name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    family = kind(f"realtime_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family  # type: ignore[no-any-return]


def _by_label(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"realtime_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(
    name: str, text: str, histograms: Mapping[str, Histogram | _Histogram], label: str | None = None
) -> Metric:
    family = HistogramMetricFamily(f"realtime_{name}", text, labels=None if label is None else [label])
    for value, histogram in histograms.items():
        buckets, total = [], 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
        family.add_metric([] if label is None else [value], buckets, histogram.sum)
    return family
