"""Typing: every start and stop is relayed, and a start ends by itself, on unsubscribe and on close."""

import asyncio
import time
from collections.abc import Callable

from tests.kit import Server, clients


async def test_start_and_stop_come_to_all_subscribers_the_sender_too(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob", "carol") as (alice, bob, carol):
        await alice.subscribe(f"conversation:{tag}")
        await bob.subscribe(f"conversation:{tag}")
        for type_, is_typing in (("typing_start", True), ("typing_stop", False)):
            await alice.send(type_, {"conversationId": tag})
            for member in (alice, bob):
                frame = await member.expect("typing_indicator")
                assert frame["data"] == {"userId": "alice", "isTyping": is_typing}
                assert frame["channel"] == f"conversation:{tag}"
                assert (frame["conversationId"], frame["userId"]) == (tag, "alice")
                assert "offset" not in frame
        await carol.refute("typing_indicator")


async def test_every_start_is_relayed(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        for _ in range(3):
            await alice.send("typing_start", {"conversationId": tag})
            await bob.expect("typing_indicator", isTyping=True)


async def test_typing_ends_by_itself_after_the_last_start(serve: Callable[..., Server]) -> None:
    async with serve("typing.timeout_s=1.5") as server, clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:1")
        await alice.send("typing_start", {"conversationId": "1"})
        await bob.expect("typing_indicator", isTyping=True)
        await asyncio.sleep(0.8)
        await alice.send("typing_start", {"conversationId": "1"})
        await bob.expect("typing_indicator", isTyping=True)
        last_start = time.monotonic()
        await bob.expect("typing_indicator", userId="alice", isTyping=False)
        assert 1.2 < time.monotonic() - last_start < 5
        await bob.refute("typing_indicator", within_s=2)


async def test_stop_ends_it_and_nothing_follows(serve: Callable[..., Server]) -> None:
    async with serve("typing.timeout_s=1") as server, clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:1")
        await alice.send("typing_start", {"conversationId": "1"})
        await alice.send("typing_stop", {"conversationId": "1"})
        await bob.expect("typing_indicator", isTyping=True)
        await bob.expect("typing_indicator", isTyping=False)
        await bob.refute("typing_indicator", within_s=2)


async def test_unsubscribe_ends_it(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        for member in (alice, bob):
            await member.subscribe(f"conversation:{tag}")
        await alice.send("typing_start", {"conversationId": tag})
        await bob.expect("typing_indicator", isTyping=True)
        await alice.send("unsubscribe", {"channel": f"conversation:{tag}"})
        await bob.expect("typing_indicator", userId="alice", isTyping=False)


async def test_close_ends_it_clean_or_not(server: Server, tag: str) -> None:
    async with await server.connect("bob") as bob:
        await bob.subscribe(f"conversation:{tag}")
        for is_clean in (True, False):
            alice = await server.connect("alice")
            await alice.send("typing_start", {"conversationId": tag})
            await bob.expect("typing_indicator", isTyping=True)
            if is_clean:
                await alice.socket.close()
            else:
                alice.drop()
            await bob.expect("typing_indicator", userId="alice", isTyping=False)


async def test_it_ends_with_the_last_of_a_user_s_sessions_that_types(server: Server, tag: str) -> None:
    async with clients(server, "alice", "alice", "bob") as (phone, laptop, bob):
        await bob.subscribe(f"conversation:{tag}")
        for session in (phone, laptop):
            await session.send("typing_start", {"conversationId": tag})
            await bob.expect("typing_indicator", isTyping=True)
        await phone.socket.close()
        await bob.refute("typing_indicator", isTyping=False)
        await laptop.socket.close()
        await bob.expect("typing_indicator", userId="alice", isTyping=False)


async def test_typing_without_a_conversation_is_refused_with_the_path(server: Server) -> None:
    async with await server.connect() as alice:
        missing: list[object] = [None, {}, {"conversationId": ""}, {"conversationId": {}}]
        for data in missing:
            frame = await alice.ask("typing_start", data)
            assert (frame["type"], frame["data"]["code"]) == ("error", "invalid_message"), frame
