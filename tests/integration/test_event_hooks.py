"""`POST /api/events` of a real server: other systems tell, sockets hear; what is stored is there after a crash."""

import asyncio
from collections.abc import Callable

from tests.integration.test_http_api import SERVICE_KEY, call
from tests.kit import Server, clients

EVENTS = "/api/events"
KEYED = {"REALTIME_SERVICE_KEY": SERVICE_KEY}


async def test_a_batch_reaches_everybody_it_names_in_order(serve: Callable[..., Server]) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice", "bob") as (alice, bob):
        await alice.subscribe("conversation:7")
        batch: list[dict[str, object]] = [
            {"type": "told", "conversationId": "7", "data": {"n": number}, "id": f"e{number}"} for number in range(500)
        ]
        batch += [{"type": "ended", "all": True, "data": {}}, {"type": "mine", "userId": "bob", "data": {}}]
        status, accepted, _ = await call(server, "POST", EVENTS, batch, x_request_id="hook-1")
        assert (status, accepted) == (200, {"accepted": 502, "duplicates": 0})
        frames = [await alice.expect("told") for _ in range(500)]
        assert [frame["data"]["n"] for frame in frames] == list(range(500))
        assert [frame["offset"] for frame in frames] == list(range(1, 501))
        assert {frame["requestId"] for frame in frames} == {"hook-1"}
        for client in (alice, bob):
            await client.expect("ended")
        await bob.expect("mine")
        await alice.refute("mine")


async def test_what_was_accepted_survives_a_crash_and_is_not_published_again(serve: Callable[..., Server]) -> None:
    server = serve(api=True, env=KEYED)
    async with server:
        batch = [
            {"type": "new_message", "conversationId": "7", "data": {"content": str(number)}, "id": f"m{number}"}
            for number in range(100)
        ]
        assert (await call(server, "POST", EVENTS, batch))[1] == {"accepted": 100, "duplicates": 0}
        server.kill()
        await server.start()
        assert (await call(server, "POST", EVENTS, batch))[1] == {"accepted": 0, "duplicates": 100}
        _, page, _ = await call(server, "GET", "/api/conversations/7/messages?limit=1000")
        assert [(item["number"], item["content"]) for item in page["items"]] == [(n + 1, str(n)) for n in range(100)]


async def test_batches_at_once_are_published_once(serve: Callable[..., Server]) -> None:
    async with serve(api=True, env=KEYED) as server, clients(server, "alice") as (alice,):
        await alice.subscribe("conversation:7")
        batch = [{"type": "told", "conversationId": "7", "data": number, "id": f"e{number}"} for number in range(200)]
        answers = await asyncio.gather(*(call(server, "POST", EVENTS, batch) for _ in range(4)))
        assert sum(accepted["accepted"] for _, accepted, _ in answers) == 200
        assert [(await alice.expect("told"))["data"] for _ in range(200)] == list(range(200))
        await alice.refute("told")
