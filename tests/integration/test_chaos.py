"""The short form of `make chaos`: a server with default limits, attacked beside well-behaved clients.

The long form attacks for a minute with 64 connections of one user and 3,000 of one address.
"""

from pathlib import Path

import pytest

from tests.chaos.attacks import ATTACKS
from tests.chaos.scene import Plan, play
from tests.chaos.verdict import objections, summary

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]

WITHSTOOD = (
    "silent_request",
    "dribbled_body",
    "unfinished",
    "byte_writes",
    "pings",
    "unreadable",
)


def test_an_attack_costs_the_good_clients_neither_their_connection_nor_their_time(tmp_path: Path) -> None:
    plan = Plan(
        WITHSTOOD,
        seconds=2.5,
        rounds=3,
        signed_in=32,
        anonymous=600,
        members=64,
        readers=16,
        says_every_s=0.8,
        stays_s=2,
    )
    outcome = play(plan, tmp_path / "server")
    assert not objections(outcome), summary(outcome)
    assert set(ATTACKS) >= set(WITHSTOOD)
