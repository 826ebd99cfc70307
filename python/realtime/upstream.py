"""The HTTP API behind `api.url`: where messages are sent instead of being numbered here.

`Upstream.post` sends one message to `POST {url}/api/conversations/{id}/messages` and returns the answer. The API knows
nothing of this server, so nothing is asked of it but JSON over HTTP. Whatever goes wrong with it ends in one error, the
one that the protocol has for it (`Failed to send message`, `upstream_failed`), whose reason goes to the log alone.

What it may cost is bounded on every side: `api.requests_max` at once over as many pooled connections, as many waiting
as `api.requests_waiting_max`, of one user no more than `api.requests_per_user_max`, `api.requests_bytes_max` of what is
sent, one time for all of it (`api.timeout_s`), and an answer of at most the size of a publication, read as it comes and
never unpacked. After `api.failures_max` failures in a row a `Breaker` refuses at
once for `api.breaker_pause_s` and then lets a single request try, so an API that is down costs its callers no time and
is not greeted by a crowd when it comes back. Redirects are not followed: they would carry the token elsewhere. For the
same reason proxies and `.netrc` of the environment are not looked at.

The breaker is our own: those on the index are without asyncio or without a release for years, and it is two counters.
Made by `control`; called by the handler of `send_message` and by the HTTP route, on the loop's thread.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import Raw, Struct

from realtime._engine import json_fault
from realtime.charges import Charges
from realtime.config import ApiSettings, LimitSettings
from realtime.errors import Refused
from realtime.messages import INVALID, encode

log = logging.getLogger("realtime")

FAILED: Final = "Failed to send message"
"""What a client is told (●); the code and the log say why."""

_ERROR_BYTES_MAX: Final = 64 * 1024
_KEEPALIVE_S: Final = 2.0
"""Shorter than what servers give an idle connection: a request on one that just closes cannot be told from a lost one,
and a message is not sent twice on a guess."""
_RETRYABLE_STATUSES: Final = frozenset({408, 425, 429})
_USER_WAIT_MS: Final = 1000
_TELL_EVERY_S: Final = 1.0
_RETRY_AFTER_S_MAX: Final = 3600


class UpstreamFailed(Refused):
    """The API did not take a message, or nobody knows whether it did. `detail` is for the log."""

    def __init__(self, detail: str, *, retryable: bool = True, retry_after_ms: int | None = None) -> None:
        super().__init__("upstream_failed", FAILED, retryable=retryable, retry_after_ms=retry_after_ms)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Outgoing(Struct, frozen=True, rename="camel"):
    """A message as the API gets it, but for its conversation, which the address names."""

    content: str
    role: str
    metadata: Mapping[str, Any]


class Breaker:
    """Refuses at once while what is behind it fails, and lets one try when the pause is over.

    Args:
        failures_max: failures in a row that open it.
        pause_s: how long it stays open before one may try.
        now_s: seconds that never jump.
    """

    __slots__ = ("_failures", "_failures_max", "_now_s", "_opened_s", "_pause_s", "_trying")

    def __init__(self, failures_max: int, pause_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._now_s = now_s
        self._failures = 0
        self._opened_s: float | None = None
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether what is behind it counts as failed, the one try included."""
        return self._opened_s is not None

    def wait_s(self) -> float | None:
        """Return None where a request may go, which must then be followed by one of the three below; else how long not.

        While one tries nobody knows how long it takes, so the others are told the whole pause.
        """
        if self._opened_s is None:
            return None
        left_s = self._opened_s + self._pause_s - self._now_s()
        if self._trying or left_s > 0:
            return max(left_s, 0.0) if not self._trying else self._pause_s
        self._trying = True
        return None

    def succeeded(self) -> bool:
        """It answered. Returns whether it had been open."""
        was_open, self._opened_s = self._opened_s is not None, None
        self._failures = 0
        self._trying = False
        return was_open

    def failed(self) -> bool:
        """It did not answer as it should. Returns whether this opened it."""
        self._failures += 1
        if self._opened_s is None:
            if self._failures < self._failures_max:
                return False
            self._opened_s = self._now_s()
            return True
        if self._trying:
            self._trying = False
            self._opened_s = self._now_s()
        return False

    def abandoned(self) -> None:
        """Nobody waited for the end; that says nothing of what is behind it."""
        self._trying = False


