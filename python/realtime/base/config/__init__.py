"""Configuration: what can be set, where it is read from, and the secret that tokens are signed with.

`load()` merges the defaults, `realtime.toml`, the environment and `--set` into one frozen `Settings`; every unknown
key and every wrong value is refused there, so that nothing below checks a setting again. `keys_of()` gives the
secrets that tokens are signed with and keeps the rule that a server without a configured secret is reachable from its
own machine only. docs/reference/configuration.md is written from the same Structs by `realtime.base.config.reference`.

Called by `cli` (with the command line), by `app.run()` and by the lifespan (without one).
"""

from realtime.base.config.keys import ALL, differing, value_of
from realtime.base.config.retention import Retention, parse_retention
from realtime.base.config.secret import Keys, bracketed, is_loopback, is_loopback_address, keys_of
from realtime.base.config.settings import (
    ApiSettings,
    AuthSettings,
    ConfigError,
    ConversationSettings,
    DrainSettings,
    HandlerSettings,
    HistorySettings,
    LimitSettings,
    LogSettings,
    PresenceSettings,
    ServerSettings,
    Settings,
    TypingSettings,
)
from realtime.base.config.sources import load, origins, overlooked, parts_above

__all__ = [
    "ALL",
    "ApiSettings",
    "AuthSettings",
    "ConfigError",
    "ConversationSettings",
    "DrainSettings",
    "HandlerSettings",
    "HistorySettings",
    "Keys",
    "LimitSettings",
    "LogSettings",
    "PresenceSettings",
    "Retention",
    "ServerSettings",
    "Settings",
    "TypingSettings",
    "bracketed",
    "differing",
    "is_loopback",
    "is_loopback_address",
    "keys_of",
    "load",
    "origins",
    "overlooked",
    "parse_retention",
    "parts_above",
    "value_of",
]
