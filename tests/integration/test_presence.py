"""Presence: online with a user's first session, offline with the last, and nothing at all for a reconnect."""

import re
import time
from collections.abc import Callable
from typing import Any

from tests.kit import Server, clients

V1: dict[str, Any] = {"subprotocols": ["realtime.v1"]}
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
    async with (
        server,
        clients(server, "c", "d"),
        await server.connect("a", **V1) as friend,
        await server.connect("b", **V1) as stranger,
    ):
        await friend.subscribe("conversation:1")
        await stranger.subscribe("conversation:2")
        async with await server.connect("alice", **V1) as alice:
            for member in (friend, stranger, alice):
                await member.expect("presence_mode", mode="everyone")
                assert (await member.expect("presence_mode", mode="shared"))["data"] == {"mode": "shared"}
            await alice.subscribe("conversation:1")
        await friend.expect("user_presence", userId="alice", status="offline")
        await stranger.refute("user_presence", userId="alice", status="offline")


async def test_who_is_online_is_told_right_behind_the_first_frame(server: Server, tag: str) -> None:
    async with clients(server, f"{tag}bob", about=tag) as (bob,):
        # Until this is told bob is no part of the list, and comes behind it as an event.
        await bob.expect("user_presence", userId=f"{tag}bob", status="online")
        for number in range(5):
            async with await server.connect(f"{tag}{number}", about=tag, established=False, **V1) as alice:
                # A command that is sent at once is answered behind it.
                await alice.send("ping", id=1)
                first, second = await alice.receive(), await alice.receive()
                assert (first["type"], second["type"]) == ("connection_established", "presence_mode")
                assert second["data"]["mode"] == "everyone"
                of_this_test = [user for user in second["data"]["users"] if user.startswith(f"{tag}b")]
                assert of_this_test == [f"{tag}bob"]
                await alice.expect("user_presence", userId=f"{tag}{number}", status="online")


async def test_clients_of_the_first_version_are_not_told_the_mode(serve: Callable[..., Server]) -> None:
    server = serve("presence.everyone_max=1", "presence.grace_s=0.1")
    async with server, clients(server, "a", "b") as (old, _), await server.connect("c", **V1) as new:
        await new.expect("presence_mode", mode="shared")
        await old.refute("presence_mode")


async def test_nobody_stays_online_for_good_after_a_crash(serve: Callable[..., Server]) -> None:
    server = serve("presence.grace_s=4")
    async with server:
        async with await server.connect("bob", **V1) as bob, await server.connect("alice", **V1):
            await bob.expect("user_presence", userId="alice", status="online")
            server.kill()
            await bob.closed()
        await server.start()
        async with await server.connect("bob", **V1) as bob, await server.connect("carol", **V1):
            known = await bob.expect("presence_mode")
            assert known["data"] == {"mode": "everyone", "users": []}
            # When the grace is over: those who have come back, and nobody else.
            known = await bob.expect("presence_mode")
            assert known["data"] == {"mode": "everyone", "users": ["bob", "carol"]}


async def test_where_grants_decide_a_stranger_hears_of_nobody(serve: Callable[..., Server]) -> None:
    grants = {"conversation:1": ["subscribe"]}
    async with (
        serve("conversations.access=grants") as server,
        await server.connect("friend", channels=grants) as friend,
        await server.connect("stranger") as stranger,
    ):
        await friend.subscribe("conversation:1")
        for _ in range(2):
            async with await server.connect("alice", channels=grants) as alice:
                await alice.expect("user_presence", userId="alice", status="online")
                await alice.subscribe("conversation:1")
            await friend.expect("user_presence", userId="alice", status="offline")
        await friend.expect("user_presence", userId="alice", status="online")
        await stranger.refute("user_presence", userId="alice")
        await stranger.refute("user_presence", userId="friend")
