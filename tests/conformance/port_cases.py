"""Turn the cases of the `autobahntestsuite` package into one that Python 3 can import.

The release on the index, 25.10.1, is tagged for Python 3 but its files are still Python 2: print statements, implicit
relative imports, `str` that is bytes. What the cases test is not touched; only their syntax is translated. "str is
bytes" is kept by reading the sources as latin-1, so that each character is one octet; fuzz.py encodes and decodes
latin-1 at the border to the transport.

Usage, in the environment that run.py makes: `python port_cases.py SOURCE_PACKAGE TARGET_FOLDER` (makes
TARGET_FOLDER/abcases).
"""

import re
import shutil
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from fissix.refactor import RefactoringTool  # noqa: E402 - it warns on import

FIXES = ("print", "xrange", "has_key", "unicode", "except", "dict")
NOT_PORTED = "case9_9_1.py"
"""Not in the suite's own list of cases, and needs what zope.interface no longer has."""

COMPAT = '''"""What the ported cases need of Python 2."""

import binascii
import os


def _hex(octets):
    return binascii.b2a_hex(octets.encode("latin-1") if isinstance(octets, str) else octets).decode()


def _resource(relative):
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), relative)
'''


def ported(text: str, name: str, tool: RefactoringTool) -> str:
    """Return the Python 3 form of one source file."""
    text = re.sub(r"(?m)^#.*coding[=:].*$", "", text, count=1)
    text = re.sub(r"(?m)^from (case\w*) import", r"from .\1 import", text)
    text = re.sub(r"(?m)^import (case\w*)\b", r"from . import \1", text)
    text = text.replace("(object, Case, )", "(Case, )").replace("(object, Case,)", "(Case,)")
    text = re.sub(r"(?<!\.)\bpkg_resources\.resource_filename\(\"autobahntestsuite\", ", "_resource(", text)
    text = re.sub(r"^(import .*?), pkg_resources(.*)$", r"\1\2", text, flags=re.MULTILINE)
    text = re.sub(r"(?m)^import pkg_resources.*$", "", text)
    text = text.replace("binascii.b2a_hex(", "_hex(").replace("binascii.hexlify(", "_hex(")
    text = re.sub(r"(?m)^from \.case9_9_1 import .*$", "", text)
    text = text.replace("v.validate(vss[:i])", "v.validate(vss[:i].encode('latin-1'))")
    text = text.replace("len(self.payload) / self.p.autoFragmentSize", "len(self.payload) // self.p.autoFragmentSize")
    text = text.replace("pickle.dumps(obj1) == pickle.dumps(obj2)", "obj1 == obj2")
    text = str(tool.refactor_string(text if text.endswith("\n") else text + "\n", name))
    future = re.findall(r"(?m)^from __future__ .*$", text)
    text = re.sub(r"(?m)^from __future__ .*$", "", text)
    compat = "from ._compat import _hex, _resource\n" if "_hex(" in text or "_resource(" in text else ""
    return "# -*- coding: latin-1 -*-\n" + "".join(line + "\n" for line in future) + compat + text


def main(source: Path, target: Path) -> None:
    """Write the package `abcases` into `target`, whole or not at all."""
    tool = RefactoringTool([f"fissix.fixes.fix_{name}" for name in FIXES])
    package, unfinished = target / "abcases", target / "abcases.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    shutil.copytree(source / "testdata", unfinished / "testdata")
    for file in sorted((source / "case").glob("*.py")):
        if file.name != NOT_PORTED:
            text = file.read_text("latin-1").expandtabs(8)
            (unfinished / file.name).write_text(ported(text, file.name, tool), "latin-1")
    caseset = ported((source / "caseset.py").read_text("latin-1"), "caseset.py", tool)
    (unfinished / "caseset.py").write_text(caseset.replace("'\\.'", "'\\\\.'"), "latin-1")
    (unfinished / "_compat.py").write_text(COMPAT)
    shutil.rmtree(package, ignore_errors=True)
    unfinished.rename(package)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
