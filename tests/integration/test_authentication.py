"""Who is let in, over real sockets: keys of a provider, rotation, tickets, and what was revoked before a kill -9."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.kit import PATIENCE_S, Client, RawSocket, Server, eventually, free_port, token_for, upgrade_request
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
            assert await status(server, f"/ws?token={token_for('ann', iat=int(time.time()) + 2)}") == 101
            server.kill()
            await server.start()
