"""The contract of the compiled engine. Python decides, the engine enforces: nothing here blocks on I/O.

Commands are buffered in call order and take effect with :meth:`Commands.submit`, which hands the whole batch over
at once, without the GIL. Events come back as plain tuples whose first item is one of the kinds below; `conn` is an
opaque integer that names one connection for its whole life and is never reused while the process lives.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeAlias, final

from typing_extensions import Buffer, disjoint_base

OPEN: Final[int]
CLOSE: Final[int]
MESSAGE: Final[int]
RAW: Final[int]
UPGRADE: Final[int]
AUTHORIZE: Final[int]
DEFERRED: Final[int]
DRAINED: Final[int]
PUBLISHED: Final[int]
HISTORY: Final[int]
FATAL: Final[int]
CARRIED: Final[int]
REFRESH: Final[int]
RENEWED: Final[int]
HEARD: Final[int]
MEMBERS: Final[int]
WARNED: Final[int]
REFUSED: Final[int]

Event: TypeAlias = tuple[object, ...]
"""One of, by its first item:

- ``(OPEN, conn: int, user: str, endpoint: int, first_version: bool, peer: str, token: str | None,
  expires_at_ms: int | None, token_id: str | None, issued_at_s: int | None, subprotocol: str | None)``: let in; its
  first frame is queued.
  `endpoint` indexes ``options["endpoints"]``; `first_version` is true where no subprotocol was offered; `token` is the
  one that the engine has checked, where ``options["tell_tokens"]`` is set; `expires_at_ms` is when the session ends
  (Unix ms); `token_id` (`jti`) and `issued_at_s` (`iat`) are the token's, or what ``accept`` was given; `subprotocol`
  is the one that was agreed to.
- ``(CLOSE, conn: int, code: int, channels: list[str], open_ms: int)``: gone for good, once per OPEN; `code` is what the
  peer sent (1006 when the socket just ended) or what the server closed with; `channels` are those it was subscribed
  to, `open_ms` how long it was open.
- ``(MESSAGE, conn: int, route: int, id: bytes | None, data: bytes | None, received_ms: int)``: a command for a handler;
  `route` indexes ``options["routes"]``; `id` is the raw JSON of the command's id, `data` the raw JSON of its data
  (None where absent), `received_ms` the wall clock in ms. One credit: answer with ``done`` or a reply that carries it.
- ``(RAW, conn: int, payload: str | bytes)``: a message on a raw endpoint. One credit.
- ``(UPGRADE, conn: int, endpoint: int, path: str, query: str, headers: list[tuple[str, str]], peer: str)``: who is
  this? Of an endpoint with ``auth = "hook"``, and of one with ``"token"`` where the query has a `ticket` or where
  ``token["ask"]`` is set and a token's public key is none of ``token["keys"]``; in both cases there is nothing else
  that says who it is. Answer with ``accept`` or ``reject``. Header names are lower case.
- ``(AUTHORIZE, conn: int, rule: int, channel: str, right: str, id: bytes | None, raw: bytes)``: a command needs a right
  that no grant gives; `rule` indexes ``options["authorize"]``; answer with ``grant`` (the command `raw` then runs) or
  an error of your own with ``send_text(..., done=1)``. One credit.
- ``(DEFERRED, conn: int, raw: bytes)``: a command that the engine runs itself but that came after others still under
  way in Python; hand it back with ``resume`` when its turn in the session's order comes. One credit.
- ``(CARRIED, conn: int, goes_on: bool)``: a command that ``grant`` or ``resume`` handed back has run, so what Python
  does now takes effect after it. With `goes_on` it came up again: it is the event of this connection just before.
- ``(REFRESH, conn: int, id: bytes | None, token: str)``: a client wants its session to go on with this token, of a key
  that the engine does not have, or on an endpoint with ``auth = "hook"``; answer with ``renew`` or an error of your own
  with ``send_text(..., done=1)``. One credit.
- ``(RENEWED, conn: int, expires_at_ms: int | None, token: str | None, token_id: str | None, issued_at_s: int | None)``:
  a session goes on with another token, by the engine or by ``renew``; the facts as in OPEN.
