"""The built-in app: conversations, as the wire protocol describes them, written on the public API alone.

One family of commands a file: `messages` (`send_message`), `typing` (`typing_start`, `typing_stop`), and here what
they share: the channels `conversation:{id}`, which are durable, and who may use them. Subscribing, history and `ping`
are the engine's own. `app.include(Conversations())` adds it to an app; `realtime serve` without an app serves it alone.
"""

from realtime.app.app import Realtime
from realtime.base.config import Settings
from realtime.conversations.messages import Messages
from realtime.conversations.typing import relay_typing

__all__ = ["Conversations"]


class Conversations:
    """Conversations for an app: `app.include(Conversations())`.

    `conversations.access` decides who takes part: with `open` whoever is signed in, with `grants` whom a token or an
    `authorize` hook lets in. Sending needs the right `publish`, as subscribing needs `subscribe`. An id with a colon in
    it, such as `team:1`, is never open: it needs a grant on `conversation:team:1`, and is stored like any other.
    """

    def register(self, app: Realtime, settings: Settings) -> None:
        """Declare the channels, their rights and the commands on `app`."""
        conversations = settings.conversations
        app.policy("conversation:**", durable=True, history=conversations.history, overflow=conversations.overflow)
        if conversations.access == "open":
            app.allow("conversation:*")
        Messages(app, forwards=settings.api.url is not None).register()
        relay_typing(app, timeout_s=settings.typing.timeout_s)
