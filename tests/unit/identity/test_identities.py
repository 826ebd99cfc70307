"""Who somebody is, over the real hub: tickets, hooks, service keys, refreshes and what is revoked."""

import asyncio
import random
from typing import Any

import pytest

from realtime import Grant, Identity, Realtime, Refused, Session, UpgradeRequest
from realtime.base.config import AuthSettings, ConfigError, ConversationSettings, Settings
from realtime.conversations import Conversations
from realtime.identity.auth import RIGHTS, InvalidToken, may, mint_token
from realtime.identity.revocations import CHANNEL
from realtime.testing import NotLetIn, TestApp

KEY = "a service key of thirty-two bytes or more"
OTHER_KEY = "another service key of thirty-two bytes or more"
SECRET = "s" * 32


def conversations() -> Realtime:
    app = Realtime()
    app.include(Conversations())
    return app


async def by_token(t: TestApp, token: str) -> Identity:
    return await t.control.identities.identify_request("/", "", [("Authorization", f"Bearer {token}")], "peer")


# Tickets.


async def test_a_ticket_opens_one_connection() -> None:
    async with TestApp(conversations(), Settings(conversations=ConversationSettings(access="grants"))) as t:
        identity = await by_token(t, t.token("ann", {"conversation:1": ["subscribe"]}))
        ticket = t.control.identities.issue_ticket(identity)
        assert (len(ticket.ticket), ticket.expires_in_s) == (43, 60)
        ann = await t.connect(path=f"/ws?ticket={ticket.ticket}")
        assert ann.session.user == "ann"
        assert ann.session.expires_at_ms == t.clock.now_ms() + 3_600_000
        await ann.send("subscribe", channel="conversation:1")
        await ann.expect("subscription_confirmed")
        await ann.send("subscribe", channel="conversation:2")
        await ann.expect("error", code="forbidden")
        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(path=f"/ws?ticket={ticket.ticket}")


async def test_a_ticket_lives_a_minute() -> None:
    async with TestApp(conversations()) as t:
        early, late = (t.control.identities.issue_ticket(Identity("ann")) for _ in range(2))
        t.clock.advance(59.9)
        assert (await t.connect(path=f"/ws?ticket={early.ticket}")).session.user == "ann"
        t.clock.advance(0.1)
        with pytest.raises(NotLetIn, match="401 Unauthorized"):
            await t.connect(path=f"/ws?ticket={late.ticket}", first_version=True)


async def test_a_ticket_beside_a_token_is_refused() -> None:
    async with TestApp(conversations()) as t:
        ticket = t.control.identities.issue_ticket(Identity("ann")).ticket
        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(path=f"/ws?ticket={ticket}", token=t.token("ann"))


async def test_a_hook_changes_nothing_about_what_is_ambiguous() -> None:
    async with TestApp(with_hook()) as t:
        identities = t.control.identities

        def ticket() -> str:
            return identities.issue_ticket(Identity("ann")).ticket

        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(path=f"/ws?ticket={ticket()}", token=t.token("ann"))
        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(path=f"/ws?ticket={ticket()}&ticket={ticket()}")
        with pytest.raises(InvalidToken) as caught:
            await identities.identify_request("/", "token=a&token=b", [("X-Key", "ann")], "peer")
        assert caught.value.reason == "ambiguous"
        same = ticket()
        assert (await t.connect(path=f"/ws?ticket={same}&ticket={same}")).session.user == "ann"


@pytest.mark.parametrize("end", [float("nan"), float("inf")])
async def test_an_end_that_is_no_time_lets_nobody_in_at_either_door(end: float) -> None:
    app = conversations()

    @app.authenticate
    def authenticate(_request: UpgradeRequest) -> Identity:
        return Identity("ann", expires_at=end)

    async with TestApp(app) as t:
        with pytest.raises(NotLetIn, match="4005"):
            await t.connect()
        with pytest.raises(ValueError, match="expires_at"):
            await t.control.identities.identify_request("/", "", [], "peer")


async def test_a_service_has_no_ticket() -> None:
    async with TestApp(conversations()) as t:
        with pytest.raises(Refused, match="forbidden"):
            t.control.identities.issue_ticket(Identity("", service=True))


