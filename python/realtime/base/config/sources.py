"""Where settings come from, and in which order: defaults, the file, the environment, the command line.

A later source wins key by key. Each value is checked where it is read, so that the error can name its source; rules
that concern two keys are checked at the end. An empty environment variable counts as not set. The result is frozen
and never partly applied: one wrong key refuses the start.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from realtime.base.config.keys import ALL, SECTIONS, Key
from realtime.base.config.secret import is_loopback
from realtime.base.config.settings import AuthSettings, ConfigError, LimitSettings, Section, Settings

FILE_NAME = "realtime.toml"
"""Read from the working directory where neither `--config` nor `REALTIME_CONFIG` names another one."""

SHORT_NAMES: Mapping[str, str] = {
    "WS_PORT": "server.port",
    "API_PORT": "api.port",
    "REALTIME_JWT_SECRET": "auth.secrets",
    "REALTIME_SERVICE_KEY": "auth.service_keys",
    "REALTIME_DATA_DIR": "data_dir",
}
"""Environment variables that people know, and the key that each of them sets; the long name of a key wins over them."""

ONE_OF: Mapping[str, str] = {"auth.service_key": "auth.service_keys"}
"""Keys that hold one value, and the list that it is the whole of."""

_PREFIX = "REALTIME_"
_BOM = "\ufeff"
_OTHERS = ("REALTIME_CONFIG", "REALTIME_URL", "REALTIME_TOKEN")
"""Variables of ours that set no key."""
_PORTS = ("WS_PORT", "API_PORT")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")
_SERVICE_NAME = re.compile(
    r"_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)\Z"
)
_FILE_SUFFIX = "_FILE"
_FILE_BYTES_MAX = 64 * 1024
_SECRET_BYTES_MIN = 32
_SECRET_BYTES_OF = {"HS384": 48, "HS512": 64}
"""As many as the hash has (RFC 7518 §3.2)."""
_PARTS = (
    ("outbox_soft_bytes", "outbox_hard_bytes"),
    ("outbox_hard_bytes", "outboxes_bytes_max"),
    ("message_bytes_max", "unfinished_bytes_max"),
    ("head_bytes_max", "heads_bytes_max"),
)
"""Keys of `[limits]` that are wrong where the second says less."""
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
        document = tomllib.loads(path.read_text("utf-8-sig"))
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
                inner_path = f"{name}.{inner}"
                key = _known(ONE_OF.get(inner_path, inner_path), str(path))
                yield key.path, key.checked([item] if inner_path in ONE_OF else item, str(path))
        else:
            key = _known(name, str(path))
            yield key.path, key.checked(value, str(path))


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    variables = _variables(environ)
    for name in list(variables):
        if named := _named_by_file(name):
            if named in variables:
                raise ConfigError(f"{named} and {name} are both set; unset one of them")
            variables[named] = (_contents(name, variables.pop(name)[0]), name)
    for variable, path in SHORT_NAMES.items():
        if variable in variables:
            text, source = variables[variable]
            key = ALL[path]
            # A secret may hold a comma, so the short name is one secret and never a list.
            yield path, key.checked([text], source) if key.secret else key.read(text, source)
    for variable, (text, source) in variables.items():
        if not variable.startswith(_PREFIX) or variable in SHORT_NAMES:
            continue
        if "__" in variable:
            yield _read(_path_of(variable), text, source)
        else:
            _refuse_misspelt(variable)


def _variables(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what may set a key, with the name that it came by: neither empty ones nor those of a container platform.

    An env file that begins with a byte order mark has it in the name of its first variable.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, text in environ.items():
        variable, value = name.removeprefix(_BOM), text.removeprefix(_BOM)
        if value and not _is_of_kubernetes(variable, value):
            found[variable] = (value, variable)
    return found


def _is_of_kubernetes(variable: str, value: str) -> bool:
    """Whether Kubernetes or a Docker link made it, which name a Service's address after the Service.

    For a Service `api` that is `API_PORT=tcp://10.0.0.1:80`, for one `realtime` also `REALTIME_SERVICE_HOST`.
    """
    if variable in _PORTS:
        return bool(_SERVICE_URL.match(value))
    if not variable.startswith(_PREFIX) or "__" in variable:
        return False
    return bool(_SERVICE_NAME.search(variable)) or (variable.endswith("_PORT") and bool(_SERVICE_URL.match(value)))


def overlooked(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each variable that looks like one of ours and sets nothing.

    Args:
        environ: the environment; None takes that of the process.
    """
    environ = os.environ if environ is None else environ
    lines: list[str] = []
    for name, value in environ.items():
        variable = name.removeprefix(_BOM)
        if variable in _PORTS and _is_of_kubernetes(variable, value):
            key = ALL[SHORT_NAMES[variable]]
            lines.append(
                f"{variable} = {value!r} is of Kubernetes, for a Service of that name, and sets no port; rename the "
                f"Service, set enableServiceLinks: false, or set {key.variable}"
            )
        elif value and variable.startswith(_PREFIX) and not _sets_something(variable, value):
            lines.append(f"{variable} matches no key and is ignored; the nearest is {_nearest(variable)}")
    return lines


