"""The process log: what waits for stderr is bounded, and holds on to nothing but its text."""

import gc
import io
import logging
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from realtime.base import logs
from realtime.base.config.settings import LogSettings

log = logging.getLogger("realtime")


class Held(io.StringIO):
    """A stderr that nobody reads until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.going_on = threading.Event()

    def write(self, text: str) -> int:
        self.going_on.wait()
        return super().write(text)


@pytest.fixture
def stderr() -> Iterator[Held]:
    stream = Held()
    yield stream
    stream.going_on.set()


class Payload:
    """What a handler fails on."""


def refuse(payload: object) -> None:
    raise LookupError(f"no {type(payload).__name__}")


def fail(payload: object) -> None:
    try:
        refuse(payload)
    except LookupError:
        log.exception("handler failed", extra=logs.facts("error", user="ann"))


def test_a_failure_that_waits_keeps_its_text_and_not_what_it_failed_on(stderr: Held) -> None:
    payload = Payload()
    gone = weakref.ref(payload)
    with logs.written(LogSettings(), stderr):
        fail(payload)
        del payload
        gc.collect()
        assert gone() is None
        stderr.going_on.set()
    assert "handler failed" in stderr.getvalue()
    assert "LookupError: no Payload" in stderr.getvalue()


def test_bytes_that_wait_are_bounded_and_what_is_lost_is_told(stderr: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINES_BYTES_MAX", 100_000)
    with logs.written(LogSettings(), stderr):
        for number in range(200):
            log.info("%d %s", number, "x" * 3_000)
        held, lost = logs.waiting()
        # One more may be taken where less than the bound waits.
        assert 95_000 < held <= 100_000 + 3_000 + 1_100
        assert lost > 150
        stderr.going_on.set()
    assert logs.waiting() == (0, 0), "nothing is counted behind the end"
    text = stderr.getvalue()
    # A line is charged what a record takes besides its text, and one is with the thread.
    assert 70_000 < len(text) < 100_000
    written = text.count("xxx\n")
    assert f"{200 - written} lines of the log were lost" in text


def test_a_long_line_is_cut_and_says_how_long_it_was(stderr: Held) -> None:
    stderr.going_on.set()
    with logs.written(LogSettings(format="json"), stderr):
        log.info("%s", "y" * 10_000, extra=logs.facts("odd", path="/" + "p" * 9_999))
    text = stderr.getvalue()
    assert text.count("(10000 characters)") == 2
    assert len(text) < 9_000


def test_tracebacks_above_their_rate_are_left_out_and_the_lines_are_not(
    stderr: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stderr.going_on.set()
    with logs.written(LogSettings(tracebacks_per_s=2), stderr):
        for _ in range(5):
            fail(Payload())
        now[0] += 1
        fail(Payload())
    text = stderr.getvalue()
    assert (text.count("handler failed"), text.count("Traceback")) == (6, 3)
