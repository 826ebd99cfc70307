"""From an event of the engine to a handler and back: decode, call, answer, each in its session's order.

`Router` calls what the app's `Rules` name. A plain handler runs where its event is taken, without a task or a future.
Only while something of a session is under way (an `async` handler, a thread, an `authorize` hook that waits) its later
commands wait in a lane, which one task works off; other sessions do not wait. Lanes are short: the engine stops
reading from a session at 64 commands.

What is handed back to the engine (a command with its right granted, or one of the engine's own that came behind others)
holds the lane, too, until the engine says that it has run.

Invariants: every command is answered at most once and gives exactly one credit back; a session's commands are begun
in the order they came; whatever a handler raises ends in an `error` event and never leaves the router. A command that
was taken is carried out even if its connection is gone by then. Called by `control` alone, on the loop's thread.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from time import perf_counter
from types import CoroutineType
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from realtime.base.clock import Clock
from realtime.base.codes import CloseCode
from realtime.base.config import HandlerSettings
from realtime.base.containment import goes_on, in_thread
from realtime.base.deadline import Deadline
from realtime.base.errors import PublishFailed, Refused
from realtime.base.logs import facts, name_slow
from realtime.base.messages import INVALID, ErrorData, ack_frame, error_frame, error_path
from realtime.base.metrics import Figures
from realtime.base.steps import name_step, rest_of, timed
from realtime.control.broadcaster import Broadcaster
from realtime.control.connections import Connections, Session
from realtime.control.lanes import Lanes, Step, Work
from realtime.control.middleware import around
from realtime.control.publishing import Publication, Publishing
from realtime.control.rules import Handler, Hook, Route, Rules
from realtime.identity import Identities, request_of
from realtime.identity.auth import DEEDS, Grant, Identity, InvalidToken

log = logging.getLogger("realtime")

EventTuple: TypeAlias = tuple[Any, ...]

_STATUSES: Final = {"unauthorized": 401, "forbidden": 403, "rate_limited": 429}
_BODIES: Final = {401: "Unauthorized", 403: "Forbidden", 429: "Too Many Requests", 503: "Service Unavailable"}


class _Typed(Struct):
    """The one member of a command that a refusal looks at."""

    type: str


class Router:
    """Calls the handlers of a compiled app for the events of one engine."""

    def __init__(
        self,
        rules: Rules,
        connections: Connections,
        broadcaster: Broadcaster,
        clock: Clock,
        settings: HandlerSettings,
        *,
        identities: Identities,
        handshake_timeout_s: float = 10,
        figures: Figures | None = None,
    ) -> None:
        self._rules = rules
        self._routes = tuple(map(self._with_middleware, rules.routes)) if rules.middleware else rules.routes
        self._connections = connections
        self._find = connections.find
        self.marked_s = 0.0
        """When the last command of a batch ended, or the mark before it was made."""
        self._broadcaster = broadcaster
        self._identities = identities
        self._clock = clock
        self._timeout_s = settings.timeout_s
        self._handshake_timeout_s = handshake_timeout_s
        self._slow_s = settings.slow_ms / 1000
        self._threads_max = settings.threads
        self._threads: ThreadPoolExecutor | None = None
        self._threads_busy = 0
        self._figures = figures or Figures()
        self._histograms = tuple(self._figures.handler(route.type) for route in rules.routes)
        self._lanes = Lanes(connections.wake, self._left)
        self._find_lane = self._lanes.find
        self.spawn = self._lanes.spawn
        """Run work as a task that `finish` waits for."""
        # What waits until the engine has run the command that was handed back to it.
        self._carried: dict[int, asyncio.Future[None]] = {}

    @property
    def busy(self) -> int:
        """How many tasks are under way: at most one a session and one an upgrade, and one that may find nothing."""
        return self._lanes.busy

    @property
    def threads_busy(self) -> int:
        """How many handlers run in threads, which no clock of ours can hurry."""
        return self._threads_busy

    # Events, as the engine hands them over.

    def message(self, event: EventTuple) -> None:
        """A command for a handler."""
        conn = event[1]
        find = self._find
        session = find(conn)
        if session is None:
            return
        # `Lanes.take`, without its calls.
        find_lane = self._find_lane
        lane = find_lane(conn)
        if lane is not None:
            lane.append((self._command_of_lane, event))
            return
        work = self._command(session, event)
        if work is not None:
            self._lanes.open(session, work)
            # What it cost to decode belongs to this command, and to the turn.
            self.mark()

    def mark(self) -> float:
        """Look at the clock and return what it says: from here on, the commands of this batch take time."""
        self.marked_s = now_s = perf_counter()
        return now_s

    def raw(self, event: EventTuple) -> None:
        """A message on a raw endpoint."""
        session = self._connections.by_conn(event[1])
        if session is not None:
            self._lanes.take(session, self._raw, event)

    def authorize(self, event: EventTuple) -> None:
        """A command needs a right that no grant gives."""
        session = self._connections.by_conn(event[1])
        if session is not None:
            self._lanes.take(session, self._authorize, event)

    def deferred(self, event: EventTuple) -> None:
        """A command of the engine's own, which waits for its turn behind those of handlers."""
        session = self._connections.by_conn(event[1])
        if session is not None:
            self._lanes.take(session, self._resume, event)

    def refresh(self, event: EventTuple) -> None:
        """A session wants to go on with a token that the engine cannot judge."""
        session = self._connections.by_conn(event[1])
        if session is not None:
            self._lanes.take(session, self._refresh, event)

    def carried(self, event: EventTuple) -> None:
        """A command that was handed back has run, or has come up again: it is then what came last and goes first."""
        _, conn, comes_again = event
        lane = self._find_lane(conn)
        if comes_again and lane and conn in self._carried:
            lane.appendleft(lane.pop())
        self._let_go(conn)

    def upgrade(self, event: EventTuple) -> None:
        """Somebody asks to be let in by what the engine cannot judge: a hook, a ticket, a key that it does not have."""
        self.spawn(self._authenticate(event))

    def opened(self, session: Session) -> None:
        """A session opened; its commands wait until the hooks are through."""
        if self._rules.on_open:
            self._lanes.take(session, self._hooks, (self._rules.on_open, (session,)))

    def closed(self, session: Session, code: int) -> None:
        """A session closed; the hooks come after the commands that it sent before."""
        self._let_go(session.conn)
        if self._rules.on_close:
            self._lanes.take(session, self._hooks, (self._rules.on_close, (session, code)))

    async def draining(self) -> None:
        """Call the `on_drain` hooks."""
        work = self._hooks(None, (self._rules.on_drain, ()))
        if work is not None:
            await work

    async def settled(self, timeout_s: float) -> None:
        """Wait until what is under way now has ended, at most `timeout_s`. Commands that come meanwhile are begun."""
        await self._lanes.settled(timeout_s)

    async def finish(self, timeout_s: float) -> int:
        """Wait until nothing is under way; after `timeout_s` cancel the rest, whose commands answer `draining`.

        Returns:
            How many tasks were cancelled.
        """
        return await self._lanes.finish(timeout_s)

    def stop(self) -> None:
        """Let the threads go, without waiting for handlers that still run in them."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _with_middleware(self, route: Route) -> Route:
        takes_payload = route.payload is not None
        layers = self._rules.middleware
        call, runs = around(route.handler, route.type, route.runs, layers, self.in_thread, takes_payload=takes_payload)
        return msgspec.structs.replace(route, handler=call, runs=runs)

    # Steps. Each answers for itself what goes wrong in it, and gives its credit back.

    def _command(self, session: Session, event: EventTuple) -> Work | None:
        _, conn, index, id, data, _ = event
        route = self._routes[index]
        handler, payload = route.handler, route.payload
        try:
            if payload is None:
                if route.runs != "inline":
                    return self._command_later(session, route, index, id, (session,))
                result = handler(session)
            else:
                decode = payload.decode
                try:
                    argument = decode(payload.absent if data is None or data == b"null" else data)
                except msgspec.ValidationError as error:
                    if data is None:
                        raise
                    argument = payload.again(data, error)
                if route.runs != "inline":
                    return self._command_later(session, route, index, id, (session, argument))
                result = handler(session, argument)
            if not isinstance(result, Publishing):
                self._answer(conn, id, result)
            elif not self._broadcaster.answer(result, conn, id, route.failure):
                if result.durable:
                    return self._answer_later(session, route, index, id, result)
                self._answer(conn, id, None)
        except Refused as refusal:
            self._refuse(conn, id, _as_told(refusal, route))
        except msgspec.DecodeError as error:
            self._refuse(conn, id, Refused("invalid_message", INVALID, path=error_path(error)))
        except BaseException as error:
            if goes_on(error, awaited=False):
                raise
            self._fail(session, route, id, error)
        # One look at the clock a command: where one ends the next one of the batch begins.
        now_s = perf_counter()
        took_s = now_s - self.marked_s
        self.marked_s = now_s
        self._histograms[index].observe(took_s)
        if took_s > self._slow_s:
            name_slow(f"handler of {route.type!r}", took_s)
        return None

    def _command_of_lane(self, session: Session, event: EventTuple) -> Work | None:
        self.mark()
        return self._command(session, event)

    def _left(self, session: Session, step: Step, subject: Any) -> None:
        """Take what was never begun: only at the end of the server is a lane left before it is worked off."""
        if step == self._command_of_lane:
            self._refuse(session.conn, subject[3], _draining(self._routes[subject[2]]))

    def _command_later(
        self, session: Session, route: Route, index: int, id: bytes | None, arguments: tuple[Any, ...]
    ) -> Work:
        if route.runs == "thread":
            return self._answer_later(session, route, index, id, self.in_thread(route.handler, arguments))
        return self._answer_later(session, route, index, id, route.handler(*arguments))

    async def _answer_later(
        self, session: Session, route: Route, index: int, id: bytes | None, result: Awaitable[Any]
    ) -> None:
        conn = session.conn
        started_s = perf_counter()
        deadline = Deadline(self._clock, self._timeout_s)
        try:
            # What never waits needs no time limit and no task of its own, but a context of its own.
            if isinstance(result, CoroutineType) and route.runs == "task":
                context = copy_context()
                try:
                    try:
                        waits_for = context.run(result.send, None)
                    finally:
                        if (took_s := perf_counter() - started_s) > self._slow_s:
                            name_step(f"handler of {route.type!r}", took_s)
                except StopIteration as end:
                    value = end.value
                else:
                    deadline.arm()
                    value = await rest_of(result, waits_for, context, f"handler of {route.type!r}", self._slow_s)
            else:
                deadline.arm()
                value = await result
            if isinstance(value, Publishing):
                if self._broadcaster.answer(value, conn, id, route.failure):
                    return
                if value.durable:
                    deadline.arm()
                    value = await value
            self._answer(conn, id, value)
        except Refused as refusal:
            self._refuse(conn, id, _as_told(refusal, route))
        except BaseException as error:
            if not self._is_failure(session, route, id, error, deadline):
                raise
        finally:
            deadline.end()
            self._histograms[index].observe(perf_counter() - started_s)

    def _is_failure(
        self, session: Session, route: Route, id: bytes | None, error: BaseException, deadline: Deadline
    ) -> bool:
        """Answer a command whose handler was cut off or raised. Returns False where the exception goes on."""
        if deadline.cut(error):
            whose = facts("timeout", session=session.id, user=session.user, type=route.type)
            log.warning("handler of %r took longer than %g s", route.type, self._timeout_s, extra=whose)
            self._refuse(session.conn, id, Refused("timeout", route.failure or "Timed out"))
        elif goes_on(error):
            self._refuse(session.conn, id, _draining(route))
            return False
        else:
            self._fail(session, route, id, error)
        return True

    def _raw(self, session: Session, event: EventTuple) -> Work | None:
        _, conn, message = event
        handler = self._rules.endpoints[session.endpoint].handler
        if handler is None:
            self._connections.done(conn)
            return None
        started_s = perf_counter()
        try:
            result = handler(session, message)
        except BaseException as error:
            if goes_on(error, awaited=False):
                raise
            self._fail_raw(session, error)
            result = None
        if inspect.isawaitable(result):
            path = self._rules.endpoints[session.endpoint].path
            return self._raw_later(session, timed(result, f"handler of {path!r}", self._slow_s))
        self._connections.done(conn)
        if (took_s := perf_counter() - started_s) > self._slow_s:
            name_slow(f"handler of {self._rules.endpoints[session.endpoint].path!r}", took_s)
        return None

    async def _raw_later(self, session: Session, result: Awaitable[object]) -> None:
        deadline = Deadline(self._clock, self._timeout_s).arm()
        try:
            await result
        except BaseException as error:
            if deadline.cut(error):
                whose = facts("timeout", session=session.id, user=session.user)
                log.warning("raw handler took longer than %g s", self._timeout_s, extra=whose)
            elif goes_on(error):
                raise
            else:
                self._fail_raw(session, error)
        finally:
            deadline.end()
            self._connections.done(session.conn)

    def _authorize(self, session: Session, event: EventTuple) -> Work | None:
        authorization = self._rules.authorize[event[2]]
        try:
            arguments = authorization.arguments(event[3])
            # A channel whose name the hook cannot read is nobody's.
            decision = None if arguments is None else authorization.hook(session, **arguments)
            if inspect.isawaitable(decision):
                return self._authorize_later(session, event, decision)
            return self._decide(session, event, decision)
        except Refused as refusal:
            self._refuse(session.conn, event[5], refusal, event[3])
        except BaseException as error:
            if goes_on(error, awaited=False):
                raise
            self._fail_authorize(session, event, error)
        return None

    async def _authorize_later(self, session: Session, event: EventTuple, decision: Awaitable[Grant | None]) -> None:
        deadline = Deadline(self._clock, self._timeout_s).arm()
        carried = None
        try:
            carried = self._decide(session, event, await decision)
        except Refused as refusal:
            self._refuse(session.conn, event[5], refusal, event[3])
        except BaseException as error:
            if deadline.cut(error):
                self._refuse(session.conn, event[5], Refused("timeout", "Timed out"), event[3])
            elif goes_on(error):
                self._refuse(session.conn, event[5], _draining(), event[3])
                raise
            else:
                self._fail_authorize(session, event, error)
        finally:
            deadline.end()
        if carried is not None:
            self._connections.wake()
            await carried

    def _decide(self, session: Session, event: EventTuple, grant: Grant | None) -> Work | None:
        _, conn, _, channel, right, id, raw = event
        if grant is not None and not isinstance(grant, Grant):
            raise TypeError(f"an authorize hook returned {grant!r}; return a Grant, or None")
        if grant is not None and right in grant.rights:
            self._connections.grant(conn, channel, list(grant.rights), raw)
            return self._until_carried(session)
        self._refuse(conn, id, Refused("forbidden", self._forbidden(right, raw)), channel)
        return None

    def _forbidden(self, right: str, raw: bytes) -> str:
        """Say what the engine says where nobody is asked; a command may have words of its own."""
        type = msgspec.json.decode(raw, type=_Typed).type
        route = next((route for route in self._routes if route.type == type), None)
        return (route and route.failure) or f"Not allowed to {DEEDS[right]} on this channel"

    async def _refresh(self, session: Session, event: EventTuple) -> None:
        _, conn, id, token = event
        deadline = Deadline(self._clock, self._handshake_timeout_s).arm()
        try:
            path = self._rules.endpoints[session.endpoint].path
            facts = _facts(await self._identities.identify_renewal(token, path, session.id))
        except InvalidToken as error:
            refused = _refused_token(error)
        except Refused as refusal:
            refused = refusal
        except BaseException as error:
            if deadline.cut(error):
                log.warning("a refresh took longer than %g s; session %s", self._handshake_timeout_s, session.id)
                refused = Refused("timeout", "Timed out")
            elif goes_on(error):
                self._refuse(conn, id, _draining())
                raise
            else:
                log.exception("authenticate failed; session %s of user %r goes on as it was", session.id, session.user)
                refused = Refused("internal", "Internal error")
        else:
            self._connections.renew(conn, id, *facts)
            return
        finally:
            deadline.end()
        self._refuse(conn, id, refused)

    def _resume(self, session: Session, event: EventTuple) -> Work | None:
        self._connections.resume(session.conn, event[2])
        return self._until_carried(session)

    def _until_carried(self, session: Session) -> Work | None:
        """Hold the lane until the engine has run what was just handed back, so that what follows comes after it.

        A shard runs it, while what Python publishes meanwhile reaches the channel at once: a command behind a
        subscribe would publish before there is a subscriber. A connection that is gone runs nothing.
        """
        if not session.is_open:
            return None
        self._carried[session.conn] = future = asyncio.get_running_loop().create_future()
        return _finished(future)

    def _let_go(self, conn: int) -> None:
        future = self._carried.pop(conn, None)
        if future is not None and not future.done():
            future.set_result(None)

    def _hooks(self, session: Session | None, subject: tuple[tuple[Hook, ...], tuple[Any, ...]]) -> Work | None:
        hooks, arguments = subject
        for index, hook in enumerate(hooks):
            try:
                result = hook.call(*arguments[: hook.takes])
            except BaseException as error:
                if goes_on(error, awaited=False):
                    raise
                self._fail_hook(hook, session, error)
                continue
            if inspect.isawaitable(result):
                return self._hooks_later(session, result, hooks[index:], arguments)
        return None

    async def _hooks_later(
        self, session: Session | None, result: Awaitable[object], hooks: tuple[Hook, ...], arguments: tuple[Any, ...]
    ) -> None:
        deadline = Deadline(self._clock, self._timeout_s).arm()
        try:
            await result
        except BaseException as error:
            if deadline.cut(error):
                log.warning("%s took longer than %g s", hooks[0].call, self._timeout_s)
            elif goes_on(error):
                raise
            else:
                self._fail_hook(hooks[0], session, error)
        finally:
            deadline.end()
        rest = self._hooks(session, (hooks[1:], arguments))
        if rest is not None:
            await rest

    async def _authenticate(self, event: EventTuple) -> None:
        _, conn, _, path, query, headers, peer = event
        status = 503
        how: tuple[int, ...] = ()
        deadline = Deadline(self._clock, self._handshake_timeout_s).arm()
        try:
            identity = await self._identities.identify_upgrade(request_of(path, query, headers, peer))
            if identity.user:
                self._connections.accept(conn, *_facts(identity))
                return
            status = 401
        except InvalidToken as error:
            status = 401
            if error.retry_after_ms is not None:
                how = (CloseCode.BUSY, error.retry_after_ms)
            elif error.reason == "expired":
                how = (CloseCode.TOKEN_EXPIRED,)
        except Refused as refusal:
            status = _STATUSES.get(refusal.code, 503)
        except BaseException as error:
            if deadline.cut(error):
                told = facts("timeout", peer=peer)
                log.warning("authenticate took longer than %g s", self._handshake_timeout_s, extra=told)
            elif goes_on(error):
                raise
            else:
                log.exception("authenticate failed", extra=facts("error", peer=peer))
        finally:
            deadline.end()
            self._connections.wake()
        self._connections.reject(conn, status, _BODIES[status], *how)
        self._connections.wake()

    async def in_thread(self, handler: Handler, arguments: tuple[Any, ...]) -> Any:
        """Call a function in a thread of the handlers' pool."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._threads_max, "realtime-handler")
        self._threads_busy += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, in_thread, handler, arguments)
        finally:
            self._threads_busy -= 1

    # Answers. Each gives one credit back.

    def _answer(self, conn: int, id: bytes | None, result: Any) -> None:
        if id is None:
            self._connections.done(conn)
            return
        if isinstance(result, Publication):
            result = result.data
        elif isinstance(result, Publishing):
            # Of a volatile channel: there is nothing to wait for and nothing to tell.
            result = None
        self._connections.send_text(conn, ack_frame(result, self._clock.timestamp(), id), 1)

    def _refuse(self, conn: int, id: bytes | None, refusal: Refused, channel: str | None = None) -> None:
        self._figures.error(refusal.code)
        error = ErrorData(
            refusal.message, refusal.code, refusal.retryable, refusal.path, channel, refusal.retry_after_ms
        )
        self._connections.send_text(conn, error_frame(error, self._clock.timestamp(), id), 1)

    def _fail(self, session: Session, route: Route, id: bytes | None, error: BaseException) -> None:
        _failed(f"handler of {route.type!r}", session, error, type=route.type)
        self._refuse(session.conn, id, Refused("internal", route.failure or "Internal error"))

    def _fail_authorize(self, session: Session, event: EventTuple, error: BaseException) -> None:
        _failed(f"authorize on {event[3]}", session, error, channel=event[3])
        self._refuse(session.conn, event[5], Refused("internal", "Internal error"), event[3])

    def _fail_raw(self, session: Session, error: BaseException) -> None:
        path = self._rules.endpoints[session.endpoint].path
        _failed(f"handler of {path!r}", session, error, endpoint=path)

    def _fail_hook(self, hook: Hook, session: Session | None, error: BaseException) -> None:
        _failed(getattr(hook.call, "__qualname__", str(hook.call)), session, error)


