"""Bodies of requests: JSON in UTF-8, decoded into a Struct by a decoder that is made once.

JSON that is passed on as it came (the data of an event, the metadata of a message) reaches every member of a channel
and the log. So the engine holds a body to the rules of a socket's message before anything is decoded: two programs must
not read one frame differently. A long body is checked by a thread, without the GIL, and a long array is decoded in
slices, so that no body holds the event loop.

What is collected in memory is charged to its caller until the request has ended (`Collecting`).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE
from msgspec import Meta, inspect

from realtime._engine import json_fault, json_slices
from realtime.api.collecting import Collecting, overloaded
from realtime.base.errors import Refused
from realtime.base.nulls import decoded_again
from realtime.base.steps import Turn

READ_OVER_BYTES_MAX: Final = 16 << 20
READ_OVER_S: Final = 5.0
CHUNKS_FREE: Final = 1000
"""Chunks of a body that may be of any size; each costs the loop as much as a command."""
CHUNK_BYTES_MIN: Final = 64
"""Bytes that chunks have on average where there are more."""
CHECKED_BY_THREAD_BYTES: Final = 256 * 1024
SLICE_VALUES: Final = 1000
_DIGITS_MAX: Final = 20
_AROUND_BYTES: Final = 4096
"""What an event may have around its data."""

BodyT = TypeVar("BodyT")
FoundT = TypeVar("FoundT")

_MEDIA_TYPES: Final = ("application/json", "")


class Body(Generic[BodyT]):
    """How the body of a route is read.

    Args:
        type: what it is decoded into; also what the documents show.
    """

    def __init__(self, type: Any) -> None:
        self.type = type
        self._described = inspect.type_info(type)
        self._decode = msgspec.json.Decoder(type).decode

    async def read(self, request: Request[Any, Any, Any]) -> BodyT:
        """Return the decoded body.

        Raises:
            Refused: `invalid_message`: another content type, or JSON that a socket would refuse; `overloaded`.
            msgspec.ValidationError: a field is missing or wrong.
        """
        content = await collected(request)
        refuse_fault(await _checked(json_fault, content, Collecting.of(request.scope).values_max))
        return self.decoded(content)

    def decoded(self, content: bytes) -> BodyT:
        """Return what a checked text is decoded into; a member that is `null` is absent.

        Raises:
            msgspec.ValidationError: a field is missing or wrong.
        """
        try:
            return self._decode(content)  # type: ignore[no-any-return]
        except msgspec.ValidationError as error:
            return decoded_again(self._decode, content, self._described, error)  # type: ignore[no-any-return]


class ArrayBody(Generic[BodyT]):
    """How the body of a route is read that takes one thing or an array of them.

    Args:
        item: what each is decoded into.
        items_max: elements of the array.
    """

    def __init__(self, item: Any, items_max: int) -> None:
        self._item: Body[BodyT] = Body(item)
        self._items: Body[list[BodyT]] = Body(list[item])
        self._items_max = items_max
        self.type: Any = Annotated[list[item], Meta(max_length=items_max)] | item

    async def read(self, request: Request[Any, Any, Any], item_bytes_max: int) -> tuple[list[BodyT], bool]:
        """Return the things, and whether they came in an array.

        Args:
            request: of the route.
            item_bytes_max: bytes of one; a longer one is not even decoded.

        Raises:
            Refused: as of `Body.read`, of each element by itself; `too_large` for one that is too long.
            msgspec.ValidationError: a field is missing or wrong; its path begins with the element's place.
        """
        content = await collected(request)
        values_max = Collecting.of(request.scope).values_max
        fault, slices = await _checked(json_slices, content, values_max, SLICE_VALUES)
        refuse_fault(fault)
        if slices is None:
            _check_size(len(content), item_bytes_max, None)
            return [self._item.decoded(content)], False
        count = sum(size for _, _, size in slices)
        if count > self._items_max:
            raise Refused(
                "invalid_message", f"an array of {count} elements exceeds {self._items_max}; send less at once"
            )
        items: list[BodyT] = []
        turn = Turn()
        for start, end, size in slices:
            if size == 1:
                _check_size(end - start, item_bytes_max, f"[{len(items)}]")
            try:
                items += self._items.decoded(b"".join((b"[", content[start:end], b"]")))
            except msgspec.ValidationError as error:
                raise _placed(error, len(items)) from None
            if turn.is_over():
                await turn.give_way()
        return items, True


async def collected(request: Request[Any, Any, Any]) -> bytes:
    """Return the bytes of a JSON body, which stay charged to the caller until the request has ended.

    Raises:
        Refused: `invalid_message`: another content type or encoding, an end that comes late or early, chunks that are
            too small; `overloaded`: too much is collected.
        HTTPException: 413.
    """
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _MEDIA_TYPES:
        raise Refused("invalid_message", f"content type {media_type[:64]!r}; send application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("invalid_message", "a content encoding is not taken; send the body as it is")
    collecting = Collecting.of(request.scope)
    bytes_max = request.route_handler.resolve_request_max_body_size() or READ_OVER_BYTES_MAX
    announced = headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()):
        raise Refused("invalid_message", f"content length {announced[:64]!r}; send a number of bytes")
    try:
        if len(announced) > _DIGITS_MAX or int(announced) > bytes_max:
            raise _too_long(bytes_max)
        async with asyncio.timeout(collecting.timeout_s) as timeout:
            collecting.begin(timeout)
            return await _whole(request, collecting, bytes_max)
    except TimeoutError as error:
        if collecting.was_cut:
            raise overloaded() from None
        detail = (
            f"the body did not come within {collecting.timeout_s:g} s (api.body_timeout_s) and one more for each "
            "4 KiB; send it faster"
        )
        raise Refused("invalid_message", detail) from error
    except HTTPException as error:
        if error.status_code == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
            collecting.release()
            await _read_over(request)
        raise
    finally:
        collecting.end()


async def _checked(check: Callable[..., FoundT], content: bytes, *limits: int) -> FoundT:
    """Return what a check of the engine's finds in a body; a long one is checked by a thread."""
    if len(content) < CHECKED_BY_THREAD_BYTES:
        return check(content, *limits)
    return await asyncio.to_thread(check, content, *limits)


