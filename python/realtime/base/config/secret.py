"""The secrets that tokens are signed with, and the rule that a generated one never leaves the machine.

Without `auth.secrets` the first start writes a random secret to `secret` in the data directory, readable by its owner
only, and later starts read it. Such a server, and its HTTP listener, bind to loopback addresses only: whoever can read
that file could sign in as anybody, and the playground hands tokens out.

Called by `server`, which hands the secrets to the engine, and by `cli`, which signs tokens with the first one.
"""

import contextlib
import ipaddress
import logging
import os
import secrets
from pathlib import Path

from msgspec import Struct

from realtime.base.config.settings import ConfigError, Settings

_SECRET_BYTES_MIN = 32

log = logging.getLogger("realtime")


class Keys(Struct, frozen=True):
    """The secrets of a server, the signing one first, and whether it made them itself.

    Without any, tokens are signed by others alone.
    """

    secrets: tuple[str, ...]
    generated: bool

    def __repr__(self) -> str:
        """Leave the secrets out: this ends up in tracebacks."""
        return f"Keys({len(self.secrets)} secrets, generated={self.generated})"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only: localhost, 127.0.0.0/8 or ::1."""
    return host == "localhost" or is_loopback_address(host.strip("[]"))


def is_loopback_address(text: str) -> bool:
    """Whether a text is an IP address of this machine alone, in 127.0.0.0/8 (as IPv6 too) or ::1."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL: an IPv6 address in brackets, whether it was given with them or without."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def keys_of(settings: Settings, *, create: bool = True) -> Keys:
    """Return the secrets of `settings`; where none is configured, the one that is kept in the data directory.

    Args:
        settings: names the secrets, the data directory and the addresses.
        create: whether to make the kept one where it is missing. A client must not: no server would know it.

    Raises:
        ConfigError: a listener is not on loopback without a configured secret, or the file cannot be used.
    """
    if settings.auth.secrets or settings.auth.signing_algorithm is None:
        return Keys(settings.auth.secrets, generated=False)
    _refuse_other_addresses(settings)
    data_dir = Path(settings.data_dir)
    if not create and not (data_dir / "secret").exists():
        raise ConfigError(
            f"there is no secret in {data_dir}: no server has run there; set REALTIME_DATA_DIR to the data directory "
            "of the server, or give a token by --token"
        )
    return Keys((_kept_secret(data_dir),), generated=True)


def _refuse_other_addresses(settings: Settings) -> None:
    listeners = [("server.host", settings.server.host)]
    if settings.api.enabled:
        listeners.append(("api.host", settings.api.host))
    for key, host in listeners:
        if not is_loopback(host):
            raise ConfigError(
                f"{key} = {host!r} is not a loopback address and no secret is configured; set REALTIME_JWT_SECRET to "
                f"at least {_SECRET_BYTES_MIN} bytes, or listen on 127.0.0.1"
            )


def _kept_secret(data_dir: Path) -> str:
    path = data_dir / "secret"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _write_new(path)
        _check_mode(path, path.stat())
        secret = path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError:
        secret = ""
    except OSError as error:
        raise ConfigError(
            f"data_dir = {str(data_dir)!r} cannot be used: {error.strerror}: {error.filename or path}; make it "
            "writable, or set another one by REALTIME_DATA_DIR"
        ) from error
    if not secret.isascii() or len(secret) < _SECRET_BYTES_MIN:
        raise ConfigError(
            f"{path} holds fewer than {_SECRET_BYTES_MIN} bytes; remove it, and the next start makes a new one"
        )
    return secret


def _check_mode(path: Path, status: os.stat_result) -> None:
    """Refuse a secret that others can read.

    A volume of a container platform (`fsGroup`) gives its files to a group of the process's, and sets them readable
    by it at each mount: that is told and not refused.
    """
    own_groups = {os.getegid(), *os.getgroups()}
    if status.st_mode & 0o007 or (status.st_mode & 0o070 and status.st_gid not in own_groups):
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    if status.st_mode & 0o070:
        log.warning("%s can be read by the group %d; run chmod 600 unless its volume set that", path, status.st_gid)


def _write_new(path: Path) -> None:
    """Write a new secret, or fail with FileExistsError where there is one already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        # An umask may have taken the owner's own bits.
        os.fchmod(descriptor, 0o600)
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
