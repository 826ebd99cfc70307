"""What was seen is known for its time, and never takes more room than it was given."""

from realtime.clock import ManualClock
from realtime.recent import Recent


def test_an_entry_stays_for_its_time() -> None:
    clock = ManualClock(1_000)
    recent: Recent[str] = Recent(clock, keep_s=10, count_max=5)
    recent.put("a", "first")
    clock.advance_to(10_999)
    assert recent.get("a") == "first"
    clock.advance_to(11_000)
    assert recent.get("a") is None


def test_putting_again_begins_the_time_again() -> None:
    clock = ManualClock(0)
    recent: Recent[str] = Recent(clock, keep_s=10, count_max=2)
    recent.put("a", "first")
    recent.put("b", "other")
    clock.advance_to(6_000)
    recent.put("a", "second")
    recent.put("c", "third")
    assert [recent.get(key) for key in "abc"] == ["second", None, "third"]
    clock.advance_to(12_000)
    assert recent.get("a") == "second"


def test_the_oldest_make_room_and_what_is_over_goes() -> None:
    clock = ManualClock(0)
    recent: Recent[int] = Recent(clock, keep_s=10, count_max=100)
    for key in range(1_000):
        recent.put(key, key)
    assert len(recent) == 100
    assert (recent.get(899), recent.get(900)) == (None, 900)
    clock.advance_to(10_000)
    recent.put("new", 1)
    assert len(recent) == 1


def test_only_the_value_that_failed_is_forgotten() -> None:
    recent: Recent[str] = Recent(ManualClock(0), keep_s=10, count_max=5)
    recent.put("a", "mine")
    recent.discard("a", "of another try")
    assert recent.get("a") == "mine"
    recent.discard("a", "mine")
    assert recent.get("a") is None