def _failed(what: str, session: Session | None, error: BaseException, **values: object) -> None:
    whose = {} if session is None else {"session": session.id, "user": session.user}
    log.error("%s failed", what, exc_info=error, extra=facts("error", **whose, **values))


async def _finished(future: asyncio.Future[None]) -> None:
    await future


def _draining(route: Route | None = None) -> Refused:
    return Refused("draining", (route and route.failure) or "Server is going away")


def _as_told(refusal: Refused, route: Route) -> Refused:
    """Give a failed publish the message that the command has for it."""
    if isinstance(refusal, PublishFailed) and route.failure is not None:
        return Refused(refusal.code, route.failure, retry_after_ms=refusal.retry_after_ms)
    return refusal


def _refused_token(error: InvalidToken) -> Refused:
    """Return what a session is told whose `refresh` brought a token that is refused."""
    if error.retry_after_ms is not None:
        return Refused("unavailable", "The key of the token is not known yet", retry_after_ms=error.retry_after_ms)
    if error.reason == "expired":
        return Refused("unauthorized", "The token has expired; fetch a new one")
    return Refused("unauthorized", "Unauthorized")


def _facts(identity: Identity) -> tuple[str, bytes | None, int | None, int | None, str | None]:
    """Return what the engine is told of somebody, in the order in which `accept` and `renew` take it."""
    grants = None if identity.grants is None else msgspec.json.encode(identity.grants)
    expires_at_ms = None if identity.expires_at is None else round(identity.expires_at * 1000)
    return identity.user, grants, expires_at_ms, identity.issued_at_s, identity.token_id
