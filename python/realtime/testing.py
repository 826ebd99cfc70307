"""Tests of an app without a port, a token or a wait: the real server over an engine without sockets.

    async with TestApp(app) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        await bob.send("subscribe", channel="conversation:1")
        await alice.ack("send_message", conversation_id="1", content="hi")
        await bob.expect("new_message", content="hi")
        bob.refute("lag")
        t.clock.advance(6)

What runs is `control.Control` with the app's own rules over `VirtualEngine`: the same hub and log as in production, in
memory, stepped by hand. Each call here steps it and the event loop until nothing moves, so a test never sleeps. Time
stands until `clock.advance`: timers of the engine (heartbeats, typing) and of Python (presence, time limits) go by it,
and so do those that the app asks of the event loop (`asyncio.sleep`, `asyncio.timeout`) in handlers, hooks, jobs,
listeners and tasks. A test that waits for what a handler does (`ack`, `expect`) moves time on to where that goes on, so
a handler that sleeps costs no real time. Names are snake_case here and camelCase on the wire, as everywhere.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from realtime._engine import VirtualEngine
from realtime.base import forks
from realtime.base.clock import ManualClock
from realtime.base.codes import CloseCode
from realtime.base.config import Keys, Settings
from realtime.base.loop_time import LoopTime
from realtime.base.messages import camel, encode
from realtime.control.connections import Session
from realtime.control.control import Control
from realtime.control.rules import Rules
from realtime.identity import token_for
from realtime.identity.auth import RIGHTS, checked_grants
from realtime.serving.options import engine_options
from realtime.serving.server import Application

_SECRET: Final = "a secret that only tests use, 32 bytes and more"  # noqa: S105 -- it opens nothing
_START_MS: Final = 1_767_268_800_000
"""2026-01-01T12:00:00Z."""
_SLICE_MS: Final = 250
_ROUNDS_MAX: Final = 100_000
_END_ROUNDS: Final = 20_000
_THREADS_WAIT_S: Final = 5.0
_QUIET_S: Final = 0.25
"""Real seconds without a change after which nothing is expected of an app's sockets and threads."""
_FOLLOWED_S: Final = 10.0


class NotLetIn(Exception):  # noqa: N818 -- what happened to the client
    """A connection was not let in: `code` is an HTTP status, or a close code where the client speaks `realtime.v1`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Frame(Struct, rename="camel", frozen=True):
    """One event as a client received it. `raw` is its text."""

    type: str
    data: Any = None
    timestamp: str | None = None
    channel: str | None = None
    offset: int | None = None
    conversation_id: str | None = None
    user_id: str | None = None
    id: str | int | None = None
    raw: str = ""


class TestClock:
    """The time of a test: the engine's and Python's together."""

    __test__ = False

    def __init__(self, test: "TestApp", clock: ManualClock) -> None:
        self._test = test
        self._clock = clock

    def now_ms(self) -> int:
        """Return the wall clock of this world, in ms."""
        return self._clock.now_ms()

    def advance(self, seconds: float) -> None:
        """Move time on; every timer that falls due runs at its time, and what it leads to is carried out."""
        target_ms = self._clock.now_ms() + round(seconds * 1000)
        while (now_ms := self._clock.now_ms()) < target_ms:
            due_ms = self._clock.next_ms()
            step_ms = min(target_ms, now_ms + _SLICE_MS, max(now_ms + 1, due_ms or target_ms)) - now_ms
            self._test.engine.advance(step_ms)
            with self._test.loop_time.of_app():
                self._clock.advance_to(now_ms + step_ms)
            self._test.pump()

    def advance_to_next(self) -> bool:
        """Move time on to where the next timer of Python's falls due; False where there is none."""
        due_ms = self._clock.next_ms()
        if due_ms is None:
            return False
        self.advance(max(1, due_ms - self._clock.now_ms()) / 1000)
        return True


