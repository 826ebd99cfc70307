"""How descriptors are divided: enough for both ports, and somebody may always go for somebody new."""

import pytest

from realtime.base.config import ApiSettings, LimitSettings, Settings
from realtime.base.descriptors import HTTP_RESERVED, KEPT, of_limit


@pytest.mark.parametrize("limit", [256, 1024, 4096, 20_000, 1_000_000])
def test_what_may_be_open_at_once_fits(limit: int) -> None:
    found = of_limit(Settings(), limit)
    at_once = found.http_connections + 2 * (found.http_requests + HTTP_RESERVED)
    assert KEPT + at_once + found.sockets == limit
    assert found.http_connections > found.http_requests + HTTP_RESERVED
    assert found.http_requests >= 1


def test_twenty_thousand_descriptors_are_enough_for_eighteen_thousand_connections() -> None:
    found = of_limit(Settings(), 20_000)
    assert (found.http_connections, found.http_requests, found.sockets) == (1024, 256, 18_384)


def test_few_descriptors_leave_an_eighth_to_http() -> None:
    found = of_limit(Settings(), 1024)
    assert found.kept - KEPT <= 1024 // 8
    assert (found.http_connections, found.http_requests) == (70, 21)


@pytest.mark.parametrize("most", [16, 100, 265, 266])
def test_a_limit_of_http_connections_is_kept_beside_more_requests_at_once(most: int) -> None:
    found = of_limit(Settings(api=ApiSettings(connections_max=most)), 20_000)
    assert (found.http_connections, found.http_requests) == (most, min(256, most - HTTP_RESERVED - 1))


def test_without_the_http_port_all_are_for_sockets_and_a_set_limit_is_kept() -> None:
    assert of_limit(Settings(api=ApiSettings(enabled=False)), 1024).sockets == 960
    assert of_limit(Settings(limits=LimitSettings(connections_max=7)), 1024).sockets == 7
