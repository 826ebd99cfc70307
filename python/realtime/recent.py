"""What was seen within the last minutes, in bounded memory: how a thing that comes twice is known to be the same.

Used for what an existing API and its event hooks tell twice, and for commands that a client repeats. An entry is kept
for a time from when it was put, and the oldest go first where there are too many, so whoever floods it forgets sooner
and never grows it. For one thread, by the server's clock.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from realtime.clock import Clock

V = TypeVar("V")


class Recent(Generic[V]):
    """A table whose entries go by themselves.

    Args:
        clock: tells the time.
        keep_s: how long an entry stays after `put`.
        count_max: entries at once; one more pushes the oldest out.
    """

    __slots__ = ("_clock", "_count_max", "_entries", "_keep_ms")

    def __init__(self, clock: Clock, keep_s: float, count_max: int) -> None:
        self._clock = clock
        self._keep_ms = round(keep_s * 1000)
        self._count_max = count_max
        # The first of a plain dict is found behind all that went before it: with each entry of a full table slower.
        self._entries: OrderedDict[Hashable, tuple[int, V]] = OrderedDict()

    def __len__(self) -> int:
        """How many entries there are; those whose time is over count until the next `put`."""
        return len(self._entries)

    def get(self, key: Hashable) -> V | None:
        """Return what was put under `key`; None where nothing was, or too long ago."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= self._clock.monotonic_ms():
            return None
        return entry[1]

    def put(self, key: Hashable, value: V) -> None:
        """Keep `value` under `key` from now on; an older one is replaced. O(1) on average."""
        now_ms = self._clock.monotonic_ms()
        entries = self._entries
        # Out and in again, so that the order of the table is the order of the times.
        entries.pop(key, None)
        entries[key] = (now_ms + self._keep_ms, value)
        while (oldest := next(iter(entries))) != key and (
            entries[oldest][0] <= now_ms or len(entries) > self._count_max
        ):
            del entries[oldest]

    def discard(self, key: Hashable, value: V) -> None:
        """Forget `key` if `value` is what stands there: it failed, so that the next try is a first one again."""
        entry = self._entries.get(key)
        if entry is not None and entry[1] is value:
            del self._entries[key]
