"""Keys that are fetched: when, how often, and what a failure changes. The provider is a real HTTP server."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from realtime.base.clock import ManualClock
from realtime.identity.key_sets import SET_BYTES_MAX, KeySet
from tests.unit.identity.keys import jwk


class Provider:
    """Answers with `document` and counts how often it is asked."""

    def __init__(self) -> None:
        self.document: object = {"keys": [jwk("ES256", kid="one")]}
        self.status = "200 OK"
        self.headers = ""
        self.asked = 0
        self.port = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline() not in {b"\r\n", b""}:
            pass
        self.asked += 1
        await self.hold.wait()
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\n{self.headers}Connection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()


@asynccontextmanager
async def provided(refresh_s: float = 3600) -> AsyncIterator[tuple[Provider, KeySet, ManualClock, list[int]]]:
    provider, clock, changes = Provider(), ManualClock(1_000_000), list[int]()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{provider.port}/keys"
    keys = KeySet(url, ("ES256",), refresh_s, clock, lambda: changes.append(len(keys.keys)))
    try:
        yield provider, keys, clock, changes
    finally:
        provider.hold.set()
        await keys.close()
        server.close()


async def until_asked(provider: Provider, times: int) -> None:
    async with asyncio.timeout(10):
        while provider.asked < times:  # noqa: ASYNC110 -- it is asked from another connection
            await asyncio.sleep(0.005)


async def test_many_who_ask_at_once_share_one_request() -> None:
    async with provided() as (provider, keys, _, changes):
        assert "not fetched yet" in str(keys.problem)
        await asyncio.gather(*(keys.fetched() for _ in range(100)))
        assert (provider.asked, changes, keys.problem) == (1, [1], None)
        assert [(key.kid, key.algorithm) for key in keys.keys] == [("one", "ES256")]


async def test_it_is_asked_at_most_once_in_ten_seconds() -> None:
    async with provided() as (provider, keys, clock, changes):
        for _ in range(50):
            await keys.fetched()
        assert provider.asked == 1
        provider.document = {"keys": [jwk("ES256", kid="one"), jwk("ES256", "two", kid="two")]}
        clock.advance_to(clock.now_ms() + 9_999)
        await keys.fetched()
        assert provider.asked == 1
        clock.advance_to(clock.now_ms() + 1)
        await keys.fetched()
        assert (provider.asked, changes) == (2, [1, 2])


async def test_whoever_may_not_ask_again_yet_is_told_when() -> None:
    async with provided() as (provider, keys, clock, _):
        assert await keys.fetched() == 0
        assert await keys.fetched() == 10_000
        clock.advance_to(clock.now_ms() + 4_000)
        assert await keys.fetched() == 6_000
        provider.status = "503 Later"
        clock.advance_to(clock.now_ms() + 6_000)
        assert await keys.fetched() == 10_000, "the provider may have it all the same"
        clock.advance_to(clock.now_ms() + 9_999)
        assert await keys.fetched() == 1
        await keys.close()
        assert await keys.fetched() == 1


async def test_it_is_asked_again_by_itself() -> None:
    async with provided(refresh_s=60) as (provider, keys, clock, changes):
        await keys.fetched()
        clock.advance_to(clock.now_ms() + 60_000)
        await until_asked(provider, 2)
        await keys.fetched()
        assert changes == [1]


@pytest.mark.parametrize(
    ("status", "document", "problem"),
    [
        ("500 Oops", b"", "answered 500"),
        ("302 Found", b"", "answered 302; only 200 is taken, and no redirect is followed"),
        ("200 OK", b"not json", "no JWK set"),
        ("200 OK", b'{"keys":[]}', "no key that can be used: it is empty"),
        ("200 OK", b" " * (SET_BYTES_MAX + 1), f"the answer exceeds {SET_BYTES_MAX} bytes"),
    ],
)
async def test_a_failure_leaves_the_keys_and_is_told_once(
    status: str, document: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with provided() as (provider, keys, clock, changes):
        await keys.fetched()
        good, provider.document, provider.status = provider.document, document, status
        provider.headers = f"Location: http://127.0.0.1:{provider.port}/other\r\n"
        for asked in (2, 3):
            clock.advance_to(clock.now_ms() + 10_000)
            await keys.fetched()
            assert provider.asked == asked
        assert problem in str(keys.problem)
        assert [key.kid for key in keys.keys] == ["one"]
        provider.document, provider.status = good, "200 OK"
        with caplog.at_level(logging.INFO, "realtime.identity"):
            clock.advance_to(clock.now_ms() + 10_000)
            await keys.fetched()
        assert (keys.problem, changes) == (None, [1])
        told = [record.getMessage() for record in caplog.records if record.name == "realtime.identity"]
        assert ["brought no keys" in line for line in told] == [True, False]
        assert "the 1 keys from before stay" in told[0]
        assert told[1] == "auth.jwks_url answers again: 1 keys"


async def test_a_provider_that_is_down_is_asked_again_until_it_is_there() -> None:
    async with provided() as (provider, keys, clock, changes):
        provider.status = "503 Later"
        await keys.fetched()
        assert (keys.keys, changes) == ((), [])
        provider.status = "200 OK"
        clock.advance_to(clock.now_ms() + 10_000)
        await until_asked(provider, 2)
        await keys.fetched()
        assert changes == [1]


async def test_an_answer_under_way_does_not_outlive_the_server() -> None:
    async with provided() as (provider, keys, _, changes):
        provider.hold.clear()
        waiting = asyncio.ensure_future(keys.fetched())
        await until_asked(provider, 1)
        await keys.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await keys.fetched()
        assert (provider.asked, changes) == (1, [])
