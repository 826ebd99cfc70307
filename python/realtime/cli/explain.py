"""`realtime token --explain`: what a token says, which key signed it, and every reason why a server would refuse it.

It asks the engine's rule with the keys of the configuration, those of `auth.jwks_url` too, and reads the revocations in
the log of the data directory. Nothing is sent anywhere. Called by the command line.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from realtime.base.clock import SystemClock
from realtime.base.config import AuthSettings, Settings, keys_of
from realtime.identity import TokenRule, VerifyKey, token_rule
from realtime.identity.key_sets import KeySet
from realtime.identity.revocations import stored_in

_TIMES: Final = (("iat", "issued"), ("nbf", "valid from"), ("exp", "expires"))
_UNITS: Final = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_S: Final = 253_402_300_799


class Explanation(Struct, frozen=True):
    """What there is to say about a token; `refused` where a server would not take it."""

    lines: list[str]
    refused: bool

    @property
    def text(self) -> str:
        """Return it for people."""
        return "\n".join(self.lines)


class _Key(Struct):
    place: int
    algorithm: str
    kid: str | None


class _Refusal(Struct):
    reason: str
    told: str


class _Told(Struct):
    header: dict[str, Any] | None
    claims: dict[str, Any] | None
    user: str | None
    issued_at_s: int | None
    token_id: str | None
    key: _Key | None
    refusals: list[_Refusal]


def explanation(token: str, settings: Settings) -> Explanation:
    """Return everything about `token`, for a server with these settings, now.

    Raises:
        ConfigError: the configuration cannot be used, or the log cannot be read.
    """
    auth, now_s = settings.auth, time.time()
    fetched, problem = asyncio.run(_fetched(auth)) if auth.jwks_url is not None else ((), None)
    rule = token_rule(auth, keys_of(settings, create=False), fetched)
    check = rule.compiled()
    if check is None:
        return Explanation(
            ["refused    unknown_key: there is no key to check tokens with; set auth.secrets"], refused=True
        )
    told = msgspec.json.decode(check.explain(token, int(now_s * 1000)), type=_Told)
    revoked = stored_in(Path(settings.data_dir))
    if revoked is not None and revoked.cover(told.user or "", told.issued_at_s, told.token_id):
        told.refusals.append(_Refusal("revoked", "the user's tokens of that time, or this one, were revoked"))
    lines = list(_lines(told, rule, now_s))
    if problem is not None:
        lines.append(f"warning    auth.jwks_url brought no keys: {problem}")
    if revoked is None:
        lines.append(f"note       no log in {settings.data_dir}: revocations were not looked at")
    return Explanation(lines, refused=bool(told.refusals))


def _lines(told: _Told, rule: TokenRule, now_s: float) -> Iterator[str]:
    for name, part in (("header", told.header), ("claims", told.claims)):
        if part is not None:
            yield f"{name:10} {json.dumps(part)}"
    claims = told.claims or {}
    if rule.user_claim in claims:
        yield f"{'user':10} {json.dumps(claims[rule.user_claim])}"
    for claim, words in _TIMES:
        if claim in claims:
            yield f"{words:10} {_when(claims[claim], now_s)}"
    if told.key is not None:
        kid = "" if told.key.kid is None else f", kid {told.key.kid!r}"
        yield f"{'signed by':10} key {told.key.place + 1} of {len(rule.keys)} ({told.key.algorithm}{kid})"
    for refusal in told.refusals:
        yield f"{'refused':10} {refusal.reason}: {refusal.told}"
    if not told.refusals:
        yield "accepted"


def _when(value: object, now_s: float) -> str:
    """Say a claim's time in words."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        return f"{json.dumps(value)}, which is not a time"
    at = (_EPOCH + timedelta(seconds=min(value, _LAST_S))).isoformat(timespec="seconds").replace("+00:00", "Z")
    away_s = abs(value - now_s)
    size_s, unit = next(((size, unit) for size, unit in _UNITS if away_s >= size), _UNITS[-1])
    count = int(away_s // size_s)
    distance = f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{at}, {f'in {distance}' if value > now_s else f'{distance} ago'}"


async def _fetched(auth: AuthSettings) -> tuple[tuple[VerifyKey, ...], str | None]:
    clock = SystemClock(asyncio.get_running_loop())
    keys = KeySet(auth.jwks_url or "", auth.algorithms, auth.jwks_refresh_s, clock, lambda: None)
    try:
        await keys.fetched()
        return keys.keys, keys.problem
    finally:
        await keys.close()
