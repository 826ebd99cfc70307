"""The log under faults from outside: its files taken away, locked or damaged under the running server."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_http_api import SERVICE_KEY, call
from tests.kit import REALTIME, Client, Server, clients, free_port

KEYED = {"REALTIME_SERVICE_KEY": SERVICE_KEY}
DATABASE = "realtime.sqlite3"


async def readiness(server: Server) -> tuple[int, list[str]]:
    """Return the status of `/ready` and its reasons."""
    status, answer, _ = await call(server, "GET", "/ready")
    return status, list(answer["reasons"])


async def not_ready(server: Server, within_s: float) -> str:
    """Wait until `/ready` is 503, at most `within_s`, and return its one reason."""
    deadline = time.monotonic() + within_s
    while True:
        status, reasons = await readiness(server)
        if status == 503:
            (reason,) = reasons
            return reason
        assert time.monotonic() < deadline, f"still ready after {within_s} s"
        await asyncio.sleep(0.02)


async def refused(client: Client, conversation: str = "1") -> dict[str, Any]:
    """Send a message that must be refused, and return the data of its `error`."""
    frame = await client.ask("send_message", {"conversationId": conversation, "content": "lost?"})
    assert frame["type"] == "error", frame
    return dict(frame["data"])


def lines(server: Server, word: str) -> list[str]:
    """Return the lines of the process log that hold a word."""
    return [line for line in server.output.splitlines() if word in line]


def take_away(folder: Path, how: str) -> str:
    """Do to the log's files what the name says; return the word by which `/ready` must tell it."""
    database, wal = folder / DATABASE, folder / f"{DATABASE}-wal"
    match how:
        case "all files removed":
            for file in folder.glob(f"{DATABASE}*"):
                file.unlink()
            return "removed"
        case "folder removed":
            shutil.rmtree(folder)
            return "removed"
        case "folder moved":
            folder.rename(folder.with_name("elsewhere"))
            return "removed"
        case "write-ahead log removed":
            wal.unlink()
            return "removed"
        case "shared memory removed":
            (folder / f"{DATABASE}-shm").unlink()
            return "removed"
        case "replaced by a copy":
            shutil.copy(database, folder / "copy")
            (folder / "copy").replace(database)
            return "replaced"
        case "truncated":
            os.truncate(database, 512)
            return "shorter"
        case "shared memory truncated":
            os.truncate(folder / f"{DATABASE}-shm", 0)
            return "shorter"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "all files removed",
        "folder removed",
        "folder moved",
        "write-ahead log removed",
        "shared memory removed",
        "replaced by a copy",
        "truncated",
        "shared memory truncated",
    ],
)
async def test_files_that_are_taken_away_are_noticed_within_seconds_and_nothing_more_is_acknowledged(
    serve: Callable[..., Server], how: str
) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:1")
        await alice.say("1", "before")
        await bob.expect("new_message", content="before")
        word = take_away(server.data_dir, how)
        # No client sends anything: the server itself looks.
        reason = await not_ready(server, within_s=5)
        assert word in reason
        assert "restart" in reason
        assert str(server.folder) not in reason
        assert "/" not in reason
        error = await refused(alice)
        assert (error["code"], error["retryable"]) == ("unavailable", True)
        status, problem, _ = await call(
            server, "POST", "/api/conversations/1/messages", {"content": "x", "userId": "u"}
        )
        assert (status, problem["code"]) == (503, "unavailable")
        status, problem, _ = await call(
            server, "POST", "/api/events", {"type": "told", "conversationId": "1", "data": {}}
        )
        assert (status, problem["code"]) == (503, "unavailable")
        await bob.refute("new_message")
        (line,) = lines(server, word)
        assert "restart" in line
        assert str(server.data_dir) in line


async def test_a_message_right_behind_the_removal_is_not_acknowledged(serve: Callable[..., Server]) -> None:
    async with serve() as server, clients(server, "alice") as (alice,):
        await alice.say("1", "before")
        take_away(server.data_dir, "all files removed")
        assert (await refused(alice))["code"] == "unavailable"


async def test_files_that_come_back_unchanged_are_written_again(serve: Callable[..., Server]) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice") as (alice,):
        await alice.say("1", "before")
        take_away(server.data_dir, "folder moved")
        await not_ready(server, within_s=5)
        await refused(alice)
        server.data_dir.with_name("elsewhere").rename(server.data_dir)
        await eventually_ready(server, within_s=5)
        assert (await alice.say("1", "after"))["number"] == 2
        assert len(lines(server, "writes again")) == 1


async def test_the_end_of_a_server_leaves_the_files_that_took_the_place_of_its_own(
    serve: Callable[..., Server],
) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice") as (alice,):
        await alice.say("1", "before")
        take_away(server.data_dir, "all files removed")
        await not_ready(server, within_s=5)
        replacement = server.data_dir / f"{DATABASE}-wal"
        replacement.write_bytes(b"of another database")
        assert await server.stop() == 0
        assert replacement.read_bytes() == b"of another database"


