"""`realtime check`: what is set and by what, what follows, and what stands against a start."""

# ruff: noqa: ARG001, S104 -- what a hook takes is its contract; nothing listens here

import fcntl
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from realtime import Realtime
from realtime.base.config import (
    AuthSettings,
    ConfigError,
    ConversationSettings,
    DrainSettings,
    HistorySettings,
    LimitSettings,
    ServerSettings,
    Settings,
    load,
    origins,
)
from realtime.base.config.settings import ApiSettings
from realtime.cli.check import report
from realtime.identity.auth import Identity

SECRET = "s" * 40
JWKS = "https://id.example/keys"
FREE: dict[str, Any] = {"server": ServerSettings(port=0), "api": ApiSettings(port=0)}


def test_each_key_that_is_set_tells_its_value_and_its_source(tmp_path: Path) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text("[server]\nport = 0\n[presence]\ngrace_s = 7\n[limits]\nheartbeats = false\n")
    environ = {
        "REALTIME_JWT_SECRET": SECRET,
        "API_PORT": "0",
        "REALTIME_PRESENCE__GRACE_S": "8",
        "REALTIME_DATA_DIR": str(tmp_path),
    }
    sets = ("limits.heartbeats=true", "log.level=debug")
    found = report(load(file, sets, environ), origins(file, sets, environ), Realtime())
    assert {(entry.key, entry.value, entry.origin) for entry in found.keys} == {
        ("server.port", 0, str(file)),
        ("api.port", 0, "API_PORT"),
        ("presence.grace_s", 8.0, "REALTIME_PRESENCE__GRACE_S"),
        ("log.level", "debug", "--set"),
        ("auth.secrets", "1 hidden", "REALTIME_JWT_SECRET"),
        ("data_dir", str(tmp_path), "REALTIME_DATA_DIR"),
    }
    assert found.errors == []
    assert SECRET not in found.text() + found.json()
    assert json.loads(found.json())["derived"]["secret"] == "configured"


def test_a_fresh_directory_is_fine_and_stays_as_it_is(tmp_path: Path) -> None:
    found = report(Settings(data_dir=str(tmp_path / "data"), **FREE), {}, Realtime())
    assert (found.errors, found.warnings) == ([], [])
    assert "Nothing stands against a start." in found.text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"history": HistorySettings(retention=("news* 30d",))}, "history.retention = 'news* 30d'"),
        ({"history": HistorySettings(retention=("news:* soon",))}, "'soon' is not an age"),
        ({"server": ServerSettings(port=0, proxies=("our-proxy",))}, 'server.proxies: "our-proxy"'),
    ],
)
def test_what_only_the_engine_would_refuse_is_an_error(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    found = report(Settings(data_dir=str(tmp_path / "data"), **{**FREE, **settings}), {}, Realtime())
    assert [error for error in found.errors if told in error] == found.errors
    assert len(found.errors) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_origin_that_no_browser_sends_is_a_warning(tmp_path: Path) -> None:
    origins_ = ("https://app.example.com", "app.example.com", "https://app.example.com/")
    found = report(Settings(data_dir=str(tmp_path), auth=AuthSettings(origins=origins_), **FREE), {}, Realtime())
    assert [warning.split("'")[1] for warning in found.warnings] == ["app.example.com", "https://app.example.com/"]


def test_what_a_start_would_fail_by_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = report(
            Settings(
                data_dir=str(tmp_path / "file"),
                server=ServerSettings(port=port),
                api=ApiSettings(enabled=False),
            ),
            {},
            Realtime(),
        )
    told = "\n".join(found.errors)
    assert f"server.port = {port}" in told
    assert "is not a directory" in told


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"limits": LimitSettings(connections_max=1_000_000_000)}, "limits.connections_max = 1000000000 needs"),
        ({"limits": LimitSettings(outboxes_bytes_max=1 << 40)}, "the limits add up to"),
        ({"limits": LimitSettings(members_bytes_max=1)}, "limits.members_bytes_max = 1 is below 65536: clients cannot"),
        ({"limits": LimitSettings(user_stored_bytes_burst=1000)}, "a longer event counts as 1000 bytes"),
        (
            {"limits": LimitSettings(ring_bytes_max=1 << 30)},
            "above limits.rings_bytes_max = 67108864, which holds first",
        ),
        (
            {"api": ApiSettings(port=0, in_flight_max=60_000, connections_max=65_000)},
            "api.in_flight_max = 60000 is more",
        ),
        ({"api": ApiSettings(port=0, body_timeout_s=0)}, "api.body_timeout_s = 0 is below 1"),
    ],
)
def test_limits_that_the_machine_does_not_have_or_that_serve_nobody_are_warnings(
    tmp_path: Path, sections: dict[str, Any], told: str
) -> None:
    found = report(Settings(data_dir=str(tmp_path), **{**FREE, **sections}), {}, Realtime())
    assert not found.errors
    assert told in "\n".join(found.warnings)


