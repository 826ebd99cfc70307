"""picows on uvloop: one `send` a member."""

import asyncio

import protocol
import uvloop
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_create_server,
)


class Peer(WSListener):
    """A connection."""

    def __init__(self, user: str) -> None:
        super().__init__()
        self.user = user

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.send(protocol.greeting(self.user))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            protocol.handle(self, frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        protocol.leave_all(self.transport)

    def send(self, frame: bytes) -> None:
        self.transport.send(WSMsgType.TEXT, frame)

    def subscribe(self, channel: str) -> None:
        protocol.channels[channel].add(self.transport)

    def unsubscribe(self, channel: str) -> None:
        protocol.channels[channel].discard(self.transport)

    def publish(self, channel: str, frame: bytes) -> None:
        for member in protocol.channels[channel]:
            member.send(WSMsgType.TEXT, frame)


def connect(request: WSUpgradeRequest) -> Peer | WSUpgradeResponseWithListener:
    """Refuse a connect without a good token before the upgrade."""
    user = protocol.user_of(request.path.decode())
    if user is None:
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_error_response(401, b"Unauthorized"), None)
    return Peer(user)


async def main() -> None:
    """Serve until the process is ended."""
    options = {"max_frame_size": protocol.MESSAGE_BYTES_MAX, "backlog": protocol.BACKLOG}
    # The first size of its read buffer is kept for each connection; commands are far smaller.
    server = await ws_create_server(connect, "127.0.0.1", protocol.PORT, read_buffer_init_size=1024, **options)
    await server.serve_forever()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
