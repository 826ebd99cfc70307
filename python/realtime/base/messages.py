"""Messages: the frames that Python composes, and how the data of a command becomes what a handler asked for.

One rule of names: snake_case in Python, camelCase on the wire. Frames here are Structs with `rename="camel"`. A
handler's payload may be a Struct, a dataclass or a TypedDict. A Struct says its own wire names, so one whose wire names
hold an underscore is refused when the handler is registered (`rename="camel"` is the cure). Dataclasses and TypedDicts
have no way to say it, so theirs are read by the rule. Every decoder is made once, at registration.

Invariants: a frame is encoded once, by msgspec; `userId` is the server's word. Called by `routing`, `broadcaster` and
`presence`'s caller; imports nothing of ours but errors.
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, get_type_hints, is_typeddict

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, inspect

from realtime.base.nulls import decoded_again

encode: Final = msgspec.json.Encoder().encode

INVALID: Final = "Invalid message format"
_PATH_CHARS_MAX: Final = 256
RESERVED_EVENTS: Final = (
    "ack",
    "analytics_update",
    "connection_established",
    "conversation_updated",
    "cursor_moved",
    "draining",
    "error",
    "file_processing_update",
    "history",
    "lag",
    "message_deleted",
    "message_read",
    "message_stream",
    "message_updated",
    "new_message",
    "pong",
    "position_reset",
    "presence_diff",
    "presence_mode",
    "presence_state",
    "subscription_confirmed",
    "token_expiring",
    "typing_indicator",
    "unsubscribed",
    "unsubscription_confirmed",
    "user_presence",
)
"""Event names of the protocol, which a client's `publish` may not use."""


class Event(Struct, omit_defaults=True, rename="camel", gc=False):
    """One frame to a client. `timestamp` is `Clock.timestamp`; `id` is the raw JSON of the command that is answered."""

    type: str
    data: Any
    timestamp: str
    conversation_id: str | UnsetType = UNSET
    user_id: str | UnsetType = UNSET
    channel: str | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


class ErrorData(Struct, omit_defaults=True, rename="camel", gc=False):
    """What an `error` event says."""

    message: str
    code: str
    retryable: bool
    path: str | None = None
    channel: str | None = None
    retry_after_ms: int | None = None


class PresenceData(Struct, rename="camel", gc=False):
    """What `user_presence` says; `status` is `online` or `offline`."""

    user_id: str
    status: str


def ack_frame(data: object, timestamp: str, id: bytes) -> bytes:
    """Return the `ack` to the command whose raw id is given."""
    return b"".join((b'{"type":"ack","data":', encode(data), _tail(timestamp), id, b"}"))


@lru_cache(maxsize=2)
def _tail(timestamp: str) -> bytes:
    """Return what stands between the data and the id; the time of a batch is one."""
    return f',"timestamp":"{timestamp}","id":'.encode()


def error_frame(error: ErrorData, timestamp: str, id: bytes | None) -> bytes:
    """Return the `error` event, with the raw id of the command at fault where it had one."""
    return encode(Event("error", error, timestamp, id=UNSET if id is None else Raw(id)))


def new_id(now_ms: int) -> str:
    """Return an identifier whose text sorts by time: a UUID of version 7 (RFC 9562 §5.7)."""
    bits = random.getrandbits(74)
    variant = 0x8000 | bits >> 48 & 0x3FFF
    return f"{_time_of_id(now_ms)}-7{bits >> 62:03x}-{variant:04x}-{bits & 0xFFFF_FFFF_FFFF:012x}"


@lru_cache(maxsize=2)
def _time_of_id(now_ms: int) -> str:
    """Return the first 48 bits of a UUID of version 7, which all of a batch share."""
    return f"{now_ms >> 16 & 0xFFFF_FFFF:08x}-{now_ms & 0xFFFF:04x}"


