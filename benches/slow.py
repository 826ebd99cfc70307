"""Do 99 readers wait longer where one more takes 1 KB/s?

Unit: ms from the publish of an event to each of the 99, p50 and p99. Phases without and with the slow reader take turns
on one server, each with readers of its own. Before each phase the kernel's buffers of the slow one are filled, so that
everything for it waits in its outbox. What is checked: each of the 99 gets every event once and in order.

By hand: `.venv/bin/python benches/slow.py`. Prints one line of JSON a round and one of medians. Exit: 0 well, 1 wrong.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect

REALTIME = Path(sys.executable).with_name("realtime")
SECRET = "a-secret-of-the-benches-only-0123456789abcdef"  # noqa: S105 -- of a server that lives for a minute
READERS = 99
FILL_EVENTS, FILL_BYTES = 400, 20_000
CHANNEL = "bench:slow"


def main() -> int:
    """Run the phases; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=3042, help="that the server gets on this machine")
    parser.add_argument("--rounds", type=int, default=3, help="of one phase without and one with the slow reader")
    parser.add_argument("--rate", type=int, default=20, help="events a second")
    parser.add_argument("--seconds", type=float, default=5, help="of each phase")
    parser.add_argument("--bytes", type=int, default=1_000, help="of an event's text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(options.port, Path(folder))
        try:
            return asyncio.run(rounds(options))
        finally:
            server.terminate()
            server.wait(30)


def start(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a server and wait until its port takes connections."""
    sets = ("api.enabled=false", "limits.enabled=false", "presence.everyone_max=1", "server.shards=1")
    arguments = [str(REALTIME), "serve", *(word for item in sets for word in ("--set", item))]
    env = os.environ | {"WS_PORT": str(port), "REALTIME_DATA_DIR": str(folder), "REALTIME_JWT_SECRET": SECRET}
    server = subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return server
    server.kill()
    raise SystemExit(f"nothing answered on port {port} within 30 s")


def url(port: int, user: str) -> str:
    """Where a user connects, with a token that the command line makes."""
    command = [str(REALTIME), "token", "--user", user, "--channels", "bench:*"]
    env = os.environ | {"REALTIME_JWT_SECRET": SECRET}
    token = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()
    return f"ws://127.0.0.1:{port}/ws?token={token}"


async def rounds(options: argparse.Namespace) -> int:
    """Run the phases in turns and print what they took."""
    address = url(options.port, "bench")
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for number in range(options.rounds):
        for with_slow in (False, True) if number % 2 == 0 else (True, False):
            figures, wrong = await phase(address, options, with_slow=with_slow)
            if wrong:
                print(f"WRONG: {wrong}", file=sys.stderr)
                return 1
            found[with_slow].append(figures)
            print(json.dumps({"round": number, "with_slow": with_slow} | figures), flush=True)
    medians = {
        name: {key: statistics.median(each[key] for each in found[with_slow]) for key in ("p50_ms", "p99_ms")}
        for name, with_slow in (("without", False), ("with", True))
    }
    print(json.dumps({"medians": medians, "deliveries": sum(each["deliveries"] for each in found[True])}))
    return 0


async def phase(address: str, options: argparse.Namespace, *, with_slow: bool) -> tuple[dict[str, float], str]:
    """Publish at the rate; returns the figures and what was wrong."""
    count = int(options.rate * options.seconds)
    readers = [await subscribed(address) for _ in range(READERS)]
    sip = asyncio.create_task(sipping(await narrow(address))) if with_slow else None
    writer = await connect(address, compression=None, max_size=None, proxy=None)
    filled = asyncio.Semaphore(0)
    late: list[float] = []
    reading = [asyncio.create_task(read(reader, count, late, filled)) for reader in readers]
    for number in range(FILL_EVENTS):
        await writer.send(event("fill", number, "y" * FILL_BYTES))
        for _ in readers:
            await filled.acquire()
    began = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / options.rate - time.perf_counter()))
        await writer.send(event("measured", number, "x" * options.bytes))
    wrong = next((sentence for sentence in await asyncio.gather(*reading) if sentence), "")
    if sip is not None:
        if sip.done():
            wrong = wrong or "the slow reader has ended"
        sip.cancel()
    for peer in (*readers, writer):
        await peer.close()
    late.sort()
    figures = {
        "p50_ms": round(1_000 * late[len(late) // 2], 3),
        "p99_ms": round(1_000 * late[len(late) * 99 // 100], 3),
        "deliveries": len(late),
    }
    return figures, wrong


def event(kind: str, number: int, text: str) -> str:
    """A publish of a state, with the moment at which it leaves."""
    data = {"n": number, "at": time.perf_counter(), "text": text}
    published = {"channel": CHANNEL, "event": kind, "key": str(number % 8), "data": data}
    return json.dumps({"type": "publish", "data": published})


async def subscribed(address: str) -> ClientConnection:
    """A client that gets the channel's events."""
    peer = await connect(address, compression=None, max_size=None, proxy=None)
    await peer.send(json.dumps({"type": "subscribe", "data": {"channel": CHANNEL}}))
    while json.loads(await peer.recv())["type"] != "subscription_confirmed":
        pass
    return peer


async def read(peer: ClientConnection, count: int, late: list[float], filled: asyncio.Semaphore) -> str:
    """Read until the last event; returns what was wrong. Each event of the fill is told: nobody is to fall behind."""
    wanted = {"fill": 0, "measured": 0}
    while wanted["measured"] < count:
        frame = json.loads(await peer.recv())
        kind = frame["type"]
        if kind not in wanted:
            continue
        if frame["data"]["n"] != wanted[kind]:
            return f"{kind} {frame['data']['n']} in the place of {wanted[kind]}"
        wanted[kind] += 1
        if kind == "measured":
            late.append(time.perf_counter() - frame["data"]["at"])
        else:
            filled.release()
    return ""


async def narrow(address: str) -> socket.socket:
    """The slow one: its upgrade is made here by hand, with the smallest of buffers."""
    loop = asyncio.get_running_loop()
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    peer.setblocking(False)
    host, _, target = address.removeprefix("ws://").partition("/")
    await loop.sock_connect(peer, ("127.0.0.1", int(host.partition(":")[2])))
    head = (
        f"GET /{target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    command = json.dumps({"type": "subscribe", "data": {"channel": CHANNEL}}).encode()
    assert len(command) < 126
    # A mask of zeroes leaves the payload as it is.
    await loop.sock_sendall(peer, head.encode() + bytes([0x81, 0x80 | len(command)]) + bytes(4) + command)
    return peer


async def sipping(peer: socket.socket) -> None:
    """Take 1 KB a second for ever."""
    with peer:
        while await asyncio.get_running_loop().sock_recv(peer, 1_024):  # noqa: ASYNC110 -- it is to be slow
            await asyncio.sleep(1)


if __name__ == "__main__":
    sys.exit(main())
