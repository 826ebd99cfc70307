"""The OpenAPI document is true: schemathesis sends what it allows, and what it does not, and finds nothing.

It runs as a process of its own with a fixed seed, as a user and as a service. A user's sessions are closed by a token
that nothing else uses, since their user's tokens are refused from then on.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.kit import ROOT, Server, token_for

KEY = "a-service-key-of-the-tests-0123456789abcdef"
SESSIONS = "/api/users/{user}/sessions"


# 410 is what a position of another history is answered: which epoch holds is nothing that a schema could say.
ACCEPTED = ["2xx", "401", "403", "404", "409", "410", "429", "5xx"]


async def findings(server: Server, shown: str, folder: Path, *options: str) -> str:
    """Return what schemathesis reports, empty where it found nothing."""
    (folder / "schemathesis.toml").write_text(f"[checks.positive_data_acceptance]\nexpected-statuses = {ACCEPTED}\n")
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{server.api_url}/docs/openapi.json", "--header", f"Authorization: Bearer {shown}"]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.openapi_hooks", "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command,
        "--seed",
        "1",
        "--max-examples",
        "8",
        "--no-color",
        *options,
        cwd=folder,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return "" if process.returncode == 0 else output.decode(errors="replace")


@pytest.mark.timeout(240)
async def test_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    env = {"REALTIME_SERVICE_KEY": KEY}
    async with Server(tmp_path / "server", api=True, sets=["limits.enabled=false"], env=env) as server:
        random = ("--phases", "fuzzing,stateful")
        # What lies at the edges of each parameter does not depend on who asks, so one of them is enough for it.
        for shown, options in (
            (KEY, ()),
            (token_for("alice"), ("--exclude-path", SESSIONS, *random)),
            (token_for("carol"), ("--include-path", SESSIONS, *random)),
        ):
            found = await findings(server, shown, tmp_path, *options)
            assert not found, found
        assert "Traceback" not in server.output
