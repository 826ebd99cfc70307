"""`realtime check`: what is set and by what, what follows from it, and what will not work together.

It starts nothing and makes nothing: ports are bound for a moment, the data directory's lock is tried, the app is
compiled, the engine reads its options. An error is what a start would fail by; a warning is what starts and is likely
not meant. Secrets are not shown. Called by the command line.
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, to_builtins

from realtime._engine import EngineError, flush_of
from realtime.app.app import Realtime
from realtime.base.config import (
    ALL,
    ApiSettings,
    AuthSettings,
    ConfigError,
    DrainSettings,
    HandlerSettings,
    Keys,
    Settings,
    is_loopback,
    keys_of,
    parts_above,
    value_of,
)
from realtime.base.descriptors import Descriptors, divided
from realtime.base.memory import budget, budget_lines, machine_bytes, shards
from realtime.serving import transports
from realtime.serving.options import engine_options

_PARTS: Final = (
    ("ring_bytes_max", "rings_bytes_max"),
    ("user_reads_waiting_max", "reads_waiting_max"),
    ("user_waiting_bytes_max", "events_waiting_bytes_max"),
    ("command_bytes_max", "message_bytes_max"),
)
"""Keys of `[limits]` that say nothing where the second says less."""
_GRACE_ADVICE = "handlers that take longer are cut off at a restart"


class Entry(Struct, frozen=True):
    """A key that is set to something else than its default: `value` is what is shown of it."""

    key: str
    value: Any
    default: Any
    origin: str


class Report(Struct, frozen=True):
    """What `check` found.

    Args:
        keys: what differs from the defaults.
        derived: what follows from the configuration and the machine.
        memory: bytes that the process may need, by purpose.
        memory_lines: the same for people.
        errors: why a start would fail.
        warnings: what is likely not meant.
        notes: what is right or wrong by what stands around the server.
    """

    keys: list[Entry]
    derived: dict[str, Any]
    memory: dict[str, int]
    memory_lines: list[str]
    errors: list[str]
    warnings: list[str]
    notes: list[str]

    def json(self) -> str:
        """Return it for programs."""
        return json.dumps(to_builtins(self), indent=2)

    def text(self) -> str:
        """Return it for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "Set" if self.keys else "Set: nothing; every key has its default"
        width = max((len(entry.key) for entry in self.keys), default=0)
        for entry in self.keys:
            yield f"  {entry.key:{width}}  {json.dumps(entry.value)}  from {entry.origin}"
        yield "In force"
        width = max(map(len, self.derived))
        for name, value in self.derived.items():
            yield f"  {name:{width}}  {value}"
        yield "Memory at most"
        for line in self.memory_lines:
            yield f"  {line}"
        for word, lines in (("Error", self.errors), ("Warning", self.warnings), ("Note", self.notes)):
            for line in lines:
                yield f"{word}: {line}"
        if not self.errors and not self.warnings:
            yield "Nothing stands against a start."


def report(settings: Settings, origins: Mapping[str, str], app: Realtime, overlooked: Iterable[str] = ()) -> Report:
    """Look at everything that a start would use; `overlooked` are warnings about the environment."""
    keys = [
        Entry(path, _shown(path, value), _shown(path, key.default), origins.get(path, "another key"))
        for path, key in ALL.items()
        if (value := value_of(settings, path)) != key.default
    ]
    errors = list(_errors(settings))
    who = None
    try:
        rules = app.compile(settings)
        who = rules.authenticate
        # Patterns, networks and keys are for the engine to take or refuse.
        transports.engine(settings.engine.transport, engine_options(rules, settings, _keys(settings)))
    except (ValueError, TypeError, ConfigError, EngineError) as error:
        errors.append(str(error))
    return Report(
        keys,
        _derived(settings),
        budget(settings),
        list(budget_lines(settings)),
        errors,
        [*overlooked, *_warnings(settings, asks=who is not None)],
        list(_notes(settings)),
    )


def _keys(settings: Settings) -> Keys:
    try:
        return keys_of(settings, create=False)
    except ConfigError:
        return Keys(("one that a start would make in its place",), generated=True)


def _shown(path: str, value: object) -> object:
    if not ALL[path].secret or not value:
        return value
    return f"{len(value)} hidden" if isinstance(value, tuple) else "hidden"


