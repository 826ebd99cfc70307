"""`Control`: Python's half of a server, over any engine.

It takes events in batches, hands each to `routing` or, for those who come and go, to `connections` and `presence`, and
submits what was answered once at the end of the batch. It is the only reader of events. Time is read once a batch. A
batch is as large as what such events cost lately allows: one turn of the loop should not hold it for over 2 ms, so that
timers, other sockets and tasks run in between; what is left keeps the engine's descriptor readable. A batch of
dearer events than those before is put down after 4 ms and gone on with in the next turn of the loop.

Invariants: an event that makes a handler, a hook or us fail never stops the batch; every command that is buffered is
submitted by the end of its batch or, outside of one, in the next turn of the loop. Made by `server` and, over an engine
without sockets, by `testing`.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final, NoReturn, cast

from realtime import _engine
from realtime._engine import Commands
from realtime.base import logs
from realtime.base.clock import Clock, Timer
from realtime.base.config import Keys, Settings
from realtime.base.containment import goes_on
from realtime.base.errors import NotRunning, Refused
from realtime.base.memory import Ledger, Memory, summed, usages
from realtime.base.metrics import Figures
from realtime.control.broadcaster import Broadcaster
from realtime.control.connections import Connections, Session
from realtime.control.forwarding import Forwarding
from realtime.control.listening import Listeners
from realtime.control.periodic import PeriodicJobs
from realtime.control.presence import Change, Held, Notice, Presence, Rate
from realtime.control.routing import EventTuple, Router
from realtime.control.rules import Rules
from realtime.control.upstream import Upstream
from realtime.identity import Identities, TokenRefusals

log = logging.getLogger("realtime")

BATCH_MAX: Final = 512
"""Events that one turn of the loop takes at most."""
_BATCH_MIN: Final = 32
_HOLD_S: Final = 0.002
_HOLD_MAX_S: Final = 0.004
"""Of one turn; one event may come on top of it."""
_CLEAN_UP_S: Final = 0.2
_FORWARDED_TTL_S: Final = 60
_MESSAGE: Final = _engine.MESSAGE


def _warn(event: EventTuple) -> None:
    log.warning("%s", event[1])


def _ignore(_: EventTuple) -> None:
    """Take an event that asks for nothing."""


class _NoEngine:
    """The engine as a forked child has it."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        return _not_running


def _not_running(*_: object, **__: object) -> NoReturn:
    raise NotRunning


