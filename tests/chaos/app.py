"""The server under attack: the built-in app, and a raw endpoint beside it."""

from realtime import Conversations, Realtime, Session

app = Realtime()
app.include(Conversations())


@app.raw("/echo")
def echo(session: Session, message: str | bytes) -> None:
    session.send(message)
