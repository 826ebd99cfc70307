"""A publish under way and what came of it: what `app.publish` returns, and what that can be awaited for.

Made and settled by `broadcaster`; awaited by apps, on any event loop or thread, and looked at by `routing`.
"""

import logging
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw, Struct

from realtime.base.errors import PublishFailed
from realtime.base.waiter import Waiter

if TYPE_CHECKING:
    from realtime.control.broadcaster import Broadcaster

log = logging.getLogger("realtime")

_BEGINNING: Final = threading.Lock()


class Publication(Struct, frozen=True):
    """A durable event that is committed.

    Args:
        channel: where it was published.
        offset: its place in the channel, from 1 and without gaps; the `number` of a message.
        data: JSON of its data as stored; `decode()` gives it as Python values.
        duplicate: an earlier event of this user had the same `dedupe`; the rest is then that one's. Where retention has
            deleted that event, `data` is an object of its `number`, and its `id` where it had one.
    """

    channel: str
    offset: int
    data: Raw
    duplicate: bool

    def decode(self) -> Any:
        """Return `data` as dicts, lists, texts and numbers."""
        return msgspec.json.decode(self.data)


class Publishing(Struct, gc=False, eq=False):
    """A publish under way: `await` it, return it from a handler, wait for its `result` on a thread, or let it go.

    A Struct, since one is made for every event that is published, and most are let go of at once. Outside of the
    garbage collector's rounds: `abandon` settles what is left at the end, and who waits is let go of then.
    """

    _broadcaster: "Broadcaster"
    channel: str
    ticket: int
    durable: bool
    _settled: bool
    _publication: Publication | None = None
    _failure: str | None = None
    _waiters: list[Callable[[], None]] | None = None

    def __repr__(self) -> str:
        return f"Publishing({self.channel!r}, durable={self.durable})"

    def __await__(self) -> Generator[Any, None, Publication | None]:
        """Wait until the event is committed. On a volatile channel there is nothing to wait for but room in the engine.

        On the server's loop or on any other one, of another thread.

        Raises:
            PublishFailed: with the code, `unavailable`, `overloaded` (too much waits for the log), `not_found` (nothing
                to amend) or `too_large`.
        """
        if not self.durable:
            yield from self._broadcaster.room().__await__()
        elif not self._settled:
            waiter = Waiter[None]()
            self.notify(partial(waiter.settle, None))
            # On a loop of its own the outcome may have come in between, as in `result`.
            if not self._settled:
                yield from waiter.__await__()
        return self._outcome()

    def result(self, timeout_s: float | None = None) -> Publication | None:
        """Wait on a thread other than the server's, without a loop; `await` does the same on a loop.

        Raises:
            PublishFailed: as for `await`.
            TimeoutError: not committed within `timeout_s`; it may be later.
            RuntimeError: on the loop's thread, which this would stop for ever.
        """
        if self._settled:
            return self._outcome()
        if self._broadcaster.is_loop_thread():
            raise RuntimeError("result() on the event loop's thread would never return; await the publish instead")
        settled = threading.Event()
        # Appended before the second look, so that either this thread sees the outcome or the loop sees the waiter.
        self.notify(settled.set)
        if not self.is_settled and not settled.wait(timeout_s):
            raise TimeoutError(f"publish to {self.channel} is not committed after {timeout_s} s")
        return self._outcome()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiters)

    @property
    def is_settled(self) -> bool:
        """Whether its outcome is known; always so on volatile channels."""
        return self._settled

    @property
    def publication(self) -> Publication | None:
        """What came of it; None where that is not known yet, it failed, or the channel is volatile."""
        return self._publication

    @property
    def is_failed(self) -> bool:
        """Whether it is known that it was not stored."""
        return self._failure is not None

    def settled_as(self, publication: Publication) -> "Publishing":
        """Return the same publish as one that is settled with `publication`."""
        return Publishing(self._broadcaster, self.channel, self.ticket, self.durable, True, publication)

    def expect(self) -> None:
        """Say that somebody will look at the outcome later, though nobody waits yet: a failure is then not logged."""
        if not self._settled:
            self.notify(_nothing)

    def settle(self, publication: Publication | None, failure: str | None) -> None:
        """Take the outcome and wake who waits; `broadcaster` alone calls this."""
        self._publication = publication
        self._failure = failure
        self._settled = True
        # Read after `_settled` is set: a thread that comes later than this sees that, and one that came before is here.
        waiters = self._waiters
        if failure is not None and not waiters:
            log.warning("publish to %s failed: %s; nobody was waiting for it", self.channel, failure)
        if waiters:
            for wake in waiters:
                wake()
            waiters.clear()

    def notify(self, wake: Callable[[], None]) -> None:
        """Call `wake` once the outcome is known; never where it is known already."""
        # Several threads may begin to wait at once.
        with _BEGINNING:
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(wake)

    def _outcome(self) -> Publication | None:
        if self._failure is not None:
            raise PublishFailed(self._failure, self.channel)
        return self._publication


def _nothing() -> None:
    """What is woken by `settle` where somebody will look later."""
