"""One-time tickets: what a client shows in a URL in place of a long token.

A ticket stands for the identity that asked for it, opens one connection and lives a minute. It is 256 random bits, of
which only the hash is kept, in memory: a restart ends them all. Time is the server's clock.

Unused tickets are bounded for each user, in number and in bytes, and in bytes for all. A user's part in bytes shrinks
as others take theirs, and a quarter of the whole is left to those who hold no ticket, so a newcomer finds room however
many take all that they can get. A user over the bound is refused and told when the oldest ticket ends. The oldest is
not let go of instead: it may be in a URL that a client is about to open, which would then fail for a reason that nobody
sees. A timer forgets those that were never shown, so that their bytes are free again though nobody asks for another
ticket.

Called by `identities`.
"""

import hashlib
import secrets
from collections import OrderedDict
from sys import getsizeof
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from realtime.base.charges import Charges
from realtime.base.clock import Clock, Timer
from realtime.base.errors import Refused
from realtime.identity.auth import Identity

TTL_S: Final = 60

_TICKET_CHARS_MAX: Final = 64
_FORGET_EVERY_MS: Final = 1000
"""The timer comes no more often, however many tickets end."""
_ENTRY_BYTES: Final = 640
"""A ticket without its texts, with its part of both tables; 490 were measured."""

_FREE_PARTS: Final = 8
"""A user with a ticket may hold one part in so many of what stays free."""
_FIRSTS_PARTS: Final = 4
"""One part in so many of the whole is for first tickets alone: 500 of 16 KiB at the default."""


class Ticket(Struct, frozen=True, rename="camel"):
    """A ticket as its bearer gets it."""

    ticket: str
    expires_in_s: int


class _Unused(Struct, frozen=True, gc=False):
    """A ticket that nobody has shown yet. Rights are kept as JSON: as objects they take four times as much."""

    ends_ms: int
    identity: Identity
    grants: bytes | None
    size: int


class Tickets:
    """The tickets of one process.

    Args:
        clock: tells when a ticket is late.
        charges: bounds their bytes.
        per_user_max: unused tickets of one user.
    """

    def __init__(self, clock: Clock, charges: Charges, per_user_max: int) -> None:
        self._clock = clock
        self._charges = charges
        self._per_user_max = per_user_max
        # In the order of issue and so, since all live equally long, of expiry.
        # The first of a plain dict is found behind all that went before it.
        self._by_hash: OrderedDict[bytes, _Unused] = OrderedDict()
        self._by_user: dict[str, OrderedDict[bytes, None]] = {}
        self._timer: Timer | None = None

    def close(self) -> None:
        """Set no more timers."""
        if self._timer is not None:
            self._timer.cancel()

    def issue(self, identity: Identity) -> Ticket:
        """Return a new ticket for `identity`.

        Raises:
            Refused: `rate_limited` where the user has too many that are unused, `overloaded` where all users have.
        """
        now_ms = self._clock.monotonic_ms()
        self._forget_late(now_ms)
        user = identity.user
        grants = None if identity.grants is None else msgspec.json.encode(identity.grants)
        size = _ENTRY_BYTES + sum(getsizeof(text) for text in (user, identity.token_id, grants))
        own = self._by_user.get(user, ())
        if len(own) >= self._per_user_max or (own and self._charges.of(user) + size > self._share(size)):
            self._charges.refused += 1
            wait_ms = self._by_hash[next(iter(own))].ends_ms - now_ms
            whole = f"auth.tickets_per_user_max = {self._per_user_max}, a share of auth.tickets_bytes_max"
            told = f"{len(own)} tickets of this user are unused ({whole})"
            raise Refused("rate_limited", f"{told}; use one, or wait until the oldest ends", retry_after_ms=wait_ms)
        if not self._charges.has_room(user, size):
            self._charges.refused += 1
            raise Refused("overloaded", "Too many tickets are unused", retry_after_ms=TTL_S * 1000)
        text = secrets.token_urlsafe(32)
        digest = _hash(text)
        self._charges.take(user, size)
        kept = replace(identity, grants=None, token=None)
        self._by_hash[digest] = _Unused(now_ms + TTL_S * 1000, kept, grants, size)
        self._by_user.setdefault(user, OrderedDict())[digest] = None
        self._arm(now_ms)
        return Ticket(text, TTL_S)

    def redeem(self, ticket: str) -> Identity | None:
        """Return whom `ticket` stands for and forget it; None where it is none, is late or was used."""
        if len(ticket) > _TICKET_CHARS_MAX:
            return None
        digest = _hash(ticket)
        if digest not in self._by_hash:
            return None
        unused = self._forget(digest)
        if self._clock.monotonic_ms() >= unused.ends_ms:
            return None
        if unused.grants is None:
            return unused.identity
        return replace(unused.identity, grants=msgspec.json.decode(unused.grants, type=dict[str, list[str]]))

    def _share(self, size: int) -> int:
        """Return the bytes that a user may hold who asks for `size` more and has a ticket already."""
        charges = self._charges
        free = charges.bytes_max - charges.bytes_max // _FIRSTS_PARTS - charges.bytes - size
        return min(charges.share_max, free // _FREE_PARTS)

    def _forget(self, digest: bytes) -> _Unused:
        unused = self._by_hash.pop(digest)
        user = unused.identity.user
        self._charges.give(user, unused.size)
        own = self._by_user[user]
        del own[digest]
        if not own:
            del self._by_user[user]
        return unused

    def _forget_late(self, now_ms: int) -> None:
        while self._by_hash:
            oldest = next(iter(self._by_hash))
            if self._by_hash[oldest].ends_ms > now_ms:
                return
            self._forget(oldest)

    def _arm(self, now_ms: int) -> None:
        if self._timer is None and self._by_hash:
            wait_ms = self._by_hash[next(iter(self._by_hash))].ends_ms - now_ms
            self._timer = self._clock.call_later(max(_FORGET_EVERY_MS, wait_ms) / 1000, self._due)

    def _due(self) -> None:
        self._timer = None
        now_ms = self._clock.monotonic_ms()
        self._forget_late(now_ms)
        self._arm(now_ms)


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "replace")).digest()
