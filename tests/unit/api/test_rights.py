"""Who may do what on which channel: every command, kind of channel, access mode and grant, by sockets and by HTTP.

The two doors are asked about the same channels for the same user, and `EXPECTED` says for both what is right.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest

from realtime import Conversations, Grant, Publishing, Realtime, Session, user_channel
from realtime.api import channels, users
from realtime.base.config import ConversationSettings, LimitSettings
from realtime.identity.auth import is_channel
from tests.unit.api.asking import World

ALL: Final = frozenset({"subscribe", "publish", "presence", "history"})
NONE: Final = frozenset[str]()

OPEN: Final[Mapping[str, frozenset[str]]] = {
    "conversation:1": ALL,
    "conversation:team:1": NONE,
    "user:alice": frozenset({"subscribe", "history"}),
    "user:me": frozenset({"subscribe", "history"}),
    "user:bob": NONE,
    "user:.Wm_Dqw": NONE,
    "news:1": frozenset({"subscribe", "history"}),
    "poll:1": NONE,
    "private:1": NONE,
    "_realtime:revocations": NONE,
}
"""What whoever is signed in may with `conversations.access = open`."""

HOOKED: Final[Mapping[str, frozenset[str]]] = {"poll:1": frozenset({"subscribe", "publish"})}
"""What the `authorize` hook gives to sessions; over HTTP it is not asked."""

GRANTS: Final[Sequence[frozenset[str]]] = [NONE, *(frozenset({right}) for right in sorted(ALL)), ALL]

SOCKET: Final[Mapping[str, str]] = {
    "subscribe": "subscribe",
    "history": "history",
    "publish": "publish",
    "draw": "publish",
    "read": "history",
    "look": "presence",
    "join": "subscribe",
    "wave": "publish",
}
"""The right that a command needs on `data.channel`: the engine's own, guarded handlers, and a relay."""

CONVERSATION: Final[Mapping[str, str]] = {
    "send_message": "publish",
    "typing_start": "publish",
    "typing_stop": "publish",
}
"""The right that a command needs on the conversation of `data.conversationId`."""

HTTP: Final[Sequence[tuple[str, str, object, str]]] = [
    ("GET", "/api/presence/{channel}", None, "presence"),
    ("GET", "/api/channels/{channel}/history", None, "history"),
]
HTTP_CONVERSATION: Final[Sequence[tuple[str, str, object, str]]] = [
    ("POST", "/api/conversations/{id}/messages", {"content": "x"}, "publish"),
    ("GET", "/api/conversations/{id}/messages", None, "history"),
    ("PATCH", "/api/conversations/{id}/messages/1000000", {"content": "y"}, "publish"),
    ("DELETE", "/api/conversations/{id}/messages/1000000", None, "publish"),
    ("PATCH", "/api/conversations/{id}", {"title": "x"}, "publish"),
]


def own_of(channel: str) -> str:
    """Return the name that grants and answers use."""
    return "user:alice" if channel == "user:me" else channel


def expected(channel: str, access: str, granted: frozenset[str], *, hooks: bool) -> frozenset[str]:
    """Return the rights that alice has on a channel."""
    if channel.startswith("_realtime:"):
        return NONE
    is_closed = access == "grants" and channel.startswith("conversation:")
    rights = granted | (NONE if is_closed else OPEN[channel])
    return rights | HOOKED.get(channel, NONE) if hooks else rights


def app_with_every_command() -> Realtime:
    """Return an app with a guarded handler of each right, a relay, and a hook."""
    app = Realtime()
    app.include(Conversations())
    app.allow("news:*", "subscribe", "history")
    app.relay("wave", channel="{data.channel}", event="waved", data={"by": "{session.user}"})
    app.authorize("poll:{poll}")(lambda session, poll: Grant("subscribe", "publish"))  # noqa: ARG005 -- its contract

    def done(session: Session) -> None:
        del session

    for type, right in (("draw", "publish"), ("read", "history"), ("look", "presence"), ("join", "subscribe")):
        app.on(type, right=right, channel="{data.channel}")(done)
    return app


def grants_of(channel: str, granted: frozenset[str]) -> dict[str, list[str]]:
    return {own_of(channel): sorted(granted)} if granted else {}


