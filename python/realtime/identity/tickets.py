"""One-time tickets: what a client shows in a URL in place of a long token.

A ticket stands for the identity that asked for it, opens one connection and lives a minute. It is 256 random bits, of
which only the hash is kept, in memory: a restart ends them all. The number is bounded. Time is the server's clock.

Called by `identities`.
"""

import hashlib
import secrets
from collections import OrderedDict
from typing import Final

from msgspec import Struct

from realtime.auth import Identity
from realtime.clock import Clock
from realtime.errors import Refused

TTL_S: Final = 60
TICKETS_MAX: Final = 100_000

_TICKET_CHARS_MAX: Final = 64


class Ticket(Struct, frozen=True, rename="camel"):
    """A ticket as its bearer gets it."""

    ticket: str
    expires_in_s: int


class Tickets:
    """The tickets of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # In the order of issue and so, since all live equally long, of expiry.
        # The first of a plain dict is found behind all that went before it.
        self._by_hash: OrderedDict[bytes, tuple[int, Identity]] = OrderedDict()

    def issue(self, identity: Identity) -> Ticket:
        """Return a new ticket for `identity`.

        Raises:
            Refused: `overloaded`, where there are too many that nobody has used.
        """
        now_ms = self._clock.monotonic_ms()
        self._forget_late(now_ms)
        if len(self._by_hash) >= TICKETS_MAX:
            raise Refused("overloaded", "Too many tickets are unused", retry_after_ms=TTL_S * 1000)
        text = secrets.token_urlsafe(32)
        self._by_hash[_hash(text)] = (now_ms + TTL_S * 1000, identity)
        return Ticket(text, TTL_S)

    def redeem(self, ticket: str) -> Identity | None:
        """Return whom `ticket` stands for and forget it; None where it is none, is late or was used."""
        if len(ticket) > _TICKET_CHARS_MAX:
            return None
        ends_ms, identity = self._by_hash.pop(_hash(ticket), (0, None))
        return identity if self._clock.monotonic_ms() < ends_ms else None

    def _forget_late(self, now_ms: int) -> None:
        while self._by_hash:
            oldest = next(iter(self._by_hash))
            if self._by_hash[oldest][0] > now_ms:
                return
            del self._by_hash[oldest]


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()
