"""The log that the process writes to stderr: lines for people or JSON, never at the cost of the loop.

A record is a sentence with facts: `log.info("…", extra=facts("closed", session=…, code=1000))`. As JSON a line is
`{"time", "level", "event", "message", …facts}` and, for an exception, `error`; as text the facts follow the sentence.
Facts are names and figures: a token, a payload or a header's value is never one. What peers chose (a user's name, a
path) is written with every control character escaped, so that no peer writes a line of its own.

A thread writes. A stderr that nobody reads costs lines, which are counted, and never holds the loop up. What waits for
it is text alone, at most `LINES_WAITING_MAX` lines and `LINES_BYTES_MAX` bytes: a traceback would keep the payload
alive that a handler failed on. Of tracebacks there are `log.tracebacks_per_s` a second; further failures are lines
without one.
`ConnectionLines` bounds what single connections write. Called by `cli` and `app.run`; inside of another program that
one decides.
"""

import contextlib
import json
import logging
import queue
import sys
import time
from collections.abc import Iterator, Mapping
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Final, TextIO

import msgspec

from realtime.base import forks
from realtime.base.config import LogSettings

LINES_WAITING_MAX: Final = 10_000
LINES_BYTES_MAX: Final = 16 * 1024 * 1024
_MESSAGE_CHARS_MAX: Final = 4096
_TRACEBACK_CHARS_MAX: Final = 16_384
_LINE_BYTES: Final = 1024
"""A record that waits, without its texts; 900 were measured."""
_FACTS: Final = "realtime_facts"
_EVENT: Final = "realtime_event"
_STOP_TIMEOUT_S: Final = 1.0

log = logging.getLogger("realtime")


def facts(event: str, /, **values: object) -> dict[str, object]:
    """Return the `extra` of a record: what happened in one word, and its facts; those that are None are left out."""
    return {_EVENT: event, _FACTS: {name: value for name, value in values.items() if value is not None}}


@contextlib.contextmanager
def written(settings: LogSettings, stream: TextIO | None = None) -> Iterator[None]:
    """Write the process's log to `stream` (stderr) for the time of the block, by a thread."""
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_formatter(settings))
    lines = _Waiting(settings.tracebacks_per_s)
    listener = QueueListener(lines.queue, handler)
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    root.handlers = [lines]
    root.setLevel(settings.level.upper())
    _current.append(handler)
    _waiting.append(lines)
    listener.start()

    def sever() -> None:
        # The thread that writes is the parent's.
        root.handlers = [handler if one is lines else one for one in root.handlers]

    try:
        with forks.severed(sever):
            yield
    finally:
        _current.remove(handler)
        _waiting.remove(lines)
        root.handlers = before[1]
        root.setLevel(before[0])
        _stop(listener)
        if lines.lost:
            handler.stream.write(f"realtime: {lines.lost} lines of the log were lost; is stderr read?\n")


def adjust(settings: LogSettings) -> None:
    """Take over another level and form, where this process writes the log."""
    for handler in _current:
        handler.setFormatter(_formatter(settings))
        logging.getLogger().setLevel(settings.level.upper())


def waiting() -> tuple[int, int]:
    """Return the bytes of lines that wait for stderr, and how many lines were lost."""
    return sum(one.queue.bytes for one in _waiting), sum(one.lost for one in _waiting)


_current: list["_Handler"] = []
_waiting: list["_Waiting"] = []


