//! Answers to a request: the 101, and refusals with the bodies that clients rely on.
//!
//! Every refusal closes the connection and says so; its body is fixed text and repeats nothing of the request.
//! Invariant: no name or value can end its line, whatever the caller passes, so nothing that a client sent can add a
//! header or split the answer. The 101 is written before any frame. Called by the reactor.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::is_token_byte;
use crate::extensions::Deflate;

/// The GUID that RFC 6455 §1.3 has appended to the key.
const KEY_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A refusal: status and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpError {
    /// Status code.
    pub status: u16,
    /// Body, as `text/plain`.
    pub body: &'static str,
}

impl HttpError {
    /// What came is not HTTP/1.x, or is ambiguous.
    pub const BAD_REQUEST: Self = Self::new(400, "Bad Request");
    /// A request to a socket's path that is no upgrade.
    pub const UPGRADE_FAILED: Self = Self::new(400, "Upgrade failed");
    /// No token, or one that is not valid.
    pub const UNAUTHORIZED: Self = Self::new(401, "Unauthorized");
    /// An origin that is not allowed.
    pub const FORBIDDEN: Self = Self::new(403, "Forbidden");
    /// A path without an endpoint.
    pub const NOT_FOUND: Self = Self::new(404, "WebSocket endpoint not found");
    /// The head or the handshake took too long.
    pub const TIMEOUT: Self = Self::new(408, "Request Timeout");
    /// The request line alone passes the limit.
    pub const URI_TOO_LONG: Self = Self::new(414, "URI Too Long");
    /// A version of the WebSocket protocol other than 13.
    pub const UPGRADE_REQUIRED: Self = Self::new(426, "Upgrade Required");
    /// Too many attempts from the address; needs `Retry-After`.
    pub const TOO_MANY_REQUESTS: Self = Self::new(429, "Too Many Requests");
    /// Too many bytes or lines of headers.
    pub const HEAD_TOO_LARGE: Self = Self::new(431, "Request Header Fields Too Large");
    /// Our own failure.
    pub const INTERNAL: Self = Self::new(500, "Internal Server Error");
    /// Draining or full; needs `Retry-After`.
    pub const UNAVAILABLE: Self = Self::new(503, "Service Unavailable");

    const fn new(status: u16, body: &'static str) -> Self {
        Self { status, body }
    }

    /// The whole answer, with the headers that its status calls for and `extra` (e.g. `Retry-After`).
    pub fn response(&self, extra: &[(&str, &str)]) -> Vec<u8> {
        let own: &[(&str, &str)] = match self.status {
            401 => &[("WWW-Authenticate", "Bearer")],
            // RFC 6455 §4.2.2: the versions that this server speaks.
            426 => &[("Sec-WebSocket-Version", "13")],
            _ => &[],
        };
        error_response(self.status, self.body, &[own, extra].concat())
    }
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
pub fn accept_key(key: &str) -> String {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(KEY_GUID).finalize();
    STANDARD.encode(digest)
}

/// The 101 that makes the connection a WebSocket; `accept` is from [`accept_key`].
///
/// `subprotocol` must be one that the client offered. One that is no token (RFC 6455 §4.1) is left out: it could not
/// have been offered, and nothing may end the line. `deflate` is what was agreed on from the client's offer.
pub fn switching_protocols(accept: &str, subprotocol: Option<&str>, deflate: Option<&Deflate>) -> Vec<u8> {
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    push_header(&mut head, "Sec-WebSocket-Accept", accept);
    if let Some(name) = subprotocol
        && !name.is_empty()
        && name.bytes().all(is_token_byte)
    {
        push_header(&mut head, "Sec-WebSocket-Protocol", name);
    }
    if let Some(deflate) = deflate {
        push_header(&mut head, "Sec-WebSocket-Extensions", &deflate.response());
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A whole answer that ends the connection: `body` as `text/plain`, with its length, `Connection: close` and `extra`.
/// Nobody stores it, and no browser takes it for anything else.
///
/// A header of `extra` whose value holds a control byte is left out: nothing may end the line.
pub fn error_response(status: u16, body: &str, extra: &[(&str, &str)]) -> Vec<u8> {
    let mut head = Vec::with_capacity(192 + body.len());
    head.extend_from_slice(format!("HTTP/1.1 {status} {}\r\n", reason_phrase(status)).as_bytes());
    push_header(&mut head, "Content-Type", "text/plain; charset=utf-8");
    push_header(&mut head, "Content-Length", &body.len().to_string());
    push_header(&mut head, "Cache-Control", "no-store");
    push_header(&mut head, "X-Content-Type-Options", "nosniff");
    push_header(&mut head, "Connection", "close");
    for (name, value) in extra {
        push_header(&mut head, name, value);
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(body.as_bytes());
    head
}

fn push_header(head: &mut Vec<u8>, name: &str, value: &str) {
    if name.bytes().all(is_token_byte) && !value.bytes().any(|byte| byte.is_ascii_control()) {
        for part in [name, ": ", value, "\r\n"] {
            head.extend_from_slice(part.as_bytes());
        }
    }
}

/// Reason phrase of the statuses that this server sends (RFC 9110 §15); empty for others, which HTTP allows.
const fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}
