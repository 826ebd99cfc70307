"""Frames that Python composes, and payloads of commands."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pytest
from msgspec import Meta, Struct

from realtime.base.messages import ErrorData, Payload, ack_frame, camel, check_names, error_frame, error_path, new_id

STAMP = "2026-01-01T12:00:00.000Z"


class Choice(Struct, rename="camel"):
    poll_id: str
    choices: list[int] = []
    weights: dict[str, int] = {}


@dataclass
class ChoiceClass:
    poll_id: str
    choices: list[int] = field(default_factory=list)
    free_text: str = "none"


class ChoiceDict(TypedDict):
    poll_id: str
    free_text: NotRequired[str]


class Snake(Struct):
    poll_id: str


@dataclass
class Outer:
    inner: Snake


def test_an_ack_repeats_the_id_as_it_came() -> None:
    assert ack_frame({"a": 1}, STAMP, b'"x\\u00e9"') == (
        b'{"type":"ack","data":{"a":1},"timestamp":"2026-01-01T12:00:00.000Z","id":"x\\u00e9"}'
    )


def test_an_ack_without_a_result_has_null_as_its_data() -> None:
    assert b'"data":null' in ack_frame(None, STAMP, b"7")


def test_an_error_names_only_what_there_is_to_name() -> None:
    assert error_frame(ErrorData("Internal error", "internal", False), STAMP, None) == (
        b'{"type":"error","data":{"message":"Internal error","code":"internal","retryable":false},'
        b'"timestamp":"2026-01-01T12:00:00.000Z"}'
    )
    full = ErrorData("m", "rate_limited", True, path="data.x", channel="a", retry_after_ms=5)
    assert msgspec.json.decode(error_frame(full, STAMP, b"1"))["data"] == {
        "message": "m",
        "code": "rate_limited",
        "retryable": True,
        "path": "data.x",
        "channel": "a",
        "retryAfterMs": 5,
    }


@pytest.mark.parametrize(("name", "wire"), [("a", "a"), ("poll_id", "pollId"), ("x_y_z", "xYZ"), ("pollId", "pollId")])
def test_names_follow_one_rule(name: str, wire: str) -> None:
    assert camel(name) == wire


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"{}", "data.pollId"),
        (b'{"pollId":5}', "data.pollId"),
        (b'{"pollId":"a","choices":[1,"x"]}', "data.choices[1]"),
        (b'{"pollId":"a","weights":{"b":"c"}}', "data.weights[...]"),
        (b"[]", "data"),
        (b'"text"', "data"),
    ],
)
@pytest.mark.parametrize("annotation", [Choice, ChoiceClass])
def test_the_path_of_a_wrong_field_is_found(annotation: Any, data: bytes, path: str) -> None:
    if "weights" in path and annotation is ChoiceClass:
        return
    with pytest.raises(msgspec.DecodeError) as caught:
        Payload(annotation).decode(data)
    assert error_path(caught.value) == path


@pytest.mark.parametrize(
    ("annotation", "data", "value"),
    [
        (Choice, b'{"pollId":"a"}', Choice("a")),
        (ChoiceClass, b'{"pollId":"a"}', ChoiceClass("a")),
        (ChoiceClass, b'{"pollId":"a","freeText":"b","choices":[1]}', ChoiceClass("a", [1], "b")),
        (ChoiceDict, b'{"pollId":"a"}', {"poll_id": "a"}),
        (ChoiceDict, b'{"pollId":"a","freeText":"b"}', {"poll_id": "a", "free_text": "b"}),
        (dict[str, int], b'{"as_it_is":1}', {"as_it_is": 1}),
        (int, b"5", 5),
        (Any, b"[1]", [1]),
    ],
)
def test_a_payload_is_what_the_handler_asked_for(annotation: Any, data: bytes, value: object) -> None:
    assert Payload(annotation).decode(data) == value


def test_a_dataclass_that_refuses_its_values_is_a_wrong_message() -> None:
    @dataclass
    class Even:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    with pytest.raises(msgspec.ValidationError, match="odd"):
        Payload(Even).decode(b'{"number":1}')


@pytest.mark.parametrize("annotation", [Snake, Outer, list[Snake], Snake | None, dict[str, Snake]])
def test_a_name_with_an_underscore_never_gets_on_the_wire(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r'Snake.poll_id would be .* on the wire.*rename="camel"'):
        Payload(annotation)


def test_a_returned_dataclass_with_two_words_is_told_to_be_a_struct() -> None:
    with pytest.raises(TypeError, match="make it a Struct"):
        check_names(ChoiceClass)


def test_a_type_that_cannot_be_decoded_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="cannot be decoded"):
        Payload(Annotated[int, Meta(pattern="x")])


def test_a_command_without_data_is_an_empty_object_where_one_is_asked_for() -> None:
    assert Payload(Choice).absent == b"{}"
    assert Payload(dict).absent == b"{}"
    assert Payload(int | None).absent == b"null"


def test_identifiers_sort_by_time_and_are_uuids_of_version_7() -> None:
    ids = [new_id(now_ms) for now_ms in (0, 1, 1_767_268_800_000, 1_767_268_800_001)]
    assert ids == sorted(ids)
    assert all(text[14] == "7" and text[19] in "89ab" and len(text) == 36 for text in ids)
    assert new_id(0x0123_4567_89AB).startswith("01234567-89ab-7")
    assert len({new_id(5) for _ in range(1000)}) == 1000


def test_the_path_of_an_error_that_repeats_a_long_text_is_found_at_its_end() -> None:
    class Ballot(msgspec.Struct):
        choice: Literal["a", "b"]

    text = " - at `$.x`" * 100_000
    with pytest.raises(msgspec.ValidationError) as caught:
        Payload(Ballot).decode(msgspec.json.encode({"choice": text}))
    assert len(str(caught.value)) > len(text), "the error repeats what was sent"
    assert error_path(caught.value) == "data.choice"
