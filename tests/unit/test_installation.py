"""Importing the package: what is missing or in the way is told in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import realtime

SOURCES = Path(__file__).parents[2] / "python" / "realtime"


def fails(paths: list[Path]) -> str:
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}; import realtime"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    return result.stderr.strip().splitlines()[-1]


def copied(folder: Path) -> Path:
    """The package's Python files, without the compiled engine."""
    shutil.copytree(SOURCES, folder / "realtime", ignore=shutil.ignore_patterns("*.so", "__pycache__", "static"))
    return folder


def test_another_distribution_of_the_name_is_named_with_what_to_do(tmp_path: Path) -> None:
    information = tmp_path / "other" / "realtime-2.5.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: realtime\nVersion: 2.5.0\n", "utf-8")
    assert fails([copied(tmp_path / "ours"), tmp_path / "other"]) == (
        "ImportError: the distribution realtime 2.5.0 owns the package name realtime too; run: "
        "pip uninstall realtime, then: pip install --force-reinstall realtime-edge"
    )


def test_a_missing_engine_is_named_with_what_to_do(tmp_path: Path) -> None:
    last = fails([copied(tmp_path)])
    assert last.startswith(
        f"ImportError: {tmp_path / 'realtime'} has no compiled engine (realtime._engine); run: make setup"
    )


def test_every_public_name_is_there_and_what_is_none_is_told() -> None:
    assert set(realtime.__all__) <= set(dir(realtime))
    assert all(hasattr(realtime, name) for name in realtime.__all__)
    with pytest.raises(AttributeError, match="module 'realtime' has no attribute 'Server'"):
        realtime.Server  # type: ignore[attr-defined]  # noqa: B018 -- to read it is the test


def test_frames_and_fan_out_import_nothing_of_the_server() -> None:
    code = "import sys; from realtime import Fanout, FrameEncoder; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "realtime" in loaded
    assert not loaded & {"httpx2", "jwt", "litestar", "msgspec", "prometheus_client", "websockets"}
