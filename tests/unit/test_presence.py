"""Who is online, as told to others; times are given, nothing is sent."""

import random
from collections.abc import Callable

from realtime import Realtime
from realtime.base.charges import Charges
from realtime.base.config import PresenceSettings, Settings
from realtime.control.presence import (
    AUDIENCE_MAX,
    BACK_MS,
    GONE_MAX,
    UNLIMITED,
    Change,
    Held,
    Notice,
    Presence,
    Rate,
    Switch,
)
from realtime.testing import TestApp


class World:
    """Counts sessions as `connections` does."""

    def __init__(
        self, grace_ms: int = 5000, everyone_max: int | None = 1000, rate: Rate = UNLIMITED, bytes_max: int = 1 << 40
    ) -> None:
        self.charges = Charges(bytes_max, bytes_max)
        self.gone = Charges(bytes_max, bytes_max)
        self.presence = Presence(grace_ms, everyone_max, rate, self.charges, self.gone)
        self.sessions: dict[str, int] = {}
        self.now_ms = 0

    def open(self, user: str) -> list[Notice]:
        self.sessions[user] = self.sessions.get(user, 0) + 1
        first, sessions = self.sessions[user] == 1, sum(self.sessions.values())
        return self.presence.opened(user, first=first, sessions=sessions, now_ms=self.now_ms)

    def close(self, user: str, code: int = 1000, channels: tuple[str, ...] = ()) -> list[Notice]:
        self.sessions[user] -= 1
        return self.presence.closed(
            user,
            last=self.sessions[user] == 0,
            code=code,
            channels=channels,
            sessions=sum(self.sessions.values()),
            now_ms=self.now_ms,
        )

    def advance(self, ms: int) -> list[Notice]:
        self.now_ms += ms
        return self.presence.due(self.now_ms)


def crowd(world: World, step: Callable[[World, str], list[Notice]]) -> list[Notice]:
    """What is told when five sessions of the same user come or go."""
    return [notice for _ in range(5) for notice in step(world, "crowd")]


def test_a_user_is_online_from_the_first_session_to_the_last() -> None:
    world = World()
    assert world.open("ann") == [Change("ann", "online", None)]
    assert world.open("ann") == []
    assert world.close("ann") == []
    assert world.close("ann") == [Change("ann", "offline", None)]


def test_a_goodbye_counts_at_once_and_a_lost_connection_after_the_grace() -> None:
    world = World()
    world.open("ann")
    assert world.close("ann", code=1006) == []
    assert world.presence.next_ms() == 5000
    assert world.advance(4999) == []
    assert world.advance(1) == [Change("ann", "offline", None)]
    assert world.presence.next_ms() is None


def test_nothing_is_told_of_a_blip() -> None:
    world = World()
    world.open("ann")
    assert world.close("ann", code=1006) == []
    assert world.advance(4000) == []
    assert world.open("ann") == []
    assert world.advance(60_000) == []


def test_a_second_blip_has_a_grace_of_its_own() -> None:
    world = World()
    world.open("ann")
    world.close("ann", code=1006)
    world.advance(4000)
    world.open("ann")
    world.close("ann", code=1006)
    assert world.advance(4000) == []
    assert world.advance(1000) == [Change("ann", "offline", None)]


def test_a_goodbye_after_a_blip_counts_at_once() -> None:
    world = World()
    world.open("ann")
    world.close("ann", code=1006)
    world.open("ann")
    assert world.close("ann", code=1000) == [Change("ann", "offline", None)]


def test_users_leave_in_the_order_of_their_deadlines() -> None:
    world = World()
    for user in ("ann", "bob", "cyd"):
        world.open(user)
    world.close("bob", code=1006)
    world.advance(1)
    world.close("ann", code=4000)
    world.open("bob")
    world.close("bob", code=1001)
    world.advance(1)
    world.close("cyd", code=1011)
    assert world.advance(5000) == [
        Change("ann", "offline", None),
        Change("bob", "offline", None),
        Change("cyd", "offline", None),
    ]


def test_without_a_grace_every_end_counts_at_once() -> None:
    world = World(grace_ms=0)
    world.open("ann")
    assert world.close("ann", code=1006) == [Change("ann", "offline", None)]


def test_above_the_limit_only_those_who_share_a_channel_are_told() -> None:
    world = World(everyone_max=10)
    for number in range(10):
        assert world.open(f"u{number}") == [Change(f"u{number}", "online", None)]
    assert world.open("ann") == [Switch("shared"), Change("ann", "online", ())]
    assert world.close("u0", channels=("a", "b")) == [Change("u0", "offline", ("a", "b"))]


