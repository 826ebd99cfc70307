"""Terms, backups and restores with real servers: who comes back is recovered whole, or told that it is not."""

import asyncio
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit import REALTIME, Server, clients

CHANNEL = "conversation:1"


async def run(server: Server, *arguments: str) -> tuple[int, str, str]:
    """Run a command of `realtime` on the server's data directory; return its exit code and output."""
    environment = {**os.environ, "REALTIME_DATA_DIR": str(server.data_dir)}
    command = [str(REALTIME), *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


async def say(server: Server, count: int) -> None:
    """Store so many messages."""
    async with await server.connect("alice") as alice:
        for number in range(count):
            await alice.say("1", str(number))


async def come_back(server: Server, position: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Subscribe with a position; return the confirmation and the offsets that follow."""
    async with await server.connect("bob") as bob:
        confirmed = await bob.subscribe(CHANNEL, position=position)
        offsets = [(await bob.expect("new_message"))["offset"] for _ in range(confirmed["replayed"])]
        await bob.refute("new_message")
        history = await bob.ask("history", {"channel": CHANNEL, "position": position})
    if confirmed["recovered"]:
        assert [event["offset"] for event in history["data"]["events"]] == offsets
    else:
        assert history["data"]["code"] == "not_recoverable"
    return confirmed, offsets


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def position_of(server: Server) -> dict[str, Any]:
    async with await server.connect("bob") as bob:
        return dict((await bob.subscribe(CHANNEL))["position"])


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_restart_recovers_and_the_confirmation_names_its_own_term(serve: Callable[..., Server], end: str) -> None:
    async with serve("limits.enabled=false") as server:
        await say(server, 5)
        first = await position_of(server)
        known = [first["epoch"]]
        for start in range(1, 4):
            await say(server, 1)
            if end == "stop":
                assert await server.stop() == 0
            else:
                server.kill()
            await server.start()
            confirmed, offsets = await come_back(server, first)
            assert (confirmed["recovered"], offsets) == (True, [*range(6, 6 + start)])
            assert confirmed["position"]["offset"] == 5
            assert confirmed["position"]["epoch"] not in known
            known.append(confirmed["position"]["epoch"])
        # A position that was given in any of the terms before is as good.
        for epoch in known:
            confirmed, offsets = await come_back(server, {"offset": 5, "epoch": epoch})
            assert (confirmed["recovered"], offsets) == (True, [6, 7, 8])


async def test_restored_backup_is_noticed_by_clients_ahead_of_it_and_by_no_other(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "copy"
    async with serve("limits.enabled=false") as server:
        await say(server, 7)
        code, out, err = await run(server, "backup", str(file))
        assert (code, err) == (0, "")
        assert out.startswith(f"{file}: 7 events of 1 channels, ")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [name for name in names(tmp_path) if "copy" in name] == ["copy"]
        await say(server, 3)
        epoch = (await position_of(server))["epoch"]

        code, out, err = await run(server, "restore", str(file))
        assert (code, out) == (2, "")
        assert "is in use by another process; stop that server" in err
        assert (await position_of(server))["offset"] == 10

        server.kill()
        code, out, err = await run(server, "restore", str(file))
        assert (code, err) == (0, "")
        assert "the log of before is kept as " in out
        assert [name for name in names(server.data_dir) if "replaced" in name]
        await server.start()
        confirmed, offsets = await come_back(server, {"offset": 5, "epoch": epoch})
        assert (confirmed["recovered"], offsets) == (True, [6, 7])
        confirmed, offsets = await come_back(server, {"offset": 10, "epoch": epoch})
        assert (confirmed["recovered"], offsets, confirmed["position"]["offset"]) == (False, [], 7)

        await say(server, 5)
        for offset, whole in [(5, True), (7, True), (8, False), (10, False), (12, False)]:
            confirmed, offsets = await come_back(server, {"offset": offset, "epoch": epoch})
            assert (confirmed["recovered"], offsets) == (whole, [*range(offset + 1, 13)] if whole else []), offset
            assert confirmed["head"] == 12


async def test_backup_replaces_no_file_and_a_restore_takes_nothing_else(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "copy"
    file.write_text("mine")
    async with serve() as server, clients(server, "alice") as (alice,):
        await alice.say("1", "hello")
        code, out, err = await run(server, "backup", str(file))
        assert (code, out) == (2, "")
        assert err == f"realtime: {file} exists and is not replaced; choose another name or remove it\n"
        assert file.read_text() == "mine"
        assert await server.stop() == 0
        code, out, err = await run(server, "restore", str(file))
        assert (code, out) == (2, "")
        assert "cannot be restored: " in err
        assert err.count("\n") == 1
        await server.start()
        assert (await position_of(server))["offset"] == 1


async def test_copied_data_directory_that_is_put_back_is_noticed(serve: Callable[..., Server], tmp_path: Path) -> None:
    async with serve("limits.enabled=false") as server:
        await say(server, 7)
        assert await server.stop() == 0
        shutil.copytree(server.data_dir, tmp_path / "snapshot")
        await server.start()
        await say(server, 3)
        seen = await position_of(server)
        server.kill()
        shutil.rmtree(server.data_dir)
        shutil.copytree(tmp_path / "snapshot", server.data_dir)
        await server.start()
        await say(server, 5)
        confirmed, offsets = await come_back(server, seen)
        assert seen["offset"] == 10
        assert (confirmed["recovered"], offsets, confirmed["position"]["offset"]) == (False, [], 12)
