"""Patterns of channels, tokens and grants."""

import re
from pathlib import Path

import jwt
import pytest

from realtime.auth import Grant, Identity, InvalidToken, Pattern, TokenRule, checked_grants, is_channel, mint_token

SECRET = "s" * 32
OTHER = "o" * 32


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
    compared = [(pattern, name, covers == "true") for pattern, name, covers in rows if "{" not in pattern]
    assert len(compared) > 5
    for pattern, name, covers in compared:
        assert Pattern(pattern).matches(name) is covers, (pattern, name)


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


def test_a_minted_token_says_who_its_bearer_is() -> None:
    token = mint_token(SECRET, "alice", {"file:*": ["subscribe"]}, ttl_s=60)
    identity = TokenRule(secrets=(SECRET,)).check(token)
    assert identity.user == "alice"
    assert identity.grants == {"file:*": ["subscribe"]}
    assert identity.expires_at is not None


def test_patterns_alone_grant_every_right() -> None:
    claims = jwt.decode(mint_token(SECRET, "a", ["a:*"]), SECRET, algorithms=["HS256"])
    assert claims["channels"] == {"a:*": ["subscribe", "publish", "presence", "history"]}


def test_a_token_without_channels_has_no_claim_of_them() -> None:
    assert "channels" not in jwt.decode(mint_token(SECRET, "a"), SECRET, algorithms=["HS256"])


def test_any_of_the_secrets_may_have_signed() -> None:
    assert TokenRule(secrets=(OTHER, SECRET)).check(mint_token(SECRET, "a")) == TokenRule(secrets=(SECRET,)).check(
        mint_token(SECRET, "a")
    )


def _signed(claims: dict[str, object], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


FAR = 4_102_444_800


@pytest.mark.parametrize(
    "token",
    [
        "",
        "not a token",
        _signed({"sub": "a", "exp": FAR}, OTHER),
        _signed({"sub": "a", "exp": 1}),
        _signed({"sub": "a"}),
        _signed({"exp": FAR}),
        _signed({"sub": 5, "exp": FAR}),
        _signed({"sub": "", "exp": FAR}),
        _signed({"sub": "a", "exp": FAR, "channels": ["a"]}),
        _signed({"sub": "a", "exp": FAR}, SECRET * 2, "HS512"),
        _signed({"sub": "a", "exp": FAR}, "", "none"),
    ],
)
def test_a_wrong_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        TokenRule(secrets=(SECRET,)).check(token)


def test_the_audience_counts_where_one_is_set() -> None:
    rule = TokenRule(secrets=(SECRET,), audience="chat")
    assert rule.check(mint_token(SECRET, "a", audience="chat")).user == "a"
    with pytest.raises(InvalidToken):
        rule.check(mint_token(SECRET, "a"))
    assert TokenRule(secrets=(SECRET,)).check(mint_token(SECRET, "a", audience="chat")).user == "a"


def test_a_token_may_do_without_an_end_where_the_rule_says_so() -> None:
    rule = TokenRule(secrets=(SECRET,), require_exp=False, user_claim="uid")
    assert rule.check(_signed({"uid": "a"})) == Identity("a")


def test_secrets_are_not_shown() -> None:
    assert SECRET not in repr(TokenRule(secrets=(SECRET,)))
