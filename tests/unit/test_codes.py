"""Codes of errors and of closes: one table in two languages."""

import re
from pathlib import Path

import pytest

from realtime import Refused
from realtime.api.problems import STATUSES
from realtime.base.codes import RETRYABLE, CloseCode
from tests import pages

RUST = Path(__file__).parents[2] / "rust"


def test_close_codes_are_those_of_the_engine() -> None:
    source = (RUST / "protocol/src/close.rs").read_text("utf-8")
    rows = re.findall(r"^    ([A-Z_]+) = (\d+), \"[a-z_]+\", (true|false),", source, re.MULTILINE)
    assert {(name, int(code), back == "true") for name, code, back in rows} == {
        (code.name, code.value, code.may_come_back) for code in CloseCode
    }


def test_retryable_codes_are_those_of_the_engine() -> None:
    source = (RUST / "hub/src/compose.rs").read_text("utf-8")
    body = source.partition("pub fn is_retryable")[2].partition("\n}")[0]
    assert set(re.findall(r'"([a-z_]+)"', body)) == {code for code, retryable in RETRYABLE.items() if retryable}


def _rows(heading: str) -> dict[str, list[str]]:
    """Return the cells of a table of docs/reference/codes.md, by the first."""
    section = pages.text_of("docs/reference/codes.md").partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if re.match(r"\| `?\w+`? \|", line)]
    return {row[0].strip("`"): row[1:] for row in rows if row[0] != "code"}


def test_the_page_of_codes_has_every_error_code_with_its_cause_and_remedy() -> None:
    rows = _rows("Errors")
    assert {code: cells[0] == "yes" for code, cells in rows.items()} == dict(RETRYABLE)
    assert {code: int(cells[1]) for code, cells in rows.items()} | {"token_expired": 401} == STATUSES
    assert all(len(cells) == 4 and all(cells) for cells in rows.values())


def test_the_page_of_codes_has_every_close_code_with_its_cause_and_remedy() -> None:
    rows = _rows("Close codes")
    shown = {int(code): (cells[0], cells[1] == "yes") for code, cells in rows.items()}
    assert shown == {code.value: (f"`{code.name.lower()}`", code.may_come_back) for code in CloseCode}
    assert all(len(cells) == 4 and all(cells) for cells in rows.values())


def test_every_code_of_the_protocol_has_a_default() -> None:
    assert set(RETRYABLE) == {
        *("invalid_message", "unknown_type", "unauthorized", "forbidden", "not_found", "not_subscribed"),
        *("rate_limited", "limit_reached", "too_large", "not_recoverable", "upstream_failed", "timeout"),
        *("unavailable", "overloaded", "draining", "internal"),
    }


@pytest.mark.parametrize(
    ("refusal", "retryable"),
    [
        (Refused("timeout", "x"), True),
        (Refused("timeout", "x", retryable=False), False),
        (Refused("out_of_stock", "x"), False),
        (Refused("out_of_stock", "x", retryable=True), True),
    ],
)
def test_a_refusal_says_whether_to_try_again(refusal: Refused, retryable: bool) -> None:
    assert refusal.retryable is retryable


def test_a_refusal_reads_as_code_and_message() -> None:
    assert str(Refused("not_found", "no such choice")) == "not_found: no such choice"
