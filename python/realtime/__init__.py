"""A real-time edge: Python decides, a Rust engine moves the bytes.

This package's public names. `Realtime` is an app, `Session` one connection of a user, `Refused` the error that a
handler answers with, `Conversations` the built-in app. `realtime.testing.TestApp` runs an app without a port.
`FrameEncoder` and `Fanout` are for servers of another make: they need no app and no engine that runs.
Everything else is found in its own module.

Importing fails with one line where the compiled engine is missing, or where another distribution has installed a
package of the same name into this one.
"""

from importlib import import_module as _import_module
from importlib import metadata as _metadata
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING


def _check_installation() -> None:
    """Fail before the first import of the engine, whose own error would not say what to do."""
    try:
        other = _metadata.version("realtime")
    except _metadata.PackageNotFoundError:
        other = None
    if other is not None:
        raise ImportError(
            f"the distribution realtime {other} owns the package name realtime too; run: "
            "pip uninstall realtime, then: pip install --force-reinstall realtime-edge"
        )
    if _find_spec("realtime._engine") is None:
        raise ImportError(
            f"{__path__[0]} has no compiled engine (realtime._engine); run: make setup, or: "
            "pip install --force-reinstall realtime-edge"
        )


_check_installation()

if TYPE_CHECKING:
    from realtime._engine import Deflate, Frame, FrameEncoder, user_channel
    from realtime.app.app import Module, Realtime
    from realtime.base.codes import CloseCode
    from realtime.base.errors import NotRunning, PublishFailed, Refused
    from realtime.control.connections import Session
    from realtime.control.listening import Heard
    from realtime.control.middleware import Call, Proceed
    from realtime.control.publishing import Publication, Publishing
    from realtime.conversations import Conversations
    from realtime.fanout import Fanout
    from realtime.identity.auth import Grant, Identity, InvalidToken, UpgradeRequest, mint_token

__all__ = [
    "Call",
    "CloseCode",
    "Conversations",
    "Deflate",
    "Fanout",
    "Frame",
    "FrameEncoder",
    "Grant",
    "Heard",
    "Identity",
    "InvalidToken",
    "Module",
    "NotRunning",
    "Proceed",
    "Publication",
    "PublishFailed",
    "Publishing",
    "Realtime",
    "Refused",
    "Session",
    "UpgradeRequest",
    "mint_token",
    "user_channel",
]

_HOMES = {
    "Call": "control.middleware",
    "CloseCode": "base.codes",
    "Conversations": "conversations",
    "Deflate": "_engine",
    "Fanout": "fanout",
    "Frame": "_engine",
    "FrameEncoder": "_engine",
    "Grant": "identity.auth",
    "Heard": "control.listening",
    "Identity": "identity.auth",
    "InvalidToken": "identity.auth",
    "Module": "app.app",
    "NotRunning": "base.errors",
    "Proceed": "control.middleware",
    "Publication": "control.publishing",
    "PublishFailed": "base.errors",
    "Publishing": "control.publishing",
    "Realtime": "app.app",
    "Refused": "base.errors",
    "Session": "control.connections",
    "UpgradeRequest": "identity.auth",
    "mint_token": "identity.auth",
    "user_channel": "_engine",
}
"""The module of each public name. It is imported when the name is first used: frames need no HTTP client."""

if not TYPE_CHECKING:  # so that a type checker knows no names but those above

    def __getattr__(name: str) -> object:
        """Import a public name from its module."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(_import_module(f"{__name__}.{home}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
