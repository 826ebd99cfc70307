"""Every key that can be set: its type, its default, the values it may take and one sentence that says what it does.

A section is a frozen Struct and a key is a field of it, with a `Meta` that carries the sentence and the bounds. The
loader, the messages of `ConfigError` and docs/reference/configuration.md are all made from these declarations, so a
key exists in one place. Units are the last word of a name. The fields of `LimitSettings` are handed to the engine
under the same names, but for those in `options._OF_THE_HTTP_PORT`.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Seconds = Annotated[int, Meta(ge=1, le=86_400)]
Duration = Annotated[float, Meta(ge=0, le=86_400)]
Text = Annotated[str, Meta(min_length=1)]
Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line that names the key, the value and what is allowed."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of `realtime.toml`."""


class ServerSettings(Section, frozen=True):
    """The WebSocket listener."""

    host: Annotated[
        Text, Meta(description="Address to listen on. One that is not a loopback address needs `auth.secrets`.")
    ] = "127.0.0.1"
    port: Annotated[Port, Meta(description="Port of the WebSocket endpoint; 0 takes a free one.")] = 3002
    shards: Annotated[
        int,
        Meta(ge=0, le=64, description="Threads that serve sockets; 0 takes one less than the cores, from 1 to 8."),
    ] = 0
    proxies: Annotated[
        tuple[Text, ...],
        Meta(
            description="Addresses and networks (`10.0.0.0/8`) of reverse proxies: a connection or HTTP request that "
            "comes from one is taken for the address that its `X-Forwarded-For` names, the right-most that is none of "
            "these."
        ),
    ] = ()


class EngineSettings(Section, frozen=True):
    """How the engine works with the kernel."""

    transport: Annotated[
        Literal["native", "socketify"],
        Meta(
            description="Whose sockets: `native` are the engine's own, `socketify` those of uWebSockets, on the event "
            "loop's thread (extra `realtime-edge[socketify]`, and the system's libuv)."
        ),
    ] = "native"
    flush: Annotated[
        Literal["auto", "uring", "send"],
        Meta(
            description="How sends reach the kernel: `uring` hands a whole batch over by one system call, `send` makes "
            "one for each connection, `auto` takes `uring` where the kernel allows it (containers often forbid it)."
        ),
    ] = "auto"


