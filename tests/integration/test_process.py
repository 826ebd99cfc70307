"""The process: how it starts, what it says when it cannot, how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.conftest import SETS
from tests.kit import REALTIME, SECRET, Server, clients, eventually, free_port, token_for


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end with a clean configuration of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REALTIME_", "WS_", "API_"))}
    environment = clean | {"WS_PORT": str(free_port()), "API_PORT": str(free_port())} | env
    return subprocess.run(
        [REALTIME, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert exit code 2 and one line on stderr that holds these words, and no traceback."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2, result
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_port_in_use_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(run("serve", cwd=tmp_path, WS_PORT=port), port, "in use")
        assert_refused(run("serve", cwd=tmp_path, API_PORT=port), port, "in use")


async def test_a_test_server_whose_port_another_program_answers_on_has_not_started(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with socket.create_server(("127.0.0.1", server.port)), pytest.raises(AssertionError, match="ended with 2"):
        await server.start()


def test_unwritable_data_directory_is_one_line_and_exit_2(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, not a directory")
    assert_refused(run("serve", cwd=tmp_path, REALTIME_DATA_DIR=str(occupied)), str(occupied))
    assert_refused(
        run("serve", cwd=tmp_path, REALTIME_DATA_DIR=str(occupied), REALTIME_JWT_SECRET=SECRET), str(occupied)
    )
    assert_refused(
        run("serve", cwd=tmp_path, REALTIME_DATA_DIR="/proc/nothing", REALTIME_JWT_SECRET=SECRET), "/proc/nothing"
    )


def test_corrupt_log_is_one_line_with_its_path_and_exit_2(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    log = data / "realtime.sqlite3"
    log.write_bytes(b"this is not a database at all, and long enough to have a header" * 100)
    assert_refused(run("serve", cwd=tmp_path, REALTIME_DATA_DIR=str(data), REALTIME_JWT_SECRET=SECRET), str(log))


def test_data_directory_of_a_running_server_is_one_line_and_exit_2(tmp_path: Path) -> None:
    server = Server(tmp_path / "first")
    server.start_now()
    try:
        refused = run("serve", cwd=tmp_path, REALTIME_DATA_DIR=str(server.data_dir), REALTIME_JWT_SECRET=SECRET)
        assert_refused(refused, str(server.data_dir))
    finally:
        assert server.stop_now() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "server.prot=1"), ("server.prot", "server.port")),
        (("--set", "server.port=many"), ("server.port", "many")),
        (("--set", "server.port=70000"), ("server.port", "70000")),
        (("--set", "nonsense"), ("nonsense",)),
        (("--set", "typing.timeout_s=-1"), ("typing.timeout_s", "-1")),
        (("--set", "conversations.access=closed"), ("conversations.access", "closed", "grants")),
        (("--set", "server.host=0.0.0.0"), ("0.0.0.0", "secret")),  # noqa: S104 - it must be refused
        (("--config", "missing.toml"), ("missing.toml",)),
        (("no_such_module:app",), ("no_such_module",)),
        (("broken.py",), ("broken.py",)),
        (("missing.py",), ("missing.py",)),
        (("empty.py:app",), ("empty.py", "app")),
    ],
)
def test_broken_start_is_one_line_that_names_what_is_wrong_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (tmp_path / "broken.py").write_text("this is not python\n")
    (tmp_path / "empty.py").write_text("")
    assert_refused(run("serve", *arguments, cwd=tmp_path), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[server]\nprot = 1\n", ("prot",)),
        ("[server\n", ("realtime.toml",)),
        ("[sever]\nport = 1\n", ("sever",)),
        ("[auth]\nsecrets = ['short']\n", ("auth.secrets", "32")),
        ("[limits]\nenabled = 'perhaps'\n", ("limits.enabled", "perhaps")),
    ],
)
def test_broken_configuration_file_is_one_line_and_exit_2(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    (tmp_path / "realtime.toml").write_text(content)
    result = run("serve", cwd=tmp_path)
    assert_refused(result, *words)
    assert "short" not in result.stderr.replace("shorter", "")


def test_later_sources_win_over_earlier_ones(tmp_path: Path) -> None:
    """The file, the environment and the command line, each with a wrong value: the one that is read last is named."""
    (tmp_path / "realtime.toml").write_text("[server]\nport = 99901\n")
    assert_refused(run("serve", cwd=tmp_path, WS_PORT=""), "99901")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_process_with_0_and_closes_with_1012(
    serve: Callable[..., Server], signum: signal.Signals
) -> None:
    server = serve(api=True)
    async with server, clients(server, "alice", "bob") as (alice, bob):
        await alice.subscribe("conversation:1")
        started = time.monotonic()
        assert await server.stop(signum) == 0
        assert time.monotonic() - started < 10
        for client in (alice, bob):
            assert (await client.closed())[0] == 1012
        assert "Traceback" not in server.output


async def test_what_was_sent_before_the_signal_is_committed_and_acknowledged_or_not_at_all(
    serve: Callable[..., Server],
) -> None:
    async with serve("limits.enabled=false") as server:
        alice = await server.connect("alice")
        for number in range(2_000):
            message = {"conversationId": "1", "content": str(number), "clientMessageId": str(number)}
            await alice.send("send_message", message, id=number)
        assert await server.stop() == 0
        await alice.closed()
        acknowledged = [frame["data"] for frame in alice.answers() if frame["type"] == "ack"]
        await server.start()
        async with await server.connect("bob") as bob:
            epoch = (await bob.subscribe("conversation:2"))["position"]["epoch"]
            confirmed = await bob.subscribe("conversation:1", position={"offset": 0, "epoch": epoch})
            stored = [(await bob.expect("new_message"))["data"] for _ in range(confirmed["replayed"])]
        # Whatever is stored was acknowledged before the connection was closed, and the other way round.
        assert {m["number"] for m in acknowledged} == {m["number"] for m in stored}
        assert await server.stop() == 0


async def test_start_says_where_it_listens_and_gives_a_token_that_works(serve: Callable[..., Server]) -> None:
    server = serve(secret=None, api=True)
    async with server:
        await eventually(lambda: f"http://127.0.0.1:{server.api_port}" in server.output, what="the address of the page")
        assert f"ws://127.0.0.1:{server.port}/ws" in server.output
        tokens = [word for word in server.output.split() if word.count(".") == 2 and word.startswith("ey")]
        assert len(tokens) == 1
        await (await server.connect(token=tokens[0])).socket.close()


async def test_start_with_a_configured_secret_gives_no_token(serve: Callable[..., Server]) -> None:
    async with serve(api=True) as server:
        await eventually(lambda: f"ws://127.0.0.1:{server.port}/ws" in server.output, what="the address")
        assert not [word for word in server.output.split() if word.count(".") == 2 and word.startswith("ey")]
        assert SECRET not in server.output


def test_token_prints_the_token_alone(tmp_path: Path) -> None:
    result = run(
        "token", "--user", "alice", "--channels", "poll:*", "--ttl", "1h", cwd=tmp_path, REALTIME_JWT_SECRET=SECRET
    )
    assert result.returncode == 0, result
    assert result.stdout.count("\n") == 1
    assert result.stdout.strip().count(".") == 2
    assert result.stderr == ""


async def test_token_of_the_command_line_opens_its_channels(serve: Callable[..., Server], tmp_path: Path) -> None:
    async with serve() as server:
        made = await asyncio.to_thread(
            run, "token", "--user", "alice", "--channels", "poll:*", cwd=tmp_path, REALTIME_JWT_SECRET=SECRET
        )
        async with await server.connect(token=made.stdout.strip(), established=False) as alice:
            assert (await alice.receive())["data"]["userId"] == "alice"
            await alice.subscribe("poll:1")


async def test_terminal_clients_hold_a_conversation_with_a_socket(serve: Callable[..., Server], tmp_path: Path) -> None:
    """`realtime sub`, `realtime pub` and `realtime chat`: the second person in a demo."""
    async with serve() as server, await server.connect("alice") as alice:
        await alice.subscribe("conversation:demo")
        await alice.say("demo", "said before")

        async def terminal(*arguments: str) -> asyncio.subprocess.Process:
            reach = ("--url", server.url, "--token", token_for("bob"))
            pipe = asyncio.subprocess.PIPE
            return await asyncio.create_subprocess_exec(
                REALTIME, *arguments, *reach, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path
            )

        async def until(process: asyncio.subprocess.Process, text: str) -> None:
            assert process.stdout is not None
            seen = b""
            while text.encode() not in seen:
                line = await asyncio.wait_for(process.stdout.readline(), 30)
                assert line, seen.decode()
                seen += line

        chat, sub = await terminal("chat", "demo"), await terminal("sub", "conversation:demo", "--last", "20")
        await until(chat, "said before")
        await until(sub, "subscribed")
        assert chat.stdin is not None
        chat.stdin.write(b"hello from a terminal\n")
        await chat.stdin.drain()
        frame = await alice.expect("new_message", content="hello from a terminal")
        assert frame["userId"] == "bob"
        await until(sub, "hello from a terminal")
        pub = await terminal("pub", "conversation:demo", "wave", json.dumps({"hand": "left"}))
        assert await asyncio.wait_for(pub.wait(), 30) == 0
        assert (await alice.expect("wave"))["data"] == {"hand": "left"}
        await until(sub, "wave")
        for process in (chat, sub):
            process.terminate()
            await process.communicate()


async def test_a_terminal_client_that_is_refused_says_so_in_one_line(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    async with serve() as server:
        for arguments, words in (
            (("sub", "secret:1"), "Not allowed to subscribe"),
            (("pub", "secret:1", "wave", "1"), "Not allowed to publish"),
            (("chat", "a b"), "data.channel"),
        ):
            reach = ("--url", server.url, "--token", token_for("bob"))
            assert_refused(await asyncio.to_thread(run, *arguments, *reach, cwd=tmp_path), words)


def test_import_beside_another_package_of_the_name_fails_with_one_clear_line(tmp_path: Path) -> None:
    """Another distribution that brings a `realtime` package too: nothing of ours half works."""
    foreign = tmp_path / "site"
    (foreign / "realtime").mkdir(parents=True)
    (foreign / "realtime" / "__init__.py").write_text("")
    information = foreign / "realtime-2.0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: realtime\nVersion: 2.0.0\n")
    (information / "RECORD").write_text("realtime/__init__.py,,\nrealtime-2.0.0.dist-info/METADATA,,\n")
    (information / "top_level.txt").write_text("realtime\n")
    code = "import sys; sys.path.append(sys.argv[1]); import realtime"
    result = subprocess.run(
        [REALTIME.with_name("python"), "-c", code, foreign], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode != 0
    assert last.startswith("ImportError: ")
    assert "realtime-edge" in last
    assert "uninstall" in last


async def test_playground_gives_tokens_only_with_the_generated_secret_and_to_a_local_host(
    serve: Callable[..., Server],
) -> None:
    async def ask(server: Server, host: str, cookie: str = "a=b") -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)
        body = b'{"user":"alice"}'
        head = f"POST /api/dev/token HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Cookie: {cookie}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), 15)
        writer.close()
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]

    async with serve(secret=None, api=True) as server:
        assert (await ask(server, "localhost"))[0] == 404
        cookie = await server.dev_cookie()
        for host in ("localhost", "127.0.0.1", f"127.0.0.1:{server.api_port}", "[::1]", "[::1]:3001"):
            status, body = await ask(server, host, cookie)
            assert status in {200, 201}, (host, status, body)
            async with connect(f"{server.url}?token={json.loads(body)['token']}", proxy=None) as alice:
                assert json.loads(await alice.recv())["data"]["userId"] == "alice"
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"):
            status, body = await ask(server, host, cookie)
            assert status == 404, host
            assert b"ey" not in body
    async with serve(api=True) as server:
        assert (await ask(server, "localhost", cookie))[0] == 404


async def test_health_and_playground_are_served(serve: Callable[..., Server]) -> None:
    async def fetch(server: Server, path: str, cookie: str = "a=b") -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.api_port)
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = (await asyncio.wait_for(reader.read(), 15)).decode()
        writer.close()
        return int(answer.split()[1]), answer

    async with serve(secret=None, api=True) as server:
        assert (await fetch(server, "/health"))[0] == 200
        assert (await fetch(server, "/"))[0] == 404
        status, page = await fetch(server, "/", await server.dev_cookie())
        assert status == 200
        for name in ("name", "conversation", "join", "messages", "composer", "send", "people", "typing", "state"):
            assert f'id="{name}"' in page
        outside = [line for line in page.splitlines() if "src=" in line or "href=" in line]
        assert not [line for line in outside if "//" in line], "the page loads nothing from elsewhere"
        assert (await fetch(server, "/nothing/here"))[0] == 404


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
async def test_a_server_that_is_started_with_closed_descriptors_serves_and_ends_in_order(
    variant: str, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    redirections = " ".join("<&-" if number == 0 else f"{number}>&-" for number in closed)
    script = tmp_path / "closed.sh"
    script.write_text(f'exec "{REALTIME}" "$@" {redirections}\n')
    server = Server(tmp_path / "server", sets=SETS[variant], api=True, command=("sh", script))
    process = server.start_silently()
    try:
        await eventually(server.is_listening)
        async with await server.connect("alice") as alice:
            assert (await alice.say("1", "hi"))["content"] == "hi"
            # None of the three is a socket.
            for number in range(3):
                assert "socket" not in os.readlink(f"/proc/{process.pid}/fd/{number}")  # noqa: PTH115
            assert await server.stop() == 0
            assert (await alice.closed())[0] == 1012
    finally:
        if server.is_running():
            server.kill()


async def test_a_start_whose_output_nobody_reads_serves(serve: Callable[..., Server]) -> None:
    server = serve()
    reading, writing = os.pipe()
    # Before the first word.
    os.close(reading)
    server.start_silently(writing)
    os.close(writing)
    await eventually(server.is_listening)
    async with await server.connect("alice") as alice:
        assert await alice.is_alive()
    await eventually(lambda: "stdout cannot be written" in server.output)
    assert await server.stop() == 0
    assert "Traceback" not in server.output


def test_a_start_says_where_it_listens_in_every_encoding_and_at_once_to_a_pipe(tmp_path: Path) -> None:
    folder = tmp_path / "Zoë"
    folder.mkdir()
    process = subprocess.Popen(
        [REALTIME, "serve"],
        cwd=folder,
        env={**os.environ, "WS_PORT": str(free_port()), "API_PORT": str(free_port()), "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        read = b""
        while b"WebSocket" not in read:
            line = process.stdout.readline()
            assert line, read
            read += line
        assert b"Zo\\xeb" in read
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


async def test_an_address_in_brackets_is_that_address(serve: Callable[..., Server]) -> None:
    server = serve("server.host=[::1]", "api.host=[::1]", api=True)
    server.start_silently()
    await eventually(lambda: f"ws://[::1]:{server.port}/ws" in server.output)
    async with connect(f"ws://[::1]:{server.port}/ws?token={token_for('alice')}") as socket:
        assert json.loads(await socket.recv())["type"] == "connection_established"
    assert await server.stop() == 0


async def test_two_signals_within_a_moment_are_one_wish_and_a_later_one_ends_at_once(
    serve: Callable[..., Server],
) -> None:
    async with serve("drain.notice_s=0.2") as server, await server.connect("alice") as alice:
        os.kill(server.pid, signal.SIGINT)
        assert await server.stop(signal.SIGTERM) == 0
        assert (await alice.closed())[0] == 1012
    # Each client is closed in a moment of its own within the notice: of twelve one stays longer than a second.
    async with serve("drain.notice_s=20") as server, clients(server, *"abcdefghijkl") as (alice, *_):
        os.kill(server.pid, signal.SIGINT)
        await alice.expect("draining")
        await asyncio.sleep(1.1)
        assert await server.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert "SIGTERM again: ending at once" in server.output