class _Handler(logging.StreamHandler[TextIO]):
    """Writes lines; one that cannot be written is lost, without a word about it on the same stream."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- its name in `logging`
        """See `logging.Handler`."""


class _Waiting(QueueHandler):
    """Hands records to the thread as text; what does not fit is counted."""

    queue: "_Lines"

    def __init__(self, tracebacks_per_s: int) -> None:
        super().__init__(_Lines(LINES_WAITING_MAX))
        self.lost = 0
        self._tracebacks_per_s = tracebacks_per_s
        self._second = 0
        self._tracebacks = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """See `QueueHandler`."""
        # Before another thread looks: an argument may change meanwhile.
        record.message = _cut(record.getMessage(), _MESSAGE_CHARS_MAX)
        record.args = None
        record.msg = record.message
        if record.exc_info:
            record.exc_text = self._traceback(record.exc_info)
            record.exc_info = None
        values = getattr(record, _FACTS, {})
        cut = {name: _cut(value, _MESSAGE_CHARS_MAX) for name, value in values.items() if isinstance(value, str)}
        setattr(record, _FACTS, {**values, **cut})
        return record

    def _traceback(self, error: Any) -> str | None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._tracebacks = second, 0
        self._tracebacks += 1
        if self._tracebacks > self._tracebacks_per_s:
            return None
        # The end says what failed.
        return _lines_of.formatException(error)[-_TRACEBACK_CHARS_MAX:]

    def enqueue(self, record: logging.LogRecord) -> None:
        """See `QueueHandler`."""
        if self.queue.bytes > LINES_BYTES_MAX:
            self.lost += 1
            return
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


class _Lines(queue.Queue[logging.LogRecord | None]):
    """Records that wait, and how many bytes they take."""

    def __init__(self, count_max: int) -> None:
        super().__init__(count_max)
        self.bytes = 0

    def _put(self, item: logging.LogRecord | None) -> None:
        self.bytes += _size(item)
        super()._put(item)

    def _get(self) -> logging.LogRecord | None:
        item = super()._get()
        self.bytes -= _size(item)
        return item


def _size(record: logging.LogRecord | None) -> int:
    """Return about what a record takes; None ends the thread."""
    if record is None:
        return 0
    texts = (record.msg, record.exc_text, *getattr(record, _FACTS, {}).values())
    return _LINE_BYTES + sum(len(text) for text in texts if isinstance(text, str))


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else f"{text[:chars_max]}… ({len(text)} characters)"


_lines_of: Final = logging.Formatter()


def _stop(listener: QueueListener) -> None:
    """Let the thread write what waits; one that cannot within its time is left behind."""
    thread = listener._thread  # noqa: SLF001 -- `stop` would wait for it without end
    if thread is None:
        return
    with contextlib.suppress(queue.Full):
        listener.enqueue_sentinel()
    thread.join(_STOP_TIMEOUT_S)


def _formatter(settings: LogSettings) -> logging.Formatter:
    return JsonLines() if settings.format == "json" else TextLines()


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": getattr(record, _EVENT, "log"),
            "message": record.getMessage(),
            "logger": record.name,
        }
        line.update(getattr(record, _FACTS, {}))
        if (error := _error(record)) is not None:
            line["error"] = error
        return _ascii(line)


class TextLines(logging.Formatter):
    """`time LEVEL logger: message name=value …`, and the traceback of an error below."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        values: Mapping[str, object] = getattr(record, _FACTS, {})
        told = "".join(f" {name}={_ascii(value)}" for name, value in values.items())
        line = f"{_time(record)} {record.levelname} {record.name}: {_escaped(record.getMessage())}{told}"
        if (error := _error(record)) is not None:
            line += "\n" + "\n".join(map(_escaped, error.split("\n")))
        return line


def _error(record: logging.LogRecord) -> str | None:
    if record.exc_text is None and record.exc_info:
        return _lines_of.formatException(record.exc_info)
    return record.exc_text


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _ascii(value: object) -> str:
    """Return JSON that no terminal and no reader of lines takes for more than one line."""
    try:
        return json.dumps(msgspec.to_builtins(value))
    except (TypeError, ValueError):
        return json.dumps(str(value))


def _escaped(text: str) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def name_slow(what: str, took_s: float, cure: str = "make it async, or thread=True") -> None:
    """Say that `what` held the loop for `took_s`, which is more than `handlers.slow_ms`, and what to do.

    Called by whoever looks at the clock around functions of an author's: a plain one that is slow delays every session.
    """
    global _named_s  # noqa: PLW0603 -- one loop, one log
    _named_s = time.monotonic()
    told = facts("slow", what=what, took_s=round(took_s, 3))
    log.warning("%s held the event loop for %d ms; %s", what, took_s * 1000, cure, extra=told)


def named_within(seconds: float) -> bool:
    """Whether `name_slow` named something within the last seconds."""
    return time.monotonic() - _named_s < seconds


_named_s = -1e9


class ConnectionLines:
    """Lines about single connections, at most so many a second; of the others one line gives the number.

    A crowd that comes back after a restart must not drown the log, nor hold the loop up by writing it.
    """

    def __init__(self, per_s: int) -> None:
        self.per_s = per_s
        self._second = 0
        self._written = 0
        self._left_out = 0

    def due(self) -> bool:
        """Whether to write one more now; else it is counted. Asked before the line is made."""
        if not log.isEnabledFor(logging.INFO):
            return False
        second = int(time.monotonic())
        if second != self._second:
            self._summarise()
            self._second, self._written = second, 0
        if self._written < self.per_s:
            self._written += 1
            return True
        self._left_out += 1
        return False

    def _summarise(self) -> None:
        if self._left_out and self.per_s:
            log.info(
                "%d further lines about connections were left out (log.connections_per_s = %d)",
                self._left_out,
                self.per_s,
                extra=facts("left_out", lines=self._left_out),
            )
        self._left_out = 0
