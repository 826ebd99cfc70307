"""docs/topics/limits.md lists every collection of the process: the sources, the configuration and the page agree.

A collection is a field of a long-lived type that can hold more than one thing: in Rust a struct's field of a growing
type, in Python an attribute that is made as one, a field with such a default, or a variable of a module. Each stands on
the page as `Type.field` (`Type.0`, `module._variable`), or its whole file does.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from realtime import Realtime
from realtime.base.config import ALL
from realtime.base.memory import PURPOSES
from realtime.testing import TestApp
from tests import pages
from tests.kit import ROOT

PAGE = pages.text_of("docs/topics/limits.md")
OPERATORS = pages.text_of("docs/howto/limits.md")
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = set(re.findall(r"`([^`]+)`", PAGE))

CRATES = ("protocol", "hub", "log", "reactor", "bindings", "front")
_GROWING = re.compile(r"\b(Vec|VecDeque|\w*HashMap|\w*HashSet|BTreeMap|BTreeSet|BinaryHeap|Slab|BytesMut|Sender)\b")
_STRUCT = re.compile(
    r"^(?:pub(?:\([\w ]+\))? )?struct (\w+)(?:<[^{;]*)? (?:where[^{]*)?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL
)
_TUPLE = re.compile(r"^(?:pub(?:\([\w ]+\))? )?struct (\w+)(?:<[^(;]*>)?\((.*)\);", re.MULTILINE)
_MADE = {"dict", "list", "set", "deque", "OrderedDict", "Counter", "defaultdict", "Queue", "Recent", "WeakSet"}
_BOUND = re.compile(r"_(max|bytes|burst|per_s)$|^(history|retention|dedupe_s|idle_s)$")


def _rust_fields(source: str) -> Iterator[str]:
    source = source.partition("#[cfg(test)]\nmod ")[0]
    for struct in _STRUCT.finditer(source):
        for field in re.finditer(r"^    (?:pub(?:\([\w ]+\))? )?(\w+): (.+?),?$", struct[2], re.MULTILINE):
            if _GROWING.search(field[2]) and not field[2].startswith("&"):
                yield f"{struct[1]}.{field[1]}"
    for struct in _TUPLE.finditer(source):
        if _GROWING.search(struct[2]):
            yield f"{struct[1]}.0"


def _is_collection(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Dict | ast.List | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp):
        return True
    if not isinstance(value, ast.Call):
        return False
    for keyword in value.keywords:
        if keyword.arg == "default_factory":
            return getattr(keyword.value, "id", "") in _MADE
    made = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return (made.attr if isinstance(made, ast.Attribute) else getattr(made, "id", "")) in _MADE


def _is_variable(name: str) -> bool:
    return name.islower() and not name.startswith("__")


def _assigned(node: ast.AST) -> tuple[list[ast.expr], ast.expr | None]:
    if isinstance(node, ast.Assign):
        return node.targets, node.value
    if isinstance(node, ast.AnnAssign):
        return [node.target], node.value
    return [], None


def _python_fields(source: str, module: str) -> Iterator[str]:
    tree = ast.parse(source)
    owners: list[ast.Module | ast.ClassDef] = [
        tree,
        *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)),
    ]
    for owner in owners:
        name = owner.name if isinstance(owner, ast.ClassDef) else module
        for each in owner.body:
            targets, value = _assigned(each)
            if _is_collection(value):
                names = (target.id for target in targets if isinstance(target, ast.Name))
                yield from (f"{name}.{variable}" for variable in names if _is_variable(variable))
        for node in ast.walk(owner) if owner is not tree else ():
            targets, value = _assigned(node)
            if _is_collection(value):
                yield from (f"{name}.{target.attr}" for target in targets if isinstance(target, ast.Attribute))


def _sources() -> Iterator[tuple[Path, list[str]]]:
    for crate in CRATES:
        for path in sorted((ROOT / "rust" / crate / "src").rglob("*.rs")):
            if path.stem != "tests" and "tests" not in path.parts:
                yield path, list(_rust_fields(path.read_text("utf-8")))
    for path in sorted((ROOT / "python" / "realtime").rglob("*.py")):
        yield path, list(_python_fields(path.read_text("utf-8"), path.stem))


COLLECTIONS = {str(path.relative_to(ROOT)): fields for path, fields in _sources() if fields}


def test_the_scan_finds_collections_of_both_languages() -> None:
    found = {field for fields in COLLECTIONS.values() for field in fields}
    assert {"State.ring", "Outbox.entries", "Backlog.entries"} & found, "no field of Rust was found"
    assert {"Recent._entries", "Connections._by_conn"} <= found


def test_the_scan_sees_each_way_to_write_a_collection() -> None:
    rust = "struct Bookmarks {\n    by_user: HashMap<Arc<str>, u64>,\n}\n\npub(crate) struct Marked(Vec<u64>);\n"
    assert list(_rust_fields(rust)) == ["Bookmarks.by_user", "Marked.0"]
    python = (
        "known = {}\n_NAMES = {1: 2}\nclass Bookmarks:\n    by_user: dict[str, int] = field(default_factory=dict)\n"
        "    def __init__(self):\n        self.order: deque[str] = deque()\n"
    )
    assert list(_python_fields(python, "marks")) == ["marks.known", "Bookmarks.by_user", "Bookmarks.order"]


@pytest.mark.parametrize("path", COLLECTIONS)
def test_every_collection_of_a_file_is_on_the_page(path: str) -> None:
    folders = {str(folder) for folder in Path(path).parents}
    if path in NAMED or folders & {name.rstrip("/") for name in NAMED if name.endswith("/")}:
        return
    missing = [field for field in COLLECTIONS[path] if field not in NAMED]
    assert not missing, (
        f"{missing}: add a row to docs/topics/limits.md: who fills it, what bounds it, who is charged, when it empties"
    )


def test_everything_that_the_page_lists_exists() -> None:
    found = {field for fields in COLLECTIONS.values() for field in fields}
    listed = {name for name in NAMED if re.fullmatch(r"[A-Z]\w+\.\w+|\w+\._\w+", name)}
    assert listed <= found, f"collections that are gone: {sorted(listed - found)}"
    files = {name for name in NAMED if name.startswith(("rust/", "python/"))}
    assert not [name for name in files if not (ROOT / name).exists()]


def test_every_row_says_who_fills_it_what_bounds_it_who_is_charged_and_when_it_empties() -> None:
    rows = [cells for cells in CELLS if len(cells) == 5]
    assert len(rows) > 20
    assert not [cells[0] for cells in rows if not all(cells)]


def test_every_purpose_of_memory_has_a_row_that_names_its_keys() -> None:
    rows = {cells[0].partition(":")[0].strip("`"): " ".join(cells) for cells in CELLS}
    for purpose in PURPOSES:
        assert purpose.name in rows, purpose.name
        assert not [key for key in purpose.keys if f"`{key}`" not in rows[purpose.name]], purpose.name


def test_every_key_of_a_purpose_exists() -> None:
    assert not {key for purpose in PURPOSES for key in purpose.keys} - set(ALL)


def _bounds() -> list[str]:
    """Return every key that bounds something: all of `[limits]`, and those of other sections by their names."""
    return [path for path, key in ALL.items() if key.section == "limits" or _BOUND.search(key.name)]


@pytest.mark.parametrize("path", _bounds())
def test_every_bound_is_on_both_pages(path: str) -> None:
    section, _, name = path.rpartition(".")
    # A burst is told with its rate.
    name = name.replace("_burst", "_per_s")
    assert path in NAMED, f"docs/topics/limits.md does not name `{path}`"
    told = f"`{path}`" in OPERATORS or (section == "limits" and name in re.findall(r"\w+", OPERATORS))
    assert told, f"docs/howto/limits.md does not name `{path}`"


async def test_every_counter_of_a_purpose_is_one_of_the_engines() -> None:
    async with TestApp(Realtime()) as t:
        counters = t.control.stats().decode()
    for purpose in PURPOSES:
        for name in () if purpose.share or purpose.counted else (purpose.held, *purpose.refused):
            assert f'"{name}":' in counters, name
