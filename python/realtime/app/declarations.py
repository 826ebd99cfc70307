"""`Declarations`: what an author registers, checked where it is written, and the `Rules` that the server works by.

Registering collects plain values and starts nothing, so an app can be compiled any number of times. Called by authors
of apps, as methods of `Realtime`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from realtime.base.config import Settings
from realtime.control import listening, middleware, periodic
from realtime.control.broadcaster import RETAIN_LATEST_MAX, Policy
from realtime.control.listening import Listener
from realtime.control.middleware import Middleware
from realtime.control.periodic import Job, checked_period_s
from realtime.control.rules import Authorization, Endpoint, Handler, Hook, Mount, Route, Rules, bind, bind_authorization
from realtime.control.signatures import positional
from realtime.identity.auth import BEARER_PROTOCOL, OWN_CHANNELS, RIGHTS, Pattern, checked_event, checked_rights

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

OWN_COMMANDS: Final = ("history", "ping", "publish", "subscribe", "unsubscribe")
"""Commands that the engine carries out itself."""
_PATH: Final = re.compile(r'/[!"$->@-~]*')
"""What the target of a request can begin with: ASCII that is neither a query nor a fragment."""
_USER_CHANNEL: Final = "user:{session.user}"
_FILES: Final = Policy(pattern=Pattern("file:*"), retain_latest=1, retain_latest_s=86_400)
"""Where a file stands, for who looks at it later; last, so that an app's own pattern goes before."""
_SUBPROTOCOL = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")


class _Declared(Struct):
    """What was registered so far."""

    raws: dict[str, Endpoint] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    relays: dict[str, Mapping[str, object]] = field(default_factory=dict)
    policies: list[Policy] = field(default_factory=list)
    open_grants: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    authorize: list[Authorization] = field(default_factory=list)
    authenticate: list[Handler] = field(default_factory=list)
    on_open: list[Hook] = field(default_factory=list)
    on_close: list[Hook] = field(default_factory=list)
    on_drain: list[Hook] = field(default_factory=list)
    middleware: list[Middleware] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    mounts: dict[str, Mount] = field(default_factory=dict)

    def copy(self) -> "_Declared":
        return _Declared(*(getattr(self, name).copy() for name in self.__struct_fields__))


