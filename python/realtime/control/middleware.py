"""What runs around the handlers of commands: `@app.middleware`.

A middleware is `(call, proceed)`: it looks at the call, hands it on with `proceed(call)` and returns what the client is
to get, or raises `Refused`. The first that was registered is the outermost. They are put together once, when the server
starts, so an app without any pays nothing.

How a command then runs follows from its parts. Where all are plain and the handler is, the whole chain runs on the loop
without a task, as a plain handler does, and `proceed(call)` is the handler's result. One `async` part makes it a task:
an `async` middleware always writes `await proceed(call)`; a plain one around it gets an awaitable from `proceed`, which
it returns as it is. Middleware runs on the loop; of a `thread=True` command only the handler runs in the thread.

Called by `routing` when it is made.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from realtime.control.connections import Session
from realtime.control.publishing import Publishing
from realtime.control.signatures import is_async, name_of, positional

Runs: TypeAlias = Literal["inline", "task", "thread"]
Proceed: TypeAlias = Callable[["Call"], Any]
"""Hands a call on: to the next middleware or, from the last, to the handler."""


class Call(Struct, frozen=True, eq=False):
    """A command on its way to its handler.

    Args:
        session: whose command it is.
        type: of the command, as clients send it.
        payload: its data as the handler gets it, decoded and checked; None where the handler takes none. A middleware
            may hand on another: `proceed(msgspec.structs.replace(call, payload=…))`.
    """

    session: Session
    type: str
    payload: Any


class Middleware(Struct, frozen=True):
    """A registered middleware and whether it is an `async def`."""

    call: Callable[..., Any]
    is_async: bool


def bind(middleware: Callable[..., Any]) -> Middleware:
    """Find out what must be known of a middleware.

    Raises:
        TypeError: a signature other than `(call, proceed)`.
    """
    takes = positional(middleware)
    if len(takes) != 2:
        raise TypeError(f"middleware {name_of(middleware)} takes {len(takes)} arguments; use (call, proceed)")
    return Middleware(middleware, is_async(middleware))


def around(
    handler: Callable[..., Any],
    type: str,
    runs: Runs,
    layers: Sequence[Middleware],
    in_thread: Callable[[Callable[..., Any], tuple[Any, ...]], Awaitable[Any]],
    *,
    takes_payload: bool,
) -> tuple[Callable[..., Any], Literal["inline", "task"]]:
    """Put middleware around a handler.

    Args:
        handler: what is called in the end.
        type: of the command.
        runs: how the handler runs.
        layers: the middleware, outermost first; at least one.
        in_thread: runs a function with arguments in a thread.
        takes_payload: whether the handler takes the payload, too.

    Returns:
        What is called with the session and the payload in place of the handler, and how that runs.
    """
    chain = _last(handler, runs, in_thread, takes_payload=takes_payload)
    for layer in reversed(layers):
        chain = _layer(layer, chain)
    if runs == "inline" and not any(layer.is_async for layer in layers):
        return lambda session, payload=None: chain(Call(session, type, payload)), "inline"

    async def handle(session: Session, payload: Any = None) -> Any:
        return await _value(chain(Call(session, type, payload)))

    return handle, "task"


def _last(
    handler: Callable[..., Any],
    runs: Runs,
    in_thread: Callable[[Callable[..., Any], tuple[Any, ...]], Awaitable[Any]],
    *,
    takes_payload: bool,
) -> Proceed:
    def arguments(call: Call) -> tuple[Any, ...]:
        return (call.session, call.payload) if takes_payload else (call.session,)

    if runs == "thread":
        return lambda call: in_thread(handler, arguments(call))
    return lambda call: handler(*arguments(call))


def _layer(layer: Middleware, inner: Proceed) -> Proceed:
    call_layer = layer.call
    if not layer.is_async:
        return lambda call: call_layer(call, inner)

    async def awaited(call: Call) -> Any:
        return await _value(inner(call))

    return lambda call: call_layer(call, awaited)


async def _value(result: Any) -> Any:
    """Await what is a call under way. A publish is not: it is a result, which is answered when it is committed."""
    return await result if inspect.isawaitable(result) and not isinstance(result, Publishing) else result
