"""Run Autobahn's test suite against `/echo` of examples/echo.py: `make conformance`.

The suite lives in an environment of its own under .cache/autobahn, pinned with hashes in requirements.txt: it needs an
old transport and must not share packages with the server. Exit code 0 only where every chosen case ran and none failed.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.kit import Server  # noqa: E402 - the repository is no installed package

ENVIRONMENT = ROOT / ".cache" / "autobahn"
CHOSEN = {
    # All but limits and performance; of compression, 1,000 messages of 16 B with every set of parameters.
    "quick": "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*,12.*.1,13.*.1",
    "no-performance": "1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*,12.*,13.*",
    "all": "*",
}


def install() -> Path:
    """Make the environment where it is missing or out of date; return its Python."""
    python = ENVIRONMENT / "bin" / "python"
    sources = (HERE / "requirements.txt", HERE / "port_cases.py")
    version = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    stamp = ENVIRONMENT / "version"
    if stamp.exists() and stamp.read_text() == version:
        return python
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "-r",
        sources[0],
    ]
    subprocess.run(pip, check=True)
    locate = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = subprocess.run([python, "-c", locate], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([python, sources[1], Path(site, "autobahntestsuite"), ENVIRONMENT], check=True)
    stamp.write_text(version)
    return python


def main() -> int:
    """Run the chosen cases and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="quick", help="quick, no-performance, all, or patterns such as 1.*,5.19")
    parser.add_argument("--url", help="a server that runs already, in place of one that is started")
    parser.add_argument("--install-only", action="store_true")
    arguments = parser.parse_args()
    python = install()
    if arguments.install_only:
        return 0
    chosen = CHOSEN.get(arguments.cases, arguments.cases)
    command: list[str | Path] = [python, "-W", "ignore", HERE / "fuzz.py", "--cases-from", ENVIRONMENT]
    command += ["--cases", chosen, "--report", ROOT / ".cache" / "autobahn-report", "--url"]
    if arguments.url:
        return subprocess.run([*command, arguments.url], check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), app=str(ROOT / "examples" / "echo.py"), sets=["limits.enabled=false"])
        server.start_now()
        try:
            return subprocess.run([*command, f"ws://127.0.0.1:{server.port}/echo"], check=False).returncode
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
