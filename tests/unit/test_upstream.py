"""The breaker, which decides whether an API is asked at all, and what may wait for it; the rest has a real API."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from msgspec import Raw

from realtime.base.charges import Charges
from realtime.base.config.settings import ApiSettings, Settings
from realtime.base.errors import Refused
from realtime.base.memory import Ledger
from realtime.control.upstream import FAILED, Breaker, Outgoing, Places, Upstream, UpstreamFailed, idempotency_key


class Now:
    """Seconds that are moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def opened(now: Now) -> Breaker:
    """Return one that three users have opened; their next requests would be tries."""
    breaker = Breaker(3, 5.0, now)
    for user in ("ann", "bob", "cat"):
        assert breaker.wait_s(user) is None
        breaker.failed(user)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 5.0, Now())
    assert [breaker.failed("ann"), breaker.failed("bob"), breaker.succeeded("cat")] == [False, False, False]
    assert [breaker.failed(user) for user in ("cat", "dan", "eve", "fay")] == [False, False, True, False]
    assert breaker.wait_s("new") == 5.0


def test_failures_of_one_user_or_two_make_only_them_wait() -> None:
    now = Now()
    breaker = Breaker(3, 5.0, now)
    for user in ("mallory", "marvin"):
        for _ in range(3):
            assert breaker.wait_s(user) is None
            assert not breaker.failed(user)
        assert breaker.wait_s(user) == 5.0
    assert breaker.wait_s("good") is None
    assert not breaker.is_open
    now.s += 5
    assert breaker.wait_s("mallory") is None
    breaker.failed("mallory")
    assert breaker.wait_s("mallory") == 5.0
    breaker.succeeded("mallory")
    assert breaker.wait_s("mallory") is None


def test_where_nobody_can_connect_one_users_failures_open_it() -> None:
    breaker = Breaker(3, 5.0, Now())
    assert [breaker.failed("ann", reached=False) for _ in range(3)] == [False, False, True]
    assert breaker.wait_s("bob") == 5.0


def test_users_who_fail_all_the_time_open_it_once_and_not_again() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s("good") is None
    breaker.succeeded("good")
    assert not any(breaker.failed(user) for user in ("ann", "bob", "cat") * 5)
    assert breaker.wait_s("good") is None


def test_after_the_pause_one_tries_and_the_others_wait() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    assert breaker.wait_s("new") == 1.0
    now.s += 1
    assert breaker.wait_s("new") is None
    assert breaker.wait_s("newer") == 5.0
    assert breaker.succeeded("new")
    assert (breaker.wait_s("new"), breaker.wait_s("newer")) == (None, None)


def test_who_failed_last_does_not_keep_others_from_trying() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s("ann") is None
    assert breaker.wait_s("bob") == 5.0, "one of those who failed is enough"
    breaker.failed("ann")
    assert breaker.wait_s("good") is None
    breaker.abandoned("good")
    now.s += 5
    assert breaker.wait_s("ann") == 5.0, "the next of them goes first"
    assert breaker.wait_s("bob") is None


def test_a_try_that_fails_begins_another_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s("new") is None
    now.s += 2
    breaker.failed("new")
    assert breaker.wait_s("newer") == 5.0


def test_requests_from_before_it_opened_do_not_lengthen_the_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    breaker.failed("ann")
    breaker.failed("old")
    assert breaker.wait_s("new") == 1.0


def test_a_try_that_nobody_waited_for_leaves_room_for_the_next() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s("new") is None
    breaker.abandoned("new")
    assert breaker.wait_s("new") is None


def test_of_a_thousand_users_failures_are_remembered_and_of_more_the_oldest_are_forgotten() -> None:
    breaker = Breaker(1, 5.0, Now())
    for number in range(1_000):
        breaker.failed(f"user-{number}")
    assert len(breaker._failing) == 1_000
    breaker.failed("one more")
    assert len(breaker._failing) == 1_000
    assert "user-0" not in breaker._failing
    assert len(breaker._fresh) == 3


