"""Answers that are given before a framework takes a request: plain ASGI messages. Used by `mounts` and `embedded`."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from realtime.messages import encode


def problem(status: int, code: str, detail: str) -> tuple[bytes, tuple[bytes, bytes]]:
    """Return the body and the content type of an error (RFC 9457)."""
    members = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return encode(members), (b"content-type", b"application/problem+json")


async def answer(send: Callable[[Any], Any], status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})
