"""How many events of other systems come in by `POST /api/events`, and what does one cost?

Unit: events a second; µs of the server's CPU an event; µs that a batch takes, from the schedule where there is a rate.
Batches of 1,000 events of about 131 B over four kept connections, each with channels of its own, so that the order in a
channel is that of its batches. What is checked: every answer accepts its whole batch; one subscriber sees the events
of its channel once, in order and without a hole. `--target conversation` stores every event before it is answered.

`benches/run.py` calls this; by hand: `python benches/hooks.py --key KEY --token T --pid PID`, PID being the server's.
Prints one line of JSON. Exit: 0 well, 1 something was lost, doubled, out of order or refused.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

CHANNELS_EACH = 25
PREFIXES = {"channel": "bench:h-", "conversation": "conversation:h-"}
SETTLE_S = 30.0


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    options = command_line()
    sender = Sender(options)
    watcher = Watcher(options, sender)
    watcher.start()
    if not watcher.ready.wait(SETTLE_S):
        print("WRONG: the subscriber did not get its confirmation", file=sys.stderr)
        return 1
    figures = sender.run()
    watcher.finish()
    wrong = sender.wrong + watcher.wrong
    for sentence in wrong[:10]:
        print(f"WRONG: {sentence}", file=sys.stderr)
    print(json.dumps(figures | {"watched": watcher.seen, "wrong": wrong[:10]}))
    return 1 if wrong else 0


def command_line() -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=3001, help="of the HTTP side on this machine")
    parser.add_argument("--ws-port", type=int, default=3002, help="of the sockets")
    parser.add_argument("--key", required=True, help="a service key")
    parser.add_argument("--token", required=True, help="of a user who may subscribe to bench:*")
    parser.add_argument("--pid", type=int, action="append", default=[], help="of the server; may be repeated")
    parser.add_argument("--target", choices=tuple(PREFIXES), default="channel", help="volatile or stored")
    parser.add_argument("--batch", type=int, default=1000, help="events of a request")
    parser.add_argument("--in-flight", type=int, default=4, help="connections, each with one request under way")
    parser.add_argument("--rate", type=float, default=0, help="events a second in all; 0 sends as fast as answers come")
    parser.add_argument("--seconds", type=float, default=5, help="measured time, after one second of warming up")
    return parser.parse_args()


class Sender:
    """The system whose events come in."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.prefix = PREFIXES[options.target]
        self.wrong: list[str] = []
        self.run_id = secrets.token_hex(4)
        self.sent_to_first = 0
        """Events that were sent to the channel that is watched."""
        self._latencies_s: list[float] = []
        self._events = 0
        self._measured_from_s = 0.0
        self._end_s = 0.0
        self._lock = threading.Lock()

    def run(self) -> dict[str, Any]:
        """Send for the time that is asked for; returns the figures."""
        options = self.options
        begin_s = time.perf_counter()
        self._measured_from_s = begin_s + 1
        self._end_s = self._measured_from_s + options.seconds
        threads = [threading.Thread(target=self._send, args=(index, begin_s)) for index in range(options.in_flight)]
        for thread in threads:
            thread.start()
        time.sleep(max(0, self._measured_from_s - time.perf_counter()))
        cpu_before_s, own_before_s = cpu_s(options.pid), time.process_time()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - self._measured_from_s
        cpu = cpu_s(options.pid) - cpu_before_s
        self._latencies_s.sort()
        return {
            "events": self._events,
            "events_per_s": self._events / took_s,
            "server_cpu_us_per_event": cpu * 1e6 / max(1, self._events),
            "latency_us": {"p50": self._percentile(0.5), "p99": self._percentile(0.99)},
            "generator_cpu_share": (time.process_time() - own_before_s) / took_s,
        }

    def _percentile(self, share: float) -> float:
        ordered = self._latencies_s
        return 1e6 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def _send(self, index: int, begin_s: float) -> None:
        options = self.options
        connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=SETTLE_S)
        headers = {"Authorization": f"Bearer {options.key}", "Content-Type": "application/json"}
        interval_s = options.batch * options.in_flight / options.rate if options.rate else 0.0
        due_s = begin_s + interval_s * index / options.in_flight
        first = 0
        with contextlib.closing(connection):
            while time.perf_counter() < self._end_s and not self.wrong:
                body = self._batch(index, first)
                first += options.batch
                if options.rate:
                    time.sleep(max(0.0, due_s - time.perf_counter()))
                started_s = due_s if options.rate else time.perf_counter()
                due_s += interval_s
                connection.request("POST", "/api/events", body, headers)
                response = connection.getresponse()
                answer = response.read()
                if response.status // 100 != 2 or json.loads(answer).get("accepted") != options.batch:
                    self.wrong.append(f"a batch was answered {response.status} {answer[:300]!r}")
                    return
                self._note(index, started_s)

    def _note(self, index: int, started_s: float) -> None:
        now_s = time.perf_counter()
        with self._lock:
            if index == 0:
                self.sent_to_first += self.options.batch // CHANNELS_EACH
            if started_s >= self._measured_from_s:
                self._latencies_s.append(now_s - started_s)
                self._events += self.options.batch

    def _batch(self, index: int, first: int) -> bytes:
        head = f'{{"id":"{self.run_id}-{index}-'
        events = []
        for number in range(first, first + self.options.batch):
            turn, place = divmod(number, CHANNELS_EACH)
            target = f'"channel":"{self.prefix}{index * CHANNELS_EACH + place}"'
            event = f'{head}{number}","type":"tick",{target},"data":{{"n":{turn},"pad":"'
            events.append(f'{event}{"x" * max(0, 127 - len(event))}"}}}}')
        return f"[{','.join(events)}]".encode()


class Watcher(threading.Thread):
    """A subscriber of the first channel."""

    def __init__(self, options: argparse.Namespace, sender: Sender) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self.seen = 0
        self.wrong: list[str] = []
        self._options = options
        self._sender = sender

    def run(self) -> None:
        """Read to the end of the connection."""
        with contextlib.suppress(ConnectionClosed):
            asyncio.run(self._read())

    async def _read(self) -> None:
        address = f"ws://127.0.0.1:{self._options.ws_port}/ws?token={self._options.token}"
        async with connect(address, proxy=None, compression=None, max_queue=None) as socket:
            channel = f"{self._sender.prefix}0"
            await socket.send(json.dumps({"type": "subscribe", "data": {"channel": channel}}))
            async for message in socket:
                frame = json.loads(message)
                if frame["type"] == "subscription_confirmed":
                    self.ready.set()
                elif frame["type"] == "tick":
                    if frame["data"]["n"] != self.seen:
                        self.wrong.append(f"event {frame['data']['n']} of {channel} came where {self.seen} was due")
                        return
                    self.seen += 1
                elif frame["type"] in {"error", "lag"}:
                    self.wrong.append(f"the subscriber got {frame}")
                    return

    def finish(self) -> None:
        """Wait until everything that was accepted has come."""
        deadline_s = time.monotonic() + SETTLE_S
        while self.seen < self._sender.sent_to_first and not self.wrong and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self.seen != self._sender.sent_to_first and not self.wrong:
            self.wrong.append(f"{self._sender.sent_to_first - self.seen} events of the watched channel did not come")


def cpu_s(pids: list[int]) -> float:
    """Scheduler time of all threads of processes."""
    total_ns = 0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total_ns += int(schedstat.read_text().split()[0])
    return total_ns / 1e9


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # The watcher's connection is not waited for.
    os._exit(code)
