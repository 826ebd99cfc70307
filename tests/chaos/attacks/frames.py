"""Frames and messages that are never whole, never small or never read, of a signed-in connection."""

from functools import cached_property

from tests.chaos.attacks.attack import TEXT, Attack, command, compressed, frame
from tests.chaos.swarm import Hold, Open, Pause, Peer, Receive, Script, Send
from tests.kit import upgrade_request

MESSAGE_BYTES = 16 * 1024 * 1024
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


class BracketFrames(Attack):
    """Publishes 1 MB of `[],[],…`, ten thousand objects, and a nesting of 60."""

    @cached_property
    def _frames(self) -> list[bytes]:
        payloads = (
            ",".join(["[]"] * 330_000),
            ",".join(['{"a":1}'] * 100_000),
            "[" * 60 + "]" * 60,
        )
        text = '{"type":"publish","id":1,"data":{"channel":"conversation:mallory","event":"x","data":[%s]}}'
        return [frame((text % each).encode()) for each in payloads]

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _ in range(20):
            for each in self._frames:
                yield Send(each)


class BracketMessages(Attack):
    """Sends chat messages, which Python handles, whose metadata is all brackets."""

    @cached_property
    def _frame(self) -> bytes:
        start = '{"type":"send_message","data":{"conversationId":"mallory","content":"x","metadata":{"a":['
        return frame(f"{start}{','.join(['[]'] * 330_000)}]}}}}}}".encode())

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _ in range(50):
            yield Send(self._frame)


class LargestMessages(Attack):
    """Sends commands of 16 MiB, to be read, checked and refused."""

    @cached_property
    def _frame(self) -> bytes:
        rest = b'{"type":"send_message","data":{"conversationId":"mallory","content":"%s"}}'
        return frame(rest % (b"x" * (MESSAGE_BYTES - len(rest))))

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _ in range(10):
            yield Send(self._frame)


class Unfinished(Attack):
    """Sends all of a message of 16 MiB but its end, which dribbles."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        yield Send(frame(b"x" * (MESSAGE_BYTES - 1_000), size=MESSAGE_BYTES))
        while True:
            yield Send(b"x")
            yield Pause(0.5)


class Fragments(Attack):
    """Sends fragments of one byte without end."""

    part = b"x"

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        yield Send(frame(self.part, first=0x01))
        while True:
            yield Send(frame(self.part, first=0x00) * 10_000)
            yield Pause(0.1)


class EmptyContinuations(Fragments):
    """Sends empty continuation frames without end."""

    part = b""


class ByteWrites(Attack):
    """Sends a command byte by byte, a segment each."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for byte in command("publish", 1, channel="conversation:mallory", event="x", data="y" * 20_000):
            yield Send(bytes([byte]))


class Bombs(Attack):
    """Sends 16 KB that inflate to over 16 MiB, and comes back after the close."""

    @cached_property
    def _frame(self) -> bytes:
        return compressed(b" " * (MESSAGE_BYTES + 1))

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected(headers=DEFLATE)
        for _ in range(20):
            yield Send(self._frame)


class InflatedMessages(Attack):
    """Sends what inflates to just below the limit, and is no command."""

    @cached_property
    def _frame(self) -> bytes:
        return compressed(b'"' + b"a" * (MESSAGE_BYTES - 2) + b'"')

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected(headers=DEFLATE)
        for _ in range(20):
            yield Send(self._frame)


class Pings(Attack):
    """Floods pings and never reads a pong."""

    reads = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected(receive_buffer=2_048)
        pings = frame(b"p" * 125, first=0x89) * 2_000
        while True:
            yield Send(pings)


class Unreadable(Attack):
    """Floods frames that nobody can read: no JSON, no type, no UTF-8 at last."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _ in range(20):
            yield Send((frame(b"{") + frame(b"[]") + frame(b'{"type":"no such"}') + frame(b"null")) * 200)
        yield Send(frame(b"\xff\xfe", first=TEXT))
        yield Hold()


class EarlyFrames(Attack):
    """Sends frames behind the upgrade without waiting for its answer."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.port)
        yield Send(upgrade_request(f"/ws?token={self.target.token}") + command("ping", 1) * 1_000)
        yield Receive()
        yield Pause(1)


class RawFlood(Attack):
    """Floods a raw endpoint that answers every message, and reads none of the answers."""

    reads = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected(path="/echo", receive_buffer=2_048)
        messages = frame(b"e" * 100) * 1_000
        while True:
            yield Send(messages)
