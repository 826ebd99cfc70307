"""The short form of `tests.holds`: what is dearest of each kind, far within what it took before."""

from tests.holds import commands, requests

CHOSEN = (
    "too many slow numbers as content",
    "10,000 events for all",
    "16 MiB, one",
    "the OpenAPI",
    "64 async commands, lists",
)
HOLD_S_MAX = 0.1
"""Five times what is promised of a machine like that of the figures: processor time, but of any machine."""


async def test_no_request_and_no_batch_of_commands_holds_the_loop_for_long() -> None:
    found = {}
    for kind in (requests, commands):
        async for name, _, holds in kind(lambda name: any(part in name for part in CHOSEN)):
            found[name] = holds.longest_s
    assert len(found) >= len(CHOSEN)
    assert not {name: took_s for name, took_s in found.items() if took_s > HOLD_S_MAX}
