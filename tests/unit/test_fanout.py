"""Fan-out over transports: who gets what, in which order, and what becomes of those that fail, close or do not read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import Fanout, FrameEncoder
from realtime.fanout import Member


class Wire:
    """A transport that keeps what was written, with a reader that takes nothing while `reads` is off."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.backlog = 0
        self.reads = True
        self.closing = self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.closing, "written after the end"
        self.written.append(data)
        if not self.reads:
            self.backlog += len(data)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.backlog

    def abort(self) -> None:
        self.closing = self.aborted = True


class Broken(Wire):
    """A transport that raises."""

    def is_closing(self) -> bool:
        raise OSError("no such wire")


def joined(
    fanout: Fanout, *channels: str, wire: Wire | None = None, window_bits: int | None = None
) -> tuple[Member, Wire]:
    wire = wire or Wire()
    member = fanout.member(wire, window_bits)
    for channel in channels:
        assert member.subscribe(channel)
    return member, wire


def test_a_message_is_encoded_once_and_goes_to_the_members_of_its_channel_only() -> None:
    fanout = Fanout()
    (_, first), (_, second), (_, other) = joined(fanout, "a"), joined(fanout, "a", "b"), joined(fanout, "b")
    assert fanout.publish("a", "hi") == 2
    assert first.written == second.written == [b"\x81\x02hi"]
    assert first.written[0] is second.written[0]
    assert other.written == []
    assert fanout.publish("b", b"\x00") == 2
    assert other.written == [b"\x82\x01\x00"]


def test_a_frame_made_before_goes_to_several_channels() -> None:
    fanout = Fanout()
    (_, first), (_, second) = joined(fanout, "a"), joined(fanout, "b")
    frame = fanout.encode("hi")
    assert [fanout.publish(channel, frame) for channel in "abc"] == [1, 1, 0]
    assert first.written[0] is second.written[0] is frame.plain


def test_a_thousand_members_cost_one_compression_and_each_gets_the_form_that_it_agreed_to() -> None:
    fanout = Fanout()
    windows = [None, 8, 10, 15] * 250
    wires = [joined(fanout, "a", window_bits=bits)[1] for bits in windows]
    frame = fanout.encode("state " * 150)
    assert fanout.publish("a", frame) == 1_000
    assert fanout.encoder.compressions == 1
    assert [wire.written for wire in wires] == [[frame.plain], [frame.plain], [frame.deflated], [frame.deflated]] * 250


def test_nothing_is_compressed_where_nobody_agreed_to_it() -> None:
    fanout = Fanout()
    joined(fanout, "a")
    assert fanout.publish("a", "state " * 150) == 1
    assert fanout.encoder.compressions == 0


def test_members_come_and_go() -> None:
    fanout = Fanout()
    member, wire = joined(fanout, "a", "b")
    assert member.channels == {"a", "b"}
    assert (member.subscribe("a"), fanout.members("a")) == (False, 1)
    assert (member.unsubscribe("a"), member.unsubscribe("a"), fanout.members("a")) == (True, False, 0)
    assert (fanout.publish("a", "x"), fanout.publish("b", "y")) == (0, 1)
    member.leave()
    member.leave()
    assert (member.subscribe("a"), fanout.publish("b", "z"), member.write(fanout.encode("z"))) == (False, 0, False)
    assert wire.written == [b"\x81\x01y"]
    assert not wire.closing, "to leave is not to close"


def test_a_member_leaves_at_the_end_of_its_block_however_it_ends() -> None:
    fanout = Fanout()

    def fails() -> None:
        with fanout.member(Wire()) as member:
            member.subscribe("a")
            assert fanout.members("a") == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert fanout.members("a") == 0


def test_a_member_can_be_written_to_alone() -> None:
    fanout = Fanout()
    (first, wire), (_, other) = joined(fanout, "a"), joined(fanout, "a")
    assert first.write(fanout.encode("you"))
    assert (wire.written, other.written) == ([b"\x81\x03you"], [])


def test_a_transport_that_is_closing_is_dropped() -> None:
    fanout = Fanout()
    (_, wire), (_, other) = joined(fanout, "a", "b"), joined(fanout, "a")
    wire.closing = True
    assert fanout.publish("a", "x") == 1
    assert other.written == [b"\x81\x01x"]
    assert (fanout.members("a"), fanout.members("b"), wire.aborted) == (1, 0, False)


