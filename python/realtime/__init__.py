"""A real-time edge: Python decides, a Rust engine moves the bytes.

This package's public names. `Realtime` is an app, `Session` one connection of a user, `Refused` the error that a
handler answers with, `Conversations` the built-in app. `realtime.testing.TestApp` runs an app without a port.
`FrameEncoder` and `Fanout` are for servers of another make: they need no app and no engine that runs.
Everything else is found in its own module.

Importing fails with one line where the compiled engine is missing, or where another distribution has installed a
package of the same name into this one.
"""

from importlib import metadata as _metadata
from importlib.util import find_spec as _find_spec


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

# Only after the check: these import the engine.
from realtime._engine import Deflate, Frame, FrameEncoder  # noqa: E402
from realtime.app import Module, Realtime  # noqa: E402
from realtime.auth import Grant, Identity, UpgradeRequest, mint_token  # noqa: E402
from realtime.broadcaster import Publication, Publishing  # noqa: E402
from realtime.codes import CloseCode  # noqa: E402
from realtime.connections import Session  # noqa: E402
from realtime.errors import NotRunning, PublishFailed, Refused  # noqa: E402
from realtime.fanout import Fanout  # noqa: E402
from realtime.handlers import Conversations  # noqa: E402
from realtime.listening import Heard  # noqa: E402
from realtime.middleware import Call, Proceed  # noqa: E402

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
]
