//! What a peer did wrong, as the close code and the reason that it is told.
//!
//! A [`Violation`] is final: RFC 6455 §7.1.7 has the endpoint fail the connection, so the caller sends one Close
//! frame with this code and reason, reads nothing more and closes the TCP connection. The reasons are short and fixed:
//! they never repeat bytes of the input, which would let a peer write into logs and amplify.

use std::fmt;

use crate::close::CloseCode;

/// A breach of RFC 6455 or RFC 7692 by the peer; ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// 1002 (protocol), 1007 (not UTF-8, not DEFLATE) or 1009 (too big): RFC 6455 §7.4.1.
    pub code: CloseCode,
    /// Text for the Close frame, at most 123 bytes.
    pub reason: &'static str,
}

impl Violation {
    /// 1002: the frame breaks RFC 6455 §5.
    pub(crate) const fn protocol(reason: &'static str) -> Self {
        Self { code: CloseCode::PROTOCOL_ERROR, reason }
    }

    /// 1007: text that is not UTF-8 (RFC 6455 §8.1).
    pub(crate) const fn not_utf8() -> Self {
        Self { code: CloseCode::INVALID_PAYLOAD, reason: "text is not valid UTF-8" }
    }

    /// 1007: a message marked as compressed that is no whole DEFLATE stream (RFC 7692 §6.2, §7.2.2).
    pub(crate) const fn not_deflate() -> Self {
        Self { code: CloseCode::INVALID_PAYLOAD, reason: "message is not valid deflate" }
    }

    /// 1009: the message is longer than this end takes.
    pub(crate) const fn too_big() -> Self {
        Self { code: CloseCode::MESSAGE_TOO_BIG, reason: "message exceeds message_bytes_max" }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer broke the protocol: {}, {}", self.code, self.reason)
    }
}

impl std::error::Error for Violation {}
