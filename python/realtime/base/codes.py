"""The two tables of codes: what an `error` event may say, and what a connection may be closed with.

Both are part of the wire protocol: a code is never renamed and never reused. `RETRYABLE` tells whether the same command
may succeed later without a change. A close code tells a client whether to come back; of ours those below 4500 say yes,
the others no. The engine holds the same tables (rust/hub/src/compose.rs, rust/protocol/src/close.rs); a test compares
them.

Read by everything above; imports nothing.
"""

from enum import IntEnum
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
        "internal": True,
    }
)
"""Every code of the protocol and whether it is retryable unless its error says otherwise. An app may use its own."""


class CloseCode(IntEnum):
    """What a connection may be closed with (RFC 6455 §7.4, the IANA registry, and ours from 4000 on)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015
    SLOW_READER = 4000
    SILENT = 4001
    TOKEN_EXPIRED = 4002
    RATE_LIMITED = 4003
    BUSY = 4005
    TOKEN_REVOKED = 4500
    UNAUTHORIZED = 4501
    FORBIDDEN = 4502
    REMOVED = 4503
    REPLACED = 4504

    @property
    def may_come_back(self) -> bool:
        """Whether a client should connect again by itself."""
        return self not in _STAY_AWAY and self < CloseCode.TOKEN_REVOKED


_STAY_AWAY: Final = frozenset(
    {
        CloseCode.NORMAL,
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_PAYLOAD,
        CloseCode.POLICY_VIOLATION,
        CloseCode.MESSAGE_TOO_BIG,
        CloseCode.MANDATORY_EXTENSION,
    }
)


def may_be_sent(code: int) -> bool:
    """Whether a code may stand in a Close frame: 1000-1003, 1007-1014, 3000-4999 (RFC 6455 §7.4, IANA)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
