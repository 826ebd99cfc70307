"""What an `authenticate` hook gets of a request: cookies, the token wherever it stands, and the built-in rule."""

import logging
from http.cookies import SimpleCookie
from typing import Any

import pytest

from realtime import Identity, InvalidToken, Realtime, UpgradeRequest
from realtime.api.edge import Edge
from realtime.api.http import application
from realtime.api.requests import Requests
from realtime.base.config import AuthSettings, ConfigError, Settings
from realtime.identity import request_of
from realtime.testing import NotLetIn, TestApp
from tests.unit.api.asking import LOCAL, SECRET, ask


def signed_in() -> Realtime:
    app = Realtime()

    @app.authenticate
    async def who(request: UpgradeRequest) -> Identity | None:
        session = request.cookies.get("session")
        return Identity(session) if session else await app.token_identity(request)

    return app


def settings(**auth: Any) -> Settings:
    return Settings(auth=AuthSettings(secrets=(SECRET,), **auth))


class Doors:
    """One app at both doors."""

    def __init__(self, world: TestApp) -> None:
        self.world = world
        edge = Edge(
            settings=world.settings,
            control=world.control,
            url="ws://127.0.0.1:3002/ws",
            is_draining=lambda: False,
            not_ready=list,
        )
        self.http = Requests(application(edge), edge)

    async def by_http(self, user: str, *lines: tuple[str, str]) -> int:
        """Return the status of a request for the sessions of `user`."""
        headers = [("host", "127.0.0.1:3001"), *lines]
        answer = await ask(self.http, f"/api/users/{user}/sessions", headers)
        return answer.status

    async def by_socket(self, *lines: tuple[str, str], **options: Any) -> str:
        """Return the user as whom a socket is let in, or the close code."""
        try:
            return (await self.world.connect(headers=lines, **options)).session.user
        except NotLetIn as refused:
            return str(refused).split()[0]


COOKIES = [
    [("cookie", "session=ann; theme=dark")],
    [("cookie", "session=ann"), ("cookie", "theme=dark")],
    [("cookie", "theme=dark"), ("cookie", "session=ann")],
]


@pytest.mark.parametrize("lines", COOKIES, ids=str)
async def test_cookies_of_several_lines_are_one_list_at_both_doors(lines: list[tuple[str, str]]) -> None:
    async with TestApp(signed_in(), settings()) as world:
        doors = Doors(world)
        assert await doors.by_socket(*lines) == "ann"
        assert await doors.by_http("ann", *lines) == 200
    jar = SimpleCookie(request_of("/", "", lines, "").headers["cookie"])
    assert jar["session"].value == "ann"


def test_cookies_are_read_one_by_one() -> None:
    line = 'a=1; b="2"; c=x=y; a=3; broken; =4; d=; e=[{"f"}]'
    request = UpgradeRequest("/", {}, {"cookie": line}, "")
    assert request.cookies == {"a": "1", "b": "2", "c": "x=y", "d": "", "e": '[{"f"}]'}
    assert UpgradeRequest("/", {}, {}, "").cookies == {}


def test_a_token_is_found_wherever_it_stands_and_two_that_differ_are_refused() -> None:
    for query, headers, expected in (
        ({"token": "t"}, {}, "t"),
        ({}, {"authorization": "bearer t"}, "t"),
        ({}, {"sec-websocket-protocol": "realtime.v1, bearer.t"}, "t"),
        ({"token": "t"}, {"authorization": "Bearer t", "sec-websocket-protocol": "bearer.t"}, "t"),
        ({}, {"authorization": "Basic t"}, None),
        ({"token": ""}, {"authorization": "Bearer "}, None),
    ):
        assert UpgradeRequest("/", query, headers, "").token == expected
    with pytest.raises(InvalidToken, match="two tokens that differ"):
        _ = UpgradeRequest("/", {"token": "t"}, {"authorization": "Bearer u"}, "").token


async def test_a_hook_falls_back_to_the_built_in_rule_at_both_doors() -> None:
    async with TestApp(signed_in(), settings()) as world:
        doors = Doors(world)
        token = world.token("bob", {"file:*": ["subscribe"]})
        bearer = ("authorization", f"Bearer {token}")
        offered = ("sec-websocket-protocol", f"realtime.v1, bearer.{token}")
        assert await doors.by_socket(bearer) == "bob"
        assert await doors.by_socket(offered, first_version=True) == "bob"
        assert await doors.by_socket(token=token) == "bob"
        assert await doors.by_http("bob", bearer) == 200
        assert await doors.by_socket(("authorization", "Bearer wrong")) == "4501"
        assert await doors.by_http("bob", ("authorization", "Bearer wrong")) == 401
        assert await doors.by_socket() == "4501"
        assert await doors.by_http("bob") == 401


PAGES = [
    ("http://127.0.0.1:3001", None, True),
    ("http://localhost:3001", None, False),
    ("https://app.example", ("https://app.example/",), True),
    ("https://app.example", ("https://APP.example:443",), True),
    ("https://app.example:443", ("https://app.example",), True),
    ("https://other.example", ("https://app.example",), False),
    ("null", ("https://app.example",), False),
]


@pytest.mark.parametrize(("origin", "listed", "expected"), PAGES, ids=str)
async def test_pages_act_by_cookie_by_one_rule_at_both_doors(
    origin: str, listed: tuple[str, ...] | None, expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with TestApp(signed_in(), settings(origins=listed)) as world:
        doors = Doors(world)
        page, cookie = ("origin", origin), ("cookie", "session=ann")
        assert (await doors.by_http("ann", page, cookie)) == (200 if expected else 403)
        told = [record.getMessage() for record in caplog.records if "auth.origins" in record.getMessage()]
        assert len(told) == (0 if expected else 1)
        assert all(origin in line for line in told)


async def test_default_ports_are_the_same_origin() -> None:
    async with TestApp(signed_in(), settings()) as world:
        http = Doors(world).http
        for origin, host in (("http://h", "h:80"), ("http://h:80", "h"), ("https://h", "h:443"), ("https://h", "H")):
            headers = {"host": host, "origin": origin, "cookie": "session=ann"}
            assert (await ask(http, "/api/users/ann/sessions", headers)).status == 200, (origin, host)


async def test_listed_pages_may_read_answers_that_a_cookie_brought() -> None:
    async with TestApp(signed_in(), settings(origins=("https://app.example/",))) as world:
        http = Doors(world).http
        headers = {**LOCAL, "origin": "https://app.example", "cookie": "session=ann"}
        answer = await ask(http, "/api/users/ann/sessions", headers)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["access-control-allow-credentials"] == "true"
        preflight = {**LOCAL, "origin": "https://app.example", "access-control-request-method": "PATCH"}
        assert (await ask(http, "/api/conversations/1", preflight, "OPTIONS")).status == 204
        foreign = await ask(http, "/health", {**LOCAL, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("entry", ["*", "https://*.example", "a.example", "null", "https://a.example/app", "https://ü"])
async def test_an_origin_of_no_page_refuses_the_start_and_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.origins: origin ") as refused:
        TestApp(signed_in(), settings(origins=(entry,)))
    assert entry in str(refused.value)
