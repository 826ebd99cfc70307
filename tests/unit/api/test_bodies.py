"""Bodies of requests: what they may take together, in how many pieces they come, and arrays in slices."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from realtime import Realtime
from realtime.api import bodies
from realtime.base.config import ApiSettings, LimitSettings
from tests.unit.api.asking import JSON, SERVICE_KEY, Answer, World

PATH = "/api/conversations/7/messages"
MESSAGE = json.dumps({"content": "x" * 500}).encode()
SERVICE = {**JSON, "authorization": f"Bearer {SERVICE_KEY}"}


def in_pieces(*pieces: bytes) -> Callable[[], Awaitable[Any]]:
    """Return what hands a body over in pieces."""
    left = list(pieces)

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


class Held:
    """A request whose body has begun and goes on when it is told."""

    def __init__(self, world: World, user: str, begun: bytes) -> None:
        self._begun, self._rest = [begun], asyncio.Queue[bytes]()
        headers = {**JSON, "authorization": f"Bearer {world.token(user)}"}
        self._asked = asyncio.ensure_future(world.ask(PATH, headers, "POST", receive=self._receive))

    async def _receive(self) -> Any:
        if self._begun:
            return {"type": "http.request", "body": self._begun.pop(), "more_body": True}
        return {"type": "http.request", "body": await self._rest.get(), "more_body": False}

    async def ends(self, rest: bytes = b"") -> Answer:
        self._rest.put_nowait(rest)
        return await self._asked

    async def is_cut(self) -> Answer:
        return await self._asked


def bounded(bytes_max: int) -> World:
    return World(api=ApiSettings(bodies_bytes_max=bytes_max), limits=LimitSettings(enabled=False))


async def reached(world: World, size: int) -> None:
    """Wait until so many bytes of bodies are held."""
    while world.test.control.ledger.of("bodies").bytes != size:  # noqa: ASYNC110 -- each turn of the loop counts
        await asyncio.sleep(0)


async def test_bodies_are_charged_up_to_the_limit_and_given_back_at_the_end_of_the_request() -> None:
    async with bounded(2 * len(MESSAGE)) as world:
        held = Held(world, "ann", MESSAGE)
        await reached(world, len(MESSAGE))
        assert (await world.call("POST", PATH, {"content": "x" * 500}, user="bob")).status == 201
        await reached(world, len(MESSAGE))
        assert (await held.ends()).status == 201
        await reached(world, 0)
        assert world.test.control.ledger.of("bodies").refused == 0


async def test_for_one_body_more_of_a_user_that_still_comes_the_users_oldest_gives_way() -> None:
    async with World(api=ApiSettings(in_flight_max=48)) as world:
        charges = world.test.control.ledger.of("bodies")
        held = list[Held]()
        for size in (1, 2, 3):
            held.append(Held(world, "ann", MESSAGE[:1]))
            await reached(world, size)
        assert charges.refused == 0
        other = Held(world, "bob", MESSAGE[:1])
        await reached(world, 4)
        held.append(Held(world, "ann", MESSAGE[:1]))
        cut = await held[0].is_cut()
        assert cut.problem == (503, "overloaded", None)
        assert charges.refused == 1, "nobody else's"
        for left in (*held[1:], other):
            assert (await left.ends(MESSAGE[1:])).status == 201
        await reached(world, 0)
        for _ in range(10):
            assert (await world.call("POST", PATH, {"content": "x"}, user="ann")).status == 201


async def test_the_caller_who_holds_most_gives_way_to_whoever_comes() -> None:
    async with bounded(2 * len(MESSAGE) - 1) as world:
        ann, more = Held(world, "ann", MESSAGE), Held(world, "ann", b"{")
        await reached(world, len(MESSAGE) + 1)
        assert (await world.call("POST", PATH, {"content": "x" * 500}, user="bob")).status == 201
        cut = await ann.is_cut()
        assert cut.problem == (503, "overloaded", None)
        assert cut.headers["retry-after"] == "1"
        # A smaller one of the same caller goes on.
        assert (await more.ends(b'"content":"x"}')).status == 201
        assert world.test.control.ledger.of("bodies").refused == 1
        await reached(world, 0)


async def test_a_caller_who_would_hold_most_is_refused_itself() -> None:
    async with bounded(len(MESSAGE) + 100) as world:
        bob = Held(world, "bob", b"{")
        await reached(world, 1)
        assert (await world.call("POST", PATH, {"content": "x" * 700}, user="ann")).problem == (503, "overloaded", None)
        assert (await bob.ends(b'"content":"x"}')).status == 201
        assert world.test.control.ledger.of("bodies").refused == 1


async def test_a_body_may_come_in_many_chunks_that_are_long_enough_but_not_in_many_small_ones() -> None:
    body = json.dumps({"content": "x" * 200_000}).encode()
    async with World() as world:
        headers = {**JSON, "authorization": f"Bearer {world.token('ann')}"}
        for size, found in ((64, None), (63, (400, "invalid_message", None)), (1, (400, "invalid_message", None))):
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            assert len(pieces) > bodies.CHUNKS_FREE
            answer = await world.ask(PATH, headers, "POST", receive=in_pieces(*pieces))
            assert (None if answer.status == 201 else answer.problem) == found
        assert world.test.control.ledger.of("bodies").refused == 2
        small = [MESSAGE[at : at + 1] for at in range(len(MESSAGE))]
        assert (await world.ask(PATH, headers, "POST", receive=in_pieces(*small))).status == 201


def _events(count: int, **wrong: object) -> list[dict[str, object]]:
    return [{"type": "t", "channel": "kept:1", "data": n, **(wrong if n == count - 1 else {})} for n in range(count)]


def kept() -> Realtime:
    app = Realtime()
    app.policy("kept:*", durable=True, history=10_000)
    return app


async def test_a_long_array_is_stored_in_its_order_and_refused_as_a_whole() -> None:
    async with World(kept()) as world:
        refused = await world.call("POST", "/api/events", _events(5000, type=7), key=True)
        assert refused.problem == (400, "invalid_message", "[4999].type")
        refused = await world.call("POST", "/api/events", _events(5000, type="ack"), key=True)
        assert refused.problem == (403, "forbidden", "[4999].type")
        answer = await world.call("POST", "/api/events", _events(5000), key=True)
        assert answer.json == {"accepted": 5000, "duplicates": 0}
        page = (await world.call("GET", "/api/channels/kept:1/history?after=0&limit=1000", key=True)).json
        assert [event["data"] for event in page["events"]] == list(range(1000))


@pytest.mark.parametrize("count", [10_000, 10_001])
async def test_an_array_has_so_many_elements_and_no_more(count: int) -> None:
    body = b"[" + b",".join([b'{"type":"t","all":true,"data":0}'] * count) + b"]"
    async with World() as world:
        answer = await world.ask("/api/events", SERVICE, "POST", body)
        assert answer.status == (200 if count == 10_000 else 400)


async def test_each_element_of_an_array_counts_its_values_by_itself() -> None:
    async with World(limits=LimitSettings(message_values_max=10)) as world:
        for values, expected in ((6, None), (7, "[2].data")):
            events = [{"type": "t", "all": True, "data": [0] * count} for count in (6, 6, values)]
            answer = await world.call("POST", "/api/events", events, key=True)
            found = None if answer.status == 200 else answer.problem
            assert found == (None if expected is None else (400, "invalid_message", expected))


async def test_an_element_that_is_too_long_is_not_decoded() -> None:
    async with World(limits=LimitSettings(publication_bytes_max=1000)) as world:
        long = {"type": "t", "all": True, "data": "x" * 10_000}
        for content, path in (([long], "[0]"), (long, None)):
            answer = await world.call("POST", "/api/events", content, key=True)
            assert answer.problem == (413, "too_large", path)
