"""Patterns of channels, tokens and grants."""

import re
from pathlib import Path

import jwt
import pytest

from realtime._engine import covers, is_name
from realtime.identity.auth import (
    NAME_PATTERN,
    RIGHTS,
    Grant,
    Identity,
    Pattern,
    checked_grants,
    is_channel,
    may,
    mint_token,
)

SECRET = "s" * 32


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("poll:1", "poll:1", True),
        ("poll:1", "poll:2", False),
        ("poll:*", "poll:1", True),
        ("poll:*", "poll", False),
        ("poll:*", "poll:1:2", False),
        ("poll:{poll}", "poll:1", True),
        ("*:1", "poll:1", True),
        ("file:**", "file:1", True),
        ("file:**", "file:1:2:3", True),
        ("file:**", "file", False),
        ("**", "anything:at:all", True),
        ("a:*:c", "a:b:c", True),
        ("a:*:c", "a:b:d", False),
        ("a:*", "a:", False),
        ("a:*:c", "a::c", False),
        ("a:**", "a:", False),
        ("a:**", "a::b", True),
    ],
)
def test_a_pattern_matches_by_segments(pattern: str, channel: str, matches: bool) -> None:
    assert Pattern(pattern).matches(channel) is matches


def test_the_engine_covers_the_same_channels() -> None:
    source = (Path(__file__).parents[2] / "rust/hub/src/pattern.rs").read_text("utf-8")
    rows = re.findall(r'\("([^"]+)", "([^"]+)", (true|false)\)', source.partition("fn patterns_cover")[2])
    assert len(rows) > 8
    for pattern, name, covered in rows:
        assert covers(pattern, name, "ann") is (covered == "true"), (pattern, name)
        if "{" not in pattern:
            assert Pattern(pattern).matches(name) is (covered == "true"), (pattern, name)


@pytest.mark.parametrize("pattern", ["", "a:", ":a", "a**", "**:a", "a:b*", "a:{B}", "a b", "a:{b"])
def test_what_is_no_pattern_is_refused_with_what_is(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is not a pattern: .*; use names, \*, \{name\}, and \*\* at the end"):
        Pattern(pattern)


def test_named_segments_are_found() -> None:
    pattern = Pattern("doc:{owner}:*:{page}")
    assert pattern.names == ("owner", "page")
    assert pattern.text == "doc:*:*:*"
    assert pattern.parts("doc:ann:x:7") == {"owner": "ann", "page": "7"}


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("conversation:42", True),
        ("a@b.c-d_e:f", True),
        ("_a", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        (":a", False),
        ("-a", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
        ("a*", False),
        ("_realtime:revocations", False),
        ("_realtime", True),
    ],
)
def test_names_of_channels_are_what_the_protocol_says(name: str, valid: bool) -> None:
    assert is_channel(name) is valid


def test_a_grant_without_rights_lets_read() -> None:
    assert Grant().rights == ("subscribe", "presence", "history")
    assert Grant("publish", "publish").rights == ("publish",)


def test_a_right_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="'write' is not a right; use subscribe, publish, presence, history"):
        Grant("write")
    with pytest.raises(ValueError, match="'write'"):
        checked_grants({"a:*": ["write"]})


def test_patterns_alone_grant_every_right() -> None:
    claims = jwt.decode(mint_token(SECRET, "a", ["a:*"]), SECRET, algorithms=["HS256"])
    assert claims["channels"] == {"a:*": ["subscribe", "publish", "presence", "history"]}


def test_a_grant_names_a_user_by_any_id_and_a_pattern_stays_one() -> None:
    patterns = ["user:**", "user:*", "user:ann", "user:auth0|5f7c", "file:**"]
    assert list(checked_grants({pattern: ["subscribe"] for pattern in patterns})) == [
        "user:**",
        "user:*",
        "user:ann",
        "user:.YXV0aDB8NWY3Yw",
        "file:**",
    ]


def test_a_token_without_channels_has_no_claim_of_them() -> None:
    assert "channels" not in jwt.decode(mint_token(SECRET, "a"), SECRET, algorithms=["HS256"])


def test_a_minted_token_names_the_audience_and_the_issuer() -> None:
    claims = jwt.decode(mint_token(SECRET, "a", audience="chat", issuer="me"), SECRET, ["HS256"], audience="chat")
    assert (claims["aud"], claims["iss"]) == ("chat", "me")


@pytest.mark.parametrize(
    ("pattern", "channel", "user", "covered"),
    [
        ("user:{session.user}", "user:ann", "ann", True),
        ("user:{session.user}", "user:anna", "ann", False),
        ("user:{session.user}", "user:a:b", "a:b", True),
        ("user:{session.user}:*", "user:a:b:c", "a:b", True),
        ("user:{session.user}", "user:", "", False),
        ("a*", "ab", "ann", False),
    ],
)
def test_the_session_s_own_user_stands_in_a_pattern(pattern: str, channel: str, user: str, covered: bool) -> None:
    assert covers(pattern, channel, user) is covered


OPEN = (("conversation:*", ("subscribe", "publish")), ("user:{session.user}", ("subscribe", "history")))


@pytest.mark.parametrize(
    ("grants", "right", "channel", "allowed"),
    [
        (None, "publish", "conversation:1", True),
        (None, "history", "conversation:1", False),
        ({"conversation:*": ["history"]}, "history", "conversation:1", True),
        ({"conversation:*": ["history"]}, "subscribe", "conversation:1", True),
        ({"**": list(RIGHTS)}, "presence", "anything:at:all", True),
        ({"file:*": ["subscribe"], "file:7": ["publish"]}, "publish", "file:7", True),
        ({"file:*": ["subscribe"], "file:7": ["publish"]}, "publish", "file:8", False),
        (None, "history", "user:ann", True),
        (None, "history", "user:bob", False),
        ({"**": list(RIGHTS)}, "history", "_realtime:revocations", False),
        ({"**": list(RIGHTS)}, "history", "no channel", False),
    ],
)
def test_rights_are_the_union_of_what_is_open_and_what_is_granted(
    grants: dict[str, list[str]] | None, right: str, channel: str, allowed: bool
) -> None:
    assert may(Identity("ann", grants), right, channel, OPEN) is allowed


def test_a_token_is_not_shown_with_its_identity() -> None:
    assert "secret" not in repr(Identity("ann", token="a-secret-token"))


@pytest.mark.parametrize(
    "text", ["a", "_", "-a", ".a", ":a", "@", "", "a b", "a*", "ä", "a|b", "a.b:c@d-e", "x" * 128, "x" * 129]
)
def test_the_pattern_of_names_is_the_engines_rule(text: str) -> None:
    assert (re.search(NAME_PATTERN, text) is not None) is is_name(text)
