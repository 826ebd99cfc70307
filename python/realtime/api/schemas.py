"""What the OpenAPI document says beyond the types: grammars of names, which members go together, who may ask.

The types decode; these rules are checked where a request is served, and told here in JSON Schema. The tests send what
the document allows and what it does not, so that it stays true. What JSON Schema cannot say is in the description: a
body is JSON as sockets take it, without a key twice and without integers beyond ±2^53. Called by `documents`.
"""

from typing import Any, Final

from realtime.identity.auth import NAME_PATTERN

_INTEGER_MAX: Final = 2**53
_CONVERSATION: Final = "^[A-Za-z0-9_.:@-]{1,115}$"
_PATTERNS: Final = {"conversation_id": _CONVERSATION, "channel": NAME_PATTERN}
_SECURITY: Final[dict[str, list[Any]]] = {"/health": [], "/ready": [], "/metrics": [{}, {"bearer": []}]}
_TARGETS: Final = ("conversationId", "userId", "channel", "all")


def complete(document: dict[str, Any]) -> None:
    """Add to the document what its types do not say."""
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in _SECURITY:
                operation["security"] = _SECURITY[path]
            for parameter in operation.get("parameters") or ():
                if parameter["name"] in _PATTERNS:
                    parameter["schema"]["pattern"] = _PATTERNS[parameter["name"]]
                elif parameter["name"] == "after":
                    parameter["schema"] |= {"minimum": 0, "maximum": _INTEGER_MAX}
    _complete_events(schemas["HookEvent"])
    schemas["Change"]["anyOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in ("content", "metadata")
    ]


def _complete_events(event: dict[str, Any]) -> None:
    members = event["properties"]
    # Anything but null, which counts as absent.
    members["data"] = {"not": {"type": "null"}}
    members["channel"] = {"anyOf": [{"type": "string", "pattern": NAME_PATTERN}, {"type": "null"}], "default": None}
    members["conversationId"] = {
        "anyOf": [
            {"type": "string", "pattern": _CONVERSATION},
            {"type": "integer", "minimum": -_INTEGER_MAX, "maximum": _INTEGER_MAX},
            {"type": "null"},
        ],
        "default": None,
    }
    event["oneOf"] = [_target(name) for name in _TARGETS]


def _target(named: str) -> dict[str, Any]:
    """Return the rule that an event names this target and no other."""
    absent: dict[str, Any] = {name: {"const": False} if name == "all" else {"type": "null"} for name in _TARGETS}
    present: dict[str, Any] = {"const": True} if named == "all" else {"not": {"type": "null"}}
    return {"required": [named], "properties": {**absent, named: present}}
