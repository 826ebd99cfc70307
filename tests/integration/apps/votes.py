"""An app with one of everything: handlers of each kind, a hook for rights, raw endpoints, a relay and a lifespan."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypedDict

import msgspec

from realtime import Grant, Publishing, Realtime, Refused, Session


@contextlib.asynccontextmanager
async def database(app: Realtime) -> AsyncIterator[None]:
    """Stand for what a real app opens before the first connection."""
    app.state.tally = {}
    yield
    print("the lifespan has ended", flush=True)


app = Realtime(lifespan=database)
app.policy("ledger:*", durable=True)


class Vote(msgspec.Struct, rename="camel"):
    """A vote as it comes."""

    poll: str
    choice: int
    why_not: str = ""


@dataclass
class Nap:
    """How long to take."""

    seconds: float


class Entry(TypedDict):
    """A line of a ledger."""

    ledger: str
    text: str


@app.authorize("poll:{poll}")
async def may_join(session: Session, poll: str) -> Grant | None:
    """Let everybody into public polls, and the owner into the others."""
    await asyncio.sleep(0)
    return Grant("subscribe") if poll.startswith("public") or poll == session.user else None


@app.authorize("board:{board}")
def may_point(session: Session, board: str) -> Grant | None:  # noqa: ARG001 - the hook's parameters are the contract
    """Let everybody look and point; to relay an event into a channel is to publish there."""
    return Grant("subscribe", "publish")


@app.authorize("ledger:{ledger}")
def may_read(session: Session, ledger: str) -> Grant | None:  # noqa: ARG001 - the hook's parameters are the contract
    """Let everybody read and write."""
    return Grant("subscribe", "publish", "history")


@app.on("vote")
async def vote(session: Session, vote: Vote) -> dict[str, int]:
    """Count a vote and tell who follows the poll."""
    if vote.choice > 3:
        raise Refused("not_found", "no such choice")
    if vote.choice < 0:
        raise RuntimeError(f"a secret that {session.user} must not see")
    tally: dict[str, int] = app.state.tally
    tally[vote.poll] = tally.get(vote.poll, 0) + 1
    await app.publish(f"poll:{vote.poll}", "tally", {"votes": tally[vote.poll]})
    return {"votes": tally[vote.poll]}


@app.on("nap")
async def nap(session: Session, nap: Nap) -> str:  # noqa: ARG001
    """Take a while without holding anybody else up."""
    await asyncio.sleep(nap.seconds)
    return "awake"


@app.on("write")
def write(session: Session, entry: Entry) -> Publishing:
    """Store a line; the engine acknowledges it once it is committed."""
    return app.publish(f"ledger:{entry['ledger']}", "line", {"text": entry["text"]}, user=session.user, number=True)


@app.on("whoami")
def whoami(session: Session) -> dict[str, str]:
    """Say what the server knows of the session."""
    return {"user": session.user, "session": session.id}


@app.on("goodbye")
def goodbye(session: Session) -> None:
    """Close the session from inside."""
    session.close(4503, "removed by the operator")


@app.raw("/echo", auth=False)
def echo(session: Session, message: str | bytes) -> None:
    """Send everything back as it came."""
    session.send(message)


@app.raw("/images", auth=False, compression=False)
def images(session: Session, message: str | bytes) -> None:
    """Send everything back as it came, which was compressed before."""
    session.send(message)


@app.raw("/private")
def private(session: Session, message: str | bytes) -> None:
    """Send everything back with the user's name."""
    session.send(f"{session.user}: {message!r}")


app.relay(
    "point",
    channel="board:{data.board}",
    event="pointed",
    data={"userId": "{session.user}", "at": "{data.at}", "label": "by {session.user}"},
)
