"""Tickets are bounded for each user and for all, and what is kept of them takes what is charged."""

import tracemalloc
from contextlib import suppress

import pytest

from realtime.base.charges import Charges
from realtime.base.clock import ManualClock
from realtime.base.errors import Refused
from realtime.identity.auth import Identity
from realtime.identity.tickets import TTL_S, Tickets

GRANTS = {f"conversation:{number}": ["subscribe", "publish"] for number in range(100)}


def tickets(
    per_user_max: int = 3, bytes_max: int = 1 << 20, share_max: int = 1 << 20
) -> tuple[Tickets, ManualClock, Charges]:
    clock, charges = ManualClock(1_000), Charges(bytes_max, share_max)
    return Tickets(clock, charges, per_user_max), clock, charges


def test_a_user_has_so_many_unused_tickets_and_not_one_more() -> None:
    made, clock, charges = tickets(per_user_max=3)
    clock.advance_to(2_000)
    first, *_ = [made.issue(Identity("ann")) for _ in range(3)]
    clock.advance_to(5_000)
    with pytest.raises(Refused, match=r"rate_limited: 3 tickets of this user are unused .*per_user_max = 3") as refused:
        made.issue(Identity("ann"))
    assert (refused.value.retry_after_ms, charges.refused) == (TTL_S * 1000 - 3_000, 1)
    made.issue(Identity("bob"))
    assert made.redeem(first.ticket) == Identity("ann")
    made.issue(Identity("ann"))


def test_a_user_over_the_bound_gets_one_again_when_the_oldest_ends() -> None:
    made, clock, charges = tickets(per_user_max=1)
    old = made.issue(Identity("ann"))
    clock.advance_to(1_000 + TTL_S * 1000)
    made.issue(Identity("ann"))
    assert made.redeem(old.ticket) is None
    assert charges.of("ann") == charges.bytes > 0


def test_tickets_that_are_never_shown_are_forgotten_though_nobody_asks_for_another() -> None:
    made, clock, charges = tickets()
    made.issue(Identity("ann"))
    clock.advance_to(1_000 + TTL_S * 500)
    made.issue(Identity("bob"))
    clock.advance_to(999 + TTL_S * 1000)
    assert charges.of("ann") > 0, "a ticket lives a minute"
    clock.advance_to(1_000 + TTL_S * 1000)
    assert (charges.of("ann"), charges.of("bob")) == (0, charges.bytes)
    clock.advance_to(1_000 + TTL_S * 1500)
    assert charges.bytes == 0
    assert clock.next_ms() is None, "where there are no tickets there is no timer"


def test_no_timer_is_left_at_the_end() -> None:
    made, clock, _ = tickets()
    made.issue(Identity("ann"))
    made.close()
    assert clock.next_ms() is None


def test_rights_are_charged_to_the_user_whose_share_ends() -> None:
    made, _, charges = tickets(per_user_max=1_000, share_max=50_000)
    identity = Identity("ann", grants=GRANTS)
    while charges.of("ann") < 45_000:
        made.issue(identity)
    with pytest.raises(Refused, match="rate_limited"):
        made.issue(identity)
    assert charges.of("ann") <= 50_000
    made.issue(Identity("bob", grants=GRANTS))


def test_all_users_together_are_bounded_in_bytes() -> None:
    made, clock, charges = tickets(bytes_max=100_000)
    users = (Identity(f"user-{number}", grants=GRANTS) for number in range(1_000))
    while charges.bytes < 95_000:
        made.issue(next(users))
    with pytest.raises(Refused, match="overloaded"):
        made.issue(next(users))
    assert charges.bytes <= 100_000
    clock.advance_to(1_000 + TTL_S * 1000)
    made.issue(Identity("bob"))
    assert charges.bytes < 1_000


def test_a_newcomer_finds_room_however_many_take_all_the_tickets_that_they_can_get() -> None:
    made, clock, charges = tickets(per_user_max=100, bytes_max=1_000_000, share_max=62_500)
    users = [Identity(f"greedy-{number}", grants=GRANTS) for number in range(40)]
    for _ in range(100):
        for user in users:
            with suppress(Refused):
                made.issue(user)
    assert all(charges.of(user.user) for user in users), "each has one at least"
    assert charges.bytes <= 750_000, "a quarter is for those who have none"
    for number in range(20):
        made.issue(Identity(f"good-{number}", grants=GRANTS))
    with pytest.raises(Refused, match=r"rate_limited: .* a share of auth\.tickets_bytes_max") as refused:
        made.issue(users[0])
    assert refused.value.retry_after_ms == TTL_S * 1000
    clock.advance_to(1_000 + TTL_S * 1000)
    for _ in range(4):
        made.issue(users[0])


def test_a_user_alone_has_a_sixteenth_of_the_bytes() -> None:
    made, _, charges = tickets(per_user_max=1_000, bytes_max=1_600_000, share_max=100_000)
    identity = Identity("ann", grants=GRANTS)
    with pytest.raises(Refused, match="rate_limited"):  # noqa: PT012 -- it is the last that counts
        while True:
            made.issue(identity)
    assert 90_000 < charges.of("ann") <= 100_000


def test_a_ticket_stands_for_the_whole_identity_but_its_token() -> None:
    made, _, charges = tickets()
    identity = Identity("ann", grants=GRANTS, expires_at=5.5, token_id="t1", issued_at_s=7, token="secret")
    ticket = made.issue(identity)
    assert made.redeem(ticket.ticket) == Identity("ann", grants=GRANTS, expires_at=5.5, token_id="t1", issued_at_s=7)
    assert made.redeem(ticket.ticket) is None
    assert charges.bytes == 0


@pytest.mark.parametrize("grants", [None, {"a:*": ["subscribe"]}, GRANTS])
def test_what_is_charged_is_what_is_held(grants: dict[str, list[str]] | None) -> None:
    made, _, charges = tickets(bytes_max=1 << 30)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(500):
        made.issue(Identity(f"user-{number}", grants=None if grants is None else dict(grants), token_id="t" * 36))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # Two tables double while they grow: what is charged covers them when they are full, not right behind that.
    assert 0.5 * charges.bytes < held < 1.25 * charges.bytes