def camel(name: str) -> str:
    """Return the wire name of a Python name: `conversation_id` is `conversationId`."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


_MEMBER = re.compile(r"Object (?:missing required|contains unknown) field `([^`]+)`")
_AT: Final = " - at `"


def path_of(error: msgspec.DecodeError) -> str:
    """Return where in a text the fault is that `error` complains of, such as `[3].userId`; empty for the whole of it.

    The error may repeat as much as was sent, so only its end is looked at, and its begin.
    """
    text = str(error)
    _, at, place = text.rpartition(_AT)
    path = place.removesuffix("`").removeprefix("key in ").removeprefix("$") if at and place.endswith("`") else ""
    member = _MEMBER.match(text)
    return f"{path}.{member.group(1)}" if member else path


def error_path(error: msgspec.DecodeError) -> str:
    """Return the path of the field that `error` complains of, in the form `data.choice`."""
    return f"data{path_of(error)}"[:_PATH_CHARS_MAX]


class Payload:
    """How the data of one type of command is decoded. Made at registration, used for every message.

    Raises:
        TypeError: on a type that msgspec cannot decode, or whose wire names would hold an underscore.
    """

    __slots__ = ("_described", "absent", "decode")

    def __init__(self, annotation: Any) -> None:
        described = _described(annotation)
        self.decode: Callable[[bytes], Any]
        self.decode, self._described = _decoder(annotation, described)
        objects = inspect.StructType | inspect.DataclassType | inspect.TypedDictType | inspect.DictType
        # A command without data is one with an empty object, so that a missing member is named as such.
        self.absent = b"{}" if isinstance(described, objects | inspect.AnyType) else b"null"

    def again(self, data: bytes, error: msgspec.ValidationError) -> Any:
        """Decode what was refused by `error` as `nulls.decoded_again` does."""
        return decoded_again(self.decode, data, self._described, error)


def check_names(annotation: Any) -> None:
    """Refuse a type that would put a name with an underscore on the wire.

    Raises:
        TypeError: names the type, the field and the cure.
    """
    _check_names(_described(annotation), set())


_TEXT_TYPES: Final = (
    inspect.AnyType
    | inspect.BoolType
    | inspect.DateTimeType
    | inspect.DateType
    | inspect.DecimalType
    | inspect.EnumType
    | inspect.FloatType
    | inspect.IntType
    | inspect.LiteralType
    | inspect.NoneType
    | inspect.StrType
    | inspect.TimeType
    | inspect.UUIDType
)


def check_text_type(annotation: Any, what: str) -> None:
    """Refuse a type that a text cannot be converted to.

    Raises:
        TypeError: names `what` and the types that can.
    """
    described = _described(annotation)
    while isinstance(described, inspect.Metadata):
        described = described.type
    members = described.types if isinstance(described, inspect.UnionType) else (described,)
    if not all(isinstance(member, _TEXT_TYPES) for member in members):
        raise TypeError(f"{what} is {annotation!r}; use str, int, float, bool, UUID, Literal, an Enum or a date")


def _described(annotation: Any) -> inspect.Type:
    try:
        return inspect.type_info(annotation)
    except (TypeError, NameError) as error:
        raise TypeError(f"{annotation!r} cannot be decoded: {error}") from error


def _decoder(annotation: Any, described: inspect.Type) -> tuple[Callable[[bytes], Any], inspect.Type]:
    """Return what decodes a type, and the type whose members it reads."""
    if isinstance(described, inspect.DataclassType | inspect.TypedDictType):
        for field in described.fields:
            _check_names(field.type, {described.cls})
        return _mirrored(annotation, described)
    _check_names(described, set())
    return msgspec.json.Decoder(annotation).decode, described


def _mirrored(
    annotation: Any, described: inspect.DataclassType | inspect.TypedDictType
) -> tuple[Callable[[bytes], Any], inspect.Type]:
    """Decode into a Struct with the same fields under their wire names, then build what the handler asked for."""
    hints = get_type_hints(described.cls, include_extras=True)
    fields: list[Any] = []
    for field in described.fields:
        if field.required:
            fields.append((field.name, _bare(hints[field.name])))
        else:
            fields.append((field.name, _bare(hints[field.name]) | UnsetType, UNSET))
    mirror = msgspec.defstruct(described.cls.__name__, fields, rename="camel", kw_only=True)
    decode = msgspec.json.Decoder(mirror).decode
    names = tuple(field.name for field in described.fields)
    build: Callable[..., Any] = dict if is_typeddict(described.cls) else annotation

    def decode_mirrored(data: bytes) -> Any:
        decoded = decode(data)
        members = {name: value for name in names if (value := getattr(decoded, name)) is not UNSET}
        try:
            return build(**members)
        except (TypeError, ValueError) as error:
            raise msgspec.ValidationError(str(error)) from error

    return decode_mirrored, inspect.type_info(mirror)


def _bare(hint: Any) -> Any:
    """Strip what says only whether a member may be missing: `NotRequired[X]` and `Required[X]`."""
    origin = getattr(hint, "__origin__", None)
    return hint.__args__[0] if getattr(origin, "_name", None) in {"NotRequired", "Required"} else hint


def _check_names(described: Any, seen: set[Any]) -> None:
    cls = getattr(described, "cls", None)
    if cls in seen:
        return
    if isinstance(described, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        seen.add(cls)
        for field in described.fields:
            if "_" in field.encode_name.strip("_"):
                cure = 'add rename="camel"' if isinstance(described, inspect.StructType) else "make it a Struct"
                raise TypeError(
                    f"{described.cls.__name__}.{field.name} would be {field.encode_name!r} on the wire, "
                    f"where names are camelCase; {cure}"
                )
            _check_names(field.type, seen)
    elif isinstance(described, inspect.Type):
        for name in described.__struct_fields__:
            inner = getattr(described, name)
            for item in inner if isinstance(inner, tuple) else (inner,):
                if isinstance(item, inspect.Type):
                    _check_names(item, seen)
