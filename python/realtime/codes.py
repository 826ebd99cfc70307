"""The two tables of codes: what an `error` event may say, and what a connection may be closed with.

Both are part of the wire protocol. A code is never renamed and never reused. `retryable` tells a client whether the
same command may succeed later without a change; a close code's range tells it whether to come back: below 4500 yes,
from 4500 on no. The engine holds the same values (rust/protocol/src/close.rs); a test compares them.

Read by everything above; imports nothing.
"""

from types import MappingProxyType
from typing import Final

RETRYABLE: Final = MappingProxyType(
    {
        "invalid_message": False,
        "unknown_type": False,
        "unauthorized": False,
        "forbidden": False,
        "not_found": False,
        "not_subscribed": False,
        "rate_limited": True,
        "limit_reached": False,
        "too_large": False,
        "not_recoverable": False,
        "upstream_failed": True,
        "timeout": True,
        "unavailable": True,
        "overloaded": True,
        "draining": True,
        "internal": False,
    }
)
"""Every code of the protocol and whether it is retryable unless its error says otherwise. An app may use its own."""


class CloseCode:
    """Codes that the server closes with (RFC 6455 §7.4, the IANA registry, and ours from 4000 on)."""

    NORMAL: Final = 1000
    GOING_AWAY: Final = 1001
    PROTOCOL_ERROR: Final = 1002
    UNSUPPORTED: Final = 1003
    NO_STATUS: Final = 1005
    ABNORMAL: Final = 1006
    INVALID_DATA: Final = 1007
    POLICY: Final = 1008
    TOO_BIG: Final = 1009
    INTERNAL: Final = 1011
    RESTART: Final = 1012
    SLOW_READER: Final = 4000
    SILENT: Final = 4001
    TOKEN_EXPIRED: Final = 4002
    RATE_LIMITED: Final = 4003
    BUSY: Final = 4005
    TOKEN_REVOKED: Final = 4500
    UNAUTHORIZED: Final = 4501
    FORBIDDEN: Final = 4502
    REMOVED: Final = 4503
    REPLACED: Final = 4504


def may_come_back(code: int) -> bool:
    """Whether a client that was closed with `code` should connect again; only 1000 and 4500..4999 say no."""
    return code != CloseCode.NORMAL and not 4500 <= code <= 4999
