//! The options that Python hands over as JSON: plain data, checked here once.
//!
//! Unknown keys are refused, so that a misspelt one never passes for a default. Python's configuration writes this
//! document; docs/reference/configuration.md tells the keys that a person sets.

use crate::confidential::Confidential;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Everything that the engine is told before it starts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 lets the kernel choose.
    pub port: u16,
    /// Shard threads; 0 means cores − 1, within 1..8.
    pub shards: usize,
    /// How sends reach the kernel.
    pub flush: FlushOption,
    /// Descriptors that are for something else than WebSocket connections; Python's `descriptors` divides them.
    pub descriptors_kept: usize,
    /// Where the log lives; None keeps it in memory.
    pub data_dir: Option<String>,
    /// Which messages are compressed, and how much.
    pub compression: CompressionOptions,
    /// Limits and deadlines.
    pub limits: Limits,
    /// Addresses and networks whose `X-Forwarded-For` is believed.
    pub proxies: Vec<String>,
    /// How tokens are checked; None refuses endpoints that need one.
    pub token: Option<TokenRule>,
    /// Whether Python hears of each session which token it came with.
    pub tell_tokens: bool,
    /// Origins that are let in; None does not look.
    pub origins: Option<Vec<String>>,
    /// Paths that upgrade.
    pub endpoints: Vec<Endpoint>,
    /// Types of commands that go up to Python.
    pub routes: Vec<Route>,
    /// Types of commands that turn round in the hub.
    pub relays: Vec<RelayOptions>,
    /// What kind of channel a name is; the first match wins, none means volatile.
    pub policies: Vec<PolicyOptions>,
    /// Rights of every session.
    pub open_grants: Vec<OpenGrant>,
    /// Patterns on which Python decides where no grant covers a channel.
    pub authorize: Vec<String>,
    /// Event names that a client's `publish` may not use.
    pub reserved_events: Vec<String>,
    /// What the operator keeps, whatever `policies` say; the first match wins.
    pub retention: Vec<Retention>,
    /// Seconds from the time of an event for which its dedupe key stays known where retention lets the event go before;
    /// 0: no longer than the event.
    pub dedupe_s: u64,
    /// Bytes of revocations that are known.
    pub revocations_bytes_max: usize,
    /// Seconds after which a channel that keeps its past in memory alone is forgotten where nobody uses it.
    pub idle_s: u64,
    /// Bytes that have to be free on the disk of `data_dir` for events to be stored; 0 asks for none.
    pub free_bytes_min: u64,
    /// Patterns of channels whose events go up to Python too, as [`crate::Event::Heard`].
    pub listen: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 0,
            shards: 1,
            flush: FlushOption::Auto,
            descriptors_kept: 64,
            data_dir: None,
            compression: CompressionOptions::default(),
            limits: Limits::default(),
            proxies: Vec::new(),
            token: None,
            tell_tokens: false,
            origins: None,
            endpoints: Vec::new(),
            routes: Vec::new(),
            relays: Vec::new(),
            policies: Vec::new(),
            open_grants: Vec::new(),
            authorize: Vec::new(),
            reserved_events: Vec::new(),
            retention: Vec::new(),
            dedupe_s: 86_400,
            revocations_bytes_max: 32 << 20,
            idle_s: 3_600,
            free_bytes_min: 16 << 20,
            listen: Vec::new(),
        }
    }
}

impl Options {
    /// Reads the document.
    ///
    /// # Errors
    /// One line that names the key and what is allowed.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| format!("engine options: {error}"))
    }
}

/// How sends reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushOption {
    /// Through io_uring where the kernel allows it.
    #[default]
    Auto,
    /// Through io_uring; without it there is no start.
    Uring,
    /// By `send()`.
    Send,
}

/// permessage-deflate (RFC 7692).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompressionOptions {
    /// Whether it is agreed to with clients that offer it.
    pub enabled: bool,
    /// 1 (quick) to 9 (small); long messages always take 1.
    pub level: u8,
    /// Payload below which a message stays plain.
    pub threshold_bytes: usize,
}

impl Default for CompressionOptions {
    fn default() -> Self {
        Self { enabled: true, level: 1, threshold_bytes: 512 }
    }
}

