"""SIGHUP: what a running server takes over from its configuration, and what it says of the rest."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from websockets.exceptions import InvalidStatus

from tests.kit import SECRET, Server, eventually, token_for

RENEWED = "another-secret-of-the-tests-0123456789abcdef"


async def hang_up(server: Server, words: str) -> None:
    """Send SIGHUP and wait until the log holds `words`."""
    os.kill(server.pid, signal.SIGHUP)
    await eventually(lambda: words in server.output, what=words)


async def test_the_log_is_changed_and_what_needs_a_restart_is_named(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text("[log]\nlevel = 'warning'\n")
    async with serve(env={"REALTIME_CONFIG": str(file)}) as server:
        async with await server.connect("quiet"):
            pass
        file.write_text("[log]\nlevel = 'info'\n[typing]\ntimeout_s = 5\n")
        await hang_up(server, "typing.timeout_s changed; restart the server for that")
        async with await server.connect("loud"):
            await eventually(lambda: 'user="loud"' in server.output, what="the line about the connection")
        # Its end may come when the level is another one.
        opened = [line for line in server.output.splitlines() if "connection opened" in line]
        assert not any('user="quiet"' in line for line in opened)


async def test_a_broken_file_changes_nothing(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text("")
    async with serve(env={"REALTIME_CONFIG": str(file)}) as server:
        file.write_text("[log\n")
        await hang_up(server, "nothing changed:")
        async with await server.connect("alice") as alice:
            assert await alice.is_alive()


async def refused(server: Server, secret: str) -> None:
    """Assert that a token of `secret` opens nothing."""
    with pytest.raises(InvalidStatus, match="401"):
        await server.connect(token=token_for("mallory", secret=secret))


async def test_a_secret_in_a_file_is_rotated_without_a_restart(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    async with (
        serve(secret=None, env={"REALTIME_JWT_SECRET_FILE": str(file)}) as server,
        await server.connect("alice") as alice,
    ):
        pid = server.pid
        await alice.subscribe("conversation:1")
        await refused(server, RENEWED)
        file.write_text(f"{RENEWED}\n")
        await hang_up(server, "took over auth.secrets")
        async with await server.connect(token=token_for("bob", secret=RENEWED)) as bob:
            await bob.say("1", "with a token of the new secret")
        await alice.expect("new_message", content="with a token of the new secret")
        await refused(server, SECRET)
        assert (await alice.ask("refresh", {"token": token_for("alice", secret=RENEWED)}))["type"] == "ack"
        assert await alice.is_alive()
        assert server.pid == pid
        assert SECRET not in server.output
        assert RENEWED not in server.output


async def test_two_secrets_hold_while_tokens_change_over(serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "realtime.toml"
    file.write_text(f"[auth]\nsecrets = ['{SECRET}']\n")
    async with serve(secret=None, env={"REALTIME_CONFIG": str(file)}) as server:
        file.write_text(f"[auth]\nsecrets = ['{RENEWED}', '{SECRET}']\n")
        await hang_up(server, "took over auth.secrets")
        for secret in (SECRET, RENEWED):
            async with await server.connect(token=token_for("alice", secret=secret)) as alice:
                assert await alice.is_alive()
        file.write_text(f"[auth]\nsecrets = ['{RENEWED}']\n")
        os.kill(server.pid, signal.SIGHUP)
        await eventually(lambda: server.output.count("took over auth.secrets") == 2, what="the second change")
        await refused(server, SECRET)


@pytest.mark.parametrize("content", [None, "", "short"])
async def test_a_secret_that_cannot_be_used_changes_nothing(
    serve: Callable[..., Server], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    async with (
        serve(secret=None, env={"REALTIME_JWT_SECRET_FILE": str(file)}) as server,
        await server.connect("alice") as alice,
    ):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        await hang_up(server, "SIGHUP: nothing changed: ")
        assert await alice.is_alive()
        async with await server.connect("bob") as bob:
            assert await bob.is_alive()


async def test_a_public_key_is_read_again_though_its_path_is_the_same(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    private = [ed25519.Ed25519PrivateKey.generate() for _ in range(2)]
    pems = [
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        for key in private
    ]
    claims = {"sub": "alice", "exp": int(time.time()) + 3600}
    old, new = (jwt.encode(claims, key, "EdDSA") for key in private)
    file = tmp_path / "key.pem"
    file.write_bytes(pems[0])
    async with serve("auth.algorithms=EdDSA", f"auth.public_keys={file}", secret=None) as server:
        async with await server.connect(token=old) as alice:
            file.write_bytes(pems[1])
            await hang_up(server, "took over the files of auth.public_keys")
            assert await alice.is_alive()
        async with await server.connect(token=new) as alice:
            assert await alice.is_alive()
        with pytest.raises(InvalidStatus, match="401"):
            await server.connect(token=old)
        os.kill(server.pid, signal.SIGHUP)
        await eventually(lambda: "SIGHUP: nothing changed\n" in server.output, what="nothing")
        file.write_text("no key")
        await hang_up(server, "SIGHUP: nothing changed: ")
        async with await server.connect(token=new) as alice:
            assert await alice.is_alive()
