"""The HTTP API behind `api.url`: where messages are sent instead of being numbered here.

`Upstream.post` sends one message to `POST {url}/api/conversations/{id}/messages` and returns the answer. The API knows
nothing of this server, so nothing is asked of it but JSON over HTTP. Whatever goes wrong with it ends in one error, the
one that the protocol has for it (`Failed to send message`, `upstream_failed`), whose reason goes to the log alone.

What it may cost is bounded on every side: `api.requests_max` at once over as many pooled connections, as many waiting
as `api.requests_waiting_max`, of one user no more than `api.requests_per_user_max`, `api.requests_bytes_max` of what is
sent, one time for all of it (`api.timeout_s`), and an answer of at most the size of a publication, read as it comes and
never unpacked. A place that becomes free goes to the user with the fewest requests under way. After `api.failures_max`
failures in a row a `Breaker` refuses at once for `api.breaker_pause_s` and then lets single requests try, so an API
that is down costs its callers no time and is not greeted by a crowd when it comes back. Redirects are not followed:
they would carry the token elsewhere. For the same reason proxies and `.netrc` of the environment are not looked at.

The breaker is our own: those on the index are without asyncio or without a release for years, and none knows users.
Made by `control`; called by the handler of `send_message` and by the HTTP route, on the loop's thread.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import Raw, Struct

from realtime._engine import json_fault
from realtime.base.charges import Charges
from realtime.base.config import ApiSettings, LimitSettings
from realtime.base.errors import Refused
from realtime.base.messages import INVALID, encode

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
_USERS_FAILING: Final = 3
"""Users whose failures together are the API's own; one or two send what it cannot take."""
_FAILING_MAX: Final = 1000
"""Users whose failures are remembered, some 300 bytes each; above it the one that failed longest ago is forgotten."""


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
    """Refuses at once while what is behind it fails, and lets single requests try when the pause is over.

    What a user sends can be the very thing that fails, so failures of one user alone stop nobody else: so many in a row
    make that user wait, and only failures of several users, or a peer that cannot be reached, make everybody wait. Of
    users only those count whose request before did not fail, or was nobody's: who fails all the time is no news. For
    the same reason two may try after the pause: one of those who failed last, and one of all others.

    Args:
        failures_max: failures in a row that open it.
        pause_s: how long it stays open before somebody may try.
        now_s: seconds that never jump.
    """

    __slots__ = ("_failing", "_failures_max", "_fresh", "_now_s", "_pause_s", "_trying", "_until_s", "failures")

    def __init__(self, failures_max: int, pause_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._now_s = now_s
        self.failures = 0
        """In a row."""
        self._fresh: set[str] = set()
        """Users who began to fail in this row."""
        self._failing: OrderedDict[str, _Failing] = OrderedDict()
        """Users whose last request failed, the latest at the end."""
        self._until_s: dict[bool, float] = {}
        """When one may try: of those who fail, and of the others. Empty where it is closed."""
        self._trying: dict[bool, str] = {}

    @property
    def is_open(self) -> bool:
        """Whether what is behind it counts as failed for everybody, those who try included."""
        return bool(self._until_s)

    def wait_s(self, user: str) -> float | None:
        """Return None where a request may go, which must then be followed by one of the three below; else how long not.

        While one tries nobody knows how long it takes, so the others are told the whole pause.
        """
        now_s = self._now_s()
        failing = self._failing.get(user)
        if failing is not None and failing.until_s > now_s:
            return failing.until_s - now_s
        if not self._until_s:
            return None
        fails = failing is not None
        if fails in self._trying:
            return self._pause_s
        if self._until_s[fails] > now_s:
            return self._until_s[fails] - now_s
        self._trying[fails] = user
        return None

    def succeeded(self, user: str) -> bool:
        """It answered. Returns whether it had been open."""
        was_open = self.is_open
        self._failing.pop(user, None)
        self.failures = 0
        self._fresh.clear()
        self._until_s.clear()
        self._trying.clear()
        return was_open

    def failed(self, user: str, *, reached: bool = True) -> bool:
        """It did not answer as it should; not `reached`: whatever was asked. Returns whether this opened it."""
        until_s = self._now_s() + self._pause_s
        self.failures += 1
        if reached:
            self._count(user, until_s)
        if self._until_s:
            for fails in self._released(user):
                self._until_s[fails] = until_s
                if fails and reached and len(self._failing) > 1:
                    self._failing[user].until_s = until_s + self._pause_s  # the next of them goes first
            return False
        if self.failures < self._failures_max or (reached and len(self._fresh) < _USERS_FAILING):
            return False
        self._until_s = {True: until_s, False: until_s}
        return True

    def abandoned(self, user: str) -> None:
        """Nobody waited for the end; that says nothing of what is behind it."""
        self._released(user)

    def _count(self, user: str, until_s: float) -> None:
        failing = self._failing.get(user)
        if failing is None:
            failing = self._failing[user] = _Failing(0, 0.0)
            if len(self._fresh) < _USERS_FAILING:
                self._fresh.add(user)
            if len(self._failing) > _FAILING_MAX:
                self._failing.popitem(last=False)
        self._failing.move_to_end(user)
        failing.failures += 1
        if failing.failures >= self._failures_max:
            failing.until_s = max(failing.until_s, until_s)

    def _released(self, user: str) -> list[bool]:
        """Let a user try no longer; return as which of the two it was."""
        tried = [fails for fails, who in self._trying.items() if who == user]
        for fails in tried:
            del self._trying[fails]
        return tried


class _Failing(Struct):
    """A user whose requests fail."""

    failures: int
    until_s: float


class Places:
    """So many may do something at once; a place that becomes free goes to the user who has the fewest.

    Args:
        places: at once.
        waiting_max: that may wait for a place.
    """

    __slots__ = ("_free", "_under_way", "_waiting", "_waiting_max", "waiting")

    def __init__(self, places: int, waiting_max: int) -> None:
        self._free = places
        self._waiting_max = waiting_max
        self.waiting = 0
        self._under_way: dict[str, int] = {}
        # In the order of the asking, and of users who had their turn behind those who had not.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def place(self, user: str) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            UpstreamFailed: too many wait for one.
        """
        if self._free and not self.waiting:
            self._take(user)
        else:
            if self.waiting >= self._waiting_max:
                most = f"api.requests_waiting_max = {self._waiting_max}"
                raise UpstreamFailed(f"{self.waiting} requests wait for it ({most})")
            await self._turn(user)
        try:
            yield
        finally:
            self._give(user)

    async def _turn(self, user: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(user)
            else:
                self._forget(user, turn)
            raise

    def _forget(self, user: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(user)
        if turns is None or turn not in turns:  # it was passed over
            return
        self.waiting -= 1
        turns.remove(turn)
        if not turns:
            del self._waiting[user]

    def _take(self, user: str) -> None:
        self._free -= 1
        self._under_way[user] = self._under_way.get(user, 0) + 1

    def _give(self, user: str) -> None:
        self._free += 1
        self._under_way[user] -= 1
        if not self._under_way[user]:
            del self._under_way[user]
        while self._free and self._waiting:
            self._call()

    def _call(self) -> None:
        """Call the user with the fewest, and of those who has waited longest for a turn; pass over who has gone."""
        user = min(self._waiting, key=lambda each: self._under_way.get(each, 0))
        turns = self._waiting.pop(user)
        turn = turns.popleft()
        self.waiting -= 1
        if turns:
            self._waiting[user] = turns
        if not turn.done():
            self._take(user)
            turn.set_result(None)


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
        self._places = Places(settings.requests_max, settings.requests_waiting_max)
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
        wait_s = self._breaker.wait_s(user)
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
            return await self._in_time(user, request, tries=self._breaker.is_open)
        except UpstreamFailed as failure:
            # Where it was refused here, the API has said nothing; else the breaker knows already.
            self._breaker.abandoned(user)
            self._tell(failure.detail)
            raise
        except BaseException:
            self._breaker.abandoned(user)
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

    async def _in_time(self, user: str, request: httpx2.Request, *, tries: bool) -> dict[str, Raw] | None:
        """Wait for a place, send, tell the breaker how it went; `tries`: this is what finds out whether it is back."""
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._places.place(user):
                if self._breaker.is_open and not tries:
                    raise _failed_before(self._settings.breaker_pause_s)
                status, retry_after_ms, body = await self._exchanged(user, request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._failure(user, f"{type(error).__name__}: {error}", reached=False) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            # Where not even a place was had in time, the API is as slow as if this request had been sent.
            raise self._failure(user, f"no answer within {self._settings.timeout_s:g} s") from error
        except (httpx2.HTTPError, OSError) as error:
            raise self._failure(user, f"{type(error).__name__}: {error}") from error
        return self._answer(user, status, retry_after_ms, body)

    async def _exchanged(self, user: str, request: httpx2.Request) -> tuple[int, int | None, bytes]:
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
                raise self._unusable(user, f"its answer is longer than limits.publication_bytes_max={bytes_max}")
            return response.status_code, _retry_after_ms(response.headers.get("retry-after")), bytes(body)
        finally:
            self._reading.give(None, len(body))
            await response.aclose()

    def _answer(self, user: str, status: int, retry_after_ms: int | None, body: bytes) -> dict[str, Raw] | None:
        if status >= 500:
            raise self._failure(user, f"status {status}", retry_after_ms)
        if not 200 <= status < 300:
            # It works, and does not want this one: that is no reason to keep others from asking.
            self._worked(user)
            raise UpstreamFailed(
                f"status {status}", retryable=status in _RETRYABLE_STATUSES, retry_after_ms=retry_after_ms
            )
        members = _members(body, self._values_max)
        if members is None and self.broadcasts:
            raise self._failure(user, f"status {status} with a body that is not a JSON object")
        self._worked(user)
        return members

    def _worked(self, user: str) -> None:
        if self._breaker.succeeded(user):
            log.info("api.url answers again: %s", self._url)

    def _failure(
        self, user: str, detail: str, retry_after_ms: int | None = None, *, reached: bool = True
    ) -> UpstreamFailed:
        if self._breaker.failed(user, reached=reached):
            log.error(
                "api.url failed %d times in a row, last: %s; asking again in %g s: %s",
                self._breaker.failures, detail, self._settings.breaker_pause_s, self._url,
            )  # fmt: skip
        return UpstreamFailed(detail, retry_after_ms=retry_after_ms)

    def _unusable(self, user: str, detail: str) -> UpstreamFailed:
        self._worked(user)
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
