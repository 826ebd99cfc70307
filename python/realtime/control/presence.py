"""Who is online, as told to others. Pure: it has no clock and sends nothing, it returns what is to be told.

A user is online from the first session to the last. The last one's end counts at once where the client said goodbye
(close 1000), after `grace_ms` otherwise, so that a reconnect tells nobody anything.

Up to `everyone_max` open sessions everybody is told; above, until they fall below nine tenths of it, only those who
share a channel with the user, and a switch is told to all. The switch back tells each of them who is online, so it
comes `BACK_MS` after the other one at the earliest: whoever opens and closes sessions about the limit must not have
that told each time. Where grants decide who takes part in a conversation it is
always that second mode: who is there is no stranger's to know. In it:

- somebody who goes is told of in the channels that the last session was subscribed to when it ended;
- somebody who comes has no channel yet, so is told to its own session, and in the channels where its going was told
  of before: whoever was told "offline" is told "online" again. The `GONE_MAX` latest of them are remembered;
- what a client knew of users that it shares no channel with is void, which is what the switch tells it.

The mode at a session's end decides who is told, not that at the end of the grace: when most of many sessions are cut at
once, those that are left must not be told of each of them.

The channels of those who are leaving or whose change is held are charged (`presence.leaving_bytes_max`). Above that
the grace of who holds most ends at once, by the power of two, and then what is held longest is told: that user is told
of a little sooner, and nobody else is. Those who went have half as much besides; the first of them are forgotten.

A user who comes and goes again and again has a rate: `per_s` changes a second, `burst` of them at once. Above it a
change is held, a newer one takes its place, and the last is told when there is a token. Whoever comes meanwhile is told
as it is: `Held` says that something changed of which nobody else hears yet.

A client is told who is online when it comes, at each switch, and once when the grace after a start is over: whoever has
not come back by then is no longer there, though nobody saw him go. `control` sends that, with who is online.

Called by `control` with what `connections` found (first session, last session) and the time.
"""

from collections import OrderedDict
from collections.abc import Sequence
from sys import getsizeof, maxsize
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from realtime.base.charges import Charges
from realtime.base.codes import CloseCode

Status: TypeAlias = Literal["online", "offline"]
Mode: TypeAlias = Literal["everyone", "shared"]

GONE_MAX: Final = 10_000
"""Users whose channels are remembered in the mode `shared` after they went."""
BACK_MS: Final = 30_000
"""How long those alone are told who share a channel, at least: 1,000 users are 17 KB to each of as many sessions."""
LEAVING_BYTES: Final = 512
"""What one who is leaving, held or gone takes beside the names of channels."""
RATED_MAX: Final = 20_000
"""Users whose rate is remembered: those with a change within the last seconds, 8 MB. The oldest are forgotten first."""
AUDIENCE_MAX: Final = 1_000
"""Channels in which a change that is held is told, of all that it took the place of together; the newest count."""


class Change(Struct, frozen=True):
    """One `user_presence` to tell: to everybody where `channels` is None, else to those channels and the user."""

    user: str
    status: Status
    channels: tuple[str, ...] | None


class Switch(Struct, frozen=True):
    """One `presence_mode` to tell to everybody."""

    mode: Mode


class Held(Struct, frozen=True):
    """A change that is told later. `everyone` says whether it will go to everybody."""

    user: str
    status: Status
    everyone: bool


Notice: TypeAlias = Change | Switch | Held


class _Leaving(Struct):
    deadline_ms: int
    audience: tuple[str, ...] | None
    bytes: int


class _Waiting(Struct):
    deadline_ms: int
    change: Change


class Rate(Struct, frozen=True):
    """Changes of one user: `per_s` come back each second, `burst` may be told at once. 0 a second is no limit."""

    per_s: float
    burst: int


UNLIMITED: Final = Rate(0, 0)


