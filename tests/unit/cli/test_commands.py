"""The command line as a user meets it: what it prints, and how it fails."""

from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from realtime.cli import main

Run = Callable[..., tuple[int, str, str]]
SECRET = "s" * 40


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in an empty directory; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("WS_PORT", "API_PORT", "REALTIME_JWT_SECRET", "REALTIME_DATA_DIR", "REALTIME_CONFIG", "REALTIME_URL"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["realtime", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr()
        code = ended.value.code
        return code if isinstance(code, int) else 0, printed.out, printed.err

    return command


def test_token_prints_the_token_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_JWT_SECRET", SECRET)
    code, out, err = run("token", "--user", "ann")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    claims = jwt.decode(out.strip(), SECRET, algorithms=["HS256"])
    assert claims["sub"] == "ann"
    assert claims["exp"] - claims["iat"] == 3600
    assert "channels" not in claims


def test_token_grants_channels_and_goes_by_the_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_JWT_SECRET", SECRET)
    channels = ["--channels", "conversation:42", "file:*=subscribe", "--channels", "poll:**=subscribe,history"]
    settings = ["--set", "auth.audience=here", "--set", "auth.user_claim=uid"]
    code, out, _ = run("token", "--user", "ann", *channels, "--ttl", "90s", *settings)
    assert code == 0
    claims = jwt.decode(out.strip(), SECRET, algorithms=["HS256"], audience="here")
    assert claims["uid"] == "ann"
    assert claims["exp"] - claims["iat"] == 90
    assert claims["channels"] == {
        "conversation:42": ["subscribe", "publish", "presence", "history"],
        "file:*": ["subscribe"],
        "poll:**": ["subscribe", "history"],
    }


def test_token_uses_the_secret_that_the_server_keeps(run: Run) -> None:
    _, first, _ = run("token", "--user", "ann")
    secret = Path("data/secret").read_text("ascii").strip()
    assert jwt.decode(first.strip(), secret, algorithms=["HS256"])["sub"] == "ann"
    _, second, _ = run("token", "--user", "bob")
    assert jwt.decode(second.strip(), secret, algorithms=["HS256"])["sub"] == "bob"


@pytest.mark.parametrize(("ttl", "seconds"), [("45", 45), ("45s", 45), ("30m", 1800), ("1h", 3600), ("7d", 604_800)])
def test_a_ttl_has_a_unit(run: Run, ttl: str, seconds: int) -> None:
    _, out, _ = run("token", "--user", "ann", "--ttl", ttl)
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == seconds


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["token", "--user", "a", "--ttl", "soon"], "--ttl 'soon' is not a duration; use 90s, 30m, 1h or 7d"),
        (["token", "--user", "a", "--ttl", "0"], "--ttl '0' is not a duration"),
        (["token", "--user", "a", "--ttl", "99999d"], "--ttl '99999d' is not a duration"),
        (["token", "--user", "a", "--channels", "a**"], "--channels: "),
        (["token", "--user", "a", "--channels", "a=fly"], "--channels: 'fly' is not a right; use subscribe, publish"),
        (["token", "--user", "a", "b"], "'b' stands alone; write --channels b"),
        (["serve", "--set", "server.prot=1"], "server.prot (from --set) is not a key; did you mean server.port?"),
        (["serve", "--config", "missing.toml"], "missing.toml cannot be read: No such file or directory"),
        (["serve", "missing:app"], "there is no module missing for missing:app"),
        (
            ["serve", "--set", "server.host=0.0.0.0", "--set", "api.enabled=false"],
            "server.host = '0.0.0.0' is not a loopback address",
        ),
        (["sub", "c"], "there is no secret in data: no server has run there"),
        (["sub", "c", "--token", "t", "--url", "ws://127.0.0.1:9/ws"], "nothing answers at ws://127.0.0.1:9/ws"),
        (["chat", "c", "--token", "t", "--url", "nonsense"], "nonsense is not the URL of a WebSocket endpoint"),
        (["pub", "c", "e", "{"], "'{' is not JSON: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(run: Run, arguments: list[str], told: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("realtime: ")
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["serve", "--prot", "1"], ["token"], ["token", "--explain"], ["sub", "c", "--last", "0"]],
)
def test_a_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("serve", "token", "sub", "pub", "chat"):
        assert f"  {command} " in out
