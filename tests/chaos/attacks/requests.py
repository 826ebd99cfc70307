"""Connections at the HTTP port that hold something and give nothing. None of these needs a token."""

from tests.chaos.attacks.attack import Attack, http_request
from tests.chaos.swarm import HalfClose, Hold, Open, Pause, Peer, Receive, Script, Send


class SilentRequest(Attack):
    """Connects to the HTTP port and says nothing."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Hold()


class HalfRequest(Attack):
    """Sends a head of the HTTP port byte by byte and never ends it."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        while True:
            yield Send(b"X-a: b\r\n")
            yield Pause(1)


class IdleKeepAlive(Attack):
    """Asks once and keeps the connection."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(http_request("GET", "/health"))
        yield Hold()


class HalfBody(Attack):
    """Announces a body of 1 MB, sends the half of it, and waits."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(http_request("POST", "/api/conversations/mallory/messages", b"[" * 1_000_000)[:500_000])
        yield Hold()


class Pipeline(Attack):
    """Sends two hundred requests at once and reads none of the answers."""

    signed_in = False
    reads = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port, receive_buffer=2_048)
        yield Send(http_request("GET", "/health") * 200)
        yield Pause(10)


class UnreadAnswer(Attack):
    """Asks for a large answer and never reads it."""

    signed_in = False
    reads = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port, receive_buffer=2_048)
        yield Send(http_request("GET", "/docs/openapi.json") * 20)
        yield Hold()


class HalfClosedRequest(Attack):
    """Asks and closes its sending side at once."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(http_request("GET", "/ready"))
        yield HalfClose()
        yield Receive()


class ForgedAddress(Attack):
    """Asks with ever new addresses in the headers that proxies write."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        forged = ".".join(str(self.random.randrange(256)) for _ in range(4))
        headers = f"X-Forwarded-For: {forged}\r\nForwarded: for={forged}\r\nX-Realtime-Peer: {forged}:1\r\n"
        yield from self.requested(*[http_request("POST", "/api/tickets", b"{}", headers)] * 5)


class NotHttp(Attack):
    """Sends what is no HTTP, or what two parsers read differently."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(
            self.random.choice(
                (
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
                    b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                )
            )
        )
        yield Receive()