- ``(DRAINED, conn: int)``: everything queued for a connection that had fallen behind is with the kernel.
- ``(PUBLISHED, ticket: int, offset: int, duplicate: bool, data: bytes | None, error: str | None)``: the outcome of a
  durable publish that asked for it (``notify``). `data` is the event's data as stored; `error` a code, else None. Of a
  duplicate whose first event retention has deleted, `data` is ``{"number", "id"?}``.
- ``(HISTORY, ticket: int, events: list[bytes], offset: int, epoch: str, error: str | None)``: what ``history`` asked
  for: whole event frames as JSON, oldest first, and the channel's position.
- ``(HEARD, channel: str, frame: bytes)``: an event of a channel that a pattern in ``options["listen"]`` covers, as
  subscribers get it (JSON), once a process and in the channel's order, with subscribers or without. It counts at the
  high-water mark as a command does, but costs no credit.
- ``(MEMBERS, ticket: int, conns: list[int], total: int, parts: int)``: a part of what ``members_of`` asked for; `parts`
  of them come, in any order. `total` connections are subscribed on that shard; `conns` has at most 10,000 of them.
- ``(REFUSED, conn: int, endpoint: int, peer: str, reason: str)``: the engine refused a token, at an upgrade or at a
  refresh (then `peer` is empty); `reason` is one of ``TokenCheck.reasons``. At most 20 in a second of a shard;
  ``stats`` counts all.