class Peer:
    """One client of a test. `frames` holds what it received and no `expect` has taken yet, oldest first."""

    def __init__(self, test: "TestApp", link: int) -> None:
        self.frames: list[Frame] = []
        self.messages: list[str | bytes] = []
        """What came on a raw endpoint."""
        self.closed: tuple[int, str] | None = None
        """The close code and reason; 1006 where the link just ended."""
        self.status: tuple[int, str] | None = None
        """The HTTP answer, where it was not let in."""
        self.is_raw = False
        self._test = test
        self._link = link
        self._next_id = 0

    @property
    def session(self) -> Session:
        """The session as handlers see it.

        Raises:
            LookupError: the connection is not open.
        """
        conn = self._test.engine.conn_of_link(self._link)
        session = None if conn is None else self._test.control.connections.by_conn(conn)
        if session is None:
            raise LookupError("the connection is not open")
        return session

    # What the client does.

    async def send(self, type: str, /, **data: object) -> None:
        """Send a command without an `id`; without members it has no `data`."""
        await self.send_text(encode(_command(type, data)).decode())

    async def send_text(self, payload: str) -> None:
        """Send a text message as it is."""
        self._test.engine.client_send(self._link, payload)
        await self._test.settle()

    async def send_binary(self, payload: bytes) -> None:
        """Send a binary message as it is."""
        self._test.engine.client_send(self._link, payload)
        await self._test.settle()

    async def command(self, type: str, /, **data: object) -> Frame:
        """Send a command with an `id` and return what answers it: its own reply, an `ack` or an `error`.

        Raises:
            AssertionError: nothing answered.
        """
        self._next_id += 1
        number = self._next_id
        await self.send_text(encode(_command(type, data) | {"id": number}).decode())
        return await self._taken(lambda frame: frame.id == number, f"an answer to {type}")

    async def ack(self, type: str, /, **data: object) -> Any:
        """Send a command with an `id`, demand an `ack` and return its `data`.

        Raises:
            AssertionError: something else answered, or nothing.
        """
        frame = await self.command(type, **data)
        if frame.type != "ack":
            raise AssertionError(f"{type} was answered by {frame.raw}")
        return frame.data

    async def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Say goodbye."""
        self._test.engine.client_close(self._link, code, reason)
        await self._test.settle()

    def drop(self) -> None:
        """Cut the link, as a lost network does."""
        self._test.engine.client_drop(self._link)
        self.closed = self.closed or (CloseCode.ABNORMAL, "")
        self._test.pump()

    def slow(self, bytes_per_s: int | None) -> None:
        """Read at most so much a second from now on: 0 nothing, None everything at once."""
        self._test.engine.client_reads(self._link, bytes_per_s)
        self._test.pump()

    # What it sees.

    async def expect(self, type: str, /, **data: object) -> Frame:
        """Take the oldest event of a type whose `data` has these members, and return it.

        Raises:
            AssertionError: there is none; says what came instead.
        """
        wanted = _wire(data)
        what = f"{type} {encode(wanted).decode()}" if wanted else type
        return await self._taken(lambda frame: frame.type == type and (not wanted or _covers(wanted, frame.data)), what)

    def refute(self, type: str, /, **data: object) -> None:
        """Demand that no event of a type whose `data` has these members has come and was not taken.

        Raises:
            AssertionError: there is one.
        """
        self._test.pump()
        wanted = _wire(data)
        for frame in self.frames:
            if frame.type == type and (not wanted or _covers(wanted, frame.data)):
                raise AssertionError(f"there is {frame.raw}")

    async def expect_message(self, message: str | bytes) -> None:
        """Take the oldest message of a raw endpoint and demand that it is this one.

        Raises:
            AssertionError: it is another, or there is none.
        """
        if not await self._test.until(lambda: bool(self.messages)) or self.messages[0] != message:
            raise AssertionError(f"no message {message!r}; received: {self.messages[:10]}")
        del self.messages[0]

    async def expect_closed(self, code: int) -> str:
        """Demand that the connection was closed with `code` and return the reason.

        Raises:
            AssertionError: it is open, or closed otherwise.
        """
        if not await self._test.until(lambda: self.closed is not None) or self.closed is None or self.closed[0] != code:
            raise AssertionError(f"not closed with {code}; closed: {self.closed}")
        return self.closed[1]

    def refute_closed(self) -> None:
        """Demand that the connection is open.

        Raises:
            AssertionError: it is closed.
        """
        self._test.pump()
        if self.closed is not None:
            raise AssertionError(f"closed with {self.closed}")

    async def _taken(self, matches: Any, what: str) -> Frame:
        if await self._test.until(lambda: any(map(matches, self.frames))):
            frame = next(frame for frame in self.frames if matches(frame))
            self.frames.remove(frame)
            return frame
        received = "\n  ".join(frame.raw for frame in self.frames) or "nothing"
        raise AssertionError(f"no {what}; closed: {self.closed}; received and not taken:\n  {received}")

    def collect(self) -> None:
        """Take what arrived; `TestApp` calls this."""
        for kind, value in self._test.engine.client_receive(self._link):
            match kind, value:
                case "text", str() if not self.is_raw:
                    self.frames.append(msgspec.structs.replace(_decode(value), raw=value))
                case (("text" | "binary"), str() | bytes()):
                    self.messages.append(value)
                case "close", (int() as code, str() as reason):
                    self.closed = self.closed or (code, reason)
                case "http", (int() as status, str() as body):
                    self.status = (status, body)
                case _:
                    self.closed = self.closed or (CloseCode.ABNORMAL, "")


class _PumpedControl(Control):
    """A `Control` whose engine moves by itself once something was submitted from outside of a pump."""

    def __init__(self, test: "TestApp", rules: Rules, clock: ManualClock) -> None:
        self._test = test
        super().__init__(rules, test.settings, test.keys, test.engine, clock)

    def wake(self) -> None:
        """See `Control.wake`."""
        super().wake()
        self._test.pump_soon()


class TestApp:
    """An app that is served to clients of a test: `async with TestApp(app) as t`.

    Args:
        app: what is tested.
        settings: the configuration; nothing of `realtime.toml` or the environment is read.
        now_ms: where the wall clock stands at first.
    """

    __test__ = False

    def __init__(self, app: Application, settings: Settings | None = None, now_ms: int = _START_MS) -> None:
        self.settings = settings or Settings()
        self.keys = Keys(self.settings.auth.secrets or (_SECRET,), generated=True)
        self._app = app
        self._rules = app.compile(self.settings)
        self._clock = ManualClock(now_ms)
        self.engine = VirtualEngine(engine_options(self._rules, self.settings, self.keys, in_memory=True), now_ms)
        self.clock = TestClock(self, self._clock)
        self.loop_time = LoopTime(self._clock)
        self._control: Control | None = None
        self._peers: list[Peer] = []
        self._stack = AsyncExitStack()
        self._pump_due = False
        self._severed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def control(self) -> Control:
        """The server's Python half: connections, broadcaster, presence.

        Raises:
            RuntimeError: outside of `async with`.
        """
        if self._control is None:
            raise RuntimeError("the test has not begun; use async with")
        return self._control

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.loop_time.begin()
            stack.callback(self.loop_time.end)
            # What it awaits itself takes its real time; tasks that it makes belong to the app.
            with self.loop_time.of_app(runs=False):
                await stack.enter_async_context(self._app.resources())
            forks.serves()
            stack.enter_context(forks.severed(self._sever))
            self._control = _PumpedControl(self, self._rules, self._clock)
            self._app.running(self._control)
            self._loop = asyncio.get_running_loop()
            await self._control.identities.start()
            with self.loop_time.of_app():
                self._control.start()
                self._control.jobs.start()
            stack.push_async_callback(self._end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._severed:
            forks.end(error)
        await self._stack.__aexit__(kind, error, traceback)

    def _sever(self) -> None:
        """Let go of the engine in a forked child, as a server does."""
        self._severed = True
        self._app.running(None)
        if self._control is not None:
            self._control.sever()

    async def connect(
        self,
        user: str | None = None,
        *,
        token: str | None = None,
        path: str | None = None,
        grants: Mapping[str, Sequence[str]] | None = None,
        first_version: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Peer:
        """Connect one client and return it once it is let in.

        Args:
            user: who it is, without a token or a hook.
            token: where no `user` is given, what it shows; None shows nothing, for `authenticate` hooks.
            path: the endpoint, with its query; None takes the JSON endpoint.
            grants: rights by pattern, as a token's `channels`; goes with `user`.
            first_version: it offers no subprotocol; else `realtime.v1`, or those of the raw endpoint.
            headers: of the upgrade request; goes without `user`.

        Raises:
            NotLetIn: with the HTTP status or, where it offered a subprotocol, the close code.
            LookupError: no endpoint has that path.
        """
        path = self._rules.endpoints[0].path if path is None else path
        bare, _, query = path.partition("?")
        index = next((i for i, endpoint in enumerate(self._rules.endpoints) if endpoint.path == bare), None)
        if user is not None:
            if index is None:
                raise LookupError(f"no endpoint has the path {bare}")
            rights = None if grants is None else encode(checked_grants(grants))
            link = self.engine.connect_as(index, user, rights, first_version)
        else:
            if token is not None:
                path = f"{bare}?{query}&token={token}" if query else f"{bare}?token={token}"
            spoken = (
                ("realtime.v1",) if index is None else self._rules.endpoints[index].subprotocols or ("realtime.v1",)
            )
            offered = [] if first_version else [("Sec-WebSocket-Protocol", ", ".join(spoken))]
            link = self.engine.connect(path, [*offered, *headers])
        peer = Peer(self, link)
        peer.is_raw = index is not None and self._rules.endpoints[index].mode == "raw"
        self._peers.append(peer)
        await self.until(lambda: self.engine.conn_of_link(link) is not None or bool(peer.status or peer.closed))
        if refusal := peer.status or peer.closed:
            raise NotLetIn(*refusal)
        return peer

    def token(
        self, user: str, channels: Mapping[str, Sequence[str]] | Iterable[str] | None = None, ttl_s: float = 3600
    ) -> str:
        """Return a token of this world, which expires by its clock."""
        by_pattern = channels if channels is None or isinstance(channels, Mapping) else dict.fromkeys(channels, RIGHTS)
        return token_for(
            user, self.settings.auth, self.keys, ttl_s=ttl_s, channels=by_pattern, now_s=self._clock.now_ms() / 1000
        )

    def pump_soon(self) -> None:
        """Pump once the loop gets round to it, so that whoever awaits a publish gets its outcome. From any thread."""
        if self._loop is not None and not self._pump_due:
            self._pump_due = True
            self._loop.call_soon_threadsafe(self._pump_if_open)

    def _pump_if_open(self) -> None:
        if self._loop is not None:
            self.pump()

    def pump(self) -> None:
        """Run the engine and the plain handlers until nothing moves. Tasks run in `settle`."""
        self._pump_due = False
        with self.loop_time.of_app():
            for _ in range(_ROUNDS_MAX):
                self.control.submit()
                stepped = self.engine.step()
                if not self.control.turn() and not stepped:
                    break
            else:
                raise RuntimeError(f"still moving after {_ROUNDS_MAX} rounds; does a handler answer itself?")
        for peer in self._peers:
            peer.collect()

    async def settle(self) -> None:
        """Run the engine, the handlers and their tasks until nothing moves; threads are waited for.

        Raises:
            RuntimeError: something moves on without end.
        """
        if not await self._settles(_ROUNDS_MAX):
            raise RuntimeError(f"still moving after {_ROUNDS_MAX} rounds; is there a handler or a task without end?")

    async def _settles(self, rounds: int) -> bool:
        """Settle; False where after so many rounds something still moves."""
        give_up_s = time.monotonic() + _THREADS_WAIT_S
        idle = 0
        while idle < 4:
            before = self._progress()
            self.pump()
            await asyncio.sleep(0)
            idle = idle + 1 if self._progress() == before else 0
            if self.control.router.threads_busy and time.monotonic() < give_up_s:
                await asyncio.sleep(0.001)
                idle = 0
                continue
            rounds -= 1
            if not rounds:
                return False
        return True

    async def until(self, condition: Any, timeout_s: float = 1.0) -> bool:
        """Settle until `condition()`, and move time on where a handler waits for it. Returns whether it came true.

        Args:
            condition: what is waited for.
            timeout_s: real seconds; they pass only while a handler waits for something else than time.
        """
        began_s = time.monotonic()
        give_up_s = began_s + timeout_s
        while True:
            await self.settle()
            if condition():
                return True
            if not self.control.router.busy or time.monotonic() > give_up_s:
                return False
            if self.loop_time.is_waited_for and await self._is_idle():
                self.clock.advance_to_next()
                # What that took is no wait; yet a handler that sleeps again and again is not followed for ever.
                give_up_s = min(time.monotonic(), began_s + _FOLLOWED_S) + timeout_s
            else:
                await asyncio.sleep(0.001)

    async def _is_idle(self) -> bool:
        """Whether nothing but time moves the app on; a socket or a thread of its is given some real time to."""
        if self.loop_time.is_alone():
            return True
        give_up_s = time.monotonic() + _QUIET_S
        before = self._progress()
        while time.monotonic() < give_up_s:
            await asyncio.sleep(0.001)
            self.pump()
            if self._progress() != before:
                return False
        return True

    async def _carried_out(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` of the server's to its end, and move time on wherever it waits."""
        with self.loop_time.of_app():
            task = asyncio.get_running_loop().create_task(work)
        while not task.done():
            if not await self._settles(_END_ROUNDS):
                # A handler without end is cut off as a server cuts it off: when the time that it is given is over.
                self.clock.advance_to_next()
            elif not task.done() and not (await self._is_idle() and self.clock.advance_to_next()):
                await asyncio.sleep(0.001)
        task.result()

    def _progress(self) -> tuple[int, ...]:
        router = self.control.router
        received = sum(len(peer.frames) + len(peer.messages) for peer in self._peers)
        spawned = len(self.control.connections.tasks)
        return (router.busy, router.threads_busy, spawned, self.control.broadcaster.waiting, received)

    async def _end(self) -> None:
        control = self.control
        self.engine.announce_drain(round(self.settings.drain.window_s * 1000))
        await self._carried_out(control.draining())
        await self._carried_out(control.finish(self.settings.drain.grace_s))
        await self.settle()
        self.engine.close_all(CloseCode.SERVICE_RESTART, "server restarting")
        await self.settle()
        for peer in self._peers:
            peer.drop()
        await self._carried_out(control.finish(self.settings.drain.grace_s))
        self._app.running(None)
        self._loop = None
        await control.close()


def _command(type: str, data: Mapping[str, object]) -> dict[str, object]:
    return {"type": type, "data": _wire(data)} if data else {"type": type}


def _wire(data: Mapping[str, object]) -> dict[str, object]:
    return {camel(name): value for name, value in data.items()}


def _covers(wanted: object, found: object) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            name in found and _covers(value, found[name]) for name, value in wanted.items()
        )
    return bool(wanted == found)


def _decode(text: str) -> Frame:
    return msgspec.json.decode(text, type=Frame)
