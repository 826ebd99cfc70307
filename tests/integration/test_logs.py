"""What the process writes to stderr: as JSON and as text, complete, and without what is nobody's business."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kit import Server, eventually, token_for

APPS = Path(__file__).parent / "apps"
ENDINGS = f"{APPS / 'endings.py'}:app"


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """The lines of JSON about `name`."""
    lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


async def test_connections_and_errors_are_lines_of_json_without_tokens_and_payloads(
    serve: Callable[..., Server],
) -> None:
    async with serve("log.format=json", app=ENDINGS) as server:
        token = token_for("ali\nce")
        alice = await server.connect(token=token, established=False)
        session = (await alice.expect("connection_established"))["data"]["sessionId"]
        await alice.ask("broken", {"payload": "nobody's business"})
        await alice.socket.close(1000)
        await eventually(lambda: events(server, "closed"), what="the line about the close")
        (opened,), (closed,), (error,) = (events(server, name) for name in ("opened", "closed", "error"))
        assert (opened["session"], opened["user"], opened["level"]) == (session, "ali\nce", "info")
        assert opened["time"].endswith("Z")
        assert (closed["session"], closed["code"]) == (session, 1000)
        assert 0 <= closed["duration_s"] < 60
        assert (error["session"], error["user"], error["type"]) == (session, "ali\nce", "broken")
        assert "RuntimeError" in error["error"]
        assert token not in server.output
        assert "nobody's business" not in server.output
        assert all(line.startswith("{") for line in server.output.splitlines() if "session" in line)


async def test_text_lines_escape_what_a_peer_chose(serve: Callable[..., Server]) -> None:
    async with serve(app=ENDINGS) as server:
        alice = await server.connect(token=token_for("ali\nce\x1b[31m"))
        await alice.ask("broken")
        await eventually(lambda: "handler of 'broken' failed" in server.output, what="the error")
        assert "\x1b" not in server.output
        assert 'user="ali\\nce\\u001b[31m"' in server.output


async def test_handlers_that_hold_the_loop_are_named(serve: Callable[..., Server]) -> None:
    async with serve("log.format=json", app=ENDINGS) as server, await server.connect("alice") as alice:
        await alice.ask("stuck")
        await alice.ask("stuck_inside")
        await eventually(lambda: len(events(server, "slow")) == 2, what="two lines")
        plain, inside = events(server, "slow")
        assert plain["what"] == "handler of 'stuck'"
        assert plain["took_s"] >= 2
        assert inside["what"] == "handler of 'stuck_inside'"
        assert 0.3 <= inside["took_s"] < 2


async def test_a_crowd_does_not_drown_the_log(serve: Callable[..., Server]) -> None:
    async with serve("log.connections_per_s=2", "log.format=json") as server:
        for _ in range(20):
            async with await server.connect("alice"):
                pass
        assert await server.stop() == 0
        assert len(events(server, "opened")) + len(events(server, "closed")) < 40