def test_a_directory_that_a_server_uses_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = report(Settings(data_dir=str(tmp_path), **FREE), {}, Realtime())
    assert "in use by a running server" in found.errors[0]


def test_a_public_address_needs_a_secret(tmp_path: Path) -> None:
    public = Settings(
        data_dir=str(tmp_path),
        server=ServerSettings(host="0.0.0.0", port=0),
        api=ApiSettings(port=0),
    )
    assert "is not a loopback address" in report(public, {}, Realtime()).errors[0]


def test_what_is_likely_not_meant_is_a_warning(tmp_path: Path) -> None:
    app = Realtime()

    @app.authenticate
    def who(request: object) -> Identity | None:
        return None

    settings = Settings(
        data_dir=str(tmp_path),
        server=ServerSettings(host="0.0.0.0", port=0),
        api=ApiSettings(enabled=False),
        auth=AuthSettings(secrets=(SECRET,)),
        conversations=ConversationSettings(access="open"),
        drain=DrainSettings(grace_s=5),
        limits=LimitSettings(enabled=False, heartbeats=False, message_bytes_max=1000),
    )
    found = report(settings, {}, app)
    assert found.errors == []
    told = "\n".join(found.warnings)
    for words in (
        *("conversations.access = open", "drain.grace_s = 5", "limits.heartbeats = false", "limits.enabled = false"),
        *("limits.publication_bytes_max", "auth.origins is not set", "api.enabled = false"),
    ):
        assert words in told
    assert "server.proxies is not set" not in told
    assert found.notes[0].startswith("server.proxies is not set: if there is a proxy in front")
    assert "Note: server.proxies is not set" in found.text()


@pytest.mark.parametrize(
    ("auth", "token", "words"),
    [
        (AuthSettings(secrets=(SECRET,)), "minted", ""),
        (AuthSettings(), "minted", ""),
        (AuthSettings(algorithms=("RS256",), jwks_url=JWKS), "minted", "sign nothing: every message cannot be sent"),
        (
            AuthSettings(algorithms=("RS256",), jwks_url=JWKS),
            "caller",
            "sign nothing: messages of whoever came without",
        ),
        (
            AuthSettings(algorithms=("HS256", "RS256"), jwks_url=JWKS),
            "minted",
            "every message would bring a token that is signed with the generated secret",
        ),
        (AuthSettings(algorithms=("HS256", "RS256"), jwks_url=JWKS, secrets=(SECRET,)), "minted", ""),
    ],
)
def test_tokens_that_an_existing_api_cannot_know_are_warned_of(
    tmp_path: Path, auth: AuthSettings, token: Any, words: str
) -> None:
    api = ApiSettings(port=0, url="http://127.0.0.1:9", token=token)
    found = report(Settings(data_dir=str(tmp_path), server=ServerSettings(port=0), api=api, auth=auth), {}, Realtime())
    assert found.errors == []
    assert words in "".join(found.warnings)
    assert len(found.warnings) == bool(words)


def test_a_key_set_over_plain_http_is_refused_like_at_a_start() -> None:
    sets = ("auth.algorithms=RS256", "auth.jwks_url=http://id.example/keys")
    with pytest.raises(ConfigError, match="use https, or http on a loopback address"):
        load(None, sets, {})
    load(None, ("auth.algorithms=RS256", "auth.jwks_url=http://127.0.0.1/keys"), {})


def test_the_memory_that_limits_add_up_to_is_printed_by_purpose(tmp_path: Path) -> None:
    limits = LimitSettings(connections_max=1000, outboxes_bytes_max=100 << 20)
    found = report(Settings(data_dir=str(tmp_path / "data"), limits=limits, **FREE), {}, Realtime())
    told = json.loads(found.json())["memory"]
    assert (told["connections"], told["outboxes"]) == (1000 * 1024, 125 << 20), "a quarter more for those who leave"
    parts = [size for name, size in told.items() if name not in {"process", "allocator"}]
    assert told["allocator"] == round(sum(parts) / 4)
    text = found.text()
    assert re.search(r"outboxes +125 MiB  limits.outboxes_bytes_max", text)
    assert "api.requests_bytes_max" not in text, "api.url is not set"
    assert f"{sum(told.values()) / (1 << 20):,.0f} MiB" in text.partition("  all ")[2].splitlines()[0]
