"""Events heard inside of the process: `@app.listen("conversation:*")`.

The engine hands up every event of a channel that a listener covers, once a process and in the channel's order.
A plain listener runs at once. An `async` one has a lane for each channel: its events are handled one after the other
there, channels do not wait for each other.

A listener is a part of the process: what is stored is not lost to it because it is slow, and yet what waits is bounded.
Once `handlers.listener_events_max` events wait for a listener, or `handlers.listener_bytes_max` bytes for all of them,
its lanes take no more; when such a lane has worked off what it has, it reads on in the channel's history from the last
offset that it took, until it has caught up with what is heard live. What has no offset (typing, cursors, anything
volatile) or is no longer kept by then is gone, and the log says how much.

Invariant: while a lane is behind, `newest` is the highest offset that was heard and not taken; it is live again only in
the same step of the loop in which it has handled that one. Called by `control`, on the loop's thread.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar, get_args, get_origin

import msgspec
from msgspec import Raw, Struct

from realtime.base.charges import Charges
from realtime.base.containment import goes_on
from realtime.base.errors import Refused
from realtime.base.logs import name_slow
from realtime.base.messages import Payload
from realtime.control.broadcaster import PAGE_BYTES_MAX, History
from realtime.control.signatures import hints_of, is_async, name_of, positional
from realtime.identity.auth import Pattern

log = logging.getLogger("realtime")

_PAGE: Final = 100
_ENVELOPE_BYTES: Final = 640
"""An event that waits, without its data; 560 were measured."""
_KNOWN_CHANNELS_MAX: Final = 8192

T = TypeVar("T")


class Heard(Struct, Generic[T], frozen=True, kw_only=True):
    """An event of a channel, as a listener gets it.

    Args:
        channel: where it was published.
        type: of the event.
        data: decoded to what the listener's annotation says: `Heard[Tally]`, `Heard[Raw]` for the JSON as it is, dicts
            and lists where it says nothing.
        user_id: whose it is, by the server's word.
        offset: its place in the channel; None for volatile events.
        timestamp: as clients see it.
        request_id: of the request that caused it, where it came with one.
    """

    channel: str
    type: str
    data: T
    user_id: str | None
    offset: int | None
    timestamp: str
    request_id: str | None


class _Envelope(Struct, rename="camel", gc=False):
    """What of a frame is looked at before a listener is known to want it."""

    type: str
    timestamp: str
    data: Raw = Raw(b"null")
    user_id: str | None = None
    offset: int | None = None
    request_id: str | None = None


class Listener(Struct, frozen=True, eq=False):
    """A registered listener."""

    pattern: Pattern
    types: frozenset[str]
    call: Callable[..., Any]
    decode: Callable[[Any], Any]
    is_async: bool


class Past(Protocol):
    """How a lane that is behind reads on; `Broadcaster.history` is one."""

    def __call__(self, channel: str, *, after: int | None, limit: int) -> Awaitable[History]:
        """Return the events of a channel after an offset."""


def bind(listener: Callable[..., Any], pattern: str, types: Sequence[str]) -> Listener:
    """Find out what must be known of a listener.

    Raises:
        ValueError: not a pattern.
        TypeError: a signature other than `(event)`; data that cannot be decoded.
    """
    parameters = positional(listener)
    if len(parameters) != 1:
        raise TypeError(f"listener {name_of(listener)} takes {len(parameters)} arguments; use (event)")
    hint = hints_of(listener).get(parameters[0])
    arguments = get_args(hint) if get_origin(hint) is Heard else ()
    if hint not in {None, Any, Heard} and not arguments:
        raise TypeError(
            f"listener {name_of(listener)} takes {hint!r}; use Heard, or Heard[…] with the type of its data"
        )
    return Listener(
        Pattern(pattern),
        frozenset(types),
        listener,
        Payload(arguments[0] if arguments else Any).decode,
        is_async(listener),
    )


class Listeners:
    """The listeners of a served app.

    Args:
        listeners: what was registered.
        waiting_max: events that wait for one `async` listener.
        charges: bounds the bytes of what waits for all of them.
        past: reads a channel's history.
        slow_s: who holds the loop for longer is named in the log.
        spawn: runs a coroutine as a task that the drain waits for.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        waiting_max: int,
        charges: Charges,
        past: Past,
        *,
        slow_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._slow_s = slow_s
        self._queues = tuple((listener, _Queue(listener, waiting_max, charges, past, spawn)) for listener in listeners)
        self._known: dict[str, tuple[tuple[Listener, _Queue], ...]] = {}

    def heard(self, event: tuple[Any, ...]) -> None:
        """Take a HEARD event."""
        _, channel, frame = event
        envelope = _envelope(frame)
        for listener, queue in self._for(channel):
            if listener.types and envelope.type not in listener.types:
                continue
            if listener.is_async:
                queue.take(channel, envelope)
            else:
                self._call(listener, channel, envelope)

    def _for(self, channel: str) -> tuple[tuple[Listener, "_Queue"], ...]:
        found = self._known.get(channel)
        if found is None:
            found = tuple(pair for pair in self._queues if pair[0].pattern.matches(channel))
            if len(self._known) >= _KNOWN_CHANNELS_MAX:
                self._known.clear()
            self._known[channel] = found
        return found

    def _call(self, listener: Listener, channel: str, envelope: _Envelope) -> None:
        started_s = time.perf_counter()
        try:
            listener.call(_heard(listener, channel, envelope))
        except BaseException as error:
            if goes_on(error, awaited=False):
                raise
            _failed(listener, channel, envelope, error)
        if (took_s := time.perf_counter() - started_s) > self._slow_s:
            name_slow(f"listener {name_of(listener.call)}", took_s, "make it async")