class ApiSettings(Section, frozen=True):
    """The HTTP listener, and an existing HTTP API that messages are sent to."""

    enabled: Annotated[bool, Meta(description="Whether the HTTP listener is started.")] = True
    host: Annotated[
        Text, Meta(description="Address to listen on. One that is not a loopback address needs `auth.secrets`.")
    ] = "127.0.0.1"
    port: Annotated[
        Port,
        Meta(
            description="Port of the HTTP listener; 0 takes a free one. With `api.url` the default is 3003. The one of "
            "`server.port`, with the same host, serves both on it."
        ),
    ] = 3001
    bodies_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of request bodies in memory, all together, but for those of mounted apps. Above it the "
            "caller who holds most is answered 503 `overloaded`."
        ),
    ] = 64 * 1024 * 1024
    connections_max: Annotated[
        int,
        Meta(
            ge=16,
            le=1_000_000,
            description="Connections of the HTTP listener at once, fewer where descriptors are few; for one more the "
            "longest idle connection of the address with the most is closed.",
        ),
    ] = 1024
    in_flight_max: Annotated[
        int,
        Meta(
            ge=4,
            le=100_000,
            description="HTTP requests that are answered at once, event streams of mounted apps among them; more wait "
            "for `api.wait_s` and are then answered 503. One address has three quarters of them at most. `/health`, "
            "`/ready` and `/metrics` have 8 of their own. Never more than `api.connections_max` less 9.",
        ),
    ] = 256
    bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of heads, bodies and answers that the HTTP listener holds at once; above it the largest "
            "connection of the address that holds most is closed."
        ),
    ] = 64 * 1024 * 1024
    keep_alive_s: Annotated[
        Duration,
        Meta(
            description="Seconds that an HTTP connection may be idle between two requests, down to one second where "
            "`api.connections_max` are open."
        ),
    ] = 75.0
    body_timeout_s: Annotated[
        Duration,
        Meta(description="Seconds for the body of an HTTP request, and one more for each 4 KiB of it that came."),
    ] = 30.0
    answer_timeout_s: Annotated[
        Duration,
        Meta(description="Seconds for a client to take an HTTP answer, and one more for each 4 KiB that it took."),
    ] = 30.0
    wait_s: Annotated[
        Duration, Meta(description="Seconds that an HTTP request waits for its turn before it is answered 503.")
    ] = 2.0
    url: Annotated[
        Text | None,
        Meta(
            description="Address of an existing API: messages are sent to `{url}/api/conversations/{id}/messages` in "
            "place of being numbered here."
        ),
    ] = None
    token: Annotated[
        Literal["caller", "minted"],
        Meta(
            description="Whose token goes to `api.url`: the caller's own (one is made for whoever came without), or "
            "always one that is made for the user and lives a minute."
        ),
    ] = "caller"  # noqa: S105 -- the name of a choice
    broadcast: Annotated[
        Literal["response", "hook"],
        Meta(description="`response`: what `api.url` answers is published; `hook`: it calls `POST /api/events`."),
    ] = "response"
    timeout_s: Annotated[
        float,
        Meta(ge=0.01, le=3600, description="Seconds for one message to `api.url`, waiting and its answer included."),
    ] = 10.0
    connect_timeout_s: Annotated[
        float, Meta(ge=0.01, le=3600, description="Seconds for a connection to `api.url`.")
    ] = 2.0
    requests_max: Annotated[
        int, Meta(ge=1, le=1024, description="Requests to `api.url` at once, each on a pooled connection.")
    ] = 64
    requests_waiting_max: Annotated[
        Count, Meta(description="Messages that wait for one of them; more are refused at once.")
    ] = 1000
    requests_per_user_max: Annotated[
        Positive,
        Meta(
            description="Messages of one user to `api.url`, waiting or under way; more are answered `overloaded`. "
            "Well below `api.requests_max`, so that one user cannot have all places."
        ),
    ] = 16
    requests_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of messages to `api.url`, waiting or under way, and a sixteenth of it for one user; "
            "more are answered `overloaded`."
        ),
    ] = 64 * 1024 * 1024
    answers_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of answers of `api.url` that are remembered for 10 minutes, for clients that send a "
            "message again; a sixteenth of it for one user. Above it the oldest are forgotten, and a repeat is sent "
            "with the same `Idempotency-Key`."
        ),
    ] = 16 * 1024 * 1024
    message_ids_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of ids of messages of `api.url` by which one that is told twice within 10 minutes is "
            "published once; some 512 each, and a sixteenth for one user. Above it the oldest are forgotten."
        ),
    ] = 32 * 1024 * 1024
    hook_ids_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of ids of volatile events by which one that `POST /api/events` tells twice within 10 "
            "minutes is published once; some 320 each. Above it the oldest are forgotten."
        ),
    ] = 64 * 1024 * 1024
    failures_max: Annotated[
        Positive,
        Meta(
            description="Failures of `api.url` in a row after which messages are refused at once: a user's own, and "
            "everybody's where three users or more failed, or no connection was had."
        ),
    ] = 5
    breaker_pause_s: Annotated[
        float, Meta(ge=0.01, le=3600, description="Seconds until one message tries `api.url` again.")
    ] = 5.0


class AuthSettings(Section, frozen=True):
    """Who may connect."""

    secrets: Annotated[
        tuple[Secret, ...],
        Meta(
            description="Secrets of at least 32 bytes that tokens are checked with; the first signs new ones. "
            "Without any, the server makes one and keeps it in the data directory."
        ),
    ] = ()
    algorithms: Annotated[
        tuple[Algorithm, ...],
        Meta(
            min_length=1,
            description="Algorithms that tokens may be signed with; the first of HS256, HS384, HS512 signs new ones.",
        ),
    ] = ("HS256",)
    public_keys: Annotated[
        tuple[Text, ...],
        Meta(
            description="Public keys that tokens are checked with: a PEM, or the path of a PEM, JWK or JWK set; "
            "`name=` before it is the `kid` that tokens must name."
        ),
    ] = ()
    jwks_url: Annotated[
        Text | None,
        Meta(
            description="Where the public keys of an identity provider are fetched as a JWK set: https, or http on "
            "a loopback address."
        ),
    ] = None
    jwks_refresh_s: Annotated[
        int, Meta(ge=10, le=86_400, description="Seconds after which the keys of `auth.jwks_url` are fetched again.")
    ] = 3600
    issuer: Annotated[
        Text | None, Meta(description="The `iss` that tokens must carry; not checked where it is not set.")
    ] = None
    audience: Annotated[
        Text | None, Meta(description="The `aud` that tokens must carry; not checked where it is not set.")
    ] = None
    user_claim: Annotated[Text, Meta(description="The claim that names the user.")] = "sub"
    require_exp: Annotated[bool, Meta(description="Whether a token without `exp` is refused.")] = True
    leeway_s: Annotated[
        int, Meta(ge=0, le=300, description="Seconds by which `exp` and `nbf` may be off, for clocks that differ.")
    ] = 0
    clock_skew_s: Annotated[
        int,
        Meta(
            ge=0,
            le=300,
            description="Seconds by which `iat` may lie ahead, whatever `auth.leeway_s` is. A revocation of a user "
            "covers tokens that are issued up to so long after it.",
        ),
    ] = 5
    expiry: Annotated[
        Literal["close", "connect"],
        Meta(description="`close` ends a connection when its token expires; `connect` checks at connect only."),
    ] = "close"
    origins: Annotated[
        tuple[Text, ...] | None,
        Meta(
            description="Origins of pages that may connect and call the HTTP API, such as `https://app.example`; "
            "neither wildcards nor paths. Where it is not set, a token is taken from every page, a cookie only from "
            "pages of the host that they call."
        ),
    ] = None
    service_keys: Annotated[
        tuple[Secret, ...],
        Meta(description="Keys of at least 32 bytes of other systems, which act for no single user over HTTP."),
    ] = ()
    tickets_per_user_max: Annotated[
        Positive,
        Meta(description="Tickets of one user that are unused; more are answered 429 until the oldest ends."),
    ] = 100
    tickets_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of all unused tickets, with the rights that they stand for; more are answered 503. "
            "Of it a user has a sixteenth, less as others take theirs, or one ticket, for which a quarter is kept; "
            "more are answered 429."
        ),
    ] = 32 * 1024 * 1024
    revocations_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of revocations that are in force, for sockets and for HTTP; some 600 each. Above it the "
            "oldest goes for a newer one, and its tokens are taken again."
        ),
    ] = 64 * 1024 * 1024
    revocations_keep_s: Annotated[
        int,
        Meta(
            ge=60,
            le=10 * 365 * 86_400,
            description="Seconds that a revocation is kept: at least as long as the longest token lives.",
        ),
    ] = 30 * 86_400

    @property
    def signing_algorithm(self) -> str | None:
        """What the first secret signs new tokens with; None where tokens are signed by others alone."""
        return next((name for name in self.algorithms if name.startswith("HS")), None)

    def __repr__(self) -> str:
        """Leave the secrets out: settings end up in logs and tracebacks."""
        return f"AuthSettings({len(self.secrets)} secrets, algorithms={self.algorithms!r})"


