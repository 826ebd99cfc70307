"""What `realtime bench` takes and prints; the load itself is in tests/integration/test_bench.py."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from realtime import _engine
from realtime.cli import loading
from tests.unit.cli.test_commands import SECRET, Run, run

__all__ = ["run"]

FIGURES: dict[str, Any] = {
    "workload": "w2",
    "connections": 1_000,
    "channels": 100,
    "offered_per_s": 1_000.0,
    "connect": {
        "seconds": 0.5,
        "connections_per_s": 2_000.0,
        "rss_after_bytes": 52_428_800,
        "rss_bytes_per_connection": 812.0,
        "server_cpu_us_per_connection": 31.4,
    },
    "connect_us": {"p50": 900.0, "p90": 1_500.0, "p99": 2_000.0, "p999": 2_500.0, "max": 1_250_000.0},
    "seconds": 10.0,
    "messages": 10_000,
    "messages_per_s": 1_000.0,
    "deliveries": 100_000,
    "deliveries_per_s": 10_000.0,
    "event_bytes": 131.0,
    "latency_us": {"p50": 210.0, "p90": 400.0, "p99": 999.0, "p999": 1_000.0, "max": 6_000.0},
    "received_bytes": 13_300_000,
    "sent_bytes": 512,
    "generator_cpu_share": 0.42,
    "generator_late_us": {"p99": 12.0},
    "server_cpu_us_per_delivery": 1.234,
    "server_cpu_us_per_message": 12.34,
    "server_cpu_share": 0.12,
    "stopped": False,
    "ok": True,
    "wrong": [],
}


def test_the_report_has_every_figure_with_its_unit() -> None:
    assert loading.text_of(FIGURES).splitlines() == [
        "load        w2: 1,000 connections, 100 channels, 1,000 messages/s offered",
        "connects    1,000 in 0.50 s (2,000/s), each p50 900 µs  p90 1.50 ms  p99 2.00 ms  p99.9 2.50 ms  max 1.25 s",
        "messages    10,000 in 10.00 s (1,000/s)",
        "deliveries  100,000 (10,000/s), 131 B each",
        "latency     p50 210 µs  p90 400 µs  p99 999 µs  p99.9 1.00 ms  max 6.00 ms",
        "bytes       12.7 MiB received, 512 B sent",
        "generator   42% of a core, late p99 12 µs",
        "server CPU  1.23 µs a delivery, 12.34 µs a message, 12% of a core",
        "server      50.0 MiB, 812 B a connection, 31 µs of CPU a connect",
        "faults      none",
    ]


def test_the_report_of_a_load_that_was_refused_says_how_to_measure_without_limits() -> None:
    wrong = {"ok": False, "wrong": ["7 refused or misrouted", 'first refusal: {"code":"rate_limited"}']}
    lines = loading.text_of(FIGURES | wrong).splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines[-3:-1]] == ["WRONG", "WRONG"]
    assert "--set limits.enabled=false" in lines[-1]
    assert not any(line.startswith("faults") for line in lines)


def test_the_report_of_a_load_that_could_not_begin_is_what_is_known() -> None:
    begun = {"workload": "w3", "connections": 200, "channels": 0, "stopped": False, "ok": False, "wrong": ["refused"]}
    assert loading.text_of(begun).splitlines() == ["load   w3: 200 connections", "WRONG  refused"]


def test_the_report_of_held_connections_says_for_how_long() -> None:
    held = {name: value for name, value in FIGURES.items() if name in {"workload", "connect", "connect_us", "ok"}}
    held |= {"connections": 18_000, "channels": 0, "held_seconds": 600.0, "pings_answered": 432_000}
    lines = loading.text_of(held | {"stopped": False, "wrong": []}).splitlines()
    assert lines[0] == "load      w2: 18,000 connections"
    assert lines[2] == "held      600 s, 432,000 pings answered"


def test_the_report_of_clients_that_were_cut_says_when_all_were_back() -> None:
    times = FIGURES["latency_us"]
    cut = {"workload": "w8", "connections": 10, "channels": 2, "reconnect_us": times, "back_us": times, "ok": True}
    cut |= {"messages": 7, "deliveries": 35, "replayed": 9, "stopped": False, "wrong": []}
    lines = loading.text_of(cut).splitlines()
    shown = "p50 210 µs  p90 400 µs  p99 999 µs  p99.9 1.00 ms  max 6.00 ms"
    assert lines[1:] == [
        f"reconnects  {shown}",
        f"all back    {shown}, from the cut to the last missed event",
        "replayed    9 of 35 deliveries",
        "faults      none",
    ]


def test_progress_is_one_line() -> None:
    now = {"phase": "measuring", "elapsed_s": 3.21, "connections": 1_000, "messages": 3_200, "deliveries": 32_000}
    now |= {"messages_per_s": 1_004.0, "deliveries_per_s": 10_040.0, "p50_us": 210.0, "p99_us": 1_234.0, "faults": 0}
    assert loading.progress_of(now) == (
        "measuring 3.2 s  1,000 open  1,004 messages/s  10,040 deliveries/s  p50 210 µs  p99 1.23 ms  0 faults"
    )
    connecting = now | {"phase": "connecting", "elapsed_s": 0.0, "connections": 12, "messages": 0}
    assert loading.progress_of(connecting) == "connecting  12 open  0 faults"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """Take the generator's place; what it is called with."""
    calls: list[tuple[list[str], list[str]]] = []

    def load(arguments: list[str], tokens: list[str], on_progress: Callable[[str], object]) -> str:
        assert on_progress("{}") is True
        calls.append((arguments, tokens))
        return json.dumps(FIGURES)

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setenv("REALTIME_JWT_SECRET", SECRET)
    return calls


