"""The page docs/reference/configuration.md, written from the Structs of the configuration.

`python -m realtime.base.config.reference > docs/reference/configuration.md` writes it; a test compares the two.
"""

import json
import sys
from collections.abc import Iterator

from realtime.base.config.keys import ALL, SECTIONS, Key
from realtime.base.config.settings import Settings
from realtime.base.config.sources import FILE_NAME, SHORT_NAMES

_INTRODUCTION = f"""\
# Configuration

<!-- Written by `python -m realtime.base.config.reference` from the declarations beside it; edit those. -->

A setting is looked for in this order, and the last one found wins, key by key:

1. the default below,
2. `{FILE_NAME}` in the working directory, or the file that `REALTIME_CONFIG` or `--config` names,
3. a short name of the table below,
4. `REALTIME_SECTION__KEY` in the environment (an empty variable counts as not set),
5. `--set section.key=value` on the command line.

Each variable of 3 and 4 may be given as `NAME_FILE` instead: the path of a file that holds the value, as Docker and
Kubernetes hand secrets over. A line end at its end and a byte order mark do not count.

`API_PORT` and `WS_PORT` are ignored where they are addresses (`tcp://…`): Kubernetes sets them so for a Service `api`
or `ws`. A variable that begins with `REALTIME_` and matches no key, such as one with a single underscore between
section and key, is ignored too. The log of the start and `realtime check` name both, with the variable that was
likely meant.

An unknown key or a value that is not allowed refuses the start with one line that names the key, the value and what is
allowed, and exit code 2. Secrets are never printed.

Without `auth.secrets` the server makes a secret, keeps it in `secret` in the data directory (mode 600) and listens on
loopback addresses only; another address is then refused. A secret that others can read refuses the start; one that a
group of the process's own can read, as volumes of Kubernetes make it (`fsGroup`), is a warning.
"""


def reference() -> str:
    """Return the page, as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "| short name | key |"
    yield "|---|---|"
    for variable, path in SHORT_NAMES.items():
        yield f"| `{variable}` | `{path}` |"
    yield ""
    yield "```toml"
    yield "# realtime.toml"
    yield 'data_dir = "/var/lib/realtime"'
    yield ""
    yield "[server]"
    yield "port = 3002"
    yield "```"
    yield ""
    yield "## Outside the tables"
    yield ""
    yield from _table(key for key in ALL.values() if not key.section)
    defaults = Settings()
    for section in SECTIONS:
        yield f"## `[{section}]`"
        yield ""
        yield str(type(getattr(defaults, section)).__doc__)
        yield ""
        yield from _table(key for key in ALL.values() if key.section == section)


def _table(keys: Iterator[Key]) -> Iterator[str]:
    yield "| key | default | what it does | allowed |"
    yield "|---|---|---|---|"
    for key in keys:
        yield f"| `{key.name}` | {_default(key)} | {key.description} | {key.allowed} |"
    yield ""


def _default(key: Key) -> str:
    if key.default is None or key.default == ():
        return "not set"
    return f"`{json.dumps(key.default)}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