- ``(WARNED, message: str)``: the engine goes on, but not as it was told to; `message` says what and why.
- ``(FATAL, message: str)``: the engine cannot go on; end the process with this line.
"""

@final
class Origins:
    """The rule of ``auth.origins``, which the shards and the HTTP API share.

    Raises ValueError with one line for an entry that no page can have as its origin.
    """

    def __new__(cls, entries: list[str] | None) -> Self: ...
    @property
    def listed(self) -> list[str] | None:
        """The entries as browsers write them; None where none were given."""

    def allows(self, origin: str, host: str | None, by_cookie: bool) -> bool:
        """Whether a page of `origin` may connect to `host`; where a cookie may say who asks, only one that is listed
        or of that very host.
        """

@final
class HttpFront:
    """A thread that takes the connections of the HTTP port, holds them to limits and passes requests on.

    `options` is JSON (docs in rust/front/src/options.rs); `listener` is the descriptor of a socket that listens and
    does not block, and is the front's from here on. Without one the front serves what comes to the port of `engine`,
    which runs, for other paths than those of its endpoints. `engine` hears of a front that cannot go on as of a failure
    of its own, and its ``stats`` tell what the front counts. Raises EngineError.
    """

    def __new__(cls, engine: Commands, options: bytes, listener: int | None = None) -> Self: ...
    def begun(self, number: int) -> None:
        """Say that the application was called for a request, by the number in its ``x-realtime-request``.

        The front gives the loop few requests that it has not begun. Never blocks; an unknown number is let pass.
        """
    def stop(self, timeout_ms: int) -> None:
        """Take no more connections, give requests under way `timeout_ms`, end the thread. Idempotent."""

def flush_of(asked: str) -> str:
    """Return what an engine with the option `flush` would send through on this machine: ``uring`` or ``send``.

    Raises EngineError with code ``options`` where `asked` is ``uring`` and io_uring cannot be used here.
    """

def shard_count(asked: int) -> int:
    """Return how many shards an engine has that is asked for so many; 0 is as many as suit this machine."""

def json_fault(text: bytes, values_max: int) -> tuple[str, str | None] | None:
    """Say what is wrong with a JSON text by the rules that messages of clients are held to, without the GIL.

    For texts that reach members by another way than a socket. Rules: UTF-8; RFC 8259; at most 64 containers nested,
    1,024 members an object and `values_max` values, no key twice, integers within ±2^53, numbers that are finite as
    doubles, no half of a surrogate pair (a socket puts U+FFFD in its place).

    Args:
        text: one JSON value; white space around it is allowed.
        values_max: `limits.message_values_max`. Each container and each thing in it counts one, a key nothing.

    Returns:
        None where nothing is; else what is wrong, and the path of the member at fault, such as `[3].data.a` (None for
        the whole text). Cost: one copy and one walk in Rust, about 1 ms for 1 MB.
    """

def json_slices(
    text: bytes, values_max: int, slice_values: int
) -> tuple[tuple[str, str | None] | None, list[tuple[int, int, int]] | None]:
    """Check a text as `json_fault` does, each element of an array by itself, and cut the array into slices.

    Args:
        text: as of `json_fault`.
        values_max: of one element; of the whole text where it is no array.
        slice_values: values after which a slice ends, with the element that reaches them.

    Returns:
        What is wrong, as of `json_fault`; and of an array without a fault the slices: first byte, byte after the last,
        and number of elements, with the commas between them. None for another text.
    """

def backup(data_dir: Path, file: Path) -> tuple[int, int, int]:
    """Copy the log of a data directory into a new file, without the GIL; a server may run on it.

    Returns:
        Channels, events and bytes of the copy.

    Raises:
        EngineError: there is no log, the file exists, or it cannot be read or written; no file is left.
    """

def restore(file: Path, data_dir: Path) -> tuple[tuple[int, int, int], str | None]:
    """Put a backup in the place of a data directory's log, without the GIL; no server may run on it.

    Returns:
        Channels, events and bytes of the backup, and where the log of before is kept (None where there was none).

    Raises:
        EngineError: a server runs there, or the file is no backup; the log is as it was.
    """

def stored(data_dir: Path, channel: str, after: int) -> list[tuple[int, bytes]] | None:
    """Return a page of what a channel of a data directory's log keeps above the offset `after`, without the GIL.

    A server may run on it. A page is offset and data of each event, oldest first, at most 1 MiB of data but one event
    at least; empty at the end. None where there is no log.

    Raises:
        EngineError: it cannot be read.
    """

def close_inherited(engine: Commands, ports: list[int], folder: str | None = None) -> None:
    """In a child that was just forked from a process with an engine: close its copies of what the engine holds there.

    Only ``close`` is called; the parent is not affected. `engine` is never freed in this process, and none of its
    methods may be called: its threads are the parent's, and its locks may be held.

    Args:
        engine: the parent's.
        ports: where the parent listens, for HTTP too; streams with such a local port are closed.
        folder: the canonical data directory; the log's files in it are closed.
    """

def load(arguments: list[str], tokens: list[str], on_progress: Callable[[str], object]) -> str:
    """Run one load against a server that speaks the protocol, on this thread and without the GIL; return its report.

    Args:
        arguments: as ``realtime-load`` takes them: ``["--url", "ws://…", "--workload", "w2", …]``.
        tokens: one for each connection, round-robin; with none, those of `arguments` are used.
        on_progress: called four times a second with JSON: `phase` (a word), `elapsed_s` in the phase, `connections`
            that are open, `messages` and `deliveries` with their rates since the last call (`…_per_s`), `p50_us`,
            `p99_us`, `faults`. A false answer ends the load early: nothing more is sent, and the report is of what
            was. What it raises ends the load at once, and is raised here.

    Returns:
        The report as a JSON object. `ok` is false where `wrong`, a list of sentences, says what was lost, doubled,
        out of order or refused.

    Raises:
        EngineError: with code ``options`` where an argument is wrong or nobody is there, ``io`` for a load ended
            before it could begin. Its line names the argument.
    """

def is_name(text: str) -> bool:
    """Whether `text` follows the grammar of names: 1 to 128 of ``A-Za-z0-9_.:@-``, the first a letter, digit or ``_``.

    Names of channels do, and names of published events. The channel of a user with a long id may be longer.
    """

def named(name: str) -> str | None:
    """Return the channel that an app or a service names: `name` itself, or a user's by ``user:`` and the raw id.

    None where there is no channel of this name.
    """

def named_by_client(name: str, user: str) -> str | None:
    """Return the channel that a client of `user` names: `name` itself, or its own by ``user:me`` or the raw id.

    None where there is no channel of this name. Rights are another question.
    """

def user_channel(user: str) -> str:
    """Return the channel of a user: ``user:{id}``, or ``user:.`` and the id's base64url where the id is no name."""

def covers(pattern: str, channel: str, user: str) -> bool:
    """Whether the pattern of a grant covers a channel for a session of `user`; False for what is no pattern."""

class EngineError(Exception):
    """The engine could not start; `args[0]` is one line that says what to do.

    `code` is one of ``port_in_use``, ``address``, ``data_dir_locked``, ``data_dir_unwritable``, ``log_corrupt``,
    ``log_newer``, ``options``, ``io``.
    """

    code: str

