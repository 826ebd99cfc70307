"""Who is online, as told to others. Pure: it has no clock and sends nothing, it returns what is to be told.

A user is online from the first session to the last. The last one's end counts at once where the client said goodbye
(close 1000), after `grace_ms` otherwise, so that a reconnect tells nobody anything.

Up to `everyone_max` open sessions everybody is told; above, until they fall below nine tenths of it, only those who
share a channel with the user, and a switch is told to all. Where grants decide who takes part in a conversation it is
always that second mode: who is there is no stranger's to know. In it:

- somebody who goes is told of in the channels that the last session was subscribed to when it ended;
- somebody who comes has no channel yet, so is told to its own session, and in the channels where its going was told
  of before: whoever was told "offline" is told "online" again. The `GONE_MAX` latest of them are remembered;
- what a client knew of users that it shares no channel with is void, which is what the switch tells it.

The mode at a session's end decides who is told, not that at the end of the grace: when most of many sessions are cut at
once, those that are left must not be told of each of them.

A client is told who is online when it comes, at each switch, and once when the grace after a start is over: whoever has
not come back by then is no longer there, though nobody saw him go. `control` sends that, with who is online.

Called by `control` with what `connections` found (first session, last session) and the time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from realtime.codes import CloseCode

Status: TypeAlias = Literal["online", "offline"]
Mode: TypeAlias = Literal["everyone", "shared"]

GONE_MAX: Final = 10_000
"""Users whose channels are remembered in the mode `shared` after they went."""


class Change(Struct, frozen=True):
    """One `user_presence` to tell: to everybody where `channels` is None, else to those channels and the user."""

    user: str
    status: Status
    channels: tuple[str, ...] | None


class Switch(Struct, frozen=True):
    """One `presence_mode` to tell to everybody."""

    mode: Mode


Notice: TypeAlias = Change | Switch


class _Leaving(Struct):
    deadline_ms: int
    audience: tuple[str, ...] | None


class Presence:
    """The state of everybody's presence. Holds nothing for a user who is online.

    Args:
        grace_ms: how long a user whose last session was cut counts as online.
        everyone_max: open sessions up to which everybody is told; None tells those alone that share a channel, however
            few there are.
    """

    def __init__(self, grace_ms: int, everyone_max: int | None) -> None:
        self._grace_ms = grace_ms
        self._everyone_max = everyone_max
        self._mode: Mode = "shared" if everyone_max is None else "everyone"
        # In the order of their deadlines, since the grace is the same for all.
        # Ordered, since the first of a plain dict is found behind all that went before it.
        self._leaving: OrderedDict[str, _Leaving] = OrderedDict()
        self._gone: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    @property
    def mode(self) -> Mode:
        """Who is told of changes."""
        return self._mode

    def opened(self, user: str, *, first: bool, sessions: int) -> list[Notice]:
        """A session opened.

        Args:
            user: whose.
            first: whether it is the user's first.
            sessions: how many are open now, this one included.

        Returns:
            What is to be told, in this order.
        """
        notices = self._switched(sessions)
        if not first:
            return notices
        leaving = self._leaving.pop(user, None)
        # One who was cut off where few were told counts as gone for everybody since everybody is told.
        if leaving is None or (leaving.audience is not None and self._mode == "everyone"):
            notices.append(Change(user, "online", self._audience(self._gone.pop(user, ()))))
        return notices

    def closed(
        self, user: str, *, last: bool, code: int, channels: Sequence[str], sessions: int, now_ms: int
    ) -> list[Notice]:
        """A session closed.

        Args:
            user: whose.
            last: whether it was the user's last.
            code: the close code; 1000 is a goodbye.
            channels: those that it was subscribed to.
            sessions: how many are open now.
            now_ms: the time, on the clock of `due`.

        Returns:
            What is to be told, in this order.
        """
        notices = self._switched(sessions)
        if not last:
            return notices
        if code == CloseCode.NORMAL or self._grace_ms == 0:
            notices.append(self._went(user, self._audience(tuple(channels))))
        else:
            self._leaving[user] = _Leaving(now_ms + self._grace_ms, self._audience(tuple(channels)))
        return notices

    def due(self, now_ms: int) -> list[Notice]:
        """Return what is to be told of users whose grace is over."""
        notices: list[Notice] = []
        while self._leaving:
            user, leaving = next(iter(self._leaving.items()))
            if leaving.deadline_ms > now_ms:
                break
            del self._leaving[user]
            notices.append(self._went(user, leaving.audience))
        return notices

    def leaving(self) -> list[str]:
        """Return who has no session but counts as online for everybody, until the grace is over."""
        return [user for user, leaving in self._leaving.items() if leaving.audience is None]

    def next_ms(self) -> int | None:
        """When `due` has something to say; None where nobody is leaving."""
        return next(iter(self._leaving.values())).deadline_ms if self._leaving else None

    def _went(self, user: str, audience: tuple[str, ...] | None) -> Change:
        if audience:
            self._gone[user] = audience
            if len(self._gone) > GONE_MAX:
                del self._gone[next(iter(self._gone))]
        return Change(user, "offline", audience)

    def _audience(self, channels: tuple[str, ...]) -> tuple[str, ...] | None:
        return None if self._mode == "everyone" else channels

    def _switched(self, sessions: int) -> list[Notice]:
        if self._everyone_max is None:
            return []
        if self._mode == "everyone" and sessions > self._everyone_max:
            self._mode = "shared"
        elif self._mode == "shared" and sessions * 10 < self._everyone_max * 9:
            self._mode = "everyone"
            self._gone.clear()
        else:
            return []
        return [Switch(self._mode)]
