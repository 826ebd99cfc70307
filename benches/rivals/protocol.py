"""What the rivals of Python's world share: the token check and the frames, the same bytes a delivery as ours.

It stores nothing, checks no grants and limits nothing: what a rival leaves out only makes it quicker, so a ratio
measured against it is never in our favour. JSON by orjson, HMAC by OpenSSL. WS_PORT and REALTIME_JWT_SECRET as for
ours; BENCH_COMPRESSION=1 asks for permessage-deflate.
"""

import base64
import binascii
import hmac
import os
import time
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import orjson

SECRET = os.environ["REALTIME_JWT_SECRET"].encode()
PORT = int(os.environ.get("WS_PORT", "3002"))
COMPRESSED = os.environ.get("BENCH_COMPRESSION") == "1"
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
BACKLOG = 4096


class Peer(Protocol):
    """A connection as `handle` sees it."""

    user: str

    def send(self, frame: bytes) -> None: ...
    def subscribe(self, channel: str) -> None: ...
    def unsubscribe(self, channel: str) -> None: ...
    def publish(self, channel: str, frame: bytes) -> None: ...


channels: defaultdict[str, set[Any]] = defaultdict(set)
"""Members by channel, for the libraries that have no topics of their own."""


def leave_all(member: Any) -> None:
    """Forget a connection that has ended."""
    for members in channels.values():
        members.discard(member)


def user_of(target: str) -> str | None:
    """The user of a request's target, path and query; None where the path or the token is wrong."""
    parts = urlsplit(target)
    token = parse_qs(parts.query).get("token", [""])[0]
    return subject(token) if parts.path == "/ws" else None


def subject(token: str) -> str | None:
    """The `sub` of a valid HS256 token whose `exp` is in the future, else None."""
    signed, _, signature = token.rpartition(".")
    header, _, payload = signed.partition(".")
    try:
        if not hmac.compare_digest(hmac.digest(SECRET, signed.encode(), "sha256"), unpadded(signature)):
            return None
        if orjson.loads(unpadded(header)).get("alg") != "HS256":
            return None
        claims = orjson.loads(unpadded(payload))
    except (binascii.Error, ValueError):
        return None
    return claims["sub"] if isinstance(claims.get("sub"), str) and claims.get("exp", 0) > time.time() else None


def unpadded(text: str) -> bytes:
    """Base64url without padding (RFC 7515)."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def now() -> str:
    """As JavaScript's toISOString writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def frame(type: str, data: Any, id: Any = None, **more: Any) -> bytes:
    """An event as JSON."""
    event = {"type": type, "data": data, "timestamp": now(), **more}
    if id is not None:
        event["id"] = id
    return orjson.dumps(event)


def greeting(user: str) -> bytes:
    """The first frame of a connection."""
    data = {"sessionId": str(uuid.uuid4()), "timestamp": now(), "protocol": 1, "userId": user}
    return frame("connection_established", data)


def handle(peer: Peer, text: str | bytes) -> None:
    """Carry out one command."""
    try:
        command = orjson.loads(text)
        type, data, id = command["type"], command.get("data") or {}, command.get("id")
    except (ValueError, KeyError, TypeError, AttributeError):
        data = {"message": "Invalid message format", "code": "invalid_message", "retryable": False}
        return peer.send(frame("error", data))
    match type:
        case "publish":
            channel = data["channel"]
            more = {"userId": peer.user, "channel": channel}
            if channel.startswith("conversation:"):
                more = {"conversationId": channel.removeprefix("conversation:")} | more
            peer.publish(channel, frame(data["event"], data["data"], **more))
        case "ping":
            peer.send(frame("pong", {"timestamp": now()}, id))
        case "subscribe":
            peer.subscribe(data["channel"])
            peer.send(frame("subscription_confirmed", {"channel": data["channel"]}, id, channel=data["channel"]))
        case "unsubscribe":
            peer.unsubscribe(data["channel"])
            peer.send(frame("unsubscription_confirmed", {"channel": data["channel"]}, id, channel=data["channel"]))
        case _:
            data = {"message": f"Unknown message type: {type}", "code": "unknown_type", "retryable": False}
            peer.send(frame("error", data, id))
    return None
