"""The examples do what they say."""

import importlib.util
from pathlib import Path

import pytest

from realtime import Realtime
from realtime.testing import TestApp

EXAMPLES = Path(__file__).parents[2] / "examples"
WITH_A_HOST = {"fanout_fastapi", "inside_fastapi", "inside_litestar", "mount_fastapi"}
"""Those that need a web server are tested over real sockets."""


def load(name: str) -> Realtime:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = module.app
    assert isinstance(app, Realtime)
    return app


def test_every_example_is_tested_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"echo", "vote", *WITH_A_HOST}


async def test_echo_sends_everything_back_as_it_came() -> None:
    async with TestApp(load("echo")) as t:
        peer = await t.connect(path="/echo")
        for text in ("", "hello", "é" * 1000):
            await peer.send_text(text)
            await peer.expect_message(text)
        await peer.send_binary(bytes(range(256)))
        await peer.expect_message(bytes(range(256)))


async def test_votes_are_counted_and_told_to_whoever_watches() -> None:
    async with TestApp(load("vote")) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        await bob.send("subscribe", channel="poll:lunch")
        await alice.ack("vote", poll="lunch", choice=1)
        assert await bob.ack("vote", poll="lunch", choice=1) == {"poll": "lunch", "votes": [0, 2, 0, 0]}
        await bob.expect("tally", votes=[0, 1, 0, 0])
        await bob.expect("tally", votes=[0, 2, 0, 0])
        refused = await alice.command("vote", poll="lunch", choice=9)
        assert (refused.data["code"], refused.data["path"]) == ("not_found", "data.choice")


@pytest.mark.parametrize(("user", "answer"), [("alice", "error"), ("ann@staff", "subscription_confirmed")])
async def test_polls_of_the_staff_are_closed_to_others(user: str, answer: str) -> None:
    async with TestApp(load("vote")) as t:
        peer = await t.connect(user=user)
        assert (await peer.command("subscribe", channel="poll:staff-party")).type == answer