class Declarations:
    """Handlers, relays, rules of channels, and who may connect, as they were registered so far."""

    def __init__(self, path: str) -> None:
        if not _PATH.fullmatch(path):
            raise ValueError(f"path={path!r} is no path of an endpoint; write one that begins with /, such as /ws")
        self._path = path
        self._declared = _Declared()

    def on(
        self,
        type: str,
        *,
        thread: bool = False,
        right: str | None = None,
        channel: str | None = None,
        failure: str | None = None,
        missing: str | None = None,
    ) -> Callable[[HandlerT], HandlerT]:
        """Register the handler of a type of command: `(session)` or `(session, payload)`.

        A `def` runs on the event loop; one that holds it for more than `handlers.slow_ms` is named in the log. An
        `async def` runs as a task with the time limit `handlers.timeout_s`. What it returns is the `data` of the `ack`,
        if the command had an `id`; a `Publishing` that is returned without being awaited is answered when it is
        committed. It raises `Refused` to answer an `error`; anything else is logged and answered `internal`.

        Args:
            type: as clients send it.
            thread: run a `def` in a thread, where it may block.
            right: the engine lets the command through only with this right on `channel`.
            channel: a template such as `conversation:{data.conversationId}`; goes with `right`. Where a member is
                missing, null, empty or neither a text nor a number, or no name of a channel comes of it, the command is
                answered `invalid_message` with the path of the member, before any hook or handler.
            failure: the message of the `error` where the right is missing, a publish or the handler fails, or time is
                over; the code says why. What the handler refuses by `Refused` it says itself.
            missing: the message of the `error` where a member that `channel` names is missing, null or empty; None
                says `Invalid message format`.

        Raises:
            ValueError: the type is taken, or belongs to the engine; a right without a channel.
            TypeError: the handler's signature or its payload cannot be used; says why.
        """
        if (right is None) != (channel is None):
            raise ValueError(f"{type!r}: right and channel go together; give both or none")
        guard = None if right is None or channel is None else (checked_rights([right])[0], channel)

        def register(handler: HandlerT) -> HandlerT:
            self._check_free(type)
            self._declared.routes[type] = bind(
                type, handler, thread=thread, guard=guard, failure=failure, missing=missing
            )
            return handler

        return register

    def relay(
        self,
        type: str,
        *,
        channel: str,
        event: str,
        data: Mapping[str, object],
        latest_by: str | None = None,
        ends_after_s: float | None = None,
        undo: Mapping[str, object] | None = None,
        ends: str | None = None,
    ) -> None:
        """Let the engine pass a type of command on to a channel, without asking Python.

        Templates insert members of the command's data (`{data.x}`, with its JSON type where it is the whole text) and
        what the server knows (`{session.user}`). The sender needs the right `publish` on the channel.

        Args:
            type: of the command, as clients send it.
            channel: template of the channel.
            event: type of the event that subscribers get; 1 to 128 of `A-Za-z0-9_.:@-`, the first a letter, digit or
                `_`.
            data: template of its data.
            latest_by: template of a key; a newer event of its type takes the place of an older one that a slow reader
                has not got.
            ends_after_s: the event is undone this long after the last one of the same user and channel.
            undo: members of `data` as they are when it ends: by time, by another relay, by unsubscribe or close.
            ends: the type of the relay that this one ends.

        Raises:
            ValueError: the type is taken or belongs to the engine, or `event` is not the name of an event.
        """
        self._check_free(type)
        checked_event(event)
        self._declared.relays[type] = {
            "type": type,
            "channel": channel,
            "event": event,
            "data": dict(data),
            "latest_by": latest_by,
            "ends_after_ms": None if ends_after_s is None else round(ends_after_s * 1000),
            "undo": None if undo is None else dict(undo),
            "ends": ends,
        }

    def raw(
        self, path: str, *, auth: bool = True, compression: bool = True, subprotocols: Sequence[str] = ()
    ) -> Callable[[HandlerT], HandlerT]:
        """Register a path of its own without the envelope: the handler gets `(session, message)`, a `str` or `bytes`.

        Args:
            path: exact, such as `/echo`.
            auth: False lets everybody in, as the user "".
            compression: False agrees to no permessage-deflate: for images, audio and what is compressed already.
            subprotocols: those that the handler speaks, such as `["mqtt"]`, the preferred one first: the first that
                the client offers is agreed to, and is `session.subprotocol`. A client that offers none of them is let
                in without; browsers end such a connection.

        Raises:
            ValueError: the path is taken or does not begin with `/`, or a subprotocol is no token (RFC 6455 §4.1).
        """
        if not _PATH.fullmatch(path) or path == self._path or path in self._declared.raws:
            raise ValueError(f"{path!r} is taken or no path; use another one that begins with /")

        spoken = _checked_subprotocols(subprotocols)

        def register(handler: HandlerT) -> HandlerT:
            who: Literal["token", "none"] = "token" if auth else "none"
            self._declared.raws[path] = Endpoint(path, "raw", who, handler, compression, spoken)
            return handler

        return register

    def mount(self, path: str, asgi_app: Callable[..., Any]) -> None:
        """Serve another ASGI app on the HTTP port, at `path` and below; its lifespan is run with ours.

        Our own routes win, each by its exact path. The app is given `root_path` and the whole `path`, as ASGI says; it
        gets HTTP only, since WebSockets have the edge's own port.

        Args:
            path: such as `/shop`, or `/` for everything that is not ours; the playground then is at `/playground/`.
            asgi_app: of FastAPI, Starlette, Litestar, Django or any other.

        Raises:
            ValueError: the path is taken, or is not one that begins with `/` and does not end with it.
            TypeError: the app cannot be called.
        """
        if not path.startswith("/") or (path != "/" and path.endswith("/")) or "//" in path:
            raise ValueError(f"{path!r} is no path to mount at; use / or one such as /shop")
        if path in self._declared.mounts:
            raise ValueError(f"{path!r} has an app already; use another path")
        if not callable(asgi_app):
            raise TypeError(f"{asgi_app!r} is no ASGI app; pass the app itself, not its name")
        self._declared.mounts[path] = Mount(path, asgi_app)

    def authorize(self, pattern: str) -> Callable[[HandlerT], HandlerT]:
        """Register who decides on channels that no grant covers: `(session, **named parts)` returns a `Grant` or None.

        It is asked once for a session and a channel, then the engine remembers. `def` or `async def`.

        Args:
            pattern: such as `poll:{poll}`; the hook's arguments after the session are the named parts. Each is
                converted to its annotation (`int`, `UUID`, a `Literal`, an `Enum` …); where one cannot be, the command
                is answered `forbidden` and the hook is not called. Without an annotation it is a `str`.

        Raises:
            ValueError: not a pattern.
            TypeError: the hook's arguments are not the session and the named parts, or one is of a type that a text
                cannot be converted to.
        """
        Pattern(pattern)

        def register(hook: HandlerT) -> HandlerT:
            self._declared.authorize.append(bind_authorization(pattern, hook))
            return hook

        return register

    def authenticate(self, hook: HandlerT) -> HandlerT:
        """Register who says who a caller is, in place of tokens: from an `UpgradeRequest` to an `Identity` or None.

        None answers 401, `Refused` with the code `forbidden` or `rate_limited` 403 or 429. `def` or `async def`.

        Raises:
            ValueError: there is one already.
        """
        if self._declared.authenticate:
            raise ValueError("authenticate is taken; an app has one")
        self._declared.authenticate.append(hook)
        return hook

    def on_open(self, hook: HandlerT) -> HandlerT:
        """Call `hook(session)` when a session opened; its commands wait until it is through."""
        self._declared.on_open.append(_hook(hook, 1))
        return hook

    def on_close(self, hook: HandlerT) -> HandlerT:
        """Call `hook(session)` or `hook(session, code)` when a session is gone, after the commands that it sent."""
        self._declared.on_close.append(_hook(hook, 2))
        return hook

    def on_drain(self, hook: HandlerT) -> HandlerT:
        """Call `hook()` when the server begins to go away: connections are still there, new ones are not let in."""
        self._declared.on_drain.append(_hook(hook, 0))
        return hook

    def middleware(self, around: HandlerT) -> HandlerT:
        """Register what runs around every handler of a command: `(call, proceed)`, from a `Call` to the result.

        It hands the call on with `proceed(call)`, returns what the client is to get, or raises `Refused`. The first
        that is registered is the outermost. An `async def` writes `await proceed(call)` and makes every command a task.
        A `def` keeps plain handlers on the loop as they are; around an `async` part `proceed` gives it an awaitable, to
        be returned as it is. What a handler gives back without awaiting, a `Publishing`, is a result. Commands that the
        engine carries out (`subscribe`, relays, …), raw endpoints and payloads that do not fit never come here.

        Raises:
            TypeError: it does not take two arguments.
        """
        self._declared.middleware.append(middleware.bind(around))
        return around

    def listen(self, pattern: str, *types: str) -> Callable[[HandlerT], HandlerT]:
        """Register a listener for events of the channels of a pattern: `(event)`, a `Heard`.

        Each event that this process publishes or relays there is heard once, in its channel's order, `send_message` of
        the built-in conversations included. A `def` is called on the loop; an `async def` one event after the other
        for each channel, channels beside each other. A failure is logged and nobody else is concerned. A listener that
        is slower than its events loses no stored one: it reads them from the channel's history later. What happens
        while the process is down is not heard.

        Args:
            pattern: such as `conversation:*`.
            types: of the events; none means all.

        Raises:
            ValueError: not a pattern.
            TypeError: the listener does not take one argument, or data of a type that cannot be decoded.
        """

        def register(listener: HandlerT) -> HandlerT:
            self._declared.listeners.append(listening.bind(listener, pattern, types))
            return listener

        return register

    def every(self, seconds: float, *, at_start: bool = False, thread: bool = False) -> Callable[[HandlerT], HandlerT]:
        """Call a function without arguments every `seconds` while the app is served, until the drain begins.

        It never overlaps itself: where a call takes longer than the period, the next one begins at the next whole
        period after it. A failure is logged and it goes on. The drain waits for a call under way.

        Args:
            seconds: the period, by the app's clock; tests move it.
            at_start: call it once at the beginning, too.
            thread: run a `def` in a thread, where it may block; otherwise it runs on the loop.

        Raises:
            ValueError: a period under a millisecond.
            TypeError: the function takes arguments, or is async and `thread=True`.
        """
        period_s = checked_period_s(seconds)

        def register(job: HandlerT) -> HandlerT:
            self._declared.jobs.append(periodic.bind(job, period_s, at_start=at_start, thread=thread))
            return job

        return register

    def policy(
        self,
        pattern: str,
        *,
        durable: bool = False,
        history: int = 0,
        overflow: Literal["drop_oldest", "close"] = "drop_oldest",
        keep_s: int | None = None,
        keep_events: int | None = None,
        retain_latest: int = 0,
        retain_latest_s: int = 3600,
    ) -> None:
        """Say what kind of channel the names of a pattern are; the first that matches wins, none means volatile.

        Args:
            pattern: such as `conversation:*`.
            durable: events are stored, numbered and recovered by clients that come back.
            history: events kept in memory.
            overflow: what becomes of volatile events for readers that are too slow.
            keep_s: seconds that an event is kept, in the log or in memory; None keeps it for ever. What is older goes
                within about a minute. A channel in memory goes when it has neither events nor members. The operator's
                `history.retention` has the last word.
            keep_events: how many of the newest events are kept, as `keep_s`; None keeps all.
            retain_latest: of how many keys, at most 1,000, late subscribers get the newest event, right behind their
                confirmation: of what is published with a `key`, or relayed with `latest_by`, and has no offset. Over it
                the key goes that was renewed longest ago. `None` as data says that the key's state is over, and so does
                the end of a relay.
            retain_latest_s: seconds that such an event is true unless it is renewed.

        Raises:
            ValueError: not a pattern; `keep_s` or `keep_events` below 1, or on a channel that keeps nothing;
                `retain_latest` out of its range, or on a channel whose history numbers every event.
        """
        for name, value in (("keep_s", keep_s), ("keep_events", keep_events)):
            if value is None:
                continue
            if value < 1:
                raise ValueError(f"{name}={value}; use 1 or more, or leave it out to keep everything")
            if not durable and history == 0:
                raise ValueError(f"{name}={value} on {pattern!r}, which keeps nothing; set durable or history")
        if not 0 <= retain_latest <= RETAIN_LATEST_MAX:
            raise ValueError(f"retain_latest={retain_latest}; use 0 to {RETAIN_LATEST_MAX} keys")
        if retain_latest_s < 1:
            raise ValueError(f"retain_latest_s={retain_latest_s}; use 1 or more seconds")
        if retain_latest and history and not durable:
            raise ValueError(
                f"retain_latest={retain_latest} on {pattern!r}, whose history numbers every event; leave one out"
            )
        self._declared.policies.append(
            Policy(
                pattern=Pattern(pattern),
                durable=durable,
                history=history,
                overflow=overflow,
                keep_s=keep_s,
                keep_events=keep_events,
                retain_latest=retain_latest,
                retain_latest_s=retain_latest_s,
            )
        )

    def allow(self, pattern: str, *rights: str) -> None:
        """Give every session rights on the channels of a pattern; without `rights`, all of them.

        Args:
            pattern: such as `news:*`; `{session.user}` stands for the session's own user.
            rights: of `subscribe publish presence history`.

        Raises:
            ValueError: not a pattern or a right.
        """
        Pattern(pattern.replace("{session.user}", "*"))
        self._declared.open_grants.append((pattern, checked_rights(rights or RIGHTS)))

    def rules(self, settings: Settings) -> Rules:
        """Return all of it as the server works by it."""
        declared = self._declared
        hook = declared.authenticate[0] if declared.authenticate else None
        who: Literal["token", "hook"] = "token" if hook is None else "hook"
        raws = [replace(raw, auth=who if raw.auth == "token" else "none") for raw in declared.raws.values()]
        return Rules(
            endpoints=(Endpoint(self._path, "json", who), *raws),
            routes=tuple(declared.routes.values()),
            relays=tuple(declared.relays.values()),
            policies=(_own_policy(settings), *declared.policies, _FILES),
            open_grants=(*declared.open_grants, (_USER_CHANNEL, ("subscribe", "history"))),
            authorize=tuple(declared.authorize),
            authenticate=hook,
            on_open=tuple(declared.on_open),
            on_close=tuple(declared.on_close),
            on_drain=tuple(declared.on_drain),
            middleware=tuple(declared.middleware),
            listeners=tuple(declared.listeners),
            jobs=tuple(declared.jobs),
            mounts=tuple(declared.mounts.values()),
        )

    def _check_free(self, type: str) -> None:
        if type in OWN_COMMANDS:
            raise ValueError(f"{type!r} is carried out by the engine; use another type")
        if type in self._declared.routes or type in self._declared.relays:
            raise ValueError(f"{type!r} has a handler or a relay already; use another type")


def _own_policy(settings: Settings) -> Policy:
    """Return the kind of the server's own channels; first, so that no pattern of an app takes them."""
    return Policy(pattern=Pattern(f"{OWN_CHANNELS}**"), durable=True, keep_s=settings.auth.revocations_keep_s)


def _checked_subprotocols(names: Sequence[str]) -> tuple[str, ...]:
    """Return the subprotocols of an endpoint, once each."""
    if isinstance(names, str):
        raise ValueError(f"subprotocols={names!r} is one text; use a list, such as [{names!r}]")  # noqa: TRY004 -- as for any other value
    for name in names:
        # A bearer's entry is the token, and says nothing about messages.
        if not _SUBPROTOCOL.fullmatch(name) or name.startswith(BEARER_PROTOCOL):
            raise ValueError(f"{name!r} is no subprotocol; use a name of letters, digits and -._~ such as mqtt")
    return tuple(dict.fromkeys(names))


def _hook(call: Handler, most: int) -> Hook:
    takes = len(positional(call))
    if takes > most:
        raise TypeError(f"{call!r} takes {takes} arguments; it is given {most}")
    return Hook(call, takes)
