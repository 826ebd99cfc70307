"""Where settings come from, and in which order: defaults, the file, the environment, the command line.

A later source wins key by key. Each value is checked where it is read, so that the error can name its source; rules
that concern two keys are checked at the end. An empty environment variable counts as not set. The result is frozen
and never partly applied: one wrong key refuses the start.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from realtime.config.keys import ALL, SECTIONS, Key
from realtime.config.settings import ConfigError, Section, Settings

FILE_NAME = "realtime.toml"
"""Read from the working directory where neither `--config` nor `REALTIME_CONFIG` names another one."""

SHORT_NAMES: Mapping[str, str] = {
    "WS_PORT": "server.port",
    "API_PORT": "api.port",
    "REALTIME_JWT_SECRET": "auth.secrets",
    "REALTIME_SERVICE_KEY": "auth.service_key",
    "REALTIME_DATA_DIR": "data_dir",
}
"""Environment variables that people know, and the key that each of them sets; the long name of a key wins over them."""

_PREFIX = "REALTIME_"
_SECRET_BYTES_MIN = 32
_PORT_BESIDE_API = 3003


def load(
    config: str | os.PathLike[str] | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings of this process.

    Args:
        config: a TOML file that must exist; None takes `REALTIME_CONFIG`, else `realtime.toml` if there is one.
        sets: `section.key=value` each, as the command line gives them.
        environ: the environment; None takes that of the process.

    Raises:
        ConfigError: an unknown key, a value that is not allowed, a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    path = _file(config, environ)
    if path is not None:
        values.update(_from_file(path))
    values.update(_from_environment(environ))
    values.update(_from_command_line(sets))
    if values.get("api.url") is not None:
        # The existing API has the port that ours would have.
        values.setdefault("api.port", _PORT_BESIDE_API)
    settings = _assembled(values)
    _check_together(settings)
    return settings


def origins(
    config: str | os.PathLike[str] | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return where each key that is set was set: a file, a variable or `--set`. Arguments and errors as of `load`."""
    environ = os.environ if environ is None else environ
    found: dict[str, str] = {}
    path = _file(config, environ)
    if path is not None:
        found.update((key, str(path)) for key, _ in _from_file(path))
    # Short names first: the long name of a key wins.
    for variable in sorted(environ, key=lambda name: "__" in name):
        found.update((key, variable) for key, _ in _from_environment({variable: environ[variable]}))
    found.update((key, "--set") for key, _ in _from_command_line(sets))
    return found


