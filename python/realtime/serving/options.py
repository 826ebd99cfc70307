"""The engine's options: an app's rules and the configuration as plain data, which the engine works by without asking.

Called by `server`, by `testing` and by the command line's check of a configuration.
"""

from pathlib import Path
from typing import Final

from msgspec.structs import asdict

from realtime.base.config import ConfigError, Keys, Settings, parse_retention
from realtime.base.descriptors import divided
from realtime.base.messages import RESERVED_EVENTS, encode
from realtime.control.rules import Route, Rules
from realtime.identity import origin_rule, token_rule
from realtime.identity.auth import OWN_CHANNELS, Pattern

_OF_THE_HTTP_PORT: Final = frozenset({"address_requests_per_s", "address_requests_burst"})
"""Limits that `api.listener` tells the front, and the shards do not know."""


def engine_options(rules: Rules, settings: Settings, keys: Keys, *, in_memory: bool = False) -> bytes:
    """Return the engine's options as JSON: the app's rules and the configuration as plain data.

    Raises:
        ConfigError: the settings do not go together.
    """
    auth = settings.auth
    if settings.one_port and settings.engine.transport != "native":
        raise ConfigError(
            f"api.port = server.port = {settings.api.port} needs engine.transport = native, whose listener tells "
            "HTTP from WebSockets; set API_PORT to another port"
        )
    return encode(
        {
            "host": settings.server.host.strip("[]"),
            "port": settings.server.port,
            "shards": settings.server.shards,
            "flush": settings.engine.flush,
            "descriptors_kept": divided(settings).kept,
            "data_dir": None if in_memory else str(Path(settings.data_dir)),
            "compression": settings.compression,
            "limits": {name: value for name, value in asdict(settings.limits).items() if name not in _OF_THE_HTTP_PORT},
            "proxies": settings.server.proxies,
            "token": token_rule(auth, keys).document(),
            "tell_tokens": settings.api.url is not None,
            "origins": origin_rule(auth).listed,
            "endpoints": [
                {
                    "path": endpoint.path,
                    "mode": endpoint.mode,
                    "auth": endpoint.auth,
                    "compression": endpoint.compression,
                    "subprotocols": endpoint.subprotocols,
                }
                for endpoint in rules.endpoints
            ],
            "routes": [_route_option(route) for route in rules.routes],
            "relays": rules.relays,
            "policies": [
                {
                    "pattern": policy.pattern.text,
                    "durable": policy.durable,
                    "history": policy.history,
                    "overflow": policy.overflow,
                    "keep_s": policy.keep_s,
                    "keep_events": policy.keep_events,
                    "retain_latest": policy.retain_latest,
                    "retain_latest_s": policy.retain_latest_s,
                }
                for policy in rules.policies
            ],
            "retention": [
                # First, so that no pattern of an operator's forgets what was revoked.
                {"pattern": f"{OWN_CHANNELS}**", "keep_s": auth.revocations_keep_s, "keep_events": None},
                *map(_retention_option, settings.history.retention),
            ],
            "open_grants": [{"pattern": pattern, "rights": rights} for pattern, rights in rules.open_grants],
            "authorize": [authorization.pattern.text for authorization in rules.authorize],
            "listen": list(dict.fromkeys(listener.pattern.text for listener in rules.listeners)),
            "reserved_events": RESERVED_EVENTS,
            "dedupe_s": settings.log.dedupe_s,
            # The engine has one half, HTTP the other.
            "revocations_bytes_max": auth.revocations_bytes_max // 2,
            "idle_s": settings.history.idle_s,
            "free_bytes_min": settings.log.free_bytes_min,
        }
    )


def _retention_option(text: str) -> object:
    retention = parse_retention(text)
    try:
        Pattern(retention.pattern)
    except ValueError as error:
        raise ConfigError(f"history.retention = {text!r}: {error}") from error
    return retention


def _route_option(route: Route) -> object:
    if route.guard is None:
        return route.type
    right, channel = route.guard
    return {
        "type": route.type,
        "right": right,
        "channel": channel,
        "failure": route.failure,
        "missing": route.missing,
    }
