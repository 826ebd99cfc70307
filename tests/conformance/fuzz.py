"""Autobahn's fuzzing client on Python 3: the suite's cases over the transport that it pins.

Runs in the environment that run.py makes, never in the project's own: it needs Twisted and autobahn 0.10.9, the
version that everybody's results were compared against. It writes `index.json` in the suite's own layout (agent → case
→ behaviour) and prints one line. A case fails where the suite says FAILED; an exception inside the runner and a case
that did not run are failures too, since neither may pass for a result; and so is an extension that was declined.

Usage: python fuzz.py --url ws://127.0.0.1:9001/echo --cases-from FOLDER --report FOLDER [--cases 1.*,12.*.1]
"""

import argparse
import collections
import json
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

parser = argparse.ArgumentParser(description="Autobahn's fuzzing client")
parser.add_argument("--url", required=True)
parser.add_argument("--cases-from", required=True, help="folder with the package that port_cases.py made")
parser.add_argument("--report", required=True, help="folder for index.json")
parser.add_argument("--cases", default="*", help="patterns of case ids, comma-separated")
parser.add_argument("--close-wait", type=float, default=10, help="seconds from a Close frame to the end of TCP")
options = parser.parse_args()
sys.path.insert(0, options.cases_from)

# The environment of these is known only now.
from abcases import Case, CaseBasename, CaseCategories, Cases, CaseSetname, CaseSubCategories  # noqa: E402
from abcases.caseset import CaseSet  # noqa: E402
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, connectWS  # noqa: E402
from autobahn.websocket.protocol import WebSocketProtocol  # noqa: E402
from twisted.internet import reactor  # noqa: E402
from twisted.python import log as twisted_log  # noqa: E402

RAW_CASES = ("12.", "13.")
"""Cases that hash the payload's bytes themselves."""

WIRE_LOG_MAX = 200
REFUSALS_MAX = 20


def octets(text: Any) -> Any:
    """Return the octets of a case's text, which is latin-1 by the rule of port_cases.py."""
    return text.encode("latin-1") if isinstance(text, str) else text


def clipped(payload: Any) -> str:
    """Return the first bytes of a payload for the report."""
    content = octets(payload) or b""
    return content[:64].hex() + ("..." if len(content) > 64 else "")


