"""What the pages say can be parsed, and the commands, keys and links that they name exist.

tests/integration/test_docs.py runs the blocks; here every one is looked at without starting anything.
"""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer.main
import yaml

from docs import layers
from realtime.base.config import ALL, load
from realtime.cli import app as command_line
from tests import pages
from tests.kit import ROOT
from tests.pages import Block

NOT_RUN_MAX = 10
BLOCKS = [block for page in pages.pages() for block in pages.blocks(page)]
PARSED = [block for block in BLOCKS if not block.reason]
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_VOID = {"meta", "link", "input", "br", "img", "hr", "!doctype"}
_NO_KEYS = {"py", "rs", "md", "pyi", "mjs"}


def of(*languages: str) -> list[Block]:
    return [block for block in PARSED if block.language in languages]


STATIC = ROOT / "python" / "realtime" / "api" / "static"
HTML = {str(block): block.text for block in of("html")} | {
    str(path.relative_to(ROOT)): path.read_text("utf-8") for path in STATIC.glob("*.html")
}


def test_every_block_has_a_language_that_is_run_or_parsed_or_a_reason() -> None:
    unknown = [f"{block}: {block.language!r}" for block in PARSED if block.language not in pages.RUN + pages.PARSED]
    assert not unknown, f"name a language of tests/pages.py, or say `<!-- not run: reason -->`: {unknown}"


def test_at_most_ten_blocks_are_not_run_and_each_says_why() -> None:
    reasons = [f"{block}: {block.reason}" for block in BLOCKS if block.reason]
    assert len(reasons) <= NOT_RUN_MAX, reasons
    assert all(len(block.reason) > 10 for block in BLOCKS if block.reason), reasons


def test_nothing_is_installed_from_an_index_that_lacks_it() -> None:
    texts = {page: pages.text_of(page) for page in pages.pages()}
    texts |= {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in ROOT.glob("examples/*.py")}
    wrong = [name for name, text in texts.items() if re.search(r"pip install [^`\n]*realtime-edge", text)]
    assert not wrong, "realtime-edge is on no index; say how a wheel is made"


def test_the_first_page_puts_the_commands_of_the_others_on_the_path() -> None:
    shells = [block.text for block in BLOCKS if block.page == "docs/tutorial/1-first-app.md" and block.language == "sh"]
    assert 'export PATH="$PWD/.venv/bin:$PATH"\n' in shells


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_a_shell_block_can_be_parsed(block: Block) -> None:
    assert not pages.shell_error(block.text)
    assert not re.search(r"^\$ ", block.text, re.MULTILINE), "a block with prompts is of the language console"


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_a_console_block_has_commands_that_can_be_parsed(block: Block) -> None:
    found = list(pages.commands(block))
    assert found, "a command begins with `$ `"
    assert not [each for each in found if pages.shell_error(each.command)]


@pytest.mark.parametrize("page", pages.pages())
def test_the_python_of_a_page_can_be_compiled(page: str) -> None:
    for name, source in pages.files(pages.blocks(page)).items():
        compile(source, f"{page} ({name})", "exec")


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_toml_block_is_a_configuration_that_is_taken(block: Block, tmp_path: Path) -> None:
    assert tomllib.loads(block.text)
    if Path(block.name).name in {"", "realtime.toml"}:
        (tmp_path / "realtime.toml").write_text(block.text, "utf-8")
        load(tmp_path / "realtime.toml", environ={})


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_a_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_yaml_block_is_yaml(block: Block) -> None:
    assert all(document for document in yaml.safe_load_all(block.text))


@pytest.mark.parametrize("page", HTML)
def test_html_closes_what_it_opens(page: str) -> None:
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 -- the parser's own signature
            if tag not in _VOID:
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags, f"</{tag}> closes nothing"
            assert open_tags.pop() == tag, f"</{tag}> closes another tag"

    reader = Reader()
    reader.feed(HTML[page])
    reader.close()
    assert not [tag for tag in open_tags if tag not in {"html", "body", "p", "li"}], open_tags