class LimitSettings(Section, frozen=True):
    """What one peer, and all of them together, may cost."""

    enabled: Annotated[
        bool,
        Meta(
            description="False lets a load test through: no rate of clients applies, and no limit of the sessions, "
            "channels and bytes of one user or address; sizes stay."
        ),
    ] = True
    message_bytes_max: Annotated[Bytes, Meta(description="Bytes of one inbound message; more closes 1009.")] = (
        16 * 1024 * 1024
    )
    message_values_max: Annotated[
        Positive,
        Meta(
            description="Values of one message, of the body of an HTTP request, or of each element where a route takes "
            "an array: every object, array, string, number, `true`, `false` and `null` counts. More answers "
            "`invalid_message`."
        ),
    ] = 20_000
    command_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of one command, but for pings and relays; more answers `too_large`. Python decodes "
            "what a handler gets in one step, 2 MiB in up to 10 ms."
        ),
    ] = 2 * 1024 * 1024
    publication_bytes_max: Annotated[
        Bytes, Meta(description="Bytes of one event of a channel; more answers `too_large`.")
    ] = 1024 * 1024
    idle_timeout_s: Annotated[
        Seconds,
        Meta(description="Seconds without a byte before a close: from it (heartbeats off), or taken by it if behind."),
    ] = 300
    heartbeats: Annotated[bool, Meta(description="Whether silent peers are pinged.")] = True
    heartbeat_interval_s: Annotated[
        Seconds, Meta(description="Seconds of silence before a ping; two unanswered close 4001.")
    ] = 25
    handshake_timeout_s: Annotated[
        Seconds, Meta(description="Seconds from accept to the end of the upgrade, `authenticate` included.")
    ] = 10
    handshakes_pending_max: Annotated[
        Positive,
        Meta(
            description="Handshakes at once whose request is not complete; above it the oldest of the address (IPv6: "
            "of the /64) that has the most is closed."
        ),
    ] = 1000
    authenticating_max: Annotated[
        Positive,
        Meta(
            description="Upgrades that wait at once for `authenticate`, a ticket or a key; more are answered 503. An "
            "address has at most as many as are free."
        ),
    ] = 1000
    head_bytes_max: Annotated[
        int,
        Meta(
            ge=8192,
            le=16 * 1024 * 1024,
            description="Bytes of a request's head (request line and headers, cookies and a token among them), on the "
            "WebSocket and the HTTP port; more is answered 431, or 414 where the request line alone is longer.",
        ),
    ] = 64 * 1024
    heads_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of request heads that are not complete, all connections together; above it the oldest "
            "of the address that holds the most is closed."
        ),
    ] = 16 * 1024 * 1024
    connections_max: Annotated[
        Count,
        Meta(
            description="Connections at once; 0 takes the limit of descriptors less 64 and those of the HTTP listener."
        ),
    ] = 0
    outbox_soft_bytes: Annotated[
        Bytes,
        Meta(
            description="Bytes queued for a connection above which a newer state takes the place of a queued one, "
            "nothing more is read from it and no past is replayed."
        ),
    ] = 64 * 1024
    outbox_hard_bytes: Annotated[
        Bytes, Meta(description="Bytes queued for a connection above which events are dropped or it is closed 4000.")
    ] = 1024 * 1024
    outboxes_bytes_max: Annotated[Bytes, Meta(description="Bytes queued for all connections together.")] = (
        256 * 1024 * 1024
    )
    retained_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of the states that all channels together retain (`retain_latest`), and of relays that "
            "last (typing). A user has as much as a quarter of what stays free."
        ),
    ] = 64 * 1024 * 1024
    ring_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of the newest events that one channel keeps in memory; older ones are read from the log "
            "of a durable channel, and are gone from others."
        ),
    ] = 8 * 1024 * 1024
    rings_bytes_max: Annotated[
        Bytes,
        Meta(description="The same of all channels together; the channels that keep most let go of their oldest."),
    ] = 64 * 1024 * 1024
    channels_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of the channels in memory, names and tables, without what they keep: about 1 KiB each. "
            "A user who makes channels has as much as an eighth of what stays free; more answers `overloaded`."
        ),
    ] = 128 * 1024 * 1024
    log_queue_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes that wait for the log; at least 4 times `publication_bytes_max`. A user has as much as "
            "stays free: above an eighth of it the user's connections are read one command at a time, above all of it "
            "events are answered `overloaded`."
        ),
    ] = 64 * 1024 * 1024
    identities_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of who all open sessions are: users, rights, tokens where `api.url` is set. Above it "
            "a connection is answered 503 and a `refresh` `overloaded`."
        ),
    ] = 128 * 1024 * 1024
    unfinished_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes held of inbound messages that are not complete, all connections together; above it the "
            "largest of the user that holds the most closes 1009."
        ),
    ] = 256 * 1024 * 1024
    message_timeout_s: Annotated[
        Seconds,
        Meta(description="Seconds from the first byte of an inbound message to its last; later closes 1008."),
    ] = 120
    channels_per_session_max: Annotated[
        Positive, Meta(description="Channels that one connection may be subscribed to.")
    ] = 200
    channels_per_user_max: Annotated[
        Count,
        Meta(
            description="Channels that all connections of a user together may be subscribed to, each as often as it "
            "is; 0 sets no limit."
        ),
    ] = 2000
    members_bytes_max: Annotated[Bytes, Meta(description="Bytes of all subscriptions of all connections.")] = (
        256 * 1024 * 1024
    )
    commands_per_s: Annotated[Positive, Meta(description="Commands a second of one connection.")] = 100
    commands_burst: Annotated[Positive, Meta(description="Commands of one connection at once.")] = 300
    relays_per_s: Annotated[
        Positive, Meta(description="Relayed commands (typing, cursors) a second of one connection.")
    ] = 50
    relays_burst: Annotated[Positive, Meta(description="Relayed commands of one connection at once.")] = 150
    bytes_per_s: Annotated[Count, Meta(description="Inbound bytes a second of one connection; 0 sets no limit.")] = 0
    user_commands_per_s: Annotated[
        Count, Meta(description="Commands a second of all connections of a user; 0 sets no limit.")
    ] = 500
    user_commands_burst: Annotated[
        Count, Meta(description="Commands of all connections of a user at once; 0 takes those of a second.")
    ] = 1500
    user_relays_per_s: Annotated[
        Count, Meta(description="Relayed commands a second of all connections of a user; 0 sets no limit.")
    ] = 250
    user_relays_burst: Annotated[
        Count, Meta(description="Relayed commands of all connections of a user at once; 0 takes those of a second.")
    ] = 750
    address_commands_per_s: Annotated[
        Count,
        Meta(description="Commands a second of all connections of an address (IPv6: of a /64); 0 sets no limit."),
    ] = 0
    address_commands_burst: Annotated[
        Count, Meta(description="Commands of all connections of an address at once; 0 takes those of a second.")
    ] = 0
    address_relays_per_s: Annotated[
        Count, Meta(description="Relayed commands a second of all connections of an address; 0 sets no limit.")
    ] = 0
    address_relays_burst: Annotated[
        Count, Meta(description="Relayed commands of all connections of an address at once; 0 takes those of a second.")
    ] = 0
    address_handshakes_per_s: Annotated[
        Count, Meta(description="Upgrades a second of an address; more are answered 429. 0 sets no limit.")
    ] = 300
    address_handshakes_burst: Annotated[
        Count, Meta(description="Upgrades of an address at once; 0 takes those of a second.")
    ] = 2000
    address_requests_per_s: Annotated[
        Count,
        Meta(
            description="HTTP requests a second of an address (IPv6: of a /64) without a token or key that is good; "
            "more wait for `api.wait_s` and are answered 429. Those for `/health`, `/ready` and `/metrics` count by "
            "themselves, those of mounted apps not at all. 0 sets no limit."
        ),
    ] = 300
    address_requests_burst: Annotated[
        Count, Meta(description="Such requests of an address at once; 0 takes those of a second.")
    ] = 1000
    user_handshakes_per_s: Annotated[
        Count,
        Meta(description="Connections that a user may open a second; more are answered 429. 0 sets no limit."),
    ] = 30
    user_handshakes_burst: Annotated[
        Count, Meta(description="Connections that a user may open at once; 0 takes those of a second.")
    ] = 100
    accounts_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of what is remembered of users and addresses without a connection, until their rates "
            "are full again; above it those who are not known share one rate."
        ),
    ] = 16 * 1024 * 1024
    refusals_max: Annotated[
        Count,
        Meta(
            description="Commands of a connection, and of those of its user that it took the place of, answered "
            "`rate_limited` within 10 s before it is closed 4003; 0 closes nobody."
        ),
    ] = 500
    sessions_per_user_max: Annotated[Count, Meta(description="Connections of a user at once; 0 sets no limit.")] = 20
    sessions_per_user_over: Annotated[
        Literal["refuse", "close_oldest"],
        Meta(
            description="`refuse` answers a connection that is too many 429; `close_oldest` lets it in and closes the "
            "user's oldest 4504."
        ),
    ] = "refuse"
    connections_per_address_max: Annotated[
        Count, Meta(description="Connections of an address at once; more are answered 429. 0 sets no limit.")
    ] = 0
    commands_waiting_max: Annotated[
        int, Meta(ge=1, le=65_535, description="Commands of one connection under way before it is not read any more.")
    ] = 64
    events_waiting_max: Annotated[
        Positive, Meta(description="Events that wait for Python before nothing more is read.")
    ] = 65_536
    events_waiting_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of commands and upgrades that Python has not done with, those in handlers too; above it "
            "no open connection is read until half is done."
        ),
    ] = 64 * 1024 * 1024
    user_waiting_bytes_max: Annotated[
        Bytes,
        Meta(
            description="The same for the commands of one user (without a name: of an address) before none of its "
            "connections is read; at most an eighth of what stays free of `events_waiting_bytes_max`."
        ),
    ] = 8 * 1024 * 1024
    user_stored_bytes_per_s: Annotated[
        Count,
        Meta(
            description="Bytes a second that all connections and requests of a user may have stored; more are answered "
            "`rate_limited`. 0 sets no limit."
        ),
    ] = 4 * 1024 * 1024
    user_stored_bytes_burst: Annotated[
        Count, Meta(description="Bytes that a user may have stored at once; 0 takes those of a second.")
    ] = 64 * 1024 * 1024
    reads_waiting_max: Annotated[
        Positive,
        Meta(
            description="Pages of the log that wait to be read for all; more are answered `overloaded`, and a member "
            "that replays loses its subscription with that code. Each is some 300 bytes."
        ),
    ] = 65_536
    user_reads_waiting_max: Annotated[Positive, Meta(description="The same of one user; users take turns.")] = 4096
    commands_waiting_bytes_max: Annotated[
        Bytes, Meta(description="Bytes that wait for the engine before Python takes no more events.")
    ] = 64 * 1024 * 1024
    close_timeout_s: Annotated[Seconds, Meta(description="Seconds that a peer has to answer a close.")] = 5


