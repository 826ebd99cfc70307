"""The judges of `make chaos`: each fault is seen, and every attack has a script that can be played."""

import contextlib
import random
import socket
import threading

import pytest

from tests.chaos.attacks import ATTACKS
from tests.chaos.attacks.attack import Target
from tests.chaos.recorder import Recorder, Seen
from tests.chaos.scene import Outcome
from tests.chaos.swarm import Hold, Open, Peer, Receive, Script, Send, Swarm
from tests.chaos.verdict import objections, ratio


def _seen(*said: str) -> tuple[Recorder, Seen]:
    recorder = Recorder(said=set(said))
    return recorder, Seen(recorder, "room", first=3, last=3)


def test_events_in_their_order_are_no_fault() -> None:
    recorder, seen = _seen("a", "b")
    recorder.acknowledged("room", 4, "a")
    recorder.acknowledged("room", 5, "b")
    seen.event(4, "a")
    seen.event(5, "b")
    assert not recorder.faults
    assert seen.owed() == []


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([(5, "a")], "gap"),
        ([(4, "a"), (4, "a")], "out of order or twice"),
        ([(4, "nobody said this")], "invented"),
    ],
)
def test_an_event_in_the_wrong_place_is_a_fault(events: list[tuple[int, str]], fault: str) -> None:
    recorder, seen = _seen("a", "b")
    for number, text in events:
        seen.event(number, text)
    assert recorder.faults == {fault: 1}


def test_an_acknowledged_message_that_did_not_come_is_owed_to_who_was_there_before() -> None:
    recorder, seen = _seen("a", "b")
    recorder.acknowledged("room", 3, "a")
    recorder.acknowledged("room", 4, "b")
    assert seen.owed() == [4]


def test_two_texts_under_one_number_are_a_fault() -> None:
    recorder, _ = _seen()
    recorder.acknowledged("room", 4, "a")
    recorder.acknowledged("room", 4, "b")
    assert recorder.faults == {"number given twice": 1}


def _outcome(calm_ms: float, attack_ms: float, twins_ms: float = 1.0) -> Outcome:
    return Outcome(
        budget_bytes=100,
        memory_bytes={"calm": 50, "attack": 100},
        health_s={"calm": 0.1, "attack": 1.0},
        busy={"attack": {"realtime-accept": 0.5}},
        latencies={"calm 0": {"acks": [calm_ms] * 200}, "attack 0": {"acks": [attack_ms] * 200, "twins": [twins_ms]}},
    )


def test_an_outcome_at_every_limit_has_no_objections() -> None:
    assert objections(_outcome(20.0, 40.0)) == []


def test_each_limit_that_is_passed_is_an_objection() -> None:
    outcome = _outcome(20.0, 41.0)
    outcome.memory_bytes["attack"] = 101
    outcome.health_s["calm"] = 1.1
    outcome.busy["attack"]["realtime-accept"] = 0.51
    outcome.faults = {"attack 0": {"good client closed": 1}}
    assert len(objections(outcome)) == 5


def test_what_the_machine_costs_the_twin_is_not_the_server_s() -> None:
    assert ratio(_outcome(20.0, 80.0)) == 4.0
    assert ratio(_outcome(20.0, 80.0, twins_ms=40.0)) == 2.0
    assert ratio(_outcome(0.1, 10.0)) == 1.0


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_says_what_it_does_and_begins_by_connecting(name: str) -> None:
    attack = ATTACKS[name](Target(3002, 3001, "a.b.c", ("a.b.c",)), random.Random(1))
    peer = Peer(attack.script, 0, attack.pause_s, attack.reads)
    script = attack.script(peer)
    assert isinstance(next(script), Open)
    assert isinstance(script.send(b""), (Send, Hold)) or name == "reset_storm"
    assert ATTACKS[name].__doc__


def test_a_swarm_plays_a_script_again_when_it_has_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    connection.sendall(connection.recv(10).upper())
                    connection.recv(10)

        thread = threading.Thread(target=serve)
        thread.start()
        answers: list[bytes] = []

        def script(peer: Peer) -> Script:  # noqa: ARG001
            yield Open(port)
            yield Send(b"hello")
            answers.append((yield Receive()))

        swarm = Swarm("127.0.0.1", steps_per_s=10_000, bytes_per_s=10_000)
        swarm.add(Peer(script, 0, pause_s=0.001, reads=False), within_s=0.0)
        swarm.run(0.3)
        thread.join(10)
    assert answers[:2] == [b"HELLO", b"HELLO"]
