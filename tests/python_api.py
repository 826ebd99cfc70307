"""The page docs/reference/python-api.md, made of the signatures and docstrings of the public names.

`python -m tests.python_api >docs/reference/python-api.md` writes it; tests/unit/test_python_api.py compares the two. It
reads sources, so that annotations stand as they were written, and the engine's stub in place of the engine.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

PACKAGE = Path(__file__).parents[1] / "python" / "realtime"
MODULES = {
    "realtime.testing": "Tests of an app without sockets; the [tutorial](../tutorial/5-test-an-app.md) has an example.",
    "realtime.fanout": "The fan-out for a WebSocket server of your own: [how](../howto/fan-out-alone.md).",
}
"""The modules whose names are public too, and what the page says of each."""

_INTRODUCTION = """\
# Python API

<!-- Written by `python -m tests.python_api` from the docstrings in python/realtime; edit those. -->

`from realtime import …` has the names of the first section. Other modules are internal: any release may change them.
"""
_SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Yields):$")
_ITEM = re.compile(r"^    (\*{0,2}\w+|[A-Z]\w+(?:, [A-Z]\w+)*): (.*)$")

Declared: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def page() -> str:
    """Return the page, as Markdown."""
    lines = [*_INTRODUCTION.splitlines(), "", "## realtime", ""]
    for name, module in sorted(_exported().items()):
        lines += _entry(module, name)
    for module, told in MODULES.items():
        lines += [f"## {module}", "", told, ""]
        for node in _tree(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and _is_new(module, node.name):
                lines += _entry(module, node.name)
    return "\n".join(lines)


def _is_new(module: str, name: str) -> bool:
    return _exported().get(name) != module


def _exported() -> dict[str, str]:
    """Return the module of each public name of `realtime`, as a type checker finds it."""
    (typed,) = (node for node in _tree("realtime").body if isinstance(node, ast.If) and _is_for_types(node))
    imports = (node for node in typed.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(each.module) for each in imports for alias in each.names}


def _is_for_types(node: ast.If) -> bool:
    return ast.unparse(node.test) == "TYPE_CHECKING"


def _tree(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    found = next(
        each for each in (path.with_suffix(".pyi"), path.with_suffix(".py"), path / "__init__.py") if each.exists()
    )
    return ast.parse(found.read_text("utf-8"))


def _declared(module: str, name: str) -> tuple[Declared, str]:
    """Return where a module declares a name, and the string behind it."""
    body = _tree(module).body
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node:
            case ast.ClassDef(name=found) | ast.FunctionDef(name=found) if found == name:
                return node, ast.get_docstring(node) or ""
            case ast.Assign(targets=[ast.Name(id=found)]) | ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return node, _string(after)
    raise LookupError(f"{module} does not declare {name}")


def _string(node: ast.stmt) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return inspect.cleandoc(text)
    return ""


def _entry(module: str, name: str) -> Iterator[str]:
    node, text = _declared(module, name)
    yield f"### {name}"
    yield ""
    if isinstance(node, ast.ClassDef):
        yield from _class(module, node, text)
    elif isinstance(node, Function):
        yield f"`{_signature(name, node)}`"
        yield ""
        yield from _described(text)
    elif node.value is not None:
        yield f"`{name} = {ast.unparse(node.value)}`"
        yield ""
        yield from _described(text)


def _class(module: str, node: ast.ClassDef, text: str) -> Iterator[str]:
    kin = [each for each in getattr(importlib.import_module(module), node.name).__mro__ if _is_ours(each)]
    declared = [_declared(each.__module__, each.__name__)[0] for each in kin]
    bodies = [each.body for each in declared if isinstance(each, ast.ClassDef)]
    bases = [ast.unparse(base) for base in node.bases]
    yield f"`class {node.name}{_constructed(bodies)}`" + (f", a `{bases[0]}`" if _is_error(bases) else "")
    yield ""
    fields = {name: shown for body in reversed(bodies) for name, shown, _ in _fields(body)}
    yield from _described(text, fields)
    left = [(shown, told) for name, shown, told in _fields(bodies[0]) if f"\n    {name}: " not in text]
    yield from (f"- `{shown}`{told and ': '}{told}" for shown, told in left)
    yield from [""] if left else []
    if "IntEnum" in bases:
        yield "The values are the [close codes](codes.md#close-codes)."
        yield ""
    seen: set[str] = set()
    for each in (statement for body in bodies for statement in body):
        if isinstance(each, Function) and each.name not in seen and _is_public(each.name):
            seen.add(each.name)
            yield from _method(each)


def _is_ours(each: type) -> bool:
    return each.__module__.split(".")[0] == "realtime"


def _is_error(bases: list[str]) -> bool:
    return bool(bases) and bases[0] in {"Exception", "RuntimeError", "Refused"}


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__call__"


def _constructed(bodies: list[list[ast.stmt]]) -> str:
    for body in bodies:
        for each in body:
            if isinstance(each, Function) and each.name in {"__init__", "__new__"}:
                return f"({_arguments(each)})"
    return ""


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each public field, how it is declared, and the string behind it."""
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind) if _is_public(name):
                default = "" if node.value is None or _is_call(node.value) else f" = {ast.unparse(node.value)}"
                yield name, f"{name}: {ast.unparse(kind)}{default}", " ".join(_string(after).split())


def _is_call(value: ast.expr) -> bool:
    return isinstance(value, ast.Call)


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    marks = {ast.unparse(each) for each in node.decorator_list}
    if "property" in marks:
        yield f"#### `{node.name}: {ast.unparse(node.returns) if node.returns else 'Any'}`"
    else:
        yield f"#### `{_signature(node.name, node)}`"
    yield ""
    yield from _described(ast.get_docstring(node) or "")


def _signature(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    kind = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = (
        ""
        if node.returns is None or name in {"__init__", "__new__"}
        else f" -> {ast.unparse(node.returns)}".replace("'", "")
    )
    return f"{kind}{name}({_arguments(node)}){returns}".replace("\n", " ")


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    shown = ast.unparse(node.args)
    is_static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    return shown if is_static else re.sub(r"^(self|cls)(, /)?(, |$)", "", shown)


def _described(text: str, fields: Mapping[str, str] = MappingProxyType({})) -> Iterator[str]:
    """Yield a docstring as Markdown: its sections become a bold word and a list, its code stays indented."""
    in_section = False
    for line in text.replace("``", "`").splitlines():
        if _SECTION.match(line):
            in_section = True
            yield f"*{line.rstrip(':')}*"
            yield ""
        elif in_section and (item := _ITEM.match(line)):
            yield f"- `{fields.get(item[1], item[1])}`: {item[2]}"
        elif in_section and line.strip():
            yield f"  {line.strip()}" if line.startswith("        ") else line.strip()
        else:
            in_section = in_section and not line
            yield line
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
