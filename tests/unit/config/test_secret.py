"""The secret that a server makes for itself, and the addresses that it may then listen on."""

import os
import stat
from pathlib import Path

import pytest

from realtime.base.config import (
    ApiSettings,
    AuthSettings,
    ConfigError,
    ServerSettings,
    Settings,
    bracketed,
    is_loopback,
    keys_of,
)

SECRET = "s" * 40


def test_the_first_start_makes_a_secret_that_later_starts_read(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "new" / "data"))
    made = keys_of(settings)
    file = tmp_path / "new" / "data" / "secret"
    assert made.generated
    assert len(made.secrets) == 1
    assert len(made.secrets[0]) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700, "messages are private"
    assert keys_of(settings) == made
    assert keys_of(Settings(data_dir=str(tmp_path / "other"))) != made
    assert made.secrets[0] not in repr(made)


@pytest.mark.parametrize("umask", [0o000, 0o277, 0o777])
def test_the_secret_is_its_owner_s_alone_whatever_the_umask_and_the_folder(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o777)
    before = os.umask(umask)
    try:
        made = keys_of(Settings(data_dir=str(tmp_path)))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert keys_of(Settings(data_dir=str(tmp_path))) == made


def test_a_configured_secret_leaves_the_data_directory_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), auth=AuthSettings(secrets=(SECRET,)))
    keys = keys_of(settings)
    assert (keys.secrets, keys.generated) == ((SECRET,), False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])  # noqa: S104
def test_another_address_without_a_configured_secret_is_refused(tmp_path: Path, host: str) -> None:
    data_dir = str(tmp_path / "data")
    for settings in (
        Settings(data_dir=data_dir, server=ServerSettings(host=host)),
        Settings(data_dir=data_dir, api=ApiSettings(host=host)),
    ):
        with pytest.raises(ConfigError, match="not a loopback address and no secret is configured; set REALTIME_JWT"):
            keys_of(settings)
    assert not (tmp_path / "data").exists()
    settings = Settings(data_dir=data_dir, server=ServerSettings(host=host), auth=AuthSettings(secrets=(SECRET,)))
    assert not keys_of(settings).generated


def test_an_http_side_that_is_off_may_name_any_address(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path), api=ApiSettings(enabled=False, host="0.0.0.0"))  # noqa: S104
    assert keys_of(settings).generated


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_an_address_of_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    keys_of(settings)
    for mode in (0o604, 0o644, 0o602):
        (tmp_path / "secret").chmod(mode)
        with pytest.raises(ConfigError, match=r"can be read by others; run: chmod 600 .*secret"):
            keys_of(settings)


@pytest.mark.parametrize("mode", [0o640, 0o660, 0o440])
def test_a_secret_that_a_group_can_read_is_told_for_a_group_of_the_process_and_else_refused(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=str(tmp_path))
    keys = keys_of(settings)
    (tmp_path / "secret").chmod(mode)
    assert keys_of(settings) == keys
    assert "can be read by the group" in caplog.text
    monkeypatch.setattr(os, "getegid", lambda: 123_456)
    monkeypatch.setattr(os, "getgroups", lambda: [123_457])
    with pytest.raises(ConfigError, match="can be read by others"):
        keys_of(settings)


def test_a_kept_secret_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path))
    keys = keys_of(settings)
    path = tmp_path / "secret"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert keys_of(settings) == keys


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("[::1]", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_a_host_stands_in_a_url_with_brackets_where_it_needs_them(host: str, shown: str) -> None:
    assert bracketed(host) == shown


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_a_damaged_secret_is_refused_and_not_printed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="holds fewer than 32 bytes; remove it") as refused:
        keys_of(Settings(data_dir=str(tmp_path)))
    assert "short" not in str(refused.value)


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ConfigError, match=r"data_dir = '.*/file/data' cannot be used: Not a directory"):
        keys_of(Settings(data_dir=str(tmp_path / "file" / "data")))


def test_tokens_that_others_sign_need_no_secret(tmp_path: Path) -> None:
    auth = AuthSettings(algorithms=("RS256",), jwks_url="https://id.example/keys")
    keys = keys_of(Settings(data_dir=str(tmp_path / "data"), auth=auth, server=ServerSettings(host="10.0.0.1")))
    assert (keys.secrets, keys.generated) == ((), False)
    assert not (tmp_path / "data").exists()


def test_a_client_makes_no_secret_that_no_server_knows(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"))
    with pytest.raises(ConfigError, match="no server has run there"):
        keys_of(settings, create=False)
    assert not (tmp_path / "data").exists()
    made = keys_of(settings)
    assert keys_of(settings, create=False) == made
