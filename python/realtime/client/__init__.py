"""A client for Python: one WebSocket, commands with replies, events in order.

    async with connect("ws://127.0.0.1:3002/ws", token=token) as client:
        await client.subscribe("conversation:42", last=20)
        await client.send("send_message", {"conversationId": "42", "content": "hi"})
        async for event in client:
            print(event.type, event.data)

It is thin: a lost connection ends it, and the position for coming back is in the subscription and in the offsets of
the events. It stands alone on the `websockets` library and imports nothing else of this package, so that it can be
lifted out; the server never imports it. The command line's `sub`, `pub` and `chat` are its users here.
"""

from realtime.client.connection import Client, connect
from realtime.client.errors import ClientError, CommandFailed, ConnectionEnded, NotConnected
from realtime.client.events import Event, Position, Subscription

__all__ = [
    "Client",
    "ClientError",
    "CommandFailed",
    "ConnectionEnded",
    "Event",
    "NotConnected",
    "Position",
    "Subscription",
    "connect",
]
