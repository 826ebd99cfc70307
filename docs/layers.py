"""The picture of Python's layers in ARCHITECTURE.md, made of import-linter's contracts in pyproject.toml.

`python docs/layers.py` writes it anew; `tests/unit/test_docs.py` compares. A room's line says what its `__init__` says.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "python" / "realtime"
PAGE: Final = ROOT / "ARCHITECTURE.md"
_BLOCK: Final = re.compile(r"(?<=<!-- Written by `python docs/layers.py`. -->\n\n```text\n).*?(?=\n```)", re.DOTALL)


def picture() -> str:
    """Return the layers from top to bottom: a line a room, and below it a line for each layer within it."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    layers = {each["containers"][0]: each["layers"] for each in contracts if each["type"] == "layers"}
    return "\n".join(_lines(layers))


def _lines(layers: dict[str, list[str]]) -> Iterator[str]:
    rooms = [room for layer in layers["realtime"] for room in layer.split(" | ") if not room.startswith("(")]
    for room in rooms:
        yield f"{room:14}{_first_line(room)}"
        for layer in layers.get(f"realtime.{room}", []):
            yield f"  {layer}"


def _first_line(room: str) -> str:
    folder = PACKAGE / room / "__init__.py"
    source = folder if folder.exists() else PACKAGE / f"{room}.py"
    return (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").splitlines()[0]


def page(text: str) -> str:
    """Return ARCHITECTURE.md with the picture as it is now."""
    return _BLOCK.sub(lambda _: picture(), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
