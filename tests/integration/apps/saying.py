"""An app whose handler publishes what it is given: what `realtime bench --type say` is for."""

import msgspec

from realtime import Publishing, Realtime, Session

app = Realtime()
app.allow("room:*")


class Say(msgspec.Struct):
    """An event for a channel."""

    channel: str
    event: str
    data: msgspec.Raw


@app.on("say")
def say(session: Session, said: Say) -> Publishing:
    """Publish it as this user's."""
    return app.publish(said.channel, said.event, said.data, user=session.user)