@pytest.mark.parametrize("block", of("http"), ids=str)
def test_an_http_block_is_a_request_or_an_answer(block: Block) -> None:
    head, _, body = block.text.partition("\n\n")
    first, *lines = head.splitlines()
    assert re.fullmatch(r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /\S*( HTTP/1\.1)?|HTTP/1\.1 \d{3} .+", first)
    assert all(re.match(r"[A-Za-z-]+: \S", line) for line in lines), lines
    if body.strip():
        json.loads(body)


@pytest.mark.parametrize("block", of("dockerfile"), ids=str)
def test_a_dockerfile_copies_what_there_is_from_stages_that_it_has(block: Block, tmp_path: Path) -> None:
    """It is not built: that takes a daemon and two images. What its first stage copies is at least a workspace."""
    has = {*_files(block.page), *(name for page in pages.before(block.page) for name in _files(page))}
    stages: list[str] = []
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        instruction, *words = line.split() or ["#"]
        assert instruction in {"#", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "VOLUME", "EXPOSE", "CMD"}, line
        if instruction == "FROM":
            stages.append(words[2] if words[1:2] == ["AS"] else "")
        elif instruction == "CMD":
            assert json.loads(line.removeprefix("CMD ")), "a list, so that the server gets the signals"
        elif instruction == "COPY" and words[0].startswith("--from="):
            assert words[0].removeprefix("--from=") in stages[:-1], line
        elif instruction == "COPY":
            assert all((ROOT / source).exists() or source in has for source in words[:-1]), line
            for source in words[:-1] if len(stages) == 1 else []:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, tmp_path / source)
    command = ["cargo", "metadata", "--offline", "--no-deps", "--format-version=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _files(page: str) -> dict[str, str]:
    return pages.files(pages.blocks(page))


def test_the_board_of_the_readme_is_that_of_the_tutorial() -> None:
    boards = [
        {block.name: block.text for block in BLOCKS if block.page == page and block.name.startswith("board.")}
        for page in ("README.md", "docs/tutorial/1-first-app.md")
    ]
    assert boards[0] == boards[1]
    assert set(boards[0]) == {"board.py", "board.html"}


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_a_text_block_is_what_it_describes(block: Block) -> None:
    assert block.page in TEXTS, "name what holds this block to the truth, in TEXTS"
    TEXTS[block.page](block)


def _are_files_of_the_folder(block: Block) -> None:
    for line in block.text.splitlines():
        assert ((ROOT / block.page).parent / line.split()[0]).exists(), line


def _are_the_layers_of_import_linter(block: Block) -> None:
    assert block.text.rstrip("\n") == layers.picture(), "run: python docs/layers.py"


TEXTS = {"benches/README.md": _are_files_of_the_folder, "ARCHITECTURE.md": _are_the_layers_of_import_linter}


def _options(command: list[str]) -> tuple[Callable[[], set[str]], list[str]]:
    """Return the options that a command of ours has, and the ones that are written."""
    known = typer.main.get_command(command_line)
    name = command[0]
    found = getattr(known, "commands", {}).get(name)
    assert found is not None, f"there is no command realtime {name}"
    return lambda: {option for each in found.params for option in each.opts}, [
        word.partition("=")[0] for word in command[1:] if word.startswith("--")
    ]


@pytest.mark.parametrize("page", pages.pages())
def test_commands_that_a_page_names_exist(page: str) -> None:
    for block in _CODE.findall(pages.prose_of(page)):
        words = re.findall(r"--?[\w-]+|[\w./-]+", block)
        if words[:1] in (["realtime"], [".venv/bin/realtime"]) and len(words) > 1 and words[1].islower():
            options, written = _options(words[1:])
            assert set(written) <= options() | {"--help"}, block
        if words[:1] == ["make"] and len(words) > 1:
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert words[1] in targets or "=" in block.split()[1], block


@pytest.mark.parametrize("page", [each for each in pages.pages() if "decisions" not in each])
def test_keys_of_the_configuration_that_a_page_names_exist(page: str) -> None:
    sections = {key.section for key in ALL.values() if key.section}
    found = {
        f"{section}.{name}"
        for code in _CODE.findall(pages.prose_of(page))
        for section, name in re.findall(r"(?<![\w./@:-])([a-z]+)\.([a-z_]+)(?![\w(/:])", code)
        if section in sections and name not in _NO_KEYS
    }
    assert not found - set(ALL), f"keys that do not exist: {sorted(found - set(ALL))}"


@pytest.mark.parametrize("page", pages.pages())
def test_metrics_that_a_page_names_exist(page: str) -> None:
    known = set(re.findall(r"^\| `(\w+)` \|", pages.text_of("docs/reference/metrics.md"), re.MULTILINE))
    named = set(re.findall(r"(?<![\w./])realtime_[a-z_]+", pages.text_of(page)))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= known


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages.pages())
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for link in _LINK.findall(pages.prose_of(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in _anchors(target), f"{link}: there is no such heading"


def test_the_index_names_every_page() -> None:
    named = {(ROOT / "docs" / link).resolve() for link in _LINK.findall(pages.prose_of("docs/README.md"))}
    unnamed = [page for page in pages.pages() if page.startswith("docs/") and "decisions" not in page]
    unnamed = [page for page in unnamed if page != "docs/README.md" and ROOT / page not in named]
    assert not unnamed, f"name these in docs/README.md: {unnamed}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="the shell of the pages is bash")
def test_a_marked_block_is_known_by_the_comment_right_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (
        "<!-- not run: it costs an hour -->\n```sh\nmake all\n```\n\ntext\n\n```console\n$ cat \\\n  - <<'X'\n"
        "a\nX\nb…\n$ cat\n> typed\nanswer\n```\n"
    )
    (tmp_path / "page.md").write_text(page, "utf-8")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    marked, console = pages.blocks("page.md")
    assert (marked.reason, marked.line, console.reason) == ("it costs an hour", 3, "")
    first, second = pages.commands(console)
    assert (first.line, first.command, first.answer) == (9, "cat \\\n  - <<'X'\na\nX", "b…")
    assert (second.typed, second.answer) == ("typed\n", "answer")