async def _whole(request: Request[Any, Any, Any], collecting: Collecting, bytes_max: int) -> bytes:
    """Put the chunks of a body together."""
    content = bytearray()
    chunks = 0
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Refused("invalid_message", "the body ended too early")
        chunk = message.get("body", b"")
        if len(content) + len(chunk) > bytes_max:
            raise _too_long(bytes_max)
        collecting.take(len(chunk))
        content += chunk
        if not message.get("more_body", False):
            return bytes(content)
        collecting.goes_on()
        chunks += 1
        if chunks > CHUNKS_FREE and len(content) < chunks * CHUNK_BYTES_MIN:
            collecting.refused()
            detail = (
                f"{chunks} chunks of {len(content) / chunks:.0f} bytes; send chunks of {CHUNK_BYTES_MIN} bytes or more"
            )
            raise Refused("invalid_message", detail)


async def _read_over(request: Request[Any, Any, Any]) -> None:
    """Throw away what is left of a body that is too long, within reason.

    Whoever still sends when the connection ends is told of a broken pipe, and as a rule does not read the answer.
    """
    left = READ_OVER_BYTES_MAX
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OVER_S):
            for _ in range(CHUNKS_FREE):
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message["body"])
                if left < 0:
                    return


def _too_long(bytes_max: int) -> HTTPException:
    return RequestEntityTooLarge(detail=f"the body exceeds {bytes_max} bytes; send less at once")


def refuse_fault(fault: tuple[str, str | None] | None) -> None:
    """Refuse a body that the engine finds a fault in."""
    if fault is not None:
        what, path = fault
        raise Refused("invalid_message", f"the body is refused: {what}", path=path)


def _check_size(size: int, most: int, path: str | None) -> None:
    if size > most + _AROUND_BYTES:
        raise Refused("too_large", f"{size} bytes exceed limits.publication_bytes_max={most}", path=path)


def _placed(error: msgspec.ValidationError, before: int) -> msgspec.ValidationError:
    """Return the error of a slice as that of the whole array, of which `before` elements come before the slice."""
    text, at, path = str(error).rpartition("`$[")
    place, bracket, rest = path.partition("]")
    if not bracket or not place.isdigit():
        return error
    return msgspec.ValidationError(f"{text}{at}{int(place) + before}]{rest}")
