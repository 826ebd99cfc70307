"""What is revoked: tokens of a user that were issued before a moment, and single tokens by their `jti`.

A revocation is in force in this process at once (the engine closes sessions and lets nobody in by it, and HTTP asks
here) and is stored in a durable channel of the server's own before `revoke` returns, so that it outlives the process.
At a start the channel is read back before the first connection is accepted.

Called by `identities`.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from realtime.auth import OWN_CHANNELS, Identity
from realtime.broadcaster import Broadcaster
from realtime.clock import Clock

if TYPE_CHECKING:
    from realtime._engine import Commands

CHANNEL: Final = f"{OWN_CHANNELS}revocations"
ENTRIES_MAX: Final = 1_000_000
"""As many as the engine keeps; the oldest goes for a newer one."""

_PAGE: Final = 1000


class _Entry(Struct, rename="camel", omit_defaults=True):
    user: str | None = None
    before_s: int | None = None
    token_id: str | None = None


class Revocations:
    """The revocations of one server."""

    def __init__(self, commands: "Commands", broadcaster: Broadcaster, clock: Clock) -> None:
        self._commands = commands
        self._broadcaster = broadcaster
        self._clock = clock
        # Ordered, since the first of a plain dict is found behind all that went before it.
        self._users: OrderedDict[str, int] = OrderedDict()
        self._tokens: OrderedDict[str, None] = OrderedDict()

    def cover(self, identity: Identity) -> bool:
        """Whether what somebody came by is revoked."""
        before_s = self._users.get(identity.user)
        if before_s is not None and (identity.issued_at_s or 0) < before_s:
            return True
        return identity.token_id is not None and identity.token_id in self._tokens

    async def revoke_user(self, user: str) -> None:
        """Revoke every token of `user` that was issued until now; see `Identities.revoke`."""
        # Tokens count whole seconds, so those of this second are among them.
        await self._store(_Entry(user=user, before_s=self._clock.now_ms() // 1000 + 1))

    async def revoke_token(self, token_id: str) -> None:
        """Revoke one token; see `Identities.revoke`."""
        await self._store(_Entry(token_id=token_id))

    async def read_back(self) -> None:
        """Take what earlier processes have stored.

        Raises:
            Refused: `unavailable`, where the log cannot be read.
        """
        after = 0
        while True:
            page = await self._broadcaster.history(CHANNEL, after=after, limit=_PAGE)
            if not page.events:
                return
            for frame in page.events:
                event = msgspec.json.decode(frame, type=_Read)
                after = event.offset
                try:
                    entry = msgspec.json.decode(event.data, type=_Entry)
                except msgspec.ValidationError:
                    continue
                self._take(entry, close=False)

    async def _store(self, entry: _Entry) -> None:
        self._take(entry, close=True)
        self._commands.submit()
        await self._broadcaster.publish(CHANNEL, "revoked", entry)

    def _take(self, entry: _Entry, *, close: bool) -> None:
        if entry.user:
            before_s = max(entry.before_s or 0, self._users.pop(entry.user, 0))
            self._users[entry.user] = before_s
            self._commands.revoke(user=entry.user, before_s=before_s, close=close)
        if entry.token_id:
            self._tokens[entry.token_id] = None
            self._commands.revoke(token_id=entry.token_id, close=close)
        for kept in (self._users, self._tokens):
            if len(kept) > ENTRIES_MAX:
                del kept[next(iter(kept))]


class _Read(Struct):
    offset: int
    data: msgspec.Raw
