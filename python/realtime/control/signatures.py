"""What can be known of a function that an author registers: how it is called and whether it must be awaited.

Looked at once, when it is registered, so that nothing is looked at twice for a message. Called by `rules`, `app`,
`middleware`, `listening` and `periodic`; knows nothing of what the functions are for.
"""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def positional(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a function is called with by place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds]


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is an `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__class__.__call__)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, or of an object's `__call__`, with names resolved."""
    return get_type_hints(function if inspect.isroutine(function) else function.__class__.__call__, include_extras=True)


def annotation_of(function: Callable[..., Any], argument: str, absent: Any) -> Any:
    """Return the annotation of one argument, with its names resolved; `absent` where it has none.

    Others are not looked at: they may name what is imported for type checkers alone.

    Raises:
        TypeError: the annotation names what is not there.
    """
    annotation = inspect.signature(function).parameters[argument].annotation
    if annotation is inspect.Parameter.empty:
        return absent
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        holder = type("_", (), {"__annotations__": {argument: annotation}})
        return get_type_hints(holder, globalns=scope, include_extras=True)[argument]
    except NameError as error:
        raise TypeError(f"annotation {annotation!r} of {argument!r} cannot be resolved: {error}") from error


def name_of(function: Callable[..., Any]) -> str:
    """Return the name by which the log speaks of a function."""
    return getattr(function, "__qualname__", None) or repr(function)
