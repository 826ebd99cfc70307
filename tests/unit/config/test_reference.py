"""The page of the configuration and the declarations that it is written from."""

from pathlib import Path

import pytest

from realtime.base.config.keys import ALL, Key
from realtime.base.config.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_the_one_that_the_declarations_give() -> None:
    told = "run: python -m realtime.base.config.reference > docs/reference/configuration.md"
    assert PAGE.read_text("utf-8") == reference(), told


@pytest.mark.parametrize("key", ALL.values(), ids=list(ALL))
def test_every_key_says_what_it_does_and_what_is_allowed(key: Key) -> None:
    assert key.description.endswith(".")
    assert key.allowed
    assert (
        key.checked(key.default if not isinstance(key.default, tuple) else list(key.default), "a test") == key.default
    )


@pytest.mark.parametrize("key", ALL.values(), ids=list(ALL))
def test_a_number_says_its_unit_last(key: Key) -> None:
    if "number" in key.allowed:
        assert key.name.endswith(
            ("_s", "_ms", "_bytes", "_max", "_min", "_burst", "port", "shards", "threads", "history", "level")
        )


def test_secrets_are_marked_as_such() -> None:
    assert {key.path for key in ALL.values() if key.secret} == {"auth.secrets", "auth.service_keys"}
