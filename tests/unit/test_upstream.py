"""The breaker, which decides whether an API is asked at all, and what may wait for it; the rest has a real API."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from msgspec import Raw

from realtime.charges import Charges
from realtime.config.settings import ApiSettings, Settings
from realtime.errors import Refused
from realtime.memory import Ledger
from realtime.upstream import FAILED, Breaker, Outgoing, Upstream, idempotency_key


class Now:
    """Seconds that are moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def opened(now: Now) -> Breaker:
    breaker = Breaker(3, 5.0, now)
    for _ in range(3):
        assert breaker.wait_s() is None
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 5.0, Now())
    assert [breaker.failed(), breaker.failed(), breaker.succeeded()] == [False, False, False]
    assert [breaker.failed(), breaker.failed(), breaker.failed(), breaker.failed()] == [False, False, True, False]
    assert breaker.wait_s() == 5.0


def test_after_the_pause_one_tries_and_the_others_wait() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    assert breaker.wait_s() == 1.0
    now.s += 1
    assert breaker.wait_s() is None
    assert breaker.wait_s() == 5.0
    assert breaker.succeeded()
    assert (breaker.wait_s(), breaker.wait_s()) == (None, None)


def test_a_try_that_fails_begins_another_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s() is None
    now.s += 2
    breaker.failed()
    assert breaker.wait_s() == 5.0


def test_requests_from_before_it_opened_do_not_lengthen_the_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    breaker.failed()
    assert breaker.wait_s() == 1.0


def test_a_try_that_nobody_waited_for_leaves_room_for_the_next() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s() is None
    breaker.abandoned()
    assert breaker.wait_s() is None


def test_a_key_is_the_same_for_each_try_and_nobody_elses() -> None:
    assert idempotency_key("alice", "7", "c1") == idempotency_key("alice", "7", "c1")
    keys = {idempotency_key(*parts) for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("é", "b", "c"))}
    assert len(keys) == 4
    assert all(len(key) == 32 and key.isalnum() for key in keys)


MESSAGE = Outgoing("x" * 1_000, "user", {})


async def _chunks() -> AsyncIterator[bytes]:
    yield b'{"id":1}'


class Held:
    """An API that answers nobody before it is told to."""

    def __init__(
        self,
        settings: ApiSettings,
        bytes_max: int = 1 << 20,
        share_max: int = 1 << 20,
    ) -> None:
        self.going_on = asyncio.Event()
        self.asked = 0
        self.sending = Charges(bytes_max, share_max)
        self.reading = Charges(1 << 20, 1 << 20)
        self.upstream = Upstream(settings, 1 << 20, str, sending=self.sending, reading=self.reading)
        self.upstream._client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))
        self.tasks: list[asyncio.Task[object]] = []

    async def _answer(self, _: httpx2.Request) -> httpx2.Response:
        self.asked += 1
        await self.going_on.wait()
        return httpx2.Response(200, content=_chunks())

    async def end(self) -> list[object]:
        """Let all go on; return what came of each."""
        self.going_on.set()
        outcomes = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.upstream.close()
        return outcomes

    async def send(self, user: str) -> asyncio.Task[object]:
        """Send a message and return what comes of it; it waits or is refused by then."""
        work = self.upstream.post("7", MESSAGE, user=user, token="t", request_id="r", idempotency_key="k")
        self.tasks.append(task := asyncio.create_task(work))
        for _ in range(10):
            await asyncio.sleep(0)
        return task


async def test_a_user_has_so_many_messages_under_way_and_not_one_more() -> None:
    api = Held(ApiSettings(url="http://api.example", requests_per_user_max=3, requests_max=2))
    for _ in range(3):
        assert not (await api.send("ann")).done()
    refused = (await api.send("ann")).exception()
    assert isinstance(refused, Refused)
    assert (refused.code, refused.message, refused.retry_after_ms) == ("overloaded", FAILED, 1000)
    assert not (await api.send("bob")).done()
    assert (api.asked, api.sending.refused) == (2, 1)
    sent = {"id": Raw(b"1")}
    assert await api.end() == [sent, sent, sent, refused, sent]
    assert (api.sending.bytes, api.reading.bytes) == (0, 0)


@pytest.mark.parametrize("bounds", [{"bytes_max": 3_000}, {"share_max": 3_000}])
async def test_the_bytes_of_messages_under_way_are_bounded(bounds: dict[str, int]) -> None:
    api = Held(ApiSettings(url="http://api.example"), **bounds)
    under_way = [await api.send("ann") for _ in range(4)]
    assert [task.done() for task in under_way] == [False, False, True, True]
    assert api.sending.bytes <= 3_000
    assert (await api.send("bob")).done() == ("bytes_max" in bounds)
    assert sum(isinstance(outcome, Refused) for outcome in await api.end()) == api.sending.refused
    assert api.sending.bytes == 0


def held_by(requests_bytes_max: int) -> Held:
    api = ApiSettings(url="http://api.example", requests_bytes_max=requests_bytes_max)
    charges = Ledger(Settings(api=api)).of("api_requests")
    return Held(api, charges.bytes_max, charges.share_max)


async def test_requests_bytes_max_is_reached_and_not_passed() -> None:
    one = held_by(1 << 20)
    assert not (await one.send("ann")).done()
    size = one.sending.bytes
    await one.end()
    for bytes_max, has_room in ((2 * size, True), (2 * size - 1, False)):
        api = held_by(bytes_max)
        assert not (await api.send("ann")).done()
        assert (await api.send("bob")).done() != has_room
        assert (await api.send("cyd")).done()
        assert (api.sending.bytes, api.sending.refused) == ((2 * size, 1) if has_room else (size, 2))
        await api.end()


async def test_a_user_has_a_sixteenth_of_requests_bytes_max() -> None:
    one = held_by(1 << 20)
    assert not (await one.send("ann")).done()
    size = one.sending.bytes
    await one.end()
    api = held_by(16 * 2 * size)
    assert [(await api.send("ann")).done() for _ in range(3)] == [False, False, True]
    assert not (await api.send("bob")).done()
    assert api.sending.refused == 1
    await api.end()