@pytest.mark.parametrize("access", ["open", "grants"])
@pytest.mark.parametrize("channel", OPEN)
async def test_every_command_is_allowed_by_the_rights_on_its_channel_and_by_nothing_else(
    channel: str, access: Any, subtests: pytest.Subtests
) -> None:
    conversations, limits = ConversationSettings(access=access), LimitSettings(enabled=False)
    async with World(app_with_every_command(), conversations=conversations, limits=limits) as world:
        for granted in GRANTS:
            grants = grants_of(channel, granted)
            wrong = await wrong_by_socket(world, channel, access, granted, grants)
            wrong += await wrong_by_http(world, channel, access, granted, grants)
            with subtests.test(granted=sorted(granted)):
                assert wrong == []


async def wrong_by_socket(
    world: World, channel: str, access: str, granted: frozenset[str], grants: dict[str, list[str]]
) -> list[str]:
    """Return what a session is answered wrongly."""
    rights = expected(channel, access, granted, hooks=True)
    commands: list[tuple[str, str, dict[str, object]]] = [
        (type, right, {"channel": channel, "event": "e", "data": 1}) for type, right in SOCKET.items()
    ]
    if channel.startswith("conversation:"):
        id = channel.removeprefix("conversation:")
        commands += [(type, right, {"conversationId": id, "content": "x"}) for type, right in CONVERSATION.items()]
    wrong = []
    for type, right, data in commands:
        # A session each: what a hook gave is remembered for the others.
        alice = await world.test.connect("alice", grants=grants)
        # Templates say what they say: `user:me` is there the channel of the user `me`.
        may = right in (rights if channel != "user:me" or type in {"subscribe", "history", "publish"} else NONE)
        answer = await alice.command(type, **data)
        code = answer.data["code"] if answer.type == "error" else "ok"
        if code != ("ok" if may else "forbidden"):
            wrong.append(f"socket: {type} on {channel} with {sorted(rights)} is {code}")
        if type == "send_message" and may and not answer.data["number"]:
            wrong.append(f"socket: {type} on {channel} is stored nowhere")
        if type == "subscribe" and may and answer.data["channel"] != own_of(channel):
            wrong.append(f"socket: {type} of {channel} is confirmed as {answer.data['channel']}")
        left = await alice.command("unsubscribe", channel=channel)
        if (left.type, left.data["channel"]) != ("unsubscription_confirmed", own_of(channel)):
            wrong.append(f"socket: unsubscribe {channel} is answered {left.raw}")
        await alice.close()
    return wrong


async def wrong_by_http(
    world: World, channel: str, access: str, granted: frozenset[str], grants: dict[str, list[str]]
) -> list[str]:
    """Return what a request is answered wrongly."""
    rights = expected(channel, access, granted, hooks=False)
    requests = list(HTTP)
    if channel.startswith("conversation:"):
        requests += HTTP_CONVERSATION
    wrong = []
    for method, template, content, right in requests:
        path = template.format(channel=quote(channel), id=quote(channel.removeprefix("conversation:")))
        answer = await world.call(method, path, content, user="alice", claims={"channels": grants})
        # Message 1000000 is not there: whoever may change it is told so.
        allowed = {404} if path.endswith("/1000000") else {200, 201}
        refused = {400} if channel.startswith("_realtime:") else {403}
        if answer.status not in (allowed if right in rights else refused):
            wrong.append(f"http: {method} {path} with {sorted(rights)} is {answer.status}")
    return wrong


async def test_what_is_no_channel_is_refused_before_any_right_by_both_doors() -> None:
    app = app_with_every_command()
    grants = {"**": sorted(ALL)}
    async with World(app, limits=LimitSettings(enabled=False)) as world:
        alice = await world.test.connect("alice", grants=grants)
        for name in ("a b", "-a", "news:ü", "x" * 129, "user:auth0|bob"):
            for type in SOCKET:
                answer = await alice.command(type, channel=name, event="e")
                is_user = name.startswith("user:") and type not in {"subscribe", "history", "publish"}
                if is_user:
                    # A template may say anybody's channel by the raw id.
                    assert answer.type == "ack", (type, name)
                    continue
                assert (answer.data["code"], answer.data["path"]) == ("invalid_message", "data.channel"), (type, name)
            for method, template, content, _ in HTTP:
                path = template.format(channel=quote(name))
                refused = await world.call(method, path, content, user="alice", claims={"channels": grants})
                assert refused.problem == (400, "invalid_message", "channel"), path
        for id in ("a b", "ü", "x" * 120):
            for type in CONVERSATION:
                answer = await alice.command(type, conversationId=id, content="x")
                assert answer.data["code"] == "invalid_message"
                assert answer.data["path"] == "data.conversationId"
            for method, template, content, _ in HTTP_CONVERSATION:
                path = template.format(id=quote(id))
                refused = await world.call(method, path, content, user="alice", claims={"channels": grants})
                assert refused.problem == (400, "invalid_message", "conversationId"), path


