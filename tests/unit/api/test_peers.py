"""Whose a request is: told by the front's header, which nothing behind sees, and by nothing else."""

from typing import Any

import pytest

from realtime.api.local import is_local
from realtime.api.peers import Peers, tell_known

HOST = (b"host", b"localhost:3001")


async def seen(*headers: tuple[bytes, bytes], client: Any = None, begun: list[int] | None = None) -> dict[str, Any]:
    """Return the scope that an application gets."""
    found: dict[str, Any] = {}

    async def inner(scope: dict[str, Any], receive: object, send: object) -> None:  # noqa: ARG001 -- as of ASGI
        found.update(scope)

    scope = {"type": "http", "headers": [HOST, *headers], "client": client, "server": ("unix", None)}
    begun = [] if begun is None else begun
    await Peers(inner, ("127.0.0.1", 3001), begun.append)(scope, None, None)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("value", "client"),
    [(b"127.0.0.1:1234", ("127.0.0.1", 1234)), (b"[::1]:80", ("::1", 80)), (b"[2001:db8::1]:1", ("2001:db8::1", 1))],
)
async def test_the_header_becomes_the_client_and_is_gone(value: bytes, client: tuple[str, int]) -> None:
    scope = await seen((b"x-realtime-peer", value), (b"accept", b"*/*"))
    assert (scope["client"], scope["server"]) == (client, ("127.0.0.1", 3001))
    assert scope["headers"] == [HOST, (b"accept", b"*/*")]


@pytest.mark.parametrize(
    "headers",
    [[], [b"127.0.0.1:1", b"127.0.0.1:1"], [b""], [b"127.0.0.1"], [b":1"], [b"127.0.0.1:"], [b"127.0.0.1:x"]],
)
async def test_a_request_that_the_front_says_nothing_or_two_things_of_is_of_nobody(headers: list[bytes]) -> None:
    scope = await seen(*((b"x-realtime-peer", value) for value in headers), client=("127.0.0.1", 9))
    assert scope["client"] is None
    assert not is_local(scope)
    assert is_local(await seen((b"x-realtime-peer", b"127.0.0.1:1")))


async def test_the_front_hears_that_a_request_has_begun_and_the_number_is_gone() -> None:
    begun: list[int] = []
    scope = await seen((b"x-realtime-peer", b"127.0.0.1:1"), (b"x-realtime-request", b"17"), begun=begun)
    assert begun == [17]
    assert scope["headers"] == [HOST]


@pytest.mark.parametrize("is_known", [True, False])
async def test_the_front_hears_in_the_answer_whether_the_caller_is_known(is_known: bool) -> None:
    sent = []

    async def inner(scope: dict[str, Any], receive: object, send: Any) -> None:  # noqa: ARG001 -- as of ASGI
        if is_known:
            tell_known(scope)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [HOST], "client": None, "server": ("unix", None)}
    await Peers(inner, ("127.0.0.1", 3001), print)(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["headers"] == [(b"a", b"b"), *([(b"x-realtime-known", b"1")] if is_known else [])]
    assert sent[1]["body"] == b"x"
    tell_known({})
