"""`DevelopmentAccess`: who may use the playground and `/api/dev`, where a token is given for any name.

As notebooks do it: the start prints a link with a key that works once, and whoever opens it gets a cookie. Without
that cookie the routes do not exist. All of this must hold for each request: the secret is the generated one, the
request is local (`local`), and the cookie is good. The cookie is signed with a key derived from the generated secret,
so it outlives restarts and works for one data directory only. Each exchange prints the link for the next browser.

Called by `routes` for every request, and by `cli.serving` and `embedded`, which print the first link.
"""

import base64
import contextlib
import hashlib
import hmac
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qsl

from realtime.api.answers import answer
from realtime.api.local import Scope, is_local
from realtime.serving.server import Server

COOKIE_S: Final = 7 * 24 * 3600
"""How long a browser stays admitted, in seconds."""
ROOT: Final = "realtime.root"
"""The key of a scope that holds the path below which our routes are served; absent where that is `/`."""
ADMITTED: Final = "realtime.development"
"""The key of a scope that is set for requests which may see the development routes."""
_KEY_CHARS_MAX: Final = 64
_COOKIE_CHARS_MAX: Final = 100
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="0;url=./">
<title>Realtime playground</title>
<p><a href="./">Open the playground</a></p>
</html>
"""


class DevelopmentAccess:
    """The one-time key and the cookies of one server.

    Args:
        secret: the generated secret.
        is_open: whether the generated secret is still the one in force.
        announce: is given each further link, to print it.
        now_s: seconds since 1970.
    """

    def __init__(
        self,
        secret: str,
        is_open: Callable[[], bool],
        announce: Callable[[str], object],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._signing_key = hmac.digest(secret.encode(), b"realtime-edge: development cookie", "sha256")
        self._is_open = is_open
        self._announce = announce
        self._now_s = now_s
        self._key = secrets.token_urlsafe(32)
        # Cookies do not tell ports apart, so the name tells servers apart.
        self.cookie_name = f"realtime_dev_{hmac.new(self._signing_key, b'name', hashlib.sha256).hexdigest()[:8]}"

    def link(self, address: str) -> str:
        """Return the address of the playground with the key, which works once."""
        return f"{address}/?key={self._key}"

    def knows(self, scope: Scope) -> bool:
        """Whether a request may be told how to get the cookie."""
        return self._is_open() and is_local(scope)

    def admits(self, scope: Scope) -> bool:
        """Whether a request may see the development routes."""
        return self.knows(scope) and any(map(self._is_good, self._cookies(scope)))

    def offers(self, scope: Scope) -> bool:
        """Whether a request shows the key and may exchange it."""
        key = _key_of(scope)
        if key is None or not self.knows(scope):
            return False
        return hmac.compare_digest(key.encode("utf-8", "replace"), self._key.encode())

    async def exchange(self, scope: Scope, send: Callable[[Any], Any]) -> None:
        """Answer a request that shows the key with the cookie; the key is another one from here on."""
        self._key = secrets.token_urlsafe(32)
        self._announce(self.link(address_of(scope)))
        expires_s = int(self._now_s()) + COOKIE_S
        cookie = f"{self.cookie_name}={self._signed(expires_s)}; Max-Age={COOKIE_S}; Path=/; HttpOnly; SameSite=Strict"
        headers = {
            "content-type": "text/html; charset=utf-8",
            "set-cookie": cookie,
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        await answer(send, 200, _PAGE, *((name.encode(), value.encode()) for name, value in headers.items()))

    def _signed(self, expires_s: int) -> str:
        seal = hmac.digest(self._signing_key, str(expires_s).encode(), "sha256")
        return f"{expires_s}.{base64.urlsafe_b64encode(seal).rstrip(b'=').decode()}"

    def _is_good(self, value: str) -> bool:
        expires, _, _ = value.partition(".")
        if len(value) > _COOKIE_CHARS_MAX or not (expires.isascii() and expires.isdecimal()):
            return False
        is_ours = hmac.compare_digest(value.encode("utf-8", "replace"), self._signed(int(expires)).encode())
        return is_ours and int(expires) > self._now_s()

    def _cookies(self, scope: Scope) -> Iterator[str]:
        for name, line in scope["headers"]:
            if name.lower() == b"cookie":
                for pair in line.decode("latin-1").split(";"):
                    key, _, value = pair.strip().partition("=")
                    if key == self.cookie_name:
                        yield value


def access_to(server: Server) -> DevelopmentAccess | None:
    """Return the access to a server's playground, which prints its further links; None with a configured secret."""
    if not server.keys.generated:
        return None
    identities = server.control.identities
    return DevelopmentAccess(server.keys.secrets[0], lambda: identities.is_generated, print_link)


def print_link(link: str) -> None:
    """Print a link to the playground, where there is anything to print to."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(f"  Playground  {link}\n")
            sys.stdout.flush()


def address_of(scope: Scope) -> str:
    """Return the address, as a local request names it, below which our routes are served."""
    host = next(value for name, value in scope["headers"] if name.lower() == b"host").decode("latin-1")
    return f"http://{host}{scope.get(ROOT, '')}"


def _key_of(scope: Scope) -> str | None:
    """Return the key that a request for the page shows."""
    if scope["method"] != "GET" or scope["path"].strip("/") not in ("", "index.html"):
        return None
    query = scope["query_string"].decode("latin-1")
    key = next((value for name, value in parse_qsl(query) if name == "key"), None)
    return key if key is not None and len(key) <= _KEY_CHARS_MAX else None
