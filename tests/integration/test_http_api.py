"""The HTTP API of a real server, beside sockets of the same server: what is done by one is seen by the other."""

import asyncio
import base64
import contextlib
import http.client
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.chaos.watch import figures
from tests.kit import RawSocket, Server, clients, token_for, upgrade_request

SERVICE_KEY = "a-service-key-of-the-tests-0123456789abcdef"


@pytest.fixture
async def api(serve: Callable[..., Server]) -> AsyncIterator[Server]:
    """A server with its HTTP side and a service key."""
    async with serve(api=True, env={"REALTIME_SERVICE_KEY": SERVICE_KEY}) as server:
        yield server


async def call(
    server: Server, method: str, path: str, content: object = None, *, bearer: str | None = SERVICE_KEY, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Send one request over a real connection; return status, JSON and headers."""

    def sent() -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=30)
        try:
            body = None if content is None else content if isinstance(content, bytes) else json.dumps(content)
            given = {"content-type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
            if bearer is not None:
                given["authorization"] = f"Bearer {bearer}"
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            found = answer.read()
            return answer.status, json.loads(found) if found else None, {n.lower(): v for n, v in answer.getheaders()}
        finally:
            connection.close()

    return await asyncio.to_thread(sent)


async def test_a_conversation_is_one_over_sockets_and_http(api: Server) -> None:
    async with clients(api, "alice", "bob") as (alice, bob):
        await bob.subscribe("conversation:7")
        status, posted, _ = await call(
            api, "POST", "/api/conversations/7/messages", {"content": "by http"}, bearer=token_for("alice")
        )
        assert (status, posted["number"]) == (201, 1)
        assert (await bob.expect("new_message", content="by http"))["data"] == posted
        assert (await alice.say("7", "by socket"))["number"] == 2
        await call(api, "PATCH", "/api/conversations/7/messages/2", {"content": "new"}, bearer=token_for("alice"))
        assert (await bob.expect("message_updated"))["data"]["content"] == "new"
        status, _, _ = await call(api, "DELETE", "/api/conversations/7/messages/1", bearer=token_for("alice"))
        assert status == 204
        assert (await bob.expect("message_deleted"))["data"]["number"] == 1
        await call(api, "PATCH", "/api/conversations/7", {"title": "t"}, bearer=token_for("alice"))
        assert (await bob.expect("conversation_updated"))["data"] == {"title": "t", "conversationId": "7"}
        status, page, _ = await call(api, "GET", "/api/conversations/7/messages", bearer=token_for("bob"))
        assert [(item["number"], item.get("content")) for item in page["items"]] == [(1, None), (2, "new")]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("9007199254740993", "a"),
        ("9" * 5000, "a"),
        ("1e999", "a"),
        ('{"b":1,"b":2}', "a.b"),
        ("[" * 70 + "]" * 70, "a"),
        ('{"b":["\\ud83d"]}', "a.b[0]"),
        ("{" + ",".join(f'"k{n}":1' for n in range(1025)) + "}", "a.k1024"),
    ],
    ids=["an integer", "5000 digits", "a number", "a key twice", "depth", "half a pair", "1,025 keys"],
)
async def test_http_refuses_the_json_that_a_socket_refuses_and_names_the_member(
    api: Server, value: str, path: str
) -> None:
    metadata = f'{{"a":{value}}}'
    alice = token_for("alice")
    await call(api, "POST", "/api/conversations/7/messages", {"content": "x"}, bearer=alice)
    for method, route, body, at, bearer in (
        ("POST", "/api/conversations/7/messages", f'{{"content":"x","metadata":{metadata}}}', "metadata.", alice),
        ("PATCH", "/api/conversations/7/messages/1", f'{{"metadata":{metadata}}}', "metadata.", alice),
        ("PATCH", "/api/conversations/7", metadata, "", alice),
        ("POST", "/api/events", f'[{{"type":"t","all":true,"data":{metadata}}}]', "[0].data.", SERVICE_KEY),
        ("POST", "/api/events", f'{{"type":"t","channel":"a:1","data":{metadata}}}', "data.", SERVICE_KEY),
    ):
        status, problem, _ = await call(api, method, route, body.encode(), bearer=bearer)
        assert (status, problem["code"]) == (400, "invalid_message"), (method, route)
        assert problem["path"].startswith(at + path), (method, route, problem["path"])
    async with clients(api, "alice") as (client,):
        await client.socket.send(
            f'{{"type":"send_message","id":"c1","data":{{"conversationId":"7","content":"x","metadata":{metadata}}}}}'
        )
        if "ud83d" in value:
            assert (await client.expect("ack"))["data"]["metadata"]["a"] == {"b": ["\ufffd"]}
            return
        error = await client.expect("error")
        assert error["id"] == "c1"
        assert error["data"]["path"].startswith(f"data.metadata.{path}")


async def test_what_was_deleted_stays_so_after_a_crash(api: Server) -> None:
    await call(api, "POST", "/api/conversations/7/messages", {"content": "a-word-to-find"}, bearer=token_for("alice"))
    await call(api, "DELETE", "/api/conversations/7/messages/1", bearer=token_for("alice"))
    await call(api, "POST", "/api/conversations/7/messages", {"content": "next"}, bearer=token_for("alice"))
    api.kill()
    await api.start()
    _, page, _ = await call(api, "GET", "/api/conversations/7/messages", bearer=token_for("alice"))
    assert [(item["number"], item.get("content")) for item in page["items"]] == [(1, None), (3, "next")]


async def test_who_is_there_and_who_is_taken_out(api: Server) -> None:
    async with clients(api, "alice", "alice", "bob") as (first, second, bob):
        for client in (first, second, bob):
            await client.subscribe("conversation:7")
        _, found, _ = await call(api, "GET", "/api/presence/conversation:7", bearer=token_for("bob"))
        assert found["users"] == [{"userId": "alice", "sessions": 2}, {"userId": "bob", "sessions": 1}]
        assert (await call(api, "DELETE", "/api/channels/conversation:7/users/alice"))[0] == 204
        for client in (first, second):
            frame = await client.expect("unsubscribed")
            assert (frame["data"]["code"], frame["data"]["retryable"]) == ("forbidden", False)
        _, found, _ = await call(api, "GET", "/api/presence/conversation:7")
        assert found["users"] == [{"userId": "bob", "sessions": 1}]


async def test_the_sessions_of_a_user_are_listed_and_closed(api: Server) -> None:
    async with clients(api, "alice", "bob") as (alice, bob):
        _, found, _ = await call(api, "GET", "/api/users/alice/sessions", bearer=token_for("alice"))
        assert [item["path"] for item in found["items"]] == ["/ws"]
        assert (await call(api, "DELETE", "/api/users/alice/sessions", bearer=token_for("bob")))[0] == 403
        assert (await call(api, "DELETE", "/api/users/alice/sessions"))[0] == 204
        await alice.closed()
        assert await bob.is_alive()


@pytest.mark.parametrize("user", ["arn:aws:iam::1:user/ann", "auth0|5f7c", "Zoë", "a%2Fb", "a?b#c&d=e", "/", ".", ".."])
async def test_every_path_takes_a_user_of_any_id(api: Server, user: str) -> None:
    quoted = quote(user, safe="").replace(".", "%2E")
    async with clients(api, user, "eve") as (own, eve):
        channel = (await own.subscribe("user:me"))["channel"]
        assert (await own.subscribe(f"user:{user}"))["channel"] == channel
        assert (await eve.ask("subscribe", {"channel": f"user:{user}"}))["type"] == "error"
        status, listed, _ = await call(api, "GET", f"/api/users/{quoted}/sessions", bearer=token_for(user))
        assert (status, listed["userId"], len(listed["items"])) == (200, user, 1)
        status, present, _ = await call(api, "GET", f"/api/presence/user:{quoted}")
        assert (status, present["channel"], present["users"]) == (200, channel, [{"userId": user, "sessions": 1}])
        assert (present["connections"], present["truncated"]) == (1, False)
        status, past, _ = await call(api, "GET", f"/api/channels/user:{quoted}/history", bearer=token_for(user))
        assert (status, past["channel"]) == (200, channel)
        told = {"type": "told", "data": 1, "channel": f"user:{user}"}
        assert (await call(api, "POST", "/api/events", told))[0] == 200
        assert (await own.expect("told"))["channel"] == channel
        assert (await call(api, "DELETE", f"/api/channels/{quote(channel)}/users/{quoted}"))[0] == 204
        assert (await own.expect("unsubscribed"))["channel"] == channel
        assert (await call(api, "DELETE", f"/api/users/{quoted}/sessions"))[0] == 204
        assert (await own.closed())[0] == 1000
        assert await eve.is_alive()


async def test_errors_of_both_ports_are_stored_nowhere_and_taken_for_nothing_else(api: Server) -> None:
    for path, status in (("/ws", 401), ("/nowhere", 404)):
        async with await RawSocket.open(api.port) as peer:
            await peer.send(upgrade_request(path))
            found, headers, _ = await peer.response()
            assert (found, headers["cache-control"], headers["x-content-type-options"]) == (
                status,
                "no-store",
                "nosniff",
            )
    for path, status in (("/api/presence/a", 401), ("/nowhere", 404), ("/api/conversations/7/messages/%D9%A3", 405)):
        bearer = None if status == 401 else SERVICE_KEY
        found, _, headers = await call(api, "GET", path, bearer=bearer)
        assert (found, headers["cache-control"], headers["x-content-type-options"]) == (status, "no-store", "nosniff")


async def test_who_was_signed_out_stays_out(api: Server) -> None:
    old = token_for("alice", iat=int(time.time()) - 60)
    async with await api.connect(token=old, subprotocols=["realtime.v1"]) as alice:
        assert (await call(api, "DELETE", "/api/users/alice/sessions"))[0] == 204
        assert (await alice.closed())[0] == 4500
    assert (await call(api, "GET", "/api/users/alice/sessions", bearer=old))[0] == 401


async def test_a_ticket_opens_one_connection(api: Server) -> None:
    status, issued, _ = await call(api, "POST", "/api/tickets", bearer=token_for("alice"))
    assert (status, issued["expiresInS"]) == (201, 60)
    socket = await RawSocket.open(api.port)
    async with socket:
        await socket.upgrade(f"/ws?ticket={issued['ticket']}")
        _, first = await socket.frame()
        assert json.loads(first)["data"]["userId"] == "alice"
    async with await RawSocket.open(api.port) as again:
        await again.send(upgrade_request(f"/ws?ticket={issued['ticket']}"))
        assert (await again.response())[0] == 401
    assert (await call(api, "POST", "/api/tickets"))[0] == 403


async def test_errors_are_problems_with_the_id_of_the_request(api: Server) -> None:
    status, problem, headers = await call(api, "GET", "/api/nothing", x_request_id="r-7")
    assert (status, problem["code"], headers["content-type"]) == (404, "not_found", "application/problem+json")
    assert headers["x-request-id"] == "r-7"
    status, problem, headers = await call(api, "POST", "/api/events", {}, bearer=None)
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="realtime"')
    assert (await call(api, "PUT", "/api/events", {}))[0] == 405
    assert (await call(api, "POST", "/api/conversations/7/messages", b" " * 1_100_000))[0] == 413
    assert (await call(api, "POST", "/api/events", b"[" * 100_000))[0] == 400
    assert "r-7" in api.output


async def test_many_slow_requests_keep_nobody_from_being_answered(api: Server) -> None:
    head = f"POST /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SERVICE_KEY}\r\nContent-Length: 9\r\n\r\n["
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            socket = await stack.enter_async_context(await RawSocket.open(api.api_port))
            await socket.send(head.encode())
        assert (await call(api, "GET", "/health"))[0] == 200


async def test_who_sends_too_long_a_body_gets_the_answer_all_the_same(api: Server) -> None:
    # Longer than what fits between the two, so that the caller still sends when it is known to be too long.
    for _ in range(5):
        assert (await call(api, "POST", "/api/conversations/7/messages", b" " * (12 << 20)))[0] == 413


async def test_a_body_that_is_cut_off_is_the_callers_fault(api: Server) -> None:
    async with await RawSocket.open(api.api_port) as socket:
        head = f"POST /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SERVICE_KEY}\r\n"
        await socket.send(f"{head}Transfer-Encoding: chunked\r\n\r\nno chunk\r\n".encode())
        assert (await socket.rest()).startswith(b"HTTP/1.1 400 ")
    deep = "".join(
        f"{base64.urlsafe_b64encode(part).decode().rstrip('=')}." for part in (b"{}", b'{"a":' + b"[" * 8000)
    )
    assert (await call(api, "GET", "/api/users/alice/sessions", bearer=f"{deep}AAAA"))[0] == 401
    assert "Traceback" not in api.output


async def test_the_documents_are_for_this_machine_and_load_nothing_from_elsewhere(api: Server) -> None:
    status, document, _ = await call(api, "GET", "/docs/openapi.json", bearer=None)
    assert status == 200
    body = document["paths"]["/api/events"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "HookEvent" in json.dumps(body)
    passed_on = ({"x_forwarded_for": "203.0.113.7"}, {"x_forwarded_proto": "https"}, {"true_client_ip": "203.0.113.7"})
    for header in (*passed_on, {"host": "evil.example"}):
        assert (await call(api, "GET", "/docs/openapi.json", bearer=None, **header))[0] == 401
        assert (await call(api, "GET", "/docs/openapi.json", **header))[0] == 200


async def test_an_address_that_shows_nothing_good_has_a_rate_and_callers_who_are_known_have_none_of_it(
    serve: Callable[..., Server],
) -> None:
    sets = ["limits.address_requests_per_s=1", "limits.address_requests_burst=5", "api.wait_s=0"]
    async with serve(*sets, api=True, env={"REALTIME_SERVICE_KEY": SERVICE_KEY}) as server:
        path = "/api/presence/conversation:1"
        for bearer in (SERVICE_KEY, token_for("alice")):
            for _ in range(20):
                assert (await call(server, "GET", path, bearer=bearer))[0] == 200
        answers = [await call(server, "GET", path, bearer=None) for _ in range(40)]
        assert [status for status, _, _ in answers[:5]] == [401] * 5
        refused = [answer for answer in answers if answer[0] == 429]
        _, told, headers = refused[0]
        assert (told["code"], headers["retry-after"]) == ("rate_limited", "1")
        assert (await call(server, "GET", "/health", bearer=None))[0] == 200
        counted = await asyncio.to_thread(figures, server, 'realtime_http_refused_total{status="429"}')
        assert list(counted.values()) == [len(refused)]
