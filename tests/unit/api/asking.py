"""Asking the HTTP application as a server would, over an app in a `TestApp`: no sockets, the real hub and log."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self
from urllib.parse import unquote

import jwt
import msgspec

from realtime import Conversations, Realtime
from realtime.api.development import DevelopmentAccess
from realtime.api.edge import Edge
from realtime.api.http import application
from realtime.api.requests import Requests
from realtime.base.config import AuthSettings, Settings
from realtime.testing import TestApp

SECRET = "s" * 40
SERVICE_KEY = "k" * 40
LOCAL = {"host": "127.0.0.1:3001"}
JSON = {**LOCAL, "content-type": "application/json"}


class Answer(msgspec.Struct):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, str, str | None]:
        """Status, code and path of an error, whose shape is checked."""
        assert self.headers["content-type"] == "application/problem+json", self.body
        found = self.json
        assert found["status"] == self.status
        assert found["type"] == "about:blank"
        assert found["title"]
        assert found["detail"]
        return self.status, found["code"], found.get("path")


async def ask(
    app: Any,
    path: str,
    headers: dict[str, str] | list[tuple[str, str]] = LOCAL,
    method: str = "GET",
    body: bytes = b"",
    *,
    query: str | bytes = "",
    client: str = "127.0.0.1",
    receive: Callable[[], Awaitable[Any]] | None = None,
) -> Answer:
    """Send one request and return its answer; servers hand over a path that is decoded as a whole, and the raw one."""
    lines = headers.items() if isinstance(headers, dict) else headers
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": query.encode() if isinstance(query, str) else query,
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines],
        "client": (client, 50000),
        "server": ("127.0.0.1", 3001),
        "extensions": {},
    }
    sent: list[Any] = []

    async def whole() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive or whole, send)
    start = sent[0]
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


class World:
    """An app that is served to tests, and its HTTP side: `async with World() as world`."""

    def __init__(
        self, app: Realtime | None = None, *, generated: bool = False, draining: bool = False, **sections: Any
    ) -> None:
        if app is None:
            app = Realtime()
            app.include(Conversations())
        auth = sections.pop("auth", None) or AuthSettings(secrets=(SECRET,), service_keys=(SERVICE_KEY,))
        self.settings = Settings(auth=auth, **sections)
        self.test = TestApp(app, self.settings)
        self._draining = draining
        self.http: Any = None
        self.links: list[str] = []
        self.is_open = True
        self.development = DevelopmentAccess(SECRET, lambda: self.is_open, self.links.append) if generated else None

    async def __aenter__(self) -> Self:
        await self.test.__aenter__()
        edge = Edge(
            settings=self.settings,
            control=self.test.control,
            url="ws://127.0.0.1:3002/ws",
            is_draining=lambda: self._draining,
            not_ready=lambda: ["draining"] if self._draining else [],
            development=self.development,
        )
        self.http = Requests(application(edge), edge)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.test.__aexit__(None, None, None)

    async def ask(
        self, path: str, headers: dict[str, str] = LOCAL, method: str = "GET", body: bytes = b"", **options: Any
    ) -> Answer:
        """As `ask`; the engine runs meanwhile."""
        asked = asyncio.ensure_future(ask(self.http, path, headers, method, body, **options))
        while not asked.done():
            await self.test.settle()
        return asked.result()

    async def admitted(self) -> dict[str, str]:
        """Exchange the key of the link for the cookie; return the headers of a browser that has it."""
        assert self.development is not None
        query = self.development.link("").partition("?")[2]
        answer = await self.ask("/", query=query)
        return {**JSON, "cookie": answer.headers["set-cookie"].partition(";")[0]}

    async def call(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        user: str | None = None,
        key: bool = False,
        **options: Any,
    ) -> Answer:
        """Send JSON as a user, as a service, or as nobody."""
        headers = dict(JSON)
        if user is not None:
            headers["authorization"] = f"Bearer {self.token(user, **options.pop('claims', {}))}"
        if key:
            headers["authorization"] = f"Bearer {SERVICE_KEY}"
        headers |= options.pop("headers", {})
        body = b"" if content is None else json.dumps(content).encode()
        bare, _, query = path.partition("?")
        return await self.ask(bare, headers, method, body, query=query, **options)

    def token(self, user: str, **claims: Any) -> str:
        """Return a token that is good now: HTTP goes by the clock of the machine."""
        return jwt.encode({"sub": user, "exp": 2**33, **claims}, SECRET, algorithm="HS256")
