"""The wheel in a clean virtual environment: it serves the same as the working tree, playground included."""

import asyncio
import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from tests.kit import REALTIME, ROOT, Server, clients

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]


def build_wheel(folder: Path) -> Path:
    """Build the wheel as a release does, with the engine's profile of the tests so that nothing is compiled twice."""
    maturin, python = str(REALTIME.with_name("maturin")), str(REALTIME.with_name("python"))
    command = [maturin, "build", "--locked", "--profile", "ci", "--interpreter", python, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    """The `realtime` command of a clean environment that holds the wheel and its pinned dependencies alone."""
    folder = wheel.parent / "venv"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "run.txt")], check=True)
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    return folder / "bin" / "realtime"


def token_of(command: Path, env: dict[str, str]) -> str:
    """Return what `realtime token --user alice` prints."""
    made = subprocess.run([command, "token", "--user", "alice"], env=env, capture_output=True, text=True, check=True)
    return made.stdout.strip()


def test_wheel_holds_the_engine_the_stub_and_the_playground(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "abi3" in wheel.name
    assert {"realtime/_engine.abi3.so", "realtime/_engine.pyi", "realtime/py.typed"} <= names
    assert "realtime/api/static/index.html" in names
    assert not [name for name in names if name.startswith(("tests", "rust")) or name.endswith((".pyc", ".rs"))]


async def test_wheel_in_a_clean_environment_serves_the_same(installed: Path, tmp_path: Path, shards: int) -> None:
    sets = [f"server.shards={shards}"]
    server = Server(tmp_path / "server", sets=sets, secret=None, api=True, command=[installed])
    async with server:
        secret = (server.data_dir / "secret").read_text().strip()
        env = os.environ | {"REALTIME_DATA_DIR": str(server.data_dir)}
        made = await asyncio.to_thread(token_of, installed, env)
        assert secret not in made
        async with await server.connect(token=made, established=False) as alice:
            assert (await alice.receive())["data"]["userId"] == "alice"
            await alice.subscribe("conversation:1")
            await alice.say("1", "from the wheel")
            await alice.expect("new_message", content="from the wheel")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)
        head = f"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {await server.dev_cookie()}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        page = await asyncio.wait_for(reader.read(), 15)
        writer.close()
        assert b'id="composer"' in page
        assert await server.stop() == 0


async def test_wheel_and_working_tree_read_each_other_s_data(installed: Path, tmp_path: Path) -> None:
    first = Server(tmp_path / "server")
    async with first, clients(first, "alice") as (alice,):
        await alice.say("1", "from the tree")
        assert await first.stop() == 0
    second = Server(tmp_path / "server", command=[installed])
    async with second, clients(second, "alice") as (alice,):
        await alice.subscribe("conversation:1", last=5)
        await alice.expect("new_message", content="from the tree")
        assert await second.stop() == 0
