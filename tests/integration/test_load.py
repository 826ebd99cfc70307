"""Promises under load, every delivery counted: nothing lost, doubled or out of order, and memory that comes back.

The generator of rust/load plays a thousand clients; it ends with 1 where it finds anything wrong. These are tests of
correctness: no time is judged. They use the whole machine, so they run one at a time (marker `alone`).
"""

import asyncio
import json
import os
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import ROOT, Server, eventually, token_for

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

GENERATOR = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "ci" / "realtime-load"
CONNECTIONS = 10_000
RIGHTS = {"bench:*": ["subscribe", "publish"], "conversation:*": ["subscribe", "publish", "history"]}
QUIET = ("limits.enabled=false", "presence.everyone_max=1", "log.connections_per_s=0")


@pytest.fixture(autouse=True)
def _many_descriptors() -> Iterator[None]:
    """Let the server and the generator, which inherit it, open as many sockets as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= CONNECTIONS + 200, f"the limit of {hard} descriptors is too low; raise it to {CONNECTIONS + 200}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def generate(server: Server, workload: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the generator against a server; return its exit code and what it counted."""
    token = token_for("load", channels=RIGHTS)
    given = ("--url", server.url, "--token", token, "--pid", str(server.pid), "--workload", workload)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(GENERATOR, *given, *arguments, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), 240)
    lines = out.decode().splitlines()
    assert process.returncode is not None
    assert process.returncode in {0, 3}, f"{out.decode()}\n{err.decode()}\n{server.output[-2_000:]}"
    return process.returncode, json.loads(lines[-1]) if lines else {}


async def test_ten_thousand_relayed_messages_a_second_are_all_delivered_once_and_in_order(
    serve: Callable[..., Server],
) -> None:
    async with serve(*QUIET) as server:
        options = (
            "--connections",
            "1000",
            "--channels",
            "100",
            "--rate",
            "10000",
            "--seconds",
            "5",
            "--prefix",
            "bench:",
        )
        code, counted = await generate(server, "w2", *options)
        assert code == 0
        assert (counted["lost"], counted["wrong"]) == (0, [])


async def test_ten_thousand_stored_messages_a_second_are_acknowledged_and_delivered_in_order(
    serve: Callable[..., Server],
) -> None:
    async with serve(*QUIET) as server:
        # One in ten comes a second time, as after a lost acknowledgement; it is stored once and acknowledged twice.
        options = ("--connections", "1000", "--channels", "100", "--rate", "10000", "--seconds", "5")
        code, counted = await generate(server, "send", *options, "--repeat-every", "10")
        assert code == 0
        assert (counted["lost"], counted["wrong"]) == (0, [])


async def test_every_acknowledged_message_of_a_load_is_there_after_kill_9(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    async with serve(*QUIET) as server:
        record = tmp_path / "acknowledged"
        options = ("--connections", "1000", "--channels", "100", "--rate", "10000", "--seconds", "60")
        running = asyncio.create_task(generate(server, "send", *options, "--record", str(record)))
        await eventually(lambda: record.exists() and record.stat().st_size > 1_000_000, timeout_s=60)
        server.kill()
        code, _ = await running
        assert code == 3, "the generator says that the server went away"
        acknowledged: dict[str, dict[int, str]] = defaultdict(dict)
        for line in record.read_text().splitlines():
            conversation, numbered, client_message_id = line.split(",")
            acknowledged[conversation][int(numbered)] = client_message_id
        await server.start()
        async with await server.connect("checker", channels=RIGHTS) as checker:
            epoch = (await checker.subscribe("conversation:none"))["position"]["epoch"]
            for conversation, messages in acknowledged.items():
                position = {"offset": 0, "epoch": epoch}
                confirmed = await checker.subscribe(f"conversation:{conversation}", position=position)
                assert confirmed["recovered"] is True
                found = [(await checker.expect("new_message"))["data"] for _ in range(confirmed["replayed"])]
                assert [message["number"] for message in found] == [*range(1, len(found) + 1)]
                assert len(found) >= max(messages)
                for number, client_message_id in messages.items():
                    assert found[number - 1]["clientMessageId"] == client_message_id
        assert sum(map(len, acknowledged.values())) > 10_000


async def test_an_idle_connection_costs_at_most_1000_bytes(serve: Callable[..., Server]) -> None:
    async with serve(*QUIET) as server:
        code, counted = await generate(server, "idle", "--connections", str(CONNECTIONS), "--seconds", "2")
        assert code == 0
        assert counted["connect"]["pss_bytes_per_connection"] <= 1_000


async def test_memory_of_ten_thousand_connections_is_given_back_or_used_again(serve: Callable[..., Server]) -> None:
    async with serve(*QUIET) as server:
        code, counted = await generate(server, "churn", "--connections", str(CONNECTIONS), "--cycles", "10")
        assert code == 0
        closed = [cycle["rss_closed_bytes"] for cycle in counted["cycles"]]
        opened = [cycle["rss_after_bytes"] for cycle in counted["cycles"]]
        # The first cycles fill the allocators' pools; from then on nothing may pile up from cycle to cycle.
        tolerance = 4 * 1024 * 1024
        assert max(closed[5:]) <= max(closed[:5]) + tolerance, closed
        assert max(opened[5:]) <= max(opened[:5]) + tolerance, opened