def test_whoever_was_told_offline_is_told_online_again() -> None:
    world = World(everyone_max=1)
    world.open("ann")
    world.open("bob")
    world.open("cyd")
    assert world.close("ann", code=1006, channels=("a",)) == []
    assert world.advance(5000) == [Change("ann", "offline", ("a",))]
    assert world.open("ann") == [Change("ann", "online", ("a",))]
    assert world.close("ann", channels=("b",)) == [Change("ann", "offline", ("b",))]


def test_everybody_is_told_again_below_nine_tenths_of_the_limit() -> None:
    world = World(everyone_max=10)
    for number in range(11):
        world.open(f"u{number}")
    world.advance(BACK_MS)
    assert world.close("u0") == [Change("u0", "offline", ())]
    assert world.close("u1") == [Change("u1", "offline", ())]
    assert world.presence.mode == "shared"
    assert world.close("u2") == [Switch("everyone"), Change("u2", "offline", None)]
    assert world.open("u2") == [Change("u2", "online", None)]


def test_the_mode_when_a_session_ended_decides_who_is_told() -> None:
    world = World(everyone_max=10)
    for number in range(12):
        world.open(f"u{number}")
    world.advance(BACK_MS)
    for number in range(4):
        world.close(f"u{number}", code=1006, channels=("a",))
    assert world.presence.mode == "everyone"
    assert world.advance(5000) == [
        Change("u0", "offline", ("a",)),
        Change("u1", "offline", ("a",)),
        Change("u2", "offline", ("a",)),
        Change("u3", "offline", None),
    ]


def test_a_count_that_hangs_about_the_limit_switches_once() -> None:
    world = World(everyone_max=10)
    for number in range(10):
        world.open(f"u{number}")
    told = [notice for _ in range(20) for notice in (*world.open("ann"), *world.close("ann"))]
    assert [notice for notice in told if isinstance(notice, Switch)] == [Switch("shared")]


def test_everybody_is_told_again_half_a_minute_after_the_switch_at_the_earliest() -> None:
    world = World(everyone_max=10)
    for number in range(8):
        world.open(f"u{number}")
    told = [notice for _ in range(50) for notice in (*crowd(world, World.open), *crowd(world, World.close))]
    assert [notice for notice in told if isinstance(notice, Switch)] == [Switch("shared")]
    assert world.presence.next_ms() == BACK_MS
    assert world.advance(BACK_MS - 1) == []
    assert world.advance(1) == [Switch("everyone")], "also where nobody comes or goes then"
    assert world.presence.next_ms() is None
    told = [notice for _ in range(50) for notice in (*crowd(world, World.open), *crowd(world, World.close))]
    assert [notice for notice in told if isinstance(notice, Switch)] == [Switch("shared")]


def test_those_who_are_many_again_when_the_time_is_over_are_told_nothing() -> None:
    world = World(everyone_max=10)
    for number in range(8):
        world.open(f"u{number}")
    for step in (World.open, World.close, World.open):
        crowd(world, step)
    assert world.presence.next_ms() is None
    assert world.advance(BACK_MS) == []
    assert world.presence.mode == "shared"


def test_only_so_many_who_went_are_remembered() -> None:
    world = World(everyone_max=1)
    world.open("a")
    world.open("b")
    for number in range(GONE_MAX + 1):
        world.open(f"u{number}")
        world.close(f"u{number}", channels=("c",))
    assert world.open("u0") == [Change("u0", "online", ())]
    assert world.open(f"u{GONE_MAX}") == [Change(f"u{GONE_MAX}", "online", ("c",))]


def test_the_bytes_of_those_who_are_gone_are_bounded_and_the_first_is_forgotten_first() -> None:
    world = World(everyone_max=None, bytes_max=30_000)
    for user in ("ann", "bob", "eve"):
        world.open(user)
        world.close(user, channels=long_names(60))
    assert world.gone.bytes <= 30_000
    assert world.gone.refused == 1
    assert world.open("ann") == [Change("ann", "online", ())]
    for user in ("bob", "eve"):
        assert world.open(user) == [Change(user, "online", long_names(60))]
    assert world.gone.bytes == 0


def test_above_the_bytes_what_is_held_is_told_at_once_behind_those_who_leave() -> None:
    world = World(everyone_max=None, rate=Rate(1, 1), bytes_max=60_000)
    for user in ("ann", "bob", "eve"):
        world.open(user)
    assert world.close("ann", channels=long_names(200)) == [Held("ann", "offline", everyone=False)]
    assert world.charges.bytes > 30_000
    assert world.close("bob", code=1006, channels=long_names(100)) == []
    told = world.close("eve", channels=long_names(200))
    assert [type(notice) for notice in told] == [Held, Held, Change], "bob has no token either"
    assert told[-1] == Change("ann", "offline", long_names(200))
    assert world.charges.bytes <= 60_000
    world.advance(1001)
    assert world.charges.bytes == 0


