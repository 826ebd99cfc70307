"""A session's steps begin in the order its commands came, at whatever moment the engine has run what was handed back.

The engine is a model: it hands events over in batches of any size, carries out what it is handed back at any later
moment, and may send it up again then, as a handler's command or as a question about a right.
"""

# ruff: noqa: ARG001 -- what a handler takes is its contract

import asyncio
import json
from collections import deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from realtime import Grant, Realtime, Session, _engine
from tests.unit.engine import Half

CONN = 1
KINDS = ("plain", "later", "long", "deferred", "asks", "asks long", "deferred, then asks", "asks, then plain")


class Step(Struct):
    """A command that knows its place."""

    n: int


def app_that_notes(begun: list[int]) -> Realtime:
    app = Realtime()

    @app.on("plain")
    def plain(session: Session, step: Step) -> None:
        begun.append(step.n)

    @app.on("later")
    async def later(session: Session, step: Step) -> None:
        begun.append(step.n)

    @app.on("long")
    async def long(session: Session, step: Step) -> None:
        begun.append(step.n)
        for _ in range(step.n % 5):
            await asyncio.sleep(0)

    @app.authorize("poll:{n}")
    def may(session: Session, n: str) -> Grant:
        begun.append(int(n))
        return Grant()

    @app.authorize("slow:{n}")
    async def may_later(session: Session, n: str) -> Grant:
        begun.append(int(n))
        await asyncio.sleep(0)
        return Grant()

    return app


class ModelEngine:
    """What stands behind one connection: commands that go up, and those that come back."""

    def __init__(self, half: Half, kinds: list[str], begun: list[int]) -> None:
        self.half, self.kinds, self.begun = half, kinds, begun
        self.untaken = deque(self.goes_up(n, kind) for n, kind in enumerate(kinds))
        self.seen = 0
        self.handed_back: deque[int] = deque()
        self.again: set[int] = set()

    @staticmethod
    def goes_up(n: int, kind: str) -> tuple[Any, ...]:
        raw, id = json.dumps({"type": "x", "n": n}).encode(), str(n).encode()
        if kind in {"plain", "later", "long"}:
            route = ("plain", "later", "long").index(kind)
            return (_engine.MESSAGE, CONN, route, id, json.dumps({"n": n}).encode(), 0)
        if kind.startswith("asks"):
            is_slow = kind == "asks long"
            return (_engine.AUTHORIZE, CONN, int(is_slow), f"{'slow' if is_slow else 'poll'}:{n}", "subscribe", id, raw)
        return (_engine.DEFERRED, CONN, raw)

    def hand_over(self, count: int) -> None:
        self.half.take(*(self.untaken.popleft() for _ in range(min(count, len(self.untaken)))))

    def note_what_came_back(self) -> None:
        calls = self.half.engine.calls
        for call in calls[self.seen :]:
            if call[0] in {"resume", "grant"}:
                n = json.loads(call[-1])["n"]
                if call[0] == "resume":
                    self.begun.append(n)
                self.handed_back.append(n)
        self.seen = len(calls)
        assert len(self.handed_back) <= 1, "a lane hands back one command at a time"

    def carry_out(self) -> None:
        """Run what was handed back; what comes up again goes before all that has not been taken."""
        if not self.handed_back:
            return
        n = self.handed_back.popleft()
        again = {"deferred, then asks": "asks", "asks, then plain": "plain"}.get(self.kinds[n])
        if again is None or n in self.again:
            self.untaken.append((_engine.CARRIED, CONN, False))
            return
        self.again.add(n)
        self.untaken += [self.goes_up(n, again), (_engine.CARRIED, CONN, True)]


async def run(kinds: list[str], moves: list[int]) -> None:
    begun: list[int] = []
    half = Half(app_that_notes(begun))
    half.open(CONN)
    engine = ModelEngine(half, kinds, begun)
    turns = 0
    while engine.untaken or engine.handed_back or half.control.router.busy:
        move = moves[turns % len(moves)]
        turns += 1
        assert turns < 10_000, "it does not come to rest"
        if move % 4 == 0:
            engine.hand_over(1 + move // 4)
        elif move % 4 == 1:
            engine.carry_out()
        else:
            await asyncio.sleep(0)
        engine.note_what_came_back()
    assert begun == sorted(begun), "begun out of order"
    assert set(begun) == set(range(len(kinds)))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=80),
    # One of each move, so that all of it comes to an end.
    st.lists(st.integers(0, 200), max_size=40).map(lambda moves: [*moves, 0, 1, 2]),
)
def test_steps_of_a_session_begin_in_their_order_under_random_hand_backs(kinds: list[str], moves: list[int]) -> None:
    asyncio.run(run(kinds, moves))
