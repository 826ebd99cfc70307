"""Bodies of requests: JSON in UTF-8, decoded into a Struct by a decoder that is made once.

JSON that is passed on as it came (the data of an event, the metadata of a message) reaches every member of a channel
and the log, so it is looked at here: nested no deeper than what a socket may send, and without half a surrogate pair,
which the decoder itself finds only in what it decodes.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException, InternalServerException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE
from msgspec import Raw

from realtime.errors import Refused

DEPTH_MAX: Final = 64
TIMEOUT_S = 30.0
"""For the whole of a body: whoever sends a byte now and then must not hold a connection and memory without end."""
READ_OVER_BYTES_MAX: Final = 16 << 20
READ_OVER_S: Final = 5.0

BodyT = TypeVar("BodyT")

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MEDIA_TYPES: Final = ("application/json", "")


class Body(Generic[BodyT]):
    """How the body of a route is read.

    Args:
        type: what it is decoded into; also what the documents show.
    """

    def __init__(self, type: Any) -> None:
        self.type = type
        self._decode = msgspec.json.Decoder(type).decode

    async def read(self, request: Request[Any, Any, Any]) -> BodyT:
        """Return the decoded body.

        Raises:
            Refused: `invalid_message`: not JSON, not UTF-8, another content type, or nested too deep.
            msgspec.ValidationError: a field is missing or wrong.
        """
        headers = request.headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in _MEDIA_TYPES:
            raise Refused("invalid_message", f"content type {media_type[:64]!r}; send application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("invalid_message", "a content encoding is not taken; send the body as it is")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                content = await request.body()
        except TimeoutError as error:
            raise Refused("invalid_message", f"the body did not come within {TIMEOUT_S:g} s") from error
        except InternalServerException as error:
            # What the framework calls a body that ends early, such as one in chunks that are none.
            raise Refused("invalid_message", "the body ended too early") from error
        except HTTPException as error:
            if error.status_code == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
                await _read_over(request)
            raise
        try:
            # Looked at once for all: what is kept raw below is not looked at by the decoder.
            content.decode()
            if _SURROGATE.search(content):
                msgspec.json.decode(content)
            decoded: BodyT = self._decode(content)
        except UnicodeDecodeError as error:
            raise Refused("invalid_message", f"the body is not UTF-8: {error.reason} at {error.start}") from error
        except RecursionError as error:
            raise Refused("invalid_message", f"the body is nested deeper than {DEPTH_MAX}") from error
        return decoded


async def _read_over(request: Request[Any, Any, Any]) -> None:
    """Throw away what is left of a body that is too long, within reason.

    Whoever still sends when the connection ends is told of a broken pipe, and as a rule does not read the answer.
    """
    left = READ_OVER_BYTES_MAX
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_OVER_S):
            while left > 0:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                left -= len(message["body"])


def check_depth(raw: Raw, path: str) -> None:
    """Refuse JSON that is nested deeper than `DEPTH_MAX`, where it is passed on as it came.

    Args:
        raw: a value inside a body that was read.
        path: where it stands, for the error.

    Raises:
        Refused: `invalid_message`.
    """
    # As a rule it cannot be: each level takes two brackets.
    if len(raw) <= 2 * DEPTH_MAX:
        return
    content = bytes(raw)
    if content.count(b"[") + content.count(b"{") <= DEPTH_MAX:
        return
    try:
        level: list[Any] = [msgspec.json.decode(content)]
    except RecursionError:
        raise Refused("invalid_message", f"nested deeper than {DEPTH_MAX}", path=path) from None
    depth = 0
    while level := [value for value in level if isinstance(value, dict | list)]:
        depth += 1
        if depth > DEPTH_MAX:
            raise Refused("invalid_message", f"nested deeper than {DEPTH_MAX}", path=path)
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]


def check_members(members: Iterable[tuple[str, Raw]], path: str) -> None:
    """As `check_depth` for each member of an object; it is one level itself."""
    for name, raw in members:
        check_depth(raw, f"{path}.{name}")