def _derived(settings: Settings) -> dict[str, Any]:
    descriptors = divided(settings)
    kept = Path(settings.data_dir) / "secret"
    generated = f"generated, in {kept}" if kept.exists() else f"will be generated, in {kept}"
    api = settings.api
    return {
        "WebSocket": f"{settings.server.host}:{settings.server.port}",
        "HTTP": f"{api.host}:{api.port}" if api.enabled else "off",
        "data": str(Path(settings.data_dir).resolve()),
        "secret": "configured" if settings.auth.secrets else generated,
        "shards": shards(settings),
        "sends": _sends(settings),
        "compression": _compression(settings),
        "descriptors": descriptors.all,
        "connections at most": descriptors.sockets,
        "HTTP at most": _http(settings, descriptors),
        "end": f"within {settings.drain.grace_s:g} s, clients come back over {settings.drain.window_s:g} s",
    }


def _http(settings: Settings, descriptors: Descriptors) -> str:
    if not settings.api.enabled:
        return "off"
    return f"{descriptors.http_connections} connections, {descriptors.http_requests} requests at once"


def _compression(settings: Settings) -> str:
    compression = settings.compression
    if settings.engine.transport == "socketify":
        return "none over socketify"
    if not compression.enabled:
        return "off"
    return f"messages from {compression.threshold_bytes} bytes, at level {compression.level}"


def _sends(settings: Settings) -> str:
    if settings.engine.transport == "socketify":
        return "by uWebSockets (socketify)"
    kind, failure = _flush_of(settings.engine.flush)
    if failure is not None:
        return "io_uring cannot be used here"
    return "in batches, by io_uring" if kind == "uring" else "one by one, by send()"


@cache
def _flush_of(asked: str) -> tuple[str | None, str | None]:
    """Return how sends would reach the kernel, or why they cannot so; asked once, since the engine tries a ring."""
    try:
        return flush_of(asked), None
    except EngineError as error:
        return None, str(error)


def _errors(settings: Settings) -> Iterator[str]:
    listeners = [("server", settings.server.host, settings.server.port)]
    if settings.api.enabled and not settings.one_port:
        listeners.append(("api", settings.api.host, settings.api.port))
    for section, host, port in listeners:
        if (reason := _unbindable(host, port)) is not None:
            yield f"{section}.port = {port} on {host} cannot be listened on: {reason}"
    if (failure := _flush_of(settings.engine.flush)[1]) is not None:
        yield failure
    has_kept = (Path(settings.data_dir) / "secret").exists()
    if settings.auth.secrets or has_kept:
        try:
            keys_of(settings, create=False)
        except ConfigError as error:
            yield str(error)
    else:
        for section, host, _ in listeners:
            if not is_loopback(host):
                yield f"{section}.host = {host!r} is not a loopback address and no secret is configured"
    yield from _of_data_dir(Path(settings.data_dir))


def _warnings(settings: Settings, *, asks: bool) -> Iterator[str]:
    outside = not is_loopback(settings.server.host)
    limits = settings.limits
    if settings.conversations.access == "open" and outside:
        yield "conversations.access = open on a public address: whoever has a token takes part in every conversation"
    grace_s, timeout_s = settings.drain.grace_s, settings.handlers.timeout_s
    if grace_s < timeout_s and (grace_s, timeout_s) != (DrainSettings().grace_s, HandlerSettings().timeout_s):
        yield f"drain.grace_s = {grace_s:g} is below handlers.timeout_s = {timeout_s:g}: {_GRACE_ADVICE}"
    if not limits.heartbeats:
        yield "limits.heartbeats = false: proxies cut connections that are silent for their time-out, often 60 s"
    if not limits.enabled:
        yield "limits.enabled = false: no rate limit applies; only for load tests"
    if limits.message_bytes_max < limits.publication_bytes_max:
        sizes = f"{limits.publication_bytes_max} is above limits.message_bytes_max = {limits.message_bytes_max}"
        yield f"limits.publication_bytes_max = {sizes}: clients cannot send what may be published"
    if asks and settings.auth.origins is None:
        yield "auth.origins is not set and the app has an authenticate hook: name the origins if it goes by cookies"
    for origin in settings.auth.origins or ():
        if "://" not in origin or origin.endswith("/"):
            yield f"auth.origins: no browser sends {origin!r}; write it as https://app.example.com"
    if not settings.api.enabled:
        yield "api.enabled = false: nothing answers /ready and /metrics"
    yield from _of_machine(settings)
    yield from _useless(settings)
    auth = settings.auth
    if settings.api.url is not None and not auth.secrets and (auth.public_keys or auth.jwks_url):
        who = "every message" if settings.api.token == "minted" else "messages of whoever came without a token"  # noqa: S105
        if auth.signing_algorithm is None:
            yield f"api.url is set and {_listed(auth)} sign nothing: {who} cannot be sent; set HS256 and auth.secrets"
        else:
            yield (
                f"api.url is set without auth.secrets: {who} would bring a token that is signed with the generated "
                "secret, which the API does not know; set auth.secrets to one that it does"
            )