async def test_a_message_without_its_conversation_or_content_is_answered_in_the_first_versions_words() -> None:
    for access in ("open", "grants"):
        async with World(conversations=ConversationSettings(access=access)) as world:
            alice = await world.test.connect("alice", grants={"conversation:1": ["publish"]})
            none: list[dict[str, Any]] = [{}, {"content": "x"}, {"conversationId": None}, {"conversationId": ""}]
            for data in none:
                answer = await alice.command("send_message", **data)
                assert answer.data["message"] == "ConversationId and content are required"
                assert (answer.data["code"], answer.data["path"]) == ("invalid_message", "data.conversationId")
            empty: list[dict[str, Any]] = [{"conversationId": "1"}, {"conversationId": 1, "content": ""}]
            for data in empty:
                answer = await alice.command("send_message", **data)
                assert answer.data["message"] == "ConversationId and content are required"
            wrong: list[object] = [True, {}, []]
            for id in wrong:
                answer = await alice.command("send_message", conversationId=id, content="x")
                assert answer.data["message"] == "Invalid message format"
                assert (answer.data["code"], answer.data["path"]) == ("invalid_message", "data.conversationId")
            sent = await alice.ack("send_message", conversationId=1.0, content="x")
            assert sent["conversationId"] == "1"


ODD: Final = {
    "auth0|5f7c": "user:.YXV0aDB8NWY3Yw",
    "ann+test@example.com": "user:.YW5uK3Rlc3RAZXhhbXBsZS5jb20",
    "Zoë": "user:.Wm_Dqw",
    "org/user": "user:.b3JnL3VzZXI",
    ".Wm_Dqw": "user:.LldtX0Rxdw",
    ".abc": "user:.LmFiYw",
    "me": "user:me",
    "x" * 200: "user:." + "eHh4" * 66 + "eHg",
}


@pytest.mark.parametrize("user", ODD)
async def test_a_user_of_any_id_reads_its_own_channel_by_both_doors_and_nobody_elses(user: str) -> None:
    app = Realtime()
    app.policy("user:*", history=10)
    channel = ODD[user]

    @app.on("tell")
    def tell(session: Session) -> Publishing:
        return app.publish(user_channel(session.user), "told", {"n": 1})

    async with World(app) as world:
        own, eve = await world.test.connect(user), await world.test.connect("eve")
        assert (await own.command("subscribe", channel="user:me")).data["channel"] == channel
        await eve.send("tell")
        own.refute("told")
        await own.send("tell")
        assert (await own.expect("told")).channel == channel
        for said in {"user:me", f"user:{user}", channel}:
            path = f"/api/channels/{quote(said, safe='')}/history"
            found = await world.call("GET", path, user=user)
            assert (found.status, found.json["channel"], len(found.json["events"])) == (200, channel, 1), said
            if said != "user:me":
                foreign = await world.call("GET", path, user="eve")
                assert foreign.status == (403 if is_channel(said) else 400), said
        for said in (f"user:{user}", channel):
            if user != ".Wm_Dqw" or said == channel:
                members = await world.call("GET", f"/api/presence/{quote(said, safe='')}", key=True)
                assert members.json["users"] == [{"userId": user, "sessions": 1}]
                assert (members.json["channel"], members.json["truncated"]) == (channel, False)
        # What reads as the encoded form of another id is that, for whoever says it for somebody else.
        for said in {f"user:{user}", channel} - {"user:.Wm_Dqw" if user == ".Wm_Dqw" else ""}:
            told = {"type": "told", "data": {"n": 2}, "channel": said}
            assert (await world.call("POST", "/api/events", told, key=True)).status == 200
            await own.expect("told", n=2)
            assert app.publish(said, "told", {"n": 4}).channel == channel
            await own.expect("told", n=4)
        told = {"type": "told", "data": {"n": 3}, "userId": user}
        assert (await world.call("POST", "/api/events", told, key=True)).status == 200
        await own.expect("told", n=3)
        eve.refute("told", n=2)


