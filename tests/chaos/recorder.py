"""What the good clients said and got, and whether it is right.

Each said message is a text of its own. Checked: an acknowledged message reaches every member that stayed or came back
with its position (I3), offsets rise by one message after the other (I1, I2), and nothing comes that nobody said (I4). A
gap that the server announces (`recovered: false`, `lag`, `position_reset`) is counted by itself: honest, not wanted.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Recorder:
    """One for all good clients of a process."""

    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    acked: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """By conversation: the number and the text of every acknowledged message."""

    said: set[str] = field(default_factory=set)

    def fault(self, kind: str, example: str) -> None:
        """Count something that must not happen, and keep the first of a kind."""
        self.faults[kind] += 1
        self.examples.setdefault(kind, example)

    def acknowledged(self, conversation: str, number: int, text: str) -> None:
        """Keep what the server promised."""
        other = self.acked[conversation].setdefault(number, text)
        if other != text:
            self.fault("number given twice", f"{conversation} {number}: {other!r} and {text!r}")


@dataclass
class Seen:
    """What one member got of its conversation."""

    recorder: Recorder
    conversation: str
    first: int = 0
    """The offset up to which it owes nothing: its head when it subscribed for the first time."""

    last: int = 0
    texts: dict[int, str] = field(default_factory=dict)

    def event(self, number: int, text: str) -> None:
        """Take one event; its place must be right behind that of the last one."""
        if number != self.last + 1:
            kind = "gap" if number > self.last else "out of order or twice"
            self.recorder.fault(kind, f"{self.conversation}: {number} after {self.last}")
        if text not in self.recorder.said:
            self.recorder.fault("invented", f"{self.conversation} {number}: {text!r}")
        self.last = max(self.last, number)
        self.texts[number] = text

    def owed(self) -> list[int]:
        """Return the numbers of acknowledged messages that have not come."""
        promised = self.recorder.acked[self.conversation]
        return [number for number, text in promised.items() if number > self.first and self.texts.get(number) != text]
