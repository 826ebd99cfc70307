"""What who comes late gets of how things are now, over sockets: the newest event of each key, once."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.integration.test_event_hooks import EVENTS, KEYED
from tests.integration.test_http_api import call
from tests.kit import Client, Server

FILES = {"file:*": ["subscribe", "publish"]}


def progress(file: str, percent: int) -> dict[str, object]:
    data = {"fileId": file, "progress": percent, "status": "scanning"}
    return {"type": "file_processing_update", "channel": f"file:{file}", "data": data}


async def test_the_last_state_of_a_file_comes_behind_the_confirmation(serve: Callable[..., Server]) -> None:
    async with serve(api=True, env=KEYED) as server, await server.connect("early", channels=FILES) as early:
        await early.subscribe("file:7")
        for percent in (10, 55):
            assert (await call(server, "POST", EVENTS, progress("7", percent)))[0] == 200
            assert (await early.expect("file_processing_update"))["data"]["progress"] == percent
        async with await server.connect("late", channels=FILES) as late:
            await late.subscribe("file:7")
            assert (await late.expect("file_processing_update"))["data"]["progress"] == 55
            await late.subscribe("file:8")
            await late.refute("file_processing_update")
        await early.refute("file_processing_update")


async def test_members_that_come_amid_states_miss_none_and_get_none_twice(serve: Callable[..., Server]) -> None:
    async def watch(client: Client) -> list[int]:
        await client.subscribe("file:7")
        seen = [0]
        while seen[-1] < 300:
            seen.append((await client.expect("file_processing_update"))["data"]["progress"])
        return seen[1:]

    async with serve(api=True, env=KEYED) as server, AsyncExitStack() as stack:
        members = [await stack.enter_async_context(await server.connect(f"u{n}", channels=FILES)) for n in range(12)]
        watching: list[asyncio.Task[list[int]]] = []
        for first in range(1, 301, 25):
            watching.append(asyncio.create_task(watch(members[len(watching)])))
            batch = [progress("7", percent) for percent in range(first, first + 25)]
            assert (await call(server, "POST", EVENTS, batch))[0] == 200
        for seen in await asyncio.gather(*watching):
            assert seen == list(range(seen[0], 301))