class Upstream:
    """One API, for as long as a server runs. `close` it at the end.

    Args:
        settings: `api.url` must be set.
        message_bytes_max: bytes of what is sent, and of the answer.
        sign: makes a token for a user who has none of its own.
        sending: bounds the bytes of what is sent, waiting or under way.
        reading: counts the bytes of answers that are being read.
        values_max: values of the answer (`limits.message_values_max`).
    """

    def __init__(
        self,
        settings: ApiSettings,
        message_bytes_max: int,
        sign: Callable[[str], str],
        *,
        sending: Charges,
        reading: Charges,
        values_max: int = LimitSettings().message_values_max,
    ) -> None:
        if settings.url is None:
            raise ValueError("api.url is not set; there is nothing to send to")
        self._url = settings.url.rstrip("/")
        self._settings = settings
        self._message_bytes_max = message_bytes_max
        self._values_max = values_max
        self._sign = sign
        self._running = asyncio.Semaphore(settings.requests_max)
        self._waiting = 0
        self._sending = sending
        self._reading = reading
        self._by_user: dict[str, int] = {}
        self._breaker = Breaker(settings.failures_max, settings.breaker_pause_s)
        self._told_s = -_TELL_EVERY_S
        self._untold = 0
        connections = settings.requests_max
        # It writes a line for each request; what matters of them is told here.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.timeout_s, connect=settings.connect_timeout_s),
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE_S
            ),
            headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "realtime-edge"},
            follow_redirects=False,
            trust_env=False,
        )

    @property
    def broadcasts(self) -> bool:
        """Whether its answers are published here; else it calls the event hook by itself."""
        return self._settings.broadcast == "response"

    async def close(self) -> None:
        """Let the pooled connections go."""
        await self._client.aclose()

    async def post(
        self,
        conversation_id: str,
        message: Outgoing,
        *,
        user: str,
        token: str | None,
        request_id: str,
        idempotency_key: str,
    ) -> dict[str, Raw] | None:
        """Send one message and return the members of the answer, each as its JSON.

        Args:
            conversation_id: of a channel's letters; it becomes a part of the address.
            message: what was said.
            user: who said it.
            token: the caller's own; with None, or with `api.token = minted`, one is made for `user`.
            request_id: goes along as `X-Request-Id`; may be the caller's own, so it says nothing of the message.
            idempotency_key: goes along as `Idempotency-Key`; the same for each try of one message.

        Returns:
            None where `api.broadcast = hook` and the answer is not a JSON object: then nobody needs it.

        Raises:
            Refused: `invalid_message`, an id that would lead to another address; `too_large`; `overloaded`, where the
                user has too many under way.
            UpstreamFailed: anything else.
        """
        if not conversation_id.strip("."):
            raise Refused("invalid_message", INVALID, path="data.conversationId")
        body = encode(message)
        if len(body) > self._message_bytes_max:
            raise Refused("too_large", FAILED)
        with self._charged(user, len(body)):
            return await self._post(conversation_id, body, user, token, request_id, idempotency_key)

    async def _post(  # noqa: PLR0917 -- as `post`
        self, conversation_id: str, body: bytes, user: str, token: str | None, request_id: str, idempotency_key: str
    ) -> dict[str, Raw] | None:
        wait_s = self._breaker.wait_s()
        if wait_s is not None:
            raise _failed_before(wait_s)
        try:
            if self._settings.token == "minted" or token is None:  # noqa: S105 -- the name of a choice
                token = self._sign(user)
            request = self._client.build_request(
                "POST",
                f"{self._url}/api/conversations/{quote(conversation_id, safe='')}/messages",
                content=body,
                headers={
                    "authorization": f"Bearer {token}",
                    "content-type": "application/json",
                    "idempotency-key": idempotency_key,
                    "x-request-id": request_id,
                },
            )
            return await self._in_time(request, tries=self._breaker.is_open)
        except UpstreamFailed as failure:
            self._tell(failure.detail)
            raise
        except BaseException:
            self._breaker.abandoned()
            raise

    @contextmanager
    def _charged(self, user: str, size: int) -> Iterator[None]:
        """Count a message to its user, and its bytes, for as long as it waits or is under way.

        Raises:
            Refused: `overloaded`: too many of the user are, or too many bytes of all.
        """
        most, count = self._settings.requests_per_user_max, self._by_user.get(user, 0)
        if count >= most or not self._sending.has_room(user, size):
            self._sending.refused += 1
            self._tell(f"{count} messages of its user and {self._sending.bytes} bytes of all wait for it")
            raise Refused("overloaded", FAILED, retry_after_ms=_USER_WAIT_MS)
        self._by_user[user] = count + 1
        self._sending.take(user, size)
        try:
            yield
        finally:
            self._sending.give(user, size)
            if self._by_user[user] == 1:
                del self._by_user[user]
            else:
                self._by_user[user] -= 1

    async def _in_time(self, request: httpx2.Request, *, tries: bool) -> dict[str, Raw] | None:
        """Wait for a place, send, tell the breaker how it went; `tries`: this is what finds out whether it is back."""
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._place():
                if self._breaker.is_open and not tries:
                    raise _failed_before(self._settings.breaker_pause_s)
                status, retry_after_ms, body = await self._exchanged(request)
        except (TimeoutError, httpx2.TimeoutException) as error:
            # Where not even a place was had in time, the API is as slow as if this request had been sent.
            raise self._failure(f"no answer within {self._settings.timeout_s:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error
        return self._answer(status, retry_after_ms, body)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold one of the places for requests, in the order of the asking.

        Raises:
            UpstreamFailed: too many wait for one.
        """
        if self._running.locked():
            most = self._settings.requests_waiting_max
            if self._waiting >= most:
                raise UpstreamFailed(f"{self._waiting} requests wait for it (api.requests_waiting_max = {most})")
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._running.release()

    async def _exchanged(self, request: httpx2.Request) -> tuple[int, int | None, bytes]:
        """Return status, time to wait and body of the answer; the body of a failure only as far as it matters."""
        response = await self._client.send(request, stream=True)
        body = bytearray()
        try:
            fine = response.is_success
            bytes_max = self._message_bytes_max if fine else _ERROR_BYTES_MAX
            if response.headers.get("content-encoding", "identity") == "identity":
                async for chunk in response.aiter_raw():
                    body += chunk
                    self._reading.take(None, len(chunk))
                    if len(body) > bytes_max:
                        break
            if fine and len(body) > bytes_max:
                # It took the message: sending it again would not make the answer shorter.
                raise self._unusable(f"its answer is longer than limits.publication_bytes_max={bytes_max}")
            return response.status_code, _retry_after_ms(response.headers.get("retry-after")), bytes(body)
        finally:
            self._reading.give(None, len(body))
            await response.aclose()

    def _answer(self, status: int, retry_after_ms: int | None, body: bytes) -> dict[str, Raw] | None:
        if status >= 500:
            raise self._failure(f"status {status}", retry_after_ms)
        if not 200 <= status < 300:
            # It works, and does not want this one: that is no reason to keep others from asking.
            self._worked()
            raise UpstreamFailed(
                f"status {status}", retryable=status in _RETRYABLE_STATUSES, retry_after_ms=retry_after_ms
            )
        members = _members(body, self._values_max)
        if members is None and self.broadcasts:
            raise self._failure(f"status {status} with a body that is not a JSON object")
        self._worked()
        return members

    def _worked(self) -> None:
        if self._breaker.succeeded():
            log.info("api.url answers again: %s", self._url)

    def _failure(self, detail: str, retry_after_ms: int | None = None) -> UpstreamFailed:
        if self._breaker.failed():
            log.error(
                "api.url failed %d times in a row, last: %s; asking again in %g s: %s",
                self._settings.failures_max, detail, self._settings.breaker_pause_s, self._url,
            )  # fmt: skip
        return UpstreamFailed(detail, retry_after_ms=retry_after_ms)

    def _unusable(self, detail: str) -> UpstreamFailed:
        self._worked()
        return UpstreamFailed(detail, retryable=False)

    def _tell(self, detail: str) -> None:
        """Write why, at most once a second: when an API fails, it fails for everybody."""
        now_s = time.monotonic()
        if now_s - self._told_s < _TELL_EVERY_S:
            self._untold += 1
            return
        more = f" ({self._untold} more since the last line)" if self._untold else ""
        self._told_s, self._untold = now_s, 0
        log.warning("a message was not taken by %s: %s%s", self._url, detail, more)


def idempotency_key(user: str, conversation_id: str, client_message_id: str) -> str:
    """Return the key of a message that a client repeats: the same for each try, and nobody else's."""
    return hashlib.sha256(encode([user, conversation_id, client_message_id])).hexdigest()[:32]


def _members(body: bytes, values_max: int) -> dict[str, Raw] | None:
    """Return the members of an object as they stand; None for anything that is not one."""
    try:
        # It is passed on as it is: what clients could not read alike must not get into the log.
        return msgspec.json.decode(body, type=dict[str, Raw]) if json_fault(body, values_max) is None else None
    except msgspec.DecodeError:
        return None


def _failed_before(wait_s: float) -> UpstreamFailed:
    return UpstreamFailed("it failed a moment ago", retry_after_ms=round(wait_s * 1000))


def _retry_after_ms(text: str | None) -> int | None:
    """Return what `Retry-After` says in seconds; its other form, a date, is not read."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 6:
        return None
    return min(int(text), _RETRY_AFTER_S_MAX) * 1000
