"""Entries of `history.retention`: a pattern, an age and perhaps a count, in one text.

`options.engine_options` hands them to the engine; whether the pattern is one is for `auth.Pattern` to say.
"""

import re
from typing import Final

from msgspec import Struct

from realtime.base.config.settings import ConfigError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])", re.ASCII)
_COUNT: Final = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_AGE_MAX_S: Final = 100 * 365 * 86_400


class Retention(Struct, frozen=True):
    """What is kept of the channels of a pattern; None sets no bound."""

    pattern: str
    keep_s: int | None
    keep_events: int | None


def parse_retention(text: str) -> Retention:
    """Return an entry of `history.retention`, such as `conversation:* 30d 10000` or `file:* forever`.

    Raises:
        ConfigError: with the entry and what is allowed.
    """
    parts = text.split()
    if len(parts) not in (2, 3):
        raise _refused(text, "use a pattern, an age and perhaps a count, such as conversation:* 30d 10000")
    pattern, age, *count = parts
    if count and not _COUNT.fullmatch(count[0]):
        raise _refused(text, f"{count[0]!r} is not a count of events; use a whole number from 1")
    return Retention(pattern, _seconds(text, age), int(count[0]) if count else None)


def _seconds(text: str, age: str) -> int | None:
    if age == "forever":
        return None
    found = _AGE.fullmatch(age)
    if found is None:
        raise _refused(text, f"{age!r} is not an age; use forever, or a number with s, m, h or d, such as 30d")
    seconds = int(found[1]) * _SECONDS[found[2]]
    if seconds > _AGE_MAX_S:
        raise _refused(text, f"{age} is more than 100 years; use forever")
    return seconds


def _refused(text: str, why: str) -> ConfigError:
    return ConfigError(f"history.retention = {text!r}: {why}")
