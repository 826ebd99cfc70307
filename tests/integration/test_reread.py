"""SIGHUP: what a running server takes over from its configuration, and what it says of the rest."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.kit import Server, eventually


async def hang_up(server: Server, words: str) -> None:
    """Send SIGHUP and wait until the log holds `words`."""
    os.kill(server.pid, signal.SIGHUP)
    await eventually(lambda: words in server.output, what=words)


async def test_the_log_is_changed_and_what_needs_a_restart_is_named(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text("[log]\nlevel = 'warning'\n")
    async with serve(env={"REALTIME_CONFIG": str(file)}) as server:
        async with await server.connect("quiet"):
            pass
        file.write_text("[log]\nlevel = 'info'\n[typing]\ntimeout_s = 5\n")
        await hang_up(server, "typing.timeout_s changed; restart the server for that")
        async with await server.connect("loud"):
            await eventually(lambda: 'user="loud"' in server.output, what="the line about the connection")
        assert 'user="quiet"' not in server.output


async def test_a_broken_file_changes_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text("")
    async with serve(env={"REALTIME_CONFIG": str(file)}) as server:
        file.write_text("[log\n")
        await hang_up(server, "nothing changed:")
        async with await server.connect("alice") as alice:
            assert await alice.is_alive()
