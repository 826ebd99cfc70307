"""The machine that is measured on: its name, and how server and load get a core each."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BENCHES = Path(__file__).resolve().parent
ROOT = BENCHES.parent
SERVER_CORE, LOAD_CORE = 0, 1


def can_pin() -> bool:
    """Whether server and load can have a core each."""
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started inside run on `core` alone; nothing changes where there is one core or no way to pin."""
    if not can_pin():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def description() -> dict[str, Any]:
    """What a results file says of the machine."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "pinned": can_pin(),
        "system": f"{platform.system()} {platform.release()}",
    }


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def output_of(*command: str) -> str | None:
    """What a command prints, or None where there is no such command or it fails."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return None


SETTLED_BYTES, SETTLED_LOOKS = 32 * 1024, 10
"""A server has settled when it has grown by less than so much at so many looks, a tenth of a second apart."""
SOCKET_CACHES = ("TCP", "TCPv6", "sock_inode_cache", "filp", "eventpoll_epi")


def socket_bytes() -> int | None:
    """What the kernel keeps for all open sockets of the machine: socket, inode, dentry, file and its entry in a poller.

    Buffers are not in it: an idle connection has none. None where slabinfo cannot be read, as without root.
    """
    total = 0
    try:
        lines = Path("/proc/slabinfo").read_text().splitlines()
    except OSError:
        return None
    objects = {fields[0]: (int(fields[1]), int(fields[3])) for fields in map(str.split, lines[2:])}
    for name in SOCKET_CACHES:
        count, size = objects.get(name, (0, 0))
        total += count * size
    # Other files have dentries too; a socket has exactly one.
    return total + objects.get("sock_inode_cache", (0, 0))[0] * objects.get("dentry", (0, 0))[1]


def memory_bytes(pid: int) -> int:
    """What a process and its descendants hold, pages that they share counted by their part (`Pss`)."""
    sum_kib = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            sum_kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return sum_kib * 1024


def wait_until_settled(pid: int) -> None:
    """Return when a server that has just started grows no more, or after five seconds.

    What it still loads after its first answer would count as its connections' memory.
    """
    before, looks = memory_bytes(pid), 0
    for _ in range(50):
        time.sleep(0.1)
        now = memory_bytes(pid)
        looks, before = looks + 1 if now - before < SETTLED_BYTES else 0, now
        if looks == SETTLED_LOOKS:
            return


def family(pid: int) -> list[int]:
    """A process and all its descendants: a server that starts workers pays for them."""
    pids = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                pids += family(int(child))
    return pids
