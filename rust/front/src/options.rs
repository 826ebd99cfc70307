//! What the front is told at its start.

use realtime_protocol::address::Proxies;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;
use std::time::Duration;

/// The header that tells the server behind the front whose a request is; nobody else's of that name gets through.
pub(crate) const PEER_HEADER: &str = "x-realtime-peer";

/// The header with the number of the request, by which the server behind says that it has begun it.
pub(crate) const NUMBER_HEADER: &str = "x-realtime-request";

/// The header of an answer by which the server behind says that it knew the caller; no client sees it.
pub(crate) const KNOWN_HEADER: &str = "x-realtime-known";

/// Limits and times, as JSON from the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The Unix socket of the server behind.
    pub upstream: PathBuf,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Connections that are open at once.
    pub connections_max: usize,
    /// Requests that the server behind has at once; a few more for [`Self::reserved`].
    pub requests_max: usize,
    /// Bytes of heads, bodies and answers that are held at once.
    pub bytes_max: usize,
    /// From the first byte of a head to its last, and from a connection's begin to its first byte.
    pub head_timeout_s: f64,
    /// For a body, and again for each part of it that comes at [`crate::state::PACE`].
    pub body_timeout_s: f64,
    /// For a client to take an answer, in the same way.
    pub answer_timeout_s: f64,
    /// Between two requests of a connection, while there is room.
    pub keep_alive_s: f64,
    /// How long a request waits for its turn.
    pub wait_s: f64,
    /// Requests a second of an address whose caller the server behind does not know; 0 sets no limit.
    pub address_requests_per_s: u32,
    /// And as many at once; 0 takes those of a second.
    pub address_requests_burst: u32,
    /// Whether a connection may have a second request. Where the port is shared it may not: the second one may be an
    /// upgrade, which only the other side can answer, since proxies send what comes next on any connection they have.
    pub keeps_connections: bool,
    /// Addresses and networks whose `X-Forwarded-For` is believed.
    #[serde(deserialize_with = "proxies")]
    pub proxies: Proxies,
    /// Paths that are answered whatever fills the rest.
    pub reserved: Vec<String>,
}

impl Options {
    /// Reads the JSON.
    ///
    /// # Errors
    /// One line that names what is wrong.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let options: Self =
            serde_json::from_slice(json).map_err(|error| format!("options of the HTTP port: {error}"))?;
        let times = [
            options.head_timeout_s,
            options.body_timeout_s,
            options.answer_timeout_s,
            options.keep_alive_s,
            options.wait_s,
        ];
        if times.iter().any(|time| Duration::try_from_secs_f64(*time).is_err()) {
            return Err("options of the HTTP port: a time is negative or too long".into());
        }
        if options.connections_max == 0 || options.requests_max == 0 {
            return Err("options of the HTTP port: connections_max and requests_max are at least 1".into());
        }
        Ok(options)
    }
}

fn proxies<'de, D: Deserializer<'de>>(from: D) -> Result<Proxies, D::Error> {
    Proxies::parse(&Vec::deserialize(from)?).map_err(D::Error::custom)
}