def test_a_key_is_the_same_for_each_try_and_nobody_elses() -> None:
    assert idempotency_key("alice", "7", "c1") == idempotency_key("alice", "7", "c1")
    keys = {idempotency_key(*parts) for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("é", "b", "c"))}
    assert len(keys) == 4
    assert all(len(key) == 32 and key.isalnum() for key in keys)


MESSAGE = Outgoing("x" * 1_000, "user", {})


async def _chunks() -> AsyncIterator[bytes]:
    yield b'{"id":1}'


async def _turns() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


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
        await _turns()
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


async def test_a_free_place_goes_to_the_user_with_the_fewest_and_then_in_the_order_of_the_asking() -> None:
    places, order, ends = Places(2, 100), list[str](), dict[str, asyncio.Event]()

    async def hold(user: str, name: str) -> None:
        async with places.place(user):
            order.append(name)
            await ends.setdefault(name, asyncio.Event()).wait()

    async with asyncio.TaskGroup() as group:
        for user, name in (("hog", "h1"), ("hog", "h2"), ("hog", "h3"), ("hog", "h4"), ("ann", "a1"), ("bob", "b1")):
            group.create_task(hold(user, name))
        for name in ("h1", "a1", "b1", "h2", "h3", "h4"):
            await _turns()
            assert name in order
            ends[name].set()
    assert order == ["h1", "h2", "a1", "b1", "h3", "h4"]
    assert (places.waiting, places._free, places._waiting, places._under_way) == (0, 2, {}, {})


async def test_who_waits_no_longer_leaves_the_place_to_the_next() -> None:
    places, held = Places(1, 2), asyncio.Event()

    async def hold(user: str) -> None:
        async with places.place(user):
            await held.wait()

    tasks = [asyncio.create_task(hold(user)) for user in ("ann", "bob", "cat")]
    await _turns()
    with pytest.raises(UpstreamFailed, match=r"2 requests wait for it \(api.requests_waiting_max = 2\)"):
        await hold("dan")
    tasks[1].cancel()
    await _turns()
    assert places.waiting == 1
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (places.waiting, places._free, places._waiting, places._under_way) == (0, 1, {}, {})


class Telling:
    """An API that fails at a text and is asked by several users."""

    def __init__(self, settings: ApiSettings) -> None:
        charges = Charges(1 << 20, 1 << 20)
        self.upstream = Upstream(settings, 1 << 20, str, sending=charges, reading=Charges(1 << 20, 1 << 20))
        self.upstream._client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._answer))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        bad = b"\\u0000" in request.content
        return httpx2.Response(500 if bad else 200, content=_chunks())

    async def say(self, user: str, content: str) -> bool:
        """Return whether a message was taken."""
        message = Outgoing(content, "user", {})
        try:
            await self.upstream.post("7", message, user=user, token="t", request_id="r", idempotency_key="k")
        except UpstreamFailed:
            return False
        return True


async def test_what_one_user_sends_stops_nobody_elses_messages() -> None:
    api = Telling(ApiSettings(url="http://api.example"))
    for _ in range(20):
        for _ in range(20):
            assert not await api.say("mallory", "a\0b")
        assert await api.say("good", "hello")
    await api.upstream.close()


async def test_one_users_slow_messages_do_not_take_the_places_of_others() -> None:
    api = Held(ApiSettings(url="http://api.example"))
    for _ in range(64):
        _ = await api.send("mallory")
    assert not (await api.send("good")).done()
    assert (api.asked, api.sending.refused) == (17, 48)
    await api.end()


async def test_a_message_that_waits_goes_before_those_of_a_user_with_more_under_way() -> None:
    api = Held(ApiSettings(url="http://api.example", requests_max=2))
    for _ in range(4):
        _ = await api.send("mallory")
    _ = await api.send("good")
    api.tasks[0].cancel()
    await _turns()
    assert (api.asked, api.upstream._places._under_way) == (3, {"mallory": 1, "good": 1})
    await api.end()
