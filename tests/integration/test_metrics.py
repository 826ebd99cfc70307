"""`/metrics` of a running server: for operators alone, true, and cheap while the server works."""

import asyncio
import http.client
import time
from collections.abc import Callable

from tests.kit import Server, clients


def scrape(server: Server, **headers: str) -> tuple[int, dict[str, float]]:
    """Fetch the figures; returns the status and the samples without their comments."""
    connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=15)
    connection.request("GET", "/metrics", headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return answer.status, {name: float(value) for name, _, value in lines} if answer.status == 200 else {}


async def test_figures_tell_what_the_clients_did(serve: Callable[..., Server]) -> None:
    async with serve(api=True) as server:
        async with clients(server, "alice", "bob") as (alice, bob):
            await alice.subscribe("conversation:1")
            await bob.say("1", "hello")
            await alice.expect("new_message")
            status, figures = await asyncio.to_thread(scrape, server)
        assert status == 200
        assert figures["realtime_connections"] == figures["realtime_users_online"] == 2
        assert figures["realtime_log_events_total"] >= 1
        assert figures['realtime_handler_seconds_count{type="send_message"}'] == 1
        assert figures["realtime_delivery_seconds_count"] >= 1
        assert figures["realtime_ready"] == 1
        _, figures = await asyncio.to_thread(scrape, server)
        assert figures['realtime_connections_closed_total{code="1000"}'] == 2
        assert figures["realtime_connection_duration_seconds_count"] == 2


async def test_only_this_machines_programs_and_services_are_told(serve: Callable[..., Server]) -> None:
    key = "k" * 40
    async with serve(api=True, env={"REALTIME_SERVICE_KEY": key}) as server:
        for headers, status in (
            ({}, 200),
            ({"X-Forwarded-For": "203.0.113.9"}, 401),
            ({"Host": "evil.example"}, 401),
            ({"X-Forwarded-For": "203.0.113.9", "Authorization": f"Bearer {key}"}, 200),
            ({"X-Forwarded-For": "203.0.113.9", "Authorization": "Bearer nonsense"}, 401),
        ):
            assert (await asyncio.to_thread(scrape, server, **headers))[0] == status, headers


async def test_scrapes_under_load_are_quick_and_lose_nothing(serve: Callable[..., Server]) -> None:
    async with serve("limits.enabled=false", api=True) as server, await server.connect("alice") as alice:
        took_s = []
        for round_ in range(10):
            for number in range(200):
                await alice.send("send_message", {"conversationId": "1", "content": "x"}, id=f"{round_}-{number}")
            began_s = time.perf_counter()
            assert (await asyncio.to_thread(scrape, server))[0] == 200
            took_s.append(time.perf_counter() - began_s)
            for number in range(200):
                assert (await alice.answer(f"{round_}-{number}"))["type"] == "ack"
        assert sorted(took_s)[5] < 1
