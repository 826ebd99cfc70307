"""Open connections as Python sees them: by connection, by session id, by user; and the commands to one peer.

A `Session` is what an app holds on to. It is a small Struct outside of the garbage collector's rounds (`gc=False`): it
holds no task, no closure and nothing that points back at it but the tables here, which let go of it when it closes. An
idle one costs Python under 400 bytes. What it asks for is buffered in the engine in call order and leaves with the next
`submit`, which `wake` sees to.

By user are found the sessions of JSON endpoints only: those can be sent events, and those make a user online. A raw
session (an own path without the envelope) is found by its id. Called by `control`, `routing` and, through sessions, by
handlers, on any thread; entries are added and removed on the loop's thread alone.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from realtime.base.codes import may_be_sent
from realtime.base.messages import encode
from realtime.base.spawned import SpawnedTasks

if TYPE_CHECKING:
    from realtime._engine import Commands

T = TypeVar("T")


class Session(Struct, gc=False, eq=False):
    """One connection's identity. A user may have many.

    Args:
        conn: the connection's number in the engine, never used again while the process lives.
        user: the user's id; empty on an endpoint that asks nobody who they are.
        endpoint: the place of the endpoint in the rules.
        peers: the table that it stands in.
        expires_at_ms: when it ends unless it is refreshed, ms since 1970; None for never.
        subprotocol: the one that was agreed to: `realtime.v1`, one of `app.raw(…, subprotocols=[…])`, or None.
    """

    conn: int
    user: str
    endpoint: int
    peers: "Connections"
    expires_at_ms: int | None = None
    subprotocol: str | None = None

    @property
    def id(self) -> str:
        """The `sessionId` that clients know it by."""
        return self.peers.session_id(self.conn)

    @property
    def is_open(self) -> bool:
        """Whether it can still be sent something."""
        return self in self.peers

    def send(self, message: str | bytes | Mapping[str, object] | Struct) -> None:
        """Queue one message to this peer. Does nothing once it is closed. Safe from any thread.

        Args:
            message: on a JSON endpoint one event: an object with a `type`, or its JSON. On a raw endpoint a text
                (`str`), a binary message (`bytes`) or an object, sent as JSON.
        """
        self.peers.send(self, message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. 1000 and 4500..4999 tell the client not to come back; see `codes.CloseCode`.

        Raises:
            ValueError: `code` may not stand in a Close frame (RFC 6455 §7.4).
        """
        if not may_be_sent(code):
            raise ValueError(f"{code} is no close code that may be sent; use 1000, 1001, 1007..1014 or 3000..4999")
        self.peers.close(self.conn, code, reason)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine beside the session's commands for as long as the connection is open.

        It is cancelled when the connection closes, and at the drain once handlers are through; where the connection is
        closed already it never begins. What it raises is logged. It has no time limit. On the loop's thread only.

        Raises:
            RuntimeError: on another thread.
            Refused: `limit_reached`, where `handlers.tasks_per_session_max` of its tasks are under way.
        """
        return self.peers.tasks.spawn(self.conn, work, repr(self), is_open=self.is_open)

    def __repr__(self) -> str:
        return f"Session({self.conn}, user={self.user!r})"


class Connections(Collection[Session]):
    """Every open connection of this process."""

    def __init__(
        self,
        commands: "Commands",
        raw_endpoints: frozenset[int],
        wake: Callable[[], None],
        tasks_per_session_max: int = 1_000,
    ) -> None:
        self._raw_endpoints = raw_endpoints
        self._by_conn: dict[int, Session] = {}
        # One session stands for itself: most users have one, and a table for each would cost more than the session.
        self._by_user: dict[str, Session | dict[Session, None]] = {}
        self._json_count = 0
        self._tokens: dict[int, str] = {}
        self.find: Callable[[int], Session | None] = self._by_conn.get
        """`by_conn` as the table's own method, for what is asked with every message."""
        self.tasks = SpawnedTasks(tasks_per_session_max)
        """What sessions have spawned."""
        self.wake = wake
        self.bind(commands)

    def bind(self, commands: "Commands") -> None:
        """Tell `commands` from now on what is to be done."""
        # The engine's own methods, bound once, so that a reply to a command costs one call. They do not wake.
        self.send_text = commands.send_text
        self.done = commands.done
        self.grant = commands.grant
        self.resume = commands.resume
        self.accept = commands.accept
        self.reject = commands.reject
        self.renew = commands.renew
        self.session_id = commands.session_id
        self._commands = commands

    # Who is there.

    def __len__(self) -> int:
        """How many connections are open, raw ones included."""
        return len(self._by_conn)

    def __iter__(self) -> Iterator[Session]:
        """Every session, in the order they opened, as of now."""
        return iter(list(self._by_conn.values()))

    def __contains__(self, conn: object) -> bool:
        """Whether a connection, by its number or its session, is open."""
        return (conn.conn if isinstance(conn, Session) else conn) in self._by_conn

    def by_conn(self, conn: int) -> Session | None:
        """Return the session of a connection; None where it closed."""
        return self._by_conn.get(conn)

    def by_id(self, session_id: str) -> Session | None:
        """Return the session that clients know as `session_id`; None where it is not open here."""
        conn = self._commands.conn_of(session_id)
        return None if conn is None else self._by_conn.get(conn)

    def by_user(self, user: str) -> list[Session]:
        """Return the sessions of a user, in the order they opened."""
        found = self._by_user.get(user)
        if found is None:
            return []
        return [found] if isinstance(found, Session) else list(found)

    def is_online(self, user: str) -> bool:
        """Whether the user has a session that events can be sent to."""
        return user in self._by_user

    def online(self) -> list[str]:
        """Return the users that have a session that events can be sent to."""
        return list(self._by_user)

    @property
    def users(self) -> int:
        """How many users are online."""
        return len(self._by_user)

    @property
    def json_count(self) -> int:
        """How many sessions take events: those of JSON endpoints."""
        return self._json_count

    def is_json(self, session: Session) -> bool:
        """Whether the session speaks the protocol's envelope."""
        return session.endpoint not in self._raw_endpoints

    # Who comes and goes: `control` alone tells.

    def add(self, session: Session) -> bool:
        """Take in a connection that opened. Returns whether it is its user's first."""
        self._by_conn[session.conn] = session
        if session.endpoint in self._raw_endpoints:
            return False
        self._json_count += 1
        found = self._by_user.get(session.user)
        if found is None:
            self._by_user[session.user] = session
            return True
        if isinstance(found, dict):
            found[session] = None
        else:
            self._by_user[session.user] = {found: None, session: None}
        return False

    def remove(self, session: Session) -> bool:
        """Let go of a connection that closed, and end its tasks. Returns whether it was its user's last."""
        self.tasks.closed(session.conn)
        self._tokens.pop(session.conn, None)
        if self._by_conn.pop(session.conn, None) is None or session.endpoint in self._raw_endpoints:
            return False
        self._json_count -= 1
        found = self._by_user[session.user]
        if isinstance(found, dict):
            del found[session]
            if len(found) == 1:
                self._by_user[session.user] = next(iter(found))
            return False
        del self._by_user[session.user]
        return True

    def token_of(self, session: Session) -> str | None:
        """Return the token that a session came by or was refreshed with last.

        None where it came by something else, or where the engine does not tell tokens: only `api.url` needs them.
        """
        return self._tokens.get(session.conn)

    def note_token(self, conn: int, token: str | None) -> None:
        """Take in the token that the engine tells of a connection; None where it tells none."""
        if token is not None:
            self._tokens[conn] = token

    def clear(self) -> None:
        """Let go of all, at the end: sessions are outside of the garbage collector's rounds."""
        self._by_conn.clear()
        self._by_user.clear()
        self._tokens.clear()
        self._json_count = 0

    # What is said to one peer.

    def send(self, session: Session, message: str | bytes | Mapping[str, object] | Struct) -> None:
        """Queue a message to one peer; see `Session.send`."""
        if session.endpoint in self._raw_endpoints and isinstance(message, bytes):
            self._commands.send_binary(session.conn, message)
        elif isinstance(message, str | bytes):
            self._commands.send_text(session.conn, message)
        else:
            self._commands.send_text(session.conn, encode(message))
        self.wake()

    def send_many(self, sessions: Iterable[Session], frame: bytes, key: tuple[str, str] | None = None) -> None:
        """Queue one event, encoded once, to several sessions of JSON endpoints.

        With a `key`, the event's type and a key within it, a newer one takes its place for slow readers.
        """
        self._commands.send_many([session.conn for session in sessions], frame, key)
        self.wake()

    def take_out(self, sessions: Iterable[Session], channel: str) -> None:
        """Take the subscription to a channel away from those sessions that have it; their clients are told."""
        for session in sessions:
            self._commands.unsubscribe(session.conn, channel, "forbidden", False)
        self.wake()

    def close(self, conn: int, code: int, reason: str = "") -> None:
        """Close one connection."""
        self._commands.close(conn, code, reason)
        self.wake()
