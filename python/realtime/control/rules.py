"""An app, compiled: what the engine is told as plain data, and what Python calls for the rest.

`Rules` is made by `app.Realtime.compile`, handed to the engine by `options.engine_options` and worked by
`routing.Router`. Everything that can be known of a handler is found out when it is registered, by `bind`, so that
nothing is looked at twice for a message. The indices of `endpoints`, `routes` and `authorize` are those that the
engine's events carry.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from realtime.base.messages import Payload, check_names, check_text_type
from realtime.control.broadcaster import Policy
from realtime.control.listening import Listener
from realtime.control.middleware import Middleware
from realtime.control.periodic import Job
from realtime.control.publishing import Publication, Publishing
from realtime.control.signatures import annotation_of, hints_of, is_async, positional
from realtime.identity.auth import Pattern

Handler: TypeAlias = Callable[..., Any]


class Endpoint(Struct, frozen=True):
    """A path that upgrades. `auth` says who decides about the caller; `handler` takes the messages of a raw one."""

    path: str
    mode: Literal["json", "raw"]
    auth: Literal["token", "hook", "none"]
    handler: Handler | None = None
    compression: bool = True
    subprotocols: tuple[str, ...] = ()


class Route(Struct, frozen=True, kw_only=True):
    """A type of command and its handler.

    Args:
        type: as clients send it.
        handler: called with the session and, where it takes a second argument, the decoded data.
        payload: the decoder; None where the handler takes no data.
        runs: `inline` on the loop, as a `task`, or in a `thread`.
        guard: the right that the engine demands before Python sees the command, and the template of the channel.
        failure: the message of the engine's `error` where the guard refuses, or of ours where a publish fails.
        missing: the message of the engine's `error` where a member that the guard's channel names is not there.
    """

    type: str
    handler: Handler
    payload: Payload | None
    runs: Literal["inline", "task", "thread"]
    guard: tuple[str, str] | None = None
    failure: str | None = None
    missing: str | None = None


class Authorization(Struct, frozen=True):
    """Channels on which a hook decides where no grant covers them; `types` are the annotations of the named parts."""

    pattern: Pattern
    hook: Handler
    types: Mapping[str, Any]

    def arguments(self, channel: str) -> dict[str, Any] | None:
        """Return what the hook is called with besides the session; None where a part is not of the type it takes."""
        arguments: dict[str, Any] = {}
        for name, text in self.pattern.parts(channel).items():
            try:
                value = msgspec.convert(text, self.types[name], strict=False)
            except msgspec.ValidationError:
                return None
            # `1.0` and `1e0` would be names of one more channel for the same number.
            if isinstance(value, int) and not isinstance(value, bool) and str(int(value)) != text:
                return None
            arguments[name] = value
        return arguments


class Hook(Struct, frozen=True):
    """A function that is told of something; it gets as many of the arguments as it takes."""

    call: Handler
    takes: int


class Mount(Struct, frozen=True):
    """Another ASGI app on the HTTP port: everything at and below `path`, `/` for all that is not ours."""

    path: str
    app: Callable[..., Any]


class Rules(Struct, frozen=True, kw_only=True):
    """An app, compiled. Indices of `endpoints`, `routes` and `authorize` are those that the engine's events carry."""

    endpoints: tuple[Endpoint, ...]
    routes: tuple[Route, ...]
    relays: tuple[Mapping[str, object], ...]
    policies: tuple[Policy, ...]
    open_grants: tuple[tuple[str, tuple[str, ...]], ...]
    authorize: tuple[Authorization, ...]
    authenticate: Handler | None
    on_open: tuple["Hook", ...]
    on_close: tuple["Hook", ...]
    on_drain: tuple["Hook", ...]
    middleware: tuple[Middleware, ...] = ()
    listeners: tuple[Listener, ...] = ()
    jobs: tuple[Job, ...] = ()
    mounts: tuple[Mount, ...] = ()

    @property
    def path(self) -> str:
        """The path of the JSON endpoint, which every app has and has once."""
        return next(endpoint.path for endpoint in self.endpoints if endpoint.mode == "json")


def bind(
    type: str,
    handler: Handler,
    *,
    thread: bool,
    guard: tuple[str, str] | None = None,
    failure: str | None = None,
    missing: str | None = None,
) -> Route:
    """Make a route of a handler; all that can be known of it is found out here, once.

    Raises:
        TypeError: a signature other than `(session)` or `(session, payload)`, `thread=True` on an `async def`, a
            payload that cannot be decoded or whose names would not be camelCase on the wire.
    """
    parameters = positional(handler)
    if len(parameters) not in (1, 2):
        raise TypeError(f"handler of {type!r} takes {len(parameters)} arguments; use (session) or (session, payload)")
    runs_async = is_async(handler)
    if thread and runs_async:
        raise TypeError(f"handler of {type!r} is async and thread=True; use one of the two")
    hints = hints_of(handler)
    payload = Payload(hints.get(parameters[1], Any)) if len(parameters) == 2 else None
    if "return" in hints and not thread and hints["return"] not in (Publishing, Publication):
        _check_return(hints["return"])
    runs: Literal["inline", "task", "thread"] = "inline"
    if thread:
        runs = "thread"
    elif runs_async:
        runs = "task"
    return Route(type=type, handler=handler, payload=payload, runs=runs, guard=guard, failure=failure, missing=missing)


def bind_authorization(pattern: str, hook: Handler) -> Authorization:
    """Make an authorization of a hook; what its parts are converted to is found out here, once.

    Raises:
        ValueError: not a pattern.
        TypeError: the hook's arguments are not the session and the named parts, or one is of a type that a part of a
            name cannot be converted to.
    """
    parsed = Pattern(pattern)
    takes = positional(hook)[1:]
    if sorted(takes) != sorted(parsed.names):
        raise TypeError(f"hook of {pattern!r} takes {takes}; use the session and {list(parsed.names)}")
    types = {name: annotation_of(hook, name, str) for name in takes}
    for name, annotation in types.items():
        check_text_type(annotation, f"argument {name!r} of the hook of {pattern!r}")
    return Authorization(parsed, hook, types)


def _check_return(annotation: Any) -> None:
    if isinstance(annotation, type) and (issubclass(annotation, Struct) or hasattr(annotation, "__dataclass_fields__")):
        check_names(annotation)