class CompressionSettings(Section, frozen=True):
    """permessage-deflate: smaller messages for clients that offer it, as browsers do."""

    enabled: Annotated[
        bool, Meta(description="Whether it is agreed to. False where a proxy or the network compresses already.")
    ] = True
    level: Annotated[
        int, Meta(ge=1, le=9, description="From 1, quick, to 9, small; messages above 16 KiB always take 1.")
    ] = 1
    threshold_bytes: Annotated[
        Count,
        Meta(
            description="Bytes of a message below which it goes as it is; an answer to one client goes so below 1024."
        ),
    ] = 512


class PresenceSettings(Section, frozen=True):
    """Who is told that a user is online."""

    grace_s: Annotated[
        Duration, Meta(description="Seconds that a user stays online after a lost connection, for a reconnect.")
    ] = 5.0
    leaving_bytes_max: Annotated[
        Bytes,
        Meta(
            description="Bytes of all who are within that time or whose change is held, with the names of their "
            "channels; above it the time of the one with the most ends at once. Of those who went, half as much."
        ),
    ] = 32 * 1024 * 1024
    everyone_max: Annotated[
        Positive,
        Meta(
            description="Open sessions up to which presence goes to everybody; above it, and always with "
            "`conversations.access = grants`, to those who share a channel with the user."
        ),
    ] = 1000
    changes_per_s: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="Changes of one user (online, offline) that are told a second; above it the last one is told "
            "when its turn comes. 0 sets no limit.",
        ),
    ] = 1.0
    changes_burst: Annotated[Positive, Meta(description="Changes of one user that are told at once.")] = 10