def test_without_options_the_configured_server_is_loaded_within_its_limits(
    run: Run, loaded: list[tuple[list[str], list[str]]]
) -> None:
    code, out, _ = run("bench", "--set", "server.port=4321")
    assert (code, out) == (0, loading.text_of(FIGURES))
    [(arguments, tokens)] = loaded
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given["--url"] == "ws://127.0.0.1:4321/ws"
    assert (given["--workload"], given["--rate"], given["--duration"]) == ("w2", "1000", "10.0")
    assert "--connections" not in given
    assert len(set(tokens)) == loading.USERS


def test_options_are_passed_on_as_they_are(run: Run, loaded: list[tuple[list[str], list[str]]]) -> None:
    line = "--url ws://there:1/ws --token t --workload w1b --in-flight 3 --rate 0 --payload 730 --pid 1 --pid 2 --json"
    code, out, _ = run("bench", *line.split(), "--compress")
    assert code == 0
    assert json.loads(out) == FIGURES
    [(arguments, tokens)] = loaded
    assert tokens == ["t"]
    for pair in ("--url ws://there:1/ws", "--in-flight 3", "--rate 0", "--payload 730", "--pid 1 --pid 2 --compress"):
        assert pair in " ".join(arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--url http://127.0.0.1:1/ws", "--url http://127.0.0.1:1/ws: must begin with ws://"),
        ("--workload w9", "--workload w9: must be w1, "),
        ("--connections 10 --channels 11", "--channels 11: must be 1 to --connections 10"),
        ("--rate -1", "--rate -1: must be 0 (a closed loop) to "),
        ("--workload w1 --in-flight 0", "--window and --in-flight must be 1 or more"),
        ("--connections 2000000000", "--connections 2000000000: this process may hold "),
    ],
)
def test_an_option_that_cannot_be_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, told: str
) -> None:
    monkeypatch.setenv("REALTIME_JWT_SECRET", SECRET)
    code, out, err = run("bench", *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"realtime: {told}")
    assert err.count("\n") == 1


def test_ctrl_c_asks_for_an_early_end_and_a_second_one_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def load(arguments: list[str], tokens: list[str], on_progress: Callable[[str], object]) -> str:  # noqa: ARG001
        assert on_progress("{}")
        signal.raise_signal(signal.SIGINT)
        assert not on_progress("{}")
        return json.dumps(FIGURES | {"stopped": True})

    monkeypatch.setattr(loading, "load", load)
    assert loading.run([], [], as_json=True) == loading.STOPPED

    def twice(arguments: list[str], tokens: list[str], on_progress: Callable[[str], object]) -> str:  # noqa: ARG001
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second signal raises")

    monkeypatch.setattr(loading, "load", twice)
    with pytest.raises(KeyboardInterrupt):
        loading.run([], [], as_json=True)
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_the_watcher_raises_ends_the_load_and_is_raised() -> None:
    def raising(progress: str) -> bool:  # noqa: ARG001
        raise LookupError

    # Nobody is there, but the watcher is asked first.
    with pytest.raises(LookupError):
        _engine.load(["--url", "ws://127.0.0.1:1/ws", "--workload", "w3"], [], raising)
