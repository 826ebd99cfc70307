"""`null` is absent: what a client writes as `null` is decoded as if it were not there.

msgspec tells the two apart where a member's type has no `None` of its own. A text that was refused, and has a `null`,
is therefore read once more: members that are `null` and whose type does not take it are left out, so that the member is
optional or missing by its type's own rule. This reads raw JSON, only where the type has members, and costs little more
than a look at each byte; a text that decodes costs nothing. Called by `messages` and `api.bodies`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw, inspect

_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_items: Final = msgspec.json.Decoder(list[Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
_NULL: Final = b"null"

_Objects = inspect.StructType | inspect.DataclassType | inspect.TypedDictType
_Arrays = inspect.ListType | inspect.SetType | inspect.FrozenSetType | inspect.VarTupleType


def decoded_again(
    decode: Callable[[bytes], Any], text: bytes | Raw, described: inspect.Type, error: msgspec.ValidationError
) -> Any:
    """Decode what was refused by `error`, with members that are `null` left out where their type takes none.

    Raises:
        msgspec.ValidationError: there are none, or it is refused without them, too.
    """
    kept = _without_nulls(text, described)
    if kept is text:
        raise error
    return decode(bytes(kept))


def _without_nulls(text: bytes | Raw, described: inspect.Type) -> bytes | Raw:
    """Return JSON of a type without the members that are `null` and have a type that does not take it.

    Args:
        text: well-formed JSON.
        described: what it is decoded into, by `msgspec.inspect.type_info`.
    """
    described = _bare(described)
    if _NULL not in bytes(text):
        return text
    if isinstance(described, inspect.UnionType):
        # Of several types with members msgspec takes at most one of each JSON kind.
        kind = _Objects if bytes(text).lstrip()[:1] == b"{" else _Arrays
        described = next((member for member in map(_bare, described.types) if isinstance(member, kind)), described)
    if isinstance(described, _Objects) and _begins(text, b"{"):
        types = {field.encode_name: field.type for field in described.fields}
        kept = {
            name: _without_nulls(value, types[name]) if name in types else value
            for name, value in _members(text).items()
            if name not in types or bytes(value) != _NULL or _takes_none(types[name])
        }
        return _encode({name: Raw(value) for name, value in kept.items()})
    if isinstance(described, _Arrays) and _begins(text, b"["):
        return _encode([Raw(_without_nulls(value, described.item_type)) for value in _items(text)])
    if isinstance(described, inspect.DictType) and _begins(text, b"{"):
        values = {name: Raw(_without_nulls(value, described.value_type)) for name, value in _members(text).items()}
        return _encode(values)
    return text


def _begins(text: bytes | Raw, bracket: bytes) -> bool:
    return bytes(text).lstrip()[:1] == bracket


def _bare(described: inspect.Type) -> inspect.Type:
    while isinstance(described, inspect.Metadata):
        described = described.type
    return described


def _takes_none(described: inspect.Type) -> bool:
    described = _bare(described)
    if isinstance(described, inspect.UnionType):
        return any(map(_takes_none, described.types))
    return isinstance(described, inspect.AnyType | inspect.NoneType | inspect.RawType | inspect.CustomType)
