"""Other ASGI apps on the HTTP port: whose request it is, streams, lifespans, and what happens when they fail."""

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tests.kit import PATIENCE_S, REALTIME, Server, free_port

APP = Path(__file__).parent / "apps" / "mounted.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both apps, which all tests here use."""
    server = Server(tmp_path_factory.mktemp("mounted"), app=f"{APP}:app", api=True)
    server.start_now()
    yield server
    if server.is_running():
        assert server.stop_now() == 0, server.output


@pytest.fixture
def web(served: Server) -> Iterator[httpx2.Client]:
    """A client of its HTTP port."""
    with httpx2.Client(base_url=served.api_url, trust_env=False) as client:
        yield client


def logged(server: Server, text: str) -> None:
    """Wait until the log has it: lines are written a moment after what they tell of."""
    deadline = time.monotonic() + PATIENCE_S
    while text not in server.output:
        assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{server.output}"
        time.sleep(0.02)


def test_an_app_is_asked_below_its_path_with_the_scope_of_a_server(web: httpx2.Client) -> None:
    for path in ("/shop/scope", "/shop/a/b/scope"):
        assert web.get(f"{path}?x=1").json() == {
            "path": path,
            "root_path": "/shop",
            "state": {"goods": 3},
            "query": "x=1",
        }


def test_an_app_at_the_root_gets_what_is_not_ours(web: httpx2.Client) -> None:
    assert web.get("/").json() == {"open": "yes"}
    assert web.get("/api/items/5").json() == {"item": "5", "url": f"{web.base_url}/api/items/5"}
    assert web.get("/shopping").json() == {"detail": "Not Found"}
    assert web.get("/nothing").json() == {"detail": "Not Found"}


def test_our_own_routes_win(web: httpx2.Client) -> None:
    for path in ("/health", "/health/"):
        assert web.get(path).json() == {"status": "ok"}
    # Another method on a path of ours is ours to refuse.
    assert web.post("/health").status_code == 405


def test_answers_and_bodies_are_streamed(web: httpx2.Client) -> None:
    with web.stream("GET", "/shop/stream") as response:
        arrived = [(piece, time.monotonic()) for piece in response.iter_raw()]
    assert b"".join(piece for piece, _ in arrived) == b"012"
    assert arrived[-1][1] - arrived[0][1] > 0.2
    pieces: Iterator[bytes] = iter([b"x" * 100_000] * 50)
    assert web.post("/shop/count", content=pieces).text == "5000000"


def test_an_app_that_raises_is_answered_for_and_harms_nobody(web: httpx2.Client, served: Server) -> None:
    response = web.get("/shop/raise")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "internal"
    assert "secret" not in response.text
    logged(served, "the app mounted at /shop failed: GET /shop/raise")
    logged(served, "a secret of the shop")
    assert web.get("/shop/exit").status_code == 500
    logged(served, "the app mounted at /shop failed: GET /shop/exit")
    with pytest.raises(httpx2.RemoteProtocolError):
        web.get("/shop/half")
    assert web.get("/health").json() == {"status": "ok"}


def test_a_websocket_is_not_for_a_mounted_app(web: httpx2.Client) -> None:
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert web.get("/nothing", headers=headers).status_code == 404


async def test_a_route_publishes_to_who_is_connected(served: Server) -> None:
    async with await served.connect() as alice, httpx2.AsyncClient(base_url=served.api_url, trust_env=False) as web:
        await alice.subscribe("conversation:7")
        number = (await web.post("/tell")).json()["number"]
        assert (await alice.expect("told"))["offset"] == number


async def test_the_playground_moves_aside(tmp_path: Path) -> None:
    async with (
        Server(tmp_path, app=f"{APP}:app", api=True, secret=None) as server,
        httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as web,
    ):
        assert (await web.get("/")).json() == {"open": "yes"}
        assert (await web.get("/main.js")).status_code == 404
        assert (await web.get("/playground/")).status_code == 404
        web.headers["cookie"] = await server.dev_cookie()
        assert (await web.get("/playground")).headers["location"] == "/playground/"
        assert (await web.get("/playground/")).text.startswith("<!doctype html>")
        assert (await web.get("/playground/main.js")).status_code == 200
        assert (await web.get("/playground/api/dev/people")).json() == {"users": []}
        assert server.output.count(f"{server.api_url}/playground/?key=") == 2


async def test_apps_are_closed_before_the_end(tmp_path: Path) -> None:
    async with Server(tmp_path, app=f"{APP}:app", api=True) as server:
        assert await server.stop() == 0
        assert "the shop is closed" in server.output
        assert "the site is closed" in server.output


async def ended(tmp_path: Path, grace_s: float, *words: str) -> str:
    """Open answers without an end, end the server, and return what it wrote."""
    sets = [f"drain.grace_s={grace_s}", "server.shards=1"]
    server = Server(tmp_path / "server", app=f"{APP.with_name('streams.py')}:app", api=True, sets=sets)
    await server.start()
    pieces: list[AsyncIterator[bytes]] = []
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(httpx2.AsyncClient(base_url=server.api_url, trust_env=False))
        for word in words:
            answer = await stack.enter_async_context(web.stream("GET", f"/streams/{word}"))
            # Kept: the answer is closed with it.
            pieces.append(answer.aiter_raw())
            assert await anext(pieces[-1]) == b"begun\n"
        began_s = time.monotonic()
        assert await server.stop() == 0
        assert time.monotonic() - began_s < grace_s
    assert "Traceback" not in server.output
    return server.output


async def test_an_event_stream_is_told_of_the_end_at_once(tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert "events was told" in await ended(tmp_path, 60, "events")
    assert time.monotonic() - began_s < 30


async def test_other_open_answers_are_told_of_the_end_in_time(tmp_path: Path) -> None:
    output = await ended(tmp_path, 8, "text", "raises", "events")
    for word in ("text", "raises", "events"):
        assert f"{word} was told" in output
    assert "cut off" not in output


async def test_an_open_answer_that_does_not_listen_is_cut_off_without_a_traceback(tmp_path: Path) -> None:
    assert "1 HTTP requests were cut off at the end" in await ended(tmp_path, 4, "deaf")


def test_an_app_that_does_not_start_refuses_the_start(tmp_path: Path) -> None:
    sets: list[str] = ["server.port=0", f"api.port={free_port()}", f"data_dir={tmp_path / 'data'}"]
    arguments = [item for each in sets for item in ("--set", each)]
    done = subprocess.run(
        [REALTIME, "serve", f"{APP}:broken", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "the app mounted at /never: no database" in done.stderr
    assert "the app mounted at /never did not start" in done.stderr
