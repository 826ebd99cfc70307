"""Memory by purpose: what the process holds for clients, what bounds each part, and the sum that a host must have.

`PURPOSES` is the one table of it. `/metrics` and `/ready` show what is held by it, `realtime check` prints the budget
that follows from the configuration. Each purpose has rows in docs/topics/limits.md, which lists the single collections.

Invariant: what a purpose holds is counted by whoever holds it and never passes its limit by more than one message of
each shard; but for `inboxes`, which takes whatever is committed. Called by `metrics`, `control` and `cli.check`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import msgspec
from msgspec import Struct

from realtime._engine import shard_count
from realtime.base import logs
from realtime.base.charges import Charges
from realtime.base.config import Settings, value_of
from realtime.base.descriptors import divided

CONNECTION_BYTES: Final = 1024
"""An idle connection without subscriptions, in the process; 965 were measured (docs/topics/capacity.md)."""
CONNECTION_KERNEL_BYTES: Final = 4096
"""The same in the kernel, which a container's limit counts too; 3,564 were measured."""
PROCESS_BYTES: Final = 128 * 1024 * 1024
"""The interpreter, its libraries, the engine's code and the HTTP side, warm, on one shard."""
SHARD_BYTES: Final = 4 * 1024 * 1024
"""Buffers and the stack of each further shard."""
LOG_BATCH_BYTES: Final = 2 * 8 * 1024 * 1024
"""One commit of the log, as it is stored and as it is told; what came is in `log_queue`."""
INBOX_BYTES: Final = 8 * 1024 * 1024
"""Events that wait for one shard before more are refused; the engine's `HARD_BYTES`."""
ALLOCATOR_OVERHEAD: Final = 1.25
"""What the allocator keeps for each byte that is held: size classes, and free memory between what is in use."""


class Purpose(Struct, frozen=True, kw_only=True):
    """What some of the memory is for.

    Args:
        name: label of the metrics, and first cell of a row in docs/topics/limits.md.
        held: the counter of `Commands.stats()` that tells how much there is.
        each: bytes that one of `held` stands for.
        keys: keys of the configuration that bound it; the first is the bytes that it may hold, where `limit` is none.
        limit: these bytes under a configuration, where no key says them alone.
        refused: counters of `Commands.stats()` of what was refused, closed, dropped or held back for the bound.
        counted: tells bytes and refusals of what is the whole process's; then neither `held` nor `refused` is.
        share: one user may hold one part in so many, where Python holds it and `Ledger` counts it; 0 for the engine's.
    """

    name: str
    held: str = ""
    each: int = 1
    keys: tuple[str, ...]
    limit: Callable[[Settings], int] | None = None
    refused: tuple[str, ...] = ()
    counted: Callable[[], tuple[int, int]] | None = None
    share: int = 0

    def bytes_max(self, settings: Settings) -> int:
        """Return the bytes that it may hold under a configuration."""
        if self.limit is not None:
            return self.limit(settings)
        return cast("int", value_of(settings, self.keys[0]))