@disjoint_base
class Commands:
    """What Python tells the engine. Safe from any thread; ``submit`` detaches from the GIL."""

    def accept(
        self,
        conn: int,
        user: str,
        grants: bytes | None = None,
        expires_at_ms: int | None = None,
        issued_at_s: int | None = None,
        token_id: str | None = None,
    ) -> None:
        """Answer an UPGRADE: let it in, unless what it came by was revoked; that is answered by 401.

        Args:
            grants: JSON of ``{"pattern": ["subscribe", …]}``; None leaves the open rules.
            expires_at_ms: when the session ends, Unix ms; None for never.
            issued_at_s: when what it came by was issued, Unix s: what ``revoke`` of the user goes by; None counts as 0.
            token_id: what ``revoke`` of a token goes by.
        """

    def renew(
        self,
        conn: int,
        id: bytes | None,
        user: str,
        grants: bytes | None = None,
        expires_at_ms: int | None = None,
        issued_at_s: int | None = None,
        token_id: str | None = None,
    ) -> None:
        """Answer a REFRESH: the session goes on as this; the rest as for ``accept``. Gives the credit back.

        Another user than the session's is answered by ``forbidden``, what was revoked by ``unauthorized``, and the
        session stays as it was. Else `id` is acknowledged with ``{"expiresAt"}``, and subscriptions that only the
        grants before had covered are left; those by an ``authorize`` hook or by ``subscribe`` stay.
        """

    def revoke(
        self,
        user: str | None = None,
        token_id: str | None = None,
        before_s: int | None = None,
        close: bool = True,
    ) -> None:
        """Let nobody in, renew nobody any more by tokens of `user`, or by the token `token_id`, from ``submit`` on.

        Kept in memory: up to a million entries, of which the oldest goes for a newer one (``stats`` counts those).

        Args:
            user: whose tokens; of sessions that ``accept`` let in, too.
            token_id: a `jti`.
            before_s: only what was issued before so many Unix seconds; what does not say when counts as 0. None is
                whenever. Means nothing for `token_id`.
            close: whether sessions that are open end with 4500, too.

        Raises:
            ValueError: there is neither a user nor a token.
        """

    def set_identity(self, json: bytes) -> None:
        """Replace ``token`` and ``origins`` of the options for whoever comes from now on; takes effect at once.

        `json` is ``{"token": …, "origins": …}``, each null or as in the options. Sessions that are open stay.

        Raises:
            EngineError: code ``options``: the document is wrong, and the rules in force stay, or the engine has not
                started.
        """

    def reject(self, conn: int, status: int, body: str, close: int | None = None, wait_ms: int | None = None) -> None:
        """Answer an UPGRADE with an HTTP status (401, 403, 429, 503); a `realtime.v1` client gets the close code.

        Args:
            close: the close code in place of the one that stands for `status`.
            wait_ms: milliseconds after which the client may come back, the reason of a close with 4005; None spreads
                clients over 1 to 5 s.
        """

    def send_text(self, conn: int, payload: str | bytes, done: int = 0) -> None:
        """Queue one text message (`bytes` must be UTF-8) to one connection; `done` credits come back with it."""

    def send_binary(self, conn: int, payload: bytes, done: int = 0) -> None:
        """Queue one binary message to one connection; `done` credits come back with it."""

    def send_many(self, conns: list[int], payload: bytes, key: tuple[str, str] | None = None) -> None:
        """Queue one text message, encoded once, to many connections; unknown ones are passed over.

        Volatile, or with a `key` (the event's type, and a key within it) replaced by a newer one for slow readers.
        """

    def send_all(self, payload: bytes, key: tuple[str, str] | None = None) -> None:
        """Queue one text message to every open connection of the `json` endpoints; `key` as for `send_many`."""

    def presence_mode(self, users: list[str] | None) -> None:
        """Say who is told of whom: None, those who share a channel; else everybody of everybody: `users` are online.

        Every open connection of the `json` endpoints that speaks `realtime.v1` gets a `presence_mode` event, and each
        that opens later one right behind its first frame.
        """

    def presence_change(self, user: str, is_online: bool) -> None:
        """Say that a user came or went, just before everybody is told of it by `send_all`."""

    def close(self, conn: int, code: int, reason: str = "") -> None:
        """Close one connection; its queued whole frames behind a partly written one are dropped."""

    def grant(self, conn: int, channel: str, rights: list[str], raw: bytes) -> None:
        """Answer an AUTHORIZE: give the session `rights` on exactly `channel`, then run the command `raw`."""

    def resume(self, conn: int, raw: bytes) -> None:
        """Hand a DEFERRED command back; it runs and gives its credit back itself."""

    def subscribe(self, conn: int, channel: str) -> None:
        """Make the connection a member, as if it had been granted and had asked; it gets the confirmation."""

    def unsubscribe(self, conn: int, channel: str, code: str, retryable: bool) -> None:
        """Take a subscription away; the client is told by ``unsubscribed`` with `code`."""

    def publish(
        self,
        channel: str,
        event: str,
        data: bytes,
        user: str | None = None,
        key: str | None = None,
        dedupe: str | None = None,
        number: bool = False,
        notify: bool = False,
        request: str | None = None,
        amends: int | None = None,
        replacement: bytes | None = None,
        erases: bool = False,
    ) -> int:
        """Queue an event of a channel and return its ticket; the channel's policy decides volatile or durable.

        Args:
            data: JSON of the event's data (an object where `number` is set).
            user: becomes the event's `userId`.
            key: class `latest` under this key (volatile channels only).
            dedupe: a durable event of the same channel, user and key is stored once and answered with the first.
            number: the offset becomes the member `number` of `data`.
            notify: a PUBLISHED event with this ticket follows (durable channels only).
            request: becomes the event's `requestId`, also when it is replayed.
            amends: the offset of an earlier event of the channel that this one is about (durable channels only). The
                outcome is the error ``not_found`` where it was never there or is kept no longer.
            replacement: JSON that the data of the amended event becomes, in log and memory, together with this event.
            erases: the data of all earlier events that amended the same one becomes this event's data.
        """

    def reply_with(self, ticket: int, conn: int, id: bytes | None, failure: str | None = None) -> bool:
        """Let the engine answer command `id` by `ack` or `error` from the outcome of a publish; gives one credit back.

        `failure` is the message of that `error`. Clears `notify`. False where that publish was submitted already: the
        caller then answers by itself.
        """

    def want(self, ticket: int) -> bool:
        """Set `notify` on a publish that is still buffered. False where it was submitted already."""

    def publish_union(self, channels: list[str], payload: bytes, key: tuple[str, str] | None = None) -> None:
        """Queue one text message to the members of several channels, each connection once; `key` as for `send_many`.

        To one channel alone it counts as that channel's event: `publish` with the same type and key replaces it.
        """

    def history(
        self, channel: str, after: int | None, limit: int, epoch: str | None = None, user: str | None = None
    ) -> int:
        """Ask for events with offset > `after` (None: the last `limit`); a HISTORY event with the ticket follows.

        With `epoch`, `after` is a position: the error is ``not_recoverable`` where the channel's history has it not.
        What the log has to read for it is read in the turn of `user`, or of the process itself; ``overloaded`` where
        too many pages wait.
        """

    def members_of(self, channel: str) -> int:
        """Ask who is subscribed to the channel; MEMBERS events with the ticket follow, which tell if they are cut."""

    def done(self, conn: int, n: int = 1) -> None:
        """Give credits back: reading from the connection stops at 64 commands under way and goes on at 32."""

    def submit(self) -> None:
        """Hand over what was queued since the last call, in order."""

    def drain(self, most: int) -> list[Event]:
        """Take up to `most` waiting events; the rest keeps ``fileno`` readable."""

    def fileno(self) -> int:
        """A descriptor that is readable while events wait (for ``loop.add_reader``)."""

    def charge(self, user: str, peer: str, commands: int = 1, page_bytes: int = 0) -> int | None:
        """Take what a request over HTTP costs, from the buckets that the user's connections share.

        Args:
            user: who asks; whoever has no name ("") is known by the address.
            peer: the address; one that is not readable is taken for one address of its own.
            commands: as many tokens.
            page_bytes: bytes that the answer is taken for, a token for each 64,000; a quarter of the burst at most.

        Returns:
            None, or milliseconds until that is there: then nothing was taken.
        """
    def settle(self, user: str, peer: str, reserved: int, page_bytes: int) -> None:
        """Settle what ``charge`` took for an answer of `reserved` bytes, now that it has `page_bytes`."""
    def session_id(self, conn: int) -> str:
        """The `sessionId` that clients see for this connection."""

    def conn_of(self, session_id: str) -> int | None:
        """The connection that a `sessionId` names; None where it is not one of this process's."""

    def members(self, channel: str) -> int:
        """How many connections are subscribed to the channel now."""

    def backlog(self, conn: int) -> int:
        """Bytes queued for the connection behind what the kernel has taken; 0 where it is clear or gone."""

    def overloaded(self) -> bool:
        """Whether commands that no shard has run, or events for one shard, pass their high-water mark in bytes.

        An awaited publish then waits, and no more events are taken.
        """

    def stats(self) -> bytes:
        """JSON of the engine's counters, each since the start unless it says now; no walk over connections.

        Plain numbers: ``accepted connections`` (now) ``opened closed refused messages_in bytes_in bytes_out sends
        deliveries compressions inflations publications errors rate_limited log_commits log_events panics`` and more.
        Then:

        - ``closed_by_code`` ``{"1000": n}``, ``errors_by_code`` ``{"rate_limited": n}`` (the engine's own ones),
          ``refused_by_status`` ``{"401": n}``, ``tokens_refused`` ``{"expired": n}`` (those that the engine refused):
          what never happened is left out, what has no name is ``"other"``.
        - ``dropped_by_reason`` ``{"slow": n, "budget": n, "conflated": n, "replaying": n}``: over a reader's own limit,
          over that of all together, replaced by a newer event of its key, or volatile and published while the
          subscriber was replaying, or refused since too much waited for a shard.
        - ``histograms``: ``connection_s``, ``delivery_s`` (from the read of a message to the last send of its fan-out,
          once on each shard with members), ``log_commit_s``, ``log_batch``, each
          ``{"bounds": [float], "counts": [int], "sum": float}`` with one count more than bounds, not cumulated.
        - ``flush`` (now): ``uring``, ``send``, ``mixed`` where rings of some shards have failed; ``shards``
          ``[{"busy_ns", "elapsed_ns", "connections", "flush"}]``; ``queues`` (now) ``{"events", "commands_bytes",
          "log", "outbox_bytes"}``; ``log_failures``; ``log_failing`` (now, 0 or 1) and ``log_error`` (why, or null; it
          names no path).
        """

