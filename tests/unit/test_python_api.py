"""The page of the Python API is made of the docstrings, and every public name has one."""

import pytest

import realtime
from tests import pages, python_api

PAGE = "docs/reference/python-api.md"


def test_the_page_is_made_of_the_docstrings() -> None:
    made = python_api.page()
    assert pages.text_of(PAGE) == made, f"run: python -m tests.python_api >{PAGE}"


@pytest.mark.parametrize("name", realtime.__all__)
def test_the_page_describes_every_public_name(name: str) -> None:
    entry = pages.text_of(PAGE).partition(f"\n### {name}\n")[2].partition("\n###")[0]
    assert len(entry.split()) > 5, entry