class _Lane:
    """What one `async` listener has still to hear of one channel."""

    __slots__ = ("behind", "lost", "newest", "taken", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Envelope] = deque()
        self.behind = False
        self.taken = -1
        """The highest offset that was handled or stands in `waiting`; -1 before the first."""
        self.newest = -1
        """The highest offset that was heard and not taken; while behind."""
        self.lost = 0


class _Queue:
    """The lanes of one `async` listener."""

    def __init__(
        self,
        listener: Listener,
        waiting_max: int,
        charges: Charges,
        past: Past,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._listener = listener
        self._name = name_of(listener.call)
        self._waiting_max = waiting_max
        self._charges = charges
        self._past = past
        self._spawn = spawn
        self._waiting = 0
        self._lanes: dict[str, _Lane] = {}

    def take(self, channel: str, envelope: _Envelope) -> None:
        """Let an event wait for its turn, or note that it is to be read later."""
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = _Lane()
            self._spawn(self._work_off(channel, lane))
        if not lane.behind and self._has_room(envelope):
            self._put(lane, envelope)
            lane.taken = envelope.offset or lane.taken
            return
        if not lane.behind:
            lane.behind = True
            lane.newest = lane.taken
            self._charges.refused += 1
            log.warning("listener %s is behind: %d events wait; it reads on in %s", self._name, self._waiting, channel)
        offset = envelope.offset
        if offset is not None and lane.taken < 0:
            lane.taken = offset - 1
        if offset is None or offset <= lane.taken:
            lane.lost += 1
        else:
            lane.newest = offset

    async def _work_off(self, channel: str, lane: _Lane) -> None:
        try:
            while lane.waiting or lane.behind:
                if lane.waiting:
                    envelope = lane.waiting.popleft()
                    self._give_back(envelope)
                    await self._call(channel, envelope)
                elif lane.newest > lane.taken:
                    await self._read_on(channel, lane)
                else:
                    self._live_again(channel, lane)
        finally:
            # Only at the end of the server is a lane left before it is worked off.
            if lane.waiting or lane.behind:
                left = len(lane.waiting) + max(0, lane.newest - lane.taken)
                log.warning("listener %s was ended with %d events of %s to hear", self._name, left, channel)
                for envelope in lane.waiting:
                    self._give_back(envelope)
            del self._lanes[channel]

    async def _read_on(self, channel: str, lane: _Lane) -> None:
        """Put the next page of the channel's history into the lane, up to what was heard: the rest is still to come."""
        frames: list[Raw] = []
        try:
            # Each lane holds one event in any case, that which it handles; above the bound it reads no more than that.
            limit = _PAGE if self._charges.has_room(None, PAGE_BYTES_MAX) else 1
            frames = (await self._past(channel, after=lane.taken, limit=limit)).events
        except Refused as refusal:
            log.error("listener %s cannot read on in %s: %s", self._name, channel, refusal)
        page = [envelope for envelope in map(_envelope, frames) if lane.taken < (envelope.offset or 0) <= lane.newest]
        # An offset that is missing is no longer kept.
        last = page[-1].offset or 0 if page else lane.newest
        lane.lost += last - lane.taken - len(page)
        lane.taken = last
        wanted = [envelope for envelope in page if not self._listener.types or envelope.type in self._listener.types]
        for envelope in wanted:
            self._put(lane, envelope)

    def _has_room(self, envelope: _Envelope) -> bool:
        return self._waiting < self._waiting_max and self._charges.has_room(None, _size(envelope))

    def _put(self, lane: _Lane, envelope: _Envelope) -> None:
        self._waiting += 1
        self._charges.take(None, _size(envelope))
        lane.waiting.append(envelope)

    def _give_back(self, envelope: _Envelope) -> None:
        self._waiting -= 1
        self._charges.give(None, _size(envelope))

    def _live_again(self, channel: str, lane: _Lane) -> None:
        lane.behind = False
        if lane.lost:
            log.error("listener %s was too slow for %s: %d events were not kept", self._name, channel, lane.lost)
            lane.lost = 0

    async def _call(self, channel: str, envelope: _Envelope) -> None:
        try:
            await self._listener.call(_heard(self._listener, channel, envelope))
        except BaseException as error:
            if goes_on(error):
                raise
            _failed(self._listener, channel, envelope, error)


_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def _size(envelope: _Envelope) -> int:
    return _ENVELOPE_BYTES + len(envelope.data)


def _heard(listener: Listener, channel: str, envelope: _Envelope) -> Heard[Any]:
    return Heard(
        channel=channel,
        type=envelope.type,
        data=listener.decode(envelope.data),
        user_id=envelope.user_id,
        offset=envelope.offset,
        timestamp=envelope.timestamp,
        request_id=envelope.request_id,
    )


def _failed(listener: Listener, channel: str, envelope: _Envelope, error: BaseException) -> None:
    what = f"{envelope.type} of {channel}" + ("" if envelope.offset is None else f" at {envelope.offset}")
    log.error("listener %s failed on %s", name_of(listener.call), what, exc_info=error)
