"""An app that notes the order in which it is called, in handlers of each kind and in hooks."""

import asyncio
import time

import msgspec

from realtime import Grant, Realtime, Session

app = Realtime()
app.allow("news:*", "subscribe")
called: dict[str, list[int]] = {}


class Step(msgspec.Struct):
    """A command that knows its place among the client's commands."""

    n: int


def note(session: Session, n: int) -> None:
    """Note the call, and tell who is subscribed now."""
    called.setdefault(session.user, []).append(n)
    _ = app.publish(f"news:{session.user}", "noted", {"n": n})


@app.authorize("gate:{user}:{n}")
async def may_pass(session: Session, user: str, n: str) -> Grant:  # noqa: ARG001 -- a part of the pattern
    """Let everybody in, now at once and now later."""
    note(session, int(n))
    if int(n) % 2:
        await asyncio.sleep(0.001)
    return Grant("subscribe", "publish")


@app.on("plain")
def plain(session: Session, step: Step) -> None:
    """Return at once."""
    note(session, step.n)


@app.on("later")
async def later(session: Session, step: Step) -> None:
    """Wait, the longer the earlier it is."""
    await asyncio.sleep(0.003 if step.n % 3 == 0 else 0)
    note(session, step.n)


@app.on("thread", thread=True)
def thread(session: Session, step: Step) -> None:
    """Hold a thread."""
    time.sleep(0.001)
    note(session, step.n)


@app.on("guarded", right="publish", channel="gate:{data.channel}")
def guarded(session: Session, step: Step) -> None:
    """Run under a right that a hook gives: it goes up twice."""
    note(session, step.n)


@app.on("called")
def told(session: Session) -> list[int]:
    """Tell in which order this user's steps were called."""
    return called.pop(session.user, [])
