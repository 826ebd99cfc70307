"""Frames made once for everybody: their bytes against RFC 6455 and 7692, the websockets library's parser and zlib."""

import random
import threading
import zlib
from array import array
from collections.abc import Iterator
from operator import mul
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode

from realtime import Deflate, Frame, FrameEncoder

EVENTS = st.builds(
    lambda names, count: ",".join(f'{{"type": "{name}", "data": {{}}}}' for name in names * count),
    st.lists(st.text(max_size=12), min_size=1, max_size=5),
    st.integers(1, 40),
)
"""Texts that are worth compressing, and some that are not."""


def client(window_bits: int = 15) -> PerMessageDeflate:
    """What a client of the websockets library reads with, once it agreed to what this server always answers."""
    return PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=window_bits,
        local_max_window_bits=15,
    )


def inflated(wire: bytes, window_bits: int = 15) -> bytes:
    """What zlib makes of a compressed frame."""
    size = wire[1] & 0x7F
    payload = wire[{126: 4, 127: 10}.get(size, 2) :]
    stream = zlib.decompressobj(-window_bits)
    message = stream.decompress(payload + b"\x00\x00\xff\xff") + stream.flush()
    assert not stream.eof, "a final block, which browsers of some age do not read"
    return message


def parsed(wire: bytes, **options: Any) -> Parsed:
    """What a client of the websockets library reads from `wire`, which it must use up."""
    rest = memoryview(wire)

    def read_exact(size: int) -> Iterator[None]:
        nonlocal rest
        assert size <= len(rest), "the frame is longer than its bytes"
        piece, rest = bytes(rest[:size]), rest[size:]
        yield from ()
        return piece  # type: ignore[return-value]

    parser = Parsed.parse(read_exact, mask=False, **options)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as stopped:
        next(parser)
    assert not rest, "bytes behind the frame"
    frame = stopped.value.value
    assert isinstance(frame, Parsed)
    return frame


@pytest.mark.parametrize(
    ("size", "header"),
    [
        (0, "8100"),
        (1, "8101"),
        (125, "817d"),
        (126, "817e007e"),
        (65_535, "817effff"),
        (65_536, "817f0000000000010000"),
    ],
)
def test_the_header_is_that_of_rfc_6455_5_2(size: int, header: str) -> None:
    frame = FrameEncoder().text("x" * size)
    assert frame.plain.removesuffix(b"x" * size).hex() == header
    assert len(frame.payload) == size


@given(text=st.text())
def test_a_client_reads_the_text_that_was_encoded(text: str) -> None:
    frame = FrameEncoder().text(text)
    read = parsed(frame.plain)
    assert (read.opcode, read.data, read.fin, read.rsv1) == (Opcode.TEXT, text.encode(), True, False)
    assert (frame.opcode, frame.payload) == (1, text.encode())
    assert FrameEncoder().text(text.encode()).plain == frame.plain


@given(payload=st.binary(max_size=300) | st.builds(mul, st.binary(min_size=1, max_size=8), st.integers(8_000, 9_000)))
def test_a_client_reads_the_bytes_that_were_encoded(payload: bytes) -> None:
    frame = FrameEncoder().binary(payload)
    read = parsed(frame.plain)
    assert (read.opcode, read.data, read.fin, read.rsv1) == (Opcode.BINARY, payload, True, False)
    assert (frame.opcode, frame.payload) == (2, payload)


@given(payload=st.binary(max_size=20))
def test_bytes_are_a_text_if_they_are_utf_8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(ValueError, match=f"of {len(payload)} bytes is not UTF-8 at byte {error.start} "):
            FrameEncoder().text(payload)
    else:
        assert FrameEncoder().text(payload).payload == payload


@pytest.mark.parametrize(
    "payload",
    [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), memoryview(b"a-b-c-d-")[::2], array("B", b"abcd")],
    ids=lambda payload: type(payload).__name__,
)
def test_whatever_is_bytes_like_is_taken(payload: Any) -> None:
    assert FrameEncoder().binary(payload).payload == FrameEncoder().text(payload).payload == b"abcd"