class TypingSettings(Section, frozen=True):
    """Typing indicators."""

    timeout_s: Annotated[
        float, Meta(ge=0.05, le=3600, description="Seconds after the last `typing_start` at which typing ends.")
    ] = 30.0


class ConversationSettings(Section, frozen=True):
    """The built-in conversations."""

    access: Annotated[
        Literal["open", "grants"],
        Meta(description="`open`: whoever is signed in takes part; `grants`: what the token names."),
    ] = "open"
    history: Annotated[
        int,
        Meta(ge=0, le=65_536, description="Events a conversation keeps in memory; older ones are read from disk."),
    ] = 256
    overflow: Annotated[
        Literal["drop_oldest", "close"],
        Meta(
            description="What happens to volatile events of a reader over its hard limit: dropped with `lag`, or it "
            "is closed 4000."
        ),
    ] = "drop_oldest"


class HistorySettings(Section, frozen=True):
    """What channels keep."""

    retention: Annotated[
        tuple[Text, ...],
        Meta(
            description="What is kept of the channels of a pattern, whatever the app says: `<pattern> <age or forever> "
            "[<count>]` each, such as `conversation:* 30d 10000`; ages in `s`, `m`, `h` or `d`. The first that "
            "matches counts; what is older, or more, goes within about a minute."
        ),
    ] = ()
    idle_s: Annotated[
        int,
        Meta(
            ge=1,
            le=100 * 365 * 86_400,
            description="Seconds after which a channel that keeps its past in memory alone (`history` without "
            "`durable`) is forgotten, within some 16 s, when it has had no subscriber and no event; a position of "
            "before is then answered `recovered: false`.",
        ),
    ] = 3600


