"""A scratch home in which the blocks of one page run as a reader would run them, and what they answer is compared.

The home is an empty folder with the programs of `.venv/bin` in its PATH, but for the first pages (`on_path`). Three
things of a page are replaced, and nothing else: the ports that pages name become free ones (`PORTS`), folders of the
machine such as `/etc` become folders of the scratch home, and `.venv` is a link to the repository's. What a block
exports or assigns is there for the next one, until a server is started: it has that terminal, and the next block is
typed in a new one. A block whose last
command is a server (`_STAYS`) is left running until the page's next server, or its end, and so is `realtime sub`. A
block that talks to a server where the page has started none gets `realtime serve`.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.answers import resembles
from tests.kit import PATIENCE_S, ROOT, Client, answers_on, free_port
from tests.pages import Block, Typed

PORTS = (3001, 3002, 3003, 8000, 8001)
BLOCK_S = 60.0
"""How long one block may take."""

_STAYS = re.compile(r"(?:\S*/)?(?:realtime (?:serve|sub)|granian|uvicorn)\b")
_WATCHES = re.compile(r"\brealtime sub\b")
_CHANGES = re.compile(r" -(?:X|d) ")
_TALKS = re.compile(r"(?:localhost|127\.0\.0\.1):300[12]|\brealtime (?:sub|pub|chat|bench)\b|python -m websockets")
_FOLDERS = re.compile(r"(?<![\w.$}/~-])/(?=(?:etc|opt|run|var|srv)/)")
_PROGRAMS = Path(sys.executable).parent
_WS = ROOT / "tests" / "node" / "node_modules" / "ws" / "wrapper.mjs"


def _elsewhere() -> list[str]:
    """Return the PATH without the folders that hold `realtime`."""
    folders = os.environ["PATH"].split(os.pathsep)
    return [folder for folder in folders if not (Path(folder) / "realtime").exists()]


class Scratch:
    """The folder of one page; as a context it ends what still runs."""

    def __init__(self, folder: Path, *, api_port: int = 3001, on_path: bool = True) -> None:
        """Make the home.

        Args:
            folder: an empty folder.
            api_port: the HTTP port that the page's server has in its text.
            on_path: whether the programs of `.venv/bin` are in the PATH, as on a page that is not the first one.
        """
        self.root = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (self.home / ".venv").symlink_to(Path(sys.executable).parents[1])
        for each in ("etc", "run", "srv", "var/lib", "var/log", "opt"):
            (folder / each).mkdir(parents=True)
        (folder / "opt" / "realtime").symlink_to(Path(sys.executable).parents[1])
        (folder / "tmp").mkdir()
        self.ports = {port: free_port() for port in PORTS}
        self.port: int = self.ports[3002]
        self.api_port: int = self.ports[api_port]
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("REALTIME_", "WS_", "API_", "PYTEST"))
        }
        self.env = kept | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([*([str(_PROGRAMS)] if on_path else []), *_elsewhere()]),
            "TMPDIR": str(folder / "tmp"),
            "WS_PORT": str(self.port),
            "API_PORT": str(self.api_port),
        }
        self._state = folder / "state.sh"
        self._output = folder / "output.txt"
        self._server: subprocess.Popen[bytes] | None = None
        self._server_named = ""
        self._watchers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Nothing to do: the folder is there."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Kill what still runs."""
        for process in (*self._watchers, *([self._server] if self._server else [])):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    @property
    def output(self) -> str:
        """What the servers wrote so far."""
        return self._output.read_text("utf-8", "replace") if self._output.exists() else ""

    def moved(self, text: str) -> str:
        """Return a page's text with the ports and folders of this home."""
        named = re.compile(rf"(?<![\d.,-])({'|'.join(map(str, PORTS))})(?![\d.,-])")
        text = named.sub(lambda match: str(self.ports[int(match[1])]), text)
        return _FOLDERS.sub(f"{self.root}/", text)

    def make_folders(self, text: str) -> None:
        """Make the folders of the files that a moved text names, as the machine of a page has them."""
        for folder in re.findall(rf"{re.escape(str(self.root))}/[\w./-]+(?=/)", text):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Save a page's file, below the home or where the page says."""
        self.make_folders(text)
        path = self.home / self.moved(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    # Blocks of the shell.

    def run(self, block: Block) -> None:
        """Run a `sh` block, or start the server that it ends with."""
        before, last = _split(block.text)
        stays = _STAYS.search(last)
        if stays is None:
            self._with_a_server(block.text)
            self.shell(block.text, str(block))
            return
        if before.strip():
            self.shell(before, str(block))
        self.serve(last, str(block))
        if not _WATCHES.search(last):
            # The server has the terminal: what follows is typed in another one, without what this one has exported.
            self._state.unlink(missing_ok=True)

    def ask(self, block: Block, typed: Typed) -> None:
        """Run one command of a `console` block and compare what it answers."""
        self._with_a_server(typed.command)
        place = f"{block.page}:{typed.line}"
        deadline = time.monotonic() + PATIENCE_S
        while not resembles(typed.answer, said := self.shell(typed.command, place, typed.typed)):
            # A program in the background may have yet to do what is asked for here.
            again = self._watchers and not _CHANGES.search(typed.command) and time.monotonic() < deadline
            assert again, f"{place} answers\n{said}\nand not\n{typed.answer}"

    def shell(self, script: str, place: str, typed: str = "") -> str:
        """Run a script by `bash -euo pipefail` with what earlier ones have set; return what it wrote to stdout."""
        text = self.moved(script)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{self._before()}{text}\nset +a\nexport -p >{self._state}\n"],
            cwd=self.home,
            env=self.env,
            input=typed,
            capture_output=True,
            text=True,
            timeout=BLOCK_S,
            check=False,
        )
        said = f"{place}: exit code {result.returncode}\n{result.stdout}{result.stderr}"
        assert result.returncode == 0, f"{said}\nthe server's output:\n{self.output}"
        return result.stdout

    def _before(self) -> str:
        # Variables of bash's own that cannot be set again are left out of what is taken over.
        return f'[ -e {self._state} ] && . {self._state} 2>/dev/null\ncd "$PWD" 2>/dev/null || true\nset -a\n'

    # Servers.

    def _with_a_server(self, text: str) -> None:
        if _TALKS.search(text) and (self._server is None or self._server.poll() is not None):
            self.serve("realtime serve", "the server of the page")

    def serve(self, command: str, place: str) -> None:
        """Start a server by its command and wait until it takes connections."""
        if _WATCHES.search(command):
            self._with_a_server(command)
            self._watchers.append(self._started(command))
            return
        self.stop()
        self._server, self._server_named = self._started(command), place
        ports = {int(port) for port in re.findall(r"--port (\d+)", self.moved(command))} | {self.port}
        if " serve" in command and "api.enabled=false" not in command:
            ports.add(self.api_port)
        for port in ports:
            self._wait_for(port, place)

    def _started(self, command: str) -> subprocess.Popen[bytes]:
        text = self.moved(command)
        stays = _STAYS.search(text)
        assert stays is not None
        script = f"{self._before()}{text[: stays.start()]}exec {text[stays.start() :]}"
        with self._output.open("ab") as output:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.home,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait_for(self, port: int, place: str) -> None:
        assert self._server is not None
        deadline = time.monotonic() + 4 * PATIENCE_S
        while not answers_on(port):
            ended = self._server.poll()
            assert ended is None, f"{place}: the server ended with {ended}:\n{self.output}"
            assert time.monotonic() < deadline, f"{place}: nothing answers on port {port}:\n{self.output}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the page's server, if there is one, as a service manager does; it must end well."""
        while self._watchers:
            watcher = self._watchers.pop()
            assert watcher.poll() is None, f"a program in the background has ended:\n{self.output}"
            watcher.send_signal(signal.SIGINT)
            assert watcher.wait(PATIENCE_S) == 130
        if self._server is None:
            return
        assert self._server.poll() is None, f"{self._server_named}: the server has ended:\n{self.output}"
        self._server.terminate()
        code = self._server.wait(4 * PATIENCE_S)
        self._server = None
        assert code in {0, 130}, f"{self._server_named}: the server ended with {code}:\n{self.output}"

    # Programs and clients.

    def token(self, user: str) -> str:
        """Return a token of the page's server, by its command line."""
        return self.shell(f"{_PROGRAMS}/realtime token --user {user}", "a token").strip()

    async def connect(self, token: str, **options: Any) -> Client:
        """Return a client of the page's server that offers `realtime.v1`, behind its first frame."""
        return await Client.open(self, token=token, subprotocols=["realtime.v1"], **options)

    def node(self, name: str, place: str, token: str) -> None:
        """Run a script of a page in Node until it writes something; `token` is a global of it, as `WebSocket` is."""
        node = shutil.which("node")
        if node is None:
            return
        self.shell(f"{node} --check {name}", place)
        if not _WS.exists():
            return
        known = f"Object.assign(globalThis, {{ WebSocket, token: {json.dumps(token)} }});"
        before = f"import {{ WebSocket }} from {json.dumps(str(_WS))};\n{known}\n"
        (self.home / "before.mjs").write_text(before, "utf-8")
        with subprocess.Popen(
            [node, "--import", "./before.mjs", name],
            cwd=self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            said, deadline = b"", time.monotonic() + PATIENCE_S
            while b"error" not in said.lower() and said.count(b"\n") < 1 and time.monotonic() < deadline:
                said += process.stdout.read() or b""
                if process.poll() is not None:
                    break
                time.sleep(0.02)
            ended = process.poll()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        assert b"\n" in said, f"{place} wrote nothing (exit code {ended})"
        assert not ended, f"{place} ended with {ended}: {said.decode()}"
        assert b"Error" not in said, f"{place}: {said.decode()}"


def _split(script: str) -> tuple[str, str]:
    """Return a script without its last command, and that command."""
    lines = script.rstrip().splitlines()
    start = len(lines) - 1
    while start > 0 and (lines[start - 1].endswith("\\") or not lines[start].split("#")[0].strip()):
        start -= 1
    return "\n".join(lines[:start]), "\n".join(lines[start:])
