"""permessage-deflate (RFC 7692) over real sockets: what is agreed, who gets what, what it costs and what a bomb does.

zlib and the `websockets` library are the other ends, so nothing of ours checks itself.
"""

import asyncio
import contextlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from tests.integration.test_metrics import scrape
from tests.kit import Client, RawSocket, Server, client_frame, token_for

VOTES = Path(__file__).parent / "apps" / "votes.py"
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
TEXT, RSV1 = 0x81, 0x40
LONG = "again and again " * 40


def deflated(message: bytes) -> bytes:
    """One message as RFC 7692 7.2.1 puts it on the wire."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH)
    return packed.removesuffix(b"\0\0\xff\xff")


def inflated(payload: bytes) -> bytes:
    """What a message was; it refers to nothing before it and has no final block."""
    unpacker = zlib.decompressobj(-15)
    message = unpacker.decompress(payload + b"\0\0\xff\xff")
    assert not unpacker.eof, "a final block would end the stream (RFC 7692 7.2.3.4)"
    return message


async def frame_of(peer: RawSocket, type: str) -> tuple[int, bytes]:
    """Read up to an event of a type, plain or deflated; return its frame's first byte and payload."""
    while True:
        first, payload = await peer.frame()
        if json.loads(inflated(payload) if first & RSV1 else payload)["type"] == type:
            return first, payload


async def agreed(server: Server, headers: str, user: str = "alice") -> str | None:
    """Return the answer to an offer."""
    async with await RawSocket.open(server.port) as peer:
        head = await peer.upgrade(f"/ws?token={token_for(user)}", headers)
    lines = [line.partition(": ") for line in head.split("\r\n")]
    return next((value for name, _, value in lines if name.lower() == "sec-websocket-extensions"), None)


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=9", f"{ANSWER}; server_max_window_bits=9"),
        ("permessage-deflate; nonsense=1, permessage-deflate; server_max_window_bits=15", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("bzip", None),
    ],
)
async def test_an_offer_is_answered_by_what_we_keep_or_not_at_all(
    server: Server, offer: str, answer: str | None
) -> None:
    found = await agreed(server, f"Sec-WebSocket-Extensions: {offer}\r\n")
    if offer.startswith("permessage-deflate; nonsense"):
        # The second offer is as good as if it had come alone.
        assert found == f"{ANSWER}; server_max_window_bits=15"
    else:
        assert found == answer


async def test_long_events_come_deflated_whole_and_without_a_final_block(server: Server, tag: str) -> None:
    async with (
        await server.connect(f"{tag}bob", about=tag) as bob,
        await server.raw(f"{tag}alice", headers=OFFER) as alice,
    ):
        await alice.text(json.dumps({"type": "subscribe", "data": {"channel": f"conversation:{tag}"}}))
        await alice.until("subscription_confirmed")
        await bob.say(tag, LONG)
        first, payload = await frame_of(alice, "new_message")
        assert first == TEXT | RSV1
        assert len(payload) < len(LONG)
        assert not payload[0] & 1, "BFINAL"
        assert json.loads(inflated(payload))["data"]["content"] == LONG
        await bob.send("typing_start", {"conversationId": tag})
        assert (await frame_of(alice, "typing_indicator"))[0] == TEXT, "short ones stay as they are"


async def test_clients_of_every_kind_get_the_same_events_in_one_order(server: Server, tag: str) -> None:
    windows = [None, 15, 9, None, 10, 15, 9]
    readers: list[Client] = []
    for place, bits in enumerate(windows):
        options = {} if bits is None else {"extensions": [ClientPerMessageDeflateFactory(server_max_window_bits=bits)]}
        readers.append(await server.connect(f"{tag}{place}", about=tag, **options))
        await readers[-1].subscribe(f"conversation:{tag}")
    contents = [f"{number} " + "tick tock " * (number * 7 % 200) for number in range(30)]
    async with await server.connect(f"{tag}bob", about=tag, compression="deflate") as bob:
        for content in contents:
            await bob.say(tag, content)
    for reader in readers:
        got = [(await reader.expect("new_message"))["data"]["content"] for _ in contents]
        assert got == contents
        await reader.socket.close()


