"""What ends an event loop or a coroutine ends one command where an author's code raises it, on a real server's loop.

Tests in one process have a task around everything; a server calls plain handlers from the loop itself.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit import Client, Server, eventually

APP = str(Path(__file__).parent / "apps" / "raising.py")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path, app=APP) as server:
        yield server
        assert await server.stop() == 0, server.output


async def answered(client: Client, type: str, data: object = None) -> str:
    """Return the code of the answer to a command whose code raises, between two that are served."""
    await client.send("echo", "before", id=f"before {type}")
    await client.send(type, data, id=type)
    await client.send("echo", "after", id=f"after {type}")
    code = str((await client.answer(type))["data"]["code"])
    for about in ("before", "after"):
        answer = await client.answer(f"{about} {type}")
        assert (answer["type"], answer["data"]) == ("ack", about), answer
    return code


@pytest.mark.parametrize("type", ["plain", "next_of_nothing", "thread_closes", "future_closes"])
async def test_a_generators_end_or_next_of_nothing_is_one_error(server: Server, type: str) -> None:
    async with await server.connect("alice") as alice, await server.connect("bob") as bob:
        assert await answered(alice, type) == "internal"
        assert (await bob.ask("echo", "hi"))["data"] == "hi"


@pytest.mark.parametrize("type", ["task_exits", "group_exits"])
async def test_a_task_of_a_handler_that_exits_ends_its_command(server: Server, type: str) -> None:
    async with await server.connect("alice") as alice, await server.connect("bob") as bob:
        assert await answered(alice, type) == "internal"
        assert (await bob.ask("echo", "hi"))["data"] == "hi"
    assert "the server goes on" in server.output


async def test_a_callback_that_exits_ends_nothing(server: Server) -> None:
    async with await server.connect("alice") as alice:
        assert (await alice.ask("callback_exits"))["type"] == "ack"
        assert (await alice.ask("echo", "hi"))["data"] == "hi"
    assert "a task or a callback raised SystemExit(3)" in server.output


@pytest.mark.parametrize("channel", ["closes:1", "true:1", "later:1"])
async def test_an_authorize_hook_that_decides_nothing_is_one_error(server: Server, channel: str) -> None:
    async with await server.connect("alice") as alice:
        assert await answered(alice, "subscribe", {"channel": channel}) == "internal"


async def test_listeners_jobs_and_hooks_go_on_behind_a_generators_end(server: Server) -> None:
    async with await server.connect("alice") as alice, await server.connect("bob") as bob:
        await alice.subscribe("news:1")
        for number in range(2):
            answer = await bob.ask("publish", {"channel": "news:1", "event": "told", "data": number})
            assert answer["type"] == "ack", answer
            await alice.expect("told")
    await eventually(lambda: "closed failed" in server.output)
    await eventually(lambda: server.output.count("job job failed") > 1)
    assert server.output.count("listener heard failed") == 2, server.output
    assert "Exception in callback" not in server.output
