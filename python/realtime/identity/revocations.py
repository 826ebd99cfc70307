"""What is revoked: tokens of a user that were issued before a moment, and single tokens by their `jti`.

A revocation is in force in this process at once (the engine closes sessions and lets nobody in by it, and HTTP asks
here) and is stored in a durable channel of the server's own before `revoke` returns, so that it outlives the process.
At a start the channel is read back before the first connection is accepted.

Called by `identities`, and by the command line, which reads what is stored.
"""

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from realtime._engine import EngineError, stored
from realtime.base.clock import Clock
from realtime.base.config import ConfigError
from realtime.identity.auth import OWN_CHANNELS, Identity

if TYPE_CHECKING:
    from realtime._engine import Commands
    from realtime.control.broadcaster import Broadcaster

CHANNEL: Final = f"{OWN_CHANNELS}revocations"

_ENTRY_BYTES: Final = 256
"""An entry without its name, as the engine counts it; 240 were measured."""
_PAGE: Final = 1000


class Revocation(Struct, rename="camel", omit_defaults=True):
    """One revocation as it is stored: of a user's tokens issued before a time, Unix s, or of one token."""

    user: str | None = None
    before_s: int | None = None
    token_id: str | None = None


class Revoked:
    """What is revoked.

    Args:
        bytes_max: what the entries may take; above it the oldest goes for a newer one. None keeps all.
    """

    def __init__(self, bytes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        # Ordered, since the first of a plain dict is found behind all that went before it. By user and by token, each
        # with the time of issue below which it is revoked.
        self._entries: OrderedDict[tuple[bool, str], int] = OrderedDict()

    def add(self, entry: Revocation) -> int:
        """Add an entry; return the time of issue below which the user's tokens are revoked now, Unix s."""
        before_s = 0
        if entry.user:
            before_s = max(entry.before_s or 0, self._entries.get((True, entry.user), 0))
            self._put((True, entry.user), before_s)
        if entry.token_id:
            self._put((False, entry.token_id), 0)
        while self._bytes_max is not None and self._bytes > self._bytes_max:
            self._forget(next(iter(self._entries)))
        return before_s

    def _put(self, name: tuple[bool, str], before_s: int) -> None:
        self._forget(name)
        self._entries[name] = before_s
        self._bytes += _cost(name)

    def _forget(self, name: tuple[bool, str]) -> None:
        if self._entries.pop(name, None) is not None:
            self._bytes -= _cost(name)

    def cover(self, user: str, issued_at_s: int | None, token_id: str | None) -> bool:
        """Whether a token of `user`, issued then and with this `jti`, is revoked."""
        before_s = self._entries.get((True, user))
        if before_s is not None and (issued_at_s or 0) < before_s:
            return True
        return token_id is not None and (False, token_id) in self._entries


def _cost(name: tuple[bool, str]) -> int:
    return _ENTRY_BYTES + len(name[1].encode())


class Revocations:
    """The revocations of one server."""

    def __init__(
        self, commands: "Commands", broadcaster: "Broadcaster", clock: Clock, clock_skew_s: int, bytes_max: int
    ) -> None:
        self._commands = commands
        self._broadcaster = broadcaster
        self._clock = clock
        self.clock_skew_s = clock_skew_s
        """`auth.clock_skew_s`: an `iat` that lies so far ahead may be of before the revocation."""
        self._revoked = Revoked(bytes_max)

    def bind(self, commands: "Commands") -> None:
        """Tell `commands` from now on what is revoked."""
        self._commands = commands

    def cover(self, identity: Identity) -> bool:
        """Whether what somebody came by is revoked."""
        return self._revoked.cover(identity.user, identity.issued_at_s, identity.token_id)

    async def revoke_user(self, user: str) -> None:
        """Revoke every token of `user` that was issued until now; see `Identities.revoke`."""
        # Tokens count whole seconds, so those of this second are among them.
        await self._store(Revocation(user=user, before_s=self._clock.now_ms() // 1000 + 1 + self.clock_skew_s))

    async def revoke_token(self, token_id: str) -> None:
        """Revoke one token; see `Identities.revoke`."""
        await self._store(Revocation(token_id=token_id))

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
                    entry = msgspec.json.decode(event.data, type=Revocation)
                except msgspec.ValidationError:
                    continue
                self._take(entry, close=False)

    async def _store(self, entry: Revocation) -> None:
        self._take(entry, close=True)
        self._commands.submit()
        await self._broadcaster.publish(CHANNEL, "revoked", entry)

    def _take(self, entry: Revocation, *, close: bool) -> None:
        before_s = self._revoked.add(entry)
        if entry.user:
            self._commands.revoke(user=entry.user, before_s=before_s, close=close)
        if entry.token_id:
            self._commands.revoke(token_id=entry.token_id, close=close)


def stored_in(data_dir: Path) -> Revoked | None:
    """Return what a server has stored in its log, which may be running; None where there is no log.

    Raises:
        ConfigError: the log cannot be read.
    """
    revoked, after = Revoked(), 0
    try:
        while page := (found := stored(data_dir, CHANNEL, after)):
            for _, data in page:
                with suppress(msgspec.ValidationError):
                    revoked.add(msgspec.json.decode(data, type=Revocation))
            after = page[-1][0]
    except (EngineError, msgspec.DecodeError) as error:
        raise ConfigError(f"the revocations in {data_dir} cannot be read: {error.args[0]}") from error
    return None if found is None else revoked


class _Read(Struct):
    offset: int
    data: msgspec.Raw
