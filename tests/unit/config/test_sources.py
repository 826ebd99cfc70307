"""Where settings come from, which source wins, and how each wrong one is told."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from realtime.base.config import ConfigError, Settings, load, overlooked

SECRET = "s" * 40


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where there is no realtime.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(sets: Sequence[str] = (), **environ: str) -> Settings:
    return load(sets=sets, environ=environ)


def refusal(sets: Sequence[str] = (), environ: Mapping[str, str] | None = None, file: str | None = None) -> str:
    path = None
    if file is not None:
        path = Path("other.toml")
        path.write_text(file, "utf-8")
    with pytest.raises(ConfigError) as refused:
        load(path, sets, environ or {})
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_without_any_source_the_defaults_hold() -> None:
    found = settings()
    assert found == Settings()
    assert (found.server.host, found.server.port, found.api.port, found.data_dir) == ("127.0.0.1", 3002, 3001, "data")


def test_a_later_source_wins_key_by_key(empty_directory: Path) -> None:
    file = empty_directory / "realtime.toml"
    file.write_text("[server]\nport = 1\nshards = 4\n[typing]\ntimeout_s = 7\n", "utf-8")
    assert settings().server.port == 1
    assert settings(WS_PORT="2").server.port == 2
    assert settings(WS_PORT="2", REALTIME_SERVER__PORT="3").server.port == 3
    last = settings(["server.port=4"], WS_PORT="2", REALTIME_SERVER__PORT="3")
    assert (last.server.port, last.server.shards, last.typing.timeout_s) == (4, 4, 7.0)


def test_a_file_is_named_by_the_command_line_else_by_the_environment(empty_directory: Path) -> None:
    for name, port in (("realtime.toml", 1), ("environment.toml", 2), ("argument.toml", 3)):
        (empty_directory / name).write_text(f"[server]\nport = {port}\n", "utf-8")
    environ = {"REALTIME_CONFIG": "environment.toml"}
    assert load(environ={}).server.port == 1
    assert load(environ=environ).server.port == 2
    assert load("argument.toml", environ=environ).server.port == 3


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("WS_PORT", "4001", "server.port", 4001),
        ("API_PORT", "4002", "api.port", 4002),
        ("REALTIME_DATA_DIR", "/var/lib/x", "data_dir", "/var/lib/x"),
        ("REALTIME_JWT_SECRET", f"{SECRET},with a comma", "auth.secrets", (f"{SECRET},with a comma",)),
        ("REALTIME_SERVICE_KEY", f"{SECRET},with a comma", "auth.service_keys", (f"{SECRET},with a comma",)),
        ("REALTIME_AUTH__SERVICE_KEY", f"{SECRET},with a comma", "auth.service_keys", (f"{SECRET},with a comma",)),
        ("REALTIME_AUTH__SERVICE_KEYS", f"{SECRET},{SECRET}2", "auth.service_keys", (SECRET, f"{SECRET}2")),
        ("REALTIME_AUTH__ALGORITHMS", "HS256,HS384", "auth.algorithms", ("HS256", "HS384")),
        ("REALTIME_AUTH__SECRETS", f"{SECRET}, {SECRET}2", "auth.secrets", (SECRET, f"{SECRET}2")),
        ("REALTIME_AUTH__ORIGINS", '["https://a.example"]', "auth.origins", ("https://a.example",)),
        ("REALTIME_AUTH__ORIGINS", "none", "auth.origins", None),
        ("REALTIME_AUTH__REQUIRE_EXP", "off", "auth.require_exp", False),
        ("REALTIME_LIMITS__ENABLED", "false", "limits.enabled", False),
        ("REALTIME_TYPING__TIMEOUT_S", "0.5", "typing.timeout_s", 0.5),
        ("REALTIME_PRESENCE__GRACE_S", "3", "presence.grace_s", 3.0),
        ("REALTIME_CONVERSATIONS__ACCESS", "grants", "conversations.access", "grants"),
    ],
)
def test_a_variable_sets_its_key(variable: str, text: str, key: str, value: object) -> None:
    found: object = settings(**{variable: text})
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_one_service_key_may_be_named_without_a_list(empty_directory: Path) -> None:
    (empty_directory / "realtime.toml").write_text(f'[auth]\nservice_key = "{SECRET}"\n', "utf-8")
    assert settings().auth.service_keys == (SECRET,)
    assert settings([f"auth.service_key={SECRET}2"]).auth.service_keys == (f"{SECRET}2",)


@pytest.mark.parametrize(
    ("variable", "content", "key", "value"),
    [
        ("WS_PORT_FILE", b"4001\n", "server.port", 4001),
        ("REALTIME_JWT_SECRET_FILE", SECRET.encode() + b",x\r\n", "auth.secrets", (f"{SECRET},x",)),
        ("REALTIME_SERVICE_KEY_FILE", SECRET.encode() + b"\n\n", "auth.service_keys", (f"{SECRET}\n",)),
        ("REALTIME_AUTH__SECRETS_FILE", f'["{SECRET}"]'.encode(), "auth.secrets", (SECRET,)),
        ("REALTIME_PRESENCE__GRACE_S_FILE", b"3", "presence.grace_s", 3.0),
    ],
)
def test_a_variable_may_name_a_file_that_holds_its_value(
    empty_directory: Path, variable: str, content: bytes, key: str, value: object
) -> None:
    file = empty_directory / "value"
    file.write_bytes(content)
    found: object = settings(**{variable: str(file)})
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert settings(**{variable: ""}) == Settings()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "REALTIME_JWT_SECRET_FILE names 'value', which cannot be read: No such file or directory; correct it"),
        (b"\n", "REALTIME_JWT_SECRET_FILE names 'value', which is empty; write the value into it"),
        (b"\xff" * 40, "REALTIME_JWT_SECRET_FILE names 'value', which is not UTF-8"),
        (b"x" * 70_000, "which has more than 65536 bytes; name another file"),
        (b"short", "auth.secrets[0] holds 5 bytes"),
    ],
)
def test_a_file_without_a_value_is_told_by_its_variable(content: bytes | None, told: str) -> None:
    if content is not None:
        Path("value").write_bytes(content)
    assert told in refusal(environ={"REALTIME_JWT_SECRET_FILE": "value"})


def test_a_value_and_its_file_contradict_each_other() -> None:
    Path("value").write_text(SECRET, "ascii")
    told = refusal(environ={"REALTIME_JWT_SECRET_FILE": "value", "REALTIME_JWT_SECRET": SECRET})
    assert told == "REALTIME_JWT_SECRET and REALTIME_JWT_SECRET_FILE are both set; unset one of them"


def test_a_wrong_value_in_a_file_is_told_by_the_variable_that_names_it() -> None:
    Path("value").write_text("http", "ascii")
    assert "server.port = 'http' (from WS_PORT_FILE) is not allowed" in refusal(environ={"WS_PORT_FILE": "value"})
    assert "server.prot (from REALTIME_SERVER__PROT_FILE) is not a key" in refusal(
        environ={"REALTIME_SERVER__PROT_FILE": "value"}
    )


def test_an_empty_variable_counts_as_not_set() -> None:
    assert settings(WS_PORT="", REALTIME_JWT_SECRET="", REALTIME_SERVER__PORT="", REALTIME_CONFIG="") == Settings()


def test_variables_of_other_programs_are_left_alone() -> None:
    assert settings(REALTIME_CACHE="/tmp", REALTIME_TOKEN="x", REALTIME_URL="y", PORT="1") == Settings()  # noqa: S108


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (
            "[server]\nport = 99999\n",
            "server.port = 99999 (from other.toml) is not allowed; use a whole number from 0 to 65535",
        ),
        (
            '[server]\nport = "3002"\n',
            "server.port = '3002' (from other.toml) is not allowed; use a whole number from 0 to 65535",
        ),
        ("[server]\nport = true\n", "server.port = True (from other.toml) is not allowed"),
        ("[typing]\ntimeout_s = nan\n", "typing.timeout_s = nan (from other.toml) is not allowed"),
        ("[presence]\ngrace_s = inf\n", "presence.grace_s = inf (from other.toml) is not allowed"),
        (
            '[conversations]\naccess = "all"\n',
            'conversations.access = \'all\' (from other.toml) is not allowed; use "grants" or "open"',
        ),
        ("[limits]\nenabled = 1\n", "limits.enabled = 1 (from other.toml) is not allowed; use true or false"),
        ("[server]\nprot = 1\n", "server.prot (from other.toml) is not a key; did you mean server.port?"),
        ("[server]\nzzz = 1\n", "server.zzz (from other.toml) is not a key; [server] has host, port, shards"),
        ("[sever]\nport = 1\n", "sever (from other.toml) is not a key; did you mean server?"),
        ("[zzz]\nport = 1\n", "zzz (from other.toml) is not a key; the sections are server, engine, api, auth"),
        ("server = 1\n", "server (from other.toml) is not a table; write [server]"),
        ("port = \n", "other.toml is not TOML: Invalid value (at line 1, column 8); correct it"),
        ("data_dir = ''\n", "data_dir = '' (from other.toml) is not allowed; use a text that is not empty"),
    ],
)
def test_a_wrong_file_is_told_by_key_value_and_what_is_allowed(file: str, told: str) -> None:
    assert told in refusal(file=file)


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ("server.port", "--set 'server.port' has no value; write --set section.key=value"),
        ("server.port=x", "server.port = 'x' (from --set) is not allowed; use a whole number from 0 to 65535"),
        ("limits.enabled=maybe", "limits.enabled = 'maybe' (from --set) is not allowed; use true or false"),
        ("limit.enabled=true", "limit.enabled (from --set) is not a key; did you mean limits.enabled?"),
        ("drain.grace_s=0", "drain.grace_s = '0' (from --set) is not allowed; use a number from 0.1 to 3600"),
        ("auth.origins=[", "auth.origins = '[' (from --set) is not allowed; use a list of texts"),
    ],
)
def test_a_wrong_argument_is_told_in_the_same_way(sets: str, told: str) -> None:
    assert told in refusal([sets])


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("REALTIME_SERVER__PROT", "server.prot (from REALTIME_SERVER__PROT) is not a key; did you mean server.port?"),
        ("REALTIME_JWT_SECERT", "is not a name; did you mean REALTIME_JWT_SECRET?"),
        ("REALTIME_DATADIR", "is not a name; did you mean REALTIME_DATA_DIR?"),
        ("WS_PORT", "server.port = 'http' (from WS_PORT) is not allowed; use a whole number from 0 to 65535"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(variable: str, told: str) -> None:
    assert told in refusal(environ={variable: "http"})


@pytest.mark.parametrize("file", ["missing.toml", "."])
def test_a_named_file_that_cannot_be_read_is_told(file: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*; name another file by --config"):
        load(file, environ={})


def test_a_file_that_is_not_utf_8_is_told() -> None:
    Path("other.toml").write_bytes(b"data_dir = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load("other.toml", environ={})


@pytest.mark.parametrize(
    "environ",
    [
        {"REALTIME_JWT_SECRET": "short-secret"},
        {"REALTIME_SERVICE_KEY": "short-secret"},
        {"REALTIME_AUTH__SECRETS": '["short-secret", 3]'},
        {"REALTIME_AUTH__SECRETS": "[short-secret"},
    ],
)
def test_a_secret_is_never_printed(environ: dict[str, str]) -> None:
    assert "short-secret" not in refusal(environ=environ)
    assert SECRET not in repr(settings(REALTIME_JWT_SECRET=SECRET, REALTIME_SERVICE_KEY=SECRET))


def test_a_secret_is_measured_in_bytes() -> None:
    assert settings(REALTIME_JWT_SECRET="ä" * 16).auth.secrets == ("ä" * 16,)
    assert "auth.secrets[0] holds 31 bytes; use at least 32" in refusal(environ={"REALTIME_JWT_SECRET": "x" * 31})


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["limits.outbox_soft_bytes=2000000"], "limits.outbox_soft_bytes = 2000000 is above limits.outbox_hard_bytes"),
        (["limits.message_bytes_max=999999999"], "is above limits.unfinished_bytes_max = 268435456; raise the second"),
        (
            ["auth.jwks_url=https://id.example/k"],
            'auth.jwks_url is set, but auth.algorithms = ["HS256"] takes no public',
        ),
        (["auth.public_keys=a.pem"], "auth.public_keys is set, but auth.algorithms"),
        (["auth.algorithms=RS256"], "nothing says which key; set auth.public_keys or auth.jwks_url"),
        (["auth.algorithms=none"], 'use a list of "ES256" or "ES384" or "EdDSA" or "HS256"'),
        (
            [f"auth.secrets={SECRET}", "auth.algorithms=RS256", "auth.public_keys=a"],
            "auth.secrets is set, but auth.alg",
        ),
        ([f"auth.secrets={SECRET}", "auth.algorithms=HS512"], "auth.secrets[0] holds 40 bytes; use at least 64"),
        (["auth.algorithms=RS256", "auth.jwks_url=http://id.example/k"], "use https, or http on a loopback address"),
        (["auth.algorithms=RS256", "auth.jwks_url=file:///k"], "use https, or http on a loopback address"),
        (["auth.algorithms=RS256", "auth.jwks_url=https://me:pw@id.example"], "has a user or a fragment"),
        (["auth.algorithms=RS256", "auth.jwks_url=https://id:99999/"], "is not an address: Port out of range"),
        (
            ["server.port=3001", "server.host=127.0.0.2"],
            "server.port and api.port are both 3001 on two hosts; set server.host and api.host to one, or API_PORT to another port",  # noqa: E501
        ),
        (["api.url=127.0.0.1:3001"], "api.url = '127.0.0.1:3001' is not an address; use http://host:port"),
        (["api.url=http://host:99999"], "is not an address: Port out of range 0-65535; use http://host:port"),
        (["api.url=ftp://host"], "api.url = 'ftp://host' is not an address; use http://host:port or https://host"),
        (["api.url=http://me:secret@host"], "api.url has a user, a query or a fragment; leave them out"),
        (["api.url=http://host?a=b"], "api.url has a user, a query or a fragment; leave them out"),
        (["api.url=http://host", "api.timeout_s=30"], "api.timeout_s = 30 is not below handlers.timeout_s = 30"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(sets: list[str], told: str) -> None:
    assert told in refusal(sets)


def test_beside_an_existing_api_the_own_port_is_another() -> None:
    assert settings([]).api.port == 3001
    assert settings(["api.url=http://127.0.0.1:3001"]).api.port == 3003
    assert settings(["api.url=http://127.0.0.1:3001", "api.port=3001"]).api.port == 3001


def test_both_ports_may_be_left_to_the_system() -> None:
    assert settings(["server.port=0", "api.port=0"]).server.port == 0


@pytest.mark.parametrize("variable", ["API_PORT", "WS_PORT"])
def test_a_port_that_kubernetes_sets_for_a_service_is_ignored_and_told(variable: str) -> None:
    environ = {variable: "tcp://10.96.0.12:80"}
    assert load(environ=environ) == Settings()
    (line,) = overlooked(environ)
    assert line.startswith(f"{variable} = 'tcp://10.96.0.12:80' is of Kubernetes")
    assert "enableServiceLinks: false" in line
    long = {"API_PORT": "REALTIME_API__PORT", "WS_PORT": "REALTIME_SERVER__PORT"}[variable]
    assert long in line
    assert load(environ=environ | {long: "0"}) != Settings()


def test_what_kubernetes_sets_for_a_service_of_our_name_is_left_alone() -> None:
    environ = {
        "REALTIME_SERVICE_HOST": "10.96.0.12",
        "REALTIME_SERVICE_PORT": "80",
        "REALTIME_SERVICE_PORT_HTTP": "80",
        "REALTIME_PORT": "tcp://10.96.0.12:80",
        "REALTIME_PORT_80_TCP": "tcp://10.96.0.12:80",
        "REALTIME_PORT_80_TCP_PROTO": "tcp",
        "REALTIME_PORT_80_TCP_PORT": "80",
        "REALTIME_PORT_80_TCP_ADDR": "10.96.0.12",
    }
    assert load(environ=environ) == Settings()
    assert overlooked(environ) == []


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("REALTIME_AUTH_SECRETS", "REALTIME_AUTH__SECRETS"),
        ("REALTIME_SERVER_PORT", "REALTIME_SERVER__PORT"),
        ("REALTIME_API_PORT", "REALTIME_API__PORT"),
        ("REALTIME_LIMITS_CONNECTIONS_MAX", "REALTIME_LIMITS__CONNECTIONS_MAX"),
        ("REALTIME_AUTH_JWKS_ULR", "REALTIME_AUTH__JWKS_URL"),
        ("REALTIME_CONFG", "REALTIME_CONFIG"),
    ],
)
def test_a_variable_that_matches_no_key_is_told_with_the_nearest(variable: str, nearest: str) -> None:
    assert load(environ={variable: "1"}) == Settings()
    assert overlooked({variable: "1"}) == [f"{variable} matches no key and is ignored; the nearest is {nearest}"]


def test_variables_that_set_something_or_are_of_other_programs_are_not_told() -> None:
    ours = {"REALTIME_CONFIG": "x", "REALTIME_URL": "x", "REALTIME_TOKEN": "x", "REALTIME_JWT_SECRET_FILE": "x"}
    assert (
        overlooked(ours | {"REALTIME_AUTH__SECRETS_FILE": "x", "REALTIME_FOO": "", "WS_PORT": "1", "PORT": "x"}) == []
    )


def test_a_byte_order_mark_is_no_part_of_a_file_or_a_value(empty_directory: Path) -> None:
    (empty_directory / "realtime.toml").write_text("\ufeff[server]\nport = 1\n", "utf-8")
    assert load(environ={}).server.port == 1
    (empty_directory / "secret").write_text(f"\ufeff{SECRET}\r\n", "utf-8")
    assert settings(REALTIME_JWT_SECRET_FILE="secret").auth.secrets == (SECRET,)
    assert settings(REALTIME_JWT_SECRET=f"\ufeff{SECRET}").auth.secrets == (SECRET,)
    # The first line of an env file.
    assert load(environ={"\ufeffREALTIME_JWT_SECRET": SECRET}).auth.secrets == (SECRET,)


def test_bytes_that_the_locale_does_not_decode_are_refused_in_one_line() -> None:
    for variable, key in (("REALTIME_DATA_DIR", "data_dir"), ("REALTIME_API__HOST", "api.host")):
        told = refusal(environ={variable: "d\udcc3\udca4"})
        assert (key in told, variable in told, "LC_ALL=C.UTF-8" in told, "\n" in told) == (True, True, True, False)
        told.encode()
    assert "\udcc3" not in refusal(environ={"REALTIME_JWT_SECRET": "s" * 40 + "\udcc3"})
