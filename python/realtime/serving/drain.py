"""The end of a server, in the order that loses nothing.

1. Nobody new is taken, each client is told `draining` with its own delay, and the `on_drain` hooks run. All are served
   on: for `drain.notice_s`, so that a load balancer sees `/ready`, while the requests of the HTTP listener end, and
   until the commands that were under way are done. Where `drain.successor` says that another node takes them,
   connections then end one by one over `drain.window_s`.
2. Nothing more is read. What was read is carried out, committed, published, acknowledged and with the kernel.
3. Every connection is closed with 1012, the threads end, and the log is closed.

One deadline, `drain.grace_s` after the beginning, holds for all of it; its last fifth is kept for the third step. With
nobody connected no step waits. Made by `server`, once each.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from realtime.base.codes import CloseCode
from realtime.base.config import DrainSettings
from realtime.serving.transports import AnyEngine

if TYPE_CHECKING:
    from realtime.control.control import Control

log = logging.getLogger("realtime")

_STOP_RESERVE: Final = 0.2
_POLL_S: Final = 0.01
_STALLED_S: Final = 0.5
_TOLD_LATELY: Final = 0.05
_REASON: Final = "server restarting"


class Drain:
    """Takes one running server to its end: `begin`, `serve_on`, then, when nothing else publishes, `finish`."""

    def __init__(
        self, control: "Control", engine: AnyEngine, settings: DrainSettings, *, shares_port: bool = False
    ) -> None:
        self._control = control
        self._shares_port = shares_port
        self._engine = engine
        self._settings = settings
        self._began_s: float | None = None
        self._deadline_s = 0.0
        self._told_s = 0.0

    def begin(self) -> None:
        """Take nobody new and tell everybody when to come back. Harmless when repeated."""
        if self._began_s is not None:
            return
        self._began_s = time.monotonic()
        self._deadline_s = self._began_s + self._settings.grace_s
        # A port that the HTTP side shares stays open until that has ended: /ready says there why no more should come.
        if not self._shares_port:
            self._engine.stop_accepting()
        self._announce()

    async def serve_on(self) -> None:
        """Run the `on_drain` hooks, and go on for `drain.notice_s` or until nobody is connected."""
        self.begin()
        try:
            async with asyncio.timeout(self.left_s()):
                await self._control.draining()
        except TimeoutError:
            log.warning("the on_drain hooks took longer than drain.grace_s=%g allows", self._settings.grace_s)
        notice_s = (self._began_s or 0.0) + self._settings.notice_s - time.monotonic()
        await self._while_connected(min(notice_s, self.left_s()))

    async def finish(self) -> None:
        """Carry out what was read, store it, tell it, close."""
        self.begin()
        control, engine = self._control, self._engine
        if self._shares_port:
            engine.stop_accepting()
        # Half of what is left: a client that sends without end must not cost the others their delivery.
        await control.router.settled(self.left_s() / 2)
        if self._settings.successor and len(control.connections):
            window_s = min(self._settings.window_s, self.left_s())
            engine.close_all(CloseCode.SERVICE_RESTART, _REASON, round(window_s * 1000))
            await self._while_connected(window_s)
        engine.stop_reading()
        await take_all(control)
        await self._carry_out()
        # What was just committed may have been heard by a listener, and what that publishes is to be stored too.
        while control.router.busy and self.left_s() > 0:
            await self._carry_out()
        control.submit()
        if 0 < self._settings.window_s * _TOLD_LATELY < time.monotonic() - self._told_s:
            # Who was told a while ago would come back at once, all together: delays count from the last telling.
            self._announce()
        await self._delivered()
        engine.close_all(CloseCode.SERVICE_RESTART, _REASON)
        left_ms = max(100, round((self._deadline_s - time.monotonic()) * 1000))
        await asyncio.to_thread(engine.stop, left_ms)
        await take_all(control)
        await control.finish(max(0.0, self._deadline_s - time.monotonic()))

    async def _carry_out(self) -> None:
        """Let what is under way in Python end, commit what it led to, and take what comes of that."""
        control = self._control
        cancelled = await control.finish(self.left_s())
        if cancelled:
            log.warning("%d handlers or tasks were cut off after drain.grace_s=%g", cancelled, self._settings.grace_s)
        control.submit()
        left_ms = max(100, round((self._deadline_s - time.monotonic()) * 500))
        if not await asyncio.to_thread(self._engine.flush_log, left_ms):
            log.error("the log was not flushed within %d ms; what it had not acknowledged may be lost", left_ms)
        await take_all(control)

    def _announce(self) -> None:
        self._told_s = time.monotonic()
        self._engine.announce_drain(round(self._settings.window_s * 1000))

    def left_s(self) -> float:
        """Return what is left of the time for everything but closing; all of it before the end has begun."""
        if self._began_s is None:
            return self._settings.grace_s * (1 - _STOP_RESERVE)
        return max(0.0, self._deadline_s - self._settings.grace_s * _STOP_RESERVE - time.monotonic())

    async def _while_connected(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while len(self._control.connections) and time.monotonic() < until_s:  # noqa: ASYNC110 -- rare, and never long
            await asyncio.sleep(_POLL_S)

    async def _delivered(self) -> None:
        """Give outboxes time to empty, for as long as they do: a close drops what waits in them, the last acks too."""
        before, changed_s = -1, time.monotonic()
        while self.left_s() > 0:
            queued = sum(self._engine.backlog(session.conn) for session in self._control.connections)
            if queued == 0 or time.monotonic() - changed_s > _STALLED_S:
                return
            if queued != before:
                before, changed_s = queued, time.monotonic()
            await asyncio.sleep(_POLL_S)


async def take_all(control: "Control") -> None:
    """Take every event that waits, and let the loop go round between batches."""
    while control.turn():  # noqa: ASYNC110 -- it gives way to the tasks that a batch began
        await asyncio.sleep(0)
