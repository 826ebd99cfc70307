"""Listeners: what they hear, in which order, and that a slow one loses nothing that is stored."""

# ruff: noqa: ARG005 -- what a listener takes is its contract

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct

from realtime import Conversations, Heard, Realtime
from realtime.base.charges import Charges
from realtime.base.config import HandlerSettings, Settings
from realtime.base.errors import Refused
from realtime.control.broadcaster import History
from realtime.control.listening import _ENVELOPE_BYTES, Listeners, bind
from realtime.testing import TestApp
from tests.unit.engine import STAMP


class Tally(Struct):
    votes: int


@dataclass
class Message:
    conversation_id: str


def frame(type: str = "tally", data: object = None, *, offset: int | None = None, **more: object) -> bytes:
    members = {"type": type, "data": data, "timestamp": STAMP, "offset": offset, **more}
    return msgspec.json.encode({name: value for name, value in members.items() if value is not None})


class Ears:
    """Listeners over a channel that keeps its events here."""

    def __init__(self, *listeners: Any, waiting_max: int = 100, bytes_max: int = 1 << 22) -> None:
        self.charges = Charges(bytes_max, bytes_max)
        self.kept: dict[int, bytes] = {}
        self.read: list[tuple[str, int | None]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.fails = False
        self.listeners = Listeners(listeners, waiting_max, self.charges, self.past, slow_s=0.005, spawn=self.spawn)

    async def past(self, channel: str, *, after: int | None, limit: int) -> History:
        self.read.append((channel, after))
        await asyncio.sleep(0)
        if self.fails:
            raise Refused("unavailable", "The history could not be read")
        offsets = sorted(offset for offset in self.kept if offset > (after or 0))[: min(limit, 3)]
        return History([Raw(self.kept[offset]) for offset in offsets], max(self.kept, default=0), "e")

    def spawn(self, work: Any) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def hear(self, channel: str, event: bytes) -> None:
        self.listeners.heard((0, channel, event))

    def publish(self, *offsets: int, channel: str = "poll:1", type: str = "tally") -> None:
        """Store events and let them be heard."""
        for offset in offsets:
            self.kept[offset] = frame(type, {"votes": offset}, offset=offset)
            self.hear(channel, self.kept[offset])

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)


def slow(heard: list[object], gate: asyncio.Semaphore, *types: str) -> Any:
    async def listener(event: Heard[Any]) -> None:
        await gate.acquire()
        heard.append(event.type if event.offset is None else event.offset)

    return bind(listener, "poll:*", types)


async def test_a_listener_hears_the_events_of_its_channels_and_types_at_once() -> None:
    heard: list[Heard[Any]] = []
    ears = Ears(bind(heard.append, "poll:*", ["tally"]))
    ears.hear("poll:1", frame(data={"votes": 1}, offset=5, userId="ann", requestId="r1"))
    ears.hear("poll:1", frame("typing_indicator"))
    ears.hear("board:1", frame())
    assert heard == [
        Heard(
            channel="poll:1",
            type="tally",
            data={"votes": 1},
            user_id="ann",
            offset=5,
            timestamp=STAMP,
            request_id="r1",
        )
    ]


