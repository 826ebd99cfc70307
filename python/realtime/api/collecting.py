"""How many bytes of bodies our own routes have in memory: `api.bodies_bytes_max` in all, charged to each caller.

Where a chunk would pass the bound, the caller who holds most pays, and not whoever comes: one of that caller's bodies
that is still being collected is cut off and answered `overloaded` (503). A body counts from its first chunk to the end
of its request, since what is decoded stands on its bytes. Bodies of mounted apps are their own.

A body that still comes has one of the places that the engine gives out by address. A user, who may have many addresses,
has a quarter of these: for one more the user's oldest is cut off in the same way.

`requests` makes a `Collecting` for each request and releases it; `guards` says whose it is; `bodies` takes from it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from realtime.base.charges import Charges
from realtime.base.errors import Refused

_KEY: Final = "realtime.collecting"
USER: Final = "user "
"""How a caller begins who is a user; the name follows."""
COMING_PART: Final = 16
"""A user's part of `api.in_flight_max`: a quarter of the quarter that bodies may hold which still come."""
_RETRY_AFTER_MS: Final = 1000
_BYTES_A_SECOND: Final = 4096


class Bodies:
    """All bodies that are in memory now.

    Args:
        charges: of all of them (`api.bodies_bytes_max`).
        values_max: of one of them (`limits.message_values_max`).
        coming_max: bodies of one user that still come.
        timeout_s: for one of them, and a second more for each 4 KiB that came (`api.body_timeout_s`).
    """

    def __init__(self, charges: Charges, values_max: int, coming_max: int, timeout_s: float) -> None:
        self.values_max = values_max
        self.timeout_s = timeout_s
        self.charges = charges
        self._collecting: dict[str, set[Collecting]] = {}
        self._coming_max = coming_max
        # Of each user, the oldest first.
        self._coming: dict[str, dict[Collecting, None]] = {}

    def of(self, scope: dict[str, Any]) -> "Collecting":
        """Return what a request collects, nothing as yet, and leave it in the scope for its route."""
        client = scope.get("client")
        scope[_KEY] = found = Collecting(self, client[0] if client else "")
        return found

    def begin(self, collecting: "Collecting") -> None:
        """Note that a body comes, and cut off the oldest of a user who has too many that do."""
        caller = collecting.caller
        if not caller.startswith(USER):
            return
        coming = self._coming.setdefault(caller, {})
        coming[collecting] = None
        if len(coming) > self._coming_max:
            self.charges.refused += 1
            next(iter(coming)).cut()

    def end(self, collecting: "Collecting") -> None:
        """Note that a body comes no more."""
        coming = self._coming.get(collecting.caller)
        if coming is not None:
            coming.pop(collecting, None)
            if not coming:
                del self._coming[collecting.caller]

    def add(self, collecting: "Collecting", size: int) -> None:
        """Charge bytes to a caller.

        Raises:
            Refused: `overloaded`: there is no room, and nobody else holds more that still comes.
        """
        caller, charges = collecting.caller, self.charges
        while not charges.has_room(None, size):
            largest = max(self._collecting, key=charges.of, default=caller)
            if charges.of(largest) <= charges.of(caller) + size or not self._cut_one(largest):
                charges.refused += 1
                raise overloaded()
        charges.take(caller, size)
        self._collecting.setdefault(caller, set()).add(collecting)

    def remove(self, collecting: "Collecting", size: int) -> None:
        """Give the bytes of one body back."""
        caller = collecting.caller
        self.charges.give(caller, size)
        self._collecting[caller].discard(collecting)
        if not self._collecting[caller]:
            del self._collecting[caller]

    def _cut_one(self, caller: str) -> bool:
        """Cut off the caller's longest body that is not whole; false where all are."""
        growing = [collecting for collecting in self._collecting[caller] if not collecting.is_whole]
        if not growing:
            return False
        max(growing, key=lambda collecting: collecting.size).cut()
        self.charges.refused += 1
        return True


class Collecting:
    """The body of one request.

    Attributes:
        caller: who is charged: the address until `guards` knows the user or the service.
        size: bytes that are charged.
        is_whole: whether nothing more is waited for.
        was_cut: whether somebody else's body took its room.
    """

    def __init__(self, bodies: Bodies, caller: str) -> None:
        self._bodies = bodies
        self._timeout: asyncio.Timeout | None = None
        self._began_s = 0.0
        self.caller = caller
        self.size = 0
        self.is_whole = False
        self.was_cut = False

    @staticmethod
    def of(scope: Mapping[str, Any]) -> "Collecting":
        """Return what the request of a scope collects."""
        found: Collecting = scope[_KEY]
        return found

    @property
    def values_max(self) -> int:
        """`limits.message_values_max`."""
        return self._bodies.values_max

    @property
    def timeout_s(self) -> float:
        """`api.body_timeout_s`."""
        return self._bodies.timeout_s

    def begin(self, timeout: asyncio.Timeout) -> None:
        """Collect under a time limit, which `cut` brings forward and `goes_on` puts off."""
        self._timeout = timeout
        self._began_s = asyncio.get_running_loop().time()
        self._bodies.begin(self)

    def goes_on(self) -> None:
        """Put the time limit off by a second for each 4 KiB that came.

        Whoever sends a byte now and then must not hold a connection and memory without end.
        """
        if self._timeout is not None:
            self._timeout.reschedule(self._began_s + self.timeout_s + self.size / _BYTES_A_SECOND)

    def end(self) -> None:
        """Wait for nothing more."""
        self.is_whole = True
        self._bodies.end(self)

    def take(self, size: int) -> None:
        """Charge a chunk, before it is kept.

        Raises:
            Refused: `overloaded`.
        """
        if self.was_cut:
            raise overloaded()
        if size:
            self._bodies.add(self, size)
            self.size += size

    def cut(self) -> None:
        """Give its bytes back at once and end its collecting in the next turn of the loop."""
        self.was_cut = True
        self.end()
        self.release()
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def refused(self) -> None:
        """Count a body that is refused for its chunks."""
        self._bodies.charges.refused += 1

    def release(self) -> None:
        """Give the bytes back."""
        size, self.size = self.size, 0
        if size:
            self._bodies.remove(self, size)


def overloaded() -> Refused:
    """Return what a caller is told whose body finds no room."""
    detail = (
        "the server holds as many bytes of bodies as api.bodies_bytes_max allows, or too many bodies of yours still "
        "come; send it again later"
    )
    return Refused("overloaded", detail, retry_after_ms=_RETRY_AFTER_MS)