@pytest.mark.parametrize(("bytes_max", "is_cut"), [(92, False), (91, True)])
async def test_presence_over_a_page_leaves_users_out_and_says_so(
    bytes_max: int, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PAGE_BYTES_MAX", bytes_max)
    app = Realtime()
    app.allow("room:1", "subscribe")
    async with World(app) as world:
        for user in ("ann", "bob.b"):
            await (await world.test.connect(user)).command("subscribe", channel="room:1")
        # A user takes its JSON and 40 bytes.
        found = (await world.call("GET", "/api/presence/room:1", key=True)).json
        listed = [user["userId"] for user in found["users"]]
        assert (listed, found["connections"]) == (["ann"] if is_cut else ["ann", "bob.b"], 2)
        assert found["truncated"] == is_cut


@pytest.mark.parametrize(("spare", "is_cut"), [(0, False), (-1, True)])
async def test_sessions_over_a_page_are_left_out_and_it_says_so(
    spare: int, is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(Realtime()) as world:
        first, second = await world.test.connect("ann"), await world.test.connect("ann")
        whole = await world.call("GET", "/api/users/ann/sessions", key=True)
        items = [{"sessionId": each.session.id, "path": "/ws"} for each in (first, second)]
        assert whole.json == {"userId": "ann", "items": items, "truncated": False}
        monkeypatch.setattr(users, "PAGE_BYTES_MAX", 2 * len(msgspec.json.encode(items[0])) + 2 + spare)
        found = (await world.call("GET", "/api/users/ann/sessions", key=True)).json
        assert found == {"userId": "ann", "items": items[: 1 if is_cut else 2], "truncated": is_cut}


async def test_every_path_with_a_user_or_a_channel_takes_a_slash() -> None:
    user, app = "arn:aws:iam::1:user/ann", Realtime()
    app.allow("room:{session.user}", "subscribe", "presence")
    async with World(app) as world:
        ann = await world.test.connect(user)
        path = f"/api/users/{quote(user, safe='')}/sessions"
        for who in ({"key": True}, {"user": user}):
            listed = await world.call("GET", path, **who)
            assert (listed.status, listed.json["userId"]) == (200, user)
            assert listed.json["items"] == [{"sessionId": ann.session.id, "path": "/ws"}]
        assert (await world.call("GET", path, user="eve")).status == 403
        confirmed = await ann.command("subscribe", channel=f"user:{user}")
        own = quote(confirmed.data["channel"])
        path = f"/api/channels/{quote(f'user:{user}', safe='')}/users/{quote(user, safe='')}"
        assert (await world.call("DELETE", path, key=True)).status == 204
        assert (await ann.expect("unsubscribed")).channel == confirmed.data["channel"]
        assert (await world.call("GET", f"/api/presence/{own}", key=True)).json["users"] == []
        assert (await world.call("DELETE", f"/api/users/{quote(user, safe='')}/sessions", key=True)).status == 204
        assert ann.closed is not None


async def test_an_encoded_slash_parts_no_segments_of_our_own_paths() -> None:
    async with World() as world:
        for path in ("/api%2Fusers/ann/sessions", "/api/users/ann%2Fsessions", "/api%2fconversations/1/messages"):
            assert (await world.call("GET", path, key=True)).problem == (404, "not_found", None)


@pytest.mark.parametrize("user", ["Zo%EB", "%ff", "%ed%a0%80", "a%2F%fe"])
async def test_a_user_in_a_path_that_is_not_utf8_is_nobody(user: str) -> None:
    async with World() as world:
        for method in ("GET", "DELETE"):
            answer = await world.call(method, f"/api/users/{user}/sessions", key=True)
            assert answer.problem == (400, "invalid_message", None)


@pytest.mark.parametrize("number", ["٣", "\uff11", "1_0", "+1", "%201", "1.0", "0x1", "-1", "1e0", "²"])
async def test_a_number_in_a_path_is_ascii_digits(number: str) -> None:
    async with World() as world:
        await world.call("POST", "/api/conversations/7/messages", {"content": "x"}, user="ann")
        path = f"/api/conversations/7/messages/{quote(number, safe='%')}"
        for method, content in (("PATCH", {"content": "y"}), ("DELETE", None)):
            answer = await world.call(method, path, content, user="ann")
            assert answer.problem == (404, "not_found", None)
        left = await world.call("GET", "/api/conversations/7/messages", user="ann")
        assert [message["content"] for message in left.json["items"]] == ["x"]
        # A query is read by the rules of JSON, to which 1.0 and 1e0 are whole numbers.
        for name in () if number in {"1.0", "1e0"} else ("after", "limit"):
            path = f"/api/conversations/7/messages?{name}={quote(number, safe='%')}"
            answer = await world.call("GET", path, user="ann")
            assert answer.problem == (400, "invalid_message", name), answer.body


async def test_the_type_of_an_event_follows_the_grammar_of_names() -> None:
    app = Realtime()
    async with World(app) as world:
        for good in ("told", "a.b:c@d-e", "_x", "x" * 128):
            told = {"type": good, "data": 1, "all": True}
            assert (await world.call("POST", "/api/events", told, key=True)).status == 200, good
            _ = app.publish("news:1", good, 1)
        for bad in ("", "a b", "-a", ".a", "é", "a\n", "x" * 129):
            told = {"type": bad, "data": 1, "all": True}
            assert (await world.call("POST", "/api/events", told, key=True)).problem == (400, "invalid_message", "type")
            with pytest.raises(ValueError, match="is not the name of an event; use 1 to 128 of"):
                _ = app.publish("news:1", bad, 1)
            with pytest.raises(ValueError, match="is not the name of an event"):
                app.relay("x", channel="news:1", event=bad, data={})


async def test_every_error_is_stored_nowhere_and_taken_for_nothing_else() -> None:
    async with World() as world, World(draining=True) as draining:
        table: list[tuple[World, str, str, object, dict[str, Any], int]] = [
            (world, "GET", "/nowhere", None, {}, 404),
            (world, "PUT", "/api/tickets", None, {}, 405),
            (world, "GET", "/api/presence/a", None, {}, 401),
            (world, "GET", "/api/presence/private:1", None, {"user": "ann"}, 403),
            (world, "GET", "/api/presence/a%20b", None, {"user": "ann"}, 400),
            (world, "POST", "/api/events", {"type": ""}, {"key": True}, 400),
            (world, "GET", "/api/conversations/7/messages?after=x", None, {"user": "ann"}, 400),
            (world, "GET", "/metrics", None, {"client": "203.0.113.1"}, 401),
            (world, "GET", "/health?\xff", None, {}, 200),
            (draining, "GET", "/api/presence/a", None, {}, 503),
            (draining, "GET", "/ready", None, {}, 503),
        ]
        for each, method, path, content, who, status in table:
            answer = await each.call(method, path, content, **who)
            assert answer.status == status, path
            assert answer.headers["cache-control"] == "no-store", path
            assert answer.headers["x-content-type-options"] == "nosniff", path
        answer = await world.ask("/api/presence/a", query=b"\xff")
        assert (answer.status, answer.headers["cache-control"]) == (400, "no-store")


async def test_an_event_to_a_conversation_without_an_id_is_refused() -> None:
    async with World() as world:
        told = {"type": "told", "data": 1, "conversationId": ""}
        answer = await world.call("POST", "/api/events", told, key=True)
        assert answer.problem == (400, "invalid_message", "conversationId")


async def test_the_servers_own_channels_are_nobodys_to_publish_to() -> None:
    app = Realtime()
    async with World(app) as world:
        with pytest.raises(ValueError, match="is the server's own channel; use another name"):
            _ = app.publish("_realtime:revocations", "revoked", {"user": "bob"})
        told = {"type": "revoked", "data": {"user": "bob"}, "channel": "_realtime:revocations"}
        assert (await world.call("POST", "/api/events", told, key=True)).problem == (403, "forbidden", "channel")
