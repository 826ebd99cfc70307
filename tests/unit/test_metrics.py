"""Figures and their families: every name once, by Prometheus' rules, from what the real engine tells."""

# ruff: noqa: ARG001 -- what a handler takes is its contract

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from realtime import Realtime, Session
from realtime.base.memory import CONNECTION_BYTES, PURPOSES
from realtime.base.metrics import SECONDS, Families, Figures, Highest, Histogram, LoopLag, text_of
from realtime.testing import TestApp


def test_a_value_counts_in_the_first_bucket_that_it_does_not_pass() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 1, 1], 12.0)


async def test_the_families_tell_what_happened() -> None:
    app = Realtime()

    @app.on("vote")
    def vote(session: Session) -> None:
        """Take it."""

    @app.on("fail")
    def fail(session: Session) -> None:
        raise LookupError

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.command("vote")
        await alice.command("vote")
        await alice.command("fail")
        await alice.command("nothing_of_the_kind")
        control = t.control
        families = Families(
            control.stats,
            control.figures,
            control.ledger,
            control.settings,
            users=lambda: control.connections.users,
            ready=lambda: True,
        )
        text = families.text().decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["realtime_connections", ()] == 1
    assert samples["realtime_users_online", ()] == 1
    assert samples["realtime_ready", ()] == 1
    assert samples["realtime_connections_opened_total", ()] == 1
    assert samples["realtime_messages_received_total", ()] == 4
    assert samples["realtime_handler_seconds_count", ("vote",)] == 2
    assert samples["realtime_handler_seconds_count", ("fail",)] == 1
    assert samples["realtime_handler_seconds_bucket", ("+Inf", "vote")] == 2
    assert samples["realtime_errors_total", ("internal", "python")] == 1
    assert samples["realtime_errors_total", ("engine", "unknown_type")] == 1
    assert samples["process_resident_memory_bytes", ()] > 1_000_000
    held = {labels[0]: value for (name, labels), value in samples.items() if name == "realtime_memory_bytes"}
    most = {labels[0]: value for (name, labels), value in samples.items() if name == "realtime_memory_limit_bytes"}
    assert held.keys() == most.keys() == {purpose.name for purpose in PURPOSES}
    assert held["connections"] == CONNECTION_BYTES
    assert samples["realtime_memory_held_bytes", ()] == sum(held.values())
    assert samples["realtime_memory_budget_bytes", ()] > sum(most.values())
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    listed = [(cells[0].strip("|` "), cells[-1].strip("| ")) for cells in rows]
    told = [line.split(maxsplit=3)[2:] for line in text.splitlines() if line.startswith("# HELP")]
    names = [name for name, _ in told]
    assert len(names) == len(set(names))
    assert told == [list(row) for row in listed], "docs/reference/metrics.md does not list the families as they are"
    assert all(name.startswith(("realtime_", "process_")) for name in names)


async def test_upgrades_over_authenticating_max_are_counted() -> None:
    async with TestApp(Realtime()) as t:
        control = t.control
        told = control.stats().replace(b'"authenticating_refused":0', b'"authenticating_refused":3')
        families = Families(
            lambda: told, control.figures, control.ledger, control.settings, users=lambda: 0, ready=lambda: True
        )
        assert "realtime_authenticating_refused_total 3.0" in families.text().decode()


def test_an_apps_own_codes_make_no_labels() -> None:
    figures = Figures()
    for code in ("internal", "out_of_tea", "out_of_cake"):
        figures.error(code)
    assert figures.errors == {"internal": 1, "other": 2}


async def test_the_loops_lag_is_measured_and_what_is_no_handler_is_told(caplog: pytest.LogCaptureFixture) -> None:
    figures = Figures()
    lag = LoopLag(figures, asyncio.get_running_loop())
    time.sleep(0.5)  # noqa: ASYNC251 -- it holds the loop on purpose
    while not sum(figures.lag_s.counts):  # noqa: ASYNC110 -- its timer is due already
        await asyncio.sleep(0.01)
    lag.stop()
    assert figures.lag_last_s > 0.3
    assert figures.lag_s.counts[len(SECONDS) - 4 :] != [0, 0, 0, 0, 0]
    assert "something that is no handler held the event loop" in caplog.text


def test_the_highest_value_is_told_for_one_to_two_minutes_however_often_it_is_looked_at() -> None:
    now = [0.0]
    highest = Highest(lambda: now[0])
    assert highest.value() == 0
    for now[0], value, told in ((1.0, 3.0, 3.0), (59.0, 1.0, 3.0), (61.0, 2.0, 3.0), (122.0, 1.0, 2.0)):
        highest.observe(value)
        assert [highest.value(), highest.value()] == [told, told]
    now[0] = 500.0
    assert highest.value() == 0


def test_the_text_is_that_of_prometheus_own_library() -> None:
    counter = CounterMetricFamily("realtime_errors", 'By "whom",\nand a \\.', labels=["source", "code"])
    counter.add_metric(["engine", 'a "quoted"\nname \\ é'], 3)
    counter.add_metric(["python", "internal"], 2.5e9)
    histogram = HistogramMetricFamily("realtime_handler_seconds", "How long.", labels=["type"])
    histogram.add_metric(["vote"], [("0.001", 1.0), ("+Inf", 2.0)], 0.25)
    families = [counter, histogram, GaugeMetricFamily("realtime_ready", "Ready.", value=float("inf"))]

    class Fixed(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from families

    registry = CollectorRegistry()
    registry.register(Fixed())
    assert text_of(families) == generate_latest(registry)