class TokenRefused(Exception):  # noqa: N818 -- it is the token that is wrong
    """A token is refused: `args` is the reason (one of `TokenCheck.reasons`), a sentence for people, and whether its
    key may be one that is still to be fetched.
    """

@final
class TokenCheck:
    """The engine's rule of tokens, for what Python has to check itself. Any thread may use it."""

    def __new__(cls, rule: bytes) -> TokenCheck:
        """Compile a rule, JSON as in the option ``token``. Raises EngineError with code ``options``."""

    def check(self, token: str, now_ms: int) -> tuple[str, bytes | None, int | None, int | None, str | None]:
        """Return who a token names: user, JSON of the grants (None: none are named), end in Unix ms, time of issue in
        Unix s, `jti`. The GIL is released.

        Args:
            token: in the compact form (RFC 7515 7.1).
            now_ms: the wall clock, Unix ms.

        Raises:
            TokenRefused: anything is wrong with it. What was revoked is not looked at.
        """

    def explain(self, token: str, now_ms: int) -> bytes:
        """Return JSON of everything about a token: ``{"header", "claims"}`` (null where they cannot be read),
        ``{"user", "issued_at_s", "token_id"}`` as `check` returns them (null where they are absent or malformed),
        ``key`` ``{"place", "algorithm", "kid"}`` of the key that signed it, and ``refusals`` ``[{"reason", "told"}]``,
        empty where it is good.
        """

    @staticmethod
    def reasons() -> list[tuple[str, str]]:
        """Return every reason to refuse a token, each with a sentence for people."""