class Control:
    """Python's half of a server, over an engine that somebody else drives. For one event loop and thread."""

    def __init__(self, rules: Rules, settings: Settings, keys: Keys, commands: Commands, clock: Clock) -> None:
        self.rules = rules
        self.settings = settings
        self.failure: str | None = None
        self._commands = commands
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._submit_due = False
        self._most = BATCH_MAX
        self._left: list[EventTuple] = []
        self._presence_timer: Timer | None = None
        self._presence_at_ms = 0
        self._start_timer: Timer | None = None
        self.figures = Figures()
        self.ledger = Ledger(settings)
        self._lines = logs.ConnectionLines(settings.log.connections_per_s)
        raw = frozenset(index for index, endpoint in enumerate(rules.endpoints) if endpoint.mode == "raw")
        self.connections = Connections(commands, raw, self.wake, settings.handlers.tasks_per_session_max)
        limits = settings.limits
        self.broadcaster = Broadcaster(commands, self.connections, rules.policies, clock, limits.publication_bytes_max)
        refusals = TokenRefusals(self.figures, self._lines)
        self.identities = Identities(
            settings,
            keys,
            commands,
            self.broadcaster,
            clock,
            refusals=refusals,
            charges=self.ledger.of("tickets"),
            authenticate=rules.authenticate,
        )
        self.forwarding: Forwarding | None = None
        if settings.api.url is not None:
            upstream = Upstream(
                settings.api,
                limits.publication_bytes_max,
                partial(self.identities.signed, ttl_s=_FORWARDED_TTL_S),
                sending=self.ledger.of("api_requests"),
                reading=self.ledger.of("api_answers"),
                values_max=limits.message_values_max,
            )
            self.forwarding = Forwarding(
                upstream, self.broadcaster, clock, self.ledger.of("message_ids"), self.ledger.of("answers")
            )
        everyone_max = None if settings.conversations.access == "grants" else settings.presence.everyone_max
        told = settings.presence
        rate = Rate(told.changes_per_s if limits.enabled else 0, told.changes_burst)
        leaving, gone = self.ledger.of("leaving"), self.ledger.of("gone")
        self.presence = Presence(round(told.grace_s * 1000), everyone_max, rate, leaving, gone)
        self.router = Router(
            rules,
            self.connections,
            self.broadcaster,
            clock,
            settings.handlers,
            identities=self.identities,
            handshake_timeout_s=limits.handshake_timeout_s,
            figures=self.figures,
        )
        slow_s, spawn = settings.handlers.slow_ms / 1000, self.router.spawn
        self.jobs = PeriodicJobs(rules.jobs, clock, slow_s, spawn, self.router.in_thread)
        self.listeners = Listeners(
            rules.listeners,
            settings.handlers.listener_events_max,
            self.ledger.of("listeners"),
            self.broadcaster.history,
            slow_s=slow_s,
            spawn=spawn,
        )
        self._fatal: Callable[[str], None] = lambda _: None
        self._takers: dict[int, Callable[[EventTuple], None]] = {
            _engine.OPEN: self._open,
            _engine.CLOSE: self._close,
            _engine.DRAINED: _ignore,
            _engine.RAW: self.router.raw,
            _engine.UPGRADE: self.router.upgrade,
            _engine.AUTHORIZE: self.router.authorize,
            _engine.DEFERRED: self.router.deferred,
            _engine.CARRIED: self.router.carried,
            _engine.REFRESH: self.router.refresh,
            _engine.RENEWED: self._renewed,
            _engine.REFUSED: self._refused,
            _engine.PUBLISHED: self.broadcaster.published,
            _engine.HISTORY: self.broadcaster.read,
            _engine.HEARD: self.listeners.heard,
            _engine.MEMBERS: self.broadcaster.told,
            _engine.WARNED: _warn,
            _engine.FATAL: self._fail,
        }

    def start(self) -> None:
        """Say who is told of whom before anybody is let in, and again when those who come back have had their time."""
        self._tell_mode()
        self.submit()
        self._start_timer = self.clock.call_later(self.settings.presence.grace_s, self._tell_mode)

    def on_fatal(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with one line when the engine cannot go on."""
        self._fatal = callback

    def sever(self) -> None:
        """Let go of the engine in a forked child: whatever asks for it from now on raises `NotRunning`."""
        self._commands = commands = cast("Commands", _NoEngine())
        self.connections.bind(commands)
        self.broadcaster.bind(commands)
        self.identities.bind(commands)

    async def draining(self) -> None:
        """Begin the end: run no more jobs, call the `on_drain` hooks."""
        self.jobs.stop()
        await self.router.draining()

    async def finish(self, timeout_s: float) -> int:
        """Wait until no handler, listener or job is under way, then end the tasks of sessions.

        Returns:
            How many were cut off after `timeout_s`; the tasks of sessions always are, and count where they do not end.
        """
        deadline_s = self._loop.time() + timeout_s
        cut_off = await self.router.finish(timeout_s)
        return cut_off + await self.connections.tasks.finish(max(_CLEAN_UP_S, deadline_s - self._loop.time()))

    def charge(self, user: str, peer: str, commands: int = 1, page_bytes: int = 0) -> None:
        """Take what a request costs from the buckets that the user's sockets have, or the address's of who has no name.

        Raises:
            Refused: `rate_limited`, with the time after which it goes.
        """
        wait_ms = self._commands.charge(user, peer, commands, page_bytes)
        if wait_ms is not None:
            raise Refused("rate_limited", "too many requests", retry_after_ms=wait_ms)

    def settle(self, user: str, peer: str, reserved: int, page_bytes: int) -> None:
        """Settle what `charge` took for a page of `reserved` bytes, now that it has `page_bytes`."""
        self._commands.settle(user, peer, reserved, page_bytes)

    def stats(self) -> bytes:
        """Return the engine's counters; see `Commands.stats`."""
        return self._commands.stats()

    def memory(self) -> Memory:
        """Return what is held for clients, all purposes together."""
        return summed(usages(self.stats(), self.ledger, self.settings))

    @property
    def has_left(self) -> bool:
        """Whether the last batch was put down before its end."""
        return bool(self._left)

    def turn(self) -> int:
        """Take one batch of events and submit what it led to. Returns how many events were taken."""
        self._submit_due = True
        self.clock.hold()
        router, message, mark, takers = self.router, self.router.message, self.router.mark, self._takers
        began_s = mark()
        until_s = began_s + _HOLD_MAX_S
        before, self._left = self._left, []
        events: list[Any] = before
        try:
            events = before or self._commands.drain(self._most)
            left: Iterator[Any] = iter(events)
            for event in left:
                kind = event[0]
                try:
                    if kind == _MESSAGE:
                        message(event)
                    else:
                        takers[kind](event)
                        mark()
                except BaseException as error:
                    if goes_on(error, awaited=False):
                        raise
                    log.exception("event %d was lost to a bug of the server's", kind)
                    mark()
                if router.marked_s > until_s:
                    self._left = list(left)
                    break
        finally:
            self.clock.release()
            self.submit()
        taken = len(events) - len(self._left)
        if self._left:
            self._loop.call_soon(self._go_on)
        if taken:
            self._size_next(taken, perf_counter() - began_s)
        return taken

    def _go_on(self) -> None:
        if self.has_left:
            self.turn()

    def _size_next(self, count: int, took_s: float) -> None:
        self.figures.turn_s.observe(took_s)
        if took_s > _HOLD_S:
            self._most = max(_BATCH_MIN, int(count * _HOLD_S / took_s))
        elif count == self._most < BATCH_MAX and took_s < _HOLD_S / 2:
            self._most = min(BATCH_MAX, 2 * count)

    def wake(self) -> None:
        """See to it that what was just buffered is submitted soon. Safe from any thread."""
        if self._submit_due:
            # The loop's thread clears this before it submits, so whatever was buffered before this look goes along.
            return
        if threading.get_ident() == self._thread:
            self._submit_due = True
            self._loop.call_soon(self.submit)
        else:
            self._commands.submit()

    def submit(self) -> None:
        """Hand over what is buffered."""
        self._submit_due = False
        self._commands.submit()

    def _open(self, event: EventTuple) -> None:
        _, conn, user, endpoint, first_version, peer, token, expires_at_ms, _, _, subprotocol = event
        session = Session(conn, user, endpoint, self.connections, expires_at_ms, subprotocol)
        first = self.connections.add(session)
        self.connections.note_token(conn, token)
        if self._lines.due():
            told = {"endpoint": self.rules.endpoints[endpoint].path, "peer": peer, "first_version": first_version}
            log.info("connection opened", extra=logs.facts("opened", session=session.id, user=user, **told))
        if self.connections.is_json(session):
            sessions, now_ms = self.connections.json_count, self.clock.monotonic_ms()
            self._tell(self.presence.opened(user, first=first, sessions=sessions, now_ms=now_ms))
            self._arm_presence()
        self.router.opened(session)

    def _close(self, event: EventTuple) -> None:
        _, conn, code, channels, open_ms = event
        session = self.connections.by_conn(conn)
        if session is None:
            return
        last = self.connections.remove(session)
        if self._lines.due():
            told = {"code": code, "duration_s": open_ms / 1000}
            log.info("connection closed", extra=logs.facts("closed", session=session.id, user=session.user, **told))
        if self.connections.is_json(session):
            notices = self.presence.closed(
                session.user,
                last=last,
                code=code,
                channels=channels,
                sessions=self.connections.json_count,
                now_ms=self.clock.monotonic_ms(),
            )
            self._tell(notices)
            self._arm_presence()
        self.router.closed(session, code)

    def _renewed(self, event: EventTuple) -> None:
        _, conn, expires_at_ms, token, _, _ = event
        session = self.connections.by_conn(conn)
        if session is not None:
            session.expires_at_ms = expires_at_ms
            self.connections.note_token(conn, token)

    def _refused(self, event: EventTuple) -> None:
        _, conn, endpoint, peer, reason = event
        session = self.connections.by_conn(conn)
        shown = {"peer": peer} if session is None else {"session": session.id, "user": session.user}
        self.identities.note_refused(reason, path=self.rules.endpoints[endpoint].path, **shown)

    def _tell(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Change):
                if notice.channels is None:
                    self._commands.presence_change(notice.user, notice.status == "online")
                self.broadcaster.user_presence(notice.user, notice.status, notice.channels)
            elif isinstance(notice, Held):
                self.figures.presence_held += 1
                if notice.everyone:
                    # Who comes meanwhile is told as it is.
                    self._commands.presence_change(notice.user, notice.status == "online")
            else:
                self.figures.presence_switches += 1
                self._tell_mode()

    def _tell_mode(self) -> None:
        is_everyone = self.presence.mode == "everyone"
        self._commands.presence_mode([*self.connections.online(), *self.presence.leaving()] if is_everyone else None)
        self.wake()

    def _arm_presence(self) -> None:
        next_ms = self.presence.next_ms()
        if next_ms is None or (self._presence_timer is not None and self._presence_at_ms <= next_ms):
            return
        if self._presence_timer is not None:
            self._presence_timer.cancel()
        delay_s = max(0, next_ms - self.clock.monotonic_ms()) / 1000
        self._presence_at_ms = next_ms
        self._presence_timer = self.clock.call_later(delay_s, self._presence_due)

    def _presence_due(self) -> None:
        self._presence_timer = None
        self._tell(self.presence.due(self.clock.monotonic_ms()))
        self._arm_presence()

    def _fail(self, event: EventTuple) -> None:
        self.failure = str(event[1])
        log.critical("%s", self.failure)
        self._fatal(self.failure)

    async def close(self) -> None:
        """Let go of everything; the engine has stopped."""
        if self.forwarding is not None:
            await self.forwarding.close()
        await self.identities.close()
        self.end()

    def end(self) -> None:
        """Do what of `close` needs no loop."""
        for timer in (self._presence_timer, self._start_timer):
            if timer is not None:
                timer.cancel()
        self.router.stop()
        self.broadcaster.abandon()
        self.connections.clear()