def test_one_who_was_cut_off_while_few_were_told_is_told_online_once_everybody_is() -> None:
    world = World(everyone_max=10)
    for number in range(10):
        world.open(f"user{number}")
    assert world.open("user10")[0] == Switch("shared")
    world.advance(BACK_MS)
    world.close("user0", code=1006, channels=("conversation:1",))
    assert world.presence.leaving() == []
    told = [notice for number in range(1, 4) for notice in world.close(f"user{number}", code=1006)]
    assert told == [Switch("everyone")]
    # The last one's end was told by the mode that it made.
    assert world.presence.leaving() == ["user2", "user3"]
    assert world.open("user0") == [Change("user0", "online", None)]
    assert world.open("user3") == []
    assert world.presence.leaving() == ["user2"]


def test_where_grants_decide_only_those_who_share_a_channel_are_told_from_the_first_session_on() -> None:
    world = World(everyone_max=None)
    assert world.presence.mode == "shared"
    assert world.open("ann") == [Change("ann", "online", ())]
    assert world.open("bob") == [Change("bob", "online", ())]
    assert world.close("bob", channels=("conversation:1",)) == [Change("bob", "offline", ("conversation:1",))]
    assert world.open("bob") == [Change("bob", "online", ("conversation:1",))]
    assert world.close("bob", 1006, ("conversation:1",)) == []
    assert world.advance(5000) == [Change("bob", "offline", ("conversation:1",))]
    assert world.presence.mode == "shared"


def told(notices: list[Notice]) -> list[str]:
    """What others hear."""
    return [notice.status for notice in notices if isinstance(notice, Change)]


def test_a_user_who_comes_and_goes_without_end_is_told_of_at_the_rate_and_the_last_state_always() -> None:
    world = World(rate=Rate(1, 4))
    at_once = [told(world.open("ann")) + told(world.close("ann")) for _ in range(10)]
    assert at_once[:2] == [["online", "offline"]] * 2
    assert at_once[2:] == [[]] * 8, "a burst of four"
    assert world.open("ann") == [Held("ann", "online", everyone=True)]
    assert world.presence.next_ms() == 1001
    assert world.advance(1000) == []
    assert world.advance(1) == [Change("ann", "online", None)]
    assert world.presence.next_ms() is None
    assert world.open("bob") == [Change("bob", "online", None)], "each user has a rate of its own"


def test_a_change_that_is_held_is_told_wherever_one_that_it_took_the_place_of_would_have_been() -> None:
    world = World(everyone_max=None, rate=Rate(1, 2))
    world.open("ann")
    assert world.close("ann", channels=("a",)) == [Change("ann", "offline", ("a",))]
    assert world.open("ann") == [Held("ann", "online", everyone=False)]
    assert world.close("ann", channels=("b", "c")) == [Held("ann", "offline", everyone=False)]
    assert world.advance(1001) == [Change("ann", "offline", ("b", "c", "a"))]
    world.advance(60_000)
    assert world.open("ann") == [Change("ann", "online", ("b", "c", "a"))], "who was told is told again"


def test_who_is_told_of_a_held_change_is_bounded() -> None:
    world = World(everyone_max=None, rate=Rate(1, 1))
    world.open("ann")
    for number in range(20):
        world.close("ann", channels=tuple(f"{number}-{channel}" for channel in range(200)))
        world.open("ann")
    (change,) = world.advance(1001)
    assert isinstance(change, Change)
    assert change.channels is not None
    assert len(change.channels) == AUDIENCE_MAX
    assert change.channels[0] == "19-0", "the newest"


def test_whatever_somebody_does_the_last_that_is_told_is_how_it_is() -> None:
    chance = random.Random(7)
    for _ in range(50):
        world, heard = World(grace_ms=0, rate=Rate(2, 3)), list[str]()
        for _ in range(200):
            online = world.sessions.get("ann", 0)
            heard += told(world.close("ann") if online and chance.random() < 0.5 else world.open("ann"))
            heard += told(world.advance(chance.choice((0, 0, 10, 300))))
        assert len(heard) <= 3 + 2 * world.now_ms / 1000
        heard += told(world.advance(1000))
        assert heard[-1] == ("online" if world.sessions["ann"] else "offline")


