"""Who somebody is, over real sockets: the engine alone, with tokens that another library has signed.

The engine is driven here by its contract, without Python's half: what a shard decides by itself, and what it asks.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from realtime import _engine
from realtime._engine import Engine, EngineError
from tests.kit import PATIENCE_S, SECRET, Client

PRIVATE: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "PS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
JWKS: dict[str, Any] = {"RS256": RSAAlgorithm, "PS256": RSAAlgorithm, "ES256": ECAlgorithm, "ES384": ECAlgorithm}


def pem(algorithm: str) -> str:
    public = PRIVATE[algorithm].public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(public.public_bytes(serialization.Encoding.PEM, form).decode())


def jwk(algorithm: str) -> str:
    return str(JWKS.get(algorithm, OKPAlgorithm).to_jwk(PRIVATE[algorithm].public_key()))


def sign(algorithm: str, user: str, *, kid: str | None = None, ttl_s: float = 3600, **claims: Any) -> str:
    now_s = int(time.time())
    body = {"sub": user, "iat": now_s, "exp": now_s + ttl_s, **claims}
    key = SECRET if algorithm.startswith("HS") else PRIVATE[algorithm]
    return jwt.encode(body, key, algorithm, headers=None if kid is None else {"kid": kid})


class Edge:
    """An engine whose events a test reads."""

    def __init__(self, shards: int, token: dict[str, Any], **options: Any) -> None:
        self.engine = Engine(
            json.dumps(
                {
                    "shards": shards,
                    "token": token,
                    "endpoints": [
                        {"path": "/ws", "mode": "json", "auth": "token"},
                        {"path": "/hook", "mode": "json", "auth": "hook"},
                    ],
                    **options,
                }
            ).encode()
        )
        self._events: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    @property
    def port(self) -> int:
        return self.engine.port

    def readable(self) -> None:
        for event in self.engine.drain(1000):
            self._events.put_nowait(event)

    async def event(self, kind: int) -> tuple[Any, ...]:
        """The next event of a kind; others before it are thrown away."""
        while True:
            event = await asyncio.wait_for(self._events.get(), PATIENCE_S)
            if event[0] == kind:
                return event

    def told(self, command: Callable[..., None], *arguments: Any) -> None:
        command(*arguments)
        self.engine.submit()


@asynccontextmanager
async def edge(shards: int, *keys: dict[str, Any], ask: bool = False, **options: Any) -> AsyncIterator[Edge]:
    made = Edge(shards, {"keys": list(keys), "ask": ask}, **options)
    made.engine.start()
    asyncio.get_running_loop().add_reader(made.engine.fileno(), made.readable)
    try:
        yield made
    finally:
        asyncio.get_running_loop().remove_reader(made.engine.fileno())
        made.engine.close_all(1001, "")
        await asyncio.to_thread(made.engine.stop, 2_000)


async def client_of(edge: Edge, token: str, **options: Any) -> Client:
    server: Any = edge
    return await Client.open(server, token=token, **options)


async def refused(edge: Edge, target: str) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(f"ws://127.0.0.1:{edge.port}{target}", proxy=None)
    return refusal.value.response.status_code


@pytest.mark.parametrize("form", [pem, jwk])
async def test_tokens_of_another_library_are_let_in_by_the_key_of_their_algorithm(
    shards: int, form: Callable[[str], str]
) -> None:
    keys = [{"algorithm": algorithm, "key": form(algorithm), "kid": algorithm} for algorithm in PRIVATE]
    async with edge(shards, *keys, tell_tokens=True) as server:
        for algorithm in PRIVATE:
            for kid in (None, algorithm):
                token = sign(algorithm, f"of-{algorithm}", kid=kid, jti="t1")
                async with await client_of(server, token):
                    opened = await server.event(_engine.OPEN)
                    assert (opened[2], opened[6], opened[8]) == (f"of-{algorithm}", token, "t1")
        others = [sign(algorithm, "eve", kid=kid) for algorithm, kid in (("RS256", "PS256"), ("ES256", "EdDSA"))]
        forged = jwt.encode({"sub": "eve", "exp": time.time() + 60}, "x" * 32, "HS256", headers={"kid": "RS256"})
        for token in (*others, forged, sign("HS256", "eve")):
            assert await refused(server, f"/ws?token={token}") == 401


async def test_a_live_session_goes_on_with_the_token_of_another_key(shards: int) -> None:
    keys = [{"algorithm": algorithm, "key": pem(algorithm)} for algorithm in ("ES256", "EdDSA")]
    async with edge(shards, *keys) as server:
        first = sign("ES256", "ann", ttl_s=60, channels={"secret:*": ["subscribe"]})
        async with await client_of(server, first) as ann:
            await ann.subscribe("secret:1")
            answer = await ann.ask("refresh", {"token": sign("EdDSA", "bob")})
            assert answer["data"]["code"] == "forbidden"
            answer = await ann.ask("refresh", {"token": sign("EdDSA", "ann", ttl_s=-1)})
            assert answer["data"]["code"] == "unauthorized"
            second = sign("EdDSA", "ann", ttl_s=120, jti="t2")
            answer = await ann.ask("refresh", {"token": second})
            assert (answer["type"], answer["data"]["expiresAt"][-1]) == ("ack", "Z")
            left = await ann.expect("unsubscribed")
            assert left["data"] == {"channel": "secret:1", "code": "forbidden", "retryable": False}
            _, _, expires_at_ms, token, token_id, issued_at_s = await server.event(_engine.RENEWED)
            claims = jwt.decode(second, options={"verify_signature": False})
            assert (expires_at_ms, token, token_id) == (claims["exp"] * 1000, None, "t2")
            assert issued_at_s == claims["iat"]
            assert await ann.is_alive()


async def test_a_session_ends_at_the_end_of_its_last_token(shards: int) -> None:
    async with edge(shards, {"algorithm": "HS256", "key": SECRET}) as server:
        token = sign("HS256", "ann", ttl_s=3600)
        async with await client_of(server, token, subprotocols=["realtime.v1"]) as ann:
            answer = await ann.ask("refresh", {"token": sign("HS256", "ann", ttl_s=2)})
            assert answer["type"] == "ack"
            await ann.expect("token_expiring", expiresAt=answer["data"]["expiresAt"])
            assert (await ann.closed())[0] == 4002


async def test_a_revocation_closes_live_sessions_and_refuses_what_comes_later(shards: int) -> None:
    async with edge(shards, {"algorithm": "HS256", "key": SECRET}) as server:
        now_s = int(time.time())
        old, new = sign("HS256", "ann", iat=now_s - 1), sign("HS256", "ann", iat=now_s)
        single = sign("HS256", "bob", jti="t1")
        clients = [
            await client_of(server, token, subprotocols=["realtime.v1"]) for token in (old, old, old, old, new, single)
        ]
        server.told(server.engine.revoke, "ann", None, now_s)
        for client in clients[:4]:
            assert (await client.closed()) == (4500, "the token was revoked")
        assert await clients[4].is_alive()
        assert await clients[5].is_alive()
        server.told(server.engine.revoke, None, "t1")
        assert (await clients[5].closed())[0] == 4500
        for token in (old, single):
            assert await refused(server, f"/ws?token={token}") == 401
            answer = await clients[4].ask("refresh", {"token": token})
            assert answer["data"]["code"] == "unauthorized"
        for nobody in ((None, None), ("", None), (None, "")):
            with pytest.raises(ValueError, match="revoke takes a user"):
                server.engine.revoke(*nobody)
        await asyncio.gather(*(client.socket.close() for client in clients))


async def test_python_reads_tickets_and_tokens_of_unknown_keys_and_is_asked_again_at_a_refresh(shards: int) -> None:
    key = {"algorithm": "ES256", "key": pem("ES256"), "kid": "known"}
    async with edge(shards, key, ask=True) as server:
        for user, target in (
            ("ann", "/ws?ticket=abc"),
            ("bob", f"/ws?token={sign('EdDSA', 'bob', kid='unknown')}"),
        ):
            opening = asyncio.create_task(
                connect(
                    f"ws://127.0.0.1:{server.port}{target}", proxy=None, subprotocols=[Subprotocol("realtime.v1")]
                ).__aenter__()
            )
            _, conn, endpoint, path, query, _, _ = await server.event(_engine.UPGRADE)
            assert (endpoint, f"{path}?{query}") == (0, target)
            server.told(server.engine.accept, conn, user, None, None, 5, "t5")
            client = Client(await opening)
            assert (await server.event(_engine.OPEN))[6:] == (None, None, "t5", 5, "realtime.v1")
            await client.send("refresh", {"token": sign("EdDSA", user)}, id=1)
            _, conn, id, token = await server.event(_engine.REFRESH)
            assert jwt.decode(token, options={"verify_signature": False})["sub"] == user
            server.told(server.engine.renew, conn, id, user, None, 4_000_000_000_000)
            assert (await client.answer(1))["data"] == {"expiresAt": "2096-10-02T07:06:40.000Z"}
            server.told(server.engine.revoke, user, None, 1)
            assert (await client.closed())[0] == 4500
        # A bad signature by a key that is known is nobody's to ask about.
        forged = sign("ES256", "eve", kid="known")
        forged = f"{forged.rpartition('.')[0]}.{sign('ES256', 'ann').rpartition('.')[2]}"
        assert await refused(server, f"/ws?token={forged}") == 401
        assert await refused(server, f"/ws?ticket=abc&token={sign('ES256', 'eve')}") == 401


async def test_keys_are_replaced_under_live_sessions(shards: int) -> None:
    def document(algorithm: str) -> bytes:
        return json.dumps(
            {"token": {"keys": [{"algorithm": algorithm, "key": jwk("EdDSA")}]}, "origins": None}
        ).encode()

    async with (
        edge(shards, {"algorithm": "ES256", "key": pem("ES256")}) as server,
        await client_of(server, sign("ES256", "ann")) as ann,
    ):
        server.engine.set_identity(document("EdDSA"))
        assert await refused(server, f"/ws?token={sign('ES256', 'ann')}") == 401
        with pytest.raises(EngineError, match=r"token.keys\[0\] for ES256: an Ed25519 key does not go") as wrong:
            server.engine.set_identity(document("ES256"))
        assert wrong.value.code == "options"
        async with await client_of(server, sign("EdDSA", "ann")):
            assert await ann.is_alive()


def test_an_engine_that_has_not_started_takes_its_keys_from_its_options() -> None:
    with pytest.raises(EngineError, match="has not started"):
        Engine(b"{}").set_identity(b'{"token": null, "origins": null}')
