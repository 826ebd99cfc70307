"""What every attack has: a name, the bytes it prepares once, and the script that each of its sockets follows."""

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tests.chaos.swarm import Open, Peer, Receive, Script, Send
from tests.kit import client_frame, upgrade_request

TEXT = 0x81
_UNMASKED = bytes(4)
"""A masking key that changes nothing: the attackers' processor is better spent."""


@dataclass(frozen=True)
class Target:
    """The server under attack, and the tokens of those who attack it."""

    port: int
    api_port: int
    token: str
    crowd: tuple[str, ...]
    """Tokens of some more users, at the same address."""


class Attack:
    """A kind of misuse. A subclass says what one socket does; its name is that of the class in snake case."""

    signed_in: ClassVar[bool] = True
    """Whether it needs a token: then it has some of the 64 sockets of one user, else of the 3,000 without one."""

    reads: ClassVar[bool] = True
    """Whether it takes from the kernel what the server sends."""

    pause_s: ClassVar[float] = 0.2
    """Seconds, on average, between two rounds of a socket."""

    def __init__(self, target: Target, randomness: random.Random) -> None:
        self.target = target
        self.random = randomness

    def script(self, peer: Peer) -> Script:
        """Yield the steps of one round."""
        raise NotImplementedError

    def connected(
        self, *, path: str = "/ws", headers: str = "", receive_buffer: int = 0, token: str | None = None
    ) -> Script:
        """Open a WebSocket with the attacker's token; a refusal ends the round, since the server closes."""
        yield Open(self.target.port, receive_buffer)
        yield Send(upgrade_request(f"{path}?token={token or self.target.token}", headers))
        yield Receive()

    def requested(self, *requests: bytes, receive_buffer: int = 0) -> Script:
        """Open a connection to the HTTP port and send requests, one after the answer to the other."""
        yield Open(self.target.api_port, receive_buffer)
        for each in requests:
            yield Send(each)
            yield Receive()

    def request(self, method: str, path: str, body: bytes | None = None, headers: str = "") -> bytes:
        """Return an HTTP request with the attacker's token."""
        return http_request(method, path, body, f"{headers}Authorization: Bearer {self.target.token}\r\n")

    def numbers(self) -> Iterator[int]:
        """Yield numbers that no other round uses, so that names made of them are new."""
        while True:
            yield self.random.getrandbits(48)


def http_request(method: str, path: str, body: bytes | None = None, headers: str = "") -> bytes:
    """Return an HTTP/1.1 request; one with a body gets its length unless `headers` say it is chunked."""
    if body is not None:
        headers += "Content-Type: application/json\r\n"
        if "Transfer-Encoding" not in headers:
            headers += f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode() + (body or b"")


def frame(payload: bytes, first: int = TEXT, size: int | None = None) -> bytes:
    """Return one frame of a client; `size` is what its header announces, if that is to be more."""
    return client_frame(first, payload, mask=_UNMASKED, size=size)


def command(type: str, id: object = None, **data: object) -> bytes:
    """Return the frame of a command."""
    message: dict[str, object] = {"type": type, "data": data}
    if id is not None:
        message["id"] = id
    return frame(json.dumps(message).encode())


def compressed(payload: bytes) -> bytes:
    """Return a text frame that permessage-deflate has made small (RFC 7692)."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return frame((deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4], TEXT | 0x40)
