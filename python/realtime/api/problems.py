"""Errors as problem details (RFC 9457): one shape for whatever goes wrong, on every route.

`{"type", "title", "status", "detail", "code", "path"?, "retryAfterMs"?}`. `code` is one of the wire protocol, the same
that a socket's `error` would carry; `type` is `about:blank`, since the code says it all. Nothing that a caller sends
is answered with 500: that is for bugs of ours, which are logged and say nothing of the reason.
"""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct

from realtime.api.answers import PROBLEM_HEADERS
from realtime.api.requests import request_id
from realtime.base.errors import Refused
from realtime.base.logs import facts
from realtime.base.messages import path_of

MEDIA_TYPE: Final = "application/problem+json"

STATUSES: Final = {
    "invalid_message": 400,
    "unknown_type": 400,
    "unauthorized": 401,
    "token_expired": 401,
    "forbidden": 403,
    "not_found": 404,
    "not_subscribed": 409,
    "limit_reached": 409,
    "not_recoverable": 410,
    "too_large": 413,
    "rate_limited": 429,
    "internal": 500,
    "upstream_failed": 502,
    "unavailable": 503,
    "overloaded": 503,
    "draining": 503,
    "timeout": 504,
}
"""The HTTP status of each code of the protocol; an app's own code is the caller's fault, 400."""

_CODES: Final = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large", 429: "rate_limited"}
_RETRY_AFTER_S: Final = 1
_CHARS_MAX: Final = 400
_CHALLENGE: Final = 'Bearer realm="realtime"'

log = logging.getLogger("realtime.api")


class RefusedToken(Refused):
    """A request with a token that is refused: the answer says so as RFC 6750 §3.1 has it."""


class Problem(Struct, rename="camel", omit_defaults=True):
    """The body of an error."""

    title: str
    status: int
    detail: str
    code: str
    type: str = msgspec.field(default_factory=lambda: "about:blank")
    path: str | None = None
    retry_after_ms: int | None = None


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    path: str | None = None,
    retry_after_ms: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response[bytes]:
    """Return an error as an answer, with the headers of every error; 401, 429 and 503 get those that go with them."""
    sent = {**PROBLEM_HEADERS, **(headers or {})}
    if status == HTTPStatus.UNAUTHORIZED:
        sent.setdefault("WWW-Authenticate", _CHALLENGE)
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        sent["Retry-After"] = str(_RETRY_AFTER_S if retry_after_ms is None else math.ceil(retry_after_ms / 1000))
    content = body(status, code, detail, path, retry_after_ms)
    return Response(content, status_code=status, media_type=MEDIA_TYPE, headers=sent)


def body(status: int, code: str, detail: str, path: str | None = None, retry_after_ms: int | None = None) -> bytes:
    """Return the JSON of an error."""
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return msgspec.json.encode(Problem(title, status, detail, code, path=path, retry_after_ms=retry_after_ms))


# What Litestar calls, by the type of what was raised.


def refused(_: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    """Answer a refusal of ours."""
    status = STATUSES.get(error.code, 400)
    headers = {}
    if isinstance(error, RefusedToken):
        headers["WWW-Authenticate"] = f'{_CHALLENGE}, error="invalid_token", error_description="{error.message}"'
    return problem(
        status, error.code, error.message, path=error.path, retry_after_ms=error.retry_after_ms, headers=headers
    )


def told(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what Litestar found wrong: a path, a method, a parameter, a size."""
    status = error.status_code
    # Whatever else is the caller's fault is a request that we do not take: another method, another media type.
    code = _CODES.get(status, "invalid_message" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal")
    detail, path = error.detail, None
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        first = error.extra[0]
        if isinstance(first, Mapping):
            detail, path = str(first.get("message", detail)), first.get("key")
    allow = {name: _with_head(value) for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return problem(status, code, detail, path=path, headers=allow)


def _with_head(allow: str) -> str:
    """Return the methods of a path with HEAD, which is answered wherever GET is."""
    methods = {method.strip() for method in allow.split(",")}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def malformed(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a body that is not what the route takes."""
    path = path_of(error).removeprefix(".") if isinstance(error, msgspec.DecodeError) else ""
    return problem(400, "invalid_message", _cut(str(error)), path=_cut(path) or None)


def _cut(text: str) -> str:
    """Leave out the middle of what repeats a long thing that was sent."""
    return text if len(text) <= _CHARS_MAX else f"{text[: _CHARS_MAX // 2]}…{text[-_CHARS_MAX // 2 :]}"


def broken(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a bug of ours, and log it."""
    told = facts("failed", request=request_id(request))
    log.error("%s %s failed", request.method, request.scope["path"], exc_info=error, extra=told)
    return problem(500, "internal", "Internal error")