@final
class Engine(Commands):
    """Listener, shard threads and the log thread."""

    def __new__(cls, options: bytes) -> Engine:
        """Check `options` (JSON, docs in rust/hub/src/options.rs). Raises EngineError with code ``options``."""

    def start(self, accepting: bool = True) -> None:
        """Open the log, bind, start the threads. Raises EngineError.

        Without `accepting` peers wait in the kernel's backlog until ``start_accepting``; all else runs.
        """

    def start_accepting(self) -> None:
        """Take connections from now on; nothing happens where that is so already. Raises EngineError."""

    @property
    def port(self) -> int:
        """The port that it listens on (the one asked for, or the one given for 0)."""

    @property
    def epoch(self) -> str:
        """The epoch of the log's current term: another one with each start."""

    @property
    def flush(self) -> str:
        """How sends reach the kernel now: ``uring`` (batches), ``send`` (one by one), ``mixed`` where rings of some
        shards have failed; ``none`` before the start.
        """

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""

    def stop_reading(self) -> None:
        """Read nothing more from any connection; what is queued still goes out."""

    def flush_log(self, timeout_ms: int) -> bool:
        """Wait (GIL released) until everything handed to the log is committed, published and acknowledged."""

    def announce_drain(self, spread_ms: int) -> None:
        """Tell every open `json` connection, and those that open later, ``draining`` with a delay of its own.

        The delays are spread evenly over 0 to `spread_ms`; a connection's is the same each time.
        """

    def close_all(self, code: int, reason: str, over_ms: int = 0) -> None:
        """Close every connection, behind what is queued for it.

        With `over_ms` each at its own moment within that time: the one that ``announce_drain`` told its client where
        the spread was the same.
        """

    def stop(self, timeout_ms: int) -> None:
        """Wait up to `timeout_ms` for connections to end, then end the threads and close the log. Idempotent."""

