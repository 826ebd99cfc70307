"""Presence: online with a user's first session, offline with the last, and nothing at all for a reconnect."""

import re
import time
from collections.abc import Callable

from tests.kit import Server, clients

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def test_first_session_is_told_to_everyone_and_to_itself(server: Server, tag: str) -> None:
    async with (
        await server.connect(f"{tag}bob", about=tag) as bob,
        await server.connect(f"{tag}alice", about=tag) as alice,
    ):
        for member in (alice, bob):
            frame = await member.expect("user_presence", userId=f"{tag}alice")
            assert frame["data"] == {"userId": f"{tag}alice", "status": "online"}
            assert frame["userId"] == f"{tag}alice"
            assert TIMESTAMP.fullmatch(frame["timestamp"])


async def test_first_frame_comes_before_any_presence(server: Server, tag: str) -> None:
    for number in range(10):
        client = await server.connect(f"{tag}{number}", about=tag, established=False)
        async with client as alice:
            assert (await alice.receive())["type"] == "connection_established"


async def test_close_1000_of_the_last_session_is_offline_at_once(serve: Callable[..., Server]) -> None:
    async with serve("presence.grace_s=30") as server, clients(server, "bob", "alice") as (bob, alice):
        await bob.expect("user_presence", userId="alice", status="online")
        started = time.monotonic()
        await alice.socket.close(1000)
        await bob.expect("user_presence", userId="alice", status="offline")
        assert time.monotonic() - started < 5


async def test_second_session_is_told_to_nobody_and_its_end_neither(server: Server, tag: str) -> None:
    async with clients(server, f"{tag}bob", f"{tag}alice", about=tag) as (bob, alice):
        await bob.expect("user_presence", userId=f"{tag}alice")
        async with await server.connect(f"{tag}alice", about=tag):
            await bob.refute("user_presence", userId=f"{tag}alice")
        await bob.refute("user_presence", userId=f"{tag}alice", within_s=1)
        await alice.socket.close()
        await bob.expect("user_presence", userId=f"{tag}alice", status="offline")


async def test_lost_connection_is_offline_after_the_grace(serve: Callable[..., Server]) -> None:
    async with serve("presence.grace_s=1") as server, clients(server, "bob", "alice") as (bob, alice):
        await bob.expect("user_presence", userId="alice", status="online")
        started = time.monotonic()
        alice.drop()
        await bob.expect("user_presence", userId="alice", status="offline")
        assert 0.8 < time.monotonic() - started < 5


async def test_reconnect_within_the_grace_is_told_to_nobody(serve: Callable[..., Server]) -> None:
    async with serve("presence.grace_s=1.5") as server, clients(server, "bob", "alice") as (bob, alice):
        await bob.expect("user_presence", userId="alice", status="online")
        alice.drop()
        async with await server.connect("alice"):
            await bob.refute("user_presence", userId="alice", within_s=3)


async def test_close_with_another_code_waits_for_the_grace(serve: Callable[..., Server]) -> None:
    async with serve("presence.grace_s=1") as server, clients(server, "bob", "alice") as (bob, alice):
        await bob.expect("user_presence", userId="alice", status="online")
        await alice.socket.close(1001)
        await bob.refute("user_presence", userId="alice", within_s=0.5)
        await bob.expect("user_presence", userId="alice", status="offline")


async def test_above_everyone_max_only_those_who_share_a_channel_are_told(serve: Callable[..., Server]) -> None:
    server = serve("presence.everyone_max=4", "presence.grace_s=0.2")
    async with server, clients(server, "a", "b", "c", "d") as (friend, stranger, *_):
        await friend.subscribe("conversation:1")
        await stranger.subscribe("conversation:2")
        async with await server.connect("alice") as alice:
            for member in (friend, stranger, alice):
                assert (await member.expect("presence_mode"))["data"] == {"mode": "shared"}
            await alice.subscribe("conversation:1")
        await friend.expect("user_presence", userId="alice", status="offline")
        await stranger.refute("user_presence", userId="alice", status="offline")
