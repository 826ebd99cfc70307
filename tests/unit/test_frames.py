"""Frames made once for everybody: their bytes against RFC 6455 and against the parser of the websockets library."""

from array import array
from collections.abc import Iterator
from operator import mul
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode

from realtime import Frame, FrameEncoder


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
