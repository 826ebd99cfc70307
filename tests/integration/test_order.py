"""Commands of one session take effect in the order they came, whoever carries them out."""

import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit import RawSocket, Server, client_frame, token_for

APPS = Path(__file__).parent / "apps"
KINDS = ("plain", "later", "thread", "gate", "guarded", "never", "never", "subscribe", "unsubscribe", "history")


@pytest.fixture
async def steps(serve: Callable[..., Server]) -> AsyncIterator[Server]:
    """The app of apps/steps.py, served."""
    async with serve(app=f"{APPS / 'steps.py'}:app") as server:
        yield server


def command(kind: str, n: int, user: str) -> dict[str, object]:
    """Return command `n`."""
    data: dict[str, object]
    match kind:
        case "gate":
            kind, data = "subscribe", {"channel": f"gate:{user}:{n}"}
        case "never":
            kind, data = "unsubscribe", {"channel": f"never:{n}"}
        case "subscribe" | "unsubscribe":
            data = {"channel": f"news:{user}"}
        case "history":
            data = {"channel": f"user:{user}", "limit": 0}
        case _:
            data = {"n": n, "channel": f"{user}:{n}"}
    return {"type": kind, "data": data, "id": n}


async def run(server: Server, user: str, kinds: list[str]) -> list[dict[str, Any]]:
    """Send all commands in one write; return what came, up to the answer to one more."""
    sent = [command(kind, n, user) for n, kind in enumerate(kinds)]
    sent.append({"type": "called", "id": "last"})
    frames = b"".join(client_frame(0x81, json.dumps(each).encode()) for each in sent)
    async with await RawSocket.open(server.port) as socket:
        await socket.upgrade(f"/ws?token={token_for(user)}")
        await socket.send(frames)
        came: list[dict[str, Any]] = []
        while not came or came[-1].get("id") != "last":
            came.append(json.loads((await socket.frame())[1]))
        return came


async def test_240_pipelined_commands_take_effect_in_the_order_they_came(steps: Server, tag: str) -> None:
    for seed in range(4):
        dice, user = random.Random(seed), f"{tag}{seed}"
        kinds = dice.choices(KINDS, k=240)
        came = await run(steps, user, kinds)
        answers = [frame["id"] for frame in came if "id" in frame]
        assert sorted(answers[:-1]) == list(range(240))
        # What Python was asked, in order; a guarded command asks its hook and then runs.
        python = {"plain": 1, "later": 1, "thread": 1, "gate": 1, "guarded": 2}
        assert came[-1]["data"] == [n for n, kind in enumerate(kinds) for _ in range(python.get(kind, 0))]
        # What the engine answers at once.
        for kind in ("never", "history"):
            of_kind = [n for n in answers if isinstance(n, int) and kinds[n] == kind]
            assert of_kind == sorted(of_kind), kind
        # Whoever is subscribed hears what is published meanwhile, and nobody else.
        is_subscribed, heard = False, []
        for n, kind in enumerate(kinds):
            if kind in {"subscribe", "unsubscribe"}:
                is_subscribed = kind == "subscribe"
            elif is_subscribed:
                heard += [n] * python.get(kind, 0)
        assert [frame["data"]["n"] for frame in came if frame["type"] == "noted"] == heard


async def test_unsubscribes_behind_a_handler_are_answered_in_the_order_they_came(steps: Server, tag: str) -> None:
    came = await run(steps, tag, ["later"] + ["never"] * 239)
    assert [frame["id"] for frame in came if frame["type"] == "unsubscription_confirmed"] == list(range(1, 240))


async def test_unsubscribe_and_subscribe_behind_64_commands_end_subscribed(steps: Server, tag: str) -> None:
    kinds = ["subscribe", "later", *["never"] * 63, "unsubscribe", "subscribe", "plain"]
    came = await run(steps, tag, kinds)
    assert [frame["data"]["n"] for frame in came if frame["type"] == "noted"] == [1, len(kinds) - 1]
