"""Whether an answer that a page shows is the one that came.

What differs from run to run may differ: ids, times, random words, and in plain text the numbers. Everything else must
be equal; `…` on the page stands for anything.
"""

import contextlib
import json
import re
from typing import Any

_CHANGING = (
    re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"),
    re.compile(r"[0-9a-f]{8,}"),
    re.compile(r"[A-Za-z0-9_-]{32,}"),
)


def alike(shown: Any, real: Any) -> bool:
    """Whether JSON of a page is what came: ids, times and random words may differ, and `…` stands for anything."""
    if isinstance(shown, dict) and isinstance(real, dict):
        named = {name for name in shown if name != "…"}
        whole = named == set(real) if "…" not in shown else named <= set(real)
        return whole and all(alike(shown[name], real[name]) for name in named)
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(alike, shown, real))
    if isinstance(shown, str) and isinstance(real, str):
        return (
            shown == real
            or any(form.fullmatch(shown) and form.fullmatch(real) for form in _CHANGING)
            or _line(shown, real)
        )
    return bool(shown == real)


def resembles(shown: str, real: str) -> bool:
    """Whether the output of a page is what came: numbers may differ, and a line `…` stands for any lines."""
    if not shown:
        return True
    with contextlib.suppress(ValueError):
        return alike(json.loads(shown), json.loads(real))
    lines, rest = shown.splitlines(), real.splitlines()
    for place, line in enumerate(lines):
        if line.strip() == "…":
            continue
        loose = place > 0 and lines[place - 1].strip() == "…"
        index = next((index for index, each in enumerate(rest) if _line(line, each)), None)
        if index is None or (index and not loose):
            return False
        rest = rest[index + 1 :]
    return not rest or lines[-1].strip() == "…"


def _line(shown: str, real: str) -> bool:
    pieces = re.split(r"(\d[\d,.]*|\s+|…|[µmn]?s\b)", shown.strip())
    forms = {"…": ".*"}
    pattern = "".join(
        r"\d[\d,.]*"
        if re.match(r"\d", piece)
        else r"\s+"
        if piece.isspace()
        else forms.get(piece) or ("[µmn]?s" if re.fullmatch("[µmn]?s", piece) else re.escape(piece))
        for piece in pieces
    )
    return re.fullmatch(pattern, real.strip()) is not None
