"""The command line: `serve`, `check`, `backup`, `restore`, `token`, `bench`, and clients: `sub`, `pub`, `chat`.

Every way of failing that the user can do something about ends here, as one line on stderr and exit code 2, without a
traceback: a broken configuration, an app that cannot be imported, a port in use, a log that cannot be read, a server
that does not answer. Anything else is a bug and shows its traceback.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from realtime._engine import EngineError
from realtime._engine import backup as backup_log
from realtime._engine import restore as restore_log
from realtime.base.config import ConfigError, Settings, bracketed, keys_of, load, origins, overlooked
from realtime.cli import check as checking
from realtime.cli import explain as explaining
from realtime.cli import loading, terminal
from realtime.cli import reload as reloading
from realtime.cli.serving import run
from realtime.cli.target import load_app, watched
from realtime.client import ClientError
from realtime.identity import token_for
from realtime.identity.auth import RIGHTS
from realtime.serving import stdio

app = typer.Typer(
    name="realtime",
    help="A real-time WebSocket edge. Start with: realtime serve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of ./realtime.toml.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one key; may be given many times.")
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="REALTIME_URL", help="WebSocket endpoint; the configured one if not given."),
]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="REALTIME_TOKEN", help="Who you are; or give a name by --user.")
]
User = Annotated[
    str | None, typer.Option("--user", help="Sign a token for this user with the secret of the configuration.")
]

_TTL = re.compile(r"([0-9]+)([smhd]?)")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SHOWN_CHARS_MAX = 64 * 1024
_BROKEN_PIPE = 128 + signal.SIGPIPE
_TTL_S_MAX = 10 * 365 * 86_400


def _shown(shown: str) -> str:
    """Return a token as it was given; `-` reads one from stdin, so that it is in no list of processes."""
    return sys.stdin.read(_SHOWN_CHARS_MAX).strip() if shown == "-" else shown


def main() -> None:
    """Run the command line of this process."""
    stdio.prepare()
    try:
        app(prog_name="realtime")
    except BrokenPipeError:
        # As where `head` has seen enough.
        stdio.silence()
        sys.exit(_BROKEN_PIPE)
    except EngineError as error:
        _fail(str(error.args[0]))
    except (ConfigError, ClientError) as error:
        _fail(str(error))


def _fail(line: str) -> None:
    sys.stderr.write(f"realtime: {line}\n")
    sys.exit(2)


@app.command()
def serve(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[APP]", help="module:app or path.py[:app]; the built-in conversations if not given."),
    ] = None,
    *,
    config: Config = None,
    sets: Sets = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a source changes.")] = False,
) -> None:
    """Serve an app until SIGTERM or SIGINT."""
    settings = load(config, sets or ())
    if reload:
        arguments = [argument for argument in sys.argv[1:] if argument != "--reload"]
        raise typer.Exit(reloading.supervise([sys.executable, "-m", "realtime", *arguments], watched(target)))
    raise typer.Exit(run(load_app(target), settings, lambda: load(config, sets or ())))


@app.command()
def check(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[APP]", help="As for serve: its rules are looked at, too."),
    ] = None,
    *,
    config: Config = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Explain the configuration in force, and what will not work: exit code 2 where a start would fail."""
    settings = load(config, sets or ())
    report = checking.report(settings, origins(config, sets or ()), load_app(target), overlooked())
    typer.echo(report.json() if as_json else report.text())
    raise typer.Exit(2 if report.errors else 0)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")],
    *,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Copy the log into a file, also while a server runs."""
    (channels, events, size) = backup_log(Path(load(config, sets or ()).data_dir), file)
    typer.echo(f"{file}: {events} events of {channels} channels, {size} bytes")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that realtime backup wrote.")],
    *,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Put a backup in the place of the log, while no server runs."""
    data_dir = Path(load(config, sets or ()).data_dir)
    (channels, events, size), kept = restore_log(file, data_dir)
    typer.echo(f"{data_dir}: {events} events of {channels} channels, {size} bytes")
    if kept is not None:
        typer.echo(f"the log of before is kept as {kept}")


@app.command()
def token(
    *,
    user: Annotated[str | None, typer.Option("--user", help="User to sign a token for.")] = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="TOKEN", help="Say what a token holds and why it is refused; - reads it."),
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channels", metavar="PATTERN", help="Channels that it grants, all rights or PATTERN=right,right."
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Further channels.")] = None,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it holds: 90s, 30m, 1h, 7d.")] = "1h",
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Print a token, or explain one: exit code 1 where it would be refused."""
    if explain is not None:
        told = explaining.explanation(_shown(explain), load(config, sets or ()))
        typer.echo(told.text)
        raise typer.Exit(1 if told.refused else 0)
    if user is None:
        raise ConfigError("--user is missing; give the user to sign a token for, or a token by --explain")
    if more and not channels:
        raise ConfigError(f"{more[0]!r} stands alone; write --channels {more[0]}")
    patterns = [*(channels or []), *(more or [])]
    settings = load(config, sets or ())
    typer.echo(_signed(settings, user, patterns, _seconds(ttl), create=True))


@app.command()
def sub(
    channel: Annotated[str, typer.Argument(help="The whole name, such as conversation:42.")],
    *,
    last: Annotated[
        int | None, typer.Option("--last", min=1, max=1000, help="Events of the past to print first.")
    ] = None,
    url: Url = None,
    token: TokenOption = None,
    user: User = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Print the events of a channel, one line of JSON each."""
    address, bearer = _who(url, token, user, config, sets)
    _talk(terminal.subscribe(address, bearer, channel, last))