async def test_pages_of_history_come_deflated_too(server: Server, tag: str) -> None:
    async with await server.connect(f"{tag}a", about=tag, compression="deflate") as alice:
        contents = [f"{number} {LONG}" for number in range(20)]
        for content in contents:
            await alice.say(tag, content)
        page = (await alice.ask("history", {"channel": f"conversation:{tag}"}))["data"]
        assert [event["data"]["content"] for event in page["events"]] == contents


async def test_a_bomb_ends_its_sender_alone(server: Server, tag: str) -> None:
    bomb = deflated(b"\0" * (64 << 20))
    assert len(bomb) < 1 << 17
    async with await server.connect(f"{tag}watcher", about=tag) as watcher:
        before = server.memory_bytes()
        for _ in range(3):
            async with await server.raw(f"{tag}mallory", headers=OFFER) as peer:
                await peer.send(client_frame(TEXT | RSV1, bomb))
                assert (await peer.close_frame())[0] == 1009
        assert await watcher.is_alive()
        assert server.memory_bytes() < before + (64 << 20), "what was inflated up to the limit is given back"


async def test_what_inflates_costs_its_sender_the_more_commands(server: Server, tag: str) -> None:
    long = deflated(b'{"type":"ping","data":"' + b"a" * (15 << 20) + b'"}')
    async with await server.raw(f"{tag}mallory", headers=OFFER) as peer:
        for _ in range(4):
            await peer.send(client_frame(TEXT | RSV1, long))
        assert await peer.close_frame() == (4003, "too many compressed bytes")


@pytest.mark.parametrize(
    ("headers", "frame", "code"),
    [
        ("", client_frame(TEXT | RSV1, deflated(b'{"type":"ping"}')), 1002),
        (OFFER, client_frame(0x80 | RSV1, deflated(b"x")), 1002),
        (OFFER, client_frame(0x89 | RSV1, b""), 1002),
        (OFFER, client_frame(TEXT | RSV1, b"\xff\xff\xff"), 1007),
        (OFFER, client_frame(TEXT | RSV1, deflated(b"\xff\xfe")), 1007),
    ],
)
async def test_what_breaks_the_extension_ends_the_connection(
    server: Server, tag: str, headers: str, frame: bytes, code: int
) -> None:
    async with await server.raw(f"{tag}mallory", headers=headers) as peer:
        await peer.send(frame)
        assert (await peer.close_frame())[0] == code


async def test_compression_can_be_off_for_all_or_for_one_raw_endpoint(serve: Callable[..., Server]) -> None:
    async with serve("compression.enabled=false") as server:
        assert await agreed(server, OFFER) is None
    async with serve(app=f"{VOTES}:app") as server:
        assert await agreed(server, OFFER) == ANSWER
        for path, answer in (("/echo", True), ("/images", False)):
            async with await RawSocket.open(server.port) as peer:
                head = await peer.upgrade(path, OFFER)
                assert (ANSWER in head) is answer
                if answer:
                    await peer.send(client_frame(TEXT | RSV1, deflated(LONG.encode() * 4)))
                    first, payload = await peer.frame()
                    assert first == TEXT | RSV1
                    assert inflated(payload).decode().endswith(LONG * 4)


@pytest.mark.alone
async def test_a_fan_out_to_a_thousand_costs_one_compression(serve: Callable[..., Server]) -> None:
    async with (
        serve("limits.enabled=false", "presence.everyone_max=1", api=True) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = []
        for number in range(1_000):
            peer = await stack.enter_async_context(await server.raw(f"u{number}", headers=OFFER))
            await peer.text(json.dumps({"type": "subscribe", "data": {"channel": "conversation:1"}}))
            await peer.until("subscription_confirmed")
            peers.append(peer)
        async with await server.connect("bob") as bob:
            _, before = await asyncio.to_thread(scrape, server)
            for _ in range(3):
                await bob.say("1", LONG)
            for peer in peers:
                for _ in range(3):
                    first, payload = await peer.frame()
                    while first == TEXT:
                        first, payload = await peer.frame()
                    assert first == TEXT | RSV1
                    assert json.loads(inflated(payload))["data"]["content"] == LONG
            _, after = await asyncio.to_thread(scrape, server)
    count, read, made = (
        after[f"realtime_{name}_total"] - before[f"realtime_{name}_total"]
        for name in ("compressions", "compression_in_bytes", "compression_out_bytes")
    )
    assert count == 3, "once a message, whatever the members and the shards"
    assert read > 3 * len(LONG) > made