@disjoint_base
class UwsEngine(Commands):
    """One shard on the thread of an event loop, over sockets of uWebSockets, and the log's own thread."""

    def __new__(cls, options: bytes) -> Self: ...
    @staticmethod
    def functions() -> list[str]:
        """The C functions of uWebSockets, uSockets and libuv that the engine calls."""

    def open(self, functions: dict[str, int], uv_loop: int, us_loop: int) -> dict[str, int]:
        """Open the log; return the addresses of what the library has to call.

        Args:
            functions: the address of each of `functions()`, in a library that stays loaded.
            uv_loop: the address of a loop of libuv, which nobody else runs.
            us_loop: the address of the library's loop upon it.

        Returns:
            ``upgrade``, ``open``, ``message``, ``drain``, ``ping``, ``pong`` and ``close`` for
            ``uws_socket_behavior_t``, ``request`` for all other requests, and ``context``, what each is given.

        Raises:
            EngineError: the log cannot be opened, a function is missing, or this engine was opened before.
        """

    def wake_fileno(self) -> int:
        """A descriptor that is readable when `turn` has something to do that libuv's own does not tell of."""

    @property
    def epoch(self) -> str:
        """The epoch of the log's current term: another one with each start."""

    def turn(self) -> bool:
        """Run the library's loop and what can run now; return whether there is more at once. On the loop's thread."""

    def stop_reading(self) -> None:
        """As `Engine.stop_reading`."""

    def flush_log(self, timeout_ms: int) -> bool:
        """As `Engine.flush_log`."""

    def announce_drain(self, spread_ms: int) -> None:
        """As `Engine.announce_drain`."""

    def close_all(self, code: int, reason: str, over_ms: int = 0) -> None:
        """As `Engine.close_all`."""

    def stop(self, timeout_ms: int) -> None:
        """As `Engine.stop`, from another thread than the one that calls ``turn``."""

    def let_go(self) -> None:
        """Close the sockets that are left after `stop`; on the loop's thread."""