@app.command()
def pub(
    channel: Annotated[str, typer.Argument(help="The whole name, such as poll:7.")],
    event: Annotated[str, typer.Argument(help="The event's name.")],
    data: Annotated[str, typer.Argument(metavar="JSON", help="The event's data.")],
    *,
    url: Url = None,
    token: TokenOption = None,
    user: User = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Publish one event to a channel."""
    try:
        value: Any = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{data!r} is not JSON: {error}; a text is written '\"text\"'") from error
    address, bearer = _who(url, token, user, config, sets)
    _talk(terminal.publish(address, bearer, channel, event, value))


@app.command()
def chat(
    conversation: Annotated[str, typer.Argument(help="The conversation, such as lobby.")],
    *,
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="Messages of the past to show first.")] = 20,
    url: Url = None,
    token: TokenOption = None,
    user: User = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Talk in a conversation: a line is sent by Enter, Ctrl-D leaves."""
    address, bearer = _who(url, token, user, config, sets)
    _talk(terminal.chat(address, bearer, conversation, last))


@app.command()
def bench(
    *,
    url: Url = None,
    token: TokenOption = None,
    user: Annotated[
        str | None, typer.Option("--user", help="Sign one token for this user; without, for a thousand users.")
    ] = None,
    workload: Annotated[
        str,
        typer.Option(
            "--workload",
            help="w1, w1b: one channel; w2, w6: many; w3: ping; w5: compressed; w8: reconnects; send, idle, churn.",
        ),
    ] = "w2",
    connections: Annotated[int | None, typer.Option("--connections", help="Clients, all open at once.")] = None,
    channels: Annotated[int | None, typer.Option("--channels", help="Channels; each has one publisher.")] = None,
    members: Annotated[
        int | None, typer.Option("--members", help="Clients of each channel, in place of one of the two above.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Messages a second in all; 0 sends when the last has arrived. For w2 1000."),
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", help="With --rate 0: messages under way in each channel.")
    ] = None,
    payload: Annotated[int | None, typer.Option("--payload", metavar="BYTES", help="Size of an event.")] = None,
    duration: Annotated[float, typer.Option("--duration", metavar="SECONDS", help="Time that is measured.")] = 10,
    warmup: Annotated[float, typer.Option("--warmup", metavar="SECONDS", help="Time before it.")] = 1,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="For opening all, and for what does not arrive.")
    ] = 30,
    compress: Annotated[
        bool, typer.Option("--compress", help="Ask for permessage-deflate, and fail where it is not given.")
    ] = False,
    message_type: Annotated[
        str, typer.Option("--type", help="Type of the messages that publish: a handler's, in place of publish.")
    ] = "publish",
    prefix: Annotated[str, typer.Option("--prefix", help="How the names of the channels begin.")] = "conversation:w-",
    pids: Annotated[
        list[int] | None, typer.Option("--pid", help="A process of the server on this machine, for CPU and memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Load a server and count every delivery: exit code 1 where one is lost, doubled, out of order or refused."""
    settings = load(config, sets or ())
    if rate is None and in_flight is None and workload == "w2":
        # What a server with its default limits takes, so that the first run needs no option at all.
        rate = 1_000
    given = {
        "--url": url or _address(settings),
        "--workload": workload,
        "--connections": connections,
        "--channels": channels,
        "--members": members,
        "--rate": rate,
        "--in-flight": in_flight,
        "--payload": payload,
        "--duration": duration,
        "--warmup": warmup,
        "--timeout": timeout,
        "--type": message_type,
        "--prefix": prefix,
    }
    arguments = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    arguments += [text for pid in pids or () for text in ("--pid", str(pid))]
    if compress:
        arguments.append("--compress")
    if token and not user:
        tokens = [token]
    else:
        family, _, _ = prefix.rpartition(":")
        pattern = f"{family}:*" if family else "*"
        names = [user] if user else [f"bench-{index}" for index in range(loading.USERS)]
        tokens = [_signed(settings, name, [pattern], 12 * 3600, create=False) for name in names]
    raise typer.Exit(loading.run(arguments, tokens, as_json=as_json))


def _talk(client: Coroutine[Any, Any, None]) -> None:
    """Run a terminal client; Ctrl-C is the plain way to end one, and not worth a word."""
    try:
        asyncio.run(client)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _who(
    url: str | None, token: str | None, user: str | None, config: Path | None, sets: list[str] | None
) -> tuple[str, str]:
    """Return where to connect and with which token: the one given, or one signed for a name."""
    settings = load(config, sets or ())
    address = url or _address(settings)
    if token and not user:
        return address, token
    name = user or os.environ.get("USER") or "me"
    return address, _signed(settings, name, [], 12 * 3600, create=False)


def _address(settings: Settings) -> str:
    host = settings.server.host
    return f"ws://{bracketed(host)}:{settings.server.port}/ws"


def _signed(settings: Settings, user: str, patterns: list[str], ttl_s: int, *, create: bool) -> str:
    keys = keys_of(settings, create=create)
    grants: dict[str, Sequence[str]] = {}
    for text in patterns:
        pattern, _, rights = text.partition("=")
        grants[pattern] = rights.split(",") if rights else RIGHTS
    try:
        return token_for(user, settings.auth, keys, ttl_s=ttl_s, channels=grants or None)
    except ValueError as error:
        raise ConfigError(f"--channels: {error}") from error


def _seconds(text: str) -> int:
    match = _TTL.fullmatch(text.strip())
    seconds = int(match[1]) * _UNIT_S[match[2]] if match else 0
    if not 1 <= seconds <= _TTL_S_MAX:
        raise ConfigError(f"--ttl {text!r} is not a duration; use 90s, 30m, 1h or 7d, at most ten years")
    return seconds
