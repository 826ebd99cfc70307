"""An app of a user's own over real sockets: handlers, rights, raw endpoints, hooks, errors, order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.kit import Client, Frame, Server, clients, eventually, token_for

APPS = Path(__file__).parent / "apps"


@pytest.fixture
async def votes(serve: Callable[..., Server]) -> AsyncIterator[Server]:
    """The app of apps/votes.py, served."""
    server = serve("handlers.timeout_s=1.5", app=f"{APPS / 'votes.py'}:app")
    async with server:
        yield server


async def test_what_a_handler_returns_is_the_data_of_the_ack(votes: Server) -> None:
    async with await votes.connect() as alice:
        frame = await alice.ask("vote", {"poll": "public1", "choice": 1})
        assert (frame["type"], frame["data"]) == ("ack", {"votes": 1})
        await alice.send("vote", {"poll": "public1", "choice": 1})
        assert (await alice.ask("vote", {"poll": "public1", "choice": 2}))["data"] == {"votes": 3}
        await alice.refute("ack")


async def test_refused_is_an_error_with_its_code_and_other_exceptions_are_internal(votes: Server) -> None:
    async with await votes.connect() as alice:
        refused = (await alice.ask("vote", {"poll": "public1", "choice": 9}))["data"]
        assert (refused["code"], refused["message"]) == ("not_found", "no such choice")
        failed = (await alice.ask("vote", {"poll": "public1", "choice": -1}))["data"]
        assert (failed["code"], failed["message"]) == ("internal", "Internal error")
        assert await alice.is_alive()
    await eventually(lambda: "a secret that alice must not see" in votes.output)


@pytest.mark.parametrize(
    ("type_", "data", "path"),
    [
        ("vote", {"poll": "p", "choice": "one"}, "data.choice"),
        ("vote", {"poll": 5, "choice": 1}, "data.poll"),
        ("vote", {"poll": "p", "choice": 1, "whyNot": []}, "data.whyNot"),
        ("nap", {"seconds": "long"}, "data.seconds"),
        ("write", {"ledger": "l", "text": 7}, "data.text"),
    ],
)
async def test_wrong_payload_is_answered_with_the_path_of_the_field(
    votes: Server, type_: str, data: object, path: str
) -> None:
    async with await votes.connect() as alice:
        frame = await alice.ask(type_, data)
        assert (frame["data"]["code"], frame["data"]["message"]) == ("invalid_message", "Invalid message format")
        assert frame["data"]["path"] == path


async def test_hook_decides_who_joins(votes: Server) -> None:
    async with clients(votes, "alice", "bob") as (alice, bob):
        await alice.subscribe("poll:public1")
        await alice.subscribe("poll:alice")
        for channel in ("poll:alice", "poll:secret", "poll:alice:more", "other:x"):
            frame = await bob.ask("subscribe", {"channel": channel})
            assert (frame["type"], frame["data"]["code"]) == ("error", "forbidden"), channel
        # The hook granted subscribe alone.
        frame = await alice.ask("publish", {"channel": "poll:public1", "event": "x", "data": {}})
        assert frame["data"]["code"] == "forbidden"
        await bob.ask("vote", {"poll": "public1", "choice": 1})
        assert (await alice.expect("tally"))["data"] == {"votes": 1}


async def test_subscribes_that_a_hook_decides_are_answered_in_order_with_what_follows_them(votes: Server) -> None:
    async with clients(votes, "alice", about="-") as (alice,):
        for number in range(30):
            await alice.socket.send(
                f'{{"type":"subscribe","data":{{"channel":"poll:public{number}"}},"id":{2 * number}}}'
                if number % 3
                else f'{{"type":"subscribe","data":{{"channel":"poll:secret{number}"}},"id":{2 * number}}}'
            )
            await alice.socket.send(f'{{"type":"whoami","id":{2 * number + 1}}}')
        answers = [await alice.receive() for _ in range(60)]
        assert [frame["id"] for frame in answers] == [*range(60)]
        assert [frame["type"] for frame in answers[::2]] == ["error", *["subscription_confirmed"] * 2] * 10
        assert {frame["type"] for frame in answers[1::2]} == {"ack"}


async def test_command_behind_a_subscribe_that_a_hook_decides_takes_effect_after_it(votes: Server) -> None:
    async with clients(votes, "alice") as (alice,):
        for number in range(30):
            await alice.send("subscribe", {"channel": f"poll:public{number}"})
            await alice.send("vote", {"poll": f"public{number}", "choice": 1})
        for number in range(30):
            assert (await alice.expect("tally", votes=1))["channel"] == f"poll:public{number}"


async def test_handler_over_its_time_is_answered_timeout(votes: Server) -> None:
    async with await votes.connect() as alice:
        frame = await alice.ask("nap", {"seconds": 30})
        assert (frame["type"], frame["data"]["code"]) == ("error", "timeout")
        assert (await alice.ask("nap", {"seconds": 0.01}))["data"] == "awake"


async def test_returned_publish_is_acknowledged_once_it_is_stored(votes: Server) -> None:
    async with clients(votes, "alice", "bob") as (alice, bob):
        await bob.subscribe("ledger:1")
        frame = await alice.ask("write", {"ledger": "1", "text": "first"})
        assert frame["type"] == "ack"
        event = await bob.expect("line")
        assert event["data"] == {"number": 1, "text": "first"}
        assert (event["offset"], event["userId"], event["channel"]) == (1, "alice", "ledger:1")
        votes.kill()
        await votes.start()
        async with await votes.connect("carol") as carol:
            await carol.subscribe("ledger:1", last=10)
            assert (await carol.expect("line"))["data"]["text"] == "first"


async def test_relay_inserts_checked_slices_with_their_types(votes: Server) -> None:
    async with clients(votes, "alice", "bob") as (alice, bob):
        for member in (alice, bob):
            await member.subscribe("board:1")
        for at in (7, "here", {"x": [1, 2.5, "ü"], "y": None}, True):
            await alice.send("point", {"board": "1", "at": at})
            frame = await bob.expect("pointed")
            assert frame["data"] == {"userId": "alice", "at": at, "label": "by alice"}


@pytest.mark.parametrize("subprotocols", [(), ("realtime.v1",)], ids=["legacy", "v1"])
async def test_relay_whose_member_is_null_or_missing_is_answered_one_error_with_its_path(
    votes: Server, subprotocols: tuple[str, ...]
) -> None:
    async with (
        await votes.connect("alice", subprotocols=subprotocols, about="-") as alice,
        await votes.connect("bob", about="-") as bob,
    ):
        await bob.subscribe("board:1")
        wrong = (({"board": "1", "at": None}, "data.at"), ({"board": "1"}, "data.at"), ({"board": None}, "data.board"))
        for data, path in wrong:
            for frame in (await alice.ask("point", data), await told(alice, "point", data)):
                assert (frame["type"], frame["data"]["code"], frame["data"]["path"]) == (
                    "error",
                    "invalid_message",
                    path,
                )
        assert await alice.is_alive()
        await alice.refute("error")
        # Nothing was relayed: the next is the first.
        await alice.send("point", {"board": "1", "at": 7})
        assert (await bob.expect("pointed"))["data"]["at"] == 7


async def told(client: Client, type: str, data: object) -> Frame:
    """Send a command without an id, as a legacy client does, and return the error that it is told."""
    await client.send(type, data)
    return await client.expect("error")


async def test_session_that_a_handler_closes_gets_the_code(votes: Server) -> None:
    v1 = await votes.connect("alice", subprotocols=["realtime.v1"])
    await v1.send("goodbye")
    assert await v1.closed() == (4503, "removed by the operator")
    first_version = await votes.connect("bob")
    await first_version.send("goodbye")
    # The first version's client stops reconnecting only at 1000.
    assert await first_version.closed() == (1000, "removed by the operator")


async def test_raw_endpoint_echoes_text_and_binary_without_a_token(votes: Server) -> None:
    async with connect(f"ws://127.0.0.1:{votes.port}/echo", proxy=None, compression=None) as socket:
        for message in ("hello", "", "\U0001f600" * 1000, b"", b"\x00\xff" * 5000, "x" * 200_000):
            await socket.send(message)
            assert await socket.recv() == message


async def test_raw_endpoint_needs_a_token_unless_it_says_otherwise(votes: Server) -> None:
    address = f"ws://127.0.0.1:{votes.port}/private"
    with pytest.raises(InvalidStatus) as refused:
        await connect(address, proxy=None)
    assert refused.value.response.status_code == 401
    async with connect(f"{address}?token={token_for('alice')}", proxy=None) as socket:
        await socket.send("hello")
        assert await socket.recv() == "alice: 'hello'"


async def test_lifespan_is_around_everything(votes: Server) -> None:
    assert await votes.stop() == 0
    assert votes.output.count("the lifespan has ended") == 1


async def test_authenticate_hook_decides_from_the_upgrade(serve: Callable[..., Server]) -> None:
    async with serve(app=f"{APPS / 'doors.py'}:app") as server:
        for headers, status in (({}, 401), ({"X-User": ""}, 401), ({"X-User": "crash"}, 500)):
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.url, additional_headers=headers, proxy=None)
            assert refused.value.response.status_code in {status, 503}
        alice = await server.connect("nobody", token="", additional_headers={"X-User": "alice"}, established=False)
        async with alice:
            assert (await alice.receive())["data"]["userId"] == "alice"
            await alice.expect("greeting", user="alice")
            assert (await alice.say("1", "hi"))["userId"] == "alice"


async def test_example_apps_of_the_repository_serve(serve: Callable[..., Server]) -> None:
    examples = APPS.parent.parent.parent / "examples"
    # The one without is a server of its own make, with a test of its own.
    for path in sorted(path for path in examples.glob("*.py") if "Realtime(" in path.read_text()):
        async with serve(app=str(path)) as server:
            assert server.is_running()
            assert await server.stop() == 0, server.output


async def test_echo_example_echoes(serve: Callable[..., Server]) -> None:
    server = serve(app=f"{APPS.parent.parent.parent / 'examples' / 'echo.py'}:app")
    async with server, connect(f"ws://127.0.0.1:{server.port}/echo", proxy=None) as socket:
        await socket.send("hello")
        assert await asyncio.wait_for(socket.recv(), 10) == "hello"


async def test_the_address_that_is_printed_has_the_path_of_the_app(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "live.py").write_text('from realtime import Realtime\n\napp = Realtime(path="/live")\n')
    async with serve(app=str(tmp_path / "live.py")) as server:
        printed = next(line.split()[1] for line in server.output.splitlines() if "WebSocket" in line)
        assert printed == f"ws://127.0.0.1:{server.port}/live"
        async with connect(f"{printed}?token={token_for('alice')}", proxy=None) as socket:
            assert "connection_established" in await asyncio.wait_for(socket.recv(), 10)
