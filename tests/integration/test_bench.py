"""`realtime bench` against real servers: the compiled generator behind the command line.

What the generator finds where a server breaks a promise is tested beside it, in rust/load/tests/faults.rs.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit import SECRET, Server, token_for

REALTIME = Path(sys.executable).with_name("realtime")
APPS = Path(__file__).parent / "apps"
SMALL = ("--connections", "20", "--channels", "4", "--rate", "200", "--duration", "0.5", "--warmup", "0.1")


async def start(server: Server, *arguments: str) -> asyncio.subprocess.Process:
    """Start a load of a server; tokens are signed with its secret."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        REALTIME,
        "bench",
        "--url",
        server.url,
        *arguments,
        stdout=pipe,
        stderr=pipe,
        cwd=server.folder,
        env={"REALTIME_JWT_SECRET": SECRET, "PYTHONWARNINGS": "error"},
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    """Wait for the end; return the exit code and what was printed."""
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def bench(server: Server, *arguments: str) -> tuple[int, str, str]:
    return await ended(await start(server, *arguments))


async def figures(server: Server, *arguments: str) -> dict[str, Any]:
    """What a load says to programs; it must be well."""
    code, out, err = await bench(server, *SMALL, *arguments, "--json")
    assert (code, err) == (0, ""), out
    counted: dict[str, Any] = json.loads(out)
    return counted


async def test_a_load_of_a_server_as_it_starts_needs_no_option_but_its_size(server: Server) -> None:
    code, out, err = await bench(server, *SMALL, "--pid", str(server.pid))
    assert (code, err) == (0, ""), out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("server CPU"))
    assert lines["load"] == "w2: 20 connections, 4 channels, 200 messages/s offered"
    assert lines["faults"] == "none"
    assert {"connects", "messages", "deliveries", "latency", "bytes", "generator", "server"} <= lines.keys()


@pytest.mark.parametrize("workload", ["w1", "w1b", "w2", "w5", "w6", "send"])
async def test_a_member_receives_every_message_of_a_workload(server: Server, tag: str, workload: str) -> None:
    counted = await figures(server, "--workload", workload, "--prefix", f"conversation:{tag}-")
    assert (counted["lost"], counted["doubled"], counted["out_of_order"], counted["wrong"]) == (0, 0, 0, [])
    assert counted["messages"] > 0
    plain_bytes = counted["deliveries"] * counted["event_bytes"]
    assert (counted["received_bytes"] < plain_bytes) == (workload == "w5")
    assert counted.get("compressed_messages", 0) == (counted["deliveries"] if workload == "w5" else 0)


async def test_every_ping_has_its_pong(server: Server) -> None:
    code, out, err = await bench(server, "--workload", "w3", "--rate", "500", "--duration", "0.5", "--json")
    assert (code, err) == (0, ""), out
    counted = json.loads(out)
    assert counted["connections"] == 200
    assert counted["latency_us"]["samples"] == counted["deliveries"] > 0


async def test_members_that_are_cut_come_back_and_miss_nothing(serve: Callable[..., Server]) -> None:
    async with serve("limits.enabled=false") as server:
        cut = ("--workload", "w8", "--connections", "200", "--channels", "10", "--rate", "1000")
        code, out, err = await bench(server, *cut, "--duration", "0.3", "--warmup", "0.3", "--json")
        assert (code, err) == (0, ""), out
        counted = json.loads(out)
        assert (counted["lost"], counted["doubled"], counted["not_recovered"]) == (0, 0, 0)
        assert counted["back_us"]["samples"] == 200


async def test_idle_and_churned_connections_are_opened_with_their_times(server: Server) -> None:
    few = ("--connections", "20", "--duration", "0.2", "--json")
    code, out, _ = await bench(server, "--workload", "idle", *few)
    assert code == 0, out
    assert json.loads(out)["connect_us"]["samples"] == 20
    code, out, _ = await bench(server, "--workload", "churn", *few)
    assert code == 0, out


async def test_messages_can_go_through_a_handler(serve: Callable[..., Server]) -> None:
    async with serve(app=str(APPS / "saying.py")) as server:
        counted = await figures(server, "--type", "say", "--prefix", "room:")
        assert counted["messages"] > 0
        assert counted["wrong"] == []


async def test_what_a_server_refuses_is_code_1_and_is_told_in_its_words(server: Server) -> None:
    code, out, err = await bench(server, *SMALL, "--prefix", "room:", "--token", token_for("nobody"))
    assert (code, err) == (1, "")
    assert "WRONG" in out
    assert "forbidden" in out
    code, out, err = await bench(server, *SMALL, "--token", token_for("nobody", secret="another" * 6))
    assert (code, err) == (1, "")
    assert "refused: HTTP/1.1 401" in out


async def test_what_limits_refuse_is_a_fault_with_a_hint(server: Server) -> None:
    code, out, _ = await bench(server, "--connections", "2", "--channels", "1", "--rate", "2000", "--duration", "1")
    assert code == 1
    assert "rate_limited" in out
    assert "--set limits.enabled=false" in out


async def test_ctrl_c_ends_a_load_with_the_report_of_what_was_measured(server: Server, tag: str) -> None:
    async with await server.connect("watcher") as watcher:
        # The first channel is watched, so that the load is known to be under way.
        prefix = f"conversation:{tag}-"
        await watcher.subscribe(f"{prefix}0")
        lasting = (*SMALL, "--prefix", prefix, "--duration", "60", "--warmup", "0", "--json")
        process = await start(server, *lasting)
        await watcher.expect("bench")
        process.send_signal(signal.SIGINT)
        code, out, err = await ended(process)
    assert (code, err) == (130, ""), out
    counted = json.loads(out)
    assert (counted["stopped"], counted["wrong"]) == (True, [])
    assert counted["messages"] > 0


async def test_nobody_at_the_address_is_one_line(serve: Callable[..., Server]) -> None:
    server = serve()
    server.folder.mkdir()
    code, out, err = await bench(server, *SMALL)
    assert (code, out) == (2, "")
    assert err.startswith(f"realtime: connection 0 to 127.0.0.1:{server.port}: failed: ")
    assert err.count("\n") == 1
