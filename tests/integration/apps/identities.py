"""The built-in conversations, with commands that hand out tickets and take tokens back."""

import msgspec

from realtime import Conversations, Identity, Realtime, Session

app = Realtime()
app.include(Conversations())


class Revocation(msgspec.Struct, rename="camel"):
    """Whose tokens, or which."""

    user: str | None = None
    token_id: str | None = None


@app.on("ticket")
def ticket(session: Session) -> object:
    """Return a ticket for another connection of the same user."""
    return app.identities.issue_ticket(Identity(session.user))


@app.on("revoke")
async def revoke(_session: Session, wanted: Revocation) -> None:
    """Take tokens back; answered when that is stored."""
    await app.identities.revoke(user=wanted.user, token_id=wanted.token_id)
