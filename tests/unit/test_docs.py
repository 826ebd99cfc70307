"""The Python of the pages that say so runs as it stands there: its blocks are one module, and its tests pass."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("howto/app.md",)
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A page's blocks as a module that can be found by its name, as annotations need it."""
    path = DOCS / request.param
    text = path.read_text("utf-8")
    # Blank lines in place of the prose, so that a failure names the page's own line.
    blocks = [(text.count("\n", 0, match.start(1)), match[1]) for match in _BLOCK.finditer(text)]
    source = ""
    for line, block in blocks:
        source += "\n" * (line - source.count("\n")) + block
    module = ModuleType(f"page_{path.stem}")
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 -- the page's own code
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize("page", PAGES, indirect=True)
async def test_the_code_of_a_page_runs_and_its_tests_pass(page: ModuleType) -> None:
    tests = [value for name, value in vars(page).items() if name.startswith("test_") and inspect.isfunction(value)]
    assert tests, "the page has no test of its own"
    for test in tests:
        await test()