/// Limits and deadlines. With `enabled = false` rates, and what one user or address may have open, are not applied;
/// sizes stay.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "name and unit say it; docs/reference/configuration.md tells each in full")]
pub struct Limits {
    pub enabled: bool,
    pub message_bytes_max: usize,
    pub message_values_max: usize,
    pub command_bytes_max: usize,
    pub publication_bytes_max: usize,
    pub idle_timeout_s: u32,
    pub heartbeat_interval_s: u32,
    pub heartbeats: bool,
    pub handshake_timeout_s: u32,
    pub handshakes_pending_max: usize,
    pub authenticating_max: usize,
    pub head_bytes_max: usize,
    pub heads_bytes_max: usize,
    pub connections_max: usize,
    pub outbox_soft_bytes: usize,
    pub outbox_hard_bytes: usize,
    pub outboxes_bytes_max: usize,
    pub retained_bytes_max: usize,
    /// Bytes of who all open sessions are.
    pub identities_bytes_max: usize,
    pub ring_bytes_max: usize,
    pub rings_bytes_max: usize,
    pub log_queue_bytes_max: usize,
    pub channels_bytes_max: usize,
    pub unfinished_bytes_max: usize,
    pub message_timeout_s: u32,
    pub channels_per_session_max: usize,
    pub channels_per_user_max: usize,
    pub members_bytes_max: usize,
    pub commands_per_s: u32,
    pub commands_burst: u32,
    pub relays_per_s: u32,
    pub relays_burst: u32,
    pub bytes_per_s: u32,
    pub user_commands_per_s: u32,
    pub user_commands_burst: u32,
    pub user_relays_per_s: u32,
    pub user_relays_burst: u32,
    pub address_commands_per_s: u32,
    pub address_commands_burst: u32,
    pub address_relays_per_s: u32,
    pub address_relays_burst: u32,
    pub address_handshakes_per_s: u32,
    pub address_handshakes_burst: u32,
    pub user_handshakes_per_s: u32,
    pub user_handshakes_burst: u32,
    pub refusals_max: u32,
    pub accounts_bytes_max: usize,
    pub sessions_per_user_max: usize,
    pub sessions_per_user_over: Crowd,
    pub connections_per_address_max: usize,
    pub commands_waiting_max: u16,
    pub events_waiting_max: usize,
    pub events_waiting_bytes_max: usize,
    pub user_waiting_bytes_max: usize,
    pub user_stored_bytes_per_s: u32,
    pub user_stored_bytes_burst: u32,
    pub reads_waiting_max: usize,
    pub user_reads_waiting_max: usize,
    pub commands_waiting_bytes_max: usize,
    pub close_timeout_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            enabled: true,
            message_bytes_max: 16 << 20,
            message_values_max: 20_000,
            command_bytes_max: 2 << 20,
            publication_bytes_max: 1 << 20,
            idle_timeout_s: 300,
            heartbeat_interval_s: 25,
            heartbeats: true,
            handshake_timeout_s: 10,
            handshakes_pending_max: 1_000,
            authenticating_max: 1_000,
            head_bytes_max: 64 << 10,
            heads_bytes_max: 16 << 20,
            connections_max: 0,
            outbox_soft_bytes: 64 << 10,
            outbox_hard_bytes: 1 << 20,
            outboxes_bytes_max: 256 << 20,
            retained_bytes_max: 64 << 20,
            identities_bytes_max: 128 << 20,
            ring_bytes_max: 8 << 20,
            rings_bytes_max: 64 << 20,
            log_queue_bytes_max: 64 << 20,
            channels_bytes_max: 128 << 20,
            unfinished_bytes_max: 256 << 20,
            message_timeout_s: 120,
            channels_per_session_max: 200,
            channels_per_user_max: 2_000,
            members_bytes_max: 256 << 20,
            commands_per_s: 100,
            commands_burst: 300,
            relays_per_s: 50,
            relays_burst: 150,
            bytes_per_s: 0,
            user_commands_per_s: 500,
            user_commands_burst: 1_500,
            user_relays_per_s: 250,
            user_relays_burst: 750,
            address_commands_per_s: 0,
            address_commands_burst: 0,
            address_relays_per_s: 0,
            address_relays_burst: 0,
            address_handshakes_per_s: 300,
            address_handshakes_burst: 2_000,
            user_handshakes_per_s: 30,
            user_handshakes_burst: 100,
            refusals_max: 500,
            accounts_bytes_max: 16 << 20,
            sessions_per_user_max: 20,
            sessions_per_user_over: Crowd::Refuse,
            connections_per_address_max: 0,
            commands_waiting_max: 64,
            events_waiting_max: 65_536,
            events_waiting_bytes_max: 64 << 20,
            user_waiting_bytes_max: 8 << 20,
            user_stored_bytes_per_s: 4 << 20,
            user_stored_bytes_burst: 64 << 20,
            reads_waiting_max: 65_536,
            user_reads_waiting_max: 4_096,
            commands_waiting_bytes_max: 64 << 20,
            close_timeout_s: 5,
        }
    }
}

/// What happens when a user opens a session too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crowd {
    /// The new one is refused.
    Refuse,
    /// The oldest is closed with 4504.
    CloseOldest,
}

/// How a shard checks a token without asking Python.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRule {
    /// Keys; any that a token names by algorithm, `kid` and issuer may have signed it.
    pub keys: Vec<KeyRule>,
    /// The `aud` that a token must name; None does not look.
    #[serde(default)]
    pub audience: Option<String>,
    /// The `iss` that a token must have; None does not look.
    #[serde(default)]
    pub issuer: Option<String>,
    /// The claim that holds the user's id.
    #[serde(default = "default_user_claim")]
    pub user_claim: String,
    /// Whether a token without `exp` is refused.
    #[serde(default = "default_true")]
    pub require_exp: bool,
    /// Seconds that clocks may differ.
    #[serde(default)]
    pub leeway_s: u64,
    /// Seconds that `iat` may lie ahead, whatever the leeway: a revocation covers as many.
    #[serde(default = "default_clock_skew_s")]
    pub clock_skew_s: u64,
    /// `close`: a connection ends with its token; `connect`: the token counts only at the start.
    #[serde(default = "default_expiry")]
    pub expiry: Expiry,
    /// Whether Python is asked about a token of a public key that is none of `keys`.
    #[serde(default)]
    pub ask: bool,
}

