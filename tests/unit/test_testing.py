"""The kit for tests of apps: what it gives, and that it fails where it should."""

# ruff: noqa: ARG001, ARG005 -- what a handler takes is its contract
# mypy: disable-error-code="unused-awaitable"

import asyncio
import time
from typing import Any

import msgspec
import pytest

from realtime import Grant, Identity, Realtime, Refused, Session, UpgradeRequest
from realtime.base.config import LimitSettings, Settings
from realtime.testing import NotLetIn, TestApp

GREETINGS = {"connection_established", "presence_mode", "user_presence"}


class Vote(msgspec.Struct):
    poll: str
    choice: int


def polls() -> Realtime:
    app = Realtime()

    @app.authorize("poll:{poll}")
    async def may_join(session: Session, poll: str) -> Grant | None:
        await asyncio.sleep(0)
        if poll == session.user:
            return Grant("subscribe", "publish")
        return Grant("subscribe") if poll.startswith("public") else None

    @app.on("vote")
    async def vote(session: Session, vote: Vote) -> dict[str, object]:
        if vote.choice > 3:
            raise Refused("not_found", "no such choice")
        await app.publish(f"poll:{vote.poll}", "tally", {"choice": vote.choice, "by": session.user})
        return {"counted": vote.choice}

    return app


async def test_a_conversation_of_client_hook_and_handler() -> None:
    async with TestApp(polls()) as t:
        alice, bob = await t.connect(user="alice"), await t.connect(user="bob")
        assert (await bob.command("subscribe", channel="poll:public-1")).type == "subscription_confirmed"
        refused = await bob.command("subscribe", channel="poll:alice")
        assert refused.data == {
            "message": "Not allowed to subscribe on this channel",
            "code": "forbidden",
            "retryable": False,
            "channel": "poll:alice",
        }
        assert await alice.ack("vote", poll="public-1", choice=2) == {"counted": 2}
        event = await bob.expect("tally", choice=2)
        assert event.channel == "poll:public-1"
        assert (await alice.command("vote", poll="public-1", choice=4)).data["code"] == "not_found"
        assert (await alice.command("vote", poll="public-1", choice="x")).data["path"] == "data.choice"


async def test_commands_sent_at_once_after_a_subscribe_wait_for_its_hook() -> None:
    app = polls()
    app.relay("point", channel="poll:{data.poll}", event="pointed", data={"at": "{data.at}"})
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        for number, command in enumerate(
            (
                {"type": "subscribe", "data": {"channel": "poll:alice"}},
                {"type": "point", "data": {"poll": "alice", "at": 5}},
                {"type": "unsubscribe", "data": {"channel": "poll:alice"}},
            )
        ):
            t.engine.client_send(alice._link, msgspec.json.encode({**command, "id": number}).decode())
        await t.settle()
        await alice.expect("ack")
        kinds = [frame.type for frame in alice.frames if frame.type not in GREETINGS]
        assert kinds == ["subscription_confirmed", "pointed", "unsubscription_confirmed"]


async def test_expect_says_what_came_instead() -> None:
    async with TestApp(polls()) as t:
        alice = await t.connect(user="alice")
        with pytest.raises(AssertionError, match=r'no tally \{"choice":1\}; closed: None; received and not taken'):
            await alice.expect("tally", choice=1)
        with pytest.raises(AssertionError, match="connection_established"):
            await alice.expect("tally")
        with pytest.raises(AssertionError, match=r"there is .*connection_established"):
            alice.refute("connection_established")
        await alice.expect("connection_established", user_id="alice", protocol=1)
        alice.refute("connection_established")


async def test_ack_says_what_answered_instead() -> None:
    async with TestApp(polls()) as t:
        alice = await t.connect(user="alice")
        with pytest.raises(AssertionError, match=r"vote was answered by .*no such choice"):
            await alice.ack("vote", poll="p", choice=4)


async def test_a_client_without_a_token_is_not_let_in() -> None:
    async with TestApp(polls()) as t:
        with pytest.raises(NotLetIn, match="401 Unauthorized"):
            await t.connect(first_version=True)
        with pytest.raises(NotLetIn) as caught:
            await t.connect(token="wrong")
        assert caught.value.code == 4501
        with pytest.raises(NotLetIn, match="404 WebSocket endpoint not found"):
            await t.connect(path="/elsewhere")
        with pytest.raises(LookupError, match="no endpoint has the path /elsewhere"):
            await t.connect(user="alice", path="/elsewhere")
        assert len(t.control.connections) == 0


async def test_a_token_of_this_world_lets_in_until_it_expires() -> None:
    async with TestApp(polls()) as t:
        token = t.token("alice", ttl_s=60)
        alice = await t.connect(token=token)
        assert alice.session.user == "alice"
        t.clock.advance(61)
        await alice.expect_closed(4002)
        with pytest.raises(NotLetIn):
            await t.connect(token=token)