async def test_the_annotation_says_what_the_data_becomes() -> None:
    heard: list[object] = []

    def tally(event: Heard[Tally]) -> None:
        heard.append(event.data)

    def message(event: Heard[Message]) -> None:
        heard.append(event.data)

    def raw(event: Heard[Raw]) -> None:
        heard.append(bytes(event.data))

    def plain(event: Heard) -> None:  # type: ignore[type-arg]
        heard.append(event.data)

    ears = Ears(
        bind(tally, "poll:*", ()), bind(raw, "**", ()), bind(message, "conversation:*", ()), bind(plain, "**", ())
    )
    ears.hear("poll:1", frame(data={"votes": 3}))
    ears.hear("conversation:1", frame(data={"conversationId": "7"}))
    assert heard == [
        Tally(3),
        b'{"votes":3}',
        {"votes": 3},
        b'{"conversationId":"7"}',
        Message("7"),
        {"conversationId": "7"},
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_fails_disturbs_nobody(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[object] = []

    def fail(event: Heard[Tally]) -> None:
        if event.data.votes == 2:
            raise RuntimeError("out of order")
        if event.data.votes == 3:
            raise asyncio.CancelledError if is_async else KeyError
        heard.append(event.data.votes)

    async def fail_later(event: Heard[Tally]) -> None:
        fail(event)

    ears = Ears(
        bind(fail_later if is_async else fail, "poll:*", ()), bind(lambda event: heard.append("other"), "**", ())
    )
    for data in ({"votes": 1}, {"votes": 2}, {"votes": 3}, {"votes": "x"}, {"votes": 5}):
        ears.hear("poll:1", frame(data=data))
        await ears.settle()
    assert heard == ([1, "other", "other", "other", "other", 5, "other"] if not is_async else heard)
    assert [item for item in heard if item != "other"] == [1, 5]
    assert heard.count("other") == 5
    assert caplog.text.count("failed on tally of poll:1") == 3
    assert "out of order" in caplog.text


async def test_an_async_listener_hears_a_channel_in_order_and_channels_do_not_wait_for_each_other() -> None:
    heard: list[tuple[str, object]] = []
    gates = {"poll:1": asyncio.Semaphore(0), "poll:2": asyncio.Semaphore(0)}

    async def listener(event: Heard[Any]) -> None:
        await gates[event.channel].acquire()
        heard.append((event.channel, event.data))

    ears = Ears(bind(listener, "poll:*", ()))
    for number in (1, 2, 3):
        ears.hear("poll:1", frame(data=number))
        ears.hear("poll:2", frame(data=number))
    gates["poll:2"].release()
    gates["poll:2"].release()
    await ears.settle()
    assert heard == [("poll:2", 1), ("poll:2", 2)]
    for _ in range(3):
        gates["poll:1"].release()
    await ears.settle()
    assert heard[2:] == [("poll:1", 1), ("poll:1", 2), ("poll:1", 3)]
    gates["poll:2"].release()
    await ears.settle()
    assert all(task.done() for task in ears.tasks)


async def test_a_slow_listener_reads_what_is_stored_later_once_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate), waiting_max=4)
    ears.publish(*range(1, 21))
    for offset in range(21, 61):
        gate.release()
        await asyncio.sleep(0)
        ears.publish(offset)
    for _ in range(30):
        gate.release()
    await ears.settle()
    ears.publish(61, 62)
    await ears.settle()
    assert heard == [*range(1, 63)]
    assert "is behind" in caplog.text
    assert "were not kept" not in caplog.text
    assert ears.tasks[-1].done()
    ears.publish(63)
    gate.release()
    await ears.settle()
    assert heard[-1] == 63


async def test_bytes_that_wait_are_bounded_and_the_rest_is_read_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    event = len(frame(data={"votes": 1})) - len(frame(data="")) + 2 + _ENVELOPE_BYTES
    ears = Ears(slow(heard, gate), bytes_max=3 * event)
    ears.publish(1, 2, 3)
    assert (ears.charges.bytes, ears.charges.refused) == (3 * event, 0)
    ears.publish(4, 5, 6, 7)
    assert (ears.charges.bytes, ears.charges.refused) == (3 * event, 1)
    most = 0
    for _ in range(20):
        gate.release()
        await ears.settle()
        most = max(most, ears.charges.bytes)
    assert (heard, ears.charges.bytes) == ([1, 2, 3, 4, 5, 6, 7], 0)
    assert most <= 3 * event
    assert "were not kept" not in caplog.text


async def test_a_channel_whose_first_event_finds_no_room_is_read_from_that_event_on() -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate), waiting_max=2)
    for number in (1, 2):
        ears.hear("poll:full", frame(f"full {number}"))
    ears.publish(1, 2, 3, 4)
    for _ in range(10):
        gate.release()
    await ears.settle()
    assert sorted(heard, key=str) == [1, 2, 3, 4, "full 1", "full 2"]
    assert ears.read[0] == ("poll:1", 0)


async def test_what_is_stored_but_not_heard_yet_is_not_heard_twice() -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate), waiting_max=1)
    ears.publish(1, 2, 3)
    ears.kept[4] = frame(data={"votes": 4}, offset=4)
    for _ in range(10):
        gate.release()
    await ears.settle()
    assert heard == [1, 2, 3]
    ears.publish(4, 5)
    await ears.settle()
    assert heard == [1, 2, 3, 4, 5]


async def test_what_is_gone_is_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate), waiting_max=1)
    ears.publish(1, 2, 3, 4)
    ears.hear("poll:1", frame("typing_indicator"))
    del ears.kept[2], ears.kept[3]
    for _ in range(10):
        gate.release()
    await ears.settle()
    assert heard == [1, 4]
    assert "was too slow for poll:1: 3 events were not kept" in caplog.text


@pytest.mark.parametrize("trouble", ["log", "epoch"])
async def test_a_history_that_cannot_be_read_or_began_anew_lets_the_listener_go_on(
    trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate), waiting_max=1)
    ears.publish(11, 12)
    if trouble == "log":
        ears.fails = True
    else:
        ears.kept.clear()
        ears.publish(1)
    for _ in range(10):
        gate.release()
    await ears.settle()
    ears.publish(2)
    await ears.settle()
    assert heard == [11, 2]
    assert "events were not kept" in caplog.text