/// A key that tokens are checked with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRule {
    /// The one algorithm that it is used with.
    pub algorithm: Algorithm,
    /// A shared secret for HS…; else a public key as PEM or JWK.
    pub key: Confidential,
    /// Tokens that name another `kid` are not tried with it; None is tried with all.
    #[serde(default)]
    pub kid: Option<String>,
    /// Only tokens with this `iss` are tried with it.
    #[serde(default)]
    pub issuer: Option<String>,
}

/// When an expired token matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expiry {
    /// The connection is told 30 s before and closed with 4002.
    Close,
    /// Only at connect.
    Connect,
}

const fn default_clock_skew_s() -> u64 {
    5
}
fn default_user_claim() -> String {
    "sub".into()
}
const fn default_true() -> bool {
    true
}
const fn default_expiry() -> Expiry {
    Expiry::Close
}

/// A path that upgrades.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Exact path.
    pub path: String,
    /// `json`: the protocol's envelope; `raw`: messages as they come.
    pub mode: Mode,
    /// Who decides about the caller.
    pub auth: Auth,
    /// Whether permessage-deflate is agreed to here, where it is at all.
    #[serde(default = "default_true")]
    pub compression: bool,
    /// Subprotocols that a raw endpoint speaks, the preferred one first.
    #[serde(default)]
    pub subprotocols: Vec<Box<str>>,
}

/// What messages of an endpoint look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The protocol's envelope.
    Json,
    /// Text and binary as they come.
    Raw,
}

/// Who decides about a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// The token rule, in the shard.
    Token,
    /// Python, by an `Upgrade` event.
    Hook,
    /// Nobody: all are let in as the user "".
    None,
}

/// A type of command that goes up to Python.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Route {
    /// Without a condition.
    Plain(String),
    /// Only with a right on a channel; without it the hub answers `forbidden` itself.
    Guarded {
        /// The command's type.
        #[serde(rename = "type")]
        kind: String,
        /// The right that is needed.
        right: String,
        /// Template of the channel's name.
        channel: String,
        /// The message of the `error`.
        #[serde(default)]
        failure: Option<String>,
        /// The message of the `error` where a member that `channel` names is missing, null or empty.
        #[serde(default)]
        missing: Option<String>,
    },
}

/// A type of command that turns round in the hub.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayOptions {
    /// The command's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Template of the channel's name.
    pub channel: String,
    /// The event's type.
    pub event: String,
    /// Template of the event's data: an object.
    pub data: Box<RawValue>,
    /// Template of the key of class `latest`.
    #[serde(default)]
    pub latest_by: Option<String>,
    /// How long a start lasts without another.
    #[serde(default)]
    pub ends_after_ms: Option<u64>,
    /// Members of `data` as they are when it ends.
    #[serde(default)]
    pub undo: Option<BTreeMap<String, Box<RawValue>>>,
    /// The type of the relay that this one ends.
    #[serde(default)]
    pub ends: Option<String>,
}

/// What kind of channel a name is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyOptions {
    /// Which names.
    pub pattern: String,
    /// Stored in the log.
    #[serde(default)]
    pub durable: bool,
    /// Publications kept in memory for late and returning members; 0 and not durable means volatile.
    #[serde(default)]
    pub history: usize,
    /// What happens to volatile events for a reader that is too slow.
    #[serde(default)]
    pub overflow: Overflow,
    /// Seconds that an event is kept; None: for ever.
    #[serde(default)]
    pub keep_s: Option<u64>,
    /// Newest events that are kept; None: all.
    #[serde(default)]
    pub keep_events: Option<u64>,
    /// Keys whose newest event late subscribers get; 0: none.
    #[serde(default)]
    pub retain_latest: usize,
    /// Seconds that such an event is true unless it is renewed.
    #[serde(default = "default_retain_s")]
    pub retain_latest_s: u64,
}

const fn default_retain_s() -> u64 {
    3_600
}

/// What is kept of the channels that a pattern covers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Which names.
    pub pattern: String,
    /// As of [`PolicyOptions`].
    #[serde(default)]
    pub keep_s: Option<u64>,
    /// As of [`PolicyOptions`].
    #[serde(default)]
    pub keep_events: Option<u64>,
}

/// What happens to volatile events for a reader that is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The oldest go, and the reader is told by `lag`.
    #[default]
    DropOldest,
    /// The reader is closed with 4000.
    Close,
}

/// Rights of every session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenGrant {
    /// Which names; `{session.user}` stands for the session's own user.
    pub pattern: String,
    /// Of `subscribe publish presence history`.
    pub rights: Vec<String>,
}