def _file(config: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    named = config or environ.get("REALTIME_CONFIG")
    if named:
        return Path(named)
    return Path(FILE_NAME) if Path(FILE_NAME).exists() else None


def _from_file(path: Path) -> Iterator[tuple[str, object]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name another file by --config") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8; save it as such") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct it") from error
    for name, value in document.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise ConfigError(f"{name} (from {path}) is not a table; write [{name}]")
            for inner, item in value.items():
                key = _known(f"{name}.{inner}", str(path))
                yield key.path, key.checked(item, str(path))
        else:
            key = _known(name, str(path))
            yield key.path, key.checked(value, str(path))


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    for variable, path in SHORT_NAMES.items():
        if text := environ.get(variable):
            # A secret may hold a comma, so the short name is one secret and never a list.
            key = ALL[path]
            yield path, key.checked([text], variable) if path == "auth.secrets" else key.read(text, variable)
    for variable, text in environ.items():
        if not text or not variable.startswith(_PREFIX) or variable in SHORT_NAMES:
            continue
        if "__" in variable:
            path = variable.removeprefix(_PREFIX).lower().replace("__", ".", 1)
            key = _known(path, variable)
            yield path, key.read(text, variable)
        else:
            _refuse_misspelt(variable)


def _refuse_misspelt(variable: str) -> None:
    """Refuse what is nearly a short name; other variables with our prefix belong to other programs."""
    suffix = variable.removeprefix(_PREFIX)
    for known in SHORT_NAMES:
        near = difflib.SequenceMatcher(None, suffix, known.removeprefix(_PREFIX)).ratio()
        if known.startswith(_PREFIX) and near >= 0.85:
            raise ConfigError(f"{variable} (from the environment) is not a name; did you mean {known}?")


def _from_command_line(sets: Iterable[str]) -> Iterator[tuple[str, object]]:
    for argument in sets:
        path, separator, text = argument.partition("=")
        if not separator:
            raise ConfigError(f"--set {argument!r} has no value; write --set section.key=value")
        key = _known(path.strip(), "--set")
        yield key.path, key.read(text.strip(), "--set")


def _known(path: str, source: str) -> Key:
    key = ALL.get(path)
    if key is not None:
        return key
    near = difflib.get_close_matches(path, ALL if "." in path else [*ALL, *SECTIONS], n=1, cutoff=0.7)
    section = path.partition(".")[0]
    if near:
        advice = f"did you mean {near[0]}?"
    elif section in SECTIONS:
        advice = f"[{section}] has {', '.join(key.name for key in ALL.values() if key.section == section)}"
    else:
        advice = f"the sections are {', '.join(SECTIONS)}"
    raise ConfigError(f"{path} (from {source}) is not a key; {advice}")


def _assembled(values: Mapping[str, object]) -> Settings:
    plain = {path: value for path, value in values.items() if "." not in path}
    tables: dict[str, Section] = {}
    for section in SECTIONS:
        owner = type(getattr(_DEFAULTS, section))
        tables[section] = owner(
            **{path.partition(".")[2]: value for path, value in values.items() if path.startswith(f"{section}.")}
        )
    return Settings(**plain, **tables)  # type: ignore[arg-type]  # each value was converted to its field's type


def _check_together(settings: Settings) -> None:
    """Check what no single key can tell."""
    keys = [("auth.secrets", secret) for secret in settings.auth.secrets]
    if settings.auth.service_key is not None:
        keys.append(("auth.service_key", settings.auth.service_key))
    for path, secret in keys:
        if (size := len(secret.encode())) < _SECRET_BYTES_MIN:
            raise ConfigError(f"{path} holds {size} bytes; use at least {_SECRET_BYTES_MIN}: openssl rand -base64 48")
    limits = settings.limits
    for smaller, larger in (
        ("outbox_soft_bytes", "outbox_hard_bytes"),
        ("outbox_hard_bytes", "outboxes_bytes_max"),
        ("message_bytes_max", "unfinished_bytes_max"),
    ):
        low, high = getattr(limits, smaller), getattr(limits, larger)
        if low > high:
            raise ConfigError(f"limits.{smaller} = {low} is above limits.{larger} = {high}; raise the second")
    if settings.api.enabled and settings.server.port == settings.api.port != 0:
        raise ConfigError(f"server.port and api.port are both {settings.api.port}; set WS_PORT or API_PORT to another")
    drain = settings.drain
    spent_s = drain.notice_s + (drain.window_s if drain.successor else 0)
    if spent_s >= drain.grace_s:
        what = "drain.notice_s and drain.window_s" if drain.successor else "drain.notice_s"
        raise ConfigError(f"drain.grace_s = {drain.grace_s:g} does not outlast {what} = {spent_s:g}; raise the first")
    if settings.api.url is not None:
        _check_api(settings, settings.api.url)


def _check_api(settings: Settings, url: str) -> None:
    """Check where messages are sent: a wrong address would fail each of them, and not the start."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"api.url = {url!r} is not an address: {error}; use http://host:port") from error
    if not fine or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"api.url = {url!r} is not an address; use http://host:port or https://host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("api.url has a user, a query or a fragment; leave them out: callers bring tokens")
    if settings.api.timeout_s >= settings.handlers.timeout_s:
        raise ConfigError(
            f"api.timeout_s = {settings.api.timeout_s:g} is not below handlers.timeout_s = "
            f"{settings.handlers.timeout_s:g}, which would cut it off; lower the first"
        )


_DEFAULTS = Settings()
