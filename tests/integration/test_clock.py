"""Clocks that jump: a process that was stopped, and a wall clock that moved on, as it does over a suspend."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.kit import Server, client_frame, token_for

PING, PONG, CLOSE = 0x89, 0x8A, 0x88

SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The wall clock moved on by as many seconds as the file says; all other clocks as they are. */
int clock_gettime(clockid_t id, struct timespec *time) {
    int failed = syscall(SYS_clock_gettime, id, time);
    if (!failed && id == CLOCK_REALTIME) {
        char text[32] = {0};
        int fd = open(getenv("MOVED_BY"), O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            if (read(fd, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
            close(fd);
        }
    }
    return failed;
}
"""


def moved_clock(folder: Path) -> tuple[Path, dict[str, str]]:
    """Build a library that moves the wall clock of a process; return the file that says by how much, and its env."""
    source, library, moved_by = folder / "shim.c", folder / "shim.so", folder / "moved_by"
    source.write_text(SHIM)
    moved_by.write_text("0")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return moved_by, {"LD_PRELOAD": str(library), "MOVED_BY": str(moved_by)}


async def test_a_session_whose_token_expired_over_a_suspend_ends_at_once(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    moved_by, env = moved_clock(tmp_path)
    async with serve(env=env) as server:
        token = token_for("alice", ttl_s=120)
        async with await server.connect(token=token, subprotocols=["realtime.v1"]) as alice:
            assert await alice.is_alive()
            (tmp_path / "next").write_text("7200")
            (tmp_path / "next").replace(moved_by)
            assert (await alice.closed(timeout_s=20))[0] == 4002


async def test_a_stop_of_the_process_closes_nobody_as_silent(serve: Callable[..., Server]) -> None:
    async with serve("limits.heartbeat_interval_s=2") as server, await server.raw() as peer:
        while (await peer.frame())[0] != PING:
            pass
        os.kill(server.pid, signal.SIGSTOP)
        try:
            # Longer than two pings may stay unanswered.
            await asyncio.sleep(6)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        # The interval of that ping goes on, and there is time to answer.
        await asyncio.sleep(0.8)
        await peer.send(client_frame(PONG, b""))
        await peer.text('{"type":"ping"}')
        while b'"pong"' not in (frame := await peer.frame())[1]:
            assert frame[0] != CLOSE, frame[1]


async def test_a_client_whose_commands_are_under_way_is_not_silent(serve: Callable[..., Server]) -> None:
    app = f"{Path(__file__).parent / 'apps' / 'votes.py'}:app"
    sets = ("limits.heartbeat_interval_s=1", "limits.commands_waiting_max=1", "handlers.timeout_s=30")
    async with serve(*sets, app=app) as server, await server.raw() as peer:
        for id in (1, 2):
            await peer.text(f'{{"type":"nap","data":{{"seconds":4.5}},"id":{id}}}')
        answers: list[bytes] = []
        while len(answers) < 2:
            first, payload = await peer.frame()
            assert first != CLOSE, payload
            if first == 0x81 and b'"ack"' in payload:
                answers.append(payload)