class HandlerSettings(Section, frozen=True):
    """Handlers of commands."""

    timeout_s: Annotated[
        float, Meta(ge=0.01, le=3600, description="Seconds that an `async` handler may take; then `timeout`.")
    ] = 30.0
    slow_ms: Annotated[
        Positive, Meta(description="Milliseconds on the loop above which a handler is named in the log.")
    ] = 50
    threads: Annotated[
        int, Meta(ge=1, le=256, description="Threads for handlers that are declared with `thread=True`.")
    ] = 8
    listener_events_max: Annotated[
        Positive,
        Meta(
            description="Events that wait for one `async` listener; further stored ones are read from the channel's "
            "history later, others are dropped."
        ),
    ] = 10_000
    listener_bytes_max: Annotated[
        Bytes, Meta(description="Bytes of events that wait for all `async` listeners; above it as above the number.")
    ] = 32 * 1024 * 1024
    tasks_per_session_max: Annotated[
        Positive,
        Meta(description="Tasks that `session.spawn` runs for one connection at once; one more is `limit_reached`."),
    ] = 1_000


class LogSettings(Section, frozen=True):
    """The log that the process writes to stderr; `dedupe_s` and `free_bytes_min` are of that of durable channels."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="The least level that is written.")
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Meta(description="Lines for people, or one JSON object a line for programs.")
    ] = "text"
    connections_per_s: Annotated[
        Count,
        Meta(
            description="Lines a second about single connections that open, close or are refused; others are counted."
        ),
    ] = 100
    tracebacks_per_s: Annotated[
        Count,
        Meta(description="Tracebacks a second; further failures are written as a line without one."),
    ] = 20
    dedupe_s: Annotated[
        int,
        Meta(
            ge=0,
            le=10 * 365 * 86_400,
            description="Seconds from a durable event on for which a repeat with the same key (`clientMessageId`, the "
            "`id` of a hook) is known although retention has deleted the event; it is then acknowledged with number "
            "and id alone. While the event is stored its key is known in any case. 0: no longer than that.",
        ),
    ] = 86_400
    free_bytes_min: Annotated[
        int,
        Meta(
            ge=0,
            le=2**40,
            description="Bytes that must be free on the disk of `data_dir`; with less, durable events are answered "
            "`unavailable` and `/ready` 503 until there is room again. 0 goes on until the disk is full.",
        ),
    ] = 16 * 1024 * 1024


class DrainSettings(Section, frozen=True):
    """The end of the process."""

    grace_s: Annotated[
        float,
        Meta(
            ge=0.1,
            le=3600,
            description="Seconds from SIGTERM or SIGINT to the end of the process at the latest; less than what the "
            "service manager gives before it kills.",
        ),
    ] = 25.0
    notice_s: Annotated[
        Duration,
        Meta(
            description="Seconds that all is served on after clients and `/ready` were told, if anybody is connected; "
            "for load balancers. Part of `grace_s`."
        ),
    ] = 0.0
    window_s: Annotated[
        Duration, Meta(description="Seconds over which clients are told to come back, each at its own time.")
    ] = 5.0
    successor: Annotated[
        bool,
        Meta(
            description="Whether another node takes the clients: connections then end one by one over `window_s`, "
            "which is part of `grace_s`."
        ),
    ] = False


class Settings(Section, frozen=True):
    """The whole configuration."""

    data_dir: Annotated[
        Text,
        Meta(description="Directory of the log of durable channels and of the generated secret; made where missing."),
    ] = "data"
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    api: ApiSettings = ApiSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    compression: CompressionSettings = CompressionSettings()
    presence: PresenceSettings = PresenceSettings()
    typing: TypingSettings = TypingSettings()
    conversations: ConversationSettings = ConversationSettings()
    history: HistorySettings = HistorySettings()
    handlers: HandlerSettings = HandlerSettings()
    log: LogSettings = LogSettings()
    drain: DrainSettings = DrainSettings()

    @property
    def one_port(self) -> bool:
        """Whether the HTTP listener shares the port of the WebSocket endpoint."""
        server, api = self.server, self.api
        same = [section.host.strip("[]").replace("localhost", "127.0.0.1") for section in (server, api)]
        return api.enabled and api.port == server.port != 0 and same[0] == same[1]
