"""W2 and W6 through Python: what the relay does by itself, done by a handler that takes the event and publishes it.

The command is `say` with the data of `publish`; the event that comes of it is the same.
"""

import msgspec

from realtime import Grant, Publishing, Realtime, Session

app = Realtime()


class Said(msgspec.Struct):
    """What a client sends."""

    channel: str
    event: str
    data: msgspec.Raw


@app.authorize("bench:{name}")
async def may_join(session: Session, name: str) -> Grant:  # noqa: ARG001 -- given by name
    return Grant("subscribe")


@app.on("say")
def say(session: Session, said: Said) -> Publishing:
    return app.publish(said.channel, said.event, said.data, user=session.user)