class _Changes:
    """What is told of each user, by a token bucket each. A full one is not kept."""

    def __init__(self, rate: Rate) -> None:
        self._per_ms = rate.per_s / 1000
        self._burst = float(max(1, rate.burst))
        # Level and time, in the order of the times: nobody's is full again before that of whoever came later.
        self._levels: OrderedDict[str, tuple[float, int]] = OrderedDict()

    @property
    def token_ms(self) -> int:
        """How long one token takes to come back."""
        return int(1 / self._per_ms) + 1 if self._per_ms else 0

    def take(self, user: str, now_ms: int) -> bool:
        """Take a token; False where there is none."""
        if not self._per_ms:
            return True
        level, at_ms = self._levels.get(user, (self._burst, now_ms))
        level = min(self._burst, level + (now_ms - at_ms) * self._per_ms)
        is_there = level >= 1
        self._levels[user] = (level - 1 if is_there else level, now_ms)
        self._levels.move_to_end(user)
        # Two at most, so that they go faster than they come.
        for _ in range(2):
            oldest, (_, oldest_ms) = next(iter(self._levels.items()))
            if len(self._levels) <= RATED_MAX and (now_ms - oldest_ms) * self._per_ms < self._burst:
                break
            del self._levels[oldest]
            if not self._levels:
                break
        return is_there