async def test_an_authenticate_hook_sees_the_request() -> None:
    app = polls()

    @app.authenticate
    async def authenticate(request: UpgradeRequest) -> Identity | None:
        user = request.headers.get("x-user") or request.query.get("user")
        return Identity(user, grants={"poll:secret": ["subscribe"]}) if user else None

    async with TestApp(app) as t:
        alice = await t.connect(headers=[("X-User", "alice")])
        bob = await t.connect(path="/ws?user=bob")
        assert [alice.session.user, bob.session.user] == ["alice", "bob"]
        assert (await bob.command("subscribe", channel="poll:secret")).type == "subscription_confirmed"
        with pytest.raises(NotLetIn, match="401"):
            await t.connect(first_version=True)


async def test_a_raw_endpoint_is_tested_by_its_messages() -> None:
    app = Realtime()

    @app.raw("/echo", auth=False)
    def echo(session: Session, message: str | bytes) -> None:
        session.send(message)

    async with TestApp(app) as t:
        peer = await t.connect(path="/echo")
        await peer.send_text("text")
        await peer.expect_message("text")
        await peer.send_binary(b"\x00\xff")
        await peer.expect_message(b"\x00\xff")
        with pytest.raises(AssertionError, match="no message"):
            await peer.expect_message("more")


async def test_closing_is_seen_on_both_sides() -> None:
    app, closed = Realtime(), list[tuple[str, int]]()
    app.on_close(lambda session, code: closed.append((session.user, code)))
    app.on("leave")(lambda session: session.close(4503, "removed"))
    async with TestApp(app) as t:
        alice, bob, cyd = [await t.connect(user=user) for user in ("alice", "bob", "cyd")]
        await alice.send("leave")
        assert await alice.expect_closed(4503) == "removed"
        await bob.close(1000)
        cyd.drop()
        assert closed == [("alice", 4503), ("bob", 1000), ("cyd", 1006)]
        with pytest.raises(LookupError, match="not open"):
            _ = alice.session
        with pytest.raises(AssertionError, match="not closed with 4000"):
            await bob.expect_closed(4000)
        with pytest.raises(AssertionError, match="closed with"):
            bob.refute_closed()


async def test_the_end_of_a_test_closes_whoever_is_left() -> None:
    app, closed = Realtime(), list[int]()
    app.on_close(lambda session, code: closed.append(code))
    async with TestApp(app) as t:
        await t.connect(user="alice")
    assert closed == [1012]


async def test_time_moves_by_hand_for_the_engine_and_for_python() -> None:
    app, seen = Realtime(), list[int]()

    @app.on("later")
    def later(session: Session) -> None:
        app.clock.call_later(10, lambda: session.send({"type": "now", "data": app.clock.now_ms()}))

    async with TestApp(app, now_ms=1_000_000_000_000) as t:
        alice = await t.connect(user="alice")
        await alice.send("later")
        t.clock.advance(9.9)
        alice.refute("now")
        t.clock.advance(0.1)
        assert (await alice.expect("now")).data == 1_000_000_010_000
        assert t.clock.now_ms() == t.engine.now_ms() == 1_000_000_010_000
    assert seen == []


async def test_a_handler_that_waits_in_real_time_or_in_a_thread_is_waited_for() -> None:
    app = Realtime()

    @app.on("sleep")
    async def sleep(session: Session) -> str:
        await asyncio.sleep(0.02)
        return "slept"

    @app.on("block", thread=True)
    def block(session: Session) -> str:
        time.sleep(0.02)
        return "blocked"

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack("sleep") == "slept"
        assert await alice.ack("block") == "blocked"


async def test_a_slow_reader_is_told_what_it_missed_or_is_closed() -> None:
    app = Realtime()
    app.allow("feed:*")
    settings = Settings(limits=LimitSettings(outbox_soft_bytes=1000, outbox_hard_bytes=4000))
    async with TestApp(app, settings) as t:
        alice = await t.connect(user="alice")
        await alice.send("subscribe", channel="feed:1")
        alice.slow(bytes_per_s=0)
        for number in range(100):
            app.publish("feed:1", "tick", {"n": number, "filler": "x" * 2000})
            await t.settle()
        alice.slow(bytes_per_s=None)
        await alice.expect("lag", channel="feed:1")
        alice.refute_closed()


async def test_limits_answer_rate_limited() -> None:
    settings = Settings(limits=LimitSettings(commands_per_s=1, commands_burst=3))
    async with TestApp(polls(), settings) as t:
        alice = await t.connect(user="alice")
        answers = [await alice.command("ping") for _ in range(5)]
        assert [answer.type for answer in answers] == ["pong", "pong", "pong", "error", "error"]
        assert answers[3].data["code"] == "rate_limited"
        t.clock.advance(2)
        assert (await alice.command("ping")).type == "pong"