def serve_again(server: Server) -> subprocess.CompletedProcess[str]:
    """Start a second server on the data directory of one that runs, and wait until it ends."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REALTIME_", "WS_", "API_"))}
    env |= {"WS_PORT": str(free_port()), "REALTIME_DATA_DIR": str(server.data_dir), "REALTIME_JWT_SECRET": "s" * 40}
    command = [str(REALTIME), "serve", "--set", "api.enabled=false"]
    return subprocess.run(command, cwd=server.folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("how", ["all files removed", "folder removed"])
async def test_a_second_server_is_refused_also_where_the_first_ones_files_are_gone(
    serve: Callable[..., Server], how: str
) -> None:
    async with serve() as server, clients(server, "alice") as (alice,):
        await alice.say("1", "before")
        take_away(server.data_dir, how)
        second = await asyncio.to_thread(serve_again, server)
        assert second.returncode == 2, second
        assert "is in use by another process" in second.stderr


async def eventually_ready(server: Server, within_s: float) -> None:
    """Wait until `/ready` is 200, at most `within_s`."""
    began = time.monotonic()
    while (await readiness(server))[0] != 200:
        assert time.monotonic() - began < within_s, f"not ready {within_s} s after the fault was over"
        await asyncio.sleep(0.02)


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """Hold the database's write lock as another program would."""
    with closing(sqlite3.connect(server.data_dir / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_a_log_that_fails_and_recovers_is_told_once_each_and_ready_follows_a_probe(
    serve: Callable[..., Server],
) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice") as (alice,):
        await alice.say("1", "before")
        with locked(server):
            assert (await refused(alice))["code"] == "unavailable"
            began = time.monotonic()
            # While it is known to fail nobody waits for the lock again.
            for _ in range(5):
                await refused(alice)
            assert time.monotonic() - began < 4
            reason = await not_ready(server, within_s=0)
            assert "locked by another program" in reason
            assert "/" not in reason
            assert len(lines(server, "the log fails")) == 1
        # Nobody sends anything: a commit of the server's own finds out.
        await eventually_ready(server, within_s=5)
        assert len(lines(server, "the log fails")) == 1
        assert len(lines(server, "writes again")) == 1
        assert (await alice.say("1", "after"))["number"] == 2
        metrics = await asyncio.to_thread(figures, server)
        assert metrics["realtime_log_failing"] == 0
        assert metrics["realtime_log_failures_total"] >= 6


def figures(server: Server) -> dict[str, float]:
    """Return the plain figures of `/metrics`."""
    asked = urllib.request.Request(f"{server.api_url}/metrics", headers={"Authorization": f"Bearer {SERVICE_KEY}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        text = answer.read().decode()
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in rows}


def write(server: Server, *statements: str) -> None:
    """Change the database behind the server's back."""
    with closing(sqlite3.connect(server.data_dir / DATABASE, timeout=10)) as other, other:
        for statement in statements:
            other.execute(statement)


STRAY = """
    INSERT INTO events (channel_id, offset, event, data, time_ms)
    SELECT channel_id, offset + 1, event, data, time_ms FROM events
    WHERE channel_id = (SELECT id FROM channels WHERE name = 'conversation:{0}') AND offset = 1
"""
"""A damage: an event with a number that the channel has yet to give."""


@pytest.mark.parametrize(("spare", "is_stored"), [(-(1 << 33), True), (1 << 33, False)])
async def test_less_free_than_free_bytes_min_refuses_messages_and_ready_says_so(
    serve: Callable[..., Server], tmp_path: Path, spare: int, is_stored: bool
) -> None:
    # What else writes to the disk meanwhile is far less than what is to spare.
    least = max(0, min(1 << 40, shutil.disk_usage(tmp_path).free + spare))
    if (shutil.disk_usage(tmp_path).free < least) == is_stored:
        pytest.skip("the disk has too much or too little room for this")
    async with (
        serve(f"log.free_bytes_min={least}", api=True, env=KEYED) as server,
        clients(server, "alice", "bob") as (alice, bob),
    ):
        await bob.subscribe("conversation:1")
        if is_stored:
            await alice.say("1", "there is room")
            await bob.expect("new_message", content="there is room")
            assert await readiness(server) == (200, [])
            return
        # Nothing has been sent: the server itself looks.
        reason = await not_ready(server, within_s=1.5)
        error = await refused(alice)
        assert (error["code"], error["retryable"]) == ("unavailable", True)
        assert "log.free_bytes_min" in reason
        assert len(lines(server, f"log.free_bytes_min is {least}")) == 1
        page = await bob.ask("history", {"channel": "conversation:1", "last": 5})
        assert (page["type"], page["data"]["events"]) == ("history", []), "reading goes on"


async def test_a_damaged_channel_fails_its_own_messages_and_no_others(serve: Callable[..., Server]) -> None:
    async with serve("limits.enabled=false", api=True, env=KEYED) as server, clients(server, "alice") as (alice,):
        for conversation in ("sound", "damaged"):
            await alice.say(conversation, "before")
        write(server, STRAY.format("damaged"))
        ids = []
        for number in range(400):
            name = "damaged" if number % 20 == 7 else f"sound{number % 5}"
            await alice.send("send_message", {"conversationId": name, "content": "x"}, id=number)
            ids.append((number, name))
        outcomes = {(name, (await alice.answer(number))["type"]) for number, name in ids}
        assert outcomes == {("damaged", "error"), *((f"sound{n}", "ack") for n in range(5))}
        # By HTTP a batch of hooks is stored, but for what goes to the damaged channel.
        assert (await alice.say("sound", "after"))["number"] == 2
        assert (await readiness(server))[0] == 200
        assert len(lines(server, "conversation:damaged")) == 1


async def test_a_gap_between_the_log_and_a_channel_is_told_to_its_subscribers_and_to_the_operator(
    serve: Callable[..., Server],
) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice", "bob", "carol") as (alice, bob, carol):
        confirmed = await bob.subscribe("conversation:1")
        await carol.subscribe("conversation:2")
        await alice.say("1", "one")
        await bob.expect("new_message", content="one")
        write(server, STRAY.format("1"), "UPDATE channels SET head = 2 WHERE name = 'conversation:1'")
        assert (await alice.say("1", "three"))["number"] == 3
        frame = await bob.expect("unsubscribed")
        assert frame["data"] == {"channel": "conversation:1", "code": "not_recoverable", "retryable": True}
        # Nothing came before that, as if it were whole.
        await bob.refute("new_message")
        assert len(lines(server, "conversation:1")) == 1
        assert (await asyncio.to_thread(figures, server))["realtime_log_gaps_total"] == 1
        # Who comes back with its position gets all that the log has.
        position = {"offset": 1, "epoch": confirmed["position"]["epoch"]}
        again = await bob.subscribe("conversation:1", position=position)
        assert (again["recovered"], again["replayed"]) == (True, 2)
        assert [(await bob.expect("new_message"))["offset"] for _ in range(2)] == [2, 3]
        await alice.say("1", "four")
        assert (await bob.expect("new_message"))["offset"] == 4
        await alice.say("2", "elsewhere")
        await carol.expect("new_message", content="elsewhere")
        await carol.refute("unsubscribed")


async def test_a_repeat_of_a_message_that_is_kept_no_longer_is_acknowledged_by_number_and_id(
    serve: Callable[..., Server],
) -> None:
    server = serve("history.retention=conversation:* forever 2", api=True, env=KEYED)
    async with server:
        async with clients(server, "alice") as (alice,):
            first = [await alice.say("1", f"m{n}", clientMessageId=f"c{n}") for n in range(5)]
        hook = {"type": "told", "conversationId": "2", "data": {"x": 1}, "id": "h1"}
        assert (await call(server, "POST", "/api/events", [hook, hook | {"id": "h2"}, hook | {"id": "h3"}]))[0] == 200
        # What is kept no longer goes with the start.
        assert await server.stop() == 0
        await server.start()

        async def is_swept() -> bool:
            _, page, _ = await call(server, "GET", "/api/channels/conversation:1/history?after=0")
            return bool(page["events"][0]["offset"] == 4)

        await eventually_true(is_swept)
        async with clients(server, "alice", "bob") as (alice, bob):
            await bob.subscribe("conversation:1")
            for n in range(3):
                again = await alice.say("1", "repeated", clientMessageId=f"c{n}")
                assert again == {"number": n + 1, "id": first[n]["id"]}
            assert await alice.say("1", "repeated", clientMessageId="c4") == first[4]
            body = {"content": "repeated", "userId": "alice", "clientMessageId": "c1"}
            status, answer, _ = await call(server, "POST", "/api/conversations/1/messages", body)
            assert (status, answer) == (200, {"number": 2, "id": first[1]["id"]})
            assert (await call(server, "POST", "/api/events", hook))[1] == {"accepted": 0, "duplicates": 1}
            await bob.refute("new_message")
            assert (await alice.say("1", "new", clientMessageId="c9"))["number"] == 6


async def test_dedupe_ends_with_its_time(serve: Callable[..., Server]) -> None:
    server = serve("history.retention=conversation:* forever 1", "log.dedupe_s=0", api=True, env=KEYED)
    async with server:
        async with clients(server, "alice") as (alice,):
            for n in range(3):
                await alice.say("1", f"m{n}", clientMessageId=f"c{n}")
        assert await server.stop() == 0
        await server.start()

        async def is_swept() -> bool:
            _, page, _ = await call(server, "GET", "/api/channels/conversation:1/history?after=0")
            return bool(page["events"][0]["offset"] == 3)

        await eventually_true(is_swept)
        async with clients(server, "alice") as (alice,):
            assert (await alice.say("1", "repeated", clientMessageId="c0"))["number"] == 4
            # While the event lives its key is known, whatever the time.
            assert (await alice.say("1", "repeated", clientMessageId="c2"))["number"] == 3


async def eventually_true(holds: Callable[[], Any], within_s: float = 15) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
