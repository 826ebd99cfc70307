"""`realtime token --explain`: what is said of a token, and by which exit code."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from realtime.cli import main

Explain = Callable[..., tuple[int, str]]
SECRET = "s" * 40


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Explain:
    """Explain a token in an empty directory; return the exit code and what was printed, stderr behind stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REALTIME_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REALTIME_JWT_SECRET", SECRET)

    def command(token: str, *sets: str) -> tuple[int, str]:
        options = [argument for item in sets for argument in ("--set", item)]
        monkeypatch.setattr("sys.argv", ["realtime", "token", "--explain", token, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, printed.out + printed.err

    return command


def signed(secret: str = SECRET, **claims: Any) -> str:
    now_s = int(time.time())
    return jwt.encode({"sub": "ann", "iat": now_s - 90, "exp": now_s + 7200, **claims}, secret, "HS256")


def test_a_good_token_is_told_with_its_times_in_words_and_the_key_that_signed_it(explain: Explain) -> None:
    code, told = explain(signed())
    assert code == 0
    assert '"sub": "ann"' in told
    assert "1 minute ago" in told
    assert "in 1 hour" in told
    assert "signed by  key 1 of 1 (HS256)" in told
    assert "\naccepted\n" in told
    assert "revocations were not looked at" in told


def test_every_reason_is_told(explain: Explain) -> None:
    now_s = int(time.time())
    token = signed("o" * 40, exp=now_s - 86_400 * 3, nbf=now_s + 600, iat=now_s + 600, aud="other", iss="other")
    code, told = explain(token, "auth.audience=chat", "auth.issuer=me")
    assert code == 1
    reasons = [line.split()[1].rstrip(":") for line in told.splitlines() if line.startswith("refused")]
    assert reasons == ["not_yet_valid", "not_yet_valid", "audience", "issuer", "signature", "expired"]
    assert "3 days ago" in told
    assert 'aud does not name "chat"' in told
    assert "accepted" not in told
    assert token.rpartition(".")[2] not in told, "the signature is not shown"
    for secret in (SECRET, "o" * 40):
        assert secret not in told


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("nonsense", "malformed: it is not of three parts"),
        ("a.b.c", "malformed: header: not canonical base64url"),
        (signed() + " ", "malformed"),
        (jwt.encode({"sub": "a", "exp": 1 << 60}, SECRET, "HS256"), "1152921504606846976, which is not a time"),
        (jwt.encode({"sub": "a", "exp": 1 << 50}, SECRET, "HS256"), "9999-12-31T23:59:59Z, in "),
        (
            jwt.encode({"sub": "a", "exp": 1 << 50}, SECRET * 2, "HS512"),
            "unknown_key: unknown key: none of 1 is for HS512",
        ),
    ],
)
def test_what_can_be_read_of_any_text_is_told(explain: Explain, token: str, told: str) -> None:
    code, printed = explain(token)
    assert code == int("in " not in told)
    assert told in printed
    assert "Traceback" not in printed


def test_a_token_is_read_from_stdin(explain: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{signed()}\n"))
    assert explain("-")[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert explain("-")[0] == 1
