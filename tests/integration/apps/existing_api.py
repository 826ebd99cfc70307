"""An HTTP API that knows nothing of the edge: `python existing_api.py PORT FIRST`, on the standard library alone.

It keeps what was posted, numbers it from FIRST and answers it. What a message says decides what goes wrong with it:
`status 503`, `slow 0.5`, `garbage`, `truncated`, `reset`, `big`, `empty`, `list`, `deep`, `packed`, `redirect`,
`hook` (see HOOK_URL), `mixed`. `GET /seen` tells what was posted, `GET /all/WORD` makes every post go wrong so, and
`GET /all/` ends that.
"""

import gzip
import json
import os
import socket
import struct
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOOK_URL = os.environ.get("HOOK_URL", "")
"""Where event hooks go, with the key of `HOOK_KEY`: `hook` tells before it answers."""

BAD: dict[str, tuple[Any, ...]] = {
    "garbage": (201, b"<html>not what you think</html>"),
    "empty": (204, b""),
    "list": (200, b"[1]"),
    "deep": (200, b'{"a":' * 70 + b"1" + b"}" * 70),
    "surrogate": (200, b'{"id": "\\ud83d"}'),
    "redirect": (307, b"", {"location": "/elsewhere"}),
}
"""What is wrong as it stands: status, body, headers."""

MIXED = ("fine", "status 503", "fine", "reset", "fine", "slow 0.5", "truncated", "fine", "garbage", "fine", "fine")
"""What `mixed` is, one post after the other."""

seen: list[dict[str, Any]] = []
lock = threading.Lock()
ways: dict[str, str] = {"all": ""}
running = {"now": 0, "most": 0, "connections": 0}


class Api(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # The head and the body of an answer are two writes; the second must not wait for an acknowledgement of the first.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Count it."""
        super().setup()
        with lock:
            running["connections"] += 1

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Tell what was posted, or take an order."""
        if self.path == "/seen":
            with lock:
                self.answer(200, json.dumps({"posts": seen, **running}).encode())
            return
        ways["all"] = self.path.removeprefix("/all/").replace("%20", " ")
        self.answer(200, b"{}")

    def do_POST(self) -> None:
        """Take a message."""
        body = self.rfile.read(int(self.headers["content-length"]))
        message = json.loads(body)
        with lock:
            running["now"] += 1
            running["most"] = max(running["most"], running["now"])
            number = int(sys.argv[2]) + len(seen)
            seen.append({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, **message})
        try:
            self.take(number, message)
        finally:
            with lock:
                running["now"] -= 1

    def take(self, number: int, message: dict[str, Any]) -> None:
        """Answer as the message, or the order, says."""
        stored = {
            "id": f"m-{number}", "number": number, "conversationId": self.path.split("/")[-2],
            "by": "the existing API", **message,
        }  # fmt: skip
        word, _, rest = (ways["all"] or message["content"]).partition(" ")
        if word == "mixed":
            word, _, rest = MIXED[number % len(MIXED)].partition(" ")
        answer = json.dumps(stored).encode()
        if word in BAD:
            self.answer(*BAD[word])
            return
        match word:
            case "status":
                self.answer(int(rest.split()[0]), answer, {"retry-after": "7"} if "429" in rest else {})
            case "slow":
                time.sleep(float(rest.split()[0]))
                self.answer(201, answer)
            case "unnumbered":
                del stored["number"]
                self.answer(201, json.dumps(stored).encode())
            case "same":
                self.answer(201, json.dumps(stored | {"id": rest}).encode())
            case "packed":
                self.answer(200, gzip.compress(answer), {"content-encoding": "gzip"})
            case "big":
                self.answer(201, json.dumps(stored | {"content": "x" * 2_000_000}).encode())
            case "truncated":
                self.answer(201, answer[:20], {"content-length": str(len(answer))})
                self.close_connection = True
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            case "hook":
                tell(stored, self.path.split("/")[-2])
                self.answer(201, answer)
            case _:
                self.answer(201, answer)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Write one answer."""
        head = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def finish(self) -> None:
        """End a connection, also one that was reset."""
        try:
            super().finish()
        except (OSError, ValueError):
            self.close_connection = True


def tell(message: dict[str, Any], conversation_id: str) -> None:
    """Call the event hook of the edge."""
    event = {"type": "new_message", "conversationId": conversation_id, "data": message}
    request = urllib.request.Request(
        HOOK_URL,
        json.dumps(event).encode(),
        {"authorization": f"Bearer {os.environ['HOOK_KEY']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        response.read()


class Server(ThreadingHTTPServer):
    """Says nothing of connections that end in the middle."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Api).serve_forever()
