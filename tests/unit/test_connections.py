"""Open connections: all, by id, by user, and what one costs."""

import gc
import tracemalloc
from typing import Any

import pytest
from msgspec import Struct

from realtime.control.connections import Connections, Session
from tests.unit.engine import RecordingEngine

JSON, RAW = 0, 1


class World:
    """A table over an engine that notes commands."""

    def __init__(self) -> None:
        self.engine = RecordingEngine()
        self.woken = 0
        engine: Any = self.engine
        self.table = Connections(engine, frozenset({RAW}), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def open(self, conn: int, user: str = "ann", endpoint: int = JSON) -> tuple[Session, bool]:
        session = Session(conn, user, endpoint, self.table)
        return session, self.table.add(session)


def test_a_user_may_have_many_sessions() -> None:
    world = World()
    (first, is_first), (second, is_second), (third, _) = world.open(1), world.open(2), world.open(3)
    assert (is_first, is_second) == (True, False)
    assert world.table.by_user("ann") == [first, second, third]
    assert [world.table.remove(second), world.table.remove(first)] == [False, False]
    assert world.table.by_user("ann") == [third]
    assert world.table.is_online("ann")
    assert world.table.remove(third) is True
    assert world.table.by_user("ann") == []
    assert not world.table.is_online("ann")
    assert len(world.table) == world.table.users == world.table.json_count == 0


def test_a_session_that_closed_twice_is_removed_once() -> None:
    world = World()
    session, _ = world.open(1)
    assert world.table.remove(session) is True
    assert world.table.remove(session) is False


def test_sessions_are_found_by_number_and_by_id() -> None:
    world = World()
    session, _ = world.open(7)
    assert world.table.by_conn(7) is session
    assert world.table.by_id("s7") is session
    assert world.table.by_id("s8") is None
    assert world.table.by_id("no such id") is None
    assert session.id == "s7"
    assert session in world.table
    assert session.is_open
    world.table.remove(session)
    assert not session.is_open


def test_a_raw_session_is_counted_but_makes_nobody_online() -> None:
    world = World()
    session, is_first = world.open(1, endpoint=RAW)
    assert not is_first
    assert len(world.table) == 1
    assert world.table.json_count == 0
    assert world.table.by_user("ann") == []
    assert world.table.remove(session) is False


def test_all_sessions_can_be_gone_through_while_they_close() -> None:
    world = World()
    for conn in range(10):
        world.open(conn, f"u{conn}")
    for session in world.table:
        world.table.remove(session)
    assert list(world.table) == []


class Tally(Struct):
    type: str
    votes: int


@pytest.mark.parametrize(
    ("endpoint", "message", "command"),
    [
        (JSON, b'{"type":"x"}', ("send_text", 1, b'{"type":"x"}')),
        (JSON, '{"type":"x"}', ("send_text", 1, '{"type":"x"}')),
        (JSON, {"type": "x"}, ("send_text", 1, b'{"type":"x"}')),
        (JSON, Tally("tally", 3), ("send_text", 1, b'{"type":"tally","votes":3}')),
        (RAW, b"\x00\xff", ("send_binary", 1, b"\x00\xff")),
        (RAW, "text", ("send_text", 1, "text")),
    ],
)
def test_what_a_session_is_sent_depends_on_its_endpoint(endpoint: int, message: Any, command: tuple[Any, ...]) -> None:
    world = World()
    world.open(1, endpoint=endpoint)[0].send(message)
    assert world.engine.calls == [command]
    assert world.woken == 1


def test_a_session_is_closed_with_a_code_and_a_reason() -> None:
    world = World()
    session, _ = world.open(1)
    session.close()
    session.close(4503, "removed")
    assert world.engine.calls == [("close", 1, 1000, ""), ("close", 1, 4503, "removed")]


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_a_code_that_may_not_stand_in_a_close_frame_is_refused(code: int) -> None:
    world = World()
    session, _ = world.open(1)
    with pytest.raises(ValueError, match=f"{code} is no close code that may be sent"):
        session.close(code)
    assert world.engine.calls == []


def test_one_frame_goes_to_many_sessions_in_one_command() -> None:
    world = World()
    sessions = [world.open(conn)[0] for conn in (1, 2, 3)]
    world.table.send_many(sessions, b"{}")
    assert world.engine.calls == [("send_many", [1, 2, 3], b"{}", None)]


def test_sessions_are_outside_of_the_garbage_collectors_rounds_and_hashed_by_identity() -> None:
    world = World()
    (one, _), other = world.open(1), Session(1, "ann", JSON, world.table)
    assert not gc.is_tracked(one)
    assert one != other
    assert len({one, other}) == 2


def test_an_idle_session_costs_at_most_400_bytes() -> None:
    world = World()
    count = 20_000
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        conn = (number << 32) + number
        world.table.add(Session(conn, f"user-{number:07}", JSON, world.table))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / count < 400