def _of_machine(settings: Settings) -> Iterator[str]:
    """Yield what the process may not have."""
    wanted, descriptors = settings.limits.connections_max, divided(settings)
    room = descriptors.all - descriptors.kept
    if room <= 0 or wanted > room:
        who = f"limits.connections_max = {wanted}" if wanted else "one connection"
        yield (
            f"{who} needs {max(wanted, 1) + descriptors.kept} descriptors and the process may have {descriptors.all}; "
            "raise that by ulimit -n or LimitNOFILE"
        )
    api = settings.api
    for key, asked, had in (
        ("connections_max", api.connections_max, descriptors.http_connections),
        ("in_flight_max", api.in_flight_max, descriptors.http_requests),
    ):
        # What nobody has set is no surprise, and the table above shows it.
        if api.enabled and had < asked != getattr(ApiSettings(), key):
            yield (
                f"api.{key} = {asked} is more than the descriptors allow: {had} are taken, as an eighth of "
                f"{descriptors.all} is for the HTTP port; raise that by ulimit -n or LimitNOFILE"
            )
    most, needed = machine_bytes(), sum(budget(settings).values())
    if most is not None and needed > most:
        yield (
            f"the limits add up to {needed >> 20:,} MiB and there are {most >> 20:,} MiB here; lower the largest keys "
            "above, or give the process more"
        )


def _useless(settings: Settings) -> Iterator[str]:
    """Yield the limits below which nobody is served."""
    limits, api = settings.limits, settings.api
    for key, value, least, what in (
        ("limits.command_bytes_max", limits.command_bytes_max, 1 << 10, "commands of clients are too_large"),
        ("limits.identities_bytes_max", limits.identities_bytes_max, 64 << 10, "clients cannot connect"),
        ("limits.members_bytes_max", limits.members_bytes_max, 64 << 10, "clients cannot subscribe"),
        ("limits.channels_bytes_max", limits.channels_bytes_max, 1 << 20, "clients cannot subscribe"),
        ("api.bytes_max", api.bytes_max, 1 << 20, "HTTP requests are answered 503"),
        ("api.bodies_bytes_max", api.bodies_bytes_max, 1 << 20, "HTTP bodies are answered 503"),
    ):
        if value < least:
            yield f"{key} = {value} is below {least}: {what}"
    if api.enabled and api.body_timeout_s < 1:
        yield f"api.body_timeout_s = {api.body_timeout_s:g} is below 1: bodies that come behind their head are cut off"
    stored = limits.user_stored_bytes_burst or limits.user_stored_bytes_per_s
    if limits.user_stored_bytes_per_s and stored < limits.publication_bytes_max:
        yield (
            f"limits.user_stored_bytes_burst = {stored} is below limits.publication_bytes_max = "
            f"{limits.publication_bytes_max}: a longer event counts as {stored} bytes"
        )
    for above in parts_above(limits, _PARTS):
        yield f"{above}, which holds first"


def _notes(settings: Settings) -> Iterator[str]:
    if settings.engine.transport == "socketify":
        yield (
            "engine.transport = socketify: one shard on the event loop's thread (server.shards and engine.flush mean "
            "nothing), no compressed frames, an upgrade that is split over TCP segments is refused or dropped, and "
            "what uWebSockets itself holds of messages that are not complete or not taken is in no budget; "
            "docs/topics/uwebsockets.md lists everything"
        )
    if not is_loopback(settings.server.host) and not settings.server.proxies:
        yield "server.proxies is not set: if there is a proxy in front, limits by address take all clients for one"


def _listed(auth: AuthSettings) -> str:
    return f"auth.algorithms = {json.dumps(auth.algorithms)}"


def _unbindable(host: str, port: int) -> str | None:
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((name, port))
            trial.listen(1)
    except OSError as error:
        return f"{os.strerror(error.errno) if error.errno else error}; set another port or end what has it"
    return None


def _of_data_dir(data_dir: Path) -> Iterator[str]:
    place = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    if not place.is_dir():
        yield f"data_dir = {str(data_dir)!r} cannot be made: {place} is not a directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        yield f"data_dir = {str(data_dir)!r} cannot be written to by this user; set REALTIME_DATA_DIR to another"
    elif _is_locked(data_dir / "lock"):
        yield f"data_dir = {str(data_dir)!r} is in use by a running server; end it, or set another one"


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, PermissionError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
