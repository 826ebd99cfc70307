"""The pages of the documentation and their code blocks, as a reader copies them.

A block is run or parsed by its language (`RUN`, `PARSED`), or it carries the reason why neither is possible, in a
comment right before it: `<!-- not run: it downloads a compiler -->`. A first line such as `# board.py` names the file
that a block is saved as; a Python block without a name goes on with the file of the block before it. In a `console`
block a line with `$ ` is a command, one with `> ` is typed into it, and everything else is what it answers.

Used by tests/unit/test_docs.py, which parses all blocks, and by tests/integration/test_docs.py, which runs them.
"""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from tests.kit import ROOT

RUN = ("python", "sh", "console", "js")
PARSED = ("toml", "json", "yaml", "nginx", "ini", "html", "http", "dockerfile", "text")

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"<!-- not run: (?P<reason>[^>]*) -->\s*\Z")
_NAME = re.compile(r"(?:#|//|<!--) (?P<name>[\w./-]+\.\w+)(?:[:,;\s]|$)")


@dataclass(frozen=True)
class Block:
    """One code block.

    Attributes:
        page: the page's path from the root of the repository.
        line: the number of its first line of code on the page.
        language: the word behind the backticks.
        text: its lines, without the indentation of the whole.
        reason: why it is not run; empty where it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        """The place, as an editor opens it."""
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> str:
        """The file that its first line names, or nothing."""
        match = _NAME.match(self.text)
        return match["name"] if match else ""


@dataclass(frozen=True)
class Typed:
    """One command of a `console` block: its line on the page, what is typed into it, and what the page answers."""

    line: int
    command: str
    typed: str
    answer: str


def pages() -> list[str]:
    """Return every page that readers are sent to, as paths from the root."""
    found = [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "benches", "examples") for path in ROOT.glob(f"{folder}/**/*.md")),
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found if not {"node_modules", "results"} & set(path.parts))


def before(page: str) -> list[str]:
    """Return the pages of the tutorial before this one, whose files its reader has; none for other pages."""
    return [each for each in pages() if "/tutorial/" in page and "/tutorial/" in each and each < page]


def text_of(page: str) -> str:
    """Return a page's Markdown."""
    return (ROOT / page).read_text("utf-8")


def prose_of(page: str) -> str:
    """Return a page's Markdown without its blocks, each line where it was."""
    return _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text_of(page))


def blocks(page: str) -> list[Block]:
    """Return a page's blocks in their order."""
    text = text_of(page)
    found = []
    for match in _BLOCK.finditer(text):
        reason = _REASON.search(text, 0, match.start())
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start("text")) + 1,
                match["language"].strip(),
                textwrap.dedent(match["text"]),
                reason["reason"].strip() if reason else "",
            )
        )
    return found


def files(found: list[Block], *, language: str = "python") -> dict[str, str]:
    """Return the files that the blocks of a language make, by name; blank lines keep the line numbers of the page."""
    made: dict[str, str] = {}
    name = f"page.{ {'python': 'py', 'js': 'mjs'}[language] }"
    for block in found:
        if block.language == language and not block.reason:
            name = block.name or name
            source = made.get(name, "")
            made[name] = source + "\n" * (block.line - 1 - source.count("\n")) + block.text
    return made


def commands(block: Block) -> Iterator[Typed]:
    """Yield the commands of a `console` block."""
    command, rest, start = "", [""], 0
    lines = block.text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            if command:
                yield _typed(block.line + start, command, rest)
            command, rest, start = line[2:], [], number
        elif command and not rest and is_unfinished(command):
            command += f"\n{line}"
        else:
            rest.append(line)
    if command:
        yield _typed(block.line + start, command, rest)


def _typed(line: int, command: str, rest: list[str]) -> Typed:
    typed = [each[2:] for each in rest if each.startswith("> ")]
    answer = [each for each in rest if not each.startswith("> ")]
    return Typed(line, command, "".join(f"{each}\n" for each in typed), "\n".join(answer).strip())


def is_unfinished(command: str) -> bool:
    """Whether a shell waits for more lines of this command: a quote is open, or the line goes on."""
    if command.endswith("\\"):
        return True
    said = shell_error(command)
    return any(sign in said for sign in ("unexpected EOF", "unexpected end of file", "here-document"))


def shell_error(script: str) -> str:
    """Return what bash says of a script that it cannot parse, else nothing."""
    return subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr
