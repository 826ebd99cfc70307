"""What do a delivery, a message and a connection cost, and how long do receivers wait, beside Bun on the same machine?

Unit: µs of the server's CPU (all its threads), µs of latency, bytes of the server's memory; the ratio ours / Bun is
what can be compared between machines. Server on one core, load on another, a fresh server for every run, rounds
alternate in their order, the median of all rounds is shown. A time never fails the run; a delivery that is lost,
doubled or out of order does, and so does a server that crashes. How to read the table: benches/README.md.

Exit: 0 well, 1 a run was wrong, 2 something that is needed is missing.
"""

import argparse
import base64
import contextlib
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import os
import platform
import resource
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHES = Path(__file__).resolve().parent
ROOT = BENCHES.parent
BUN = BENCHES / "rivals" / "bun"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0


class MissingError(Exception):
    """Something that the benchmark needs is not there; the text is one line that says what to do."""


class WrongError(Exception):
    """A run did not hold what must hold; the text says which and why."""


@dataclasses.dataclass(frozen=True)
class Server:
    """How one of the servers is started: everything that this script assumes of it."""

    name: str
    command: tuple[str, ...]
    cwd: Path

    @staticmethod
    def environment(port: int, api_port: int, data: Path, secret: str) -> dict[str, str]:
        """The variables that both servers understand; each takes what it has a use for."""
        return os.environ | {
            "WS_PORT": str(port),
            "API_PORT": str(api_port),
            "REALTIME_DATA_DIR": str(data),
            "REALTIME_JWT_SECRET": secret,
            "REALTIME_SERVICE_KEY": service_key(secret),
        }


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row group of the table: what the generator is asked for and which of its figures are shown."""

    name: str
    arguments: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    rivals: bool = True
    full_only: bool = False
    script: str | None = None
    """A client of the HTTP side, in place of the generator; `scrape.py` has idle connections beside it."""


LATENCY = (("p50, µs", "latency_us.p50"), ("p99, µs", "latency_us.p99"))
BUSY = (("generator's core", "generator_cpu_share"),)
LATE = (("generator late p99, µs", "generator_late_us.p99"),)
PER_DELIVERY = (("CPU a delivery, µs", "server_cpu_us_per_delivery"), *LATENCY, *BUSY)
PER_MESSAGE = (("CPU a message, µs", "server_cpu_us_per_message"), *LATENCY)
RATE = (("messages a second", "messages_per_s"),)
ACK = (("ack p50, µs", "ack_latency_us.p50"), ("ack p99, µs", "ack_latency_us.p99"))
CONNECT = (
    ("CPU a connect, µs", "connect.server_cpu_us_per_connection"),
    ("memory a connection, B", "connect.pss_bytes_per_connection"),
)
HOOKS = (
    ("events a second", "events_per_s"),
    ("CPU an event, µs", "server_cpu_us_per_event"),
    ("batch p50, µs", "latency_us.p50"),
    ("batch p99, µs", "latency_us.p99"),
    *BUSY,
)
SCRAPE = (
    ("scrape p50, µs", "scrape_us.p50"),
    ("scrape max, µs", "scrape_us.max"),
    ("ack p99 without, µs", "ack_alone_us.p99"),
    ("ack p99 beside, µs", "ack_beside_us.p99"),
)
CHURN = (
    ("RSS closed, cycle 2, MiB", "cycles.1.rss_closed_bytes"),
    ("RSS closed, cycle 10, MiB", "cycles.9.rss_closed_bytes"),
    ("RSS open, cycle 2, MiB", "cycles.1.rss_after_bytes"),
    ("RSS open, cycle 10, MiB", "cycles.9.rss_after_bytes"),
)

# A short name outside of the conversations, whose events carry their id too, leaves room for the 131 B of all rivals.
BENCH = ("--prefix", "bench:")
WORKLOADS = (
    Workload("W1   1 x 1,000", ("--workload", "w1", *BENCH), PER_DELIVERY),
    Workload("W1b  16 in flight", ("--workload", "w1b", *BENCH), PER_DELIVERY),
    Workload("W2   100 x 10", ("--workload", "w2", *BENCH), (*RATE, *PER_MESSAGE, *BUSY)),
    Workload("W2   at 10,000/s", ("--workload", "w2", "--rate", "10000", *BENCH), (*PER_MESSAGE, *LATE)),
    Workload("W4   idle", ("--workload", "idle"), CONNECT),
    Workload("W7   stored", ("--workload", "send"), (*RATE, *PER_MESSAGE, *ACK, *BUSY), rivals=False),
    Workload("W7   at 10,000/s", ("--workload", "send", "--rate", "10000"), (*PER_MESSAGE, *ACK, *LATE), rivals=False),
    Workload("hooks volatile", (), HOOKS, rivals=False, script="hooks.py"),
    Workload("hooks at 50,000/s", ("--rate", "50000"), HOOKS, rivals=False, script="hooks.py"),
    Workload("hooks stored", ("--target", "conversation"), HOOKS, rivals=False, script="hooks.py"),
    Workload("scrape 10,000", (), SCRAPE, rivals=False, script="scrape.py"),
    Workload("churn 10 cycles", ("--workload", "churn"), CHURN, full_only=True),
)


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    options = command_line()
    # 10,000 connections need as many descriptors at both ends, and children inherit the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        generator = build_generator()
        makers = {"ours": lambda: ours(options), "bun": bun}
        servers = [make() for name, make in makers.items() if options.only in {None, name}]
        rounds, wrong = measure(options, generator, servers)
    except MissingError as missing:
        print(f"benches/run.py: {missing}", file=sys.stderr)
        return 2
    path = write_results(options, servers, rounds)
    print_table([server.name for server in servers], rounds)
    print(f"\nwritten: {path.relative_to(ROOT)}")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


def command_line() -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round; its file goes to benches/results/local")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all workloads (default 3)")
    parser.add_argument("--seconds", type=float, default=5, help="measured time of one run (default 5)")
    parser.add_argument("--only", choices=("ours", "bun"), help="one server alone")
    parser.add_argument("--match", default="", help="workloads whose name contains this, for example W2")
    parser.add_argument("--connections", type=int, help="connections of every workload, in place of its own number")
    parser.add_argument("--ours-command", help="how to start our server, in place of .venv/bin/realtime serve …")
    parser.add_argument("--engine-profile", help="build the engine with this cargo profile first, for example dist")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 2)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return options


# ---- what is needed ----


def build_generator() -> Path:
    """Build realtime-load in the release profile and return its path."""
    if shutil.which("cargo") is None:
        message = "cargo was not found; install Rust (https://rustup.rs)"
        raise MissingError(message)
    run_quietly(["cargo", "build", "--locked", "--release", "-p", "realtime-load"], ROOT)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return ROOT / target / "release" / "realtime-load"


def ours(options: argparse.Namespace) -> Server:
    """Our server as it is installed, without limits and, since the rivals have none, without presence for everyone.

    Nor do the rivals write lines about connections: the log's first ones take megabytes of the interpreter's once.
    """
    if options.engine_profile:
        run_quietly([".venv/bin/maturin", "develop", "--locked", "--profile", options.engine_profile], ROOT)
    if options.ours_command:
        command = tuple(shlex.split(options.ours_command))
        if not command or shutil.which(command[0]) is None:
            raise MissingError(f"--ours-command {options.ours_command}: no such program")
        return Server("ours", command, ROOT)
    program = ROOT / ".venv" / "bin" / "realtime"
    if not program.exists():
        message = ".venv/bin/realtime was not found; run `make setup`, or give --ours-command or --only bun"
        raise MissingError(message)
    settings = ("--set", "limits.enabled=false", "--set", "presence.everyone_max=1", "--set", "log.connections_per_s=0")
    return Server("ours", (str(program), "serve", *settings), ROOT)


def bun() -> Server:
    """Bun with its native publish, installed from its lock file."""
    program = BUN / "node_modules" / ".bin" / "bun"
    if not program.exists():
        if shutil.which("npm") is None:
            message = "npm was not found; install Node, or give --only ours"
            raise MissingError(message)
        run_quietly(["npm", "ci", "--no-audit", "--no-fund"], BUN)
    return Server("bun", (str(program), "server.js"), BUN)


def run_quietly(command: Sequence[str], cwd: Path) -> None:
    """Run a build; its output is shown only if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} was not found; run `make setup`") from error
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise MissingError(f"`{shlex.join(command)}` failed with {done.returncode}; its output is above")


# ---- one run ----


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


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


def can_pin() -> bool:
    """Whether server and load can have a core each."""
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def running(server: Server, directory: Path, secret: str) -> Iterator[tuple[int, int, int]]:
    """A fresh server on core 0, ready; yields its port, that of its HTTP side and its pid, and stops it.

    Raises:
        WrongError: it did not start, ended by itself, or did not end well when told to.
    """
    port, api_port = free_ports(2)
    log = directory / "server.log"
    with log.open("wb") as output, pinned(0):
        process = subprocess.Popen(
            server.command,
            cwd=server.cwd,
            env=server.environment(port, api_port, directory / "data", secret),
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
        # Bun has no handler for the signal and dies of it, which is its way of ending well.
        if code not in {0, -signal.SIGTERM, 128 + signal.SIGTERM}:
            raise WrongError(f"{server.name} ended with {code} after SIGTERM:\n{tail(log)}")
    except subprocess.TimeoutExpired as error:
        raise WrongError(f"{server.name} did not end within {STOP_TIMEOUT_S:g} s of SIGTERM:\n{tail(log)}") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_ready(server: Server, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the port accepts connections."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise WrongError(f"{server.name} did not start, exit code {process.returncode}:\n{tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise WrongError(f"{server.name} did not listen on port {port} within {START_TIMEOUT_S:g} s:\n{tail(log)}")


def tail(log: Path) -> str:
    """The last lines of a server's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def family(pid: int) -> list[int]:
    """A process and all its descendants: a server that starts workers pays for them."""
    pids = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                pids += family(int(child))
    return pids


def token(secret: str, user: str) -> str:
    """An HS256 token for one user, good for a day, with a grant for the channels of the fan-out."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    claims = {"sub": user, "exp": int(time.time()) + 86_400, "channels": {"bench:*": ["subscribe", "publish"]}}
    signed = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


def service_key(secret: str) -> str:
    """The key that other systems show in a run with this secret; two keys must not be one."""
    return hashlib.sha256(secret.encode()).hexdigest()


def run_once(options: argparse.Namespace, generator: Path, server: Server, workload: Workload) -> dict[str, Any]:
    """One workload against one fresh server; returns the generator's figures.

    Raises:
        WrongError: the server crashed, or the generator found a fault.
    """
    secret = secrets.token_hex(32)
    users = options.connections or (10_000 if workload.name.startswith(("W4", "scrape", "churn")) else 1_000)
    with tempfile.TemporaryDirectory(prefix="realtime-bench-") as name:
        directory = Path(name)
        tokens = directory / "tokens"
        # A user for each connection, so that every server keeps as many identities as it has sessions.
        tokens.write_text("\n".join(token(secret, f"u{index}") for index in range(users)))
        with running(server, directory, secret) as (port, api_port, pid):
            pids = [argument for each in family(pid) for argument in ("--pid", str(each))]
            load = [str(generator), "--url", f"ws://127.0.0.1:{port}/ws", "--tokens-file", str(tokens)]
            if workload.script is None:
                load += [*workload.arguments, *pids, "--seconds", str(options.seconds), "--connections", str(users)]
                stdout = loaded(load, workload, server)
            else:
                wait_for_http(api_port)
                script = [sys.executable, str(BENCHES / workload.script), *workload.arguments]
                script += ["--port", str(api_port), "--ws-port", str(port), "--key", service_key(secret)]
                script += ["--token", token(secret, "u0"), "--seconds", str(options.seconds)]
                if workload.script == "scrape.py":
                    idle = ["--workload", "idle", "--connections", str(users), "--seconds", "3600"]
                    with beside([*load, *idle]):
                        stdout = loaded([*script, "--connections", str(users)], workload, server)
                else:
                    stdout = loaded([*script, *pids], workload, server)
    figures: dict[str, Any] = json.loads(stdout)
    return figures


def loaded(command: Sequence[str], workload: Workload, server: Server) -> str:
    """Run a load on its core to the end; returns what it printed.

    Raises:
        WrongError: it found a fault.
    """
    with pinned(1):
        load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = load.communicate()
    if load.returncode:
        lines = stderr.splitlines()
        faults = [line.removeprefix("WRONG: ") for line in lines if line.startswith("WRONG")] or lines[-3:]
        raise WrongError(f"{workload.name.strip()} against {server.name}: {'; '.join(faults)}")
    return stdout


@contextlib.contextmanager
def beside(command: Sequence[str]) -> Iterator[None]:
    """A load that goes on while something else is measured."""
    with pinned(1):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait_for_http(port: int) -> None:
    """Return when the HTTP side, which comes after the sockets, accepts connections."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise WrongError(f"nothing listened on port {port} within {START_TIMEOUT_S:g} s")


def measure(
    options: argparse.Namespace, generator: Path, servers: Sequence[Server]
) -> tuple[list[dict[str, Any]], list[str]]:
    """All rounds of all workloads; returns one entry a run, and what was wrong."""
    results: list[dict[str, Any]] = []
    wrong: list[str] = []
    workloads = [
        workload
        for workload in WORKLOADS
        if options.match in workload.name and not (options.quick and workload.full_only)
    ]
    for index in range(options.rounds):
        # Whoever comes second may find a warmer or a throttled machine: take turns.
        ordered = list(servers) if index % 2 == 0 else list(reversed(servers))
        for workload in workloads:
            for server in ordered:
                if server.name != "ours" and not workload.rivals:
                    continue
                print(f"round {index + 1}/{options.rounds}  {workload.name:<18} {server.name}", file=sys.stderr)
                run = {"round": index + 1, "workload": workload.name, "server": server.name}
                try:
                    results.append(run | {"figures": run_once(options, generator, server, workload)})
                except WrongError as fault:
                    print(f"  WRONG: {fault}", file=sys.stderr)
                    wrong.append(str(fault))
    return results, wrong


# ---- what is shown ----


def figure(figures: Mapping[str, Any], path: str) -> float | None:
    """A figure by its dotted path, for example `latency_us.p99`; None where the run has none."""
    value: Any = figures
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError):
            return None
    return float(value)


def medians(results: Sequence[Mapping[str, Any]], workload: str, path: str) -> dict[str, float]:
    """The median of one figure over all rounds, by server."""
    values: dict[str, list[float]] = {}
    for run in results:
        value = figure(run["figures"], path) if run["workload"] == workload else None
        if value is not None:
            values.setdefault(run["server"], []).append(value)
    return {server: statistics.median(all_rounds) for server, all_rounds in values.items()}


def print_table(servers: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
    """The medians of both servers side by side and ours / Bun."""
    print(f"\n{'workload':<19}{'figure':<27}" + "".join(f"{server:>12}" for server in servers) + f"{'ratio':>9}")
    for workload in WORKLOADS:
        title = workload.name
        for label, path in workload.figures:
            by_server = medians(results, workload.name, path)
            if not by_server:
                continue
            scale = 1 / 1024**2 if "MiB" in label else 1
            cells = [plain(by_server[server] * scale) if server in by_server else "-" for server in servers]
            ratio = (
                f"{by_server['ours'] / by_server['bun']:.2f}" if by_server.get("bun") and "ours" in by_server else ""
            )
            print((f"{title:<19}{label:<27}" + "".join(f"{cell:>12}" for cell in cells) + f"{ratio:>9}").rstrip())
            title = ""


def plain(value: float) -> str:
    """Three digits that count; whole numbers above 100."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_results(options: argparse.Namespace, servers: Sequence[Server], results: Sequence[Mapping[str, Any]]) -> Path:
    """Every run as the generator told it, with the machine; a short round's file stays out of the repository."""
    now = dt.datetime.now(dt.UTC)
    folder = BENCHES / "results" / ("local" if options.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d-%H%M%S}.json"
    document = {
        "date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "revision": output_of("git", "rev-parse", "--short=12", "HEAD"),
        "engine_profile": options.engine_profile or "as installed",
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "pinned": can_pin(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "python": platform.python_version(),
        "bun": output_of(*(server.command[0] for server in servers if server.name == "bun"), "--version"),
        "rounds": results,
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def output_of(*command: str) -> str | None:
    """What a command prints, or None where there is no such command."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return None


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