def _sets_something(variable: str, value: str) -> bool:
    return (
        variable in SHORT_NAMES
        or variable in _OTHERS
        or "__" in variable
        or _named_by_file(variable) is not None
        or _is_of_kubernetes(variable, value)
    )


def _nearest(variable: str) -> str:
    names = [*(key.variable for key in ALL.values()), *SHORT_NAMES, *_OTHERS]
    # A single underscore between section and key is the usual slip.
    joined = {name.replace("__", "_"): name for name in names if name.startswith(_PREFIX)}
    return joined[difflib.get_close_matches(variable, joined, n=1, cutoff=0.0)[0]]


def _path_of(variable: str) -> str:
    return variable.removeprefix(_PREFIX).lower().replace("__", ".", 1)


def _named_by_file(variable: str) -> str | None:
    """Return the variable whose value is in the file that `variable` names; None where it names none."""
    named = variable.removesuffix(_FILE_SUFFIX)
    if named == variable:
        return None
    if named in SHORT_NAMES:
        return named
    is_long = variable.startswith(_PREFIX) and "__" in variable and _path_of(variable) not in ALL
    return named if is_long else None


def _contents(variable: str, path: str) -> str:
    """Return the text of a file that holds one value, as Docker and Kubernetes hand secrets over."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        text = content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"{variable} names {path!r}, which cannot be read: {error.strerror}; correct it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{variable} names {path!r}, which is not UTF-8; save it as such") from error
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError(f"{variable} names {path!r}, which has more than {_FILE_BYTES_MAX} bytes; name another file")
    if not text:
        raise ConfigError(f"{variable} names {path!r}, which is empty; write the value into it")
    return text


def _read(path: str, text: str, source: str) -> tuple[str, object]:
    """Return the key and the value that `text` sets it to."""
    if path in ONE_OF:
        key = _known(ONE_OF[path], source)
        return key.path, key.checked([text], source)
    key = _known(path, source)
    return key.path, key.read(text, source)


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
        yield _read(path.strip(), text.strip(), "--set")


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
    auth = settings.auth
    least = max((_SECRET_BYTES_OF.get(name, 0) for name in auth.algorithms), default=0)
    for path, secrets, bytes_min in (
        ("auth.secrets", auth.secrets, max(least, _SECRET_BYTES_MIN)),
        ("auth.service_keys", auth.service_keys, _SECRET_BYTES_MIN),
    ):
        for place, secret in enumerate(secrets):
            if (size := len(secret.encode())) < bytes_min:
                raise ConfigError(
                    f"{path}[{place}] holds {size} bytes; use at least {bytes_min}: openssl rand -base64 48"
                )
    _check_algorithms(auth)
    limits = settings.limits
    for above in parts_above(limits, _PARTS):
        raise ConfigError(f"{above}; raise the second")
    if settings.api.enabled and settings.server.port == settings.api.port != 0 and not settings.one_port:
        both = f"server.port and api.port are both {settings.api.port}"
        raise ConfigError(f"{both} on two hosts; set server.host and api.host to one, or API_PORT to another port")
    drain = settings.drain
    spent_s = drain.notice_s + (drain.window_s if drain.successor else 0)
    if spent_s >= drain.grace_s:
        what = "drain.notice_s and drain.window_s" if drain.successor else "drain.notice_s"
        raise ConfigError(f"drain.grace_s = {drain.grace_s:g} does not outlast {what} = {spent_s:g}; raise the first")
    if settings.api.url is not None:
        _check_api(settings, settings.api.url)


def parts_above(limits: LimitSettings, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield which keys of `[limits]` are above those that should be as large, by pairs."""
    for part, whole in pairs:
        low, high = getattr(limits, part), getattr(limits, whole)
        if low > high:
            yield f"limits.{part} = {low} is above limits.{whole} = {high}"


def _check_algorithms(auth: AuthSettings) -> None:
    """Check that there can be a token for each way of checking one."""
    public = [name for name in auth.algorithms if not name.startswith("HS")]
    others = [key for key in ("public_keys", "jwks_url") if getattr(auth, key)]
    listed = f"auth.algorithms = {json.dumps(auth.algorithms)}"
    if others and not public:
        raise ConfigError(f"auth.{others[0]} is set, but {listed} takes no public key; add RS256, ES256 or EdDSA")
    if public and not others:
        raise ConfigError(f"{listed}, but nothing says which key; set auth.public_keys or auth.jwks_url")
    if auth.secrets and auth.signing_algorithm is None:
        raise ConfigError(f"auth.secrets is set, but {listed} uses none; add HS256, or take the secrets out")
    if auth.jwks_url is not None:
        _check_jwks_url(auth.jwks_url)


def _check_jwks_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        fine = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable() and " " not in url
    except ValueError as error:
        raise ConfigError(f"auth.jwks_url = {url!r} is not an address: {error}; use https://host/path") from error
    if not fine or not secure:
        raise ConfigError(f"auth.jwks_url = {url!r} is not allowed; use https, or http on a loopback address")
    if parts.username is not None or parts.fragment:
        raise ConfigError("auth.jwks_url has a user or a fragment; leave them out")


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
