"""What a client receives, as values. Made by `connection` from the JSON on the wire."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's history: the last event seen. It means something within one epoch only."""

    offset: int
    epoch: str

    def as_data(self) -> dict[str, object]:
        """Return it as `subscribe` and `history` take it."""
        return {"offset": self.offset, "epoch": self.epoch}


@dataclass(frozen=True, slots=True)
class Event:
    """One frame of the server. `data` is plain JSON; what an event does not carry is None."""

    type: str
    data: Any
    timestamp: str | None = None
    channel: str | None = None
    offset: int | None = None
    conversation_id: str | None = None
    user_id: str | None = None
    id: str | int | None = None
    raw: str = field(default="", repr=False, compare=False)
    """The frame as it came."""

    @classmethod
    def decode(cls, text: str | bytes) -> "Event":
        """Return the event of a frame as it came.

        Raises:
            ValueError: it is not a JSON object.
        """
        frame = json.loads(text)
        if not isinstance(frame, dict):
            # The frame is wrong, not the caller: one kind of error for all that is no frame.
            raise ValueError(f"a frame is a JSON object, not {type(frame).__name__}")  # noqa: TRY004
        return cls(
            type=str(frame.get("type")),
            data=frame.get("data"),
            timestamp=frame.get("timestamp"),
            channel=frame.get("channel"),
            offset=frame.get("offset"),
            conversation_id=frame.get("conversationId"),
            user_id=frame.get("userId"),
            id=frame.get("id"),
            raw=text if isinstance(text, str) else text.decode("utf-8", "replace"),
        )


@dataclass(frozen=True, slots=True)
class Subscription:
    """The server's confirmation of a `subscribe`.

    Attributes:
        position: the offset before the first event that follows, and the current epoch; None for channels without
            history. Store it, and move its offset on with each event: it is right however early the connection ends.
        head: the newest offset of the channel; None for channels without history.
        recovered: whether everything after the position asked for follows; None where none was asked for.
        replayed: how many events of the past follow before live ones.
    """

    channel: str
    position: Position | None
    head: int | None
    recovered: bool | None
    replayed: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Subscription":
        """Return the subscription that the data of `subscription_confirmed` tells."""
        position = data.get("position")
        return cls(
            channel=str(data.get("channel")),
            position=None if position is None else Position(position["offset"], position["epoch"]),
            head=data.get("head"),
            recovered=data.get("recovered"),
            replayed=data.get("replayed") or 0,
        )
