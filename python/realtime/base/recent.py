"""What was seen within the last minutes, in bounded memory: how a thing that comes twice is known to be the same.

Used for what an existing API and its event hooks tell twice, and for commands that a client repeats. An entry is kept
for a time from when it was put. Over a user's share the user's oldest entries go, over the bound of all the oldest of
all: whoever floods it forgets sooner and never grows it. For one thread, by the server's clock.
"""

import hashlib
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from msgspec import Struct

from realtime.base.charges import Charges
from realtime.base.clock import Clock
from realtime.base.messages import encode

V = TypeVar("V")

KEY_BYTES_MAX: Final = 48
"""A longer key is a hash, where it is made of what others chose."""
_ENTRY_BYTES: Final = 320
"""An entry of a service, its key and its part of the table; 284 were measured, with the longest key."""
_OF_USER_BYTES: Final = 192
"""What an entry of a user takes more: its part of a second table; 160 were measured."""


def key_of(*parts: str | None) -> bytes:
    """Return the key of what these parts name; others choose how long they are."""
    key = encode(parts)
    return key if len(key) <= KEY_BYTES_MAX else hashlib.blake2b(key, digest_size=16).digest()


class _Entry(Struct, Generic[V], gc=False):
    ends_ms: int
    value: V
    user: str | None
    size: int


class Recent(Generic[V]):
    """A table whose entries go by themselves.

    Args:
        clock: tells the time.
        keep_s: how long an entry stays after `put`.
        charges: bounds the bytes of entries; what goes before its time is counted there.
    """

    __slots__ = ("_by_user", "_charges", "_clock", "_entries", "_keep_ms")

    def __init__(self, clock: Clock, keep_s: float, charges: Charges) -> None:
        self._clock = clock
        self._keep_ms = round(keep_s * 1000)
        self._charges = charges
        # The first of a plain dict is found behind all that went before it: with each entry of a full table slower.
        self._entries: OrderedDict[str | bytes, _Entry[V]] = OrderedDict()
        self._by_user: dict[str, OrderedDict[str | bytes, None]] = {}

    def __len__(self) -> int:
        """How many entries there are; those whose time is over count until the next `put`."""
        return len(self._entries)

    def get(self, key: str | bytes) -> V | None:
        """Return what was put under `key`; None where nothing was, or too long ago."""
        entry = self._entries.get(key)
        if entry is None or entry.ends_ms <= self._clock.monotonic_ms():
            return None
        return entry.value

    def put(self, key: str | bytes, value: V, *, user: str | None = None, size: int = 0) -> None:
        """Keep `value` under `key` from now on; an older one is replaced. O(1) on average.

        Args:
            key: at most `KEY_BYTES_MAX`.
            value: what is kept.
            user: who is charged; None for the server and for services, which have no share.
            size: bytes of the value.
        """
        now_ms = self._clock.monotonic_ms()
        # Out and in again, so that the order of the table is the order of the times.
        entries = self._entries
        if key in entries:
            self._forget(key)
        while entries and entries[oldest := next(iter(entries))].ends_ms <= now_ms:
            self._forget(oldest)
        size += _ENTRY_BYTES if user is None else _ENTRY_BYTES + _OF_USER_BYTES
        if size > self._charges.bytes_max:
            self._charges.refused += 1
            return
        self._charges.take(user, size)
        entries[key] = _Entry(now_ms + self._keep_ms, value, user, size)
        if user is not None:
            self._by_user.setdefault(user, OrderedDict())[key] = None
        if user is not None or self._charges.bytes > self._charges.bytes_max:
            self._make_room(user)

    def grow(self, key: str | bytes, value: V, size: int) -> None:
        """Charge `size` bytes more for `key` if `value` is what stands there: it is as large only now."""
        entry = self._entries.get(key)
        if entry is None or entry.value is not value:
            return
        self._charges.take(entry.user, size)
        entry.size += size
        self._make_room(entry.user)

    def replace(self, key: str | bytes, value: V, by: V) -> None:
        """Keep `by` under `key` if `value` is what stands there, for the same time."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            entry.value = by

    def discard(self, key: str | bytes, value: V) -> None:
        """Forget `key` if `value` is what stands there: it failed, so that the next try is a first one again."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            self._forget(key)

    def _make_room(self, user: str | None) -> None:
        charges = self._charges
        while user is not None and charges.of(user) > charges.share_max and len(own := self._by_user[user]) > 1:
            self._forget(next(iter(own)))
            charges.refused += 1
        while charges.bytes > charges.bytes_max and self._entries:
            self._forget(next(iter(self._entries)))
            charges.refused += 1

    def _forget(self, key: str | bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._charges.give(entry.user, entry.size)
        if entry.user is not None:
            own = self._by_user[entry.user]
            del own[key]
            if not own:
                del self._by_user[entry.user]
