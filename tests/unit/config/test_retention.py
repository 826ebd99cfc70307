"""Entries of `history.retention`, and what becomes of them."""

import json
from typing import Any

import pytest

from realtime import Realtime
from realtime.base.config import ConfigError, HistorySettings, Keys, Retention, Settings, parse_retention
from realtime.serving.options import engine_options


@pytest.mark.parametrize(
    ("text", "retention"),
    [
        ("conversation:* 30d 10000", Retention("conversation:*", 30 * 86_400, 10_000)),
        ("file:**  12h", Retention("file:**", 12 * 3600, None)),
        ("a 90s", Retention("a", 90, None)),
        ("a 5m 1", Retention("a", 300, 1)),
        ("ledger:* forever", Retention("ledger:*", None, None)),
        ("ledger:* forever 100", Retention("ledger:*", None, 100)),
    ],
)
def test_an_entry_is_a_pattern_an_age_and_perhaps_a_count(text: str, retention: Retention) -> None:
    assert parse_retention(text) == retention


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("conversation:*", "use a pattern, an age and perhaps a count"),
        ("a 1d 2 3", "use a pattern, an age and perhaps a count"),
        ("a 30", "'30' is not an age; use forever, or a number with s, m, h or d"),
        ("a 0d", "'0d' is not an age"),
        ("a -1d", "'-1d' is not an age"),
        ("a 1w", "'1w' is not an age"),
        ("a 99999999d", "99999999d is more than 100 years; use forever"),
        ("a 1d 0", "'0' is not a count of events; use a whole number from 1"),
        ("a 1d 1e3", "'1e3' is not a count"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_with_it(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_retention(text)
    assert str(caught.value).startswith(f"history.retention = {text!r}: ")
    assert says in str(caught.value)


def options(*retention: str) -> dict[str, Any]:
    app = Realtime()
    app.policy("ledger:*", durable=True, keep_s=60, keep_events=5)
    settings = Settings(history=HistorySettings(retention=retention))
    found: dict[str, Any] = json.loads(engine_options(app.compile(settings), settings, Keys((), generated=False)))
    return found


def test_the_engine_gets_what_the_app_says_and_what_the_operator_says() -> None:
    found = options("ledger:* 1d", "a forever 9")
    assert found["policies"][1:-1] == [
        {
            "pattern": "ledger:*",
            "durable": True,
            "history": 0,
            "overflow": "drop_oldest",
            "keep_s": 60,
            "keep_events": 5,
            "retain_latest": 0,
            "retain_latest_s": 3600,
        }
    ]
    assert found["retention"][1:] == [
        {"pattern": "ledger:*", "keep_s": 86_400, "keep_events": None},
        {"pattern": "a", "keep_s": None, "keep_events": 9},
    ]


def test_a_pattern_that_is_none_is_told_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"history.retention = 'a:\*\*:b 1d': "):
        options("a:**:b 1d")


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"durable": True, "keep_s": 0}, "keep_s=0; use 1 or more"),
        ({"durable": True, "keep_events": -1}, "keep_events=-1; use 1 or more"),
        ({"keep_s": 5}, "keep_s=5 on 'a', which keeps nothing; set durable or history"),
        ({"retain_latest": 1001}, "retain_latest=1001; use 0 to 1000 keys"),
        ({"retain_latest": 1, "retain_latest_s": 0}, "retain_latest_s=0; use 1 or more seconds"),
        ({"retain_latest": 1, "history": 9}, "retain_latest=1 on 'a', whose history numbers every event"),
    ],
)
def test_a_policy_that_keeps_nothing_is_refused(policy: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Realtime().policy("a", **policy)  # type: ignore[arg-type]
