"""The keys as a table made from the Structs: how a text becomes a value, and how what is allowed is said in words.

`ALL` maps `section.key` to its `Key`, in the order of the declarations. Only `sources` and `reference` use it.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct, inspect

from realtime.base.config.settings import ConfigError, Section, Settings

_TRUTHS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}


class Key(Struct, frozen=True):
    """One key: where it stands, its type as `msgspec.inspect` describes it, its default and its sentence."""

    section: str
    name: str
    annotation: Any
    type: inspect.Type
    default: object
    description: str
    secret: bool

    @property
    def path(self) -> str:
        """The key as `--set` names it: `section.name`, or the name alone for a key outside the tables."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that sets the key."""
        return f"REALTIME_{self.path.replace('.', '__').upper()}"

    @property
    def allowed(self) -> str:
        """What the key may be set to, in words."""
        return _allowed(self.type)

    def checked(self, value: object, source: str) -> object:
        """Return `value`, as TOML gave it, as the type of the key.

        Raises:
            ConfigError: with the key, the value (unless it is a secret) and what is allowed.
        """
        try:
            return self._converted(value)
        except (msgspec.ValidationError, ValueError) as error:
            raise self.refused(value, source) from error

    def read(self, text: str, source: str) -> object:
        """Return what `text` (from the environment or the command line) sets the key to."""
        try:
            return self._converted(_parsed(text, self.type))
        except (msgspec.ValidationError, ValueError) as error:
            raise self.refused(text, source) from error

    def _converted(self, value: object) -> object:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(value)
        converted: object = msgspec.convert(value, self.annotation)
        # The engine is told in UTF-8; bytes of the environment that the locale does not decode are half surrogates.
        msgspec.json.encode(converted)
        return converted

    def refused(self, value: object, source: str) -> ConfigError:
        """Return the error that says what is allowed instead of `value`."""
        shown = "a hidden value" if self.secret else repr(value)
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= mark <= "\udfff" for mark in value):
            return ConfigError(f"{self.path} = {shown} (from {source}) is no text in this locale; use LC_ALL=C.UTF-8")
        return ConfigError(f"{self.path} = {shown} (from {source}) is not allowed; use {self.allowed}")


def _parsed(text: str, kind: inspect.Type) -> object:
    match kind:
        case inspect.Metadata():
            return _parsed(text, kind.type)
        case inspect.BoolType():
            return _truth(text)
        case inspect.IntType():
            return int(text)
        case inspect.FloatType():
            return float(text)
        case inspect.VarTupleType():
            return _items(text)
        case inspect.UnionType():
            return None if text.lower() in {"", "none", "null"} else _parsed(text, _present(kind))
        case _:
            return text


def _items(text: str) -> object:
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [item.strip() for item in text.split(",") if item.strip()]


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text.lower()]


def _present(union: inspect.UnionType) -> inspect.Type:
    return next(member for member in union.types if not isinstance(member, inspect.NoneType))


def _allowed(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            return _allowed(kind.type)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{noun} from {kind.ge} to {kind.le}"
        case inspect.LiteralType():
            return " or ".join(json.dumps(value) for value in kind.values)
        case inspect.VarTupleType(item_type=inspect.LiteralType() as item):
            return f"a list of {_allowed(item)} (a comma between them outside of the file)"
        case inspect.VarTupleType():
            return "a list of texts (a comma between them outside of the file)"
        case inspect.UnionType():
            return f"{_allowed(_present(kind))}, or nothing"
        case _:
            return "a text that is not empty"


def _is_secret(kind: inspect.Type) -> bool:
    match kind:
        case inspect.Metadata():
            return bool((kind.extra or {}).get("secret")) or _is_secret(kind.type)
        case inspect.VarTupleType():
            return _is_secret(kind.item_type)
        case inspect.UnionType():
            return any(_is_secret(member) for member in kind.types)
        case _:
            return False


def _declared(owner: type[Section], section: str) -> Iterator[Key]:
    for field in msgspec.structs.fields(owner):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            yield from _declared(field.type, field.name)
            continue
        kind = inspect.type_info(field.type)
        schema = (kind.extra_json_schema or {}) if isinstance(kind, inspect.Metadata) else {}
        description = str(schema.get("description", ""))
        yield Key(section, field.name, field.type, kind, field.default, description, _is_secret(kind))


ALL: dict[str, Key] = {key.path: key for key in _declared(Settings, "")}
SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(key.section for key in ALL.values() if key.section))


def differing(one: Settings, other: Settings) -> list[str]:
    """Return the keys in which two configurations differ, as `--set` names them."""
    return [path for path in ALL if value_of(one, path) != value_of(other, path)]


def value_of(settings: Settings, path: str) -> object:
    """Return the value of the key `path`."""
    section, _, name = path.rpartition(".")
    value: object = getattr(getattr(settings, section) if section else settings, name)
    return value
