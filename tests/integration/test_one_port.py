"""Both on one port, as hosting platforms give one: HTTP and WebSockets, their limits, and the end."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from tests.kit import RawSocket, Server, token_for, upgrade_request

SERVICE_KEY = "a-service-key-of-the-tests-0123456789abcdef"


@contextlib.asynccontextmanager
async def one_port(tmp_path: Path, *sets: str) -> AsyncIterator[Server]:
    """Serve both on the port that the kit has chosen for HTTP."""
    server = Server(tmp_path / "server", api=True, sets=sets, env={"REALTIME_SERVICE_KEY": SERVICE_KEY})
    server.share_port()
    async with server:
        yield server


async def asked(server: Server, method: str, path: str, content: object = None) -> tuple[int, str]:
    """Send one request; return status and body."""

    def sent() -> tuple[int, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
            headers = {"authorization": f"Bearer {SERVICE_KEY}", "content-type": "application/json"}
            connection.request(method, path, None if content is None else json.dumps(content), headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(sent)


async def test_http_and_sockets_are_served_on_one_port(tmp_path: Path) -> None:
    async with one_port(tmp_path) as server, await server.connect(token=token_for("alice")) as alice:
        assert server.port == server.api_port
        assert (await asked(server, "GET", "/health"))[0] == 200
        await alice.subscribe("user:me")
        told = {"type": "told", "data": 1, "channel": "user:alice"}
        assert (await asked(server, "POST", "/api/events", told))[0] == 200
        assert (await alice.expect("told"))["data"] == 1
        assert (await asked(server, "GET", "/ws")) == (401, "Unauthorized")
        assert (await asked(server, "GET", "/nowhere"))[0] == 404
        # Idle connections that say nothing keep nobody out of either.
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            assert (await asked(server, "GET", "/ready"))[0] == 200
        body = b'{"type":"t","data":1,"channel":"a:1"}' + b" " * 100_000
        async with await RawSocket.open(server.port) as peer:
            head = (
                f"POST /api/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {SERVICE_KEY}\r\n"
            )
            await peer.send(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            await peer.send(body)
            assert (await peer.response())[0] == 200


async def test_a_proxy_that_keeps_connections_loses_no_upgrade(tmp_path: Path) -> None:
    async with one_port(tmp_path) as server:
        async with await RawSocket.open(server.port) as peer:
            await peer.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            # It is told to open another one for what comes next.
            assert (await peer.response())[0] == 200
        async with await server.connect(token=token_for("alice")) as alice:
            assert await alice.is_alive()


async def test_at_the_end_ready_says_why_and_upgrades_are_refused(tmp_path: Path) -> None:
    settings = ("drain.notice_s=1", "server.shards=1")
    async with one_port(tmp_path, *settings) as server, await server.connect(token=token_for("alice")) as alice:
        os.kill(server.pid, signal.SIGTERM)

        # Once the shard has told its clients, it takes nobody more.
        await alice.expect("draining")
        async with asyncio.timeout(30):
            status, body = await asked(server, "GET", "/ready")
            while status == 200:
                status, body = await asked(server, "GET", "/ready")
        assert (status, "draining" in body) == (503, True)
        async with await RawSocket.open(server.port) as peer:
            await peer.send(upgrade_request(f"/ws?token={token_for('bob')}"))
            assert (await peer.response())[0] == 503
