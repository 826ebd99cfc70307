"""Bytes by user: what there is room for, up to the limit and above it."""

from realtime.base.charges import Charges


def test_there_is_room_up_to_the_limit_of_all_and_not_above() -> None:
    charges = Charges(bytes_max=100, share_max=100)
    charges.take("ann", 60)
    assert charges.has_room("bob", 40)
    assert not charges.has_room("bob", 41)
    assert not charges.has_room(None, 41)


def test_a_user_has_a_share_and_a_service_has_none() -> None:
    charges = Charges(bytes_max=100, share_max=50)
    charges.take("ann", 30)
    charges.take(None, 30)
    assert (charges.has_room("ann", 20), charges.has_room("ann", 21)) == (True, False)
    assert (charges.has_room("bob", 40), charges.has_room(None, 40)) == (True, True)


def test_a_first_thing_may_be_larger_than_a_share() -> None:
    charges = Charges(bytes_max=100, share_max=10)
    assert charges.has_room("ann", 80)
    charges.take("ann", 80)
    assert not charges.has_room("ann", 1)


def test_what_is_given_back_leaves_nothing() -> None:
    charges = Charges(bytes_max=100, share_max=50)
    for size in (10, 20):
        charges.take("ann", size)
    charges.give("ann", 10)
    assert (charges.bytes, charges.of("ann")) == (20, 20)
    charges.give("ann", 20)
    assert (charges.bytes, charges.of("ann"), charges._by_user) == (0, 0, {})