class Protocol(WebSocketClientProtocol):
    """The part of the suite's own protocol that its cases call; text at the cases' side, octets at the transport's."""

    connectionWasOpen = None  # noqa: N815 - the names of this class are what the cases call
    createWirelog = True  # noqa: N815
    createStats = True  # noqa: N815

    def connectionMade(self) -> None:  # noqa: N802
        self.rxOctetStats: dict[int, int] = {}
        self.txOctetStats: dict[int, int] = {}
        self.rxFrameStats: dict[int, int] = {}
        self.txFrameStats: dict[int, int] = {}
        self.wirelog: list[tuple[Any, ...]] = []
        self.started = time.time()
        self.is_reported = False
        super().connectionMade()

    def enableWirelog(self, enabled: bool) -> None:  # noqa: N802
        self.createWirelog = enabled

    def logRxOctets(self, payload: bytes) -> None:  # noqa: N802
        self.rxOctetStats[len(payload)] = self.rxOctetStats.get(len(payload), 0) + 1

    def logTxOctets(self, payload: bytes, sync: bool) -> None:  # noqa: ARG002, N802
        self.txOctetStats[len(payload)] = self.txOctetStats.get(len(payload), 0) + 1

    def logRxFrame(self, header: Any, payload: list[bytes]) -> None:  # noqa: N802
        self.rxFrameStats[header.opcode] = self.rxFrameStats.get(header.opcode, 0) + 1
        if self.createWirelog and len(self.wirelog) < WIRE_LOG_MAX:
            content = b"".join(payload)
            self.wirelog.append(("RF", len(content), clipped(content), header.opcode, header.fin, header.rsv))

    def logTxFrame(self, header: Any, payload: bytes, *_: Any) -> None:  # noqa: N802
        self.txFrameStats[header.opcode] = self.txFrameStats.get(header.opcode, 0) + 1
        if self.createWirelog and len(self.wirelog) < WIRE_LOG_MAX:
            self.wirelog.append(("TF", len(payload), clipped(payload), header.opcode, header.fin, header.rsv))

    def sendFrame(self, opcode: int, payload: Any = b"", **rest: Any) -> Any:  # noqa: N802
        size = rest.pop("payload_len", None)  # "repeat the payload up to this"; 0.10.9 divides with / for it
        if size is not None:
            payload = (octets(payload) * (size // max(1, len(payload)) + 1))[:size]
        return super().sendFrame(opcode=opcode, payload=octets(payload), **rest)

    def sendMessage(self, payload: Any, isBinary: bool = False, **rest: Any) -> Any:  # noqa: N802, N803
        return super().sendMessage(octets(payload), isBinary, **rest)

    def sendMessageFrameData(self, payload: Any, sync: bool = False) -> Any:  # noqa: N802
        return super().sendMessageFrameData(octets(payload), sync)

    def sendPing(self, payload: Any = None) -> Any:  # noqa: N802
        return super().sendPing(octets(payload))

    def sendCloseFrame(self, code: Any = None, reasonUtf8: Any = None, isReply: bool = False) -> Any:  # noqa: N802, N803
        return super().sendCloseFrame(code=code, reasonUtf8=octets(reasonUtf8), isReply=isReply)

    def continueLater(self, delay: float, go_on: Any, tag: Any = None) -> None:  # noqa: ARG002, N802
        reactor.callLater(delay, lambda: self.is_open() and go_on())

    def killAfter(self, delay: float) -> None:  # noqa: N802
        reactor.callLater(delay, lambda: self.is_open() and self.failConnection())

    def closeAfter(self, delay: float) -> None:  # noqa: N802
        reactor.callLater(delay, lambda: self.is_open() and self.sendClose())

    def is_open(self) -> bool:
        return bool(self.state != WebSocketProtocol.STATE_CLOSED)

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> Any:  # noqa: N802, N803
        # A peer whose TCP hangs after its Close frame would hold a case for the suite's own 100 s.
        reactor.callLater(options.close_wait, lambda: self.is_open() and self.transport.abortConnection())
        return super().onCloseFrame(code, reasonRaw)

    def onOpen(self) -> None:  # noqa: N802
        self.connectionWasOpen = True
        self.started = time.time()
        self.runCase.onOpen()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N802, N803
        is_raw = self.caseId.startswith(RAW_CASES)
        self.runCase.onMessage(payload if is_raw else payload.decode("latin-1"), isBinary)

    def onPong(self, payload: bytes) -> None:  # noqa: N802
        self.runCase.onPong(payload.decode("latin-1"))

    def onClose(self, wasClean: bool, code: Any, reason: Any) -> None:  # noqa: N802, N803
        self.runCase.onClose(wasClean, code, reason)

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        super().connectionLost(reason)
        if not self.is_reported:
            self.is_reported = True
            self.runCase.onConnectionLost(self.failedByMe)
            self.factory.finished(self)


class Factory(WebSocketClientFactory):
    """Runs one case after the other, each on a connection of its own."""

    protocol = Protocol

    def __init__(self) -> None:
        super().__init__(options.url, useragent="AutobahnTestSuite/25.10.1")
        self.logOctets = self.logFrames = True
        self.setProtocolOptions(failByDrop=False, openHandshakeTimeout=10)
        self.cases = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
        chosen = self.matching(options.cases)
        self.todo = collections.deque(sorted(chosen, key=in_order))
        self.total = len(self.todo)
        self.results: dict[str, dict[str, Any]] = {}
        self.refusals = 0
        self.current = ""

    def matching(self, patterns: str) -> set[str]:
        """Return the ids that match one of the patterns as a whole: "1.*" does not mean 10.1."""
        found: set[str] = set()
        for pattern in filter(None, patterns.split(",")):
            whole = re.compile(re.escape(pattern).replace(r"\*", ".*"))
            found |= {case for case in self.cases.CasesIndices if whole.fullmatch(case)}
        return found

    def buildProtocol(self, address: Any) -> Any:  # noqa: ARG002, N802
        protocol = Protocol()
        protocol.factory = self
        protocol.caseId = self.current
        protocol.runCase = self.cases.CasesById[self.current](protocol)
        return protocol

    def advance(self) -> bool:
        """Take the next case; False at the end."""
        if self.todo:
            self.current = self.todo.popleft()
            return True
        return False

    def finished(self, protocol: Any) -> None:
        """Keep the outcome of a case and say at once what failed."""
        case = protocol.runCase
        is_good = case.behavior not in {Case.FAILED, Case.UNIMPLEMENTED} and case.behaviorClose == Case.OK
        self.results[protocol.caseId] = {
            "behavior": case.behavior,
            "behaviorClose": case.behaviorClose,
            "remoteCloseCode": protocol.remoteCloseCode,
            "duration": int(1000 * (time.time() - protocol.started)),
            "result": case.result,
            "resultClose": case.resultClose,
            "wirelog": None if is_good else protocol.wirelog,
        }
        if case.behavior == Case.FAILED:
            print(f"  {protocol.caseId} FAILED, close {protocol.remoteCloseCode}: {case.result}", flush=True)

    def clientConnectionLost(self, connector: Any, reason: Any) -> None:  # noqa: ARG002, N802
        if self.advance():
            connector.connect()
        else:
            reactor.stop()

    def clientConnectionFailed(self, connector: Any, reason: Any) -> None:  # noqa: ARG002, N802
        self.refusals += 1
        if self.refusals > REFUSALS_MAX:
            reactor.stop()
        else:
            reactor.callLater(0.5, connector.connect)


def in_order(case: str) -> tuple[int, ...]:
    """Sort key of a case id."""
    return tuple(int(part) for part in case.split("."))


def main() -> int:
    """Run the chosen cases and return the exit code: 0 only where everything ran and nothing failed."""
    broken: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("isError"):
            failure = event.get("failure")
            broken.append(f"{factory.current}: {failure.getBriefTraceback() if failure else event.get('message')}")

    twisted_log.startLoggingWithObserver(observe, setStdout=False)
    factory = Factory()
    started = time.time()
    if factory.advance():
        connectWS(factory)
        reactor.run()
    report = Path(options.report)
    report.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"server": factory.results}, indent=1, default=clipped)
    (report / "index.json").write_text(content)
    by: dict[str, list[str]] = collections.defaultdict(list)
    for case, result in sorted(factory.results.items(), key=lambda item: in_order(item[0])):
        by[result["behavior"]].append(case)
        if result["behavior"] != Case.FAILED and result["behaviorClose"] not in {Case.OK, Case.INFORMATIONAL}:
            by["unclean"].append(case)
    missing = factory.total - len(factory.results)
    for line in broken[:5]:
        print(f"  the runner itself failed in case {line}", file=sys.stderr)
    counts = ", ".join(
        f"{len(by[kind])} {name}"
        for kind, name in (
            (Case.OK, "ok"),
            (Case.NON_STRICT, "non-strict"),
            (Case.INFORMATIONAL, "informational"),
            (Case.UNIMPLEMENTED, "unimplemented"),
            (Case.FAILED, "failed"),
            ("unclean", "with an unclean close"),
        )
    )
    bad = by[Case.FAILED] + by[Case.UNIMPLEMENTED] + by["unclean"]
    names = " ".join(bad)
    print(
        f"autobahn: {len(factory.results)} of {factory.total} cases in {time.time() - started:.0f} s: {counts}"
        + (f" ({names})" if names else "")
    )
    is_whole = bool(factory.results) and not missing and not broken
    return 0 if is_whole and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
