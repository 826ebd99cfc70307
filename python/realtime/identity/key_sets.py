"""The public keys of an identity provider: fetched from one address as a JWK set (RFC 7517 §5), and kept.

The address comes from the configuration and never from a token. Keys are fetched at the start, every
`auth.jwks_refresh_s`, and when a token names a key that is not among them: then at most once in ten seconds, however
many such tokens come, and by one request that all of them wait for. A failure leaves the keys as they were and is told
once until it is over; redirects, answers over the limit and sets without a key of ours are failures.

Called by `identities`, on the loop's thread.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

import httpx2

from realtime.base.clock import Clock, Timer
from realtime.base.config import is_loopback
from realtime.identity.keys import VerifyKey, usable_keys

log = logging.getLogger("realtime.identity")

FETCH_INTERVAL_MIN_S: Final = 10
"""Between the beginnings of two requests, whatever asks for them."""
FETCH_TIMEOUT_S: Final = 5
SET_BYTES_MAX: Final = 512 * 1024


class KeySet:
    """The keys that are published at one address.

    Args:
        url: `auth.jwks_url`.
        algorithms: those that keys may be used with.
        refresh_s: seconds from a good answer to the next request.
        clock: drives the timer.
        changed: called when `keys` are others than before.
    """

    def __init__(
        self, url: str, algorithms: Sequence[str], refresh_s: float, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.keys: tuple[VerifyKey, ...] = ()
        self.problem: str | None = "not fetched yet"
        """Why the last request brought nothing; None where it did."""
        self._url = url
        self._algorithms = algorithms
        self._refresh_s = refresh_s
        self._clock = clock
        self._changed = changed
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_ms: int | None = None
        self._timer: Timer | None = None
        self._is_told = False
        self._closed = False
        # It writes a line for each request; what matters of them is told here.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._client = httpx2.AsyncClient(
            timeout=FETCH_TIMEOUT_S,
            headers={"accept": "application/jwk-set+json, application/json", "user-agent": "realtime-edge"},
            follow_redirects=False,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
        )

    async def fetched(self) -> int:
        """Return when the keys are as new as they may be: after a request, or at once where the last was just now.

        Returns:
            0 where a request has brought the keys of now; else the ms after which they may be asked for again.
        """
        if self._fetching is None:
            wait_ms = self._wait_ms()
            if self._closed or wait_ms > 0:
                return max(1, wait_ms)
            self._fetched_ms = self._clock.monotonic_ms()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="fetch of auth.jwks_url")
        await asyncio.shield(self._fetching)
        return 0 if self.problem is None else max(1, self._wait_ms())

    def _wait_ms(self) -> int:
        if self._fetched_ms is None:
            return 0
        return self._fetched_ms + FETCH_INTERVAL_MIN_S * 1000 - self._clock.monotonic_ms()

    async def close(self) -> None:
        """Stop fetching."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        await self._client.aclose()

    def _again(self) -> None:
        self._timer = None
        if self._fetching is None and not self._closed:
            self._fetched_ms = self._clock.monotonic_ms()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch(), name="fetch of auth.jwks_url")

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                document = await self._answer()
            keys, passed_over = usable_keys(document, self._algorithms)
            self._succeeded(keys, passed_over)
        # Whatever somebody else's server says must neither end the asking nor reach those who wait.
        except Exception as error:  # noqa: BLE001
            self._failed(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        finally:
            self._fetching = None
            if not self._closed:
                delay_s = self._refresh_s if self.problem is None else FETCH_INTERVAL_MIN_S
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._clock.call_later(delay_s, self._again)

    async def _answer(self) -> bytes:
        async with self._client.stream("GET", self._url) as response:
            if response.status_code != httpx2.codes.OK:
                raise ValueError(f"answered {response.status_code}; only 200 is taken, and no redirect is followed")
            document = bytearray()
            async for chunk in response.aiter_bytes():
                document += chunk
                if len(document) > SET_BYTES_MAX:
                    raise ValueError(f"the answer exceeds {SET_BYTES_MAX} bytes")
            return bytes(document)

    def _succeeded(self, keys: tuple[VerifyKey, ...], passed_over: Sequence[str]) -> None:
        before = self.keys
        if _names(keys) != _names(before):
            self.keys = keys
            try:
                self._changed()
            except BaseException:
                self.keys = before
                raise
            log.info("auth.jwks_url gave %d keys; %d others are not used", len(keys), len(passed_over))
            for reason in passed_over[:10]:
                log.debug("auth.jwks_url: %s", reason)
        self.problem = None
        if self._is_told:
            log.info("auth.jwks_url answers again: %d keys", len(keys))
            self._is_told = False

    def _failed(self, problem: str) -> None:
        self.problem = problem
        if not self._is_told:
            self._is_told = True
            kept = f"the {len(self.keys)} keys from before stay" if self.keys else "tokens of its keys are refused"
            log.warning("auth.jwks_url = %s brought no keys: %s; %s, and it is asked again", self._url, problem, kept)


def _names(keys: Sequence[VerifyKey]) -> list[tuple[str, str | None, str]]:
    return [(key.algorithm, key.kid, key.text) for key in keys]
