"""One rule for tokens: each is shown at every door, and each door says the same, for the same reason.

The doors: an upgrade, `refresh` of an open session, HTTP, and `TokenCheck` alone, as the command line asks it.
"""

import base64
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import jwt
import msgspec
import pytest

from realtime import Realtime
from realtime._engine import TokenCheck, TokenRefused
from realtime.base.config import AuthSettings, LimitSettings, Settings
from realtime.identity.auth import InvalidToken
from realtime.testing import NotLetIn, TestApp
from tests.unit.identity.keys import public_pem, signed

SECRET = "s" * 32
NOW_S = 1_767_268_800
"""When the world of a `TestApp` begins."""
END_S = NOW_S + 3600
HEAD = '{"alg":"HS256"}'
BODY = f'{{"sub":"ann","exp":{END_S}}}'


def part(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def made(head: str = HEAD, body: str = BODY, secret: str = SECRET) -> str:
    """A token whose header and claims are any text."""
    message = f"{part(head)}.{part(body)}"
    signature = jwt.get_algorithm_by_name("HS256").sign(message.encode(), secret.encode())
    return f"{message}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def claiming(**claims: Any) -> str:
    return made(body=json.dumps({"sub": "ann", "exp": END_S, **claims}))


def raw(members: str) -> str:
    return made(body=f'{{"sub":"ann","exp":{END_S},{members}}}')


def with_spare_bits(token: str) -> str:
    """The same signature, with bits set that mean nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) + 1]


def with_grants(count: int) -> str:
    return claiming(channels={f"a:{number}": ["history"] for number in range(count)})


TOKENS: dict[str, tuple[str, str | None]] = {
    "good": (made(), None),
    "numeric user": (claiming(sub=42), None),
    "grants": (claiming(channels={"conversation:*": ["subscribe"]}), None),
    "a hundred grants": (with_grants(100), None),
    "iat just ahead": (claiming(iat=NOW_S + 5), None),
    "exp beyond the year 9999": (claiming(exp=253_402_300_800), None),
    "kid null": (made('{"alg":"HS256","kid":null}'), None),
    "unknown header members": (made('{"alg":"HS256","typ":"JWT","jku":"https://evil.example"}'), None),
    "empty": ("", "malformed"),
    "nonsense": ("nonsense", "malformed"),
    "too long": ("a" * 16_385, "malformed"),
    "four parts": (f"{made()}.AAAA", "malformed"),
    "not ASCII": (made()[:-1] + "é", "malformed"),
    "space before": (f" {made()}", "malformed"),
    "space after": (f"{made()} ", "malformed"),
    "new line after": (f"{made()}\n", "malformed"),
    "no-break space after": (f"{made()}\u00a0", "malformed"),
    "space within": (made().replace(".", ". ", 1), "malformed"),
    "padding": (f"{made()}=", "malformed"),
    "spare bits in the signature": (with_spare_bits(made()), "malformed"),
    "alg none": (".".join((part('{"alg":"none"}'), part(BODY), "")), "malformed"),
    "alg unknown": (made('{"alg":"HS1"}'), "malformed"),
    "alg twice": (made('{"alg":"none","alg":"HS256"}'), "malformed"),
    "typ twice": (made('{"alg":"HS256","typ":"JWT","typ":"JWT"}'), "malformed"),
    "kid a number": (made('{"alg":"HS256","kid":7}'), "malformed"),
    "crit": (made('{"alg":"HS256","crit":["exp"]}'), "malformed"),
    "crit null": (made('{"alg":"HS256","crit":null}'), "malformed"),
    "header with a byte order mark": (made("\ufeff" + HEAD), "malformed"),
    "sub twice": (raw('"sub":"eve"'), "malformed"),
    "exp twice": (raw(f'"exp":{END_S}'), "malformed"),
    "a channel twice": (raw('"channels":{"a":["subscribe"],"a":["publish"]}'), "malformed"),
    "channels null": (claiming(channels=None), "malformed"),
    "channels a list": (claiming(channels=["a"]), "malformed"),
    "channels with a text": (claiming(channels={"a": "subscribe"}), "malformed"),
    "channels with another right": (claiming(channels={"a": ["write"]}), "malformed"),
    "channels with no pattern": (claiming(channels={"a::b": []}), "malformed"),
    "101 channels": (with_grants(101), "malformed"),
    "no exp": (made(body='{"sub":"ann"}'), "malformed"),
    "exp null": (claiming(exp=None), "malformed"),
    "exp a text": (claiming(exp=str(END_S)), "malformed"),
    "exp true": (claiming(exp=True), "malformed"),
    "exp below 0": (claiming(exp=-1), "malformed"),
    "exp 2^53": (claiming(exp=1 << 53), "malformed"),
    "exp 2^64": (claiming(exp=1 << 64), "malformed"),
    "exp 1e400": (made(body='{"sub":"ann","exp":1e400}'), "malformed"),
    "exp NaN": (made(body='{"sub":"ann","exp":NaN}'), "malformed"),
    "iat 1e300": (claiming(iat=1e300), "malformed"),
    "iat below 0": (claiming(iat=-1), "malformed"),
    "nbf a text": (claiming(nbf="then"), "malformed"),
    "jti null": (claiming(jti=None), "malformed"),
    "no sub": (made(body=f'{{"exp":{END_S}}}'), "malformed"),
    "sub empty": (claiming(sub=""), "malformed"),
    "sub too long": (claiming(sub="a" * 257), "malformed"),
    "sub true": (claiming(sub=True), "malformed"),
    "sub with a fraction": (claiming(sub=1.5), "malformed"),
    "expired": (claiming(exp=NOW_S), "expired"),
    "expired and forged": (made(body=f'{{"sub":"ann","exp":{NOW_S}}}', secret="o" * 32), "signature"),
    "nbf ahead": (claiming(nbf=NOW_S + 1), "not_yet_valid"),
    "iat too far ahead": (claiming(iat=NOW_S + 6), "not_yet_valid"),
    "forged": (made(secret="o" * 32), "signature"),
    "another algorithm": (jwt.encode({"sub": "ann", "exp": END_S}, SECRET * 2, "HS512"), "unknown_key"),
}


def told(t: TestApp) -> Counter[str]:
    """How often tokens were refused for each reason, at all doors."""
    return Counter(msgspec.json.decode(t.engine.stats())["tokens_refused"]) + Counter(t.control.figures.tokens_refused)


async def at_upgrade(t: TestApp, token: str) -> str | None:
    before = told(t)
    refused: NotLetIn | None = None
    try:
        await (await t.connect(path=f"/ws?token={quote(token)}")).close()
    except NotLetIn as error:
        refused = error
    reasons = list(told(t) - before)
    if refused is None:
        assert reasons == []
        return None
    if refused.code == 414:
        return "malformed"
    assert refused.code == (4002 if reasons == ["expired"] else 4501)
    return reasons[0]


async def at_refresh(t: TestApp, token: str) -> str | None:
    before = told(t)
    ann = await t.connect(token=claiming(sub="42" if '"sub": 42' in token else "ann"))
    answer = await ann.command("refresh", token=token)
    await ann.close()
    if answer.type == "ack" or answer.data["code"] == "forbidden":
        return None
    if not token:
        assert answer.data["path"] == "data.token"
        return "malformed"
    assert answer.data["code"] == "unauthorized"
    (reason,) = told(t) - before
    return reason


async def over_http(t: TestApp, token: str) -> str | None:
    # A header's own white space is no part of the token (RFC 9110 5.5).
    if token != token.strip(" \t\n"):
        return "malformed"
    before, reason = told(t), None
    try:
        await t.control.identities.identify_request("/", "", [("Authorization", f"Bearer {token}")], "peer")
    except InvalidToken as error:
        reason = error.reason
    assert list(told(t) - before) == ([] if reason is None else [reason])
    return "malformed" if reason == "missing" and not token else reason


@pytest.mark.parametrize("door", [at_upgrade, at_refresh, over_http])
async def test_each_token_is_answered_alike_at_every_door(door: Callable[[TestApp, str], Any]) -> None:
    # One user refreshes at ever new connections, which a user's rate would end.
    settings = Settings(auth=AuthSettings(secrets=(SECRET,)), limits=LimitSettings(enabled=False))
    async with TestApp(Realtime(), settings) as t:
        assert {name: await door(t, token) for name, (token, _) in TOKENS.items()} == {
            name: reason for name, (_, reason) in TOKENS.items()
        }


@pytest.mark.parametrize("name", list(TOKENS))
def test_the_rule_alone_says_the_same(name: str) -> None:
    token, reason = TOKENS[name]
    check = TokenCheck(json.dumps({"keys": [{"algorithm": "HS256", "key": SECRET}]}).encode())
    told = msgspec.json.decode(check.explain(token, NOW_S * 1000))["refusals"]
    if reason is None:
        assert check.check(token, NOW_S * 1000)[0] in {"ann", "42"}
        assert told == []
        return
    with pytest.raises(TokenRefused) as refused:
        check.check(token, NOW_S * 1000)
    assert refused.value.args[0] == reason
    assert reason in {each["reason"] for each in told}


async def test_the_ninth_key_is_tried_for_nobody_without_its_kid() -> None:
    names = [str(number) for number in range(9)]
    keys = tuple(public_pem("ES256", name) for name in names)
    auth = AuthSettings(secrets=(SECRET,), public_keys=keys, algorithms=("HS256", "ES256"))
    named = AuthSettings(
        secrets=(SECRET,),
        public_keys=tuple(f"k{name}={key}" for name, key in zip(names, keys, strict=True)),
        algorithms=("HS256", "ES256"),
    )
    eighth, ninth = (signed("ES256", name, exp=END_S) for name in ("7", "8"))
    for settings, token, reason in (
        (auth, eighth, None),
        (auth, ninth, "signature"),
        (named, ninth, "signature"),
        (named, signed("ES256", "8", kid="k8", exp=END_S), None),
    ):
        async with TestApp(Realtime(), Settings(auth=settings)) as t:
            for door in (at_upgrade, over_http, at_refresh):
                assert await door(t, token) == reason


async def test_two_authorization_headers_are_refused_at_both_doors() -> None:
    async with TestApp(Realtime(), Settings(auth=AuthSettings(secrets=(SECRET,)))) as t:
        good, bad = ("Authorization", f"Bearer {made()}"), ("authorization", "Bearer other")
        await t.connect(headers=[good])
        for sent in ([good, bad], [bad, good], [good, good], [good, ("Authorization", "Basic dXNlcjpw")]):
            before = told(t)
            with pytest.raises(NotLetIn, match="4501"):
                await t.connect(headers=sent)
            with pytest.raises(InvalidToken):
                await t.control.identities.identify_request("/", "", sent, "peer")
            assert told(t) - before == {"ambiguous": 2}


async def test_an_end_beyond_the_year_9999_is_shown_as_its_end() -> None:
    async with TestApp(Realtime(), Settings(auth=AuthSettings(secrets=(SECRET,)))) as t:
        for exp in (253_402_300_799, 253_402_300_800, (1 << 53) - 1):
            ann = await t.connect(token=claiming(exp=exp))
            shown = (await ann.expect("connection_established")).data["expiresAt"]
            assert shown == f"9999-12-31T23:59:59.{'000' if exp == 253_402_300_799 else '999'}Z"
            assert await ann.ack("refresh", token=claiming(exp=exp)) == {"expiresAt": shown}
            assert (await ann.command("ping")).type == "pong"
