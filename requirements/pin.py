"""Write the pinned requirements of every environment, each file with its hashes and without an index's address.

The direct dependencies and the reasons for them are in pyproject.toml; what the files here add is the exact version
and the hashes of everything that these pull in, so that `pip install --require-hashes` installs the same everywhere.
Run it as `make pins`: it uses a throw-away environment with pip-tools and touches nothing but requirements/*.txt,
tests/conformance/requirements.txt and benches/rivals/*/requirements.txt.
"""

import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP_TOOLS = "pip-tools==7.6.0"

# Autobahn's suite pins its own transport: 0.10.9 is the version that everybody's results were compared against.
CONFORMANCE = [
    "autobahn==0.10.9",
    "autobahntestsuite==25.10.1",
    "fissix",
    "setuptools",
    "twisted>=24,<27",
    "txaio==2.1.0",
    "wsaccel",
    "zope-interface",
]

# The rivals of `make bench`, each in an environment of its own, with what its documentation advises for speed.
RIVALS = {
    "granian": ["granian", "starlette", "uvloop", "orjson"],
    "picows": ["picows", "uvloop", "orjson"],
    "socketify": ["socketify", "orjson"],
    "websockets": ["websockets", "uvloop", "orjson"],
}


def pinned(pip_compile: Path, direct: list[str]) -> str:
    """Return the requirements file that pip-compile makes of `direct`."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "direct.in"), Path(folder, "pinned.txt")
        source.write_text("\n".join(direct) + "\n")
        options = ["--generate-hashes", "--no-emit-options", "--no-emit-index-url", "--no-emit-find-links"]
        options += ["--no-emit-trusted-host", "--no-header", "--strip-extras", "--allow-unsafe", "--no-annotate"]
        subprocess.run([pip_compile, "--quiet", *options, "--output-file", output, source], check=True)
        return output.read_text()


def main() -> None:
    """Write the files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = project["dependencies"]
    targets = {
        ROOT / "requirements" / "run.txt": ("what the server needs", run),
        ROOT / "requirements" / "dev.txt": (
            "the server, its tests and its checks",
            run + project["optional-dependencies"]["dev"],
        ),
        ROOT / "tests" / "conformance" / "requirements.txt": (
            "Autobahn's test suite, in an environment of its own",
            CONFORMANCE,
        ),
    }
    for rival, direct in RIVALS.items():
        purpose = f"{rival} as a rival of `make bench`, in an environment of its own"
        targets[ROOT / "benches" / "rivals" / rival / "requirements.txt"] = (purpose, direct)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        subprocess.run([Path(folder, "bin", "pip"), "install", "--quiet", PIP_TOOLS], check=True)
        for target, (purpose, direct) in targets.items():
            header = f"# Pinned by `make pins`: {purpose}.\n"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(header + pinned(Path(folder, "bin", "pip-compile"), direct))
            print(f"{target.relative_to(ROOT)} written")


if __name__ == "__main__":
    main()
