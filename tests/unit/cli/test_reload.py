"""`--reload`: what counts as a change, and that the child is started anew and ended."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realtime.cli.reload import snapshot
from realtime.serving.signals import REPEAT_S


def test_sources_count_and_caches_do_not(tmp_path: Path) -> None:
    for name in (
        "app.py",
        "deep/inner.py",
        "realtime.toml",
        "notes.txt",
        ".git/x.py",
        "node_modules/y.py",
        "data/z.log",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", "utf-8")
    assert {str(Path(path).relative_to(tmp_path)) for path in snapshot(tmp_path)} == {
        "app.py",
        "deep/inner.py",
        "realtime.toml",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_change_starts_the_child_anew_and_a_signal_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log.txt"
    child = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    supervisor = (
        "import sys; from pathlib import Path; from realtime.cli.reload import supervise; "
        f"sys.exit(supervise([sys.executable, '-c', {child!r}, {str(log)!r}], Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor], stderr=subprocess.PIPE, text=True)
    try:
        first = _children(log, 1)
        # In one step: a file that is made and then written may be seen in between, which is two changes.
        (tmp_path / "app").write_text("x = 1\n", "utf-8")
        (tmp_path / "app").rename(tmp_path / "app.py")
        both = _children(log, 2)
        assert both[0] == first[0]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err == "realtime: app.py changed, starting anew\n"
    for pid in both:
        assert not Path(f"/proc/{pid}/cmdline").exists() or sys.platform != "linux"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    child = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    supervisor = (
        "import sys; from pathlib import Path; from realtime.cli.reload import supervise; "
        f"sys.exit(supervise([sys.executable, '-c', {child!r}, {str(log)!r}], Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor])
    (pid,) = _children(log, 1)
    process.kill()
    process.wait(30)
    assert _gone(pid)


def test_a_second_signal_kills_a_child_that_does_not_end(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    child = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
    )
    supervisor = (
        "import sys; from pathlib import Path; from realtime.cli.reload import supervise; "
        f"sys.exit(supervise([sys.executable, '-c', {child!r}, {str(log)!r}], Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen([sys.executable, "-c", supervisor])
    try:
        (pid,) = _children(log, 1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(REPEAT_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert _gone(pid)
    finally:
        process.kill()


def _gone(pid: str) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        # A zombie whom nobody reaps is gone, too.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def _children(log: Path, count: int) -> list[str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = log.read_text("utf-8").split() if log.exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.05)
    pytest.fail(f"there were not {count} children in time")
