"""Fan-out over transports that are not the engine's: a frame is encoded once and written to every member of a channel.

For those who have a WebSocket server of their own on asyncio and want only this of the package. A member is one
connection: whoever owns its transport makes the member once the upgrade is answered and leaves before it sends a Close
frame. What must hold:

- A member gets the frames of a channel in the order of the calls of `publish`, each whole.
- Nobody waits for a slow one: what its transport holds is bounded; then frames are skipped and counted, or it is cut
  off.
- A transport that fails or closes never keeps the others from their frames.

Everything is called on the loop's thread. Nothing else of the package is imported but the engine's `FrameEncoder`.
"""

import logging
from types import TracebackType
from typing import Literal, Protocol, Self

from realtime._engine import Frame, FrameEncoder

__all__ = ["Fanout", "Member", "Transport"]

_log = logging.getLogger("realtime.fanout")


class Transport(Protocol):
    """What is written to: a transport of asyncio or uvloop, or anything with these four methods. None of them waits."""

    def write(self, data: bytes, /) -> None:
        """Send `data`, now or behind what waits already."""

    def is_closing(self) -> bool:
        """Whether nothing more may be written: the transport is closed, or a Close frame was sent."""

    def get_write_buffer_size(self) -> int:
        """Bytes that wait because the kernel took no more."""

    def abort(self) -> None:
        """Close at once and drop what waits."""


class Fanout:
    """Channels and their members. One loop has as many as it likes; they know nothing of each other."""

    def __init__(
        self,
        encoder: FrameEncoder | None = None,
        *,
        backlog_bytes_max: int = 1 << 20,
        slow: Literal["abort", "skip"] = "abort",
    ) -> None:
        """Make one without members.

        Args:
            encoder: makes frames of what `publish` is given; None for one of its own.
            backlog_bytes_max: what a member's transport may hold, in bytes. A transport that holds nothing takes a
                frame of any size.
            slow: what becomes of a member above that: ``abort`` ends its connection, so that who is connected has
                missed nothing; ``skip`` leaves the frame out for this member and counts it in `Member.missed`.

        Raises:
            ValueError: an argument that is none of these.
        """
        if backlog_bytes_max < 1:
            raise ValueError(
                f"backlog_bytes_max={backlog_bytes_max} is below 1; give what a transport may hold, in bytes"
            )
        if slow not in {"abort", "skip"}:
            raise ValueError(f"slow={slow!r} is neither 'abort' nor 'skip'")
        self.encoder = encoder or FrameEncoder()
        self.backlog_bytes_max = backlog_bytes_max
        self.slow = slow
        self.skipped = 0
        """Frames left out for slow members, since the start."""
        self.aborted = 0
        """Members whose connection was ended because they were slow, since the start."""
        self._channels: dict[str, dict[Member, None]] = {}

    def member(self, transport: Transport, window_bits: int | None = None) -> "Member":
        """Return a member of no channel yet, for a connection whose upgrade has been answered.

        Use it in a ``with`` statement around the time in which the connection is open: it leaves at the end.

        Args:
            transport: what its frames are written to.
            window_bits: the server's window, 8 to 15, where permessage-deflate was agreed with
                ``server_no_context_takeover`` (`Deflate.window_bits`); None where it was not.

        Raises:
            ValueError: a window outside 8 to 15.
        """
        if window_bits is not None and not 8 <= window_bits <= 15:
            raise ValueError(
                f"window_bits={window_bits} is not within 8 to 15 (RFC 7692 7.1.2); None is for plain frames"
            )
        return Member(self, transport, window_bits)

    def members(self, channel: str) -> int:
        """How many members the channel has."""
        return len(self._channels.get(channel, ()))

    def publish(self, channel: str, message: Frame | str | bytes) -> int:
        """Write a message to the channel's members: a frame that is there, text of a `str`, or binary of `bytes`.

        Returns:
            How many it was written to: not those that were closing, skipped or cut off.

        Raises:
            ValueError: a `str` with a lone surrogate; nobody got anything.

        Cost: one encoding, none where nobody is there, one compression at most, and a write for each member.
        """
        members = self._channels.get(channel)
        if not members:
            return 0
        frame = message if isinstance(message, Frame) else self.encode(message)
        # A write may run code of the connection (`pause_writing`), and that may let any member leave.
        return sum([member in members and member.write(frame) for member in tuple(members)])

    def encode(self, message: str | bytes) -> Frame:
        """Return the frame of a message: text of a `str`, binary of `bytes`; to be published to several channels."""
        return self.encoder.text(message) if isinstance(message, str) else self.encoder.binary(message)


class Member:
    """One connection of a fan-out, with the channels it is in. Made by `Fanout.member`."""

    __slots__ = ("_channels", "_fanout", "_left", "_window_bits", "missed", "transport")

    def __init__(self, fanout: Fanout, transport: Transport, window_bits: int | None) -> None:
        self.transport = transport
        self.missed = 0
        """Frames that were skipped for it; tell its client if this grows, so that it can ask for the state."""
        self._fanout = fanout
        self._window_bits = window_bits
        self._channels: set[str] = set()
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    @property
    def channels(self) -> frozenset[str]:
        """The channels it is in."""
        return frozenset(self._channels)

    def subscribe(self, channel: str) -> bool:
        """Get what is published to `channel` from now on; False where that is so already, or where it has left."""
        if self._left or channel in self._channels:
            return False
        self._channels.add(channel)
        self._fanout._channels.setdefault(channel, {})[self] = None  # noqa: SLF001 -- the two are one structure
        return True

    def unsubscribe(self, channel: str) -> bool:
        """Get nothing more of `channel`; False where it was not in it."""
        if channel not in self._channels:
            return False
        self._channels.remove(channel)
        channels = self._fanout._channels  # noqa: SLF001 -- as above
        members = channels[channel]
        del members[self]
        if not members:
            del channels[channel]
        return True

    def leave(self) -> None:
        """Leave every channel for good. Nothing is written to the transport after this, and it is not closed."""
        self._left = True
        for channel in tuple(self._channels):
            self.unsubscribe(channel)

    def write(self, frame: Frame) -> bool:
        """Write a frame to this member alone, in order with what is published.

        Returns:
            False where it got nothing: it has left or is closing (then it leaves), or is too slow.
        """
        if self._left:
            return False
        transport = self.transport
        wire = frame.wire(self._window_bits)
        try:
            if transport.is_closing():
                self.leave()
                return False
            backlog = transport.get_write_buffer_size()
            if backlog and backlog + len(wire) > self._fanout.backlog_bytes_max:
                self._fall_behind()
                return False
            transport.write(wire)
        except Exception:  # noqa: BLE001 -- of whatever make the transport is, the others get their frames
            _log.exception("a transport failed; its connection gets nothing more")
            self.leave()
            return False
        return True

    def _fall_behind(self) -> None:
        if self._fanout.slow == "skip":
            self.missed += 1
            self._fanout.skipped += 1
            return
        self._fanout.aborted += 1
        self.leave()
        # Not `close`, which would wait for the reader that does not read.
        self.transport.abort()
