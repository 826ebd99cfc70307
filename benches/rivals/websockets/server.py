"""websockets on uvloop: a publication is its `broadcast` over the members of the channel."""

import http

import protocol
import uvloop
from websockets.asyncio.server import Request, Response, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed


class Peer:
    """A connection; what is to be sent to it alone waits until the command is through."""

    def __init__(self, socket: ServerConnection, user: str) -> None:
        self.socket, self.user = socket, user

    def send(self, frame: bytes) -> None:
        broadcast((self.socket,), frame, text=True)

    def subscribe(self, channel: str) -> None:
        protocol.channels[channel].add(self.socket)

    def unsubscribe(self, channel: str) -> None:
        protocol.channels[channel].discard(self.socket)

    def publish(self, channel: str, frame: bytes) -> None:
        broadcast(protocol.channels[channel], frame, text=True)


def authenticate(socket: ServerConnection, request: Request) -> Response | None:
    """Refuse a connect without a good token before the upgrade."""
    user = protocol.user_of(request.path)
    if user is None:
        return socket.respond(http.HTTPStatus.UNAUTHORIZED, "Unauthorized")
    socket.username = user
    return None


async def connected(socket: ServerConnection) -> None:
    """Serve a connection to its end."""
    peer = Peer(socket, socket.username)
    try:
        peer.send(protocol.greeting(peer.user))
        while True:
            # As bytes: the text is read by a JSON parser that takes them as they are.
            protocol.handle(peer, await socket.recv(decode=False))
    except ConnectionClosed:
        pass
    finally:
        protocol.leave_all(socket)


async def main() -> None:
    """Serve until the process is ended."""
    options = {"max_size": protocol.MESSAGE_BYTES_MAX, "backlog": protocol.BACKLOG, "ping_interval": 25}
    options["compression"] = "deflate" if protocol.COMPRESSED else None
    async with serve(connected, "127.0.0.1", protocol.PORT, process_request=authenticate, **options) as server:
        await server.serve_forever()


uvloop.run(main())
