"""Answers that are given before a framework takes a request: plain ASGI messages.

Used by `requests`, `routes`, `development`, `mounts` and `embedded`.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from realtime.base.messages import encode

PROBLEM_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Headers of each error: nobody stores it, and no browser takes it for anything else."""


def problem(status: int, code: str, detail: str) -> tuple[bytes, *tuple[tuple[bytes, bytes], ...]]:
    """Return the body and the headers of an error (RFC 9457)."""
    members = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    headers = {"content-type": "application/problem+json", **PROBLEM_HEADERS}
    return encode(members), *((name.encode(), value.encode()) for name, value in headers.items())


async def answer(send: Callable[[Any], Any], status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})
