"""Commands of a signed-in connection, more of them than is right or each more costly than it looks."""

from functools import cached_property

from tests.chaos.attacks.attack import Attack, command
from tests.chaos.swarm import Hold, Pause, Peer, Receive, Script, Send

CHANNEL = "conversation:mallory"


class CommandFlood(Attack):
    """Floods commands, and comes back as soon as it is held back: a new connection has new tokens."""

    pause_s = 0.02

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        yield Send(b"".join(command("unsubscribe", n, channel="conversation:x") for n in range(600)))
        for _ in range(5):
            yield Receive()


class Churn(Attack):
    """Connects and disconnects: everybody is told about it, if nothing holds it back."""

    pause_s = 0.01

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        yield Send(b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big"))
        yield Receive()


class CrowdChurn(Attack):
    """Connects and disconnects as one of fifty users."""

    pause_s = 0.05

    def script(self, peer: Peer) -> Script:
        yield from self.connected(token=self.target.crowd[peer.number % len(self.target.crowd)])
        yield Send(command("subscribe", 1, channel=CHANNEL, presence=True))
        yield Send(b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big"))
        yield Receive()


class Subscriptions(Attack):
    """Subscribes to names that nobody uses, as many as it may, and goes on with new ones."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _, number in zip(range(2_000), self.numbers(), strict=False):
            name = f"conversation:{number:x}{'n' * 100}"
            yield Send(command("subscribe", 1, channel=name, presence=True))
            if number % 3 == 0:
                yield Send(command("unsubscribe", 2, channel=name))
            yield Pause(0.01)


class Typing(Attack):
    """Types in channel after channel."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _, number in zip(range(190), self.numbers(), strict=False):
            yield Send(command("subscribe", channel=f"conversation:{number:x}"))
            yield Send(command("typing_start", conversationId=f"{number:x}"))
            yield Pause(0.02)
        yield Hold()


class RetainedStates(Attack):
    """Publishes states of 60 KB under ever new keys and in ever new channels, to be kept for late subscribers."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _, number in zip(range(1_000), self.numbers(), strict=False):
            channel = f"conversation:{number % 50}"
            yield Send(
                command("publish", 1, channel=channel, event="state", key=f"k{number:x}", data="s" * 60_000)
                + command("message_read", channel=channel, conversationId=f"{number % 50}", number=number)
                + command("cursor_move", channel=channel, x=number, y="c" * 900)
            )


class BigPublishes(Attack):
    """Publishes 900 KB at a time, in a channel of its own that it has subscribed and does not read."""

    reads = False

    @cached_property
    def _text(self) -> str:
        return "b" * 900_000

    def script(self, peer: Peer) -> Script:
        yield from self.connected(receive_buffer=2_048)
        channel = f"conversation:big-{peer.number}"
        yield Send(command("subscribe", 1, channel=channel))
        while True:
            yield Send(command("publish", 1, channel=channel, event="big", data=self._text))


class BigMessages(Attack):
    """Has messages of 900 KB stored as fast as the log takes them, in ever new conversations."""

    @cached_property
    def _text(self) -> str:
        return "m" * 900_000

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _, number in zip(range(300), self.numbers(), strict=False):
            yield Send(command("send_message", 1, conversationId=f"{number % 200}", content=self._text))


class SmallMessages(Attack):
    """Has small messages stored, each with an idempotency key of its own to be remembered."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _, number in zip(range(3_000), self.numbers(), strict=False):
            key = f"{number:x}".ljust(64, "k")
            yield Send(command("send_message", 1, conversationId=f"{number % 5_000}", content="m", clientMessageId=key))


class OwnChannel(Attack):
    """Publishes to its own channel, which each of its connections has subscribed and none reads."""

    reads = False

    @cached_property
    def _events(self) -> bytes:
        return command("publish", 1, channel="user:me", event="own", data="o" * 50_000) * 4

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected(receive_buffer=2_048)
        yield Send(command("subscribe", 1, channel="user:me"))
        while True:
            yield Send(self._events)
            yield Pause(0.05)


class PresenceCommands(Attack):
    """Subscribes with presence and asks who is there, again and again."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        yield Send(command("subscribe", 1, channel=CHANNEL, presence=True))
        while True:
            yield Send(command("presence", 2, channel=CHANNEL) * 50)
            yield Send(command("presence_update", 3, channel=CHANNEL, info={"text": "p" * 900}) * 50)
            yield Pause(0.1)


class Refreshes(Attack):
    """Shows its token again and again, and wrong ones."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        while True:
            yield Send(command("refresh", 1, token=self.target.token) + command("refresh", 2, token="x" * 16_000))
            yield Pause(0.01)


class CrowdMessages(Attack):
    """Fifty users say as much as each of them may, in the same conversation."""

    def script(self, peer: Peer) -> Script:
        yield from self.connected(token=self.target.crowd[peer.number % len(self.target.crowd)])
        yield Send(command("subscribe", 1, channel=CHANNEL, presence=True))
        while True:
            yield Send(command("send_message", 1, conversationId="mallory", content="c" * 2_000) * 10)
            yield Pause(0.1)


class NewLines(Attack):
    """Causes a line of the process log with each command, if nothing holds the lines back."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.connected()
        for _ in range(2_000):
            yield Send(command("send_message", 1, conversationId="a b\r\nc\x1b[2J" + "l" * 10_000, content="x"))
            yield Send(command("publish", 1, channel="job:1", event="e\n" * 30, data=1))
