"""Starlette served by granian, one worker: a publication is one awaited `send_text` a member."""

import protocol
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


class Peer:
    """A connection; what a command wants sent is sent when it is through, since sending is awaited."""

    def __init__(self, socket: WebSocket, user: str) -> None:
        self.socket, self.user = socket, user
        self.waiting: list[tuple[list[WebSocket], str]] = []

    def send(self, frame: bytes) -> None:
        self.waiting.append(([self.socket], frame.decode()))

    def subscribe(self, channel: str) -> None:
        protocol.channels[channel].add(self.socket)

    def unsubscribe(self, channel: str) -> None:
        protocol.channels[channel].discard(self.socket)

    def publish(self, channel: str, frame: bytes) -> None:
        self.waiting.append((list(protocol.channels[channel]), frame.decode()))

    async def flush(self) -> None:
        """Send what waits."""
        for members, text in self.waiting:
            for member in members:
                await member.send_text(text)
        self.waiting.clear()


async def connected(socket: WebSocket) -> None:
    """Serve a connection to its end; without a good token it is refused before the upgrade."""
    user = protocol.subject(socket.query_params.get("token", ""))
    if user is None:
        await socket.close()
        return
    await socket.accept()
    peer = Peer(socket, user)
    try:
        peer.send(protocol.greeting(user))
        while True:
            await peer.flush()
            protocol.handle(peer, await socket.receive_text())
    except (WebSocketDisconnect, RuntimeError):
        pass  # a member that has gone: its own task forgets it
    finally:
        protocol.leave_all(socket)


app = Starlette(routes=[WebSocketRoute("/ws", connected)])