@final
class VirtualEngine(Commands):
    """The same engine without sockets, threads or a clock: one shard, links driven by hand. For tests of apps."""

    def __new__(cls, options: bytes, wall_ms: int) -> VirtualEngine: ...
    def connect(self, path: str, headers: list[tuple[str, str]]) -> int:
        """Open a link and send an upgrade request for `path` (with its query); return the link's number."""

    def connect_as(self, endpoint: int, user: str, grants: bytes | None = None, first_version: bool = False) -> int:
        """Open a link that is accepted as `user` at once, without a token; return the link's number."""

    def conn_of_link(self, link: int) -> int | None:
        """The connection behind a link, None before it is accepted and after it ended."""

    def client_send(self, link: int, payload: str | bytes) -> None:
        """The client sends one text or binary message."""

    def client_close(self, link: int, code: int, reason: str = "") -> None:
        """The client starts the closing handshake."""

    def client_drop(self, link: int) -> None:
        """The link is cut, as by a lost network."""

    def client_receive(self, link: int) -> list[tuple[str, object]]:
        """Take what arrived, in order.

        Each is one of ``("text", str)``, ``("binary", bytes)``, ``("close", (code, reason))``,
        ``("http", (status, body))``, ``("end", None)``.
        """

    def client_reads(self, link: int, bytes_per_s: int | None) -> None:
        """Limit how fast the client takes bytes (None: at once, 0: not at all)."""

    def announce_drain(self, spread_ms: int) -> None:
        """As `Engine.announce_drain`."""

    def close_all(self, code: int, reason: str, over_ms: int = 0) -> None:
        """As `Engine.close_all`."""

    def advance(self, ms: int) -> None:
        """Move the clock and run the timers that are due."""

    def now_ms(self) -> int:
        """The wall clock of this world, in ms."""

    def step(self) -> bool:
        """Run everything that can run now, the log included. True if anything happened."""

@final
class Frame:
    """One message as the bytes of a server's frame, whole and unmasked; made by `FrameEncoder`, never changed."""

    @property
    def opcode(self) -> int:
        """1 for text, 2 for binary (RFC 6455 5.2)."""

    @property
    def payload(self) -> bytes:
        """The message itself: a copy."""

    @property
    def plain(self) -> bytes:
        """The frame as it is for every receiver; always the same object."""

    @property
    def deflated(self) -> bytes | None:
        """The frame compressed (RFC 7692), for receivers that agreed to it with a window of 13 to 15 bits.

        A stream of its own that refers to no message before it, so one serves all. Made at the first call, once, which
        takes some 16 ms a MiB at level 6 and lets other threads run; then always the same object. None where the
        encoder does not compress, the payload is shorter than its threshold, or less than a tenth would be saved.
        """

    def wire(self, window_bits: int | None = None) -> bytes:
        """Return what a receiver gets.

        Args:
            window_bits: `Deflate.window_bits` of its connection, 8 to 15; None where permessage-deflate was not agreed.

        Returns:
            ``deflated`` where there is one and the window is 13 bits or more or the payload fits it, else ``plain``.

        Raises:
            ValueError: a window outside 8 to 15.
        """

@final
class FrameEncoder:
    """Makes frames of messages, each once for all of its receivers. Any thread may use it."""

    def __new__(cls, *, compression: bool = True, level: int = 6, threshold_bytes: int = 256) -> FrameEncoder:
        """Make one; some 200 KiB are taken when the first message is compressed.

        Args:
            compression: whether there are compressed frames at all.
            level: 1 (quick) to 9 (small).
            threshold_bytes: a payload below it stays plain.

        Raises:
            ValueError: a level or a threshold that there is not.
        """

    @property
    def compressions(self) -> int:
        """How many messages were compressed: at most one for each frame, however many received it."""

    def text(self, text: str | Buffer) -> Frame:
        """Encode a text message, of a `str` or of UTF-8.

        Raises:
            ValueError: bytes that are not UTF-8, or a `str` with a lone surrogate (then its subclass
                UnicodeEncodeError).
            TypeError: neither `str` nor bytes-like.
        """

    def binary(self, payload: Buffer) -> Frame:
        """Encode a binary message. Raises TypeError for what is not bytes-like."""

@final
class Deflate:
    """What was agreed on with a client that offered permessage-deflate: no context takeover on either side."""

    @staticmethod
    def negotiate(offers: str) -> Deflate | None:
        """Return the first offer that can be kept; None where there is none, and the connection goes without.

        `offers` is the request's `Sec-WebSocket-Extensions`; where it has several of them, joined by ``, ``.
        """

    @property
    def response(self) -> str:
        """`Sec-WebSocket-Extensions` of the answer."""

    @property
    def window_bits(self) -> int:
        """The window of what the server sends, 8 to 15: for `Frame.wire` and `Fanout.member`."""