def test_a_transport_that_fails_keeps_nobody_from_their_frames(caplog: pytest.LogCaptureFixture) -> None:
    fanout = Fanout()
    _, before = joined(fanout, "a")
    joined(fanout, "a", wire=Broken())
    _, behind = joined(fanout, "a")
    assert [fanout.publish("a", text) for text in "xy"] == [2, 2]
    assert before.written == behind.written == [b"\x81\x01x", b"\x81\x01y"]
    assert [record.message for record in caplog.records] == ["a transport failed; its connection gets nothing more"]


def test_a_slow_member_is_cut_off_and_has_missed_nothing_before() -> None:
    fanout = Fanout(backlog_bytes_max=9)
    (_, fast), (_, slow) = joined(fanout, "a"), joined(fanout, "a")
    slow.reads = False
    assert [fanout.publish("a", "x") for _ in range(5)] == [2, 2, 2, 1, 1]
    assert slow.written == [b"\x81\x01x"] * 3
    assert (slow.aborted, fanout.aborted, fanout.skipped, fanout.members("a")) == (True, 1, 0, 1)
    assert len(fast.written) == 5


def test_a_slow_member_misses_frames_where_that_is_chosen_and_they_are_counted() -> None:
    fanout = Fanout(backlog_bytes_max=9, slow="skip")
    member, slow = joined(fanout, "a")
    slow.reads = False
    assert [fanout.publish("a", text) for text in "12345"] == [1, 1, 1, 0, 0]
    slow.backlog = 0
    assert fanout.publish("a", "6") == 1
    assert [frame[-1:] for frame in slow.written] == [b"1", b"2", b"3", b"6"]
    assert (member.missed, fanout.skipped, fanout.aborted, slow.aborted) == (2, 2, 0, False)


def test_a_transport_that_holds_nothing_takes_a_frame_of_any_size() -> None:
    fanout = Fanout(backlog_bytes_max=1)
    _, wire = joined(fanout, "a")
    assert fanout.publish("a", "x" * 70_000) == 1
    assert len(wire.written[0]) == 70_010


def test_a_member_that_leaves_while_others_are_written_to_gets_nothing_more() -> None:
    fanout = Fanout()

    class Pausing(Wire):
        def write(self, data: bytes) -> None:
            super().write(data)
            last.unsubscribe("a")
            newcomer.subscribe("a")

    newcomer, late = joined(fanout)
    joined(fanout, "a", wire=Pausing())
    last, wire = joined(fanout, "a")
    assert fanout.publish("a", "x") == 1
    assert (wire.written, late.written) == ([], [])
    assert fanout.publish("a", "y") == 2
    assert late.written == [b"\x81\x01y"]


def test_a_text_that_cannot_be_encoded_reaches_nobody() -> None:
    fanout = Fanout()
    _, wire = joined(fanout, "a")
    with pytest.raises(ValueError, match="surrogates"):
        fanout.publish("a", "\ud800")
    assert wire.written == []


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="backlog_bytes_max=0 is below 1"):
        Fanout(backlog_bytes_max=0)
    with pytest.raises(ValueError, match="slow='wait' is neither 'abort' nor 'skip'"):
        Fanout(slow="wait")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window_bits=7 is not within 8 to 15"):
        Fanout().member(Wire(), 7)


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["subscribe", "unsubscribe", "leave", "publish"]), st.integers(0, 3), st.integers(0, 2)
        ),
        max_size=60,
    )
)
def test_everybody_gets_what_was_published_while_they_were_members_in_order(steps: list[tuple[str, int, int]]) -> None:
    encoder = FrameEncoder()
    fanout = Fanout(encoder)
    wires = [Wire() for _ in range(4)]
    members = [fanout.member(wire) for wire in wires]
    subscribed: list[set[int]] = [set() for _ in wires]
    left: set[int] = set()
    expected: list[list[bytes]] = [[] for _ in wires]
    for number, (what, who, channel) in enumerate(steps):
        if what == "publish":
            receivers = [each for each in range(4) if channel in subscribed[each]]
            frame = encoder.text(str(number))
            assert fanout.publish(str(channel), frame) == len(receivers)
            for each in receivers:
                expected[each].append(frame.plain)
        elif what == "subscribe":
            assert members[who].subscribe(str(channel)) == (who not in left and channel not in subscribed[who])
            if who not in left:
                subscribed[who].add(channel)
        elif what == "unsubscribe":
            assert members[who].unsubscribe(str(channel)) == (channel in subscribed[who])
            subscribed[who].discard(channel)
        else:
            members[who].leave()
            left.add(who)
            subscribed[who].clear()
    assert [wire.written for wire in wires] == expected
    assert [fanout.members(str(channel)) for channel in range(3)] == [
        sum(channel in channels for channels in subscribed) for channel in range(3)
    ]
