"""What the playground may ask of a server on one's own machine: a token for any name, and who is online.

Whoever reaches these routes can be anybody. `development` says who does; to all others they do not exist. A token is
given for JSON only, which no page of another origin can send without the browser's consent.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Protocol

import msgspec
from litestar import Request, Router, get, post
from litestar.exceptions import ValidationException

from realtime.api.bodies import Body
from realtime.api.routes import DEVELOPMENT, admitted_only

TOKEN_TTL_S = 12 * 3600
USERS_MAX = 500


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Who the token is for."""

    user: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


_TOKEN: Final[Body[TokenRequest]] = Body(TokenRequest)


class Token(msgspec.Struct, rename="camel"):
    """A token for the edge."""

    token: str
    expires_in_s: int


class Config(msgspec.Struct):
    """Where the edge listens."""

    url: str


class People(msgspec.Struct):
    """Who is online, at most `USERS_MAX` of them."""

    users: list[str]


class Sign(Protocol):
    """Signs a token for a user."""

    def __call__(self, user: str, *, ttl_s: float) -> str:
        """Return the token."""


def routes(sign: Sign, url: str, users: Callable[[], Iterable[str]]) -> Router:
    """Return the routes below `/api/dev`.

    Args:
        sign: signs tokens by the configuration in force.
        url: of the WebSocket endpoint.
        users: who is online now.
    """

    @get("/config", sync_to_thread=False)
    def config() -> Config:
        return Config(url)

    @get("/people", sync_to_thread=False)
    def people() -> People:
        return People([user for user, _ in zip(users(), range(USERS_MAX), strict=False)])

    @post("/token", status_code=200)
    async def token(request: Request[Any, Any, Any]) -> Token:
        # A form or plain text needs no consent of the browser to be sent from another page; JSON does.
        if request.content_type[0] != "application/json":
            raise ValidationException("send application/json")
        wanted = await _TOKEN.read(request)
        if wanted.user != wanted.user.strip() or not wanted.user.isprintable():
            raise ValidationException("a user is printable text without spaces at its ends")
        return Token(sign(wanted.user, ttl_s=TOKEN_TTL_S), TOKEN_TTL_S)

    return Router(
        "/api/dev",
        route_handlers=[config, people, token],
        guards=[admitted_only],
        opt={DEVELOPMENT: True},
        include_in_schema=False,
    )
