"""Typing indicators: rules for the engine, which relays them without asking Python.

Every `typing_start` and `typing_stop` is relayed to all subscribers, the sender too. A start ends by itself `timeout_s`
after the last one of that user in that conversation, on unsubscribe and on close. Called by `Conversations`.
"""

from realtime.app.app import Realtime

_CHANNEL = "conversation:{data.conversationId}"
_USER = "{session.user}"


def relay_typing(app: Realtime, *, timeout_s: float) -> None:
    """Declare the two relays on `app`."""
    app.relay(
        "typing_start",
        channel=_CHANNEL,
        event="typing_indicator",
        data={"userId": _USER, "isTyping": True},
        latest_by=_USER,
        ends_after_s=timeout_s,
        undo={"isTyping": False},
    )
    app.relay(
        "typing_stop",
        channel=_CHANNEL,
        event="typing_indicator",
        data={"userId": _USER, "isTyping": False},
        latest_by=_USER,
        ends="typing_start",
    )