async def test_a_server_tells_the_last_state_when_its_turn_comes_and_whoever_comes_meanwhile_at_once() -> None:
    settings = Settings(presence=PresenceSettings(changes_burst=2))
    async with TestApp(Realtime(), settings) as t:
        bob = await t.connect(user="bob")
        ann = await t.connect(user="ann")
        await bob.expect("user_presence", user_id="ann", status="online")
        await ann.close()
        await bob.expect("user_presence", user_id="ann", status="offline")
        await t.connect(user="ann")
        await t.settle()
        bob.refute("user_presence", user_id="ann")
        carol = await t.connect(user="carol")
        assert "ann" in (await carol.expect("presence_mode")).data["users"]
        t.clock.advance(1.1)
        await bob.expect("user_presence", user_id="ann", status="online")
        assert t.control.figures.presence_held == 1


async def test_a_held_change_is_told_in_time_also_where_somebodys_grace_ends_later() -> None:
    settings = Settings(presence=PresenceSettings(changes_burst=1, grace_s=60))
    async with TestApp(Realtime(), settings) as t:
        bob = await t.connect(user="bob")
        cyd = await t.connect(user="cyd")
        ann = await t.connect(user="ann")
        await bob.expect("user_presence", user_id="ann", status="online")
        await cyd.close(1001)
        await ann.close()
        await t.settle()
        t.clock.advance(1.1)
        await bob.expect("user_presence", user_id="ann", status="offline")


async def test_a_server_whose_sessions_hang_about_the_limit_says_who_is_online_once_in_half_a_minute() -> None:
    settings = Settings(presence=PresenceSettings(everyone_max=4))
    async with TestApp(Realtime(), settings) as t:
        bob = await t.connect(user="bob")
        await bob.expect("presence_mode", mode="everyone")
        for _ in range(5):
            for client in [await t.connect(user="crowd") for _ in range(4)]:
                await client.close()
            await t.settle()
        assert t.control.figures.presence_switches == 1
        await bob.expect("presence_mode", mode="shared")
        bob.refute("presence_mode")
        t.clock.advance(31)
        await bob.expect("presence_mode", mode="everyone")
        assert t.control.figures.presence_switches == 2


def long_names(count: int) -> tuple[str, ...]:
    return tuple(f"conversation:{number}".ljust(128, "x") for number in range(count))


def test_above_the_bytes_of_those_who_leave_the_grace_of_who_holds_most_ends_at_once() -> None:
    world = World(everyone_max=None, bytes_max=50_000)
    for user in ("ann", "eve", "bob", "cyd"):
        world.open(user)
    assert world.close("ann", code=1006, channels=("a",)) == []
    assert world.close("eve", code=1006, channels=long_names(200)) == []
    held = world.charges.bytes
    assert 200 * 128 < held < 50_000
    told = world.close("bob", code=1006, channels=long_names(10))
    assert told == []
    told = world.close("cyd", code=1006, channels=long_names(100))
    assert told == [Change("eve", "offline", long_names(200))], "nobody else's"
    assert world.charges.refused == 1
    assert world.open("eve") == [Change("eve", "online", long_names(200))]
    assert world.advance(4999) == []
    assert [notice.user for notice in world.advance(1) if isinstance(notice, Change)] == ["ann", "bob", "cyd"]
    assert world.charges.bytes == 0


def test_who_alone_holds_more_than_all_may_has_no_grace() -> None:
    world = World(everyone_max=None, bytes_max=10_000)
    world.open("ann")
    assert world.close("ann", code=1006, channels=long_names(100)) == [Change("ann", "offline", long_names(100))]
    assert (world.charges.bytes, world.charges.refused, world.presence.next_ms()) == (0, 1, None)


def test_the_bytes_of_one_who_comes_back_are_given_back() -> None:
    world = World(everyone_max=None, bytes_max=40_000)
    for _ in range(20):
        world.open("ann")
        assert world.close("ann", code=1006, channels=long_names(100)) == []
    world.open("ann")
    assert (world.charges.bytes, world.charges.refused) == (0, 0)


async def test_a_server_counts_what_it_holds_of_those_who_leave() -> None:
    async with TestApp(Realtime(), Settings(presence=PresenceSettings(grace_s=5))) as t:
        ann = await t.connect(user="ann")
        charges = t.control.ledger.of("leaving")
        ann.drop()
        await t.settle()
        assert charges.bytes > 0
        t.clock.advance(5.1)
        assert charges.bytes == 0


def test_nothing_is_kept_of_users_whose_rate_is_full_again() -> None:
    world = World(rate=Rate(1, 4))
    for number in range(1000):
        world.open(f"u{number}")
        world.advance(10)
    kept = world.presence._changes._levels
    assert len(kept) <= 401, "those of the last four seconds"
