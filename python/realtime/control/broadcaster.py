"""Publishing: one event, encoded once, to a channel, a conversation, a user, a session or everybody.

`Broadcaster.publish` buffers the command in the engine at once, in the caller's order, and returns a `Publishing`. For
a durable channel that can be awaited for its `Publication` (the event is then committed and on its way), or returned
from a handler, and then the engine answers the command itself when the event is committed. Volatile events have none.

From the loop's thread nothing is locked. From another thread the command is handed to the engine and submitted at once,
and the lock makes sure that its outcome, which arrives on the loop, finds the `Publishing`; the same for questions. A
caller may wait on a loop of its own. Invariant: a ticket stands in `_waiting` from before its outcome can be read until
it is settled or the engine has taken over the answer; behind `abandon` nothing waits.

Called by `app.publish` and by `control` (presence); `control` hands it the outcomes.
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from realtime.base.clock import Clock
from realtime.base.errors import PublishFailed, Refused
from realtime.base.messages import Event, PresenceData, encode
from realtime.base.waiter import Waiter
from realtime.control.publishing import Publication, Publishing
from realtime.identity.auth import Pattern, channel_named, checked_event

if TYPE_CHECKING:
    from realtime._engine import Commands
    from realtime.control.connections import Connections, Session

_KNOWN_CHANNELS_MAX: Final = 8192
_KNOWN_EVENTS_MAX: Final = 1024
_ROOM_POLL_S: Final = 0.002
_HISTORY_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 1024 * 1024
"""Bytes of a page of events, on every way, but one event at least; the engine's `PAGE_BYTES_MAX`."""
_REQUEST_CHARS_MAX: Final = 128
_CONVERSATION: Final = "conversation:"

N = TypeVar("N")


class History(Struct, frozen=True):
    """A page of a channel's past.

    Args:
        events: whole frames as subscribers got them, oldest first; `event["offset"]` rises by one.
        offset: the newest offset of the channel; with `epoch` its position.
        epoch: names the term of the log, or the channel in memory, in which the offset was given.
    """

    events: list[Raw]
    offset: int
    epoch: str


def _checked_json(data: bytes) -> bytes:
    """Return JSON that an author brings as it is: what is not would end up in every member's frame, and in the log."""
    try:
        data.decode()
        msgspec.json.decode(data, type=Raw)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ValueError(f"data is bytes that are not JSON: {error}; pass an object, or JSON in UTF-8") from error
    return data


def _key(type: str, key: str | None) -> tuple[str, str] | None:
    return None if key is None else (type, key)


class Members(Struct, frozen=True):
    """The connections that are subscribed to a channel.

    Args:
        conns: them; at most 10,000 of each shard.
        total: how many there are. With more than `conns` has, the list is cut.
    """

    conns: list[int]
    total: int

    @property
    def is_cut(self) -> bool:
        """Whether there are more than `conns` has."""
        return self.total > len(self.conns)


class _Asked(Struct):
    """A question about a channel's members, and what came of the answer, which has a part from each shard."""

    waiter: Waiter[Members]
    conns: list[int]
    total: int = 0
    parts: int = 0


_UNREAD: Final = {
    "not_recoverable": "The history is not the one of this position",
    "overloaded": "Too many pages of the log are waited for; ask again later",
}

RETAIN_LATEST_MAX: Final = 1000
"""Keys whose newest event one channel retains: a new member gets them all at once."""


class Policy(Struct, frozen=True, kw_only=True):
    """What kind of channel a name is; the first that matches wins, and a channel without one is volatile.

    Args:
        pattern: which channels.
        durable: its events are stored, numbered and can be recovered.
        history: events kept in memory for late and returning members.
        overflow: what becomes of volatile events for a reader that is too slow: `drop_oldest` (it is told by `lag`)
            or `close` (4000).
        keep_s: seconds that an event is kept, in the log or in memory; None keeps it for ever. A channel in memory goes
            when it has neither events nor members.
        keep_events: how many of the newest events are kept; None keeps all.
        retain_latest: how many keys' newest events late subscribers get; of events without an offset.
        retain_latest_s: seconds that such an event is true unless it is renewed.
    """

    pattern: Pattern
    durable: bool = False
    history: int = 0
    overflow: str = "drop_oldest"
    keep_s: int | None = None
    keep_events: int | None = None
    retain_latest: int = 0
    retain_latest_s: int = 3600


