"""Who is let in, over real sockets: keys of a provider, rotation, tickets, and what was revoked before a kill -9."""

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.kit import (
    PATIENCE_S,
    REALTIME,
    SECRET,
    Client,
    RawSocket,
    Server,
    eventually,
    free_port,
    token_for,
    upgrade_request,
)
from tests.unit.identity.keys import jwk, public_pem, signed

APP = f"{Path(__file__).parent / 'apps' / 'identities.py'}:app"
SECRETS = ("the-older-secret-of-thirty-two-bytes-and-more", "the-newer-secret-of-thirty-two-bytes-and-more")


class Provider:
    """An identity provider: publishes keys at `url`, counts how often they are asked for, and can be taken down."""

    def __init__(self) -> None:
        self.port = free_port()
        self.keys: list[dict[str, Any]] = [jwk("RS256", "one", kid="one")]
        self.asked = 0
        self.elsewhere = 0
        self.fails = False
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    def start(self) -> None:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/keys":
                    provider.elsewhere += 1
                provider.asked += 1
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(500 if provider.fails else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    made.start()
    yield made
    made.stop()


def of_provider(provider: Provider, *more: str) -> tuple[str, ...]:
    return (f"auth.jwks_url={provider.url}", "auth.algorithms=RS256,ES256,EdDSA", *more)


async def status(server: Server, target: str) -> int:
    """Return the HTTP status that an upgrade is answered with."""
    async with await RawSocket.open(server.port) as peer:
        await peer.send(upgrade_request(target))
        line = await asyncio.wait_for(peer.reader.readline(), PATIENCE_S)
        return int(line.split()[1])


async def test_keys_of_a_provider_are_known_before_anybody_is_let_in(
    serve: Callable[..., Server], provider: Provider
) -> None:
    async with serve(*of_provider(provider), secret=None) as server:
        assert provider.asked == 1
        ann = await server.connect(token=signed("RS256", "one", "one", sub="ann"))
        assert await ann.is_alive()
        assert await status(server, f"/ws?token={signed('RS256', 'two', 'one')}") == 401
        assert await status(server, f"/ws?token={token_for('ann')}") == 401
        assert provider.asked == 1


async def test_a_key_that_the_provider_has_just_begun_to_use_is_fetched(
    serve: Callable[..., Server], provider: Provider
) -> None:
    provider.fails = True
    async with serve(*of_provider(provider), secret=None) as server:
        # It starts without keys, says so once, and has them as soon as it may ask again.
        assert server.output.count("brought no keys") == 1
        assert await status(server, f"/ws?token={signed('RS256', 'one', 'one')}") == 401
        provider.fails = False
        await eventually(lambda: "answers again" in server.output, timeout_s=30, what="the keys")
        await server.connect(token=signed("RS256", "one", "one"))
        provider.keys = [jwk("RS256", "one", kid="one"), jwk("ES256", "two", kid="two")]
        asked = provider.asked

        async def let_in() -> bool:
            return await status(server, f"/ws?token={signed('ES256', 'two', 'two')}") == 101

        deadline = time.monotonic() + 30
        while not await let_in():
            assert time.monotonic() < deadline, server.output
            await asyncio.sleep(0.2)
        assert provider.asked == asked + 1
        ann = await server.connect(token=signed("ES256", "two", "two", sub="ann"))
        assert (await ann.ask("refresh", {"token": signed("RS256", "one", "one", sub="ann")}))["type"] == "ack"


async def test_a_key_that_may_be_new_is_told_by_when_to_come_back(
    serve: Callable[..., Server], provider: Provider
) -> None:
    async with serve(*of_provider(provider), secret=None, api=True) as server:
        token = signed("ES256", "two", "two")
        client = await server.connect(token=token, subprotocols=["realtime.v1"], established=False)
        code, reason = await client.closed()
        assert (code, 0 < int(reason) <= 10_000) == (4005, True), reason
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.get(
                f"{server.api_url}/api/conversations/1/messages", headers={"Authorization": f"Bearer {token}"}
            )
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert 0 < answer.json()["retryAfterMs"] <= 10_000
        assert 0 < int(answer.headers["retry-after"]) <= 10
        assert "unknown_key" in server.output
        assert token not in server.output
        await asyncio.sleep(int(reason) / 1000)
        # The provider has no such key now, so the token is no good.
        client = await server.connect(token=token, subprotocols=["realtime.v1"], established=False)
        assert (await client.closed())[0] == 4501


async def test_tokens_of_unknown_keys_do_not_make_it_ask_more_often(
    serve: Callable[..., Server], provider: Provider
) -> None:
    async with serve(*of_provider(provider), secret=None) as server:
        began_s, asked = time.monotonic(), provider.asked
        evil = f"http://127.0.0.1:{provider.port}/evil"
        for wave in range(10):
            tokens = [signed("ES256", "other", f"unknown-{wave}-{number}", jku=evil) for number in range(20)]
            answers = await asyncio.gather(*(status(server, f"/ws?token={token}") for token in tokens))
            assert set(answers) == {401}
        assert provider.asked - asked <= 1 + (time.monotonic() - began_s) / 10
        assert provider.elsewhere == 0
        await server.connect(token=signed("RS256", "one", "one"))


async def test_known_keys_outlive_an_outage_of_the_provider(serve: Callable[..., Server], provider: Provider) -> None:
    async with serve(*of_provider(provider, "auth.jwks_refresh_s=10"), secret=None) as server:
        provider.stop()
        await eventually(lambda: "brought no keys" in server.output, timeout_s=40, what="the outage")
        await server.connect(token=signed("RS256", "one", "one"))
        provider.start()
        await eventually(lambda: "answers again" in server.output, timeout_s=40, what="the end of the outage")


async def test_public_keys_of_the_configuration_need_no_provider(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(public_pem("EdDSA"), "ascii")
    sets = (f"auth.public_keys=main={tmp_path / 'key.pem'}", "auth.algorithms=EdDSA")
    async with serve(*sets, secret=None) as server:
        await server.connect(token=signed("EdDSA", kid="main"))
        await server.connect(token=signed("EdDSA"))
        assert await status(server, f"/ws?token={signed('EdDSA', kid='other')}") == 401
        assert not (server.data_dir / "secret").exists()


async def test_secrets_are_rotated_without_refusing_anybody(serve: Callable[..., Server], tmp_path: Path) -> None:
    older, newer = SECRETS
    file = tmp_path / "secrets"
    file.write_text(f"{newer},{older}\n", "ascii")
    async with serve(secret=None, env={"REALTIME_AUTH__SECRETS_FILE": str(file)}) as server:
        for secret in SECRETS:
            await server.connect(token=token_for("ann", secret=secret))
        assert newer not in server.output


async def test_a_ticket_opens_one_connection_within_a_minute(serve: Callable[..., Server]) -> None:
    async with serve(app=APP) as server:
        ann = await server.connect("ann")
        ticket = (await ann.ask("ticket"))["data"]
        assert ticket["expiresInS"] == 60
        async with await RawSocket.open(server.port) as peer:
            await peer.upgrade(f"/ws?ticket={ticket['ticket']}")
            assert (await peer.until("connection_established"))["data"]["userId"] == "ann"
        assert await status(server, f"/ws?ticket={ticket['ticket']}") == 401
        other = (await ann.ask("ticket"))["data"]["ticket"]
        assert await status(server, f"/ws?ticket={other}&token={token_for('ann')}") == 401
        assert ticket["ticket"] not in server.output


async def revoked(client: Client, **what: str) -> None:
    assert (await client.ask("revoke", what))["type"] == "ack"


async def test_what_was_revoked_stays_so_after_a_kill(serve: Callable[..., Server]) -> None:
    now_s = int(time.time())
    of_ann = token_for("ann", iat=now_s - 60)
    of_bob, other_of_bob = token_for("bob", jti="b1", iat=now_s), token_for("bob", jti="b2", iat=now_s)
    server = serve(app=APP)
    async with server:
        operator = await server.connect("operator")
        ann = await server.connect(token=of_ann, subprotocols=["realtime.v1"])
        bob = await server.connect(token=of_bob, subprotocols=["realtime.v1"])
        other = await server.connect(token=other_of_bob, subprotocols=["realtime.v1"])
        await revoked(operator, user="ann")
        await revoked(operator, tokenId="b1")
        assert (await ann.closed())[0] == 4500
        assert (await bob.closed())[0] == 4500
        assert await other.is_alive()
        for _ in range(2):
            assert await status(server, f"/ws?token={of_ann}") == 401
            assert await status(server, f"/ws?token={of_bob}") == 401
            assert await status(server, f"/ws?token={other_of_bob}") == 101
            for seconds in (0, 2, 5):
                ahead = token_for("ann", iat=now_s + seconds)
                assert await status(server, f"/ws?token={ahead}") == 401, "it may be of before the revocation"
            server.kill()
            await server.start()
        for token, reason in ((of_ann, "revoked"), (of_bob, "revoked"), (other_of_bob, None)):
            code, told = await asyncio.to_thread(explained, server, token)
            assert (code, "revoked: " in told) == ((0, False) if reason is None else (1, True)), told
        deadline = time.monotonic() + 20
        while await status(server, f"/ws?token={token_for('ann', iat=int(time.time()))}") != 101:
            assert time.monotonic() < deadline, server.output
            await asyncio.sleep(0.2)


def explained(server: Server, token: str) -> tuple[int, str]:
    """Return the exit code of `realtime token --explain` beside a running server, and what it printed."""
    environment = {**os.environ, "REALTIME_DATA_DIR": str(server.data_dir), "REALTIME_JWT_SECRET": SECRET}
    command: list[str | Path] = [REALTIME, "token", "--explain", token]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=server.folder)
    assert done.stderr == ""
    return done.returncode, done.stdout


async def test_the_log_and_the_metric_name_why_a_token_is_refused_and_never_the_token(
    serve: Callable[..., Server],
) -> None:
    now_s = int(time.time())
    tokens = {
        "expired": token_for("ann", exp=now_s - 1),
        "not_yet_valid": token_for("ann", iat=now_s + 600),
        "signature": token_for("ann", secret="o" * 40),
        "malformed": "nonsense",
    }
    async with (
        serve("log.format=json", api=True) as server,
        await server.connect("bob") as bob,
        httpx2.AsyncClient(base_url=server.api_url, trust_env=False) as http,
    ):
        for reason, token in tokens.items():
            client = await server.connect(token=token, subprotocols=["realtime.v1"], established=False)
            assert (await client.closed())[0] == (4002 if reason == "expired" else 4501)
            answer = await bob.ask("refresh", {"token": token})
            assert (answer["data"]["code"], "expired" in answer["data"]["message"]) == (
                "unauthorized",
                reason == "expired",
            )
            refused = await http.get("/api/users/ann/sessions", headers={"Authorization": f"Bearer {token}"})
            code = "token_expired" if reason == "expired" else "unauthorized"
            assert (refused.status_code, refused.json()["code"]) == (401, code)
            assert 'error="invalid_token"' in refused.headers["www-authenticate"]
        metrics = (await http.get("/metrics")).text
        for reason, token in tokens.items():
            assert f'realtime_token_refusals_total{{reason="{reason}"}} 3.0' in metrics
            lines = [line for line in server.output.splitlines() if f'"reason": "{reason}"' in line]
            assert ["session" in json.loads(line) for line in lines] == [False, True, False]
            assert [json.loads(line).get("peer", "")[:9] for line in lines] == ["127.0.0.1", "", "127.0.0.1"]
            assert token not in server.output.replace("/ws", "")


async def test_two_authorization_headers_are_refused_at_both_doors(serve: Callable[..., Server]) -> None:
    async with serve(api=True) as server:
        good, bad = (f"Authorization: Bearer {token}" for token in (token_for("ann"), "other"))
        for first, second, code in ((good, "X-Other: 1", 101), (good, bad, 401), (bad, good, 401), (good, good, 401)):
            async with await RawSocket.open(server.port) as peer:
                await peer.send(upgrade_request("/ws", f"{first}\r\n{second}\r\n"))
                line = await asyncio.wait_for(peer.reader.readline(), PATIENCE_S)
                assert int(line.split()[1]) == code, (first, second)
            async with await RawSocket.open(server.api_port) as peer:
                lines = ["GET /api/users/ann/sessions HTTP/1.1", "Host: localhost", "Connection: close", first, second]
                await peer.send("\r\n".join([*lines, "", ""]).encode())
                line = await asyncio.wait_for(peer.reader.readline(), PATIENCE_S)
                assert int(line.split()[1]) == (200 if code == 101 else 401), (first, second)
