"""Bad input: each kind has one exact answer, the server stays up and the others notice nothing.

Frames are literal bytes, since no client library would send them. Close codes are those of RFC 6455 7.4.1.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from tests.kit import Client, RawSocket, Server, client_frame, eventually, token_for, upgrade_request

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A


@pytest.fixture
async def watcher(server: Server, tag: str) -> AsyncIterator[Client]:
    """Somebody else on the same server, in the middle of a conversation."""
    async with await server.connect(f"{tag}watcher", about=tag) as client:
        await client.subscribe(f"conversation:{tag}")
        yield client


async def unharmed(watcher: Client, tag: str) -> None:
    """Assert that the other connection works as before and got nothing that is not its own."""
    await watcher.say(tag, "still here")
    await watcher.expect("new_message", content="still here")
    assert {frame["type"] for frame in watcher.inbox} <= {"user_presence"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("a TLS hello", bytes.fromhex("16030100c8010000c40303") + b"\x5a" * 190),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("zeros", b"\0" * 512),
        ("noise", bytes(range(128, 256)) * 4),
        ("a masked frame", client_frame(TEXT, b"hello")),
        ("HTTP 0.9", b"GET /ws\r\n"),
        ("no target", b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ],
)
async def test_what_is_not_http_is_400(server: Server, watcher: Client, tag: str, kind: str, content: bytes) -> None:
    async with await RawSocket.open(server.port) as peer:
        await peer.send(content)
        status, _, body = await peer.response()
    assert (status, body) == (400, "Bad Request"), kind
    await unharmed(watcher, tag)


async def test_plain_http_is_answered_and_closed(server: Server, watcher: Client, tag: str) -> None:
    for request, expected in (
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", (404, "WebSocket endpoint not found")),
        (b"POST /login HTTP/1.0\r\nContent-Length: 3\r\n\r\na=b", (404, "WebSocket endpoint not found")),
        (b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", (401, "Unauthorized")),
    ):
        async with await RawSocket.open(server.port) as peer:
            await peer.send(request)
            status, _, body = await peer.response()
        assert (status, body) == expected
    await unharmed(watcher, tag)


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "an unmasked frame": (client_frame(TEXT, b'{"type":"ping"}', mask=None), 1002),
    "RSV1 that was not negotiated": (client_frame(TEXT | 0x40, b"{}"), 1002),
    "RSV2": (client_frame(TEXT | 0x20, b"{}"), 1002),
    "RSV3": (client_frame(TEXT | 0x10, b"{}"), 1002),
    "opcode 3": (client_frame(0x83, b""), 1002),
    "opcode 11": (client_frame(0x8B, b""), 1002),
    "a ping of 126 bytes": (client_frame(PING, b"x" * 126), 1002),
    "a ping in fragments": (client_frame(0x09, b"x"), 1002),
    "a close in fragments": (client_frame(0x08, b""), 1002),
    "a continuation of nothing": (client_frame(0x80, b"x"), 1002),
    "a message inside a fragmented one": (client_frame(0x01, b"{") + client_frame(TEXT, b"{}"), 1002),
    "a length of 2^63": (bytes([TEXT, 0xFF]) + (1 << 63).to_bytes(8, "big") + b"abcd", 1002),
    "a length of 2^62": (bytes([TEXT, 0xFF]) + (1 << 62).to_bytes(8, "big") + b"abcd", 1009),
    "a length of 17 MiB": (bytes([TEXT, 0xFF]) + (17 << 20).to_bytes(8, "big") + b"abcd", 1009),
    "invalid UTF-8": (client_frame(TEXT, b"\xff"), 1007),
    "an overlong slash": (client_frame(TEXT, b"\xc0\xaf"), 1007),
    "a UTF-8 surrogate": (client_frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a code point over U+10FFFF": (client_frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "UTF-8 that is cut off": (client_frame(TEXT, b"\xe2\x82"), 1007),
    "UTF-8 that breaks across fragments": (client_frame(0x01, b"\xe2\x82") + client_frame(0x80, b"\x28"), 1007),
    "a close of one byte": (client_frame(CLOSE, b"\x03"), 1002),
    "a close with code 999": (client_frame(CLOSE, (999).to_bytes(2, "big")), 1002),
    "a close with code 1005": (client_frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
    "a close with code 1006": (client_frame(CLOSE, (1006).to_bytes(2, "big")), 1002),
    "a close with code 1015": (client_frame(CLOSE, (1015).to_bytes(2, "big")), 1002),
    "a close with code 2999": (client_frame(CLOSE, (2999).to_bytes(2, "big")), 1002),
    "a close with code 5000": (client_frame(CLOSE, (5000).to_bytes(2, "big")), 1002),
    "a close whose reason is not UTF-8": (client_frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007),
}


@pytest.mark.parametrize("kind", VIOLATIONS)
async def test_violation_is_closed_with_its_code(server: Server, watcher: Client, tag: str, kind: str) -> None:
    content, code = VIOLATIONS[kind]
    async with await server.raw(f"{tag}mallory") as peer:
        await peer.send(content)
        assert (await peer.close_frame())[0] == code
    await unharmed(watcher, tag)


@pytest.mark.parametrize("kind", ["RSV2", "invalid UTF-8", "a length of 2^63", "UTF-8 that breaks across fragments"])
async def test_violation_in_single_bytes_is_closed_with_the_same_code(server: Server, tag: str, kind: str) -> None:
    content, code = VIOLATIONS[kind]
    async with await server.raw(f"{tag}mallory") as peer:
        for byte in content:
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.close_frame())[0] == code


async def test_invalid_utf_8_is_closed_before_its_message_is_whole(server: Server, tag: str) -> None:
    async with await server.raw(f"{tag}mallory") as peer:
        await peer.send(client_frame(TEXT, b"\xff" + b"x" * 10, size=1_000_000))
        assert (await peer.close_frame())[0] == 1007


async def test_ten_megabytes_of_nested_brackets_are_an_invalid_message(
    server: Server, watcher: Client, tag: str
) -> None:
    bombs = [b"[" * 10_000_000, b'{"type":"ping","data":' + b"[" * 10_000_000, b'{"a":' * 2_000_000]
    async with await server.raw(f"{tag}mallory") as peer:
        for bomb in bombs:
            await peer.text(bomb)
            frame = await peer.until("error")
            assert frame["data"]["message"] == "Invalid message format"
            assert frame["data"]["code"] == "invalid_message"
        await peer.text('{"type":"ping"}')
        await peer.until("pong")
    await unharmed(watcher, tag)


async def test_message_over_the_limit_in_fragments_is_closed_1009(server: Server, watcher: Client, tag: str) -> None:
    piece = b"x" * 1_000_000
    async with await server.raw(f"{tag}mallory") as peer:
        await peer.send(client_frame(0x01, piece))
        for _ in range(17):
            await peer.send(client_frame(0x00, piece))
        assert (await peer.close_frame())[0] == 1009
    await unharmed(watcher, tag)


async def test_message_of_exactly_the_limit_is_read(server: Server, tag: str) -> None:
    limit = 16 * 1024 * 1024
    payload = b'{"type":"ping","data":"' + b"x" * (limit - 25) + b'"}'
    assert len(payload) == limit
    async with await server.raw(f"{tag}alice") as peer:
        await peer.text(payload)
        await peer.until("pong")
        await peer.text(payload + b" ")
        assert (await peer.close_frame())[0] == 1009


async def test_some_empty_fragments_are_one_message_and_a_hundred_thousand_are_closed_4003(
    server: Server, watcher: Client, tag: str
) -> None:
    async with await server.raw(f"{tag}mallory") as peer:
        await peer.send(client_frame(0x01, b'{"type":"pi') + client_frame(0x00, b"") * 200)
        await peer.send(client_frame(0x80, b'ng"}'))
        await peer.until("pong")
        await peer.send(client_frame(0x01, b""))
        with contextlib.suppress(ConnectionError):
            for _ in range(10):
                await peer.send(client_frame(0x00, b"") * 10_000)
        assert await peer.close_frame() == (4003, "too many commands for too long")
    await unharmed(watcher, tag)


async def test_control_frames_between_fragments_are_answered_at_once(server: Server, tag: str) -> None:
    async with await server.raw(f"{tag}alice") as peer:
        await peer.send(client_frame(0x01, b'{"type":') + client_frame(PING, b"in between"))
        while (frame := await peer.frame())[0] != PONG:
            pass
        assert frame[1] == b"in between"
        await peer.send(client_frame(0x80, b'"ping"}'))
        await peer.until("pong")


async def test_flood_of_pings_whose_pongs_are_never_read_does_not_grow_the_server(
    server: Server, watcher: Client, tag: str
) -> None:
    async with await server.raw(f"{tag}mallory") as peer:
        before = server.memory_bytes()
        flood = client_frame(PING, b"x" * 125) * 1_000
        with_deadline = asyncio.timeout(5)
        try:
            async with with_deadline:
                for _ in range(200):
                    await peer.send(flood)
        except TimeoutError:
            assert with_deadline.expired()
        except ConnectionError:
            pass  # pings are commands to the limits, and who goes on is closed
        assert server.memory_bytes() - before < 64 * 1024 * 1024
        await unharmed(watcher, tag)


async def test_frames_after_a_close_are_not_answered(server: Server, tag: str) -> None:
    async with await server.raw(f"{tag}alice") as peer:
        await peer.send(client_frame(CLOSE, (1000).to_bytes(2, "big")) + client_frame(TEXT, b'{"type":"ping"}'))
        assert (await peer.close_frame())[0] == 1000


async def test_clients_that_vanish_in_the_middle_of_everything_leave_nothing(
    server: Server, watcher: Client, tag: str
) -> None:
    before = server.descriptors()
    for number in range(100):
        peer = await RawSocket.open(server.port)
        request = upgrade_request(f"/ws?token={token_for(f'{tag}m{number}')}")
        content = request + client_frame(TEXT, json.dumps({"type": "ping"}).encode())
        await peer.send(content[: number * len(content) // 100])
        peer.writer.transport.abort()
    await eventually(lambda: server.descriptors() <= before, what="the end of every connection")
    await unharmed(watcher, tag)
