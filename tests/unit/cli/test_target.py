"""Which app `realtime serve` serves, and how one that cannot be served is told."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from realtime import Realtime
from realtime.base.config import ConfigError
from realtime.cli.target import load_app, watched

APP = "from realtime import Realtime\napp = Realtime()\nother = Realtime()\nnumber = 3\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty directory and leave Python's path and modules as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(target: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_app(target)
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_without_a_name_it_is_the_built_in_app() -> None:
    assert isinstance(load_app(None), Realtime)


@pytest.mark.parametrize(
    "target", ["served:app", "served", "served.py", "served.py:app", "./served.py:other", "served:other"]
)
def test_a_module_or_a_path_names_it(directory: Path, target: str) -> None:
    (directory / "served.py").write_text(APP, "utf-8")
    assert isinstance(load_app(target), Realtime)


def test_a_file_may_import_its_neighbours_and_sit_in_a_package(directory: Path) -> None:
    package = directory / "deep" / "inner"
    package.mkdir(parents=True)
    (package / "neighbour.py").write_text("from realtime import Realtime\nmade = Realtime()\n", "utf-8")
    (package / "main.py").write_text("from neighbour import made as app\n", "utf-8")
    assert isinstance(load_app("deep/inner/main.py"), Realtime)
    assert isinstance(load_app("deep.inner.neighbour:made"), Realtime)


def test_a_file_may_have_the_name_of_a_module_that_is_loaded(directory: Path) -> None:
    (directory / "json.py").write_text(APP, "utf-8")
    assert isinstance(load_app("json.py"), Realtime)
    assert sys.modules["json"].__file__ != str(directory / "json.py")


@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (APP, "served:ap", "served has no ap; did you mean served:app?"),
        ("x = 1\n", "served.py", "served.py has no app; write app = Realtime() there"),
        ("application = 1\n", "served.py:applicatoin", "did you mean served.py:application?"),
        (APP, "served:number", "served:number is of type int, not a Realtime app; name the app after the colon"),
        (APP, "missing:app", "there is no module missing for missing:app; run from its directory"),
        (APP, "served.deep:app", "there is no module served.deep for served.deep:app; run from its directory"),
        (APP, "missing.py", "there is no file missing.py for missing.py; name a file with a Realtime app"),
        ("import missing_too\n", "served:app", "No module named 'missing_too' (served.py:1)"),
        (
            "\n\n1 / 0\n",
            "served:app",
            "served:app cannot be imported: ZeroDivisionError: division by zero (served.py:3)",
        ),
        (
            "def broken(:\n",
            "served.py",
            "served.py cannot be imported: SyntaxError: invalid syntax (served.py, line 1)",
        ),
        ("raise RuntimeError('two\\nlines')\n", "served.py", "RuntimeError: two lines (served.py:1)"),
        ("import sys\nsys.exit(3)\n", "served.py", "served.py cannot be imported: SystemExit: 3 (served.py:2)"),
        ("raise ValueError\n", "served.py", "ValueError: no message (served.py:1)"),
    ],
)
def test_an_app_that_cannot_be_served_is_told_in_one_line(directory: Path, source: str, target: str, told: str) -> None:
    (directory / "served.py").write_text(source, "utf-8")
    assert told in refusal(target)


@pytest.mark.parametrize(
    ("target", "found"), [(None, "."), ("served:app", "."), ("deep/served.py:app", "deep"), ("served.py", ".")]
)
def test_changes_are_looked_for_beside_the_app(directory: Path, target: str | None, found: str) -> None:
    assert watched(target) == (directory / found).resolve()