PURPOSES: Final = (
    Purpose(
        name="connections",
        held="connections",
        each=CONNECTION_BYTES,
        keys=("limits.connections_max",),
        limit=lambda settings: divided(settings).sockets * CONNECTION_BYTES,
    ),
    Purpose(
        name="heads",
        held="heads_bytes",
        keys=("limits.heads_bytes_max", "limits.handshakes_pending_max"),
        refused=("evicted_number", "evicted_bytes", "evicted_sockets"),
    ),
    Purpose(
        name="identities",
        held="identities_bytes",
        keys=("limits.identities_bytes_max",),
        refused=("identities_refused",),
    ),
    Purpose(
        name="unfinished",
        held="unfinished_bytes",
        keys=("limits.unfinished_bytes_max",),
        refused=("unfinished_refused",),
    ),
    Purpose(
        name="events",
        held="events_bytes",
        keys=("limits.events_waiting_bytes_max", "limits.user_waiting_bytes_max"),
        refused=("events_pauses", "user_pauses", "events_refused"),
    ),
    Purpose(
        name="commands",
        held="commands_bytes",
        keys=("limits.commands_waiting_bytes_max",),
        refused=("pages_refused",),
    ),
    Purpose(
        name="inboxes",
        held="inboxes_bytes",
        # Beside these, what is committed goes in: it was of `log_queue` before, which is charged no more.
        keys=("server.shards", "limits.log_queue_bytes_max"),
        limit=lambda settings: shards(settings) * INBOX_BYTES,
        refused=("inboxes_pauses", "inboxes_refused"),
    ),
    Purpose(
        name="outboxes",
        held="outbox_bytes",
        keys=("limits.outboxes_bytes_max",),
        # A quarter more is what those may still hold that were closed for it.
        limit=lambda settings: settings.limits.outboxes_bytes_max * 5 // 4,
        refused=("closed_slow", "dropped_slow", "dropped_budget"),
    ),
    Purpose(
        name="rings",
        held="rings_bytes",
        keys=("limits.rings_bytes_max", "limits.ring_bytes_max"),
        refused=("ring_events_evicted",),
    ),
    Purpose(
        name="log_queue",
        held="log_queue_bytes",
        keys=("limits.log_queue_bytes_max",),
        refused=("log_queue_refused",),
    ),
    Purpose(
        name="channels",
        held="channels_bytes",
        keys=("limits.channels_bytes_max", "history.idle_s"),
        refused=("channels_refused",),
    ),
    Purpose(
        name="retained",
        held="retained_bytes",
        keys=("limits.retained_bytes_max",),
        refused=("retained_refused",),
    ),
    Purpose(
        name="subscriptions",
        held="members_bytes",
        keys=("limits.members_bytes_max", "limits.channels_per_user_max"),
        refused=("members_refused",),
    ),
    Purpose(
        name="accounts",
        held="accounts_bytes",
        keys=("limits.accounts_bytes_max",),
        refused=("accounts_refused",),
    ),
    Purpose(
        name="revocations",
        held="revocations_bytes",
        # In the engine, and the same for HTTP.
        each=2,
        keys=("auth.revocations_bytes_max",),
        refused=("revocations_dropped",),
    ),
    Purpose(
        name="http",
        held="http_bytes",
        keys=("api.bytes_max",),
        limit=lambda settings: settings.api.bytes_max if settings.api.enabled else 0,
        refused=("http_ended_for_bytes",),
    ),
    Purpose(
        name="tickets",
        keys=("auth.tickets_bytes_max", "auth.tickets_per_user_max"),
        share=16,
    ),
    Purpose(
        name="hook_ids",
        keys=("api.hook_ids_bytes_max",),
        share=1,
    ),
    Purpose(
        name="message_ids",
        keys=("api.message_ids_bytes_max",),
        limit=lambda settings: settings.api.message_ids_bytes_max if settings.api.url else 0,
        share=16,
    ),
    Purpose(
        name="listeners",
        keys=("handlers.listener_bytes_max", "handlers.listener_events_max"),
        share=1,
    ),
    Purpose(
        name="api_requests",
        keys=("api.requests_bytes_max", "api.requests_per_user_max"),
        limit=lambda settings: settings.api.requests_bytes_max if settings.api.url else 0,
        share=16,
    ),
    Purpose(
        name="api_answers",
        keys=("api.requests_max", "limits.publication_bytes_max"),
        limit=lambda settings: (
            settings.api.requests_max * settings.limits.publication_bytes_max if settings.api.url else 0
        ),
        share=1,
    ),
    Purpose(
        name="answers",
        keys=("api.answers_bytes_max",),
        limit=lambda settings: settings.api.answers_bytes_max if settings.api.url else 0,
        share=16,
    ),
    Purpose(
        name="leaving",
        keys=("presence.leaving_bytes_max",),
        # No part for each: above the limit the grace of the one who holds most ends.
        share=1,
    ),
    Purpose(
        name="gone",
        keys=("presence.leaving_bytes_max",),
        limit=lambda settings: settings.presence.leaving_bytes_max // 2,
        # No part for each: the first is forgotten first.
        share=1,
    ),
    Purpose(
        name="bodies",
        keys=("api.bodies_bytes_max",),
        # No part for each: above the limit the one who holds most gives way (`api.collecting`).
        share=1,
    ),
    Purpose(
        name="process_log",
        keys=("log.connections_per_s", "log.tracebacks_per_s"),
        limit=lambda settings: logs.LINES_BYTES_MAX,  # noqa: ARG005 -- no key says them
        counted=logs.waiting,
    ),
)


