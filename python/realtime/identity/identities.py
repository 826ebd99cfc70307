"""`Identities`: the one place that says who somebody is, where the engine has not done so already.

Over HTTP it is asked about every request: a service key, the `authenticate` hook of an app that has one, else a token.
For sockets the engine checks tokens by itself and asks only what it cannot know: a ticket, a key that is none of those
it was given, an endpoint with a hook, a `refresh` with any of these. Whatever was revoked since is refused on each way.

Invariants: keys that are fetched or configured anew are the engine's and ours at the same moment; no secret, token or
ticket is ever part of an error or of the log. Made by `control`; called on the loop's thread.
"""

import asyncio
import hashlib
import hmac
import inspect
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from msgspec.structs import replace

from realtime.base.charges import Charges
from realtime.base.clock import Clock
from realtime.base.config import Keys, Settings, keys_of
from realtime.base.errors import Refused
from realtime.base.messages import encode
from realtime.identity.auth import Identity, InvalidToken, UpgradeRequest, bearer_of, checked_grants
from realtime.identity.key_sets import KeySet
from realtime.identity.origins import origin_rule
from realtime.identity.refusals import SENTENCES, TokenRefusals
from realtime.identity.revocations import Revocations
from realtime.identity.tickets import Ticket, Tickets
from realtime.identity.tokens import KeyNotFetched, identity_of, token_for, token_rule

if TYPE_CHECKING:
    from realtime._engine import Commands
    from realtime.control.broadcaster import Broadcaster

_SHOWN: Final = ("token", "ticket")
_LINE_MS: Final = 1_000
"""Refused pages are told of at most once in this time."""

log = logging.getLogger("realtime.identity")


