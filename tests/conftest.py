"""Fixtures of all tests. The server of the integration tests is one process a worker and number of shards."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import Server

SETS = {
    "1-shard": ("server.shards=1", "engine.flush=send"),
    "2-shards": ("server.shards=2", "engine.flush=auto"),
    "socketify": ("engine.transport=socketify",),
}
"""What tests over sockets run with: both ways to the kernel, and the second transport."""

_FRAMING = "uWebSockets cuts a peer that breaks the protocol, without a close frame"
_HTTP = "uWebSockets parses HTTP, and answers by itself what it cannot read"
_FRAGMENTS = "uWebSockets puts fragments together by itself, at no rate"
_SPLIT = "uWebSockets drops an upgrade in several segments"
_DEFLATE = "nothing is compressed over socketify"
SOCKETIFY_LACKS: dict[str, str | tuple[str, set[str]]] = {
    "test_an_offer_is_answered_by_what_we_keep_or_not_at_all": (
        _DEFLATE,
        {"bzip-None", "permessage-deflate; server_max_window_bits=7-None"},
    ),
    "test_long_events_come_deflated_whole_and_without_a_final_block": _DEFLATE,
    "test_a_bomb_ends_its_sender_alone": _DEFLATE,
    "test_what_inflates_costs_its_sender_the_more_commands": _DEFLATE,
    "test_what_breaks_the_extension_ends_the_connection": _DEFLATE,
    "test_compression_can_be_off_for_all_or_for_one_raw_endpoint": _DEFLATE,
    "test_a_fan_out_to_a_thousand_costs_one_compression": _DEFLATE,
    "test_a_member_receives_every_message_of_a_workload[socketify-w5]": _DEFLATE,
    "test_violation_is_closed_with_its_code": _FRAMING,
    "test_violation_in_single_bytes_is_closed_with_the_same_code": _FRAMING,
    "test_invalid_utf_8_is_closed_before_its_message_is_whole": _FRAMING,
    "test_some_empty_fragments_are_one_message_and_a_hundred_thousand_are_closed_4003": _FRAGMENTS,
    "test_message_over_the_limit_in_fragments_is_closed_1009": _FRAMING,
    "test_message_of_exactly_the_limit_is_read": _FRAMING,
    "test_peer_that_does_not_answer_a_close_is_cut": _FRAMING,
    "test_valid_close_is_answered_with_its_own_code": (
        "uWebSockets takes 1012 to 3999 for no code",
        {"1000", "1001", "1003", "1007", "1011", "4000", "4999"},
    ),
    "test_upgrade_without_one_of_its_headers_is_400": (
        _HTTP,
        {"Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"},
    ),
    "test_checks_are_made_in_the_order_of_the_protocol": _HTTP,
    "test_what_two_parsers_could_read_differently_is_400": (_HTTP, {"a body of five bytes"}),
    "test_request_behind_a_refused_one_is_not_answered": _HTTP,
    "test_head_over_its_limits_is_431_and_a_long_target_414": _HTTP,
    "test_what_is_not_http_is_400": _HTTP,
    "test_plain_http_is_answered_and_closed": _HTTP,
    "test_upgrade_in_pieces_of_one_byte_is_an_upgrade": _SPLIT,
    "test_half_an_upgrade_is_answered_408_at_the_deadline": _SPLIT,
    "test_deadline_is_one_for_the_whole_upgrade_and_not_one_a_read": _SPLIT,
    "test_frames_sent_with_the_upgrade_are_answered_after_the_101": "frames in the segment of the upgrade are lost",
    "test_plain_handler_that_blocks_two_seconds_is_named_and_the_engine_goes_on": "sockets are on the loop's thread",
    "test_an_idle_connection_costs_at_most_1000_bytes": "uWebSockets keeps some 500 bytes of its own for a socket",
}
"""Tests that fail over socketify, and why: docs/topics/uwebsockets.md says what happens instead. With the parameters
that pass all the same."""

_tests = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark what a transport cannot do; such a test runs all the same, and the server must survive it."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or callspec.params.get("variant") != "socketify":
            continue
        lack = SOCKETIFY_LACKS.get(item.name, SOCKETIFY_LACKS.get(item.originalname))
        reason, passing = (lack, set[str]()) if isinstance(lack, str) else lack or ("", set())
        if reason and callspec.id.removeprefix("socketify-") not in passing:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(params=SETS, scope="session")
def variant(request: pytest.FixtureRequest) -> str:
    """A key of `SETS`: every test that uses a server runs with each of them."""
    return str(request.param)


@pytest.fixture(scope="session")
def shards(variant: str) -> int:
    """The number of shards; for tests that make an engine of their own, which is the native one."""
    return 2 if variant == "2-shards" else 1


@pytest.fixture(scope="session")
def _shared(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp(f"shared-{variant}"),
        sets=[*SETS[variant], "presence.grace_s=0.3"],
    )
    server.start_now()
    yield server
    if server.is_running():
        assert server.stop_now() == 0, server.output


@pytest.fixture
def server(_shared: Server) -> Iterator[Server]:
    """A running server with the built-in app that other tests use too: whoever kills it makes its own by `serve`."""
    pid = _shared.pid
    yield _shared
    assert _shared.is_running(), f"the server did not survive the test:\n{_shared.output}"
    assert _shared.pid == pid


@pytest.fixture
async def serve(variant: str, tmp_path: Path) -> AsyncIterator[Callable[..., Server]]:
    """Make servers of a test's own, with the settings of this run; what still runs at the end is killed."""
    made: list[Server] = []

    def make(*sets: str, **options: Any) -> Server:
        folder = tmp_path / f"server-{len(made)}"
        made.append(Server(folder, sets=[*SETS[variant], *sets], **options))
        return made[-1]

    yield make
    for each in made:
        if each.is_running():
            each.kill()


@pytest.fixture
def tag() -> str:
    """A word that no other test has: for names of users and channels on the shared server."""
    return f"t{next(_tests)}x"
