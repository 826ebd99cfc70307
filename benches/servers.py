"""The servers that are asked: ours, ours with a Python handler, and rivals; how each is built, started and stopped.

A rival is a folder in rivals/ with the smallest honest server of the same protocol, or of its own, and a lock file:
npm's, Go's, or a requirements.txt with hashes. `bare` is none of them: it shows what the kernel costs alone. What each
stands for is in docs/decisions/0024-rivals.md.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benches.machine import BENCHES, ROOT, SERVER_CORE, output_of, pinned

RIVALS = BENCHES / "rivals"
ENVIRONMENTS = ROOT / ".cache" / "rivals"
"""Where the Python rivals are installed: outside of their folders, and of our own environment."""
WS_PORT = "$WS_PORT"
"""Stands in a command for the port, where a server takes it on its command line alone."""
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class MissingError(Exception):
    """Something that the benchmark needs is not there; the text is one line that says what to do."""


class WrongError(Exception):
    """A run did not hold what must hold; the text says which and why."""


@dataclasses.dataclass(frozen=True)
class Server:
    """How one of the servers is started, and what it can be asked."""

    name: str
    title: str
    command: tuple[str, ...]
    cwd: Path
    version: str | None = None
    compresses: bool = False
    """It negotiates permessage-deflate when `BENCH_COMPRESSION=1` says so."""
    rounds: int | None = 1
    """In how many rounds it takes part; None for all of them."""
    dialect: str = "realtime"
    """What it speaks, as the generator names it."""
    query: str = ""
    """What stands behind the path of its endpoint."""
    asked: frozenset[str] | None = None
    """Workloads that it can be asked, by name; None for all."""

    def environment(self, port: int, api_port: int, data: Path, secret: str, *, compressed: bool) -> dict[str, str]:
        """The variables that all servers understand; each takes what it has a use for."""
        return os.environ | {
            "WS_PORT": str(port),
            "API_PORT": str(api_port),
            "REALTIME_DATA_DIR": str(data),
            "REALTIME_JWT_SECRET": secret,
            "REALTIME_SERVICE_KEY": service_key(secret),
            "BENCH_COMPRESSION": "1" if compressed else "0",
            "PYTHONPATH": str(RIVALS),
        }


def service_key(secret: str) -> str:
    """The key that other systems show in a run with this secret; two keys must not be one."""
    return hashlib.sha256(secret.encode()).hexdigest()


# ---- building ----

OUR_SETTINGS = ("--set", "limits.enabled=false", "--set", "presence.everyone_max=1", "--set", "log.connections_per_s=0")


def ours(command: str | None = None) -> tuple[Server, Server]:
    """Our server as it is installed, and the same with an app whose Python handler publishes.

    Without limits and, since the rivals have none, without presence for everyone. Nor do the rivals write lines about
    connections: the log's first ones take megabytes of the interpreter's once.

    Args:
        command: how to start the server in place of `.venv/bin/realtime serve …`.

    Raises:
        MissingError: there is no such program.
    """
    program = str(ROOT / ".venv" / "bin" / "realtime")
    plain = tuple(shlex.split(command)) if command else (program, "serve", *OUR_SETTINGS)
    if not plain or shutil.which(plain[0]) is None:
        raise MissingError(f"{' '.join(plain[:1])}: no such program; run `make setup`, or give --ours-command")
    version = output_of(plain[0], "--version")
    handler = (program, "serve", str(BENCHES / "apps" / "handler.py"), *OUR_SETTINGS)
    return (
        Server("ours", "this server", plain, ROOT, version, compresses=True, rounds=None),
        Server("handler", "with a Python handler", handler, ROOT, version, rounds=None),
    )


def ours_over_socketify() -> Server:
    """Our server over the sockets of the rival that stands beside it.

    Raises:
        MissingError: the package or the system's libuv is not there.
    """
    program = str(ROOT / ".venv" / "bin" / "realtime")
    extra = ("--set", "engine.transport=socketify")
    try:
        version = output_of(program, "--version")
        subprocess.run(
            [program, "check", *extra, "--set", "server.port=0", "--set", "api.port=0"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingError("engine.transport=socketify: install libuv1 and .[socketify], or leave it out") from error
    command = (program, "serve", *OUR_SETTINGS, *extra)
    return Server("ours-socketify", "this server over socketify", command, ROOT, version)


def bun() -> Server:
    """Bun with its native publish: the platform of the first version, and the quickest of the rivals."""
    program = npm("bun") / ".bin" / "bun"
    version = output_of(str(program), "--version")
    command = (str(program), "server.js")
    return Server("bun", "Bun", command, RIVALS / "bun", version, compresses=True, rounds=None)


def bare(sends: str) -> Server:
    """No rival but the floor: what the kernel costs, by the least program there is, with a ring or a loop of sends."""
    program = cargo("bare", "release")
    title = f"the kernel alone, {'io_uring' if sends == 'ring' else 'send()'}"
    name, rounds = ("bare", None) if sends == "ring" else (f"bare-{sends}", 1)
    asked = frozenset({"w1", "w1b", "w2", "w3"})
    return Server(name, title, ("env", f"BARE_SENDS={sends}", str(program)), ROOT, rounds=rounds, asked=asked)


def socketio() -> Server:
    """What people on Node reach for first; its packets stand inside of the frames."""
    version = installed_version(npm("socketio") / "socket.io" / "package.json")
    query = "?EIO=4&transport=websocket"
    command = ("node", "server.mjs")
    return Server("socketio", "Socket.IO", command, RIVALS / "socketio", version, dialect="socketio", query=query)


def centrifuge() -> Server:
    """The library under Centrifugo, by its own protocol; it has no command that answers alone, so no W3."""
    folder = RIVALS / "centrifuge"
    if shutil.which("go") is None:
        raise MissingError("go was not found; install Go 1.26 or newer, or leave this rival out with --only")
    program = ENVIRONMENTS / "centrifuge"
    run_quietly(["go", "build", "-mod=readonly", "-o", str(program), "."], folder)
    version = output_of(
        "go", "list", "-C", str(folder), "-m", "-f", "{{.Version}}", "github.com/centrifugal/centrifuge"
    )
    asked = frozenset({"w1", "w1b", "w2", "w4"})
    return Server("centrifuge", "centrifuge (Go)", (str(program),), folder, version, dialect="centrifuge", asked=asked)


def ws() -> Server:
    """What most servers on Node stand on."""
    version = installed_version(npm("ws") / "ws" / "package.json")
    return Server("ws", "ws (Node)", ("node", "server.mjs"), RIVALS / "ws", version, compresses=True)


def of_python(name: str, title: str, package: str, *, compresses: bool = False) -> Server:
    """A rival that is one Python program."""
    command = (str(python(name)), "server.py")
    return Server(name, title, command, RIVALS / name, pinned_version(name, package), compresses=compresses)


def granian() -> Server:
    """Starlette under granian: what an ASGI app costs on a quick server."""
    program = python("granian").with_name("granian")
    options = ("--interface", "asgi", "--ws", "--workers", "1", "--loop", "uvloop", "--no-log", "--backlog", "4096")
    command = (str(program), *options, "--host", "127.0.0.1", "--port", WS_PORT, "server:app")
    version = pinned_version("granian", "granian")
    return Server("granian", "granian + Starlette", command, RIVALS / "granian", version)


RIVAL_MAKERS: Mapping[str, Callable[[], Server]] = {
    "bare": lambda: bare("ring"),
    "bare-loop": lambda: bare("loop"),
    "bun": bun,
    "socketify": lambda: of_python("socketify", "socketify", "socketify", compresses=True),
    "picows": lambda: of_python("picows", "picows", "picows"),
    "ws": ws,
    "websockets": lambda: of_python("websockets", "websockets", "websockets", compresses=True),
    "socketio": socketio,
    "centrifuge": centrifuge,
    "granian": granian,
}
"""By name, the quickest at one delivery first."""
MAKERS: Mapping[str, Callable[[], Server]] = {"ours-socketify": ours_over_socketify, **RIVAL_MAKERS}
"""What takes part beside ours on its own sockets."""


def beside(name: str) -> Server:
    """Build what takes part beside ours: a rival from its lock file, or ours over another transport.

    Raises:
        MissingError: its platform is not there, or the build failed.
    """
    return MAKERS[name]()


def npm(name: str) -> Path:
    """Install a rival of Node's world from its lock file; returns its `node_modules`."""
    folder = RIVALS / name
    modules = folder / "node_modules"
    lock = folder / "package-lock.json"
    done = modules / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        if shutil.which("npm") is None:
            message = "npm was not found; install Node 20 or newer, or leave this rival out with --only"
            raise MissingError(message)
        run_quietly(["npm", "ci", "--no-audit", "--no-fund"], folder)
        done.touch()
    return modules