class Ledger:
    """The bytes of Python's collections, by purpose. One for each server."""

    def __init__(self, settings: Settings) -> None:
        limits = ((purpose, purpose.bytes_max(settings)) for purpose in PURPOSES if purpose.share)
        self._charges = {purpose.name: Charges(limit, max(1, limit // purpose.share)) for purpose, limit in limits}

    def of(self, purpose: str) -> Charges:
        """Return the charges of a purpose of Python's."""
        return self._charges[purpose]


class Usage(Struct, frozen=True):
    """What one purpose holds now, what it may hold, and how often the bound was in the way."""

    purpose: str
    bytes: int
    bytes_max: int
    refused: int


class Memory(Struct, frozen=True, rename="camel"):
    """The bytes of all purposes together, and what they may be."""

    held_bytes: int
    limit_bytes: int


def usages(stats: bytes, ledger: Ledger, settings: Settings) -> list[Usage]:
    """Return what each purpose holds, by `Commands.stats()` and by Python's own charges."""
    counters = msgspec.json.decode(stats, type=dict[str, object])
    return [_usage(purpose, purpose.bytes_max(settings), counters, ledger) for purpose in PURPOSES]


def _usage(purpose: Purpose, limit: int, counters: Mapping[str, object], ledger: Ledger) -> Usage:
    if purpose.share:
        charges = ledger.of(purpose.name)
        return Usage(purpose.name, charges.bytes, limit, charges.refused)
    if purpose.counted is not None:
        held, refused = purpose.counted()
        return Usage(purpose.name, held, limit, refused)
    held = _counter(counters, purpose.held) * purpose.each
    return Usage(purpose.name, held, limit, sum(_counter(counters, name) for name in purpose.refused))


def summed(found: list[Usage]) -> Memory:
    """Return the one figure of what is held."""
    return Memory(sum(usage.bytes for usage in found), sum(usage.bytes_max for usage in found))


def budget(settings: Settings) -> dict[str, int]:
    """Return the bytes that the process may need, by purpose, with what it takes itself and the allocator's part."""
    parts = {purpose.name: purpose.bytes_max(settings) for purpose in PURPOSES}
    overhead = round(sum(parts.values()) * (ALLOCATOR_OVERHEAD - 1))
    process = PROCESS_BYTES + LOG_BATCH_BYTES + (shards(settings) - 1) * SHARD_BYTES
    return {"process": process, **parts, "allocator": overhead}


def budget_lines(settings: Settings) -> Iterator[str]:
    """Yield the budget for people, a line a purpose and the sum; what is switched off has no line."""
    keys = {purpose.name: ", ".join(purpose.keys) for purpose in PURPOSES}
    parts = {name: size for name, size in budget(settings).items() if size}
    for name, size in (*parts.items(), ("all", sum(parts.values()))):
        yield f"{name:{max(map(len, parts))}}  {_mib(size):>10}  {keys.get(name, '')}".rstrip()
    yield f"and {_mib(divided(settings).sockets * CONNECTION_KERNEL_BYTES)} of the kernel's for connections"


def machine_bytes() -> int | None:
    """Return what the process may have at most: the machine's memory, or less in a cgroup; None where nobody says."""
    found = []
    with suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return min(found, default=None)


def shards(settings: Settings) -> int:
    """Return how many shards serve."""
    return 1 if settings.engine.transport == "socketify" else shard_count(settings.server.shards)


def _counter(counters: Mapping[str, object], name: str) -> int:
    value = counters.get(name, 0)
    return value if isinstance(value, int) else 0


def _mib(size: int) -> str:
    return f"{size / (1024 * 1024):,.0f} MiB"