class Broadcaster:
    """Everything that is published goes through here. The engine does the fan-out."""

    def __init__(
        self,
        commands: "Commands",
        connections: "Connections",
        policies: Sequence[Policy],
        clock: Clock,
        publication_bytes_max: int,
    ) -> None:
        self._connections = connections
        self._policies = policies
        self._clock = clock
        self._publication_bytes_max = publication_bytes_max
        self._wake = connections.wake
        self._thread = get_ident()
        self.bind(commands)
        self._waiting: dict[int, Publishing] = {}
        self._reading: dict[int, Waiter[History]] = {}
        self._asking: dict[int, _Asked] = {}
        self._durable: dict[str, bool] = {}
        self._events: set[str] = set()
        self._has_ended = False

    def bind(self, commands: "Commands") -> None:
        """Tell `commands` from now on what is to be done; nothing is under way."""
        self._commands = commands
        # Bound once, as in `connections`.
        self._publish = commands.publish
        self._reply_with = commands.reply_with
        # A new one: in a forked child the old one may be held by a thread of the parent's.
        self._lock = threading.Lock()

    def is_loop_thread(self) -> bool:
        """Whether the caller runs on the thread of the event loop."""
        return get_ident() == self._thread

    @property
    def waiting(self) -> int:
        """How many durable publishes and questions to the engine have no outcome yet."""
        return len(self._waiting) + len(self._reading) + len(self._asking)

    # Channels.

    def publish(
        self,
        channel: str,
        event: str,
        data: object,
        *,
        user: str | None = None,
        key: str | None = None,
        dedupe: str | None = None,
        number: bool = False,
        request: str | None = None,
        amends: int | None = None,
        replacement: object = None,
        erases: bool = False,
    ) -> Publishing:
        """Publish an event to whoever is subscribed to `channel`. Safe from any thread.

        Args:
            channel: its policy decides whether the event is stored or volatile. `user:` and a user's id is that user's
                own, whatever the id; see `realtime.user_channel`.
            event: the event's `type`; 1 to 128 of `A-Za-z0-9_.:@-`, the first a letter, digit or `_`.
            data: anything that msgspec encodes; `bytes` are taken for JSON.
            user: becomes the event's `userId`.
            key: a newer event of the same type and key takes the place of this one for slow readers (volatile only).
            dedupe: a second event of this user with the same text is stored once (durable only): while that is stored,
                and at least for `log.dedupe_s`.
            number: the event's offset becomes the member `number` of its data, an object (durable only).
            request: becomes the event's `requestId`, also when it is replayed; at most 128 characters.
            amends: the offset of an earlier event of the channel that this one is about (durable only). Awaiting raises
                `PublishFailed` with the code `not_found` where it was never there or is kept no longer.
            replacement: what the data of the amended event becomes, together with this event, for whoever reads it from
                now on; encoded as `data` is. Its offset stays.
            erases: with a replacement, all earlier events that amended the same one lose their data too: it becomes
                this event's. What was erased is also overwritten in the log's file.

        Raises:
            PublishFailed: `too_large`, before anything is sent.
            ValueError: `channel` is not the name of a channel or keeps nothing that could be amended, `event` is not
                the name of an event, bytes are not JSON, `request` is too long, or one of `amends`, `replacement`,
                `erases` lacks the one before it.
        """
        return self.put(channel, event, data, user, key, dedupe, number, request, amends, replacement, erases)

    def put(  # noqa: PLR0917 -- that is what it is for
        self,
        channel: str,
        event: str,
        data: object,
        user: str | None,
        key: str | None,
        dedupe: str | None,
        number: bool,
        request: str | None,
        amends: int | None,
        replacement: object,
        erases: bool,
    ) -> Publishing:
        """Do what `publish` does, by position: eleven keywords would cost as much as the rest of it."""
        payload = _checked_json(data) if isinstance(data, bytes) else encode(data)
        if len(payload) > self._publication_bytes_max:
            raise self._too_large(channel, payload)
        if event not in self._events:
            self._check_event(event)
        durable = self._durable.get(channel)
        if durable is None:
            channel = channel_named(channel)
            durable = self.is_durable(channel)
        if request is not None and len(request) > _REQUEST_CHARS_MAX:
            raise ValueError(f"request of {len(request)} characters exceeds {_REQUEST_CHARS_MAX}; use a shorter one")
        by = None
        if amends is not None or replacement is not None or erases:
            by = self._replacement(channel, durable, amends, replacement, erases)
        publish = self._publish
        if not durable or get_ident() == self._thread:
            ticket = publish(channel, event, payload, user, key, dedupe, number, durable, request, amends, by, erases)
            publishing = Publishing(self, channel, ticket, durable, not durable)
            if durable:
                self._waiting[ticket] = publishing
        else:
            # Of another thread: its outcome may arrive before it is noted. What is not stored has none.
            with self._lock:
                ticket = publish(channel, event, payload, user, key, dedupe, number, True, request, amends, by, erases)
                publishing = Publishing(self, channel, ticket, True, False)
                if self._has_ended:
                    publishing.settle(None, "unavailable")
                else:
                    self._waiting[ticket] = publishing
        self._wake()
        return publishing

    def _replacement(
        self, channel: str, durable: bool, amends: int | None, replacement: object, erases: bool
    ) -> bytes | None:
        if amends is None:
            if replacement is not None:
                raise ValueError("a replacement without amends; say which event it is for")
        elif not durable:
            raise ValueError(f"amends={amends}: events of {channel} are not stored; use a channel that is durable")
        elif amends < 1:
            raise ValueError(f"amends={amends}; use an offset, from 1")
        if replacement is None:
            if erases:
                raise ValueError("erases without a replacement; say what the amended event's data becomes")
            return None
        payload = _checked_json(replacement) if isinstance(replacement, bytes) else encode(replacement)
        if len(payload) > self._publication_bytes_max:
            raise self._too_large(channel, payload)
        return payload

    def _too_large(self, channel: str, payload: bytes) -> PublishFailed:
        detail = f"{len(payload)} bytes exceed limits.publication_bytes_max={self._publication_bytes_max}"
        return PublishFailed("too_large", channel, detail)

    def is_durable(self, channel: str) -> bool:
        """Whether events of `channel` are stored.

        Raises:
            ValueError: it is not the name of a channel.
        """
        durable = self._durable.get(channel)
        if durable is None:
            channel = channel_named(channel)
            policy = next((policy for policy in self._policies if policy.pattern.matches(channel)), None)
            durable = policy is not None and policy.durable
            if len(self._durable) >= _KNOWN_CHANNELS_MAX:
                self._durable.clear()
            self._durable[channel] = durable
        return durable

    def _check_event(self, name: str) -> None:
        checked_event(name)
        if len(self._events) >= _KNOWN_EVENTS_MAX:
            self._events.clear()
        self._events.add(name)

    def answer(self, publishing: Publishing, conn: int, id: bytes | None, failure: str | None) -> bool:
        """Let the engine answer command `id` from the outcome; it gives the credit back.

        Args:
            publishing: the event.
            conn: whose command it is.
            id: the raw id of the command.
            failure: the message of the `error` where the event cannot be stored; None leaves it to the engine.

        Returns:
            False where it cannot: the event was submitted already, or its outcome is known, or somebody awaits it too.
        """
        ticket = publishing.ticket
        if not publishing.durable:
            return self._reply_with(ticket, conn, id, failure)
        if publishing._settled or publishing._waiters or not self._reply_with(ticket, conn, id, failure):  # noqa: SLF001
            return False
        self._waiting.pop(ticket, None)
        return True

    def published(self, event: tuple[Any, ...]) -> None:
        """Take a PUBLISHED event: the outcome of a durable publish."""
        _, ticket, offset, duplicate, data, failure = event
        publishing = self._waiting.pop(ticket, None)
        if publishing is None:
            # Published on a thread that has not noted its ticket yet: it holds the lock until it has.
            with self._lock:
                publishing = self._waiting.pop(ticket, None)
        if publishing is None:
            return
        if failure is not None:
            publishing.settle(None, failure)
        else:
            publishing.settle(Publication(publishing.channel, offset, Raw(data or b"null"), duplicate), None)

    async def history(
        self,
        channel: str,
        *,
        after: int | None = None,
        epoch: str | None = None,
        limit: int = 100,
        user: str | None = None,
    ) -> History:
        """Return events of a channel that keeps them, in memory or in the log. On the server's loop or any other one.

        Args:
            channel: one without a history has no events and the offset 0.
            after: events with a higher offset, oldest first; None takes the last ones.
            epoch: of the position that `after` is the offset of; None takes the offset as one of the history of now.
            limit: at most this many, 1 to 1000; a page has at most 1 MiB, but always one event.
            user: for whom; users take turns where the log has to read. None: for the app.

        Raises:
            Refused: `unavailable`, where the log cannot be read; `overloaded`, where too many pages wait to be read;
                `not_recoverable`, where the position is of another
                history, such as the one before a backup was restored.
            ValueError: `channel` is not the name of a channel, or the limit is out of its bounds.
        """
        channel = channel_named(channel)
        if not 1 <= limit <= _HISTORY_MAX:
            raise ValueError(f"limit={limit}; use 1 to {_HISTORY_MAX}")
        waiter = Waiter[History]()
        with self._lock:
            self._check_running()
            ticket = self._commands.history(channel, after, limit, epoch, user)
            self._reading[ticket] = waiter
        self._wake()
        try:
            return await waiter
        finally:
            self._reading.pop(ticket, None)

    def read(self, event: tuple[Any, ...]) -> None:
        """Take a HISTORY event: what `history` waits for."""
        _, ticket, events, offset, epoch, failure = event
        waiter = self._noted(self._reading, ticket)
        if waiter is None:
            return
        if failure is not None:
            waiter.fail(Refused(failure, _UNREAD.get(failure, "The history could not be read")))
        else:
            waiter.settle(History([Raw(frame) for frame in events], offset, epoch))

    async def members_of(self, channel: str) -> Members:
        """Return the connections that are subscribed to a channel; the answer says if it is cut. On any loop.

        Raises:
            Refused: `unavailable`, where the server has ended.
            ValueError: `channel` is not the name of a channel.
        """
        channel = channel_named(channel)
        waiter = Waiter[Members]()
        with self._lock:
            self._check_running()
            ticket = self._commands.members_of(channel)
            self._asking[ticket] = _Asked(waiter, [])
        self._wake()
        try:
            return await waiter
        finally:
            self._asking.pop(ticket, None)

    def told(self, event: tuple[Any, ...]) -> None:
        """Take a MEMBERS event: one shard's part of what `members_of` waits for."""
        _, ticket, conns, total, parts = event
        asked = self._noted(self._asking, ticket)
        if asked is None:
            return
        asked.conns += conns
        asked.total += total
        asked.parts += 1
        if asked.parts == parts:
            asked.waiter.settle(Members(asked.conns, asked.total))

    def _noted(self, noted: dict[int, N], ticket: int) -> N | None:
        """Return what waits under a ticket. Another thread holds the lock from its question until that is noted."""
        found = noted.get(ticket)
        if found is None:
            with self._lock:
                found = noted.get(ticket)
        return found

    def _check_running(self) -> None:
        if self._has_ended:
            raise Refused("unavailable", "The server has ended")

    def abandon(self) -> None:
        """Fail whatever has no outcome at the end: nobody can tell any more whether it was stored."""
        with self._lock:
            self._has_ended = True
            waiters: list[Waiter[Any]] = [*self._reading.values(), *(asked.waiter for asked in self._asking.values())]
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for waiter in waiters:
            waiter.fail(Refused("unavailable", "The server has ended"))
        for publishing in waiting:
            publishing.settle(None, "unavailable")

    async def room(self) -> None:
        """Return when the engine takes commands without falling behind."""
        while self._commands.overloaded():  # noqa: ASYNC110 -- the engine has no event for it; it is rare
            await asyncio.sleep(_ROOM_POLL_S)

    # Peers.

    # With a `key` a newer event of the same type and key takes the place of one that a slow reader has not got;
    # without one the oldest events are dropped for it, and it is told by `lag`.

    def to_all(
        self, type: str, data: object, *, user: str | None = None, request: str | None = None, key: str | None = None
    ) -> None:
        """Send an event to every session of the JSON endpoints. Volatile."""
        self._commands.send_all(self._frame(type, data, user, request), _key(type, key))
        self._wake()

    def to_channel(self, channel: str, event: str, data: object, *, user: str | None = None) -> Publishing:
        """Publish an event; `publish` has more to choose."""
        return self.publish(channel, event, data, user=user)

    def to_channels(
        self, channels: Iterable[str], type: str, data: object, *, user: str | None = None, key: str | None = None
    ) -> None:
        """Send one event to the members of several channels, to each session once. Volatile, belongs to no channel.

        Raises:
            ValueError: one of them is not the name of a channel, or `type` not that of an event.
        """
        names = [channel_named(channel) for channel in channels]
        self._commands.publish_union(names, self._frame(type, data, user), _key(type, key))
        self._wake()

    def to_members(
        self,
        channel: str,
        type: str,
        data: object,
        *,
        user: str | None = None,
        request: str | None = None,
        key: str | None = None,
    ) -> None:
        """Send an event to the members of a channel as they are now. Volatile, also where the channel is durable.

        Raises:
            ValueError: `channel` is not the name of a channel, or `type` not that of an event.
        """
        channel = channel_named(channel)
        event = self._event(type, data, user, request)
        event.channel = channel
        if channel.startswith(_CONVERSATION):
            event.conversation_id = channel.removeprefix(_CONVERSATION)
        self._commands.publish_union([channel], encode(event), _key(type, key))
        self._wake()

    def to_conversation(self, conversation_id: str, event: str, data: object, *, user: str | None = None) -> Publishing:
        """Publish an event to `conversation:{conversation_id}`."""
        return self.publish(f"conversation:{conversation_id}", event, data, user=user)

    def to_user(self, user: str, type: str, data: object, *, request: str | None = None, key: str | None = None) -> int:
        """Send an event to every session of a user. Volatile. Returns to how many."""
        sessions = self._connections.by_user(user)
        if sessions:
            self._connections.send_many(sessions, self._frame(type, data, None, request), _key(type, key))
        return len(sessions)

    def to_session(self, session: "Session", type: str, data: object) -> None:
        """Send an event to one session. Volatile."""
        self._connections.send(session, self._frame(type, data, None))

    # The protocol's own events.

    def new_message(self, conversation_id: str, message: object, *, user: str, dedupe: str | None = None) -> Publishing:
        """Store a message of a conversation and tell its members; its offset becomes its `number`."""
        channel = f"conversation:{conversation_id}"
        return self.publish(channel, "new_message", message, user=user, dedupe=dedupe, number=True)

    def conversation_updated(self, conversation_id: str, changes: object, *, user: str | None = None) -> Publishing:
        """Store that a conversation changed (its title, its members) and tell its members."""
        return self.publish(f"conversation:{conversation_id}", "conversation_updated", changes, user=user)

    def typing(self, conversation_id: str, user: str, *, is_typing: bool) -> None:
        """Tell a conversation that a user types or stopped; what clients say themselves is relayed by the engine.

        Volatile, though the channel is durable: it goes to the members as they are now and is stored nowhere.
        """
        data = {"userId": user, "isTyping": is_typing}
        self.to_members(f"{_CONVERSATION}{conversation_id}", "typing_indicator", data, user=user, key=user)

    def user_presence(self, user: str, status: str, channels: Sequence[str] | None = None) -> None:
        """Tell that a user came or went: to everybody, or to the members of `channels` and the user's own sessions."""
        data = PresenceData(user, status)
        if channels is None:
            self.to_all("user_presence", data, user=user, key=user)
            return
        if channels:
            self.to_channels(channels, "user_presence", data, user=user, key=user)
        if sessions := self._connections.by_user(user):
            self._connections.send_many(sessions, self._frame("user_presence", data, user), _key("user_presence", user))

    def file_processing(self, owner: str, file_id: str, progress: int, status: str) -> Publishing:
        """Tell how far the work on a file is: to its owner's sessions and to whoever is subscribed to `file:{id}`.

        Who subscribes later gets the last state, for a day, unless the app has a policy of its own for `file:*`.

        Args:
            owner: the user that the file belongs to.
            file_id: the file.
            progress: 0 to 100.
            status: what is being done, in the app's words.
        """
        data = {"fileId": file_id, "progress": progress, "status": status}
        self.to_user(owner, "file_processing_update", data, key=file_id)
        return self.publish(f"file:{file_id}", "file_processing_update", data, key=file_id)

    def _frame(self, type: str, data: object, user: str | None, request: str | None = None) -> bytes:
        return encode(self._event(type, data, user, request))

    def _event(self, type: str, data: object, user: str | None, request: str | None) -> Event:
        if type not in self._events:
            self._check_event(type)
        event = Event(type, data, self._clock.timestamp())
        if user is not None:
            event.user_id = user
        if request is not None:
            event.request_id = request
        return event
