"""What the engine tells and does for the server's end and its figures, over links without sockets."""

import json
from typing import Any

from realtime._engine import VirtualEngine

OPTIONS = json.dumps(
    {
        "endpoints": [{"path": "/ws", "mode": "json", "auth": "none"}, {"path": "/raw", "mode": "raw", "auth": "none"}],
        "open_grants": [{"pattern": "news:*", "rights": ["subscribe", "publish"]}],
    }
).encode()


def engine() -> VirtualEngine:
    return VirtualEngine(OPTIONS, 1_795_415_400_000)


def settle(engine: VirtualEngine) -> None:
    while engine.step():
        pass


def received(engine: VirtualEngine, link: int) -> list[Any]:
    settle(engine)
    items: list[Any] = engine.client_receive(link)
    return [json.loads(item) if kind == "text" else (kind, item) for kind, item in items]


def stats(engine: VirtualEngine) -> dict[str, Any]:
    return dict(json.loads(engine.stats()))


def test_each_client_is_closed_when_it_was_told_to_come_back() -> None:
    world = engine()
    links = [world.connect_as(0, f"u{number}") for number in range(20)]
    raw = world.connect_as(1, "u")
    for link in (*links, raw):
        received(world, link)
    world.announce_drain(4_000)
    delays = {}
    for link in links:
        (told,) = received(world, link)
        assert told["type"] == "draining"
        # One that is told to come back at once is closed with the next tick, as one after a millisecond is.
        delays[link] = max(1, told["data"]["reconnectInMs"])
    assert received(world, raw) == []
    assert all(delay <= 4_000 for delay in delays.values())
    assert len(set(delays.values())) > 10
    late = world.connect_as(0, "late")
    assert [frame["type"] for frame in received(world, late)] == ["connection_established", "draining"]
    world.close_all(1012, "server restarting", over_ms=4_000)
    for passed_ms in range(0, 4_500, 250):
        for link, delay in delays.items():
            ends = [item for item in received(world, link) if item[0] == "close"]
            assert ends == ([("close", (1012, "server restarting"))] if passed_ms - 250 < delay <= passed_ms else [])
        world.advance(250)


def test_without_a_time_all_are_closed_at_once() -> None:
    world = engine()
    links = [world.connect_as(0, "ann") for _ in range(5)]
    world.close_all(1012, "server restarting")
    for link in links:
        assert ("close", (1012, "server restarting")) in received(world, link)
    assert stats(world)["closed_by_code"] == {"1012": 5}


def test_the_figures_have_the_members_that_an_operator_is_promised() -> None:
    world = engine()
    link = world.connect_as(0, "ann")
    world.client_send(link, '{"type":"subscribe","data":{"channel":"news:1"}}')
    world.client_send(link, '{"type":"publish","data":{"channel":"news:1","event":"e","data":1}}')
    world.client_send(link, "nonsense")
    settle(world)
    read = stats(world)
    assert (read["connections"], read["messages_in"], read["publications"]) == (1, 3, 1)
    assert read["errors_by_code"] == {"invalid_message": 1}
    assert read["refused_by_status"] == {}
    assert read["dropped_by_reason"] == {"slow": 0, "budget": 0, "conflated": 0, "replaying": 0}
    assert set(read["histograms"]) == {"connection_s", "delivery_s", "log_commit_s", "log_batch"}
    for histogram in read["histograms"].values():
        assert len(histogram["counts"]) == len(histogram["bounds"]) + 1
    assert sum(read["histograms"]["delivery_s"]["counts"]) == 1
    (shard,) = read["shards"]
    assert set(shard) == {"busy_ns", "elapsed_ns", "connections", "flush"}
    assert shard["connections"] == 1
    assert set(read["queues"]) == {"events", "commands_bytes", "log", "outbox_bytes"}
    assert (read["log_failures"], read["log_failing"], read["log_error"], read["log_gaps"]) == (0, 0, None, 0)


def test_a_user_has_as_many_sessions_as_it_may() -> None:
    world = engine()
    links = [world.connect_as(0, "ann") for _ in range(21)]
    assert received(world, links[19])[0]["type"] == "connection_established"
    kind, (code, reason) = received(world, links[20])[0]
    assert (kind, code) == ("close", 4005)
    assert 1_000 <= int(reason) <= 5_000