async def test_types_that_a_listener_does_not_want_take_no_room_and_are_not_read_back() -> None:
    heard: list[object] = []
    gate = asyncio.Semaphore(0)
    ears = Ears(slow(heard, gate, "tally"), waiting_max=2)
    for offset in range(1, 20):
        ears.publish(offset, type="tally" if offset % 5 == 0 else "noise")
    ears.publish(20)
    for _ in range(10):
        gate.release()
    await ears.settle()
    assert heard == [5, 10, 15, 20]


async def test_a_lane_that_is_cut_off_says_what_it_had_to_hear(caplog: pytest.LogCaptureFixture) -> None:
    ears = Ears(slow([], asyncio.Semaphore(0)), waiting_max=2)
    ears.publish(1, 2, 3, 4)
    await ears.settle()
    ears.tasks[0].cancel()
    await ears.settle()
    assert ears.tasks[0].cancelled()
    assert "was ended with 3 events of poll:1 to hear" in caplog.text


async def test_a_served_listener_hears_commands_relays_and_the_app_s_own_events_once_and_in_order() -> None:
    app, heard = Realtime(), list[tuple[str, object]]()
    app.include(Conversations())

    @app.listen("conversation:{id}")
    async def listener(event: Heard[Any]) -> None:
        await asyncio.sleep(0)
        heard.append((event.type, event.offset))
        if event.type == "new_message" and event.data["content"] == "question":
            await app.publish(event.channel, "new_message", {"content": "answer"}, number=True)

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.command("subscribe", channel="conversation:1")
        await alice.ack("send_message", conversation_id="1", content="question")
        await alice.send("typing_start", conversation_id="1")
        await app.publish("conversation:1", "conversation_updated", {"title": "x"})
        await app.publish("elsewhere", "tick", {})
        await t.settle()
        await alice.expect("new_message", content="answer")
        # Nobody is there, and it is heard all the same.
        await app.publish("conversation:2", "conversation_updated", {})
        await t.settle()
        assert heard.count(("typing_indicator", None)) == 1
    # The typing ended with the connection, which is heard too.
    assert heard[-1] == ("typing_indicator", None)
    assert sorted(type_ for type_, offset in heard if offset) == ["conversation_updated"] * 2 + ["new_message"] * 2
    assert [offset for type_, offset in heard if offset] == [1, 2, 3, 1]


async def test_a_served_listener_that_is_slow_hears_every_stored_event_once() -> None:
    app, heard = Realtime(), list[int | None]()
    app.policy("ledger:*", durable=True)
    gate = asyncio.Semaphore(0)

    @app.listen("ledger:*", "line")
    async def listener(event: Heard[Raw]) -> None:
        await gate.acquire()
        heard.append(event.offset)

    async with TestApp(app, Settings(handlers=HandlerSettings(listener_events_max=3))) as t:
        await asyncio.gather(*(app.publish("ledger:1", "line", {}) for _ in range(400)))
        assert t.control.router.busy == 1
        for _ in range(500):
            gate.release()
        await t.until(lambda: len(heard) == 400)
        assert heard == [*range(1, 401)]
        await app.publish("ledger:1", "line", {})
        await t.settle()
        assert heard[-1] == 401


async def test_listener_events_max_wait_and_one_more_puts_the_listener_behind() -> None:
    app, began = Realtime(), list[int | None]()
    gate = asyncio.Semaphore(0)

    @app.listen("poll:*", "tally")
    async def listener(event: Heard[Raw]) -> None:
        began.append(event.offset)
        await gate.acquire()

    async with TestApp(app, Settings(handlers=HandlerSettings(listener_events_max=3))) as t:
        charges = t.control.ledger.of("listeners")
        await app.publish("poll:1", "tally", {})
        await t.until(lambda: len(began) == 1)
        # That one is handled; these wait.
        for _ in range(3):
            await app.publish("poll:1", "tally", {})
        await t.settle()
        assert charges.refused == 0
        await app.publish("poll:1", "tally", {})
        await t.settle()
        assert charges.refused == 1
        for _ in range(5):
            gate.release()
        await t.until(lambda: not t.control.router.busy)
        assert len(began) == 4, "what is not stored is not kept above the bound"


def test_what_cannot_listen_is_refused_when_it_is_registered() -> None:
    app = Realtime()

    def wrong(event: int) -> None:
        """Take something else."""

    with pytest.raises(TypeError, match=r"takes 2 arguments; use \(event\)"):
        app.listen("poll:*")(lambda channel, event: None)
    with pytest.raises(TypeError, match="takes <class 'int'>; use Heard"):
        app.listen("poll:*")(wrong)
    with pytest.raises(ValueError, match="pattern"):
        app.listen("poll:**:x")(lambda event: None)
