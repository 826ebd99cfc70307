"""Reads of what is stored: many pages at once, long replays, and answers that are never read."""

from functools import cached_property

from tests.chaos.attacks.attack import Attack, command
from tests.chaos.swarm import Hold, Open, Pause, Peer, Receive, Script, Send

ROOM = "mallory-long"
CHANNEL = f"conversation:{ROOM}"
START = {"offset": 0, "epoch": ""}


class _Reading(Attack):
    """Stores 100 events of 100 KB first, once a socket, so that there is something to read."""

    @cached_property
    def _text(self) -> str:
        return "r" * 100_000

    def stored(self, peer: Peer) -> Script:
        """Store some more of what will be read."""
        if peer.turn < 5:
            for _ in range(20):
                yield Send(command("send_message", conversationId=ROOM, content=self._text))
                yield Pause(0.05)


class HistoryPages(_Reading):
    """Asks for page after page by `history`, and reads them."""

    def script(self, peer: Peer) -> Script:
        yield from self.connected()
        yield from self.stored(peer)
        for _ in range(500):
            yield Send(command("history", 1, channel=CHANNEL, last=1000, limit=1000) * 10)
            yield Receive()


class UnreadPages(_Reading):
    """Asks for page after page by `history`, and reads none."""

    reads = False

    def script(self, peer: Peer) -> Script:
        yield from self.connected(receive_buffer=2_048)
        yield from self.stored(peer)
        for _ in range(500):
            yield Send(command("history", 1, channel=CHANNEL, last=1000, limit=1000) * 10)
            yield Pause(0.05)


class UnreadReplay(_Reading):
    """Subscribes from the beginning of everything, and reads nothing of it."""

    reads = False

    def script(self, peer: Peer) -> Script:
        yield from self.connected(receive_buffer=2_048)
        yield from self.stored(peer)
        for _ in range(100):
            yield Send(command("subscribe", 1, channel=CHANNEL, last=1000) + command("unsubscribe", 2, channel=CHANNEL))
            yield Pause(0.1)
        yield Hold()


class HttpHistory(_Reading):
    """Asks for the longest page that HTTP gives, on a connection each time."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        path = f"/api/channels/{CHANNEL}/history?limit=1000"
        yield from self.requested(*[self.request("GET", path)] * 50)


class UnreadHttpHistory(_Reading):
    """Asks for the longest page that HTTP gives, many times on one connection, and reads nothing."""

    reads = False

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port, receive_buffer=2_048)
        yield Send(self.request("GET", f"/api/conversations/{ROOM}/messages?limit=1000") * 20)
        yield Pause(20)


class Tickets(Attack):
    """Fetches tickets that it never uses."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(*[self.request("POST", "/api/tickets", b"{}")] * 200)


class Amends(Attack):
    """Changes one message of 100 KB often, then deletes it: every change has to be found and erased."""

    @cached_property
    def _text(self) -> bytes:
        return b"a" * 100_000

    def script(self, peer: Peer) -> Script:
        path = f"/api/conversations/amended-{peer.number}-{peer.turn}/messages"
        yield from self.requested(
            self.request("POST", path, b'{"content":"first"}'),
            *[self.request("PATCH", f"{path}/1", b'{"content":"%s"}' % self._text)] * 100,
            self.request("DELETE", f"{path}/1"),
        )


class PresencePages(Attack):
    """Asks who is there, over HTTP, as fast as it is told."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(*[self.request("GET", f"/api/presence/{CHANNEL}")] * 200)
        yield Receive()
