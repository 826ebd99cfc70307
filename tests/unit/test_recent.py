"""What was seen is known for its time, and never takes more room than it was given."""

import tracemalloc

from realtime.base.charges import Charges
from realtime.base.clock import ManualClock
from realtime.base.recent import _ENTRY_BYTES, _OF_USER_BYTES, Recent

OF_USER = _ENTRY_BYTES + _OF_USER_BYTES


def recent_of(bytes_max: int = 1 << 20, share_max: int = 1 << 20) -> tuple[Recent[object], ManualClock, Charges]:
    clock, charges = ManualClock(1_000), Charges(bytes_max, share_max)
    return Recent(clock, keep_s=10, charges=charges), clock, charges


def test_an_entry_stays_for_its_time() -> None:
    recent, clock, _ = recent_of()
    recent.put("a", "first")
    clock.advance_to(10_999)
    assert recent.get("a") == "first"
    clock.advance_to(11_000)
    assert recent.get("a") is None


def test_putting_again_begins_the_time_again() -> None:
    recent, clock, charges = recent_of(bytes_max=2 * _ENTRY_BYTES)
    recent.put("a", "first")
    recent.put("b", "other")
    clock.advance_to(7_000)
    recent.put("a", "second")
    recent.put("c", "third")
    assert [recent.get(key) for key in "abc"] == ["second", None, "third"]
    assert charges.refused == 1
    clock.advance_to(13_000)
    assert recent.get("a") == "second"


def test_at_the_bound_nothing_goes_and_above_it_the_oldest() -> None:
    recent, clock, charges = recent_of(bytes_max=100 * _ENTRY_BYTES)
    for key in range(100):
        recent.put(str(key), key)
    assert (len(recent), charges.bytes, charges.refused) == (100, charges.bytes_max, 0)
    for key in range(100, 1_000):
        recent.put(str(key), key)
    assert (len(recent), charges.bytes, charges.refused) == (100, charges.bytes_max, 900)
    assert (recent.get("899"), recent.get("900")) == (None, 900)
    clock.advance_to(11_000)
    recent.put("new", 1)
    assert (len(recent), charges.bytes) == (1, _ENTRY_BYTES)


def test_a_user_over_a_share_forgets_and_nobody_else() -> None:
    recent, _, charges = recent_of(share_max=3 * OF_USER)
    recent.put("bob", 0, user="bob")
    for key in range(10):
        recent.put(str(key), key, user="ann")
    assert [recent.get(str(key)) for key in range(10)] == [None] * 7 + [7, 8, 9]
    assert recent.get("bob") == 0
    assert (charges.of("ann"), charges.of("bob"), charges.refused) == (3 * OF_USER, OF_USER, 7)


def test_what_grows_is_charged_and_makes_room() -> None:
    recent, _, charges = recent_of(share_max=3 * OF_USER)
    first, second = object(), object()
    recent.put("a", first, user="ann")
    recent.put("b", second, user="ann")
    recent.grow("b", second, OF_USER)
    assert recent.get("a") is first
    recent.grow("b", second, 1)
    assert (recent.get("a"), recent.get("b")) == (None, second)
    recent.grow("b", first, 1 << 20)
    assert charges.bytes == 2 * OF_USER + 1


def test_what_is_larger_than_everything_is_not_kept() -> None:
    recent, _, charges = recent_of(bytes_max=10 * _ENTRY_BYTES)
    recent.put("small", 1)
    recent.put("huge", 2, size=10 * _ENTRY_BYTES)
    assert (recent.get("small"), recent.get("huge"), charges.refused) == (1, None, 1)


def test_only_the_value_that_failed_is_forgotten() -> None:
    recent, _, charges = recent_of()
    recent.put("a", "mine", user="ann", size=5)
    recent.discard("a", "of another try")
    recent.replace("a", "of another try", "wrong")
    assert recent.get("a") == "mine"
    recent.discard("a", "mine")
    assert (recent.get("a"), charges.bytes) == (None, 0)


def test_what_is_charged_is_what_is_held() -> None:
    for user in (None, "ann"):
        recent, _, charges = recent_of(bytes_max=1 << 30, share_max=1 << 30)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for key in range(20_000):
            recent.put(key.to_bytes(16), True, user=user)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert 0.5 * charges.bytes < held < 1.25 * charges.bytes