def python(name: str) -> Path:
    """Install a rival of Python's world into an environment of its own; returns its interpreter."""
    folder = ENVIRONMENTS / name
    pins, done = RIVALS / name / "requirements.txt", folder / "requirements.txt"
    interpreter = folder / "bin" / "python"
    if not done.exists() or done.read_bytes() != pins.read_bytes():
        # From the interpreter that this one was made from: an environment of an environment would miss its library.
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
        run_quietly([str(interpreter), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(pins)], ROOT)
        shutil.copyfile(pins, done)
    return interpreter


def pinned_version(name: str, package: str) -> str | None:
    """The version of a package in a rival's requirements."""
    for line in (RIVALS / name / "requirements.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split()[0].partition("==")[2]
    return None


def installed_version(package_json: Path) -> str:
    """The version of an installed npm package."""
    return str(json.loads(package_json.read_text("utf-8"))["version"])


def build_generator(profile: str) -> Path:
    """Build realtime-load and return its path."""
    return cargo("realtime-load", profile)


def cargo(package: str, profile: str) -> Path:
    """Build a program of the workspace and return its path.

    Raises:
        MissingError: there is no cargo, or the build failed.
    """
    if shutil.which("cargo") is None:
        message = "cargo was not found; install Rust (https://rustup.rs)"
        raise MissingError(message)
    run_quietly(["cargo", "build", "--locked", "--profile", profile, "-p", package], ROOT)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return ROOT / target / profile / package


def build_engine(profile: str) -> None:
    """Build and install our engine with a cargo profile."""
    run_quietly([".venv/bin/maturin", "develop", "--locked", "--profile", profile], ROOT)


def run_quietly(command: Sequence[str], cwd: Path) -> None:
    """Run a build; its output is shown only if it fails.

    Raises:
        MissingError: there is no such program, or it failed.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} was not found; run `make setup`") from error
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise MissingError(f"{' '.join(command)} failed with {done.returncode}")


# ---- running ----


@contextlib.contextmanager
def running(server: Server, directory: Path, secret: str, *, compressed: bool) -> Iterator[tuple[int, int, int]]:
    """A fresh server on its core, ready; yields its port, that of its HTTP side and its pid, and stops it.

    Raises:
        WrongError: it did not start, ended by itself, or did not end well when told to.
    """
    port, api_port = free_ports(2)
    log = directory / "server.log"
    with log.open("wb") as output, pinned(SERVER_CORE):
        process = subprocess.Popen(
            [str(port) if word == WS_PORT else word for word in server.command],
            cwd=server.cwd,
            env=server.environment(port, api_port, directory / "data", secret, compressed=compressed),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_ready(server, process, port, log)
        try:
            yield port, api_port, process.pid
        except WrongError as fault:
            # What the load saw is the symptom; if the server is gone, its last words are the cause.
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise WrongError(f"{fault}; {server.name} ended with {process.wait(1)}:\n{tail(log)}") from fault
            raise
        if process.poll() is not None:
            raise WrongError(f"{server.name} ended by itself with {process.returncode}:\n{tail(log)}")
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_TIMEOUT_S)
        # Some rivals have no handler for the signal and die of it, which is their way of ending well.
        if code not in {0, -signal.SIGTERM, 128 + signal.SIGTERM}:
            raise WrongError(f"{server.name} ended with {code} after SIGTERM:\n{tail(log)}")
    except subprocess.TimeoutExpired as error:
        raise WrongError(f"{server.name} did not end within {STOP_TIMEOUT_S:g} s of SIGTERM:\n{tail(log)}") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(server: Server, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when something is answered: a port may be listened on before the process that serves it is there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise WrongError(f"{server.name} did not start, exit code {process.returncode}:\n{tail(log)}")
        if answers(port):
            return
        time.sleep(0.05)
    raise WrongError(f"{server.name} did not answer on port {port} within {START_TIMEOUT_S:g} s:\n{tail(log)}")


def wait_for_http(port: int) -> None:
    """Return when the HTTP side, which comes after the sockets, answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if answers(port):
            return
        time.sleep(0.05)
    raise WrongError(f"nothing answered on port {port} within {START_TIMEOUT_S:g} s")


def answers(port: int) -> bool:
    """Whether a request for a page, which no server here has, is answered."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.recv(1) != b""
    return False


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


def tail(log: Path) -> str:
    """The last lines of a server's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
