"""The HTTP application, asked as a server would: which routes there are, and who may have a token."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import jwt
import msgspec
import pytest
from litestar import Litestar

from realtime.api.http import Edge, application
from realtime.config import ApiSettings, AuthSettings, Keys, Settings

SECRET = "s" * 40
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


async def ask(
    app: Litestar, path: str, headers: dict[str, str] = LOCAL, method: str = "GET", body: bytes = b""
) -> Answer:
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 3001),
        "extensions": {},
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    start = sent[0]
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def app_with(keys: Keys, *, healthy: bool = True, users: tuple[str, ...] = ()) -> Litestar:
    def online() -> Iterator[str]:
        return iter(users)

    edge = Edge("ws://127.0.0.1:3002/ws", online, lambda: healthy)
    return application(Settings(auth=AuthSettings(audience="here")), keys, edge)


@pytest.fixture
def app() -> Litestar:
    """An application whose secret was generated."""
    return app_with(Keys((SECRET,), generated=True), users=("ann", "bob"))


async def token(app: Litestar, headers: dict[str, str] = JSON, body: object = None) -> Answer:
    sent = json.dumps({"user": "ann"} if body is None else body).encode()
    return await ask(app, "/api/dev/token", headers, "POST", sent)


async def test_health_says_whether_the_edge_serves(app: Litestar) -> None:
    answer = await ask(app, "/health")
    assert (answer.status, answer.json) == (HTTPStatus.OK, {"status": "ok"})
    answer = await ask(app_with(Keys((SECRET,), generated=False), healthy=False), "/health", {"host": "edge.example"})
    assert (answer.status, answer.json) == (HTTPStatus.SERVICE_UNAVAILABLE, {"status": "draining"})


@pytest.mark.parametrize(
    ("path", "media", "starts"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/index.html", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/main.js", "text/javascript; charset=utf-8", b"/**"),
        ("/style.css", "text/css; charset=utf-8", b"/*"),
        ("/icon.svg", "image/svg+xml", b"<svg"),
    ],
)
async def test_the_playground_is_served_with_its_files(app: Litestar, path: str, media: str, starts: bytes) -> None:
    answer = await ask(app, path)
    assert answer.status == HTTPStatus.OK
    assert answer.headers["content-type"] == media
    assert answer.body.startswith(starts)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "connect-src 'self' ws://127.0.0.1:3002;" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_playground_names_no_other_server(app: Litestar) -> None:
    for path in ("/", "/style.css", "/main.js", "/link.js", "/view.js", "/conversation.js", "/frames.js"):
        body = (await ask(app, path)).body
        assert b"http://" not in body
        assert b"https://" not in body
        assert b"innerHTML" not in body


@pytest.mark.parametrize("path", ["/nothing", "/__init__.py", "/../http.py", "/static/main.js", "/%2e%2e/http.py"])
async def test_any_other_path_is_not_found(app: Litestar, path: str) -> None:
    answer = await ask(app, path)
    assert (answer.status, answer.json) == (HTTPStatus.NOT_FOUND, {"message": "Not Found", "code": "not_found"})


async def test_another_method_is_the_callers_fault(app: Litestar) -> None:
    answer = await ask(app, "/api/dev/token")
    assert answer.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert answer.json["code"] == "invalid_message"


async def test_a_token_is_one_that_the_edge_accepts(app: Litestar) -> None:
    answer = await token(app)
    assert answer.status == HTTPStatus.OK
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["expiresInS"] == 12 * 3600
    claims = jwt.decode(answer.json["token"], SECRET, algorithms=["HS256"], audience="here")
    assert (claims["sub"], claims["exp"] - claims["iat"]) == ("ann", 12 * 3600)


async def test_the_page_is_told_where_the_edge_is_and_who_is_there(app: Litestar) -> None:
    assert (await ask(app, "/api/dev/config")).json == {"url": "ws://127.0.0.1:3002/ws"}
    assert (await ask(app, "/api/dev/people")).json == {"users": ["ann", "bob"]}
    crowd = app_with(Keys((SECRET,), generated=True), users=tuple(map(str, range(600))))
    assert len((await ask(crowd, "/api/dev/people")).json["users"]) == 500


@pytest.mark.parametrize("host", ["localhost", "localhost:3001", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:3001"])
async def test_a_host_of_this_machine_gets_a_token(app: Litestar, host: str) -> None:
    assert (await token(app, {**JSON, "host": host})).status == HTTPStatus.OK


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "evil.example:3001"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "127.0.0.1:3001@evil.example"},
        {"host": "127.0.0.2"},
        {"host": "0.0.0.0"},  # noqa: S104
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3001"},
        {"origin": "https://127.0.0.1:3001"},
        {"x-forwarded-for": "203.0.113.7"},
        {"forwarded": "for=203.0.113.7"},
        {"via": "1.1 proxy"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/dev/token", "/api/dev/config", "/api/dev/people", "/"])
async def test_anybody_else_is_refused(app: Litestar, path: str, headers: dict[str, str]) -> None:
    method, body = ("POST", b'{"user":"ann"}') if path.endswith("token") else ("GET", b"")
    answer = await ask(app, path, {**JSON, **headers}, method, body)
    assert answer.status == HTTPStatus.FORBIDDEN
    assert answer.json["code"] == "forbidden"
    assert b"token" not in answer.body


async def test_a_page_of_this_server_may_say_where_it_is_from(app: Litestar) -> None:
    assert (await token(app, {**JSON, "origin": "http://127.0.0.1:3001"})).status == HTTPStatus.OK


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_what_a_form_can_send_is_refused(app: Litestar, content_type: str) -> None:
    answer = await token(app, {**LOCAL, "content-type": content_type} if content_type else LOCAL)
    assert answer.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"user": 1},
        {"user": ""},
        {"user": "x" * 65},
        {"user": " ann"},
        {"user": "a\nb"},
        {"user": "a", "role": "b"},
    ],
    ids=str,
)
async def test_a_wrong_user_is_refused(app: Litestar, body: object) -> None:
    answer = await ask(app, "/api/dev/token", JSON, "POST", json.dumps(body).encode())
    assert (answer.status, answer.json["code"]) == (HTTPStatus.BAD_REQUEST, "invalid_message")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 5000])
async def test_a_body_that_is_not_json_is_refused(app: Litestar, body: bytes) -> None:
    assert (await ask(app, "/api/dev/token", JSON, "POST", body)).status == HTTPStatus.BAD_REQUEST


async def test_a_large_body_is_refused(app: Litestar) -> None:
    body = b" " * 100_000
    headers = {**JSON, "content-length": str(len(body))}
    assert (await ask(app, "/api/dev/token", headers, "POST", body)).status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


async def test_with_a_configured_secret_there_is_only_health() -> None:
    app = app_with(Keys((SECRET,), generated=False))
    for path in ("/", "/main.js", "/api/dev/config", "/api/dev/people"):
        assert (await ask(app, path)).status == HTTPStatus.NOT_FOUND
    assert (await token(app)).status == HTTPStatus.NOT_FOUND
    assert (await ask(app, "/health")).status == HTTPStatus.OK


async def test_a_route_that_breaks_says_nothing_of_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Iterator[str]:
        raise RuntimeError("a detail")

    edge = Edge("ws://127.0.0.1:3002/ws", broken, lambda: True)
    app = application(Settings(api=ApiSettings()), Keys((SECRET,), generated=True), edge)
    answer = await ask(app, "/api/dev/people")
    assert (answer.status, answer.json) == (500, {"message": "Internal error", "code": "internal"})
    assert "GET /api/dev/people failed" in caplog.text
