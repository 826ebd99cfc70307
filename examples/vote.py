"""A poll that everybody watches: a command with a checked payload, a channel of the app's own, an event to all members.

    realtime serve examples/vote.py

In two more terminals: `realtime sub poll:lunch`, and a client that sends
`{"type": "vote", "data": {"poll": "lunch", "choice": 1}, "id": 1}`.
"""

from collections import defaultdict

import msgspec

from realtime import Conversations, Grant, Realtime, Refused, Session

CHOICES = ("soup", "pasta", "salad", "nothing")

app = Realtime()
app.include(Conversations())
app.state.votes = defaultdict(dict)


class Vote(msgspec.Struct):
    """What a client sends."""

    poll: str
    choice: int


class Tally(msgspec.Struct):
    """Votes by choice; the voter gets it as the answer, everybody as the event."""

    poll: str
    votes: list[int]


@app.authorize("poll:{poll}")
async def may_join(session: Session, poll: str) -> Grant | None:
    if poll.startswith("staff-") and not session.user.endswith("@staff"):
        return None
    return Grant("subscribe")


@app.on("vote")
async def vote(session: Session, vote: Vote) -> Tally:
    if not 0 <= vote.choice < len(CHOICES):
        raise Refused("not_found", "no such choice", path="data.choice")
    chosen = app.state.votes[vote.poll]
    chosen[session.user] = vote.choice
    tally = Tally(vote.poll, [list(chosen.values()).count(choice) for choice in range(len(CHOICES))])
    await app.publish(f"poll:{vote.poll}", "tally", tally)
    return tally


if __name__ == "__main__":
    app.run()
