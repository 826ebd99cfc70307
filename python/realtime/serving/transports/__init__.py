"""Whose sockets are under the engine. Called by `server` and by the command line's check."""

from typing import TYPE_CHECKING, TypeAlias

from realtime._engine import Engine

if TYPE_CHECKING:
    from realtime.serving.transports.socketify import SocketifyEngine

AnyEngine: TypeAlias = "Engine | SocketifyEngine"
"""An engine over sockets."""


def engine(transport: str, options: bytes) -> "AnyEngine":
    """Return an engine that is not started.

    Raises:
        EngineError: the options are wrong, or what the transport needs is not installed.
    """
    if transport == "native":
        return Engine(options)
    from realtime.serving.transports.socketify import SocketifyEngine  # noqa: PLC0415 -- only where it is asked for

    return SocketifyEngine(options)
