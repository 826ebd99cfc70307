"""Requests of this machine that mean this server: the `Host` is localhost, 127.0.0.1 or [::1], no proxy passed it on.

A page on another name that resolves to this machine has another `Host`; a browser also says which page asks.
"""

import re
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import PermissionDeniedException
from litestar.handlers import BaseRouteHandler

_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_PASSED_ON = frozenset(
    {"cf-connecting-ip", "client-ip", "forwarded", "true-client-ip", "via", "x-client-ip", "x-cluster-client-ip"}
    | {"x-original-forwarded-for", "x-real-ip"}
)
_PASSED_ON_PREFIX = "x-forwarded-"


def is_local(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Whether a request comes from a page or a program of this machine that means this server."""
    return why_not_local(connection) is None


def why_not_local(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    """Return what is wrong with a request that is not local."""
    headers = connection.headers
    host = headers.get("host", "")
    if not _LOCAL_HOST.fullmatch(host):
        return "only for a Host of localhost, 127.0.0.1 or [::1]"
    if any(name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX) for name in headers):
        return "not through a proxy"
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return "only for pages of this server"
    return None


def local_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Refuse what is not local; a guard of Litestar's.

    Raises:
        PermissionDeniedException: 403.
    """
    reason = why_not_local(connection)
    if reason is not None:
        raise PermissionDeniedException(reason)
