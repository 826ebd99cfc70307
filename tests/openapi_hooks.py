"""What schemathesis may send: all that JSON Schema can say, and nothing that it cannot.

Loaded by schemathesis' own process, see tests/integration/test_openapi.py.
"""

from typing import Any

import schemathesis

INTEGER_MAX = 2**53


def filter_body(context: Any, body: Any) -> bool:
    """Leave out integers beyond 2^53 and numbers that JSON Schema takes for integers although they have a fraction."""
    del context
    return _is_sayable(body)


def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Take away an epoch without the offset that it belongs to: OpenAPI knows no parameters that need one another."""
    del context, kwargs
    if case.query and "epoch" in case.query and "after" not in case.query:
        del case.query["epoch"]


def _is_sayable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_sayable, value.values()))
    if isinstance(value, list):
        return all(map(_is_sayable, value))
    if isinstance(value, int):
        return abs(value) <= INTEGER_MAX
    return not (isinstance(value, float) and value.is_integer())


schemathesis.hook(filter_body)
schemathesis.hook(before_call)