class Presence:
    """The state of everybody's presence. Holds nothing for a user who has been online for a while.

    Args:
        grace_ms: how long a user whose last session was cut counts as online.
        everyone_max: open sessions up to which everybody is told; None tells those alone that share a channel, however
            few there are.
        rate: of the changes of one user.
        leaving: bounds the bytes of those who are leaving or held.
        gone: bounds the bytes of those who went.
    """

    def __init__(
        self,
        grace_ms: int,
        everyone_max: int | None,
        rate: Rate = UNLIMITED,
        leaving: Charges | None = None,
        gone: Charges | None = None,
    ) -> None:
        self._changes = _Changes(rate)
        # In the order of their deadlines, since a token takes as long for all.
        self._held: OrderedDict[str, _Waiting] = OrderedDict()
        self._grace_ms = grace_ms
        self._everyone_max = everyone_max
        self._mode: Mode = "shared" if everyone_max is None else "everyone"
        self._sessions = 0
        # When everybody may be told again.
        self._back_at_ms = 0
        # In the order of their deadlines, since the grace is the same for all.
        # Ordered, since the first of a plain dict is found behind all that went before it.
        self._leaving: OrderedDict[str, _Leaving] = OrderedDict()
        self._charges = leaving or Charges(maxsize, maxsize)
        # Those who are leaving, by the bits of the number of their bytes.
        self._leaving_by_size: dict[int, OrderedDict[str, None]] = {}
        self._gone: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._gone_charges = gone or Charges(maxsize, maxsize)

    @property
    def mode(self) -> Mode:
        """Who is told of changes."""
        return self._mode

    def opened(self, user: str, *, first: bool, sessions: int, now_ms: int) -> list[Notice]:
        """A session opened.

        Args:
            user: whose.
            first: whether it is the user's first.
            sessions: how many are open now, this one included.
            now_ms: the time, on the clock of `due`.

        Returns:
            What is to be told, in this order.
        """
        notices = self._switched(sessions, now_ms)
        if not first:
            return notices
        leaving = self._take_leaving(user)
        # One who was cut off where few were told counts as gone for everybody since everybody is told.
        if leaving is None or (leaving.audience is not None and self._mode == "everyone"):
            change = Change(user, "online", self._audience(self._forget_gone(user)))
            notices.append(self._told(change, now_ms))
        self._make_room(notices, now_ms)
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
        notices = self._switched(sessions, now_ms)
        if not last:
            return notices
        if code == CloseCode.NORMAL or self._grace_ms == 0:
            notices.append(self._told(Change(user, "offline", self._audience(tuple(channels))), now_ms))
        else:
            self._leave(user, now_ms + self._grace_ms, self._audience(tuple(channels)))
        self._make_room(notices, now_ms)
        return notices

    def due(self, now_ms: int) -> list[Notice]:
        """Return what is to be told of users whose grace is over, of those whose changes were held, and of a switch."""
        notices = self._switched(self._sessions, now_ms)
        while self._held:
            user, waiting = next(iter(self._held.items()))
            if waiting.deadline_ms > now_ms:
                break
            notices.append(self._told(self._forget_held(user), now_ms))
        while self._leaving:
            user, leaving = next(iter(self._leaving.items()))
            if leaving.deadline_ms > now_ms:
                break
            notices += self._left(user, now_ms)
        self._make_room(notices, now_ms)
        return notices

    def leaving(self) -> list[str]:
        """Return who has no session but counts as online for everybody, until the grace is over."""
        return [user for user, leaving in self._leaving.items() if leaving.audience is None]

    def next_ms(self) -> int | None:
        """When `due` has something to say; None where nobody is leaving and nothing is held or to be switched."""
        firsts = (next(iter(self._leaving.values()), None), next(iter(self._held.values()), None))
        times = [first.deadline_ms for first in firsts if first is not None]
        if self._mode == "shared" and self._are_few():
            times.append(self._back_at_ms)
        return min(times, default=None)

    def _leave(self, user: str, deadline_ms: int, audience: tuple[str, ...] | None) -> None:
        size = _size(user, audience)
        self._leaving[user] = _Leaving(deadline_ms, audience, size)
        self._leaving_by_size.setdefault(size.bit_length(), OrderedDict())[user] = None
        self._charges.take(user, size)

    def _take_leaving(self, user: str) -> _Leaving | None:
        leaving = self._leaving.pop(user, None)
        if leaving is not None:
            bits = leaving.bytes.bit_length()
            del self._leaving_by_size[bits][user]
            if not self._leaving_by_size[bits]:
                del self._leaving_by_size[bits]
            self._charges.give(user, leaving.bytes)
        return leaving

    def _left(self, user: str, now_ms: int) -> list[Notice]:
        """End the grace of a user."""
        leaving = self._take_leaving(user)
        return [] if leaving is None else [self._told(Change(user, "offline", leaving.audience), now_ms)]

    def _told(self, change: Change, now_ms: int) -> Change | Held:
        """Return a change as it is told now, or hold it until there is a token."""
        user = change.user
        waiting = self._held.get(user)
        if waiting is not None:
            before = _size(user, waiting.change.channels)
            waiting.change = Change(user, change.status, _both(waiting.change.channels, change.channels))
            self._charges.give(user, before)
            self._charges.take(user, _size(user, waiting.change.channels))
        elif not self._changes.take(user, now_ms):
            self._held[user] = _Waiting(now_ms + self._changes.token_ms, change)
            self._charges.take(user, _size(user, change.channels))
        else:
            self._note_gone(change)
            return change
        return Held(user, change.status, change.channels is None)

    def _note_gone(self, change: Change) -> None:
        """Remember where a going is told, for when the user is back."""
        user, channels = change.user, change.channels
        if change.status != "offline" or not channels:
            return
        self._forget_gone(user)
        self._gone[user] = channels
        gone = self._gone_charges
        gone.take(user, _size(user, channels))
        while len(self._gone) > GONE_MAX or gone.bytes > gone.bytes_max:
            self._forget_gone(next(iter(self._gone)))
            gone.refused += 1

    def _make_room(self, notices: list[Notice], now_ms: int) -> None:
        """Tell at once, above the limit of bytes, of those who leave, and then what is held."""
        charges = self._charges
        while charges.bytes > charges.bytes_max:
            if self._leaving:
                largest = next(iter(self._leaving_by_size[max(self._leaving_by_size)]))
                notices += self._left(largest, now_ms)
            elif self._held:
                change = self._forget_held(next(iter(self._held)))
                self._note_gone(change)
                notices.append(change)
            else:
                return
            charges.refused += 1

    def _forget_held(self, user: str) -> Change:
        change = self._held.pop(user).change
        self._charges.give(user, _size(user, change.channels))
        return change

    def _forget_gone(self, user: str) -> tuple[str, ...]:
        channels = self._gone.pop(user, ())
        if channels:
            self._gone_charges.give(user, _size(user, channels))
        return channels

    def _audience(self, channels: tuple[str, ...]) -> tuple[str, ...] | None:
        return None if self._mode == "everyone" else channels

    def _are_few(self) -> bool:
        """Whether the sessions are so few that everybody is told again."""
        return self._everyone_max is not None and self._sessions * 10 < self._everyone_max * 9

    def _switched(self, sessions: int, now_ms: int) -> list[Notice]:
        self._sessions = sessions
        if self._everyone_max is None:
            return []
        if self._mode == "everyone" and sessions > self._everyone_max:
            self._mode = "shared"
            self._back_at_ms = now_ms + BACK_MS
        elif self._mode == "shared" and self._are_few() and now_ms >= self._back_at_ms:
            self._mode = "everyone"
            while self._gone:
                self._forget_gone(next(iter(self._gone)))
        else:
            return []
        return [Switch(self._mode)]


def _size(user: str, channels: tuple[str, ...] | None) -> int:
    return LEAVING_BYTES + getsizeof(user) + getsizeof(channels) + sum(map(getsizeof, channels or ()))


def _both(earlier: tuple[str, ...] | None, later: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return who is told of a change that takes the place of one that nobody was told of."""
    if earlier is None or later is None:
        return None
    return tuple(dict.fromkeys((*later, *earlier)))[:AUDIENCE_MAX]