async def test_names_are_snake_case_here_and_camel_case_on_the_wire() -> None:
    app = Realtime()

    class Deep(msgspec.Struct, rename="camel"):
        two_words: int

    @app.on("deep")
    def deep(session: Session, deep: Deep) -> Deep:
        return deep

    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        assert await alice.ack("deep", two_words=1) == {"twoWords": 1}


# Outside of handlers.


async def test_a_test_may_await_a_durable_publish_and_a_history_itself() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    async with TestApp(app) as t:
        for offset in (1, 2):
            publication = await app.publish("ledger:1", "line", {"text": str(offset)})
            assert publication is not None
            assert publication.offset == offset
        page = await app.broadcaster.history("ledger:1")
        assert [msgspec.json.decode(frame)["data"]["text"] for frame in page.events] == ["1", "2"]
        first, second = await asyncio.gather(app.publish("ledger:1", "line", {}), app.publish("ledger:2", "line", {}))
        assert (first and first.offset, second and second.offset) == (3, 1)
        assert t.control.broadcaster.waiting == 0


async def test_a_test_may_publish_in_a_thread_and_wait_for_its_result_there() -> None:
    app = Realtime()
    app.policy("ledger:*", durable=True)
    async with TestApp(app):
        publication = await asyncio.to_thread(lambda: app.publish("ledger:1", "line", {}).result(5))
        assert publication is not None
        assert publication.offset == 1


async def test_what_a_task_of_the_test_sends_arrives_without_a_settle() -> None:
    app = Realtime()
    app.allow("feed:*")
    async with TestApp(app) as t:
        alice = await t.connect(user="alice")
        await alice.command("subscribe", channel="feed:1")
        app.publish("feed:1", "tick", {"n": 1})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [frame.type for frame in alice.frames][-1] == "tick"


async def test_a_client_is_told_who_is_online_when_it_comes_and_when_the_grace_of_the_start_is_over() -> None:
    async with TestApp(Realtime()) as t:
        alice = await t.connect(user="alice")
        old = await t.connect(user="bob", first_version=True)
        cyd = await t.connect(user="cyd")
        assert [frame.type for frame in cyd.frames][:2] == ["connection_established", "presence_mode"]
        assert (await alice.expect("presence_mode")).data == {"mode": "everyone", "users": []}
        assert (await cyd.expect("presence_mode")).data == {"mode": "everyone", "users": ["alice", "bob"]}
        t.clock.advance(4.9)
        alice.refute("presence_mode")
        t.clock.advance(0.2)
        for peer in (alice, cyd):
            assert (await peer.expect("presence_mode")).data == {"mode": "everyone", "users": ["alice", "bob", "cyd"]}
        old.refute("presence_mode")


async def test_one_who_is_cut_off_is_online_for_others_until_its_grace_is_over() -> None:
    async with TestApp(Realtime()) as t:
        alice = await t.connect(user="alice")
        alice.drop()
        bob = await t.connect(user="bob")
        assert (await bob.expect("presence_mode")).data["users"] == ["alice"]
        t.clock.advance(5.1)
        await bob.expect("user_presence", user_id="alice", status="offline")
        cyd = await t.connect(user="cyd")
        assert (await cyd.expect("presence_mode")).data["users"] == ["bob"]


async def test_a_raw_endpoint_agrees_to_its_preferred_subprotocol() -> None:
    app = Realtime()
    agreed: list[str | None] = []

    @app.raw("/mqtt", auth=False, subprotocols=["mqtt.v5", "mqtt"])
    def take(session: Session, message: str | bytes) -> None:
        agreed.append(session.subprotocol)

    async with TestApp(app) as world:
        peers = [
            await world.connect(path="/mqtt"),
            await world.connect("", path="/mqtt"),
            await world.connect(path="/mqtt", first_version=True),
            await world.connect(
                path="/mqtt", first_version=True, headers=[("Sec-WebSocket-Protocol", "other, mqtt, bearer.x")]
            ),
        ]
        for peer in peers:
            await peer.send_text("x")
        await world.settle()
    assert agreed == ["mqtt.v5", "mqtt.v5", None, "mqtt"]


@pytest.mark.parametrize("names", ["mqtt", ["bearer.x"], ["a b"], [""], ["a,b"]])
def test_what_is_no_subprotocol_is_refused_where_it_is_written(names: Any) -> None:
    with pytest.raises(ValueError, match="subprotocol"):
        Realtime().raw("/mqtt", subprotocols=names)


async def test_a_handler_without_end_is_told_and_cut_off_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realtime.testing._ROUNDS_MAX", 500)
    monkeypatch.setattr("realtime.testing._END_ROUNDS", 500)
    app = Realtime()
    ended = []

    @app.on("chat")
    async def chat(session: Session) -> None:
        try:
            while True:
                app.broadcaster.to_session(session, "said", {})
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    async with asyncio.timeout(30), TestApp(app) as t:
        peer = await t.connect("ann")
        with pytest.raises(RuntimeError, match="still moving after 500 rounds; is there a handler"):
            await peer.send("chat")
    assert ended == [True]