class Identities:
    """Who may be let in, and who no more.

    Args:
        settings: the configuration.
        keys: its secrets.
        commands: the engine's.
        broadcaster: stores revocations.
        clock: says whether a token or a ticket is late.
        refusals: counts and logs the tokens that are refused here.
        charges: bounds the bytes of tickets.
        authenticate: the app's hook, which decides in place of tokens; None without one.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        commands: "Commands",
        broadcaster: "Broadcaster",
        clock: Clock,
        *,
        refusals: TokenRefusals,
        charges: Charges,
        authenticate: Callable[[UpgradeRequest], Any] | None = None,
    ) -> None:
        self._auth = settings.auth
        self._keys = keys
        self._commands = commands
        self._clock = clock
        self._authenticate = authenticate
        self._tickets = Tickets(clock, charges, settings.auth.tickets_per_user_max)
        self._refusals = refusals
        self._revocations = Revocations(
            commands, broadcaster, clock, settings.auth.clock_skew_s, settings.auth.revocations_bytes_max // 2
        )
        self._service_keys = _digests(settings.auth.service_keys)
        self._configured = token_rule(settings.auth, keys)
        self._check = self._configured.compiled()
        self._origins = origin_rule(settings.auth)
        self._next_line_ms = 0
        self._key_set = self._new_key_set()
        self._tasks: set[asyncio.Task[object]] = set()

    def bind(self, commands: "Commands") -> None:
        """Tell `commands` from now on who is let in."""
        self._commands = commands
        self._revocations.bind(commands)

    # The begin, the end, and a configuration that is read anew.

    async def start(self) -> None:
        """Read what was revoked and fetch the key set, before anybody is let in.

        A key set that does not answer in time does not hold the start up: see `reasons`.

        Raises:
            Refused: `unavailable`, where the log cannot be read.
        """
        await asyncio.gather(self._revocations.read_back(), self._fetched())

    async def close(self) -> None:
        """Stop fetching keys and forgetting tickets."""
        self._tickets.close()
        if self._key_set is not None:
            await self._key_set.close()

    def reload(self, settings: Settings) -> bool:
        """Go by the secrets and keys of another configuration from now on; open sessions stay.

        Returns:
            Whether tokens are checked otherwise than before: files that the configuration names may have changed.

        Raises:
            ConfigError: a key cannot be used. Nothing has changed then.
        """
        keys = keys_of(settings)
        rule, origins = token_rule(settings.auth, keys), origin_rule(settings.auth)
        rule.compiled()
        before, old_set, is_other = self._auth, self._key_set, rule.document() != self._configured.document()
        self._auth, self._keys, self._configured, self._origins = settings.auth, keys, rule, origins
        self._service_keys = _digests(settings.auth.service_keys)
        self._revocations.clock_skew_s = settings.auth.clock_skew_s
        if any(
            getattr(before, name) != getattr(settings.auth, name)
            for name in ("jwks_url", "jwks_refresh_s", "algorithms")
        ):
            self._key_set = self._new_key_set()
            if old_set is not None:
                self._spawn(old_set.close())
            self._spawn(self._fetched())
        self._changed()
        return is_other

    def reasons(self) -> list[str]:
        """Return why not everybody can be told who they are yet; empty where nothing is missing."""
        if self._key_set is not None and not self._key_set.keys:
            return [f"auth.jwks_url: {self._key_set.problem}"]
        return []

    # Who somebody is.

    async def identify(self, token: str) -> Identity:
        """Return who a token names; a key that is not known is looked for in the key set once.

        Raises:
            InvalidToken: it is wrong, late, or revoked; the text is for logs. With `retry_after_ms` where its key may
                have been published since the key set was fetched.
        """
        try:
            identity = self._checked(token)
        except KeyNotFetched:
            wait_ms = await self._fetched()
            try:
                identity = self._checked(token)
            except KeyNotFetched as unknown:
                if wait_ms == 0:
                    raise InvalidToken(
                        "the key set has no key for the algorithm and kid of the token", "unknown_key"
                    ) from None
                unknown.retry_after_ms = wait_ms
                raise
        return self._unrevoked(identity)

    async def identify_upgrade(self, request: UpgradeRequest) -> Identity:
        """Return who asks to be let in, by a ticket, by the app's hook, or else by a token.

        Raises:
            InvalidToken: nothing that it shows says who it is.
            Refused: by the hook.
        """
        with self._noting(peer=request.peer, path=request.path):
            return await self._upgraded(request)

    async def _upgraded(self, request: UpgradeRequest) -> Identity:
        ticket = request.query.get("ticket")
        if ticket is not None:
            identity = self._tickets.redeem(ticket)
            if identity is not None:
                if request.token is not None:
                    raise InvalidToken("the request shows a ticket and a token; send one", "ambiguous")
                return self._unrevoked(identity, "ticket")
        if self._authenticate is not None:
            return await self._by_hook(self._authenticate, request)
        if ticket is not None:
            raise InvalidToken(SENTENCES["ticket"], "ticket")
        return await self.identify_shown(request)

    async def identify_shown(self, request: UpgradeRequest) -> Identity:
        """Return who the token names that a request shows, in whatever place.

        Raises:
            InvalidToken: it shows none, two that differ, or one that is not accepted.
        """
        token = request.token
        if token is None:
            raise InvalidToken("the request shows no token", "missing")
        return await self.identify(token)

    async def identify_request(self, path: str, query: str, headers: Iterable[tuple[str, str]], peer: str) -> Identity:
        """Return who makes an HTTP request: a service by its key, else as the hook or a token in `Authorization` says.

        Args:
            path: without the query.
            query: as it came.
            headers: names in any case.
            peer: the address that it came from.

        Raises:
            InvalidToken: nothing that it shows says who it is.
            Refused: by the hook; `forbidden` for a page of elsewhere that comes with a cookie.
        """
        sent = list(headers)
        with self._noting(peer=peer, path=path):
            if sum(name.lower() == "authorization" for name, _ in sent) > 1:
                raise InvalidToken("the request has more than one Authorization header; send one", "ambiguous")
            return await self._requested(request_of(path, query, sent, peer))

    async def _requested(self, request: UpgradeRequest) -> Identity:
        bearer = bearer_of(request.headers.get("authorization", ""))
        if bearer is not None and self.is_service_key(bearer):
            return Identity("", service=True)
        if self._authenticate is not None:
            self._check_page(request)
            return await self._by_hook(self._authenticate, request)
        if bearer is None:
            raise InvalidToken("the request has no Authorization: Bearer", "missing")
        return await self.identify(bearer)

    async def identify_renewal(self, token: str, path: str, session_id: str = "") -> Identity:
        """Return as whom a session may go on: by the hook, which is shown the token as `Authorization`, or the token.

        Raises:
            InvalidToken, Refused: as `identify_upgrade`.
        """
        with self._noting(session=session_id, path=path):
            if self._authenticate is None:
                return await self.identify(token)
            request = UpgradeRequest(path, {}, {"authorization": f"Bearer {token}"}, "")
            return await self._by_hook(self._authenticate, request)

    def note_refused(self, reason: str, **where: str) -> None:
        """Take notice of a token that the engine refused and has counted; see `TokenRefusals`."""
        self._refusals.told(reason, **where)

    @contextmanager
    def _noting(self, **where: str) -> Iterator[None]:
        try:
            yield
        except InvalidToken as error:
            self._refusals.refused(error, **where)
            raise

    def _checked(self, token: str) -> Identity:
        return identity_of(self._check, token, self._clock.now_ms())

    def is_service_key(self, key: str) -> bool:
        """Whether this is one of `auth.service_keys`; takes as long for any that is not."""
        shown = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        # Every one is compared: which of them is near says nothing in time.
        return sum(hmac.compare_digest(shown, digest) for digest in self._service_keys) > 0

    # What is given and what is taken away.

    def issue_ticket(self, identity: Identity) -> Ticket:
        """Return a ticket that opens one connection as `identity` within a minute.

        Raises:
            Refused: `forbidden` for a service without a user, `rate_limited` where too many of the user are unused,
                `overloaded` where too many of all users are.
        """
        if not identity.user:
            raise Refused("forbidden", "A ticket is for a user; a service key names none")
        return self._tickets.issue(identity)

    async def revoke(self, *, user: str | None = None, token_id: str | None = None) -> None:
        """Take back every token of `user` that was issued until now, or the one with this `jti`.

        Sessions and tickets that came by them end: clients are told 4500 and do not come back. It is in force here at
        once and stored when this returns.

        Raises:
            PublishFailed: it could not be stored: it is in force, but not after a restart.
            ValueError: neither or both are given.
        """
        if user and token_id is None:
            await self._revocations.revoke_user(user)
        elif token_id and user is None:
            await self._revocations.revoke_token(token_id)
        else:
            raise ValueError("revoke takes a user or the id of a token")

    def lists(self, origin: str) -> bool:
        """Whether pages of an origin may read the answers of the HTTP API: `auth.origins` names it."""
        return self._origins.listed is not None and self._origins.allows(origin, None, by_cookie=False)

    def _check_page(self, request: UpgradeRequest) -> None:
        """Refuse a request by a script of somebody else's page, where a cookie may say who asks.

        A browser adds the cookie whoever wrote the page, and sends simple requests without asking (CORS is about
        answers), so the page has to be listed or of the very host that it calls, as for sockets.
        """
        origin, host = request.headers.get("origin"), request.headers.get("host")
        if origin is None or "cookie" not in request.headers or self._origins.allows(origin, host, by_cookie=True):
            return
        now_ms = self._clock.monotonic_ms()
        if now_ms >= self._next_line_ms:
            self._next_line_ms = now_ms + _LINE_MS
            log.warning(
                "refused a request by cookie from a page of origin %.200r to host %.200r: the origin is not in "
                "auth.origins; add it there if the page is yours",
                origin,
                host,
            )
        raise Refused("forbidden", "Pages of this origin may not act by a cookie; list it in auth.origins")

    async def _by_hook(self, hook: Callable[[UpgradeRequest], Any], request: UpgradeRequest) -> Identity:
        # What the hook says is as old as its question, however long it takes: a user may be revoked meanwhile. The
        # time is that of this clock, so no skew that a revocation allows for is in it.
        asked_s = self._clock.now_ms() // 1000 + self._revocations.clock_skew_s
        identity = hook(request)
        if inspect.isawaitable(identity):
            identity = await identity
        if not isinstance(identity, Identity) or not (identity.user or identity.service):
            raise InvalidToken(SENTENCES["hook"], "hook")
        if identity.expires_at is not None and not math.isfinite(identity.expires_at):
            raise ValueError(f"expires_at is {identity.expires_at}; use seconds since 1970, or None for never")
        if identity.grants is not None:
            # Those of a token, too: the hook may have changed them.
            identity = replace(identity, grants=checked_grants(identity.grants))
        if identity.issued_at_s is None and identity.token is None:
            # The hook says so now, whatever was revoked before.
            identity = replace(identity, issued_at_s=asked_s)
        return self._unrevoked(identity)

    def _unrevoked(self, identity: Identity, shown: str | None = None) -> Identity:
        if self._revocations.cover(identity):
            raise InvalidToken("it was revoked; sign in again", "revoked")
        if identity.expires_at is not None and identity.expires_at * 1000 <= self._clock.now_ms():
            # A ticket is no token that could be renewed.
            raise InvalidToken("it has expired; fetch a new one", shown or "expired")
        return identity

    @property
    def is_generated(self) -> bool:
        """Whether tokens are signed with the secret that the server made itself."""
        return self._keys.generated

    def signed(self, user: str, *, ttl_s: float) -> str:
        """Return a token for `user` as the configuration in force signs them.

        Raises:
            ConfigError: tokens are signed by others alone.
        """
        return token_for(user, self._auth, self._keys, ttl_s=ttl_s, now_s=self._clock.now_ms() / 1000)

    # Keys.

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _new_key_set(self) -> KeySet | None:
        auth = self._auth
        if auth.jwks_url is None:
            return None
        return KeySet(auth.jwks_url, auth.algorithms, auth.jwks_refresh_s, self._clock, self._changed)

    async def _fetched(self) -> int:
        return 0 if self._key_set is None else await self._key_set.fetched()

    def _changed(self) -> None:
        fetched = () if self._key_set is None else self._key_set.keys
        rule = token_rule(self._auth, self._keys, fetched)
        check = rule.compiled()
        self._commands.set_identity(encode({"token": rule.document(), "origins": self._auth.origins}))
        self._check = check


def request_of(path: str, query: str, headers: Iterable[tuple[str, str]], peer: str) -> UpgradeRequest:
    """Return a request as hooks see it: the first value of a name in the query, all those of a header.

    Raises:
        InvalidToken: two tokens or two tickets that differ: which one counts must not depend on who reads them.
    """
    values: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if values.setdefault(name, value) != value and name in _SHOWN:
            raise InvalidToken(f"the request shows two {name}s that differ; send one", "ambiguous")
    merged: dict[str, str] = {}
    for header, value in headers:
        name = header.lower()
        # Browsers send one Cookie line; proxies split it (RFC 9113 §8.2.3).
        glue = "; " if name == "cookie" else ", "
        merged[name] = f"{merged[name]}{glue}{value}" if name in merged else value
    return UpgradeRequest(path, values, merged, peer)


def _digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
