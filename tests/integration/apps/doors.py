"""An app that decides by itself who comes in, from the headers of the upgrade."""

from realtime import Conversations, Identity, Realtime, Session, UpgradeRequest

app = Realtime()
app.include(Conversations())


@app.authenticate
async def by_header(request: UpgradeRequest) -> Identity | None:
    """Believe what a proxy in front says."""
    headers = dict(request.headers)
    user = headers.get("x-user")
    if user == "crash":
        raise RuntimeError("the door is broken")
    return Identity(user) if user else None


@app.on_open
async def greet(session: Session) -> None:
    """Tell each session its own name."""
    session.send({"type": "greeting", "data": {"user": session.user}})
