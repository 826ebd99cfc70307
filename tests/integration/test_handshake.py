"""The upgrade: which request gets which answer, in which order the checks are made, and what the 101 carries.

Answers are compared letter by letter, since clients and proxies in front of the server depend on them.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from tests.kit import SECRET, RawSocket, Server, eventually, mint, token_for, upgrade_request

# RFC 6455 1.3 computes this accept value for the key that the kit sends.
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def answer_to(server: Server, request: bytes) -> tuple[int, str]:
    """Send a request on a connection of its own; return the status and the body of the answer."""
    async with await RawSocket.open(server.port) as peer:
        await peer.send(request)
        status, _, body = await peer.response()
        return status, body


def without(request: bytes, header: bytes) -> bytes:
    """Return the request without the line of one header."""
    lines = request.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(header.lower() + b":")]
    assert len(kept) == len(lines) - 1
    return b"\r\n".join(kept)


async def test_good_upgrade_is_answered_with_the_accept_value_of_rfc_6455(server: Server) -> None:
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(f"/ws?token={token_for('alice')}")
    lines = head.split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert f"Sec-WebSocket-Accept: {ACCEPT}" in lines
    assert not [line for line in lines if line.lower().startswith("sec-websocket-protocol")]


async def test_first_frame_tells_the_session_the_user_and_the_limits(server: Server) -> None:
    before = int(time.time())
    async with await server.connect("alice", established=False) as alice:
        frame = await alice.receive()
    data = frame["data"]
    assert frame["type"] == "connection_established"
    assert TIMESTAMP.fullmatch(frame["timestamp"])
    assert TIMESTAMP.fullmatch(data["timestamp"])
    assert (data["protocol"], data["userId"]) == (1, "alice")
    assert isinstance(data["sessionId"], str)
    assert data["sessionId"]
    assert isinstance(data["limits"], dict)
    assert "expiresAt" in data
    assert str(time.gmtime(before).tm_year) in data["timestamp"]


async def test_every_connection_of_a_user_has_a_session_of_its_own(server: Server) -> None:
    sessions = set()
    for _ in range(3):
        async with await server.connect("alice", established=False) as alice:
            sessions.add((await alice.receive())["data"]["sessionId"])
    assert len(sessions) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", session) for session in sessions), "128 bits"


@pytest.mark.parametrize("place", ["query", "authorization", "subprotocol"])
async def test_token_is_taken_from_each_of_its_three_places(server: Server, place: str) -> None:
    token = token_for("alice")
    target = f"/ws?token={token}" if place == "query" else "/ws"
    headers = {
        "query": "",
        "authorization": f"Authorization: Bearer {token}\r\n",
        "subprotocol": f"Sec-WebSocket-Protocol: realtime.v1, bearer.{token}\r\n",
    }[place]
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(target, headers)
        _, payload = await peer.frame()
    assert json.loads(payload)["data"]["userId"] == "alice"
    # The token must not be echoed: only the name of the protocol is.
    assert ("Sec-WebSocket-Protocol: realtime.v1" in head.split("\r\n")) == (place == "subprotocol")
    assert token not in head


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "no token at all": lambda: "not-a-token",
    "three empty parts": lambda: "..",
    "signed with another secret": lambda: token_for("alice", secret="another-secret-of-thirty-two-bytes-or-more"),
    "expired": lambda: token_for("alice", ttl_s=-60),
    "without exp": lambda: mint({"sub": "alice"}),
    "without a user": lambda: mint({"exp": int(time.time()) + 60}),
    "with an empty user": lambda: token_for(""),
    "not yet valid": lambda: token_for("alice", nbf=int(time.time()) + 3600),
    "algorithm none": lambda: (
        mint({"sub": "alice", "exp": int(time.time()) + 60}, header={"alg": "none"}).rpartition(".")[0] + "."
    ),
    "another algorithm": lambda: mint({"sub": "alice", "exp": int(time.time()) + 60}, header={"alg": "HS512"}),
    "with an exp that is text": lambda: mint({"sub": "alice", "exp": "tomorrow"}),
    "a body that is changed": lambda: token_for("alice").replace(".", ".e30", 1),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_bad_token_is_401(server: Server, kind: str) -> None:
    request = upgrade_request(f"/ws?token={BAD_TOKENS[kind]()}")
    assert await answer_to(server, request) == (401, "Unauthorized")


async def test_no_token_is_401(server: Server) -> None:
    assert await answer_to(server, upgrade_request("/ws")) == (401, "Unauthorized")


async def test_two_tokens_that_differ_are_401_and_two_equal_ones_are_one(server: Server) -> None:
    mine, other = token_for("alice"), token_for("mallory")
    differing = upgrade_request(f"/ws?token={mine}", f"Authorization: Bearer {other}\r\n")
    assert await answer_to(server, differing) == (401, "Unauthorized")
    async with await RawSocket.open(server.port) as peer:
        await peer.upgrade(f"/ws?token={mine}", f"Authorization: Bearer {mine}\r\n")


async def test_another_path_is_404(server: Server) -> None:
    for target in ("/", "/ws/", "/wss", "/WS", f"/other?token={token_for('alice')}", "/echo"):
        assert await answer_to(server, upgrade_request(target)) == (404, "WebSocket endpoint not found"), target


async def test_plain_http_on_the_socket_path_is_400(server: Server) -> None:
    request = f"GET /ws?token={token_for('alice')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    assert await answer_to(server, request) == (400, "Upgrade failed")


@pytest.mark.parametrize("header", ["Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Host"])
async def test_upgrade_without_one_of_its_headers_is_400(server: Server, header: str) -> None:
    request = without(upgrade_request(f"/ws?token={token_for('alice')}"), header.encode())
    status, body = await answer_to(server, request)
    assert status == 400
    assert body == ("Upgrade failed" if header != "Host" else body)


@pytest.mark.parametrize(
    "key", ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ==dGhl", "####IHNhbXBsZSBub25jZQ=="]
)
async def test_key_that_is_not_16_bytes_of_base64_is_400(server: Server, key: str) -> None:
    request = upgrade_request(f"/ws?token={token_for('alice')}").replace(b"dGhlIHNhbXBsZSBub25jZQ==", key.encode())
    assert await answer_to(server, request) == (400, "Upgrade failed")


@pytest.mark.parametrize("version", ["8", "12", "14", "130", "x"])
async def test_another_version_is_426_and_names_13(server: Server, version: str) -> None:
    request = upgrade_request(f"/ws?token={token_for('alice')}").replace(
        b"-Version: 13", f"-Version: {version}".encode()
    )
    async with await RawSocket.open(server.port) as peer:
        await peer.send(request)
        status, headers, _ = await peer.response()
    assert (status, headers["sec-websocket-version"]) == (426, "13")


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "OPTIONS"])
async def test_another_method_is_400(server: Server, method: str) -> None:
    request = upgrade_request(f"/ws?token={token_for('alice')}").replace(b"GET", method.encode(), 1)
    status, _ = await answer_to(server, request)
    assert status == 400


async def test_checks_are_made_in_the_order_of_the_protocol(server: Server) -> None:
    """400 for what is no HTTP, 404 for the path, 401 for the token, then 400 or 426 for the upgrade."""
    bad_version = upgrade_request("/ws").replace(b"-Version: 13", b"-Version: 8")
    assert (await answer_to(server, bad_version))[0] == 401
    assert (await answer_to(server, bad_version.replace(b"/ws", b"/other")))[0] == 404
    assert (await answer_to(server, bad_version.replace(b"HTTP/1.1", b"HTTP/x.y").replace(b"/ws", b"/other")))[0] == 400
    assert (await answer_to(server, b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0] == 401


SMUGGLING = {
    "a body of five bytes": "Content-Length: 5\r\n",
    "a chunked body": "Transfer-Encoding: chunked\r\n",
    "both lengths": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": "Content-Length: 0\r\nContent-Length: 5\r\n",
    "a space before the colon": "X-Thing : 1\r\n",
    "a folded line": "X-Thing: 1\r\n 2\r\n",
    "a second Host": "Host: other\r\n",
    "a NUL": "X-Thing: a\0b\r\n",
    "a bare line feed": "X-Thing: 1\n",
}


@pytest.mark.parametrize("kind", SMUGGLING)
async def test_what_two_parsers_could_read_differently_is_400(server: Server, kind: str) -> None:
    request = upgrade_request(f"/ws?token={token_for('alice')}", SMUGGLING[kind])
    status, body = await answer_to(server, request + b"hello")
    assert status == 400
    assert body in {"Bad Request", "Upgrade failed"}


async def test_request_behind_a_refused_one_is_not_answered(server: Server) -> None:
    async with await RawSocket.open(server.port) as peer:
        await peer.send(upgrade_request("/other") + upgrade_request(f"/ws?token={token_for('alice')}"))
        content = await peer.rest()
    assert content.count(b"HTTP/1.1") == 1
    assert content.startswith(b"HTTP/1.1 404 ")


async def test_head_over_its_limits_is_431_and_a_long_target_414(server: Server) -> None:
    token = token_for("alice")
    assert (await answer_to(server, upgrade_request(f"/ws?token={token}", f"X-Long: {'x' * 70_000}\r\n")))[0] == 431
    many = "".join(f"X-{n}: 1\r\n" for n in range(150))
    assert (await answer_to(server, upgrade_request(f"/ws?token={token}", many)))[0] == 431
    assert (await answer_to(server, upgrade_request(f"/ws?token={token}&x={'x' * 70_000}")))[0] == 414


async def test_upgrade_in_pieces_of_one_byte_is_an_upgrade(server: Server) -> None:
    async with await RawSocket.open(server.port) as peer:
        for byte in upgrade_request(f"/ws?token={token_for('alice')}"):
            await peer.send_apart(bytes([byte]))
        _, payload_start = (await peer.reader.readuntil(b"\r\n\r\n")), await peer.frame()
    assert json.loads(payload_start[1])["type"] == "connection_established"


async def test_frames_sent_with_the_upgrade_are_answered_after_the_101(server: Server) -> None:
    ping = b"\x89\x83\x00\x00\x00\x00abc"
    async with await RawSocket.open(server.port) as peer:
        await peer.send(upgrade_request(f"/ws?token={token_for('alice')}") + ping)
        head = await peer.reader.readuntil(b"\r\n\r\n")
        first, second = await peer.frame(), await peer.frame()
        while second[0] != 0x8A:
            second = await peer.frame()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert json.loads(first[1])["type"] == "connection_established"
    assert second == (0x8A, b"abc")


async def test_token_with_control_bytes_in_it_is_refused_and_not_echoed(server: Server) -> None:
    for escaped in ("%0d%0aX-Evil:%201", "%00", "%"):
        async with await RawSocket.open(server.port) as peer:
            await peer.send(upgrade_request(f"/ws?token={escaped}"))
            content = await peer.rest()
        assert content.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 400 "))
        assert b"X-Evil" not in content


async def test_audience_is_checked_where_it_is_set(serve: Callable[..., Server]) -> None:
    async with serve("auth.audience=chat") as server:
        for claims in ({}, {"aud": "shop"}, {"aud": ["shop", "mail"]}, {"aud": 1}):
            request = upgrade_request(f"/ws?token={token_for('alice', **claims)}")
            assert await answer_to(server, request) == (401, "Unauthorized")
        for audience in ("chat", ["shop", "chat"]):
            await (await server.connect(token=token_for("alice", aud=audience))).socket.close()


async def test_origin_is_checked_where_origins_are_set(serve: Callable[..., Server]) -> None:
    async with serve('auth.origins=["https://example.org"]') as server:
        target = f"/ws?token={token_for('alice')}"
        for origin in ("https://example.com", "https://example.org.evil.com", "http://example.org", "null"):
            assert await answer_to(server, upgrade_request(target, f"Origin: {origin}\r\n")) == (403, "Forbidden")
        async with await RawSocket.open(server.port) as peer:
            await peer.upgrade(target, "Origin: https://example.org\r\n")
        # The token is looked at before the origin.
        refused = upgrade_request("/ws", "Origin: https://example.com\r\n")
        assert await answer_to(server, refused) == (401, "Unauthorized")


async def test_full_server_answers_503_with_retry_after(serve: Callable[..., Server]) -> None:
    async with serve("limits.connections_max=2") as server, await server.connect("a") as one, await server.connect("b"):
        async with await RawSocket.open(server.port) as peer:
            await peer.send(upgrade_request("/ws"))
            status, headers, _ = await peer.response()
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert await one.is_alive()


async def test_silent_and_half_sent_connections_keep_no_client_out(serve: Callable[..., Server], variant: str) -> None:
    target = f"/ws?token={token_for('alice')}"
    async with (
        serve("limits.handshakes_pending_max=20") as server,
        await server.connect("watcher") as watcher,
        AsyncExitStack() as stack,
    ):
        held = [await stack.enter_async_context(await RawSocket.open(server.port)) for _ in range(200)]
        for peer in held[::2]:
            await peer.send(upgrade_request(target)[:50])
        # A shard that is slow takes some of them behind a later one, which is the oldest then.
        ends = [asyncio.ensure_future(peer.reader.read()) for peer in held]
        stack.callback(lambda: [end.cancel() for end in ends])
        if variant != "socketify":
            await eventually(lambda: sum(end.done() for end in ends) >= 180)
        async with await RawSocket.open(server.port) as late:
            for number in range(20):
                async with await server.connect(f"user{number}") as client:
                    assert await client.is_alive()
            await late.upgrade(target)
        assert await watcher.is_alive()


async def test_half_an_upgrade_is_answered_408_at_the_deadline(serve: Callable[..., Server]) -> None:
    async with serve("limits.handshake_timeout_s=1") as server, await server.connect("watcher") as watcher:
        request = upgrade_request(f"/ws?token={token_for('alice')}")
        for part in (request[:10], request[:-2]):
            started = time.monotonic()
            async with await RawSocket.open(server.port) as peer:
                await peer.send_apart(part)
                status, _, body = await peer.response()
            assert (status, body) == (408, "Request Timeout")
            assert 0.7 < time.monotonic() - started < 10
        assert await watcher.is_alive()


async def test_deadline_is_one_for_the_whole_upgrade_and_not_one_a_read(serve: Callable[..., Server]) -> None:
    async with serve("limits.handshake_timeout_s=1") as server, await RawSocket.open(server.port) as peer:
        started = time.monotonic()
        answer = asyncio.create_task(peer.rest())
        for byte in upgrade_request(f"/ws?token={token_for('alice')}"):
            await peer.send_apart(bytes([byte]))
            await asyncio.sleep(0.05)
            if answer.done():
                break
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 10


async def test_files_of_the_data_directory_are_their_owner_s_alone(serve: Callable[..., Server]) -> None:
    server = serve(secret=None)
    server.data_dir.mkdir(parents=True)
    before = os.umask(0)
    try:
        server.data_dir.chmod(0o777)
        (server.data_dir / "realtime.sqlite3").touch(0o666)
        server.start_now()
    finally:
        os.umask(before)
    try:
        modes = {file.name: file.stat().st_mode & 0o777 for file in server.data_dir.iterdir() if file.is_file()}
        assert {"secret", "lock", "realtime.sqlite3", "realtime.sqlite3-wal", "realtime.sqlite3-shm"} <= set(modes)
        assert set(modes.values()) == {0o600}, modes
    finally:
        server.kill()


async def test_generated_secret_is_good_for_tokens_of_the_command_line(serve: Callable[..., Server]) -> None:
    server = serve(secret=None)
    async with server:
        secret_path = server.data_dir / "secret"
        assert secret_path.stat().st_mode & 0o777 == 0o600
        secret = secret_path.read_text().strip()
        assert len(secret) >= 32
        await (await server.connect(token=token_for("alice", secret=secret))).socket.close()
        wrong = upgrade_request(f"/ws?token={token_for('alice', secret=SECRET)}")
        assert await answer_to(server, wrong) == (401, "Unauthorized")
        # The secret is never printed.
        assert secret not in server.output
