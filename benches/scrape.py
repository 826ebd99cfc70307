"""What does a scrape of `/metrics` cost with 10,000 connections open, and does it stall what the loop does besides?

Unit: µs from the request to the last byte; µs to the acknowledgement of a `send_message`, which a Python handler takes,
while nothing is scraped and while it is every 100 ms.

The connections are held by `realtime-load --workload idle`, which benches/run.py starts beside this. Prints one line of
JSON. Exit: 0 well, 1 a scrape or a command failed.
"""

import argparse
import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence

from websockets.asyncio.client import ClientConnection, connect

EVERY_S = 0.1
OPEN_WITHIN_S = 60.0


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=3001, help="of the HTTP side on this machine")
    parser.add_argument("--ws-port", type=int, default=3002, help="of the sockets")
    parser.add_argument("--key", required=True, help="a service key")
    parser.add_argument("--token", required=True, help="of a user who may send messages")
    parser.add_argument("--connections", type=int, default=10_000, help="wait until so many are open")
    parser.add_argument("--seconds", type=float, default=5, help="measured time, half of it without scrapes")
    options = parser.parse_args()
    try:
        figures = asyncio.run(measure(options))
    except (OSError, RuntimeError) as error:
        print(f"WRONG: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Take both halves.

    Raises:
        RuntimeError: the connections did not open, or something was refused.
    """
    await asyncio.to_thread(wait_for_connections, options)
    address = f"ws://127.0.0.1:{options.ws_port}/ws?token={options.token}"
    async with connect(address, proxy=None, compression=None) as socket:
        alone = await acknowledgements(socket, options.seconds / 2)
        scraper = Scraper(options)
        scraper.start()
        beside = await acknowledgements(socket, options.seconds / 2)
        scraper.stop()
    return {
        "connections": scraper.connections,
        "scrapes": len(scraper.took_us),
        "scrape_us": percentiles(scraper.took_us),
        "scrape_bytes": scraper.size,
        "ack_alone_us": percentiles(alone),
        "ack_beside_us": percentiles(beside),
    }


def percentiles(values_us: Sequence[float]) -> dict[str, float]:
    """Median, p99 and the worst."""
    ordered = sorted(values_us) or [0.0]
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[int(0.99 * (len(ordered) - 1))], "max": ordered[-1]}


async def acknowledgements(socket: ClientConnection, seconds: float) -> list[float]:
    """Send messages one after the other; returns how long each took to be acknowledged, in µs."""
    took_us: list[float] = []
    end_s = time.perf_counter() + seconds
    while (started_s := time.perf_counter()) < end_s:
        data = {"conversationId": "scrape", "content": "x"}
        await socket.send(json.dumps({"type": "send_message", "data": data, "id": len(took_us)}))
        while True:
            frame = json.loads(await asyncio.wait_for(socket.recv(), 10))
            if frame.get("id") == len(took_us):
                break
        if frame["type"] != "ack":
            raise RuntimeError(f"send_message was answered {frame}")
        took_us.append((time.perf_counter() - started_s) * 1e6)
    return took_us


def scrape(connection: http.client.HTTPConnection, key: str) -> str:
    """Fetch `/metrics` once.

    Raises:
        RuntimeError: another answer than 200.
    """
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise RuntimeError(f"/metrics answered {response.status} {text[:300]!r}")
    return text


def open_connections(text: str) -> int:
    """How many connections a scrape says are open."""
    lines = [line for line in text.splitlines() if line.startswith("realtime_connections ")]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def wait_for_connections(options: argparse.Namespace) -> None:
    """Return when the generator has opened its connections."""
    connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=10)
    deadline_s = time.monotonic() + OPEN_WITHIN_S
    while (found := open_connections(scrape(connection, options.key))) < options.connections:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{found} of {options.connections} connections are open after {OPEN_WITHIN_S:g} s")
        time.sleep(0.2)
    connection.close()


class Scraper(threading.Thread):
    """What a Prometheus does, only more often."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self.took_us: list[float] = []
        self.size = 0
        self.connections = 0
        self._options = options
        self._ended = threading.Event()

    def run(self) -> None:
        """Scrape until it is stopped."""
        connection = http.client.HTTPConnection("127.0.0.1", self._options.port, timeout=10)
        while not self._ended.wait(EVERY_S):
            started_s = time.perf_counter()
            text = scrape(connection, self._options.key)
            self.took_us.append((time.perf_counter() - started_s) * 1e6)
            self.size, self.connections = len(text), open_connections(text)
        connection.close()

    def stop(self) -> None:
        """End after the scrape under way."""
        self._ended.set()
        self.join()


if __name__ == "__main__":
    sys.exit(main())
