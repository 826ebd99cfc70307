"""One JSON: the table of docs/reference/protocol.md, row by row, on a socket and over HTTP."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realtime.base.config import LimitSettings
from tests.unit.api.asking import JSON, SERVICE_KEY, World

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "protocol.md"
COUNTS: dict[str, Callable[[int], str]] = {
    "containers within one another": lambda count: "[" * count + "]" * count,
    "members of one object": lambda count: "{" + ",".join(f'"k{n}":0' for n in range(count)) + "}",
    "values of a message or body": lambda count: "[" + ",".join(["[]"] * count) + "]",
    "bytes of one number": lambda count: "0." + "1" * (count - 2),
}
AROUND = {
    "socket": {"containers within one another": 3, "values of a message or body": 8},
    "body": {"containers within one another": 2, "values of a message or body": 4},
    "event": {"containers within one another": 3, "values of a message or body": 5},
}
"""What stands around the row's value, and counts, too."""


def rows() -> list[tuple[str, str, str]]:
    """Return the rows of the table: rule, what is accepted, what is refused."""
    section = PAGE.read_text("utf-8").split("\n### JSON\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in lines]  # type: ignore[misc]


def examples() -> list[tuple[str, bool]]:
    """Return each value that the table shows, and whether it is accepted."""
    return [
        (value, accepted)
        for rule, *cells in rows()
        if not cells[0][0].isdigit()
        for accepted, cell in zip((True, False), cells, strict=True)
        for value in re.findall(r"`([^`]+)`", cell)
    ]


def counted(place: str) -> list[tuple[str, bool]]:
    """Return a value at and above each count of the table."""
    found = []
    for rule, accepted, refused in rows():
        if accepted[0].isdigit():
            name = next(name for name in COUNTS if rule.startswith(name))
            around = AROUND[place].get(name, 0)
            for count, is_taken in ((accepted, True), (refused, False)):
                found.append((COUNTS[name](int(count.replace(",", "")) - around), is_taken))
    assert len(found) == 2 * len(COUNTS)
    return found


async def answered_by(world: World, place: str, value: str) -> tuple[bool, Any, str | None]:
    """Send a value in the metadata of a message, or the data of an event. Returns whether it was taken, id and path."""
    if place == "socket":
        peer = await world.test.connect("ann")
        text = '{"type":"send_message","id":"c1","data":{"conversationId":"7","content":"x","metadata":{"a":VALUE}}}'
        await peer.send_text(text.replace("VALUE", value))
        frame = next(frame for frame in peer.frames if frame.type in {"ack", "error"})
        path = frame.data.get("path") if frame.type == "error" else None
        await peer.close()
        return frame.type == "ack", frame.id, path
    if place == "body":
        headers = {**JSON, "authorization": f"Bearer {world.token('ann')}"}
        body = '{"content":"x","metadata":{"a":VALUE}}'.replace("VALUE", value)
        answer = await world.ask("/api/conversations/7/messages", headers, "POST", body.encode())
    else:
        headers = {**JSON, "authorization": f"Bearer {SERVICE_KEY}"}
        body = '[{"type":"t","all":true,"data":0},{"type":"t","all":true,"data":{"a":VALUE}}]'.replace("VALUE", value)
        answer = await world.ask("/api/events", headers, "POST", body.encode())
    if answer.status < 300:
        return True, None, None
    status, code, path = answer.problem
    assert (status, code) == (400, "invalid_message")
    return False, None, path


PLACES = ("socket", "body", "event")
PATHS = {"socket": "data.metadata.a", "body": "metadata.a", "event": "[1].data.a"}


@pytest.mark.parametrize("place", PLACES)
async def test_the_table_of_the_protocol_holds_at_every_door(place: str) -> None:
    async with World(limits=LimitSettings(enabled=False)) as world:
        for value, accepted in [*examples(), *counted(place)]:
            taken, id, path = await answered_by(world, place, value)
            assert taken == accepted, f"{place}: {value[:60]}"
            if place == "socket":
                assert id == "c1", f"{value[:60]}"
            if not accepted and path is not None:
                assert path.startswith(PATHS[place]), f"{place}: {value[:60]}"


async def test_half_of_a_pair_is_replaced_on_a_socket_and_refused_over_http() -> None:
    async with World() as world:
        assert (await answered_by(world, "socket", '"\\ud83d"'))[0]
        assert await answered_by(world, "body", '"\\ud83d"') == (False, None, "metadata.a")
        assert await answered_by(world, "event", '"\\ud83d"') == (False, None, "[1].data.a")


# null is absent.


BODIES: list[tuple[str, str, dict[str, object]]] = [
    (
        "POST",
        "/api/conversations/7/messages",
        {"content": "x", "role": "user", "metadata": {}, "clientMessageId": "m", "userId": "ann"},
    ),
    ("PATCH", "/api/conversations/7/messages/1", {"content": "y", "metadata": {}}),
    *(
        ("POST", "/api/events", {"type": "told", "data": 1, "id": "e", name: value, "all": False} | more)
        for name, value, more in [
            ("channel", "news:1", {}),
            ("conversationId", "7", {}),
            ("userId", "ann", {}),
            ("channel", None, {"all": True}),
        ]
    ),
]


def _told(answer: Any) -> tuple[int, object]:
    """Return what does not differ from one time to the next."""
    found = answer.json
    for name in ("id", "createdAt", "updatedAt", "number"):
        found.pop(name, None)
    return answer.status, found


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
async def test_a_member_of_a_body_that_is_null_is_answered_as_a_missing_one(
    method: str, path: str, body: dict[str, object]
) -> None:
    for name in body:
        told = []
        for given in ({**body, name: None}, {key: value for key, value in body.items() if key != name}):
            async with World() as world:
                posted = await world.call(
                    "POST", "/api/conversations/7/messages", {"content": "x", "userId": "ann"}, key=True
                )
                assert posted.status == 201
                told.append(_told(await world.call(method, path, given, key=True)))
        assert told[0] == told[1], name


async def test_a_member_of_send_message_that_is_null_is_answered_as_a_missing_one() -> None:
    data = {"conversationId": "7", "content": "x", "metadata": {}, "clientMessageId": "m"}
    for name in data:
        told = []
        for given in ({**data, name: None}, {key: value for key, value in data.items() if key != name}):
            async with World() as world:
                peer = await world.test.connect("ann")
                frame = await peer.command("send_message", **given)
                found = json.loads(frame.raw)
                if frame.type == "ack":
                    found["data"].pop("id")
                told.append(found)
        assert told[0] == told[1], name


async def test_a_null_in_what_is_passed_on_stays() -> None:
    async with World() as world:
        answer = await world.call(
            "POST", "/api/conversations/7/messages", {"content": "x", "metadata": {"a": None}}, user="ann"
        )
        assert answer.json["metadata"] == {"source": "http", "a": None}


async def test_a_long_text_in_an_error_holds_nobody_up() -> None:
    text = " - at `$" * 100_000
    async with World() as world:
        body = json.dumps({"type": "t", "all": text}).encode()
        headers = {**JSON, "authorization": f"Bearer {SERVICE_KEY}"}
        answer = await world.ask("/api/events", headers, "POST", body)
        assert answer.problem == (400, "invalid_message", "all")
        assert len(answer.body) < 1000
