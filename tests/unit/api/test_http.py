"""The HTTP application, asked as a server would: which routes there are, and who may have a token."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import jwt
import pytest

from realtime.api import documents, metrics
from realtime.api.development import DevelopmentAccess
from realtime.base.config import AuthSettings
from tests.kit import eventually
from tests.unit.api.asking import JSON, LOCAL, SECRET, Answer, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """An application whose secret was generated."""
    async with World(generated=True, auth=AuthSettings(secrets=(SECRET,), audience="here")) as made:
        yield made


async def token(world: World, headers: dict[str, str] | None = None, body: object = None) -> Answer:
    sent = json.dumps({"user": "ann"} if body is None else body).encode()
    return await world.ask("/api/dev/token", await world.admitted() if headers is None else headers, "POST", sent)


async def test_health_says_whether_the_edge_serves(world: World) -> None:
    for path, expected in (("/health", {"status": "ok"}), ("/ready", {"status": "ready", "reasons": []})):
        answer = await world.ask(path)
        told = answer.json
        memory = told.pop("memory", {"heldBytes": 0, "limitBytes": 1})
        assert (answer.status, told) == (HTTPStatus.OK, expected)
        assert 0 <= memory["heldBytes"] < memory["limitBytes"]
    async with World(draining=True) as draining:
        said = {"/health": {"status": "draining"}, "/ready": {"status": "not_ready", "reasons": ["draining"]}}
        for path, wanted in said.items():
            answer = await draining.ask(path, {"host": "edge.example"})
            told = answer.json
            told.pop("memory", None)
            assert (answer.status, told) == (HTTPStatus.SERVICE_UNAVAILABLE, wanted)
        answer = await draining.ask("/api/conversations/7/messages")
        assert answer.problem == (503, "draining", None)
        assert answer.headers["retry-after"] == "1"


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
async def test_the_playground_is_served_with_its_files(world: World, path: str, media: str, starts: bytes) -> None:
    answer = await world.ask(path, await world.admitted())
    assert answer.status == HTTPStatus.OK
    assert answer.headers["content-type"] == media
    assert answer.body.startswith(starts)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "connect-src 'self' ws://127.0.0.1:3002;" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_playground_names_no_other_server(world: World) -> None:
    for path in ("/", "/style.css", "/main.js", "/link.js", "/view.js", "/conversation.js", "/frames.js"):
        body = (await world.ask(path, await world.admitted())).body
        assert b"http://" not in body
        assert b"https://" not in body
        assert b"innerHTML" not in body


@pytest.mark.parametrize("path", ["/nothing", "/__init__.py", "/../http.py", "/static/main.js", "/%2e%2e/http.py"])
async def test_any_other_path_is_not_found(world: World, path: str) -> None:
    answer = await world.ask(path)
    assert answer.problem == (404, "not_found", None)


async def test_another_method_is_the_callers_fault(world: World) -> None:
    answer = await world.ask("/api/tickets")
    assert answer.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert answer.headers["allow"] == "OPTIONS, POST"
    assert answer.json["code"] == "invalid_message"


async def test_a_token_is_one_that_the_edge_accepts(world: World) -> None:
    answer = await token(world)
    assert answer.status == HTTPStatus.OK
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json["expiresInS"] == 12 * 3600
    # By the clock of the test.
    options: Any = {"verify_exp": False}
    claims = jwt.decode(answer.json["token"], SECRET, algorithms=["HS256"], audience="here", options=options)
    assert (claims["sub"], claims["exp"] - claims["iat"]) == ("ann", 12 * 3600)


async def test_the_page_is_told_where_the_edge_is_and_who_is_there(world: World) -> None:
    admitted = await world.admitted()
    assert (await world.ask("/api/dev/config", admitted)).json == {"url": "ws://127.0.0.1:3002/ws"}
    for user in ("bob", "ann", "ann"):
        await world.test.connect(user)
    assert (await world.ask("/api/dev/people", admitted)).json == {"users": ["ann", "bob"]}


@pytest.mark.parametrize("host", ["localhost", "localhost:3001", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:3001"])
async def test_a_host_of_this_machine_gets_a_token(world: World, host: str) -> None:
    assert (await token(world, {**await world.admitted(), "host": host})).status == HTTPStatus.OK


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
        {"x-real-ip": "203.0.113.7"},
        {"x-forwarded-proto": "https"},
        {"x-original-forwarded-for": "203.0.113.7"},
        {"cf-ray": "1"},
        {"x-amzn-trace-id": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/dev/token", "/api/dev/config", "/api/dev/people", "/"])
async def test_anybody_else_is_refused(world: World, path: str, headers: dict[str, str]) -> None:
    method, body = ("POST", b'{"user":"ann"}') if path.endswith("token") else ("GET", b"")
    answer = await world.ask(path, {**await world.admitted(), **headers}, method, body)
    unknown = await world.ask("/nothing", {**await world.admitted(), **headers}, method, body)
    assert (answer.status, answer.body) == (HTTPStatus.NOT_FOUND, unknown.body)


@pytest.mark.parametrize("client", ["192.0.2.2", "10.0.0.1", "::ffff:192.0.2.2", "fe80::1", "", "unix"])
async def test_a_peer_that_is_not_this_machine_is_refused(world: World, client: str) -> None:
    for path in ("/", "/main.js", "/api/dev/people"):
        assert (await world.ask(path, await world.admitted(), client=client)).status == HTTPStatus.NOT_FOUND
    assert (await world.ask("/api/dev/people", await world.admitted(), client="::ffff:127.0.0.1")).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/main.js", "/api/dev/config", "/api/dev/token", "//api//dev/token/"])
async def test_without_the_cookie_no_development_route_exists(world: World, path: str, method: str) -> None:
    for cookie in ({}, {"cookie": "realtime_dev=1"}, {"cookie": (await world.admitted())["cookie"] + "x"}):
        answer = await world.ask(path, {**JSON, **cookie}, method, b'{"user":"ann"}')
        assert answer.status == HTTPStatus.NOT_FOUND
        assert "allow" not in answer.headers


async def test_a_key_works_once_and_each_use_prints_the_next(world: World) -> None:
    assert world.development is not None
    query = world.development.link("").partition("?")[2]
    for method in ("HEAD", "POST"):
        assert (await world.ask("/", LOCAL, method, query=query)).status == HTTPStatus.NOT_FOUND
    assert (await world.ask("/", {**LOCAL, "via": "1.1 proxy"}, query=query)).status == HTTPStatus.NOT_FOUND
    first = await world.ask("/", query=query)
    assert first.status == HTTPStatus.OK
    name, value = first.headers["set-cookie"].partition(";")[0].split("=", 1)
    assert first.headers["set-cookie"] == f"{name}={value}; Max-Age=604800; Path=/; HttpOnly; SameSite=Strict"
    assert first.headers["cache-control"] == "no-store"
    assert (await world.ask("/", query=query)).status == HTTPStatus.NOT_FOUND
    assert len(world.links) == 1
    assert world.links[0].startswith("http://127.0.0.1:3001/?key=")
    assert query not in world.links[0]
    assert (await world.ask("/", query=world.links[0].partition("?")[2])).status == HTTPStatus.OK
    # The first browser stays.
    assert (await world.ask("/", {**LOCAL, "cookie": f"theme=dark; {name}={value}"})).status == HTTPStatus.OK


@pytest.mark.parametrize("key", ["", "x", "x" * 10_000, "%ff", "\u00e9"])
async def test_a_wrong_key_opens_nothing_and_says_where_the_right_one_is(world: World, key: str) -> None:
    answer = await world.ask("/", query=f"key={key}")
    assert answer.problem == (404, "not_found", None)
    assert "link with ?key= that the server printed" in answer.json["detail"]


async def test_a_cookie_outlives_a_restart_but_not_its_time_nor_another_secret() -> None:
    now_s = 1_000_000.0
    first = DevelopmentAccess(SECRET, lambda: True, lambda _: None, lambda: now_s)
    scope = {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "method": "GET", "path": "/"}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await first.exchange(scope, send)
    cookie = dict(sent[0]["headers"])[b"set-cookie"].partition(b";")[0]
    shown = {**scope, "headers": [*scope["headers"], (b"cookie", b"a=b"), (b"Cookie", cookie)]}
    assert first.admits(shown)
    assert DevelopmentAccess(SECRET, lambda: True, print, lambda: now_s + 604_799).admits(shown)
    assert not DevelopmentAccess(SECRET, lambda: True, print, lambda: now_s + 604_800).admits(shown)
    assert not DevelopmentAccess(SECRET[1:], lambda: True, print, lambda: now_s).admits(shown)
    assert not DevelopmentAccess(SECRET, lambda: False, print, lambda: now_s).admits(shown)


async def test_a_secret_that_is_configured_later_ends_the_playground(world: World) -> None:
    admitted = await world.admitted()
    assert (await world.ask("/", admitted)).status == HTTPStatus.OK
    world.is_open = False
    assert (await world.ask("/", admitted)).status == HTTPStatus.NOT_FOUND
    assert (await token(world, admitted)).status == HTTPStatus.NOT_FOUND


async def test_a_page_of_this_server_may_say_where_it_is_from(world: World) -> None:
    assert (await token(world, {**await world.admitted(), "origin": "http://127.0.0.1:3001"})).status == HTTPStatus.OK


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_what_a_form_can_send_is_refused(world: World, content_type: str) -> None:
    headers = {**await world.admitted(), "content-type": content_type}
    answer = await token(world, {name: value for name, value in headers.items() if value})
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
async def test_a_wrong_user_is_refused(world: World, body: object) -> None:
    answer = await world.ask("/api/dev/token", await world.admitted(), "POST", json.dumps(body).encode())
    assert (answer.status, answer.json["code"]) == (HTTPStatus.BAD_REQUEST, "invalid_message")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 5000])
async def test_a_body_that_is_not_json_is_refused(world: World, body: bytes) -> None:
    assert (await world.ask("/api/dev/token", await world.admitted(), "POST", body)).status == HTTPStatus.BAD_REQUEST


async def test_a_large_body_is_refused(world: World) -> None:
    body = b" " * 1_100_000
    headers = {**await world.admitted(), "content-length": str(len(body))}
    assert (await world.ask("/api/dev/token", headers, "POST", body)).problem == (413, "too_large", None)


async def test_with_a_configured_secret_there_is_no_playground() -> None:
    async with World() as world:
        for path in ("/", "/main.js", "/api/dev/config", "/api/dev/people"):
            assert (await world.ask(path)).status == HTTPStatus.NOT_FOUND
        assert (await token(world, JSON)).status == HTTPStatus.NOT_FOUND
        assert (await world.ask("/health")).status == HTTPStatus.OK


async def test_a_route_that_breaks_says_nothing_of_the_reason(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("a detail")

    world.test.control.broadcaster.history = broken  # type: ignore[assignment, method-assign]
    answer = await world.call("GET", "/api/conversations/7/messages", user="ann", claims={"aud": "here"})
    assert answer.problem == (500, "internal", None)
    assert b"detail" not in answer.body.replace(b'"detail"', b"")
    assert "GET /api/conversations/7/messages failed" in caplog.text


async def test_the_id_of_a_request_is_kept_or_made(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="realtime.api")
    kept = await world.ask("/nothing", {**LOCAL, "x-request-id": "from-you-1"})
    assert kept.headers["x-request-id"] == "from-you-1"
    record = next(record for record in caplog.records if record.getMessage() == "GET /nothing")
    assert {**vars(record)["realtime_facts"], "ms": 0} == {"status": 404, "ms": 0, "request": "from-you-1"}
    for wrong in ("", "x" * 129, "two\nlines", "\u00e9"):
        made = await world.ask("/nothing", {**LOCAL, "x-request-id": wrong})
        assert len(made.headers["x-request-id"]) == 36


async def test_pages_of_the_named_origins_may_call_and_no_others() -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    async with World(auth=AuthSettings(secrets=(SECRET,), origins=("https://app.example",))) as open_to_one:
        preflight = await open_to_one.ask("/api/events", {**LOCAL, **asks}, "OPTIONS")
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        refused = await open_to_one.ask("/api/events", {**JSON, **asks}, "POST")
        assert refused.problem[:2] == (401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        other = await open_to_one.ask("/api/events", {**JSON, "origin": "https://evil.example"}, "POST")
        assert "access-control-allow-origin" not in other.headers
    async with World() as closed:
        answer = await closed.ask("/api/events", {**JSON, **asks}, "POST")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/docs", "/docs/openapi.json", "/docs/page.js"])
async def test_head_is_get_without_the_body(world: World, path: str) -> None:
    got, head = await world.ask(path), await world.ask(path, method="HEAD")
    assert (head.status, head.body) == (got.status, b"")
    if path != "/metrics":  # its figures move
        assert head.headers["content-length"] == str(len(got.body))
    assert head.headers.keys() == got.headers.keys()


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/health", "GET, HEAD, OPTIONS"),
        ("/api/conversations/7", "OPTIONS, PATCH"),
        ("/api/conversations/7/messages", "GET, HEAD, OPTIONS, POST"),
        ("/api/conversations/7/messages/3", "DELETE, OPTIONS, PATCH"),
        ("/api/users/ann/sessions", "DELETE, GET, HEAD, OPTIONS"),
        ("/api/events", "OPTIONS, POST"),
    ],
)
async def test_options_and_405_name_every_method(world: World, path: str, allowed: str) -> None:
    answer = await world.ask(path, method="OPTIONS")
    assert (answer.status, answer.headers["allow"], answer.body) == (HTTPStatus.NO_CONTENT, allowed, b"")
    refused = await world.ask(path, method="TRACE")
    assert refused.problem == (405, "invalid_message", None)
    assert refused.headers["allow"] == allowed
    assert (await world.ask(f"{path}/x/y", method="OPTIONS")).status == HTTPStatus.NOT_FOUND


async def test_a_head_that_is_too_long_is_431(world: World) -> None:
    assert (await world.ask("/health", {**LOCAL, "cookie": "x" * 60_000})).status == HTTPStatus.OK
    answer = await world.ask("/health", {**LOCAL, "cookie": "x" * 70_000})
    assert answer.problem == (431, "too_large", None)
    assert "limits.head_bytes_max" in answer.json["detail"]


async def test_the_document_is_made_once_however_many_ask_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made, goes_on, make = [], threading.Event(), documents.with_bodies

    def slow(*arguments: Any) -> dict[str, Any]:
        made.append(arguments)
        goes_on.wait(60)
        return make(*arguments)

    monkeypatch.setattr(documents, "with_bodies", slow)
    async with World() as world:
        first, gone, *others = [asyncio.create_task(world.ask("/docs/openapi.json")) for _ in range(20)]
        await eventually(lambda: made, what="the making of the document")
        gone.cancel()
        goes_on.set()
        answers = await asyncio.gather(first, *others)
        again = await world.ask("/docs/openapi.json")
    assert len(made) == 1
    assert {answer.status for answer in answers} == {200}
    assert {answer.body for answer in answers} == {again.body}


def test_who_asks_for_metrics_all_the_time_is_given_the_newest_again() -> None:
    made, now_s = [], 100.0

    def make() -> bytes:
        made.append(now_s)
        return b"%d" % len(made)

    text = metrics.Text(make, lambda: now_s)
    assert [text() for _ in range(metrics.TEXTS_PER_S)] == [
        b"%d" % (number + 1) for number in range(metrics.TEXTS_PER_S)
    ]
    assert {text() for _ in range(1000)} == {b"20"}
    now_s += 0.06
    assert [text(), text()] == [b"21", b"21"]
    now_s += 3600
    assert len({text() for _ in range(1000)}) == metrics.TEXTS_PER_S
