"""Requests of this machine that mean this server: from a loopback address, with its name as `Host`, through no proxy.

A page on another name that resolves to this machine has another `Host`; a browser also says which page asks. A proxy
that passes a request on without a header of its own cannot be told from a program of this machine, so what must not be
given to strangers needs more than this: see `development`.
"""

import re
from collections.abc import Mapping
from typing import Any

from realtime.base.config import is_loopback_address

_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_PASSED_ON = frozenset(
    {"client-ip", "fastly-client-ip", "fly-client-ip", "forwarded", "forwarded-for"}
    | {"proxy-client-ip", "true-client-ip", "via", "wl-proxy-client-ip", "x-appengine-user-ip"}
    | {"x-azure-clientip", "x-client-ip", "x-cluster-client-ip", "x-host", "x-proxyuser-ip"}
    | {"x-real-ip", "x-real-port", "x-remote-addr", "x-remote-ip", "x-request-start"}
    | {"x-scheme", "x-url-scheme"}
)
_PASSED_ON_PREFIXES = ("cf-", "x-amzn-", "x-envoy-", "x-forwarded", "x-original-", "x-proxy-", "x-vercel-")

Scope = Mapping[str, Any]


def is_local(scope: Scope) -> bool:
    """Whether a request comes from a page or a program of this machine that means this server."""
    client = scope.get("client")
    if client is None or not is_loopback_address(client[0]):
        return False
    hosts, origins = [], []
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES):
            return False
        if name == "host":
            hosts.append(value.decode("latin-1").lower())
        elif name == "origin":
            origins.append(value.decode("latin-1").lower())
    if len(hosts) != 1 or not _LOCAL_HOST.fullmatch(hosts[0]):
        return False
    return all(origin == f"http://{hosts[0]}" for origin in origins)
