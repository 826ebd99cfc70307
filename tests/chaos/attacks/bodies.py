"""Bodies of signed-in requests that cost more than they weigh."""

import json
from functools import cached_property

from tests.chaos.attacks.attack import Attack
from tests.chaos.swarm import HalfClose, Open, Pause, Peer, Receive, Script, Send

PATH = "/api/conversations/mallory/messages"


class BracketBody(Attack):
    """Posts 1 MB of `[],[],…`."""

    @cached_property
    def _request(self) -> bytes:
        return self.request("POST", PATH, b'{"content":"x","metadata":{"a":[' + b",".join([b"[]"] * 330_000) + b"]}}")

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(*[self._request] * 20)


class DeepBody(Attack):
    """Posts a nesting of 100,000 arrays, and a number of 5,000 digits."""

    @cached_property
    def _requests(self) -> list[bytes]:
        deep = b'{"content":"x","metadata":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
        number = b'{"content":"x","metadata":{"a":[' + b",".join([b"9" * 5_000] * 100) + b"]}}"
        return [self.request("POST", PATH, deep), self.request("POST", PATH, number)] * 10

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(*self._requests)


class ManyKeys(Attack):
    """Posts objects of a thousand keys, as many as fit."""

    @cached_property
    def _request(self) -> bytes:
        one = json.dumps({f"k{n}": n for n in range(1_000)})
        return self.request("POST", PATH, f'{{"content":"x","metadata":{{"a":[{",".join([one] * 70)}]}}}}'.encode())

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(*[self._request] * 20)


class ByteChunks(Attack):
    """Posts a body in chunks of one byte each."""

    @cached_property
    def _request(self) -> bytes:
        body = b"1\r\n{\r\n" + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"
        return self.request("POST", PATH, body, "Transfer-Encoding: chunked\r\n")

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield from self.requested(self._request)


class DribbledBody(Attack):
    """Posts a body of 1 MB, of which a byte comes every half second."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(self.request("POST", PATH, b" " * 1_000_000)[:-1_000_000])
        while True:
            yield Send(b" ")
            yield Pause(0.5)


class NewPaths(Attack):
    """Asks for ever new paths, with ever new names of methods, channels and requests: labels, lines and keys."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        names = [f"{number:x}" for _, number in zip(range(50), self.numbers(), strict=False)]
        yield from self.requested(
            *[
                self.request("GET", f"/api/{kind}/{name}{rest}", headers=f"X-Request-Id: {name}\r\n")
                for name in names
                for kind, rest in (("channels", "/history"), ("presence", ""), (name, ""), ("users", "/sessions"))
            ],
            self.request(names[0].upper(), "/health"),
        )


class HalfClosedPost(Attack):
    """Posts a message and closes its sending side at once."""

    def script(self, peer: Peer) -> Script:  # noqa: ARG002
        yield Open(self.target.api_port)
        yield Send(self.request("POST", PATH, b'{"content":"half"}'))
        yield HalfClose()
        yield Receive()
