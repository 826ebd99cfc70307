"""Bodies of requests: JSON in UTF-8, decoded into a Struct by a decoder that is made once.

JSON that is passed on as it came (the data of an event, the metadata of a message) reaches every member of a channel
and the log. So the engine holds a body to the rules of a socket's message before anything is decoded: two programs must
not read one frame differently.
"""

import asyncio
import contextlib
from typing import Any, Final, Generic, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException, InternalServerException
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE

from realtime._engine import json_fault
from realtime.errors import Refused

TIMEOUT_S = 30.0
"""For the whole of a body: whoever sends a byte now and then must not hold a connection and memory without end."""
READ_OVER_BYTES_MAX: Final = 16 << 20
READ_OVER_S: Final = 5.0

BodyT = TypeVar("BodyT")

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
            Refused: `invalid_message`: another content type, or JSON that a socket would refuse.
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
        fault = json_fault(content)
        if fault is not None:
            what, path = fault
            raise Refused("invalid_message", f"the body is refused: {what}", path=path)
        decoded: BodyT = self._decode(content)
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
