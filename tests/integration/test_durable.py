"""Durable conversations: stored before they are acknowledged, numbered, found again by position, safe from kill -9."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.test_metrics import scrape
from tests.kit import Client, Server, clients


async def numbers(client: Client, count: int) -> list[int]:
    """Return the numbers of the next `count` messages, which must come in order and carry them as their offset."""
    found = []
    for _ in range(count):
        frame = await client.expect("new_message")
        assert frame["offset"] == frame["data"]["number"]
        found.append(frame["offset"])
    return found


async def test_messages_of_a_conversation_are_numbered_from_one_without_holes(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob", "carol") as members:
        for member in members:
            await member.subscribe(f"conversation:{tag}")
        await asyncio.gather(*(members[n % 3].say(tag, str(n)) for n in range(20)))
        for member in members:
            assert await numbers(member, 20) == list(range(1, 21))


async def test_same_client_message_id_is_stored_once_and_acknowledged_again(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        first = await alice.say(tag, "hello", clientMessageId="m-1")
        again = await alice.say(tag, "hello, changed", clientMessageId="m-1")
        assert again == first
        assert await alice.say(tag, "next", clientMessageId="m-2") != first
        # The same id of another user, or in another conversation, is another message.
        assert (await bob.say(tag, "mine", clientMessageId="m-1"))["number"] == 3
        assert (await alice.say(f"{tag}b", "elsewhere", clientMessageId="m-1"))["number"] == 1
        assert await numbers(bob, 3) == [1, 2, 3]
        await bob.refute("new_message")


async def test_duplicates_at_once_are_one_message(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await bob.subscribe(f"conversation:{tag}")
        message = {"conversationId": tag, "content": "hello", "clientMessageId": "m"}
        for number in range(20):
            await alice.send("send_message", message, id=number)
        answers = [await alice.answer(number) for number in range(20)]
        assert {frame["type"] for frame in answers} == {"ack"}
        assert len({json.dumps(frame["data"], sort_keys=True) for frame in answers}) == 1
        assert await numbers(bob, 1) == [1]
        await bob.refute("new_message")


@pytest.mark.parametrize(
    ("last", "expected"), [(0, []), (1, [10]), (3, [8, 9, 10]), (10, [*range(1, 11)]), (1000, [*range(1, 11)])]
)
async def test_last_replays_the_newest_before_any_live_event(
    server: Server, tag: str, last: int, expected: list[int]
) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        for number in range(10):
            await alice.say(tag, str(number))
        confirmed = await bob.subscribe(f"conversation:{tag}", last=last)
        assert confirmed["replayed"] == len(expected)
        assert (confirmed["position"]["offset"], confirmed["head"]) == (10 - len(expected), 10)
        await alice.say(tag, "live")
        assert await numbers(bob, len(expected) + 1) == [*expected, 11]


async def test_last_over_1000_is_invalid(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        frame = await alice.ask("subscribe", {"channel": f"conversation:{tag}", "last": 1001})
        assert (frame["type"], frame["data"]["code"]) == ("error", "invalid_message")
        assert frame["data"]["path"] == "data.last"


@pytest.mark.parametrize("seen", [0, 1, 7, 10])
async def test_position_gets_exactly_what_was_missed(server: Server, tag: str, seen: int) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        epoch = (await alice.subscribe(f"conversation:{tag}"))["position"]["epoch"]
        for number in range(10):
            await alice.say(tag, str(number))
        confirmed = await bob.subscribe(f"conversation:{tag}", position={"offset": seen, "epoch": epoch})
        assert (confirmed["recovered"], confirmed["replayed"]) == (True, 10 - seen)
        assert (confirmed["position"], confirmed["head"]) == ({"offset": seen, "epoch": epoch}, 10)
        await alice.say(tag, "live")
        assert await numbers(bob, 11 - seen) == [*range(seen + 1, 12)]
        await bob.refute("new_message")


@pytest.mark.parametrize("position", [{"offset": 11, "epoch": None}, {"offset": 3, "epoch": "another"}])
async def test_position_that_cannot_be_recovered_is_told_and_replays_nothing(
    server: Server, tag: str, position: dict[str, Any]
) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        epoch = (await alice.subscribe(f"conversation:{tag}"))["position"]["epoch"]
        for number in range(10):
            await alice.say(tag, str(number))
        asked = {"offset": position["offset"], "epoch": position["epoch"] or epoch}
        confirmed = await bob.subscribe(f"conversation:{tag}", position=asked)
        assert confirmed["recovered"] is False
        assert confirmed.get("replayed", 0) == 0
        assert confirmed["position"] == {"offset": 10, "epoch": epoch}
        await bob.refute("new_message")
        await alice.say(tag, "live")
        assert await numbers(bob, 1) == [11]


async def test_recovery_reaches_behind_the_ring_into_the_log(serve: Callable[..., Server]) -> None:
    server = serve("conversations.history=8", "limits.enabled=false")
    async with server, clients(server, "alice", "bob", "carol") as (alice, bob, carol):
        epoch = (await alice.subscribe("conversation:1"))["position"]["epoch"]
        await asyncio.gather(*(alice.say("1", str(number)) for number in range(2_500)))
        confirmed = await bob.subscribe("conversation:1", position={"offset": 100, "epoch": epoch})
        assert (confirmed["recovered"], confirmed["replayed"]) == (True, 2_400)
        assert await numbers(bob, 2_400) == [*range(101, 2_501)]
        await carol.subscribe("conversation:1", last=1000)
        assert await numbers(carol, 1000) == [*range(1_501, 2_501)]


async def test_nothing_is_missed_or_doubled_by_who_joins_in_the_middle_of_a_stream(
    serve: Callable[..., Server],
) -> None:
    """Replay and live meet without a gap: every joiner sees one run of consecutive numbers up to the end."""
    async with (
        serve("conversations.history=16", "limits.enabled=false") as server,
        await server.connect("alice") as alice,
    ):
        epoch = (await alice.subscribe("conversation:1"))["position"]["epoch"]
        ends = asyncio.Event()

        async def joiner(name: str, seen: int) -> list[int]:
            await asyncio.sleep(seen / 400)
            async with await server.connect(name) as client:
                await client.subscribe("conversation:1", position={"offset": seen, "epoch": epoch})
                await ends.wait()
                got: list[int] = []
                while not got or got[-1] < 600:
                    got += await numbers(client, 1)
                return got

        joiners = [asyncio.create_task(joiner(f"j{n}", n * 25)) for n in range(20)]
        for number in range(600):
            await alice.send("send_message", {"conversationId": "1", "content": str(number)}, id=number)
            if number % 20 == 0:
                await asyncio.sleep(0.02)
        await alice.answer(599)
        ends.set()
        for n, task in enumerate(joiners):
            seen = await task
            assert seen == [*range(seen[0], 601)]
            assert seen[0] <= n * 25 + 1


async def test_history_pages_from_a_position_to_the_end(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        epoch = (await alice.subscribe(f"conversation:{tag}"))["position"]["epoch"]
        for number in range(10):
            await alice.say(tag, str(number))
        seen: list[int] = []
        position: dict[str, Any] = {"offset": 0, "epoch": epoch}
        for _ in range(10):
            frame = await alice.ask("history", {"channel": f"conversation:{tag}", "position": position, "limit": 4})
            assert frame["type"] == "history"
            data = frame["data"]
            assert data["channel"] == f"conversation:{tag}"
            assert data["position"] == {"offset": 10, "epoch": epoch}
            assert all(event["type"] == "new_message" for event in data["events"])
            seen += [event["offset"] for event in data["events"]]
            if data["next"] is None:
                break
            position = data["next"] if isinstance(data["next"], dict) else {"offset": data["next"], "epoch": epoch}
        assert seen == [*range(1, 11)]


async def test_one_page_of_a_user_waits_where_one_may_and_more_are_refused(serve: Callable[..., Server]) -> None:
    server = serve("limits.user_reads_waiting_max=1", "conversations.history=8", "limits.enabled=false", api=True)
    async with server, clients(server, "alice", "bob") as (alice, bob):
        for number in range(100):
            assert (await alice.say("1", "x" * 5_000))["number"] == number + 1
        epoch = (await bob.subscribe("conversation:1"))["position"]["epoch"]
        channel = {"channel": "conversation:1", "position": {"offset": 0, "epoch": epoch}, "limit": 1000}
        for _ in range(20):
            assert (await alice.ask("history", channel))["type"] == "history", "one at a time is never refused"
        async with clients(server, *["alice"] * 20) as others:
            for id in range(3):
                for other in others:  # a connection alone has one page made at a time
                    await other.send("history", channel, id=id)
            answers = [await other.answer(id) for other in others for id in range(3)]
        refused = [answer["data"] for answer in answers if answer["type"] == "error"]
        assert 0 < len(refused) < 60
        assert {(data["code"], data["retryAfterMs"]) for data in refused} == {("overloaded", 1_000)}
        assert (await bob.ask("history", channel))["type"] == "history", "of another user one may wait as well"
        status, figures = await asyncio.to_thread(scrape, server)
        assert status == 200
        assert figures["realtime_log_pages_refused_total"] == len(refused)


async def test_history_needs_no_subscription_and_gives_the_last(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        for number in range(5):
            await alice.say(tag, str(number))
        data = (await bob.ask("history", {"channel": f"conversation:{tag}", "last": 2}))["data"]
        assert [event["data"]["content"] for event in data["events"]] == ["3", "4"]
        empty = (await bob.ask("history", {"channel": f"conversation:{tag}none", "last": 2}))["data"]
        assert (empty["events"], empty["next"]) == ([], None)
        await alice.say(tag, "live")
        await bob.refute("new_message")


async def test_history_of_an_epoch_that_is_gone_is_not_recoverable(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        await alice.say(tag, "one")
        position = {"offset": 0, "epoch": "another"}
        frame = await alice.ask("history", {"channel": f"conversation:{tag}", "position": position})
        assert (frame["type"], frame["data"]["code"]) == ("error", "not_recoverable")


async def test_history_is_at_most_a_mebibyte_and_says_where_to_go_on(server: Server, tag: str) -> None:
    async with await server.connect() as alice:
        for _ in range(5):
            await alice.say(tag, "x" * 400_000)
        frame = await alice.ask("history", {"channel": f"conversation:{tag}", "last": 5})
        assert len(json.dumps(frame, separators=(",", ":"))) <= 1_048_576 + 1_000
        assert 1 <= len(frame["data"]["events"]) <= 3


async def test_second_subscribe_with_a_position_replays_from_there_and_live_events_follow(
    server: Server, tag: str
) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        first = await bob.subscribe(f"conversation:{tag}")
        for number in range(10):
            await alice.say(tag, str(number))
        assert await numbers(bob, 10) == [*range(1, 11)]
        again = await bob.subscribe(f"conversation:{tag}", position={**first["position"], "offset": 4})
        assert (again["recovered"], again["position"]["offset"], again["head"]) == (True, 4, 10)
        await alice.say(tag, "live")
        assert await numbers(bob, 7) == [*range(5, 12)]
        await bob.refute("new_message")


async def test_link_lost_in_mid_replay_goes_on_from_the_position_of_the_confirmation(
    serve: Callable[..., Server],
) -> None:
    async with serve("limits.enabled=false", "limits.outbox_soft_bytes=4096") as server:
        async with await server.connect("alice") as alice:
            for number in range(200):
                await alice.say("1", f"{number} {'x' * 1_000}")
        async with await server.connect("bob", subprotocols=["realtime.v1"]) as bob:
            position = (await bob.subscribe("conversation:1", last=150))["position"]
            for expected in range(51, 61):
                position["offset"] = (await bob.expect("new_message"))["offset"]
                assert position["offset"] == expected
            bob.drop()
        async with await server.connect("bob", subprotocols=["realtime.v1"]) as bob:
            position = (await bob.subscribe("conversation:1", position=position))["position"]
            assert position["offset"] == 60
            bob.drop()
        async with await server.connect("bob", subprotocols=["realtime.v1"]) as bob:
            await bob.subscribe("conversation:1", position=position)
            assert await numbers(bob, 140) == [*range(61, 201)]


async def test_typing_is_never_replayed(server: Server, tag: str) -> None:
    async with clients(server, "alice", "bob") as (alice, bob):
        await alice.say(tag, "one")
        await alice.ask("typing_start", {"conversationId": tag})
        await bob.subscribe(f"conversation:{tag}", last=50)
        assert await numbers(bob, 1) == [1]
        await bob.refute("typing_indicator")


async def test_acknowledged_messages_survive_kill_9_and_the_position_gets_exactly_what_was_missed(
    serve: Callable[..., Server],
) -> None:
    async with serve("limits.enabled=false") as server:
        alice, bob = await server.connect("alice"), await server.connect("bob")
        confirmed = await bob.subscribe("conversation:1")
        stored = [await alice.say("1", f"before {n}", clientMessageId=f"b{n}") for n in range(20)]
        assert await numbers(bob, 20) == [*range(1, 21)]
        bob.drop()
        stored += [await alice.say("1", f"missed {n}", clientMessageId=f"m{n}") for n in range(20)]
        server.kill()
        await server.start()
        async with clients(server, "alice", "bob") as (alice, bob):
            position = {"offset": 20, "epoch": confirmed["position"]["epoch"]}
            again = await bob.subscribe("conversation:1", position=position)
            assert (again["recovered"], again["replayed"]) == (True, 20)
            for expected in stored[20:]:
                assert (await bob.expect("new_message"))["data"] == expected
            # What was acknowledged is known by its id, and numbering goes on where it was.
            assert await alice.say("1", "missed 5", clientMessageId="m5") == stored[25]
            assert (await alice.say("1", "after"))["number"] == 41
            await bob.expect("new_message", content="after")
            await bob.refute("new_message")


async def test_kill_9_in_the_middle_of_a_burst_loses_nothing_acknowledged(serve: Callable[..., Server]) -> None:
    async with serve("limits.enabled=false") as server:
        for attempt in range(3):
            conversation = f"burst{attempt}"
            alice = await server.connect("alice")
            for number in range(3_000):
                message = {"conversationId": conversation, "content": str(number), "clientMessageId": str(number)}
                await alice.send("send_message", message, id=number)
                if number == 1_000:
                    await alice.answer(500)
            server.kill()
            await alice.closed()
            acknowledged = {frame["data"]["number"]: frame["data"] for frame in alice.answers()}
            assert acknowledged
            await server.start()
            async with await server.connect("bob") as bob:
                epoch = (await bob.subscribe(f"conversation:{conversation}x"))["position"]["epoch"]
                position = {"offset": 0, "epoch": epoch}
                again = await bob.subscribe(f"conversation:{conversation}", position=position)
                found = [(await bob.expect("new_message"))["data"] for _ in range(again["replayed"])]
            assert [message["number"] for message in found] == [*range(1, len(found) + 1)]
            assert [int(message["content"]) for message in found] == [*range(len(found))]
            for number, message in acknowledged.items():
                assert found[number - 1] == message


async def test_new_data_directory_is_a_new_epoch(serve: Callable[..., Server]) -> None:
    epochs = []
    for _ in range(2):
        async with serve() as server, await server.connect() as alice:
            epochs.append((await alice.subscribe("conversation:1"))["position"]["epoch"])
    assert epochs[0] != epochs[1]
