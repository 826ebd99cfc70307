"""socketify (uWebSockets under CPython by cffi): native topics, `app.publish`."""

from typing import Any

import protocol
from socketify import App, AppListenOptions, CompressOptions, OpCode

app = App()


class Peer:
    """A connection; uWebSockets lends the socket for the time of a callback only."""

    def __init__(self, user: str) -> None:
        self.user, self.socket = user, None

    def send(self, frame: bytes) -> None:
        self.socket.send(frame, OpCode.TEXT, protocol.COMPRESSED)

    def subscribe(self, channel: str) -> None:
        self.socket.subscribe(channel)

    def unsubscribe(self, channel: str) -> None:
        self.socket.unsubscribe(channel)

    def publish(self, channel: str, frame: bytes) -> None:
        app.publish(channel, frame, OpCode.TEXT, protocol.COMPRESSED)


def upgrade(response: Any, request: Any, context: Any) -> None:
    """Refuse a connect without a good token before the upgrade."""
    user = protocol.subject(request.get_query("token") or "")
    if user is None:
        response.write_status(401).end("Unauthorized")
        return
    key, subprotocol = request.get_header("sec-websocket-key"), request.get_header("sec-websocket-protocol")
    extensions = request.get_header("sec-websocket-extensions")
    response.upgrade(key, subprotocol, extensions, context, Peer(user))


def opened(socket: Any) -> None:
    """Greet."""
    peer = socket.get_user_data()
    peer.socket = socket
    peer.send(protocol.greeting(peer.user))
    peer.socket = None


def received(socket: Any, message: str | bytes, _opcode: OpCode) -> None:
    """Carry out a command."""
    peer = socket.get_user_data()
    peer.socket = socket
    protocol.handle(peer, message)
    peer.socket = None


settings = {
    "compression": CompressOptions.SHARED_COMPRESSOR if protocol.COMPRESSED else CompressOptions.DISABLED,
    "max_payload_length": protocol.MESSAGE_BYTES_MAX,
    "idle_timeout": 300,
    "upgrade": upgrade,
    "open": opened,
    "message": received,
}
app.ws("/ws", settings)
app.any("/*", lambda response, _request: response.write_status(404).end("WebSocket endpoint not found"))
app.listen(AppListenOptions(port=protocol.PORT, host="127.0.0.1"), lambda _config: None)
app.run()
