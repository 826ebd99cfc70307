"""The breaker, which decides whether an API is asked at all; the rest is tested against a real one."""

from realtime.upstream import Breaker, idempotency_key


class Now:
    """Seconds that are moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def opened(now: Now) -> Breaker:
    breaker = Breaker(3, 5.0, now)
    for _ in range(3):
        assert breaker.wait_s() is None
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 5.0, Now())
    assert [breaker.failed(), breaker.failed(), breaker.succeeded()] == [False, False, False]
    assert [breaker.failed(), breaker.failed(), breaker.failed(), breaker.failed()] == [False, False, True, False]
    assert breaker.wait_s() == 5.0


def test_after_the_pause_one_tries_and_the_others_wait() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    assert breaker.wait_s() == 1.0
    now.s += 1
    assert breaker.wait_s() is None
    assert breaker.wait_s() == 5.0
    assert breaker.succeeded()
    assert (breaker.wait_s(), breaker.wait_s()) == (None, None)


def test_a_try_that_fails_begins_another_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s() is None
    now.s += 2
    breaker.failed()
    assert breaker.wait_s() == 5.0


def test_requests_from_before_it_opened_do_not_lengthen_the_pause() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 4
    breaker.failed()
    assert breaker.wait_s() == 1.0


def test_a_try_that_nobody_waited_for_leaves_room_for_the_next() -> None:
    now = Now()
    breaker = opened(now)
    now.s += 5
    assert breaker.wait_s() is None
    breaker.abandoned()
    assert breaker.wait_s() is None


def test_a_key_is_the_same_for_each_try_and_nobody_elses() -> None:
    assert idempotency_key("alice", "7", "c1") == idempotency_key("alice", "7", "c1")
    keys = {idempotency_key(*parts) for parts in (("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("é", "b", "c"))}
    assert len(keys) == 4
    assert all(len(key) == 32 and key.isalnum() for key in keys)
