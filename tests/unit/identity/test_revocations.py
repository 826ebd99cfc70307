"""What is revoked is known up to its bound; above it the oldest goes."""

import tracemalloc

from realtime.identity.revocations import Revocation, Revoked, _cost

ENTRY = _cost((True, "u00"))


def test_revocations_are_known_up_to_the_bound_and_the_oldest_goes_above() -> None:
    revoked = Revoked(bytes_max=3 * ENTRY)
    for entry in (Revocation(user="u00", before_s=5), Revocation(token_id="t00"), Revocation(user="u01", before_s=5)):
        revoked.add(entry)
    assert (revoked.cover("u00", 4, None), revoked.cover("x", 9, "t00"), revoked.cover("u01", 4, None)) == (True,) * 3
    revoked.add(Revocation(user="u00", before_s=6))
    revoked.add(Revocation(token_id="t01"))
    assert not revoked.cover("x", 9, "t00")
    assert (revoked.cover("u00", 5, None), revoked.cover("u01", 4, None), revoked.cover("x", 9, "t01")) == (True,) * 3


def test_what_is_charged_is_what_is_held() -> None:
    revoked = Revoked(bytes_max=1 << 30)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20_000):
        revoked.add(Revocation(user=f"user-{number}", before_s=number + 2**31))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    charged = sum(map(_cost, revoked._entries))
    assert 0.5 * charged < held < 1.25 * charged