def test_a_frame_keeps_what_it_was_made_of() -> None:
    payload = bytearray(b"abcd")
    frame = FrameEncoder().binary(payload)
    payload[0] = 0
    assert frame.payload == b"abcd"
    assert frame.plain is frame.plain


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("text", 7, r"text\(\) takes str or bytes-like of UTF-8, not int"),
        ("text", [1], r"text\(\) takes str or bytes-like of UTF-8, not list"),
        ("binary", "abc", r"binary\(\) takes bytes-like, not str"),
        ("binary", array("i", [1]), r"binary\(\) takes bytes-like, not array"),
    ],
)
def test_what_is_no_message_is_named(method: str, given: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        getattr(FrameEncoder(), method)(given)


def test_a_lone_surrogate_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        FrameEncoder().text("a\ud800")


def test_a_frame_says_what_it_is() -> None:
    assert repr(FrameEncoder().text("é")) == "<Frame text, 2 B>"
    assert repr(FrameEncoder().binary(b"")) == "<Frame binary, 0 B>"
    with pytest.raises(TypeError):
        Frame()


@given(text=EVENTS)
def test_a_client_that_agreed_to_compression_reads_the_message_from_either_frame(text: str) -> None:
    frame = FrameEncoder(threshold_bytes=0).text(text)
    deflated = frame.deflated
    if deflated is None:
        assert frame.wire(15) is frame.plain
    else:
        assert deflated[0] == 0xC1
        assert len(deflated) < len(frame.plain)
        assert inflated(deflated) == text.encode()
    reader = [client()]
    # One client gets both forms after each other, as they come.
    for wire in (frame.wire(15), frame.plain, frame.wire(15)):
        read = parsed(wire, extensions=reader)
        assert (read.opcode, read.data) == (Opcode.TEXT, text.encode())


@given(payload=st.binary(max_size=400), repeats=st.integers(1, 2000), level=st.integers(1, 9))
def test_bytes_are_compressed_at_every_level(payload: bytes, repeats: int, level: int) -> None:
    message = payload * repeats
    frame = FrameEncoder(level=level, threshold_bytes=0).binary(message)
    assert parsed(frame.wire(15), extensions=[client()]).data == message
    assert frame.deflated is None or (frame.deflated[0] == 0xC2 and len(frame.deflated) - 10 < 0.9 * len(message))


@pytest.mark.parametrize("window_bits", range(8, 16))
def test_a_message_longer_than_the_window_goes_plain_and_others_fit_it(window_bits: int) -> None:
    encoder = FrameEncoder(threshold_bytes=0)
    fits = encoder.text("ab" * (1 << window_bits - 1))
    longer = encoder.text("ab" * (1 << window_bits - 1) + "c")
    assert fits.wire(window_bits) is fits.deflated
    assert inflated(fits.wire(window_bits), window_bits) == fits.payload
    # What is compressed never refers back by more than 13 bits.
    assert longer.wire(window_bits) is (longer.deflated if window_bits >= 13 else longer.plain)
    assert longer.wire() is longer.plain


@pytest.mark.parametrize("level", range(1, 10))
def test_a_long_message_is_read_with_a_window_of_13_bits(level: int) -> None:
    # Parts of 6,000 characters that come again within 8 KiB, and once beyond it.
    near, far = (random.Random(level * 2 + part).randbytes(3_000).hex() for part in range(2))
    frame = FrameEncoder(threshold_bytes=0, level=level).text(near * 2 + far * 2 + near)
    assert frame.wire(13) is frame.deflated
    assert inflated(frame.wire(13), 13) == frame.payload


def test_what_does_not_shrink_goes_plain() -> None:
    noise = random.Random(1).randbytes(5_000)
    frame = FrameEncoder(threshold_bytes=0).binary(noise)
    assert frame.deflated is None
    assert frame.wire(15) is frame.plain


def test_short_messages_are_not_tried_and_an_encoder_may_compress_nothing() -> None:
    encoder = FrameEncoder(threshold_bytes=100)
    assert encoder.text("x" * 99).deflated is None
    assert encoder.compressions == 0
    assert encoder.text("x" * 100).deflated is not None
    assert encoder.compressions == 1
    off = FrameEncoder(compression=False)
    assert (off.text("x" * 1_000).deflated, off.compressions) == (None, 0)


def test_a_frame_is_compressed_when_it_is_first_asked_for_and_never_again() -> None:
    encoder = FrameEncoder()
    frame = encoder.text("x" * 1_000)
    assert encoder.compressions == 0
    assert frame.deflated is frame.deflated is frame.wire(15) is frame.wire(10)
    assert encoder.compressions == 1


@pytest.mark.parametrize("size", [1_000, 200_000])
def test_threads_share_an_encoder_and_a_frame(size: int) -> None:
    encoder = FrameEncoder(threshold_bytes=0)
    shared = encoder.text("shared " * size)
    wrong: list[str] = []
    seen: set[int] = set()
    together = threading.Barrier(4)

    def encode(name: str) -> None:
        together.wait()
        seen.add(id(shared.deflated))
        for number in range(20):
            text = f"{name} {number} " * (size // 8)
            if inflated(encoder.text(text).wire(15)) != text.encode():
                wrong.append(name)

    threads = [threading.Thread(target=encode, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, len(seen), encoder.compressions) == ([], 1, 81)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0}, r"level=0 is not within 1 \(quick\) to 9 \(small\)"),
        ({"level": 10}, "level=10 is not within"),
        ({"threshold_bytes": -1}, "threshold_bytes=-1 is below 0"),
    ],
)
def test_options_that_there_are_not_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameEncoder(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("window_bits", [-1, 0, 7, 16])
def test_a_window_that_there_is_not_is_named(window_bits: int) -> None:
    with pytest.raises(ValueError, match=f"window_bits={window_bits} is not within 8 to 15"):
        FrameEncoder().text("x").wire(window_bits)


_ALWAYS = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offers", "response", "window_bits"),
    [
        ("permessage-deflate", _ALWAYS, 15),
        ("permessage-deflate; client_max_window_bits", _ALWAYS, 15),
        ("permessage-deflate; server_max_window_bits=10", f"{_ALWAYS}; server_max_window_bits=10", 10),
        ("x-other, permessage-deflate; server_max_window_bits=8", f"{_ALWAYS}; server_max_window_bits=8", 8),
        ("permessage-deflate; server_max_window_bits=7, permessage-deflate", _ALWAYS, 15),
    ],
)
def test_an_offer_is_answered_with_what_one_frame_for_all_needs(offers: str, response: str, window_bits: int) -> None:
    agreed = Deflate.negotiate(offers)
    assert agreed is not None
    assert (agreed.response, agreed.window_bits) == (response, window_bits)


@pytest.mark.parametrize("offers", ["", "x-other", "permessage-deflate; unknown", "permessage-deflate; =", "é"])
def test_an_offer_that_cannot_be_kept_is_declined(offers: str) -> None:
    assert Deflate.negotiate(offers) is None