async def test_a_ticket_ends_with_what_it_stands_for() -> None:
    async with TestApp(conversations()) as t:
        identities = t.control.identities
        by_user, by_id, by_time = (
            identities.issue_ticket(identity).ticket
            for identity in (
                Identity("ann", issued_at_s=t.clock.now_ms() // 1000),
                Identity("bob", token_id="t1"),
                Identity("eve", expires_at=t.clock.now_ms() / 1000 + 5),
            )
        )
        await identities.revoke(user="ann")
        await identities.revoke(token_id="t1")
        t.clock.advance(5)
        for ticket in (by_user, by_id, by_time):
            with pytest.raises(NotLetIn, match="4501"):
                await t.connect(path=f"/ws?ticket={ticket}")


# Service keys and the hook.


async def test_a_service_is_known_by_any_of_its_keys() -> None:
    async with TestApp(conversations(), Settings(auth=AuthSettings(service_keys=(KEY, OTHER_KEY)))) as t:
        for key in (KEY, OTHER_KEY):
            assert await by_token(t, key) == Identity("", service=True)
        for key in ("", KEY[:-1], KEY + "x", "ä\ud800"):
            assert not t.control.identities.is_service_key(key)
            with pytest.raises(InvalidToken):
                await by_token(t, key)


async def test_over_http_only_the_authorization_header_counts() -> None:
    async with TestApp(conversations()) as t:
        token = t.token("ann")
        assert (await by_token(t, token)).user == "ann"
        identify = t.control.identities.identify_request
        assert (await identify("/", "", [("authorization", f"bEARER  {token}")], "")).token == token
        for query, headers in (
            (f"token={token}", []),
            ("", [("authorization", token)]),
            ("", [("authorization", f"Basic {token}")]),
            ("", [("cookie", f"token={token}")]),
            ("", [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]),
        ):
            with pytest.raises(InvalidToken):
                await identify("/", query, headers, "")


def with_hook() -> Realtime:
    app = Realtime()

    @app.authenticate
    async def authenticate(request: UpgradeRequest) -> Identity | None:
        key = request.headers.get("x-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if key == "busy":
            raise Refused("rate_limited", "later")
        if key == "job":
            return Identity("job", service=True)
        return Identity(key, grants={"poll:{poll}": ["subscribe"]}) if key in {"ann", "bob"} else None

    return app


async def test_one_hook_decides_for_sockets_and_for_http() -> None:
    async with TestApp(with_hook(), Settings(auth=AuthSettings(service_keys=(KEY,)))) as t:
        identify = t.control.identities.identify_request
        assert (await t.connect(headers=[("X-Key", "ann")])).session.user == "ann"
        found = await identify("/api/x", "a=1", [("X-Key", "ann")], "1.2.3.4:5")
        assert (found.user, found.grants) == ("ann", {"poll:*": ["subscribe"]})
        assert (await identify("/", "", [("X-Key", "job")], "")).service
        assert (await by_token(t, KEY)).service
        with pytest.raises(InvalidToken):
            await identify("/", "", [("authorization", f"Bearer {t.token('ann')}")], "")
        with pytest.raises(Refused, match="rate_limited"):
            await identify("/", "", [("X-Key", "busy")], "")
        ticket = t.control.identities.issue_ticket(found).ticket
        assert (await t.connect(path=f"/ws?ticket={ticket}")).session.user == "ann"
        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(path=f"/ws?ticket={ticket}")


@pytest.mark.parametrize("token", [None, "a.b.c"])
async def test_grants_of_a_hook_that_are_no_patterns_let_nobody_in_at_either_door(token: str | None) -> None:
    app = Realtime()

    @app.authenticate
    def authenticate(_: UpgradeRequest) -> Identity:
        return Identity("ann", grants={"a b": ["subscribe"]}, token=token)

    async with TestApp(app) as t:
        with pytest.raises(NotLetIn):
            await t.connect()
        with pytest.raises(ValueError, match="a b"):
            await t.control.identities.identify_request("/", "", [], "")


async def test_a_page_of_elsewhere_does_not_act_by_a_cookie() -> None:
    app = Realtime()

    @app.authenticate
    def authenticate(request: UpgradeRequest) -> Identity | None:
        return Identity("ann") if "cookie" in request.headers else None

    listed = "https://app.example"
    async with TestApp(app, Settings(auth=AuthSettings(origins=(listed,), service_keys=(KEY,)))) as t:
        identify = t.control.identities.identify_request
        cookie, host = ("Cookie", "session=1"), ("Host", "Edge.example:3001")
        for origin in (listed, "http://edge.example:3001", None):
            sent = [cookie, host, *([("Origin", origin)] if origin else [])]
            assert (await identify("/", "", sent, "")).user == "ann"
        for origin in ("https://evil.example", "null", "", "http://edge.example", "https://app.example.evil.example"):
            with pytest.raises(Refused, match="forbidden"):
                await identify("/", "", [cookie, host, ("Origin", origin)], "")
        with pytest.raises(Refused, match="forbidden"):
            await identify("/", "", [cookie, ("Origin", "x")], "")
        by_key = [cookie, ("Origin", "https://evil.example"), ("Authorization", f"Bearer {KEY}")]
        assert (await identify("/", "", by_key, "")).service


async def test_the_hook_decides_about_a_refresh() -> None:
    async with TestApp(with_hook()) as t:
        ann = await t.connect(headers=[("X-Key", "ann")])
        assert await ann.ack("refresh", token="ann") == {"expiresAt": None}
        for token, code in (("bob", "forbidden"), ("eve", "unauthorized"), ("busy", "rate_limited")):
            answer = await ann.command("refresh", token=token)
            assert (answer.type, answer.data["code"]) == ("error", code)
        assert (await ann.command("ping")).type == "pong"


async def test_a_refresh_moves_the_end_of_a_session() -> None:
    async with TestApp(conversations()) as t:
        ann = await t.connect(token=t.token("ann", ttl_s=60))
        assert ann.session.expires_at_ms == t.clock.now_ms() + 60_000
        await ann.ack("refresh", token=t.token("ann", ttl_s=120))
        assert ann.session.expires_at_ms == t.clock.now_ms() + 120_000
        t.clock.advance(100)
        ann.refute_closed()
        t.clock.advance(20)
        await ann.expect_closed(4002)


# Revocation.


async def test_a_user_s_tokens_are_revoked_up_to_now() -> None:
    async with TestApp(conversations()) as t:
        token = t.token("ann")
        ann, bob = await t.connect(token=token), await t.connect(token=t.token("bob"))
        await t.control.identities.revoke(user="ann")
        await ann.expect_closed(4500)
        with pytest.raises(NotLetIn, match="4501"):
            await t.connect(token=token)
        with pytest.raises(InvalidToken, match="revoked"):
            await by_token(t, token)
        assert (await bob.command("refresh", token=token)).type == "error"
        bob.refute_closed()
        for seconds, is_good in ((5, False), (1, True)):
            t.clock.advance(seconds)
            newer = t.token("ann")
            if is_good:
                assert (await by_token(t, newer)).user == "ann"
                await t.connect(token=newer)
            else:
                with pytest.raises(InvalidToken, match="revoked"):
                    await by_token(t, newer)
                with pytest.raises(NotLetIn, match="4501"):
                    await t.connect(token=newer)


@pytest.mark.parametrize("skew_s", [0, 5, 60])
async def test_no_time_of_issue_lies_beyond_a_revocation(skew_s: int) -> None:
    auth = AuthSettings(secrets=(SECRET,), clock_skew_s=skew_s, leeway_s=300)
    async with TestApp(conversations(), Settings(auth=auth)) as t:
        now_s = t.clock.now_ms() // 1000

        def issued(at_s: int) -> str:
            return mint_token(SECRET, "ann", now_s=at_s)

        sessions = [await t.connect(token=issued(now_s + ahead_s)) for ahead_s in {0, skew_s}]
        for too_far in (issued(now_s + skew_s + 1), issued(now_s + 86_400)):
            with pytest.raises(InvalidToken, match="not yet valid"):
                await by_token(t, too_far)
            with pytest.raises(NotLetIn, match="4501"):
                await t.connect(token=too_far)
        await t.control.identities.revoke(user="ann")
        for session in sessions:
            await session.expect_closed(4500)
        t.clock.advance(skew_s + 1)
        for token in (issued(now_s), issued(now_s + skew_s)):
            with pytest.raises(InvalidToken, match="revoked"):
                await by_token(t, token)
            with pytest.raises(NotLetIn, match="4501"):
                await t.connect(token=token)
        newer = issued(now_s + skew_s + 1)
        assert (await by_token(t, newer)).user == "ann"
        await t.connect(token=newer)


async def test_a_hook_that_was_asked_before_a_revocation_lets_nobody_in_after_it() -> None:
    app = Realtime()
    asked, goes_on = asyncio.Event(), asyncio.Event()

    @app.authenticate
    async def authenticate(_request: UpgradeRequest) -> Identity:
        asked.set()
        await goes_on.wait()
        return Identity("ann")

    async with TestApp(app) as t:
        coming = asyncio.ensure_future(t.connect())
        await asked.wait()
        over_http = asyncio.ensure_future(t.control.identities.identify_request("/", "", [], "peer"))
        await t.control.identities.revoke(user="ann")
        t.clock.advance(9)
        goes_on.set()
        with pytest.raises(NotLetIn, match="4501"):
            await coming
        with pytest.raises(InvalidToken, match="revoked"):
            await over_http
        assert (await t.connect()).session.user == "ann", "asked anew"


async def test_one_token_is_revoked_by_its_id() -> None:
    async with TestApp(conversations()) as t:
        identities = t.control.identities
        one, two = (identities.issue_ticket(Identity("ann", token_id=token_id)).ticket for token_id in ("t1", "t2"))
        first, second = await t.connect(path=f"/ws?ticket={one}"), await t.connect(path=f"/ws?ticket={two}")
        await identities.revoke(token_id="t1")
        await first.expect_closed(4500)
        second.refute_closed()


async def test_what_a_hook_says_after_a_revocation_counts() -> None:
    async with TestApp(with_hook()) as t:
        ann = await t.connect(headers=[("X-Key", "ann")])
        await t.control.identities.revoke(user="ann")
        await ann.expect_closed(4500)
        t.clock.advance(1)
        await t.connect(headers=[("X-Key", "ann")])


@pytest.mark.parametrize("wrong", [{}, {"user": ""}, {"token_id": ""}, {"user": "a", "token_id": "b"}])
async def test_a_revocation_is_of_a_user_or_of_a_token(wrong: dict[str, str]) -> None:
    async with TestApp(conversations()) as t:
        with pytest.raises(ValueError, match="takes a user or the id of a token"):
            await t.control.identities.revoke(**wrong)


async def test_no_client_reaches_the_channel_of_revocations() -> None:
    app = Realtime()

    @app.authorize("**")
    def everything(_session: Session) -> Grant:
        return Grant(*RIGHTS)

    app.allow("**", *RIGHTS)
    app.relay("whisper", channel="{data.to}", event="whispered", data={})
    async with TestApp(app) as t:
        eve = await t.connect("eve", grants={"**": RIGHTS, "_realtime:*": RIGHTS, CHANNEL: RIGHTS})
        await eve.ack("whisper", to="somewhere:else")
        for type, data in (
            ("subscribe", {"channel": CHANNEL}),
            ("subscribe", {"channel": "_realtime:else", "last": 10}),
            ("history", {"channel": CHANNEL, "last": 10}),
            ("publish", {"channel": CHANNEL, "event": "revoked", "data": {"user": "ann", "beforeS": 1}}),
            ("whisper", {"to": CHANNEL}),
        ):
            answer = await eve.command(type, **data)
            assert (answer.type, answer.data["code"]) == ("error", "forbidden"), (type, data)
        await t.control.identities.revoke(user="ann")
        assert t.engine.members(CHANNEL) == 0
        eve.refute("revoked")


# The configuration, read anew.


async def test_secrets_and_service_keys_are_replaced_while_it_runs() -> None:
    async with TestApp(conversations(), Settings(auth=AuthSettings(secrets=(SECRET,)))) as t:
        old = t.token("ann")
        both = Settings(auth=AuthSettings(secrets=("n" * 32, SECRET), service_keys=(KEY,)))
        t.control.identities.reload(both)
        await t.connect(token=old)
        assert (await by_token(t, old)).user == "ann"
        assert t.control.identities.is_service_key(KEY)
        t.control.identities.reload(Settings(auth=AuthSettings(secrets=("n" * 32,))))
        with pytest.raises(NotLetIn):
            await t.connect(token=old)
        with pytest.raises(InvalidToken):
            await by_token(t, old)
        assert not t.control.identities.is_service_key(KEY)


async def test_a_configuration_that_cannot_be_used_changes_nothing() -> None:
    async with TestApp(conversations(), Settings(auth=AuthSettings(secrets=(SECRET,)))) as t:
        wrong = AuthSettings(secrets=("n" * 32,), algorithms=("HS256", "RS256"), public_keys=("/nowhere.pem",))
        with pytest.raises(ConfigError):
            t.control.identities.reload(Settings(auth=wrong))
        await t.connect(token=t.token("ann"))


# The engine's rule of rights and ours.


async def test_rights_over_http_are_those_of_a_session() -> None:
    dice = random.Random(7)
    segments = ["a", "b", "*", "ann"]
    app = Realtime()
    app.allow("a:*", "history")
    rules: Any = app.compile(Settings())
    async with TestApp(app) as t:
        for _ in range(60):
            patterns = [
                ":".join([*(dice.choice(segments) for _ in range(dice.randint(1, 3))), *dice.choice([[], ["**"]])])
                for _ in range(dice.randint(0, 3))
            ]
            grants = {pattern: dice.sample(RIGHTS, dice.randint(1, 4)) for pattern in patterns}
            ann = await t.connect("ann", grants=grants)
            for _ in range(10):
                channel = ":".join(dice.choice(["a", "b", "ann", "user"]) for _ in range(dice.randint(1, 4)))
                answer = await ann.command("history", channel=channel, last=1)
                expected = may(Identity("ann", grants), "history", channel, rules.open_grants)
                assert (answer.type == "history") is expected, (grants, channel, answer.raw)
                t.clock.advance(0.05)
            await ann.close()
