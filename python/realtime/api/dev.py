"""What the playground may ask of a server on one's own machine: a token for any name, and who is online.

Whoever reaches these routes can be anybody, so all of this must hold for each request, else it is answered as if the
route did not exist or is refused: the secret is the generated one (which keeps the listeners on loopback), the `Host`
is localhost, 127.0.0.1 or [::1] (a page on another name that resolves to this machine has another one), no proxy
has passed the request on, and a browser says that the page which asks is this one.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import NotFoundException, ValidationException
from litestar.handlers import BaseRouteHandler

from realtime.api.local import local_only
from realtime.config import AuthSettings, Keys
from realtime.identity import token_for

TOKEN_TTL_S = 12 * 3600
USERS_MAX = 500


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Who the token is for."""

    user: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


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


def routes(auth: AuthSettings, keys: Keys, url: str, users: Callable[[], Iterable[str]]) -> Router:
    """Return the routes below `/api/dev`.

    Args:
        auth: how tokens are signed.
        keys: with what; a configured secret answers 404 to everything here.
        url: of the WebSocket endpoint.
        users: who is online now.
    """

    def generated_only(_: ASGIConnection[Any, Any, Any, Any], __: BaseRouteHandler) -> None:
        if not keys.generated:
            raise NotFoundException("there is a configured secret: sign your own tokens")

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
        wanted = msgspec.json.decode(await request.body(), type=TokenRequest)
        if wanted.user != wanted.user.strip() or not wanted.user.isprintable():
            raise ValidationException("a user is printable text without spaces at its ends")
        return Token(token_for(wanted.user, auth, keys, ttl_s=TOKEN_TTL_S), TOKEN_TTL_S)

    return Router("/api/dev", route_handlers=[config, people, token], guards=[generated_only, local_only])
