"""Sockets at the WebSocket port that are no WebSocket yet. None of these needs a token."""

from tests.chaos.attacks.attack import Attack
from tests.chaos.swarm import Hold, Open, Pause, Peer, Receive, Script, Send
from tests.kit import upgrade_request


class SilentSocket(Attack):
    """Connects and says nothing."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        yield Hold()


class HalfHead(Attack):
    """Sends all of an upgrade but its last byte."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        yield Send(upgrade_request(f"/ws?token={self.target.token}")[:-1])
        yield Hold()


class DribbledHead(Attack):
    """Sends a head byte by byte, so that each read is a sign of life."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        for byte in upgrade_request(f"/ws?token={'x' * 600}"):
            yield Send(bytes([byte]))
            yield Pause(0.3)


class HugeHead(Attack):
    """Fills the head with cookies up to its limit and leaves it unfinished."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        yield Send(upgrade_request("/ws", f"Cookie: {'c' * 63_000}\r\n")[:-2])
        yield Hold()


class BadToken(Attack):
    """Upgrades with a token that no key has signed, as long as a token may be, again and again."""

    signed_in = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        head, _, signature = self.target.token.rpartition(".")
        yield Send(upgrade_request(f"/ws?token={head}{'A' * 15_000}.{signature}"))
        yield Receive()


class ResetStorm(Attack):
    """Connects and resets at once; every second one after half a request."""

    signed_in = False
    pause_s = 0.05

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        if self.random.random() < 0.5:
            yield Send(b"GET /ws HTTP/1.1\r\n")
